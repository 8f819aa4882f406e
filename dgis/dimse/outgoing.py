"""One instance on its way out: which accepted context takes it, and its conversion when none takes it as stored."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dgis.dimse.limits import PeerAddress
from dgis.dimse.negotiation import Context
from dgis.transcode.convert import Job
from dgis.transcode.errors import TranscodeCancelled, TranscodeError
from dgis.transcode.plan import FALLBACKS, plan

MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers of one byte


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One instance to send: `length` bytes of data set from `offset` of `path`, or of `content` when that is given.

    `content` is the same bytes in memory, in pieces to be laid end to end.
    """

    sop_class: str
    instance: str
    transfer_syntax: str
    path: Path
    offset: int
    length: int
    content: tuple[bytes, ...] | None = None


def _nobody_asks(_: PeerAddress) -> None:
    """Be the default of `reached`."""


@dataclass(frozen=True, slots=True)
class Route:
    """The places where a destination may listen, the likeliest first; `reached` is told which one answered."""

    places: tuple[PeerAddress, ...]
    reached: Callable[[PeerAddress], None] = _nobody_asks


class Converting(Protocol):
    """What converts files (`dgis.transcode.pool.Transcoder`). Thread-safe."""

    def convert(self, job: Job, *, cancelled: Callable[[], bool]) -> int:
        """Write the converted data set, return its length. Raises TranscodeError; leaves nothing then."""


class Adapter:
    """Converts instances to what a receiver takes. Thread-safe; its files lie in a scratch directory."""

    def __init__(
        self, transcoder: Converting, scratch: Callable[[], Path], *, ended: Callable[[str], object] = str
    ) -> None:
        """`scratch` returns a directory of this process's own; `ended` is told "done" or "failed" of each."""
        self._transcoder, self._scratch, self._ended = transcoder, scratch, ended
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def adapted(self, item: Outgoing, syntax: str, *, cancelled: Callable[[], bool]) -> Iterator[Outgoing]:
        """Yield the instance in `syntax`; what was written for it is removed afterwards.

        Raises TranscodeError, OSError before it yields.
        """
        if syntax == item.transfer_syntax:
            yield item
            return
        target = self._scratch() / f"converted-{next(self._numbers):08d}"
        try:
            with self._as_file(item) as path:
                job = Job(str(path), item.offset, item.length, item.transfer_syntax, syntax, str(target))
                length = self._converted(job, cancelled)
            yield replace(item, transfer_syntax=syntax, path=target, offset=0, length=length, content=None)
        finally:
            target.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _as_file(self, item: Outgoing) -> Iterator[Path]:
        """Yield a file with the instance, for another process to read; one that is in memory is written down."""
        if item.content is None:
            yield item.path
            return
        path = self._scratch() / f"unconverted-{next(self._numbers):08d}"
        try:
            with path.open("xb", buffering=0) as stream:
                for piece in item.content:
                    stream.write(piece)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _converted(self, job: Job, cancelled: Callable[[], bool]) -> int:
        try:
            length = self._transcoder.convert(job, cancelled=cancelled)
        except TranscodeCancelled:
            raise
        except TranscodeError:
            self._ended("failed")
            raise
        self._ended("done")
        return length


class _Nothing:
    """Stands in where nothing is converted."""

    def convert(self, job: Job, *, cancelled: Callable[[], bool]) -> int:
        raise TranscodeError("this node converts nothing")


AS_STORED = Adapter(_Nothing(), Path)


def context_for(contexts: Iterable[Context], item: Outgoing) -> Context | None:
    """Return the accepted context to send an instance in: the stored transfer syntax, else one to convert to."""
    accepted = {c.transfer_syntax: c for c in contexts if c.abstract_syntax == item.sop_class}
    way = plan(item.transfer_syntax, accepted)
    return None if way is None else accepted[way.target]


def contexts_of(kinds: Iterable[tuple[str, str]], *, convertible: bool) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Return what to propose for (SOP class, transfer syntax) kinds: lists that belong together, of at most 128.

    Each stored syntax stands alone in a context, so that the peer cannot prefer another to it, and what it can be
    converted to in a further one (PS3.5 10.1: implicit little endian is among them unless it is stored).
    """
    stored: dict[str, list[str]] = {}
    for sop_class, syntax in dict.fromkeys(kinds):
        stored.setdefault(sop_class, []).append(syntax)
    blocks = []
    for sop_class, syntaxes in stored.items():
        others = tuple(syntax for syntax in FALLBACKS if syntax not in syntaxes)
        useful = convertible and others and any(plan(syntax, others) for syntax in syntaxes)
        fallback = [(sop_class, others)] if useful else []
        for start in range(0, len(syntaxes), MAX_CONTEXTS - 1):
            part = syntaxes[start : start + MAX_CONTEXTS - 1]
            blocks.append([(sop_class, (syntax,)) for syntax in part] + fallback)
    return blocks
