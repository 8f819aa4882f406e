"""The status board: one small file in the spool that the worker rewrites and everybody else reads.

`<spool>/state/worker.json`, replaced by rename about once a second when something changed. It holds no patient data
and no UIDs; objects appear by their key only.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dgis.disk import replace_file

_ERRORS_KEPT = 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BoardBacklog(_Part):
    """What is not yet both registered and copied."""

    count: int = 0
    bytes: int = 0
    oldest_seconds: float = 0.0
    unregistered: int = 0
    waiting_for_storage: int = 0


class BoardDoor(_Part):
    """One door of a storage element as the worker's transfers see it; `in_use`: they go by it now."""

    url: str
    reachable: bool
    in_use: bool
    last_error: str | None = None
    last_ok: datetime | None = None


class BoardElement(_Part):
    """One storage element as the worker sees it."""

    name: str
    site: str
    state: str
    reachable: bool
    usable: bool
    last_error: str | None = None
    last_ok: datetime | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    doors: tuple[BoardDoor, ...] = ()

    @property
    def door_in_use(self) -> str | None:
        """Return the door by which transfers go now, None when none has worked yet or none works now."""
        return next((door.url for door in self.doors if door.in_use), None)


class BoardError(_Part):
    """Something an operator should know; `count` says how often it came in a row."""

    at: datetime
    where: str
    text: str
    count: int = 1


class BoardCommitments(_Part):
    """Storage commitment transactions: not yet judged, and judged but not yet reported."""

    pending: int = 0
    unreported: int = 0
    oldest_seconds: float = 0.0


class Board(_Part):
    """The whole board. Unknown fields are passed over: reader and writer may differ by a version."""

    at: datetime
    pid: int
    started_at: datetime
    catalog_reachable: bool = True
    catalog_error: str | None = None
    backlog: BoardBacklog = BoardBacklog()
    rejected: int = 0
    damaged: int = 0
    commitments: BoardCommitments = BoardCommitments()
    elements: tuple[BoardElement, ...] = ()
    unreachable: tuple[str, ...] = ()
    errors: tuple[BoardError, ...] = ()
    counters: dict[str, int] = {}


def board_path(spool_root: Path) -> Path:
    """Return where the worker of this spool writes its board."""
    return spool_root / "state" / "worker.json"


def read_board(spool_root: Path) -> Board | None:
    """Return the board, None when there is none or it cannot be read; never raises."""
    try:
        return Board.model_validate_json(board_path(spool_root).read_bytes())
    except (OSError, ValidationError, ValueError):
        return None


class Unreachable:
    """Callable: the storage elements that the worker cannot reach, from the board, read at most once a second.

    A board older than `trusted_seconds` says nothing any more: its worker is gone.
    """

    def __init__(
        self, spool_root: Path, *, trusted_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the board of the worker of this spool."""
        self._root = spool_root
        self._trusted = trusted_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._names: tuple[str, ...] = ()

    def __call__(self) -> tuple[str, ...]:
        with self._lock:
            if self._clock() - self._read_at >= 1.0:
                self._names, self._read_at = self._read(), self._clock()
            return self._names

    def _read(self) -> tuple[str, ...]:
        board = read_board(self._root)
        if board is None or (datetime.now(UTC) - board.at).total_seconds() > self._trusted:
            return ()
        return board.unreachable


class ErrorList:
    """The last errors, bounded, repeated ones counted. Thread-safe. Texts must name no patient and no UID."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._errors: deque[BoardError] = deque(maxlen=_ERRORS_KEPT)

    def add(self, where: str, text: str) -> None:
        """Note an error; the same one again only counts up and moves to the front."""
        with self._lock:
            same = next((e for e in self._errors if (e.where, e.text) == (where, text[:300])), None)
            if same is not None:
                self._errors.remove(same)
            count = same.count + 1 if same is not None else 1
            self._errors.append(BoardError(at=datetime.now(UTC), where=where, text=text[:300], count=count))

    def all(self) -> tuple[BoardError, ...]:
        """Return them, newest last."""
        with self._lock:
            return tuple(self._errors)


class BoardWriter:
    """Rewrites the board when it changed, and every ten seconds as a sign of life."""

    def __init__(self, spool_root: Path) -> None:
        """Write to the worker's board in this spool."""
        self._path = board_path(spool_root)
        self._started = datetime.now(UTC)
        self._last: dict[str, object] | None = None
        self._written = float("-inf")

    def write(self, board: Board) -> bool:
        """Write the board if it says something new; True when it was written. Raises OSError."""
        said = board.model_dump(mode="json", exclude={"at"})
        now = time.monotonic()
        if said == self._last and now - self._written < 10.0:
            return False
        replace_file(self._path, board.model_dump_json(indent=1).encode())
        self._last, self._written = said, now
        return True

    def blank(self) -> Board:
        """Return an empty board of this process, to be filled by `model_copy`."""
        return Board(at=datetime.now(UTC), pid=os.getpid(), started_at=self._started)
