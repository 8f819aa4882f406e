"""Where storage commitment transactions are kept: a directory beside the spool, shared by all processes of a node.

    <spool>/commitment/open/<key>.json      accepted; `pending` until judged, then `judged` until its report is taken
    <spool>/commitment/closed/<key>.json    `reported`, or `given_up` with the reason; kept for a week
    <spool>/commitment/held/<process>/<key> a receiver has the requester's association open and reports on it itself

Receivers write them, the worker judges and reports. Every change is one rename under one lock, so either side may be
killed at any instant. A key is a digest of (AE title, Transaction UID): UIDs never become names.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dgis.commitment import KEY_OF_AE, TooManyTransactions, Transaction, TransactionConflict
from dgis.disk import Lock, ProcessDirectory, fsync_directory, remove_stale, spool_error

KEPT_SECONDS = 7 * 86400.0
KEPT_COUNT = 2000


class CommitmentStore:
    """One directory, shared by processes and threads; all methods are thread-safe and raise SpoolError for the disk."""

    def __init__(self, spool_root: Path, *, limit: int = 20_000, per_ae: int = 5000) -> None:
        """Hold at most `limit` open transactions, `per_ae` of one requester: one that hangs leaves room to others."""
        self.root = spool_root / "commitment"
        self._limit, self._per_ae = limit, per_ae
        self._cache: dict[str, tuple[tuple[int, int], Transaction]] = {}
        self._caching = threading.Lock()
        try:
            for name in ("open", "closed", "held"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise spool_error(error, "cannot make the commitment directory") from error
        self._holding = ProcessDirectory(self.root / "held")

    # --- the receivers -------------------------------------------------------------------------------------------

    def accept(self, transaction: Transaction) -> bool:
        """Keep a transaction so that it survives power loss; False when it was open already (nothing changed then).

        The same request again after its end opens it again, to be judged and reported anew. Raises
        TransactionConflict, TooManyTransactions.
        """
        with _Change(self.root):
            before = self.read(transaction.key)
            if before is not None:
                if before.references != transaction.references:
                    raise TransactionConflict("this Transaction UID is in use for other instances")
                return False
            self._check_room(transaction.key[:KEY_OF_AE])
            self._write(transaction)
            return True

    def hold(self, key: str) -> None:
        """Say that this process reports it on an open association; the worker then leaves that to us."""
        try:
            (self._holding.get().path / key).touch()
        except OSError as error:
            raise spool_error(error, "cannot hold a transaction") from error

    def release(self, key: str) -> None:
        """Leave the report to the worker. Safe to repeat."""
        (self._holding.get().path / key).unlink(missing_ok=True)

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Return something that changes when an open transaction does; None when it is not open."""
        try:
            stat = (self.root / "open" / f"{key}.json").stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def close(self) -> None:
        """Give up what this process holds."""
        self._holding.close()

    # --- the worker ----------------------------------------------------------------------------------------------

    def held(self) -> frozenset[str]:
        """Return the keys that living receivers report themselves."""
        if any(not name.startswith(".") for name in _names(self.root / "held")):
            remove_stale(self.root / "held")
        folders = [path for path in (self.root / "held").iterdir() if path.is_dir()]
        return frozenset(name for folder in folders for name in _names(folder) if not name.startswith("."))

    def judged(self, key: str, failures: Sequence[tuple[str, str, int]]) -> Transaction | None:
        """Note the outcome of a pending transaction; None when it is not pending any more."""
        with _Change(self.root):
            found = self.read(key)
            if found is None or found.state != "pending":
                return None
            return self._changed(found, state="judged", failures=tuple(failures))

    def finish(self, key: str, state: Literal["reported", "given_up"], note: str = "") -> None:
        """Close a transaction; safe to repeat, also after a kill half way."""
        with _Change(self.root):
            found = self.read(key)
            if found is not None:
                self._changed(found, state=state, note=note)
                self._move(key)

    def open(self) -> list[Transaction]:
        """Return the open transactions, oldest first; what cannot be read is left where it is and passed over."""
        found = []
        names = {name for name in _names(self.root / "open") if name.endswith(".json") and not name.startswith(".")}
        for name in names:
            transaction = self.read(name.removesuffix(".json"))
            if transaction is None:
                continue
            if transaction.state in ("reported", "given_up"):  # killed between the two steps of `finish`
                with _Change(self.root):
                    self._move(transaction.key)
                continue
            found.append(transaction)
        with self._caching:
            self._cache = {key: value for key, value in self._cache.items() if f"{key}.json" in names}
        return sorted(found, key=lambda one: one.received_ns)

    # --- everybody -----------------------------------------------------------------------------------------------

    def read(self, key: str) -> Transaction | None:
        """Return an open transaction, None when there is none (any more)."""
        stamp = self.stamp(key)
        if stamp is None:
            return None
        with self._caching:
            cached = self._cache.get(key)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        transaction = _load(self.root / "open" / f"{key}.json")
        if transaction is not None:
            with self._caching:
                self._cache[key] = (stamp, transaction)
        return transaction

    def closed(self) -> list[Transaction]:
        """Return the closed transactions that are still kept, newest first."""
        found = [_load(self.root / "closed" / name) for name in _names(self.root / "closed") if name[0] != "."]
        return sorted((one for one in found if one is not None), key=lambda one: -one.received_ns)

    def retry(self, key: str) -> bool:
        """Open a given-up transaction again: it is judged and reported anew. False when there is no such one."""
        path = self.root / "closed" / f"{key}.json"
        with _Change(self.root):
            found = _load(path)
            if found is None or found.state != "given_up" or self.read(key) is not None:
                return False
            self._write(found.model_copy(update={"state": "pending", "received_ns": time.time_ns(), "note": ""}))
            path.unlink(missing_ok=True)
        return True

    def forget(self, key: str) -> bool:
        """Remove a closed transaction; False when there is no such one."""
        path = self.root / "closed" / f"{key}.json"
        found = path.exists()
        path.unlink(missing_ok=True)
        return found

    def prune(self) -> None:
        """Remove what was closed long ago, and what crashed writers left."""
        oldest = time.time() - KEPT_SECONDS
        aged: list[tuple[float, Path]] = []
        for folder in ("closed", "open"):
            for entry in os.scandir(self.root / folder):
                stale = entry.name.startswith(".") and entry.stat().st_mtime < time.time() - 600
                if stale or (folder == "closed" and entry.stat().st_mtime < oldest):
                    Path(entry.path).unlink(missing_ok=True)
                elif folder == "closed":
                    aged.append((entry.stat().st_mtime, Path(entry.path)))
        for _, path in sorted(aged)[:-KEPT_COUNT]:
            path.unlink(missing_ok=True)

    def _check_room(self, of_ae: str) -> None:
        names = _names(self.root / "open")
        if len(names) >= self._limit or sum(name.startswith(of_ae) for name in names) >= self._per_ae:
            raise TooManyTransactions(f"{len(names)} transactions are open")

    def _changed(self, transaction: Transaction, **update: object) -> Transaction:
        changed = transaction.model_copy(update={**update, "changed_at": datetime.now(UTC)})
        self._write(changed)
        return changed

    def _write(self, transaction: Transaction) -> None:
        folder = self.root / "open"
        staged = folder / f".{transaction.key}.{os.getpid()}.{threading.get_ident()}"
        try:
            with staged.open("wb") as stream:
                stream.write(transaction.model_dump_json().encode())
                stream.flush()
                os.fsync(stream.fileno())
            staged.rename(folder / f"{transaction.key}.json")
            fsync_directory(folder)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise spool_error(error, "cannot keep a commitment transaction") from error

    def _move(self, key: str) -> None:
        try:
            (self.root / "open" / f"{key}.json").rename(self.root / "closed" / f"{key}.json")
        except FileNotFoundError:  # another process has just moved it
            return
        except OSError as error:
            raise spool_error(error, "cannot close a commitment transaction") from error


class _Change:
    """Changes of transactions happen one after the other, over all processes."""

    def __init__(self, root: Path) -> None:
        self._path = root / ".lock"

    def __enter__(self) -> None:
        self._lock = Lock(self._path, wait=True)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _load(path: Path) -> Transaction | None:
    try:
        return Transaction.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
