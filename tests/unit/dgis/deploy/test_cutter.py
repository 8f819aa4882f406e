"""The script that ends connections: what it reads from packets, and that what it sends is a proper reset."""

from __future__ import annotations

import socket
import struct
from importlib.resources import files
from pathlib import Path

import pytest

from dgis.deploy import cutter

A, B = ("203.0.113.20", 40000), ("198.51.100.10", 2811)


def packet(
    *, flags: int = cutter.ACK, data: bytes = b"", options: int = 0, fragment: int = 0, protocol: int = 6
) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", A[1], B[1], 4294967290, 77, (5 + options) << 4, flags, 0, 0, 0) + bytes(4 * options)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(data), 0, fragment, 64, protocol, 0)
    return head + socket.inet_aton(A[0]) + socket.inet_aton(B[0]) + tcp + data


def test_numbers_of_a_packet() -> None:
    assert cutter.seen(packet()) == ((A, B), (4294967290, 4294967290, 77))
    # they begin again behind 2^32; options are no data; what was cut off the copy was in the packet
    assert cutter.seen(packet(data=b"x" * 10, options=3)) == ((A, B), (4294967290, 4, 77))
    assert cutter.seen(packet(data=b"x" * 1000)[:128]) == ((A, B), (4294967290, 994, 77))


@pytest.mark.parametrize(
    "other",
    [
        packet(flags=0x02), packet(flags=cutter.ACK | cutter.RST), packet(fragment=7), packet(protocol=17),
        packet()[:30], b"", b"\x60" + bytes(60),
    ],
)  # fmt: skip
def test_what_tells_nothing(other: bytes) -> None:
    assert cutter.seen(other) is None


def total(data: bytes) -> int:
    """The Internet checksum (RFC 1071): 0xffff over what has a right one."""
    count = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while count > 0xFFFF:
        count = (count & 0xFFFF) + (count >> 16)
    return count


@pytest.mark.parametrize("numbers", [(0, 0), (4294967295, 4294967295), (123456789, 987654321)])
def test_a_reset_is_from_the_other_end_with_a_right_checksum(numbers: tuple[int, int]) -> None:
    made = cutter.reset((B, A), *numbers)
    assert len(made) == 40 and made[9] == cutter.TCP
    assert socket.inet_ntoa(made[12:16]) == B[0] and socket.inet_ntoa(made[16:20]) == A[0]
    source, target, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", made, 20)
    assert (source, target, sequence, acknowledged) == (B[1], A[1], *numbers)
    assert offset == 5 << 4 and flags == cutter.RST | cutter.ACK
    assert total(made[12:20] + struct.pack("!HH", cutter.TCP, 20) + made[20:]) == 0xFFFF


def test_both_ways_of_a_translated_flow_lead_to_its_ends() -> None:
    guest, mask = ("10.77.0.11", 2811), ("10.77.0.1", 40001)
    flow = [[*A], [*B], [*guest], [*mask]]
    assert cutter.ways(flow) == {(A, B): (mask, guest), (guest, mask): (B, A)}


def test_its_text_is_what_runs() -> None:
    assert files("dgis.deploy").joinpath("cutter.py").read_text() == Path(cutter.__file__).read_text()
