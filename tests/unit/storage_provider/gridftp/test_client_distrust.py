"""Servers that say anything: the channel ends in time, with a storage error, and leaves nothing behind."""

from __future__ import annotations

import base64
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from certs.tls import client_context, server_context
from storage_provider.errors import Denied, StorageError, Unreachable
from storage_provider.gridftp.client.channel import GsiftpChannel
from storage_provider.gridftp.gss import Gss, GssError
from storage_provider.gridftp.replies import protected_reply
from storage_provider.timeouts import Timeouts
from tests.conformance.memory_channel import spec_of
from tests.helpers.pki import SiteHome, site

__all__ = ["site"]

KEY = spec_of(b"none").key
Talk = Callable[[socket.socket], None]


@contextmanager
def speaking(talk: Talk) -> Iterator[str]:
    """A server that treats every connection so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError, GssError):
                        talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"gsiftp://127.0.0.1:{listener.getsockname()[1]}/srv/dgis"
        listener.shutdown(socket.SHUT_RDWR)


def says(*lines: bytes) -> Talk:
    """Say the first line at once and each other one after a command has come."""

    def talk(connection: socket.socket) -> None:
        for number, line in enumerate(lines):
            if number and not connection.recv(65536):
                return
            connection.sendall(line)
        time.sleep(0.05)

    return talk


def drips(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"2")
        time.sleep(0.05)


GREETING, AUTH = b"220 ready\r\n", b"334 ADAT must follow\r\n"
TALKS: dict[str, Talk] = {
    "closes": lambda connection: None,
    "says nothing": lambda connection: time.sleep(1),
    "drips": drips,
    "an endless line": says(b"220-" + b"x" * 1_000_000),
    "an endless reply": says(b"220-x\r\n" + b" x\r\n" * 2_000_000),
    "not a reply": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "full": says(b"421 too many sessions\r\n"),
    "no certificate": says(b"530 the certificate cannot be read\r\n"),
    "no GSSAPI": says(GREETING, b"504 unknown authentication type\r\n"),
    "no token": says(GREETING, AUTH, b"335 go on\r\n", b"335 go on\r\n"),
    "no base64": says(GREETING, AUTH, b"335 ADAT=?\r\n"),
    "no TLS": says(GREETING, AUTH, b"335 ADAT=" + base64.b64encode(os.urandom(300)) + b"\r\n"),
    "in before anything was proved": says(GREETING, AUTH, b"235 welcome\r\n", b"230 in\r\n", b"230 in\r\n"),
    "a plaintext server": says(GREETING, b"230 no need to authenticate\r\n"),
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_what_is_no_login_is_unreachable_in_time(site: SiteHome, talk: Talk) -> None:
    with speaking(talk) as door, closing(_channel(site, door)) as here:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            here.stat(KEY)
        assert time.monotonic() - began < 6


@pytest.mark.parametrize("seed", range(30))
def test_any_bytes_at_any_stage_are_a_storage_error(site: SiteHome, seed: int) -> None:
    rng = random.Random(seed)
    lines = [GREETING, AUTH, b"335 ADAT=" + base64.b64encode(rng.randbytes(50)) + b"\r\n"][: rng.randrange(4)]
    with speaking(says(*lines, rng.randbytes(2000))) as door, closing(_channel(site, door)) as here:
        error = pytest.raises(Unreachable, here.stat, KEY).value
        assert not error.permanent and error.door == door


def logged_in(site: SiteHome, then: Callable[[socket.socket, Gss], None], *, beside: bytes = b"") -> Talk:
    """Log a client in as a real server does, then do something else."""
    tls = server_context(site.storage())

    def talk(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        reader = connection.makefile("rb")
        reader.readline()
        connection.sendall(AUTH)
        gss = Gss(tls.context, server_side=True)
        while not gss.established:
            token = gss.step(base64.b64decode(reader.readline()[5:]))
            if not gss.established:
                connection.sendall(b"335 ADAT=" + base64.b64encode(token) + b"\r\n")
        connection.sendall(b"335 ADAT=" + base64.b64encode(token + gss.wrap(b"0")) + b"\r\n")
        gss.unwrap(base64.b64decode(reader.readline()[5:]))
        connection.sendall(b"235 welcome\r\n" + beside)
        reader.readline()
        then(connection, gss)
        connection.settimeout(5)
        while connection.recv(65536):  # closing over unread bytes would reset what we said
            pass

    return talk


def _protected(*replies: bytes) -> Callable[[socket.socket, Gss], None]:
    def say(connection: socket.socket, gss: Gss) -> None:
        for reply in replies:
            connection.sendall(protected_reply(gss.wrap, reply + b"\r\n"))

    return say


AFTER: dict[str, tuple[Callable[[socket.socket, Gss], None], type[StorageError]]] = {
    "speaks in clear": (lambda connection, gss: connection.sendall(b"230 in\r\n" * 20), Unreachable),
    "does not map us": (_protected(b"331 go on", b"530-Login incorrect", b"530 no mapping"), Denied),
    "refuses privacy": (
        _protected(b"331 a", b"230 b", b"211 no features", b"200 c", b"200 d", b"200 e", b"504 no PROT P", b"250 f"),
        StorageError,
    ),
    "changed a record": (
        lambda connection, gss: connection.sendall(
            b"632 " + base64.b64encode(gss.wrap(b"230 in\r\n")[:-1]) + b"AA\r\n"
        ),
        Unreachable,
    ),
    "closes": (lambda connection, gss: connection.shutdown(socket.SHUT_RDWR), Unreachable),
}


@pytest.mark.parametrize(("then", "kind"), AFTER.values(), ids=AFTER)
def test_after_the_login_too(site: SiteHome, then: Callable[[socket.socket, Gss], None], kind: type) -> None:
    with speaking(logged_in(site, then)) as door, closing(_channel(site, door, answer=3.0)) as here:
        with pytest.raises(kind) as caught:
            here.stat(KEY)
        if kind is StorageError:
            assert "private" in caught.value.detail


@pytest.mark.parametrize(
    "beside", [b"331 go on\r\n230 in\r\n211-Extensions\r\n DCSC P,D\r\n211 End\r\n", b"331-", b"3"]
)
def test_what_is_slipped_in_beside_the_last_clear_reply_is_not_believed(site: SiteHome, beside: bytes) -> None:
    quiet = logged_in(site, lambda connection, gss: None, beside=beside)
    with speaking(quiet) as door, closing(_channel(site, door, answer=3.0)) as here:
        with pytest.raises(Unreachable, match="in clear") as caught:
            here.stat(KEY)
        assert not caught.value.permanent


def _channel(site: SiteHome, door: str, *, answer: float = 0.3) -> GsiftpChannel:
    return GsiftpChannel(client_context(site.gateway()), door, timeouts=Timeouts(answer=answer, write=answer))
