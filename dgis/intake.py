"""What the worker registers next: batches of spool entries in order of arrival, around what cannot be dealt with now.

An entry that cannot be read, or that makes a healthy catalog fail, must never hold up the others: batches shrink until
it stands alone, then it is tried again by itself, less and less often.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog.wire import MAX_BATCH
from certs.log import get_log
from dgis.backoff import delay
from dgis.board import ErrorList
from dgis.errors import DamagedEntry
from dgis.record import read_record
from dgis.spool import Spool, SpoolEntry

log = get_log()

_BATCH_BYTES = 4 * 1024 * 1024
_TROUBLE_FIRST, _TROUBLE_LONGEST = 2.0, 60.0


@dataclass(frozen=True, slots=True)
class _Trouble:
    failures: int
    not_before: float


class Intake:
    """Reads inbox/ and, behind it, objects of registered/ that must be registered again. Used by one thread."""

    def __init__(self, spool: Spool, errors: ErrorList, *, clock: Callable[[], float] = time.monotonic) -> None:
        """List nothing yet."""
        self._spool, self._errors, self._clock = spool, errors, clock
        self._names: deque[str] = deque()
        self._left: Iterator[Path] = iter(())
        self._again: deque[Path] = deque()
        self._trouble: dict[str, _Trouble] = {}
        self._limit = MAX_BATCH

    def adopt(self, paths: Iterable[Path]) -> None:
        """Give these objects of registered/ out as well, when the inbox is empty."""
        self._left = iter(paths)

    def next_batch(self) -> list[SpoolEntry]:
        """Return what to register now, [] when there is nothing. Follow it by `worked` or `failed`."""
        if not self._names:
            self._names.extend(self._spool.inbox_names())
        inbox = self._spool.root / "inbox"
        names = (inbox / self._names.popleft() for _ in range(len(self._names)))
        return self._take(names) or self._take(self._left_over())

    def worked(self, entries: Sequence[SpoolEntry]) -> None:
        """Note that a batch was registered."""
        self._limit = min(self._limit * 2, MAX_BATCH)
        for entry in entries:
            self._trouble.pop(entry.name, None)

    def failed(self, entries: Sequence[SpoolEntry], *, outage: bool) -> None:
        """Note that a batch was not registered; `outage` when the catalog fails whatever it is asked."""
        self._names.clear()  # all of it is still in the inbox: list it anew
        for entry in entries:
            self._later(entry.path)
        if outage:
            return
        self._limit = max(1, len(entries) // 2)
        if len(entries) == 1:
            self.set_trouble(entries[0].name)
            self._errors.add("register", f"the catalog fails at an object; others go on: {entries[0].record.sha256}")

    def _take(self, paths: Iterator[Path]) -> list[SpoolEntry]:
        """Read entries up to the size of a batch; a troubled one comes alone."""
        batch: list[SpoolEntry] = []
        size = 0
        for path in paths:
            trouble = self._trouble.get(path.name)
            if trouble is not None and (batch or self._clock() < trouble.not_before):
                self._later(path)
                continue
            entry = self._read(path)
            if entry is None:
                continue
            batch.append(entry)
            size += len(entry.record.header_zstd) + 80 * len(entry.record.chunks) + 1024
            if trouble is not None or len(batch) >= self._limit or size >= _BATCH_BYTES:
                break
        return batch

    def _left_over(self) -> Iterator[Path]:
        for _ in range(len(self._again)):
            yield self._again.popleft()
        # Not `yield from`: closing this generator must not close that one.
        for path in self._left:  # noqa: UP028
            yield path

    def keep(self, entry: SpoolEntry) -> None:
        """Give an entry out again although its batch worked."""
        self._later(entry.path)

    def _later(self, path: Path) -> None:
        if path.parent.name != "inbox":  # the inbox is listed again anyhow
            self._again.append(path)

    def _read(self, path: Path) -> SpoolEntry | None:
        try:
            return SpoolEntry(path.name, path, read_record(path))
        except FileNotFoundError:
            return None
        except DamagedEntry as error:
            self._spool.set_aside(path)
            self._errors.add("spool", f"a spool file cannot be read and was moved to damaged/: {error}")
            log.error("damaged spool file", reason=str(error))
        except OSError as error:
            self.set_trouble(path.name)
            self._later(path)
            self._errors.add("spool", f"a spool file cannot be read now: {error.strerror}")
        return None

    def set_trouble(self, name: str) -> None:
        """Leave an entry out for a while, and give it out alone from then on until it worked."""
        before = self._trouble.get(name)
        failures = before.failures + 1 if before is not None else 1
        wait = delay(failures, first=_TROUBLE_FIRST, longest=_TROUBLE_LONGEST)
        self._trouble[name] = _Trouble(failures, self._clock() + wait)
