"""Put PDVs together to DIMSE messages; the data set of a C-STORE goes straight on to its sink. No sockets here.

One assembler belongs to one association and is fed by its reading thread only. What a peer may make us hold is
bounded: a command set of 64 KiB and one identifier of `max_data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dgis.dimse import command as dimse
from dgis.dimse.command import Command, CommandError

_COMMAND, _LAST = 0x01, 0x02


@dataclass(frozen=True, slots=True)
class Message:
    """One DIMSE message. `data` is its identifier, None without one; `oversize`: it was too big to keep."""

    context_id: int
    command: Command
    data: bytes | None = None
    oversize: bool = False


class Sink(Protocol):
    """Takes a data set as it arrives. After `close` or `abort` nothing more is called."""

    def write(self, piece: memoryview) -> None:
        """Take the next fragment, which is valid during this call only (it lies in the receive buffer).

        Must not raise for reasons of content; answer at `close` instead.
        """

    def close(self) -> None:
        """The data set is complete."""

    def abort(self) -> None:
        """The association ended before the data set was complete."""


class Receiver(Protocol):
    """What an association does with messages; called in its reading thread."""

    def accepted(self, context_id: int) -> bool:
        """Say whether this presentation context was accepted."""

    def open_sink(self, context_id: int, command: Command) -> Sink | None:
        """Return where the data set of this command shall go, None to have it collected into a Message."""

    def received(self, message: Message) -> None:
        """Take a complete message."""


class Assembler:
    """Feeds complete messages to a Receiver. Raises CommandError on whatever PS3.7 and PS3.8 annex E forbid."""

    def __init__(self, receiver: Receiver, *, max_data: int) -> None:
        """Keep at most `max_data` bytes of an identifier."""
        self._receiver = receiver
        self._max_data = max_data
        self._reset()

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._context_id != 0

    def feed(self, body: memoryview) -> None:
        """Take the body of one P-DATA-TF."""
        for context_id, control, fragment in dimse.pdvs(body):
            self._check_context(context_id)
            if control & _COMMAND:
                self._take_command(fragment, last=bool(control & _LAST))
            else:
                self._take_data(fragment, last=bool(control & _LAST))

    def abort(self) -> None:
        """Forget a message that will not be completed. Safe to repeat."""
        sink = self._sink
        self._reset()
        if sink is not None:
            sink.abort()

    def _reset(self) -> None:
        self._context_id = 0
        self._raw = bytearray()
        self._command: Command | None = None
        self._sink: Sink | None = None
        self._oversize = False

    def _check_context(self, context_id: int) -> None:
        if self._context_id == 0:
            if not self._receiver.accepted(context_id):
                raise CommandError("a presentation context that was not accepted")
            self._context_id = context_id
        elif context_id != self._context_id:
            raise CommandError("the presentation context changed within a message")

    def _take_command(self, fragment: memoryview, *, last: bool) -> None:
        if self._command is not None:
            raise CommandError("a command fragment where a data set was due")
        if len(self._raw) + len(fragment) > dimse.MAX_COMMAND_BYTES:
            raise CommandError("the command set is too long")
        self._raw += fragment
        if not last:
            return
        command = dimse.decode(bytes(self._raw))
        self._raw = bytearray()
        if not command.has_data_set:
            context_id = self._context_id
            self._reset()
            self._receiver.received(Message(context_id, command))
            return
        self._command = command
        self._sink = self._receiver.open_sink(self._context_id, command)

    def _take_data(self, fragment: memoryview, *, last: bool) -> None:
        if self._command is None:
            raise CommandError("a data set fragment before its command")
        if self._sink is not None:
            self._sink.write(fragment)
        elif len(self._raw) + len(fragment) > self._max_data:
            self._oversize = True
        else:
            self._raw += fragment
        if last:
            self._finish(self._command)

    def _finish(self, command: Command) -> None:
        context_id, sink, oversize, raw = self._context_id, self._sink, self._oversize, bytes(self._raw)
        self._reset()
        if sink is not None:
            sink.close()
        else:
            self._receiver.received(Message(context_id, command, None if oversize else raw, oversize))
