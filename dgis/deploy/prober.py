"""Try connections and say what came of them. Runs anywhere with a bare Python 3, its text sent over standard input.

Reads a JSON list of [kind, address, port, name], prints a JSON list of [result, detail] in the same order. A result is
`open`, `refused` (somebody says that nothing listens there), `silent` (no answer), or `other` (an answer, but not from
whom it was asked: the wrong certificate, no SSH). Imports the standard library only.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

TIMEOUT = 3.0


def connect(address: str, port: int) -> socket.socket:
    """Open a TCP connection. Raises OSError."""
    link = socket.create_connection((address, port), timeout=TIMEOUT)
    link.settimeout(TIMEOUT)
    return link


def tcp(address: str, port: int, name: str) -> tuple[str, str]:
    """Is there somebody?"""
    with connect(address, port) as link:
        return "open", link.getsockname()[0]


def tls(address: str, port: int, name: str) -> tuple[str, str]:
    """Does the certificate that is shown have the name that was asked for? Who it is from is the clients' matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect(address, port) as link, context.wrap_socket(link, server_hostname=name) as shown:
            certificate = shown.getpeercert(binary_form=True) or b""
    except (ssl.SSLError, ConnectionResetError) as error:
        return "refused", f"closed before a certificate was shown ({type(error).__name__})"
    return ("open", name) if name.encode() in certificate else ("other", "another certificate is shown")


def ssh(address: str, port: int, name: str) -> tuple[str, str]:
    """Does SSH answer one that speaks first?"""
    with connect(address, port) as link:
        link.sendall(b"SSH-2.0-dgis_verify\r\n")
        greeting = link.recv(64)
    return ("open", "") if greeting.startswith(b"SSH-") else ("refused", "closed without a greeting")


KINDS = {"tcp": tcp, "tls": tls, "ssh": ssh}


def attempt(asked: list[object]) -> tuple[str, str]:
    """One try; every failure is a result."""
    kind, address, port, name = asked
    try:
        return KINDS[str(kind)](str(address), int(str(port)), str(name))
    except TimeoutError:
        return "silent", ""
    except ConnectionError as error:
        return "refused", error.strerror or type(error).__name__
    except OSError as error:
        return ("silent" if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) else "refused"), error.strerror or ""


def main() -> None:
    """Try all at once: a hundred silent ports take one time-out."""
    asked = json.loads(sys.stdin.read())
    with ThreadPoolExecutor(max_workers=64) as pool:
        sys.stdout.write(json.dumps(list(pool.map(attempt, asked))))


if __name__ == "__main__":
    main()
