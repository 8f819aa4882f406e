"""Revocation ends what is under way at the HTTPS door: uploads leave nothing visible, downloads stop."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from certs.config import IdentityConfig
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import HttpsRig, https_rig, write
from tests.helpers.pki import SiteHome
from tests.helpers.rawtls import client_context, connect

DATA = random.Random(18).randbytes(4 * 1024 * 1024)
SPEC = spec_of(DATA)
OBJECT = f"/areas/main/objects/{SPEC.key}"


@pytest.fixture
def own_rig(fresh_site: SiteHome, tmp_path: Path) -> Iterator[HttpsRig]:
    with https_rig(fresh_site, tmp_path) as ready:
        yield ready


def sender(rig: HttpsRig, identity: IdentityConfig) -> ssl.SSLSocket:
    made = connect(rig.far.url, client_context(identity, identity))
    made.settimeout(5)
    return made


def head(method: str, path: str, size: int, *more: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {size}", *more)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(connection: ssl.SSLSocket) -> bytes:
    """What came before the end; a cut is an answer, too."""
    said = b""
    with suppress(OSError):
        while data := connection.recv(65536):
            said += data
    return said


@pytest.mark.parametrize("size", [1000, len(DATA)], ids=["in one go", "staged"])
def test_a_put_whose_sender_is_revoked_meanwhile_leaves_nothing(
    own_rig: HttpsRig, fresh_site: SiteHome, size: int
) -> None:
    who, data = fresh_site.host("leaver", "gateway"), DATA[:size]
    with sender(own_rig, who) as connection:
        connection.sendall(head("PUT", f"/areas/main/objects/{spec_of(data).key}", size) + data[:-1])
        time.sleep(0.2)
        fresh_site.revoke(who)
        with suppress(OSError):
            connection.sendall(data[-1:])
        said = answer(connection)
    assert said.startswith(b"HTTP/1.1 403 ") and b"certificate-refused" in said
    assert own_rig.far.objects() == []


def test_a_sender_that_is_revoked_is_cut_within_seconds(own_rig: HttpsRig, fresh_site: SiteHome) -> None:
    who = fresh_site.host("leaver", "gateway")
    with sender(own_rig, who) as connection:
        connection.sendall(head("PUT", OBJECT, len(DATA)))
        fresh_site.revoke(who)
        began, sent = time.monotonic(), 0
        with suppress(OSError):
            while time.monotonic() - began < 10:
                sent += connection.send(DATA[sent : sent + 20_000])
                time.sleep(0.05)
        assert time.monotonic() - began < 4
    assert own_rig.far.objects() == []


def test_an_answer_to_somebody_revoked_meanwhile_is_cut(
    own_rig: HttpsRig, fresh_site: SiteHome, tmp_path: Path
) -> None:
    big = random.Random(19).randbytes(48 * 1024 * 1024)
    own_rig.channel.put(spec_of(big), write(tmp_path, big))
    who = fresh_site.host("leaver", "gateway")
    with sender(own_rig, who) as connection:
        connection.sendall(head("GET", f"/areas/main/objects/{spec_of(big).key}", 0))
        received = len(connection.recv(65536))
        fresh_site.revoke(who)
        time.sleep(1.2)
        received += len(answer(connection))
    assert received < len(big)
