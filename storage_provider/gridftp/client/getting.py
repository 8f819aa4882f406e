"""Getting objects over one session: sizes asked in flights, transfers asked ahead, blocks handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence

from storage_provider.channel import Got, Want
from storage_provider.errors import Denied, Faulty, LocalFault, Refused, StorageError, Unreachable
from storage_provider.gridftp.client.hearing import Hearing
from storage_provider.gridftp.client.link import accept
from storage_provider.gridftp.client.reading import Asked, asked_of, mode_e, mode_s
from storage_provider.gridftp.client.session import Session
from storage_provider.gridftp.client.sessions import Sessions
from storage_provider.gridftp.commands import CommandError, parse_size

# Sizes asked in one flight, and transfers asked ahead of the one that is read
_FLIGHT = 128
_AHEAD = 64
# A transfer that is left is read to its end when so much is left, else the session is given up
_DRAIN_BYTES = 1024 * 1024


class Getting:
    """The gets of one batch. `begin` and `blocks` are called for ascending numbers; `close` gives the session back."""

    def __init__(self, sessions: Sessions, wants: Sequence[Want]) -> None:
        self._sessions = sessions
        self._wants = wants
        self._session: Session | None = None
        self._spans: dict[int, Asked | StorageError] = {}
        self._sent: deque[int] = deque()
        self._tried_anew = False
        self._lost: Unreachable | None = None

    def each(self) -> Generator[Got, None, None]:
        """Yield an answer to each want."""
        reading: Generator[bytes, None, None] | None = None
        try:
            for number, want in enumerate(self._wants):
                if reading is not None:
                    reading.close()
                reading = self._blocks(number)
                yield Got(want, reading)
        finally:
            if reading is not None:
                reading.close()

    def open(self, number: int) -> Generator[bytes, None, None]:
        """Wait until the transfer has begun and return its blocks."""
        hearing = self._begin(number)
        return self._read(number, hearing)

    def close(self) -> None:
        """Give the session back."""
        if self._session is not None:
            self._sessions.give_back(self._session)
            self._session = None
        self._sent.clear()

    def _blocks(self, number: int) -> Generator[bytes, None, None]:
        want = self._wants[number]
        if self._lost is not None:
            raise Unreachable(self._lost.detail, door=self._lost.door, key=want.key)
        try:
            hearing = self._begin(number)
            yield from self._read(number, hearing)
        except Unreachable as error:
            self._lost = error
            raise

    # -- asking -------------------------------------------------------------------------------------------------

    def _begin(self, number: int) -> Hearing:
        """Ask for a transfer, if it was not asked ahead, and wait for its first reply."""
        try:
            return self._begun(number)
        except Unreachable:
            session = self._session
            if session is None or not session.reused or self._tried_anew:
                raise
            # A kept connection may have been closed while idle, or just now by a restart: that is no answer
            self._tried_anew = True
            self._give_up()
            return self._begun(number)
        except Denied:
            if self._session is not None and self._session.control.broken:
                self._give_up()  # it is the server that is refused
            raise

    def _begun(self, number: int) -> Hearing:
        if self._sent and self._sent[0] < number:
            self._give_up()  # somebody skipped a transfer that is already under way
        session = self._at_hand()
        session.control.judge_again(now=True)
        if not self._sent:
            session.acting(self._wants[number].acting_for)
        span = self._span(session, number)
        if isinstance(span, StorageError):
            raise span
        hearing = Hearing(session.control, self._wants[number].key, sending=False)
        session.moving = True
        try:
            if not self._sent:
                self._send_first(session, number, hearing)
            elif not session.linked(up=False):
                session.join(session.listening(session.control.final()), hearing, up=False)
            hearing.begin()
            self._send_ahead(session, number)
        except StorageError:
            self._answered(session, number)
            raise
        return hearing

    def _answered(self, session: Session, number: int) -> None:
        """Note that a transfer ended with a no: without a byte, so the data connection can stay."""
        if self._sent and self._sent[0] == number:
            self._sent.popleft()
        session.moving = False
        if session.link is not None and not session.link.shaken:
            session.drop_link()

    def _at_hand(self) -> Session:
        if self._session is None:
            self._session = self._sessions.take(up=False, fresh=self._tried_anew)
        return self._session

    def _span(self, session: Session, number: int) -> Asked | StorageError:
        if number not in self._spans:
            self._spans = {at: span for at, span in self._spans.items() if at >= number}
            last = min(number + _FLIGHT, len(self._wants))
            self._ask_sizes(session, range(number, last))
        return self._spans[number]

    def _ask_sizes(self, session: Session, numbers: range) -> None:
        """Ask the sizes of a flight of wants on behalf of one party; ends where another party's begin."""
        acting_for = self._wants[numbers[0]].acting_for
        door, flight = session.door, []
        for number in numbers:
            want = self._wants[number]
            if want.acting_for != acting_for:
                break
            try:
                flight.append((number, f"SIZE {door.object(want.key)}"))
            except Refused as error:
                self._spans[number] = error
        session.control.send(*(command for _, command in flight))
        replies = [session.control.final() for _ in flight]
        for (number, _), reply in zip(flight, replies, strict=True):
            want = self._wants[number]
            try:
                size = parse_size(session.control.checked(reply, want.key).text.strip())
                self._spans[number] = asked_of(want, size, door.url)
            except CommandError:
                self._spans[number] = Faulty("the answer to SIZE is no size", door=door.url, key=want.key)
            except StorageError as error:
                self._spans[number] = error

    def _send_first(self, session: Session, number: int, hearing: Hearing) -> None:
        """Ask for a transfer, making the data connection that it needs."""
        if session.linked(up=False):
            self._send(session, number)
        elif session.passive_gets or not session.actively:
            session.mode("E" if session.passive_gets else "S")
            endpoint = session.passive()
            self._send(session, number)
            session.join(endpoint, hearing, up=False)
        else:
            session.mode("E")
            self._accept(session, number, hearing)

    def _accept(self, session: Session, number: int, hearing: Hearing) -> None:
        try:
            waiting = session.listen()
        except OSError as error:
            raise LocalFault(f"cannot listen for the server's connection: {error.strerror or error}") from error
        with waiting:
            self._send(session, number)
            session.accepted(accept(waiting, session.control, hearing), hearing, up=False)

    def _send_ahead(self, session: Session, number: int) -> None:
        """Ask for the next transfers while this one's bytes come.

        In mode E they use the same data connection. In stream mode the next one only, with a port for it: the far side
        sees to both the moment this one has ended.
        """
        kept = session.linked(up=False)
        most = _AHEAD if kept else 2 * session.extended
        commands: list[str] = []
        at = (self._sent[-1] if self._sent else number) + 1
        while len(self._sent) < most and at in self._spans:
            if isinstance(self._spans[at], Asked):
                self._sent.append(at)
                commands += [self._command(session, at)] if kept else ["EPSV", self._command(session, at)]
            at += 1
        if commands:
            session.control.send(*commands)

    def _send(self, session: Session, number: int) -> None:
        self._sent.append(number)
        session.control.send(self._command(session, number))

    def _command(self, session: Session, number: int) -> str:
        span, path = self._spans[number], session.door.object(self._wants[number].key)
        assert isinstance(span, Asked)
        return f"RETR {path}" if span.whole else f"ERET P {span.start} {span.stop - span.start} {path}"

    # -- reading ------------------------------------------------------------------------------------------------

    def _read(self, number: int, hearing: Hearing) -> Generator[bytes, None, None]:
        session, span = self._session, self._spans[number]
        assert session is not None and session.link is not None and isinstance(span, Asked)
        expected, received = span.stop - span.start, 0
        stream = mode_e(session.link, hearing, span) if session.linked(up=False) else mode_s(session.link, hearing)
        try:
            for block in stream:
                received += len(block)
                if received > expected:
                    raise Faulty("more bytes came than were asked for")
                yield block
            if received < expected:
                raise session.link.lost("the stream ended early")
            hearing.end()
            self._sent.popleft()
            session.moving = bool(self._sent)
            self._settle(session)
        except GeneratorExit:
            self._left(stream, hearing, expected - received)
            raise
        except StorageError as error:
            self._give_up()
            error.door, error.key = session.door.url, self._wants[number].key
            raise

    def _left(self, stream: Iterator[bytes], hearing: Hearing, left: int) -> None:
        """Read a transfer that was left to its end when that is near, else give the session up."""
        session = self._session
        if session is None:
            return
        try:
            if left > _DRAIN_BYTES:
                raise Unreachable("left")
            for _ in stream:
                pass
            hearing.end()
        except StorageError:
            self._give_up()
            return
        self._sent.popleft()
        session.moving = bool(self._sent)
        self._settle(session)

    def _settle(self, session: Session) -> None:
        """Drop a data connection that was for one transfer only.

        In stream mode the server ends it, and its port would be unusable for a minute (TIME_WAIT, RFC 9293 section
        3.6.1): a server with a port range runs out of ports. All has come, so a reset harms nothing and frees it.
        """
        if session.link is not None and (session.link.closing or not session.linked(up=False)):
            session.link.reset_on_close()
            session.drop_link()

    def _give_up(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        self._sent.clear()
