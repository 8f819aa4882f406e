"""Try connections and say what came of them. Runs anywhere with a bare Python 3, its text sent over standard input.

Reads a JSON list of [kind, address, port, name], prints a JSON list of [result, detail] in the same order; the only
argument is how many seconds an answer may take. A result is `open`, `refused` (somebody says that nothing listens
there), `silent` (no answer), or `other` (an answer, but not from whom it was asked: the wrong certificate). Imports the
standard library only.
"""

from __future__ import annotations

import errno
import json
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

HOST_NAME = re.compile(rb"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")


def connect(address: str, port: int, patience: float) -> socket.socket:
    """Open a TCP connection. Raises OSError."""
    link = socket.create_connection((address, port), timeout=patience)
    link.settimeout(patience)
    return link


def tcp(address: str, port: int, name: str, patience: float) -> tuple[str, str]:
    """Is there somebody?"""
    with connect(address, port, patience) as link:
        return "open", link.getsockname()[0]


def tls(address: str, port: int, name: str, patience: float) -> tuple[str, str]:
    """Does the certificate that is shown have the name that was asked for? Who it is from is the clients' matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect(address, port, patience) as link, context.wrap_socket(link, server_hostname=name) as shown:
            certificate = shown.getpeercert(binary_form=True) or b""
    except (ssl.SSLError, ConnectionResetError) as error:
        return "refused", f"closed before a certificate was shown ({type(error).__name__})"
    shown_names = names(certificate)
    if name in shown_names or f"*.{name.partition('.')[2]}" in shown_names:
        return "open", name
    return "other", f"the certificate of {', '.join(shown_names[:3]) or 'no name'} is shown"


def names(certificate: bytes) -> list[str]:
    """The DNS names of a certificate in DER: in subjectAltName each is [2], its length, and the name (RFC 5280).

    One without any has its subject's common name, the last one that stands there, as old servers have it.
    """
    return [*texts(rb"\x82\x81?", certificate)] or [*texts(rb"\x06\x03\x55\x04\x03[\x0c\x13\x16]", certificate)][-1:]


def texts(tag: bytes, certificate: bytes) -> Iterator[str]:
    """Every host name that follows such a tag and its own length."""
    for place in (match.end() for match in re.finditer(tag, certificate)):
        length = certificate[place] if place < len(certificate) else 0
        text = certificate[place + 1 : place + 1 + length]
        if len(text) == length and HOST_NAME.fullmatch(text):
            yield text.decode()


def ssh(address: str, port: int, name: str, patience: float) -> tuple[str, str]:
    """Does SSH answer one that speaks first?"""
    with connect(address, port, patience) as link:
        link.sendall(b"SSH-2.0-dgis_verify\r\n")
        greeting = link.recv(64)
    return ("open", "") if greeting.startswith(b"SSH-") else ("refused", "closed without a greeting")


KINDS = {"tcp": tcp, "tls": tls, "ssh": ssh}


def attempt(asked: list[object], patience: float) -> tuple[str, str]:
    """One try; every failure is a result."""
    kind, address, port, name = asked
    try:
        return KINDS[str(kind)](str(address), int(str(port)), str(name), patience)
    except TimeoutError:
        return "silent", ""
    except ConnectionError as error:
        return "refused", error.strerror or type(error).__name__
    except OSError as error:
        return ("silent" if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) else "refused"), error.strerror or ""


def main() -> None:
    """Try all at once: a hundred silent ports take one time-out."""
    asked, patience = json.loads(sys.stdin.read()), float(sys.argv[1])
    with ThreadPoolExecutor(max_workers=128) as pool:
        sys.stdout.write(json.dumps(list(pool.map(lambda one: attempt(one, patience), asked))))


if __name__ == "__main__":
    main()
