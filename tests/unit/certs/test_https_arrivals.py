"""Silent crowds at the HTTPS door, over real sockets with small numbers."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from certs.config import ListenConfig
from certs.https import arrivals, protocol
from certs.https.arrivals import Arrivals, Room, Seat
from certs.https.server import create_app, running
from certs.tls import server_context
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome
from tests.helpers.rawtls import Kept


@contextmanager
def door(site: SiteHome, monkeypatch: pytest.MonkeyPatch, *, waiting: int, per_address: int) -> Iterator[str]:
    monkeypatch.setattr(arrivals, "MOST_WAITING", waiting)
    monkeypatch.setattr(arrivals, "MOST_WAITING_PER_ADDRESS", per_address)
    with running(create_app(title="things", version="1", identity=site.catalog()), site.catalog()) as url:
        yield url


def silent(url: str, address: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=5, source_address=(address, 0))


def ended(sock: socket.socket, seconds: float = 5.0) -> bool:
    sock.settimeout(seconds)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def comes_in(url: str, site: SiteHome) -> bool:
    kept = Kept(url, rawtls.client_context(site.gateway(), site.catalog()))
    try:
        return kept.get()[0] == 200
    finally:
        kept.close()


def test_an_address_cannot_hold_the_door(site: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with door(site, monkeypatch, waiting=20, per_address=4) as url, ExitStack() as stack:
        crowd = [stack.enter_context(silent(url, "127.0.0.2")) for _ in range(4)]
        with capture_logs() as logs:
            for _ in range(30):
                with silent(url, "127.0.0.2") as newest:
                    assert ended(newest)
        assert [each["event"] for each in logs] == ["https_refused"]  # thirty, one line
        assert comes_in(url, site)
        assert not any(ended(each, 0.05) for each in crowd)


def test_many_addresses_cannot_hold_the_door(site: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with door(site, monkeypatch, waiting=6, per_address=3) as url, ExitStack() as stack:
        crowd = [stack.enter_context(silent(url, f"127.0.0.{2 + n // 3}")) for n in range(6)]
        assert comes_in(url, site)
        assert ended(crowd[0]) and not any(ended(each, 0.05) for each in crowd[1:])


def test_handshakes_without_a_request_count_and_served_connections_do_not(
    site: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = rawtls.client_context(site.gateway(), site.catalog())
    with door(site, monkeypatch, waiting=20, per_address=3) as url:
        kept = [Kept(url, context) for _ in range(1)]
        for _ in range(6):
            kept.append(Kept(url, context))
            assert [each.get()[0] for each in kept] == [200] * len(kept)
        idle = [rawtls.connect(url, context) for _ in range(3)]
        with silent(url, "127.0.0.1") as newest:
            assert ended(newest)
        for each in idle:
            each.close()
        for other in kept:
            other.close()


def test_eight_handshakes_of_one_address_fit_the_smallest_room() -> None:
    assert Room.within(64).waiting_per_address >= 8


class Poor(socket.socket):
    """A listening socket of a process without descriptors."""

    failures = 40

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_descriptors_it_pauses_quietly_and_goes_on(site: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_PAUSE", 0.005)
    bound = protocol.listening_socket(ListenConfig())
    poor = Poor(bound.family, bound.type, bound.proto, fileno=bound.detach())
    poor.setblocking(False)
    served: list[Seat] = []

    class Served(asyncio.Protocol):
        def __init__(self, seat: Seat) -> None:
            self.seat = seat

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.seat.taken = True
            served.append(self.seat)
            transport.close()

    async def go() -> None:
        made = Arrivals(Room(), server_context(site.catalog()).context, Served)
        taking = asyncio.create_task(made.take(poor))
        context = rawtls.client_context(site.gateway(), site.catalog())
        url = protocol.url_of(poor, "127.0.0.1")
        (await asyncio.wait_for(asyncio.to_thread(rawtls.connect, url, context), 10)).close()
        for _ in range(200):
            if served:
                break
            await asyncio.sleep(0.01)
        taking.cancel()

    with capture_logs() as logs:
        asyncio.run(go())
    poor.close()
    assert served and poor.failures == 0
    assert [each["event"] for each in logs] == ["https_accept_failed"]
