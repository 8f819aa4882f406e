"""Associations by the thousand, with every kind of end: nothing stays behind, and a good peer is served all along."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
import pytest

from dgis.dimse import command as dimse
from dgis.dimse.limits import Limits
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.raw import associate, associate_rq, read_pdu

VERIFICATION, FIND, CT = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
CONTEXTS = [(VERIFICATION, IMPLICIT), (FIND, IMPLICIT), (CT, IMPLICIT)]
RELEASE_RQ, ABORT_RQ = b"\x05\0\0\0\0\4\0\0\0\0", b"\x07\0\0\0\0\4\0\0\0\0"
# What a process may keep: allocators do not give every page back.
_MEMORY = 12 * 2**20


def _p_data(context: int, control: int, data: bytes) -> bytes:
    pdv = struct.pack(">LBB", len(data) + 2, context, control) + data
    return b"\x04\x00" + len(pdv).to_bytes(4, "big") + pdv


ECHO = _p_data(
    1,
    3,
    dimse.encode({0x0002: dimse.uid(VERIFICATION), 0x0100: b"\x30\0", 0x0110: b"\1\0", 0x0800: b"\1\1"}),
)
FIND_RQ = _p_data(
    3,
    3,
    dimse.encode({0x0002: dimse.uid(FIND), 0x0100: b"\x20\0", 0x0110: b"\1\0", 0x0700: b"\0\0", 0x0800: b"\1\0"}),
) + _p_data(3, 2, struct.pack("<HHL", 8, 0x52, 6) + b"STUDY ")
STORE_HALF = _p_data(5, 3, dimse.store_request(1, CT, "1.2.3", None)) + _p_data(5, 0, bytes(5000))


def _echo(sock: socket.socket) -> None:
    sock.sendall(ECHO)
    assert dimse.decode(read_pdu(sock)[1][6:]).status == 0


def _released(sock: socket.socket) -> None:
    _echo(sock)
    sock.sendall(RELEASE_RQ)
    assert read_pdu(sock)[0] == 6


def _aborted(sock: socket.socket) -> None:
    _echo(sock)
    sock.sendall(ABORT_RQ)


def _gone(sock: socket.socket) -> None:
    _echo(sock)


def _gone_in_a_store(sock: socket.socket) -> None:
    sock.sendall(STORE_HALF)


def _gone_in_a_query(sock: socket.socket) -> None:
    sock.sendall(FIND_RQ)


def _nonsense(sock: socket.socket) -> None:
    sock.sendall(b"\x04\x00\x00\x00\x00\x08" + b"\xff" * 8)
    assert read_pdu(sock)[0] == 7


ENDS: tuple[Callable[[socket.socket], None], ...] = (
    _released, _aborted, _gone, _gone_in_a_store, _gone_in_a_query, _nonsense,
)  # fmt: skip


@dataclass
class Strain:
    """Makes associations of every kind, one in ten over TLS, one in ten turned away before it is one."""

    edge: Edge
    secure: Callable[[], socket.socket]
    done: int = 0

    def once(self, number: int) -> None:
        tls = number % 10 == 1
        sock = self.secure() if tls else socket.create_connection(("127.0.0.1", self.edge.port), timeout=10)
        with sock:
            if number % 10 == 2:
                sock.sendall(associate_rq(CONTEXTS, called="NOBODY"))
                assert read_pdu(sock)[0] == 3
                return
            if number % 10 == 3:
                sock.sendall(b"\x99" * 20)
                return
            associate(sock, CONTEXTS)
            ENDS[number // 10 % len(ENDS)](sock)

    def many(self, count: int) -> None:
        end = self.done + count
        with ThreadPoolExecutor(4) as pool:
            while self.done < end:  # in portions: futures are memory too
                portion = range(self.done, min(self.done + 100, end))
                for _ in pool.map(self.once, portion):
                    pass
                self.done = portion.stop
                self.edge.search.asked.clear()
                self.edge.ingest.forgotten.clear()


@dataclass
class GoodPeer:
    """Sends a C-ECHO all the time and remembers the slowest."""

    edge: Edge
    slowest: float = 0.0
    count: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="good-peer")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", self.edge.port), timeout=10) as sock:
                associate(sock, CONTEXTS)
                _released(sock)
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.count += 1


@dataclass(frozen=True)
class Footprint:
    """What the process holds."""

    threads: int
    descriptors: int
    memory: int

    @classmethod
    def now(cls) -> Footprint:
        deadline = time.monotonic() + 10
        while any(t.name.startswith("association-") for t in threading.enumerate()):
            assert time.monotonic() < deadline, "associations do not end"
            time.sleep(0.05)
        gc.collect()
        return cls(threading.active_count(), len(os.listdir("/proc/self/fd")), psutil.Process().memory_info().rss)


@pytest.mark.parametrize(
    "count",
    [pytest.param(1000), pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
def test_nothing_is_left_behind(make_edge: Callable[..., Edge], site: SiteHome, count: int) -> None:
    edge = make_edge(tls=site.gateway(), limits=Limits(artim=3.0))
    context = rawtls.client_context(site.host("viewer"), site.gateway())

    def secure() -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", edge.tls_port), timeout=10)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    strain, good = Strain(edge, secure), GoodPeer(edge)
    with good.at_work():
        strain.many(240)  # every kind of end several times: pools and caches are filled
    before, good = Footprint.now(), GoodPeer(edge)
    with good.at_work():
        strain.many(count)
    after = Footprint.now()
    print(f"{count}: {before} -> {after}, slowest C-ECHO of {good.count}: {good.slowest * 1000:.0f} ms")
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors
    assert after.memory - before.memory < _MEMORY
    assert good.count > 5 and good.slowest < 1.0
    assert not edge.ingest.staged()


def test_two_hundred_open_associations_cost_under_five_percent_of_a_core(
    make_edge: Callable[..., Edge], site: SiteHome
) -> None:
    edge = make_edge(tls=site.gateway(), limits=Limits(total=250, per_ae=250, artim=3.0))
    context = rawtls.client_context(site.host("viewer"), site.gateway())
    with contextlib.ExitStack() as stack:
        for number in range(200):
            port = edge.tls_port if number % 2 else edge.port
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            if number % 2:
                sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
            associate(stack.enter_context(sock), CONTEXTS)
        for _ in range(5):  # the work of opening them may not be over yet
            before = time.process_time()
            time.sleep(2.0)
            share = (time.process_time() - before) / 2.0
            if share < 0.05:
                break
        print(f"200 idle associations, half of them TLS: {share:.2%} of a core")
        assert share < 0.05
