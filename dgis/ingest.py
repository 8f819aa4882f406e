"""Take instances in: into the spool, and on to what `accept` promises before Success is said."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from typing import Literal

from dgis.errors import BadDataSet, DgisError, NotReplicated, RejectedByCatalog, SpoolFull
from dgis.incoming import Incoming, SpoolEntry
from dgis.metrics import Metrics
from dgis.record import Arrival
from dgis.spool import Spool

_POLL_SECONDS = 0.02
_FIRST_LOOK = 0.002
_PRUNE_AT = 1024
WAKE_PIPE = "worker.wake"


@dataclass(frozen=True, slots=True)
class Promise:
    """What Success means: `spooled` = safe on this node's disk, `replicated` = verified on enough storage elements."""

    accept: Literal["spooled", "replicated"] = "spooled"
    timeout: float = 30.0


class Receiving:
    """One object being received, as the edge sees it: write, then commit or abort (see `dgis.incoming.Incoming`)."""

    def __init__(self, ingest: Ingest, incoming: Incoming) -> None:
        """Made by `Ingest.begin` only."""
        self._ingest = ingest
        self._incoming = incoming

    @property
    def size(self) -> int:
        """Bytes of the object so far."""
        return self._incoming.size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the data set; the buffer may be reused at once. Raises SpoolFull, SpoolError."""
        try:
            self._incoming.write(data)
        except DgisError as error:
            self._ingest.refused(error)
            raise

    def commit(self) -> SpoolEntry:
        """Return when the promise holds.

        Raises BadDataSet, SpoolFull, SpoolError; with `accept = "replicated"` also NotReplicated and
        RejectedByCatalog (the object then stays safe in the spool and is copied or listed later).
        """
        try:
            entry = self._incoming.commit()
            self._ingest.committed(entry)
        except DgisError as error:
            self._ingest.refused(error)
            raise
        return entry

    def abort(self) -> None:
        """Forget the object; safe at any time."""
        self._incoming.abort()


class Ingest:
    """The C-STORE use case; also what `dgis import` files through. Thread-safe."""

    def __init__(self, spool: Spool, metrics: Metrics, *, promise: Promise | None = None) -> None:
        """Share `spool` with the worker's process through its directory only."""
        self._spool = spool
        self._metrics = metrics
        self._promise = promise or Promise()
        self._lock = threading.Lock()
        self._unsettled: dict[str, set[str]] = {}

    def begin(self, arrival: Arrival) -> Receiving:
        """Start one object; raises SpoolFull, SpoolError or BadDataSet before its first byte."""
        try:
            return Receiving(self, self._spool.begin(arrival))
        except DgisError as error:
            self.refused(error)
            raise

    def settle(self, association_id: str, *, timeout: float = 2.0) -> bool:
        """Wait until what this association stored is in the catalog; False when `timeout` seconds were not enough.

        Call at release. The association is forgotten in either case.
        """
        with self._lock:
            names = self._unsettled.pop(association_id, set())
        if names:
            self.wake_worker()
        deadline, pause = time.monotonic() + timeout, _FIRST_LOOK
        while names := self._spool.still_pending(names):
            last = (max(names),)  # registration is in order of arrival: all others go before it, or nearly all
            while self._spool.pending(last):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(pause)
                pause = min(pause * 1.5, _POLL_SECONDS)
        return True

    def forget(self, association_id: str) -> None:
        """Drop what is remembered of an association that ended without release."""
        with self._lock:
            self._unsettled.pop(association_id, None)

    def wake_worker(self) -> None:
        """Let the worker look at the inbox now instead of at its next turn; does nothing when none runs."""
        with contextlib.suppress(OSError):
            fd = os.open(self._spool.root / "state" / WAKE_PIPE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, b"!")
            finally:
                os.close(fd)

    def committed(self, entry: SpoolEntry) -> None:
        """Count an entry, remember it for `settle` and keep the promise."""
        self._metrics.stored.inc()
        self._metrics.stored_bytes.inc(entry.record.size)
        self._remember(entry)
        if self._promise.accept == "replicated":
            self._await_copies(entry)

    def refused(self, error: DgisError) -> None:
        """Count what was not taken, by reason."""
        self._metrics.refused.labels(reason=_reason(error)).inc()

    def _remember(self, entry: SpoolEntry) -> None:
        if not entry.record.association_id:
            return
        with self._lock:
            names = self._unsettled.setdefault(entry.record.association_id, set())
            names.add(entry.name)
            if len(names) >= _PRUNE_AT and len(names) % _PRUNE_AT == 0:
                # Long associations: keep only what still waits, or memory grows with the study.
                self._unsettled[entry.record.association_id] = self._spool.still_pending(names)

    def _await_copies(self, entry: SpoolEntry) -> None:
        # The worker frees the spool file when, and only when, enough verified replicas are in the catalog.
        self.wake_worker()
        deadline = time.monotonic() + self._promise.timeout
        while self._spool.pending((entry.name,)) or self._spool.find(entry.record.sha256) is not None:
            if time.monotonic() >= deadline:
                raise NotReplicated("the wanted copies were not verified in time; the object is safe in the spool")
            time.sleep(_POLL_SECONDS)
        if self._spool.failed(entry):
            raise RejectedByCatalog("the object could not be registered; it is kept for the operator")


def _reason(error: DgisError) -> str:
    if isinstance(error, BadDataSet):
        return "bad_data_set"
    if isinstance(error, SpoolFull):
        return "full"
    if isinstance(error, (NotReplicated, RejectedByCatalog)):
        return "not_replicated"
    return "spool_error"
