"""The server under fire: any bytes, any order of commands, before and after the login, and on data connections.

Every example must end by itself, and no session may crash or leave a thread, a descriptor or a part behind.
"""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_provider.gridftp.blocks import block_header, end_of_data
from storage_provider.gridftp.replies import ReplyReader
from storage_provider.gridftp.server import listener
from tests.helpers.gsiftp import CREDENTIAL, OwnServer, Raw, fds, path_of, serving, settled
from tests.helpers.pki import SiteHome, site

__all__ = ["site"]

DATA = b"some bytes of an object" * 1000
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATHS = st.sampled_from(
    [
        path_of(DATA),
        path_of(b"not there"),
        "/areas/main/stage/x.part",
        "/areas/main/objects",
        "/areas/main/objects/../../../../etc/passwd",
        "/",
        "",
        "//areas///main/./stage/",
        "%2e%2e/%00",
        "/areas/main/stage/" + "x" * 300 + ".part",
    ]
)
NUMBERS = st.one_of(st.integers(-5, 1 << 70).map(str), st.sampled_from(["0", "5", "23000", "٣", "", "1e3"]))
WORDS = st.one_of(PATHS, NUMBERS, st.text(st.characters(blacklist_categories=["Cs"]), max_size=30))
COMMANDS = st.one_of(
    st.builds("{} {}".format, st.sampled_from(["STOR", "RETR", "SIZE", "MLST", "MLSC", "DELE", "RNFR", "RNTO"]), PATHS),
    st.builds("{} {}".format, st.sampled_from(["CWD", "MKD", "MDTM", "MLSD", "NLST", "LIST", "STAT", "APPE"]), PATHS),
    st.builds("ERET P {} {} {}".format, NUMBERS, NUMBERS, PATHS),
    st.builds("ESTO A {} {}".format, NUMBERS, PATHS),
    st.builds("CKSM {} {} {} {}".format, st.sampled_from(["SHA256", "MD5", "X"]), NUMBERS, NUMBERS, PATHS),
    st.builds(
        "{} {}".format, st.sampled_from(["ALLO", "REST", "PBSZ", "EPSV", "SBUF", "OPTS RETR Parallelism="]), NUMBERS
    ),
    st.builds("{} {}".format, st.sampled_from(["PORT", "EPRT", "SPOR", "OPTS", "SITE", "DCSC", "TYPE", "HELP"]), WORDS),
    st.builds("SITE {} {}".format, st.sampled_from(["MISSING", "SPACE", "PERMIT", "ACTINGFOR", "HELP"]), WORDS),
    st.builds("SITE MISSING {} {}".format, NUMBERS, PATHS),
    st.sampled_from(
        ["PASV", "EPSV", "SPAS", "MODE E", "MODE S", "PROT P", "PROT C", "DCAU A", "DCAU N", "DCSC D", "ABOR", "NOOP"]
    ),
    st.sampled_from(["QUIT", "PWD", "CDUP", "FEAT", "AUTH GSSAPI", "ADAT AAAA", "USER x", "PASS x", "TYPE A", "SYST"]),
    st.just(f"DCSC P {CREDENTIAL.blob}"),
    st.just("OPTS STOR Ahead=1;"),
    st.text(max_size=40).filter(lambda text: not any(mark in text for mark in "\ud800")),
)
LINES = st.one_of(
    st.binary(max_size=200),
    COMMANDS.map(lambda text: text.encode("utf-8", "replace") + b"\r\n"),
    st.binary(max_size=60).map(lambda token: b"ADAT " + base64.b64encode(token) + b"\r\n"),
    st.just(b"AUTH GSSAPI\r\n"),
)


class Crashes:
    """Takes the listener's log: an exception that reached the edge is a crash."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def error(self, event: str, **fields: object) -> None:
        self.seen.append(event)


@pytest.fixture(scope="module")
def door(site: SiteHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    with serving(site.storage(), tmp_path_factory.mktemp("fuzz") / "se1") as server:
        server.put(DATA)
        site.gateway()
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(door: OwnServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    crashes = Crashes()
    monkeypatch.setattr(listener, "log", crashes)
    assert settled()
    before = fds()
    yield
    assert settled(), "a session hangs"
    assert crashes.seen == [] and fds() == before
    # Parts that were stored as asked are kept; nothing else is
    assert set(door.leftovers()) <= {"x.part"}


def last_words(sock: socket.socket) -> bytes:
    """Close our side and read what the server still says, up to the end of the connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    said = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            said += data
    return said


@FEW
@given(lines=st.lists(LINES, max_size=12))
def test_any_bytes_before_the_login(door: OwnServer, lines: list[bytes]) -> None:
    with Raw(door.address) as client:
        with contextlib.suppress(ConnectionError):
            client.raw(b"".join(lines))
        replies = ReplyReader().feed(last_words(client.sock))
        assert all(200 <= reply.code < 600 for reply in replies)


@FEW
@given(
    steps=st.lists(st.one_of(COMMANDS, COMMANDS, COMMANDS, st.binary(max_size=40)), max_size=20), private=st.booleans()
)
def test_any_order_of_commands_after_the_login(
    door: OwnServer, site: SiteHome, steps: list[str | bytes], private: bool
) -> None:
    with Raw(door.address) as client:
        client.login(site.gateway())
        if private:
            client.private()
        with contextlib.suppress(ConnectionError):
            for step in steps:
                if isinstance(step, bytes):
                    client.raw(step + b"\r\n")
                else:
                    client.send(step)
        client._replies += client.reader.feed(last_words(client.sock))
        assert all(100 <= reply.code < 600 for reply in client._replies)
    if "x.part" in door.leftovers() or not door.objects():
        door.put(DATA)


FRAMES = st.one_of(
    st.builds(
        lambda size, at, data: block_header(size, at) + data,
        st.integers(0, 1 << 52),
        st.integers(0, 1 << 52),
        st.binary(max_size=50),
    ),
    st.builds(
        lambda count, close: end_of_data(streams=count, close=close),
        st.one_of(st.none(), st.integers(0, 2000)),
        st.booleans(),
    ),
    st.just(block_header(len(DATA), 0) + DATA),
    st.binary(max_size=100),
)


@FEW
@given(
    frames=st.lists(FRAMES, max_size=6),
    tls=st.booleans(),
    mode=st.sampled_from("ES"),
    known=st.booleans(),
    stop=st.booleans(),
)
def test_any_bytes_on_a_data_connection(
    door: OwnServer, site: SiteHome, frames: list[bytes], tls: bool, mode: str, known: bool, stop: bool
) -> None:
    with Raw(door.address) as client:
        client.login(site.gateway()).private(mode=mode)
        endpoint = client.passive()
        client.send(*([f"ALLO {len(DATA)}"] if known else []), f"STOR {path_of(DATA)}")
        with contextlib.suppress(OSError):
            if tls:
                stream = client.connect(endpoint)
                stream.do_handshake()
                stream.sendall(b"".join(frames))
                stream.close()
            else:
                with socket.create_connection(endpoint, timeout=5) as plain:
                    plain.sendall(b"".join(frames))
        client.send("ABOR" if stop else "NOOP")
        client._replies += client.reader.feed(last_words(client.sock))
        assert all(100 <= reply.code < 600 for reply in client._replies)
    assert set(door.leftovers()) <= {"x.part"} or settled()
