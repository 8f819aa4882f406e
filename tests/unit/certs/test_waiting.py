"""The room before the login, and descriptors: pure counting, and limits of a process of its own."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from certs.descriptors import Tally, quiet_when_scarce
from certs.https.arrivals import Room
from certs.waiting import WaitingRoom, origin_of


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::9", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, origin: str) -> None:
    assert origin_of(address) == origin


def test_an_address_has_only_so_many_waiting() -> None:
    dropped: list[int] = []
    room = WaitingRoom[int](most=100, per_address=2, drop=dropped.append)
    assert [room.enter(guest, "192.0.2.1") for guest in range(3)] == [True, True, False]
    assert room.enter(3, "192.0.2.2")
    room.leave(0)
    room.leave(0)
    assert [room.enter(guest, "192.0.2.1") for guest in (4, 5)] == [True, False]
    assert dropped == [] and len(room) == 3


def test_who_has_waited_for_long_yields_to_its_own_address() -> None:
    dropped: list[int] = []
    room = WaitingRoom[int](most=100, per_address=2, drop=dropped.append, patience=0.0)
    assert all(room.enter(guest, "192.0.2.1") for guest in (1, 2))
    assert room.enter(3, "192.0.2.2") and dropped == []
    assert room.enter(4, "192.0.2.1")
    assert dropped == [1] and 1 not in room and {2, 3, 4} == {guest for guest in range(9) if guest in room}


def test_a_full_room_loses_the_oldest_of_the_crowd() -> None:
    dropped: list[int] = []
    room = WaitingRoom[int](most=4, per_address=3, drop=dropped.append)
    for guest, address in ((1, "192.0.2.9"), (2, "192.0.2.1"), (3, "192.0.2.1"), (4, "192.0.2.1")):
        assert room.enter(guest, address)
    assert room.enter(5, "192.0.2.2") and dropped == [2]
    assert room.enter(6, "192.0.2.3") and dropped == [2, 3]
    assert room.enter(7, "192.0.2.4") and dropped == [2, 3, 1]  # all the same now: the oldest
    assert len(room) == 4


def test_https_takes_a_third_of_the_descriptors_at_most() -> None:
    for descriptors in (256, 1024, 4096):
        room = Room.within(descriptors)
        assert room.connections <= descriptors / 3 and room.waiting_per_address < room.waiting < room.connections
        assert room.waiting_per_address >= 8
    assert Room.within(65_536).connections == 2000


def test_the_soft_limit_of_descriptors_is_raised() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 512))\n"
        "from certs.descriptors import descriptor_limit, raise_descriptor_limit as up\n"
        "print(descriptor_limit(), up(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "128 512 (512, 512)"


def test_a_tally_speaks_seldom() -> None:
    with capture_logs() as logs:
        tally = Tally("refused")
        for _ in range(1000):
            tally.note("full", "192.0.2.1")
        eager = Tally("counted", every=0.0)
        eager.note("full")
    assert [(each["event"], each["count"]) for each in logs] == [("refused", 1), ("counted", 1)]


def test_a_loop_is_quiet_about_scarcity_alone() -> None:
    handle = quiet_when_scarce("accept_failed")
    loop = asyncio.new_event_loop()
    others: list[object] = []
    loop.default_exception_handler = lambda context: others.append(context["message"])  # type: ignore[method-assign]
    with capture_logs() as logs:
        for _ in range(50):
            handle(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
        handle(loop, {"message": "a fault", "exception": ValueError()})
    loop.close()
    assert [each["event"] for each in logs] == ["accept_failed"] and others == ["a fault"]
