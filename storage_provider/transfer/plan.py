"""What to ask of which replica next, and whom to blame: the pure plan of one fetch.

An object is cut into pieces (one per chunk digest; one in all without them). Free streams are given runs of consecutive
pending pieces. A piece with a wrong digest is blamed on the source it came from and never asked of it again; a source
that was cut off is asked again only when no other is better, and a few times at most (each door of it is a try); one
that has not got the object, or refuses, is out at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from storage_provider.checksum import CHUNK_BYTES

MAX_STRIKES = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """A byte range of the object with its own digest."""

    index: int
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive pieces asked of one source in one request."""

    number: int
    source: int
    pieces: tuple[Piece, ...]

    @property
    def offset(self) -> int:
        """The first byte asked for."""
        return self.pieces[0].offset

    @property
    def length(self) -> int:
        """The number of bytes asked for."""
        return sum(piece.length for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once: streams in all and per source, bytes per request, tries of a source that breaks off."""

    streams: int = 4
    streams_per_source: int = 2
    run_bytes: int = 16 * 1024 * 1024
    tries: int = 3


def pieces_of(size: int, sha256: str, chunks: Sequence[str]) -> tuple[Piece, ...]:
    """Cut an object into its pieces."""
    if not chunks:
        return (Piece(0, 0, size, sha256),)
    offsets = range(0, size, CHUNK_BYTES)
    return tuple(
        Piece(index, offset, min(CHUNK_BYTES, size - offset), chunk)
        for index, (offset, chunk) in enumerate(zip(offsets, chunks, strict=True))
    )


@dataclass(slots=True)
class _SourceState:
    tries: int
    tries_left: int
    out: bool = False
    breaks: int = 0
    turned: int = 0
    strikes: int = 0
    running: int = 0
    bad: set[int] = field(default_factory=set)


class Plan:
    """The mutable plan of one fetch; not thread-safe, the caller serialises."""

    def __init__(
        self, pieces: Sequence[Piece], doors: Sequence[int], limits: Limits, *, doubtful: Collection[int] = ()
    ) -> None:
        """Plan for sources 0..n-1 in order of preference, with the number of doors of each.

        `doubtful` ones failed lately and get one try by each door, last.
        """
        self._pieces = tuple(pieces)
        self._limits = limits
        tries = [max(1, limits.tries // count) for count in doors]
        self._sources = [_SourceState(each, each) for each in tries]
        for number in doubtful:
            self._sources[number].breaks = self._sources[number].tries_left = 1
        self._pending = set(range(len(self._pieces)))
        self._running: dict[int, Run] = {}
        self._landed: set[int] = set()
        self._frontier = 0
        self._number = 0

    @property
    def done(self) -> bool:
        """True when every piece has landed."""
        return len(self._landed) == len(self._pieces)

    @property
    def running(self) -> int:
        """The number of runs under way."""
        return len(self._running)

    @property
    def frontier(self) -> int:
        """The number of pieces that have landed without a gap from the beginning."""
        while self._frontier in self._landed:
            self._frontier += 1
        return self._frontier

    def next_run(self) -> Run | None:
        """Give the next request to start, or None when nothing can be started now."""
        if not self._pending or len(self._running) >= self._limits.streams:
            return None
        usable = [
            (s.breaks, s.turned, s.running, n)
            for n, s in enumerate(self._sources)
            if not s.out and self._pending - s.bad
        ]
        for breaks, _, running, source in sorted(usable):
            if breaks == min(usable)[0] and running < self._limits.streams_per_source:
                return self._start(source, self._take(source))
        return None

    @property
    def stuck(self) -> bool:
        """True when pieces are wanting, nothing runs, and no source is left to ask for them."""
        if self.done or self._running:
            return False
        return not any(not s.out and self._pending - s.bad for s in self._sources)

    @property
    def only_broken(self) -> bool:
        """True when every source still left broke off before: better wait a moment than ask again at once."""
        return all(s.out or s.breaks for s in self._sources)

    def piece_landed(self, run: Run, piece: Piece) -> None:
        """Note a piece that came whole and has the right digest; a run that was given up counts no more."""
        if run.number in self._running:
            self._pending.discard(piece.index)
            self._landed.add(piece.index)
            state = self._sources[run.source]
            state.breaks, state.turned, state.tries_left = 0, 0, state.tries

    def run_ended(self, run: Run) -> None:
        """Note that a request is over; what of it has not landed is pending again."""
        if self._running.pop(run.number, None) is not None:
            self._sources[run.source].running -= 1
            self._pending.update(piece.index for piece in run.pieces if piece.index not in self._landed)

    def run_turned(self, run: Run) -> None:
        """Note that a request broke off and its source has another door: no strike; sources without trouble first."""
        if run.number in self._running:
            self.run_ended(run)
            self._sources[run.source].turned += 1

    def run_broke(self, run: Run) -> None:
        """Note that a request was cut off, silent or too slow: its source may be asked `tries` times in a row."""
        if run.number not in self._running:
            return
        self.run_ended(run)
        state = self._sources[run.source]
        state.breaks += 1
        state.tries_left -= 1
        state.out = state.out or state.tries_left <= 0

    def piece_bad(self, run: Run, piece: Piece) -> None:
        """Blame a wrong digest on the run's source: that piece is never asked of it again."""
        if run.number not in self._running:
            return
        self.run_ended(run)
        state = self._sources[run.source]
        state.bad.add(piece.index)
        state.strikes += 1
        state.out = state.out or state.strikes >= MAX_STRIKES

    def source_out(self, run: Run) -> None:
        """Note that a source has not got the object or refuses it."""
        self.run_ended(run)
        self._sources[run.source].out = True

    def _take(self, source: int) -> tuple[Piece, ...]:
        wanted = sorted(self._pending - self._sources[source].bad)
        pieces: list[Piece] = []
        size = 0
        for index in wanted:
            piece = self._pieces[index]
            if pieces and (index != pieces[-1].index + 1 or size + piece.length > self._limits.run_bytes):
                break
            pieces.append(piece)
            size += piece.length
        return tuple(pieces)

    def _start(self, source: int, pieces: tuple[Piece, ...]) -> Run:
        self._number += 1
        run = Run(self._number, source, pieces)
        self._running[run.number] = run
        self._sources[source].running += 1
        self._pending.difference_update(piece.index for piece in pieces)
        return run
