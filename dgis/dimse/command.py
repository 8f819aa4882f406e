"""DIMSE command sets and their PDVs, PS3.7 chapter 9 and PS3.8 annex E. Pure: bytes in, bytes out.

A command set is always implicit VR little endian and flat (PS3.7 6.3.1), so it needs no data set library; reading
one is strict about structure and lenient about values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

MAX_COMMAND_BYTES = 64 * 1024
MAX_COMMENT = 64  # VR LO
NO_DATA_SET = 0x0101
RESPONSE = 0x8000


class Field(IntEnum):
    """Command Field (0000,0100), PS3.7 annex E.1."""

    C_STORE = 0x0001
    C_GET = 0x0010
    C_FIND = 0x0020
    C_MOVE = 0x0021
    C_ECHO = 0x0030
    N_EVENT_REPORT = 0x0100
    N_ACTION = 0x0130
    C_CANCEL = 0x0FFF


class CommandError(ValueError):
    """A command set that cannot be read; says which rule it breaks, never what it contains."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command set as received: element number (group 0000) -> value bytes."""

    values: Mapping[int, bytes]

    @property
    def field(self) -> int:
        """The Command Field; a response has bit 15 set."""
        return self._short(0x0100)

    @property
    def is_response(self) -> bool:
        """Whether this answers a request."""
        return bool(self.field & RESPONSE)

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows: anything but 0101 (PS3.7 table E.1-1)."""
        return self._short(0x0800) != NO_DATA_SET

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110)."""
        return self._short(0x0110)

    @property
    def responding_to(self) -> int:
        """Message ID Being Responded To (0000,0120)."""
        return self._short(0x0120)

    @property
    def status(self) -> int:
        """Status (0000,0900)."""
        return self._short(0x0900)

    @property
    def sop_class(self) -> str:
        """Affected SOP Class UID (0000,0002)."""
        return self._text(0x0002)

    @property
    def instance(self) -> str:
        """Affected SOP Instance UID (0000,1000)."""
        return self._text(0x1000)

    @property
    def requested_class(self) -> str:
        """Requested SOP Class UID (0000,0003), of an N-ACTION."""
        return self._text(0x0003)

    @property
    def requested_instance(self) -> str:
        """Requested SOP Instance UID (0000,1001), of an N-ACTION."""
        return self._text(0x1001)

    @property
    def event_type(self) -> int:
        """Event Type ID (0000,1002)."""
        return self._short(0x1002)

    @property
    def action_type(self) -> int:
        """Action Type ID (0000,1008)."""
        return self._short(0x1008)

    @property
    def move_destination(self) -> str:
        """Move Destination (0000,0600), spaces stripped."""
        return self._text(0x0600)

    def _short(self, element: int) -> int:
        value = self.values.get(element, b"")
        if len(value) != 2:
            raise CommandError(f"(0000,{element:04X}) is missing or not two bytes long")
        return int.from_bytes(value, "little")

    def _text(self, element: int) -> str:
        return self.values.get(element, b"").decode("ascii", "replace").strip("\x00 ")


def decode(raw: bytes) -> Command:
    """Read one command set; raise CommandError when it is damaged or lacks what every command has."""
    values: dict[int, bytes] = {}
    position = 0
    while position < len(raw):
        if position + 8 > len(raw):
            raise CommandError("the command set ends within an element")
        group, element, length = struct.unpack_from("<HHL", raw, position)
        position += 8
        if group != 0:
            raise CommandError("an element outside group 0000")
        if length > len(raw) - position:
            raise CommandError(f"(0000,{element:04X}) is longer than the command set")
        values[element] = raw[position : position + length]
        position += length
    command = Command(MappingProxyType(values))
    _check(command)
    return command


def _check(command: Command) -> None:
    answers = command.is_response or command.field == Field.C_CANCEL
    _ = command.has_data_set, command.responding_to if answers else command.message_id


def encode(values: Mapping[int, bytes]) -> bytes:
    """Write a command set with its group length; values are padded to even length by whoever made them."""
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(values.items()))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


@dataclass(frozen=True, slots=True)
class Counts:
    """Sub-operations of a C-MOVE or C-GET. `remaining` is None in a final response that must not carry it."""

    remaining: int | None
    completed: int
    failed: int
    warning: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response says beside its status (PS3.7 annex C)."""

    status: int
    comment: str = ""
    offending: tuple[int, ...] = ()
    counts: Counts | None = None
    has_data_set: bool = False


# What a response repeats of its request beside the Affected SOP Class UID (PS3.7 9.3.1, 10.3.1, 10.3.4).
_ECHOED: Mapping[int, tuple[tuple[int, int], ...]] = {
    Field.C_STORE: ((0x1000, 0x1000),),
    Field.N_EVENT_REPORT: ((0x1000, 0x1000), (0x1002, 0x1002)),
    Field.N_ACTION: ((0x0003, 0x0002), (0x1001, 0x1000), (0x1008, 0x1008)),
}


def response(request: Command, answer: Answer) -> bytes:
    """Encode the response to a C-STORE, C-FIND, C-MOVE, C-GET, C-ECHO, N-ACTION or N-EVENT-REPORT, or a generic one."""
    values = {
        0x0100: short(request.field | RESPONSE),
        0x0120: short(request.message_id),
        0x0800: short(0x0001 if answer.has_data_set else NO_DATA_SET),
        0x0900: short(answer.status),
    }
    if sop_class := request.values.get(0x0002):
        values[0x0002] = sop_class
    for asked, answered in _ECHOED.get(request.field, ()):
        if value := request.values.get(asked):
            values[answered] = value
    if answer.offending:
        values[0x0901] = b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in answer.offending)
    if answer.comment:
        values[0x0902] = text(answer.comment.encode("ascii", "replace").decode()[:MAX_COMMENT])
    if answer.counts is not None:
        values.update(_counted(answer.counts))
    return encode(values)


def _counted(counts: Counts) -> Iterator[tuple[int, bytes]]:
    if counts.remaining is not None:
        yield 0x1020, short(counts.remaining)
    yield 0x1021, short(counts.completed)
    yield 0x1022, short(counts.failed)
    yield 0x1023, short(counts.warning)


@dataclass(frozen=True, slots=True)
class MoveOriginator:
    """Who asked for the C-MOVE that a C-STORE sub-operation belongs to (PS3.7 9.1.1.1)."""

    ae: str
    message_id: int


def store_request(message_id: int, sop_class: str, instance: str, originator: MoveOriginator | None) -> bytes:
    """Encode a C-STORE-RQ that a data set follows; priority medium."""
    values = {
        0x0002: uid(sop_class),
        0x0100: short(Field.C_STORE),
        0x0110: short(message_id),
        0x0700: short(0),
        0x0800: short(0x0001),
        0x1000: uid(instance),
    }
    if originator is not None:
        values[0x1030] = text(originator.ae)
        values[0x1031] = short(originator.message_id)
    return encode(values)


def echo_request(message_id: int) -> bytes:
    """Encode a C-ECHO-RQ."""
    return encode(
        {
            0x0002: uid("1.2.840.10008.1.1"),
            0x0100: short(Field.C_ECHO),
            0x0110: short(message_id),
            0x0800: short(NO_DATA_SET),
        }
    )


def action_request(message_id: int, sop_class: str, instance: str, action_type: int) -> bytes:
    """Encode an N-ACTION-RQ that its action information follows (PS3.7 10.3.4.1)."""
    return encode(
        {
            0x0003: uid(sop_class),
            0x0100: short(Field.N_ACTION),
            0x0110: short(message_id),
            0x0800: short(0x0001),
            0x1001: uid(instance),
            0x1008: short(action_type),
        }
    )


def event_report_request(message_id: int, sop_class: str, instance: str, event_type: int) -> bytes:
    """Encode an N-EVENT-REPORT-RQ that its event information follows (PS3.7 10.3.1.1)."""
    return encode(
        {
            0x0002: uid(sop_class),
            0x0100: short(Field.N_EVENT_REPORT),
            0x0110: short(message_id),
            0x0800: short(0x0001),
            0x1000: uid(instance),
            0x1002: short(event_type),
        }
    )


def short(value: int) -> bytes:
    """Encode VR US; counts beyond 65535 stay at 65535, the field holds no more."""
    return struct.pack("<H", min(value, 0xFFFF))


def text(value: str) -> bytes:
    """Encode a string VR padded with a space."""
    raw = value.encode("ascii", "replace")
    return raw + b" " * (len(raw) % 2)


def uid(value: str) -> bytes:
    """Encode VR UI padded with a null."""
    raw = value.encode("ascii", "replace")
    return raw + b"\x00" * (len(raw) % 2)


def p_data(context_id: int, raw: bytes, *, is_command: bool, max_pdu: int) -> Iterator[bytes]:
    """Cut one command set or one data set into P-DATA-TF PDUs of one PDV each (PS3.8 9.3.5)."""
    room = fragment_room(max_pdu)
    for start in range(0, max(len(raw), 1), room):
        piece = raw[start : start + room]
        last = start + room >= len(raw)
        yield pdv_head(context_id, len(piece), is_command=is_command, last=last) + piece


def fragment_room(max_pdu: int) -> int:
    """Return how many bytes of a message fit one PDV under the peer's maximum length; 0 means it named no limit."""
    limit = max_pdu or 131072
    return max(min(limit, 131072) - 6, 2) & ~1


PDV_HEAD_LENGTH = 12


def pdv_head(context_id: int, length: int, *, is_command: bool, last: bool) -> bytes:
    """Return the 12 bytes before a fragment: P-DATA-TF header, PDV length, context, message control header."""
    control = (0x01 if is_command else 0) | (0x02 if last else 0)
    return struct.pack(">BBLLBB", 0x04, 0, length + 6, length + 2, context_id, control)


def pdvs(body: memoryview) -> Iterable[tuple[int, int, memoryview]]:
    """Yield (context ID, message control header, fragment) of one P-DATA-TF body; raise CommandError when damaged."""
    position, end = 0, len(body)
    if not end:
        raise CommandError("a P-DATA-TF without a presentation data value")
    while position < end:
        if end - position < 6:
            raise CommandError("a presentation data value shorter than its header")
        length = int.from_bytes(body[position : position + 4], "big")
        if length < 2 or length > end - position - 4:
            raise CommandError("a presentation data value longer than its PDU")
        yield body[position + 4], body[position + 5], body[position + 6 : position + 4 + length]
        position += 4 + length
