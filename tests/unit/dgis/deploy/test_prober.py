"""The prober, run as it is run on a vantage point: its text over standard input of a bare Python 3."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from dgis.deploy import prober
from tests.helpers import frontpeer
from tests.helpers.frontpeer import Authority

SCRIPT = files("dgis.deploy").joinpath("prober.py").read_text(encoding="utf-8")
LONG = ".".join(["a" * 60] * 3) + ".example"


def run(*asked: tuple[str, int, str], patience: float = 0.5) -> list[list[str]]:
    """What it says of these tries on loopback, without a library of ours in reach."""
    text = json.dumps([[kind, "127.0.0.1", port, name] for kind, port, name in asked])
    words = [sys.executable, "-I", "-S", "-c", SCRIPT, str(patience)]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


@contextmanager
def serving(greet: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server on loopback that does this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    link.settimeout(5)
                    with suppress(OSError):
                        greet(link)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_port_is_open_refused_or_silent() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, serving(lambda link: link.recv(1)) as port:
        waiting = [socket.socket() for _ in range(3)]  # a full backlog answers nobody
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        found = run(("tcp", port, ""), ("tcp", free_port(), ""), ("tcp", full.getsockname()[1], ""))
        for each in waiting:
            each.close()
    assert found == [["open", "127.0.0.1"], ["refused", "Connection refused"], ["silent", ""]]


def test_tls_wants_a_certificate_of_that_name(authority: Authority) -> None:
    context = authority.server("wiki.cesnet.example")
    context.verify_mode = ssl.CERT_NONE

    def shake(link: socket.socket) -> None:
        with context.wrap_socket(link, server_side=True) as shown:
            shown.recv(1)

    with serving(shake) as port:
        right, wrong = run(("tls", port, "wiki.cesnet.example"), ("tls", port, "iki.cesnet.example"))
    assert right == ["open", "wiki.cesnet.example"]
    assert wrong == ["other", "the certificate of wiki.cesnet.example is shown"]


def test_tls_that_demands_a_client_certificate_shows_its_own_first(authority: Authority) -> None:
    context = authority.server("storage.node.lf1.example")

    def shake(link: socket.socket) -> None:
        context.wrap_socket(link, server_side=True).recv(1)

    with serving(shake) as port:
        assert run(("tls", port, "storage.node.lf1.example")) == [["open", "storage.node.lf1.example"]]


def test_tls_that_is_closed_or_never_answers(authority: Authority) -> None:
    with serving(lambda link: None) as closes, serving(lambda link: time.sleep(1.5)) as sleeps:
        found = run(("tls", closes, "a.example"), ("tls", sleeps, "a.example"))
    assert found[0][0] == "refused" and found[0][1].startswith("closed before a certificate was shown")
    assert found[1] == ["silent", ""]


def test_ssh_answers_who_speaks_first() -> None:
    def greet(link: socket.socket) -> None:
        assert link.recv(64).startswith(b"SSH-2.0-")
        link.sendall(b"SSH-2.0-Somebody\r\n")

    with serving(greet) as port, serving(lambda link: link.recv(1)) as closes, serving(lambda link: None) as other:
        found = run(("ssh", port, ""), ("ssh", closes, ""), ("ssh", other, ""))
    assert found[0] == ["open", ""]
    assert [result for result, _ in found[1:]] == ["refused", "refused"]


def test_a_hundred_silent_ports_take_one_time_out() -> None:
    with serving(lambda link: time.sleep(0.01)) as port:
        begun = time.monotonic()
        assert len(run(*[("ssh", port, "")] * 100, patience=5.0)) == 100
    assert time.monotonic() - begun < 5


def certificate(*alternative: str, common: str = "cn.example") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = frontpeer._builder(frontpeer._name(common), frontpeer._name("issuer.example"), key.public_key())
    if alternative:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in alternative])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "alternative", [("a.example",), ("a.example", "*.b.example"), (LONG,), ("x" * 63 + ".y" * 30, "b.example")]
)
def test_names_of_a_certificate_are_its_alternative_names(alternative: tuple[str, ...]) -> None:
    assert prober.names(certificate(*alternative)) == list(alternative)


def test_an_old_certificate_has_its_common_name() -> None:
    assert prober.names(certificate()) == ["cn.example"]
    assert prober.names(b"") == [] and prober.names(b"\x82") == [] and prober.names(b"\x82\x20short.example") == []


def test_a_wildcard_stands_for_one_label(authority: Authority) -> None:
    context = authority.server("*.cesnet.example")
    context.verify_mode = ssl.CERT_NONE

    def shake(link: socket.socket) -> None:
        context.wrap_socket(link, server_side=True).recv(1)

    with serving(shake) as port:
        found = run(*(("tls", port, name) for name in ("wiki.cesnet.example", "a.wiki.cesnet.example")))
    assert [result for result, _ in found] == ["open", "other"]


def test_its_text_needs_nothing_but_the_standard_library() -> None:
    assert Path(prober.__file__).read_text() == SCRIPT
