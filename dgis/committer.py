"""The worker's care for storage commitment: judge what was asked, report it to who asked, show what hangs.

One thread judges; each report runs in a thread of its own, one at a time for each requester, so that one that cannot be
reached keeps nobody waiting. All that must not be lost is in the store; back-offs start anew with the process.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from catalog.errors import CatalogError
from catalog.wire import Conflict, Located, LocateRequest
from certs.log import get_log
from dgis.backoff import Backoff
from dgis.board import BoardCommitments, ErrorList
from dgis.commit_store import CommitmentStore
from dgis.commitment import COMMITTED, Evidence, Known, ReportBy, Transaction, judge, overdue
from dgis.errors import DamagedEntry
from dgis.metrics import Metrics
from dgis.spool import Spool

log = get_log()

_LOOK_LONGEST = 15.0
_LOCATE_AT_ONCE = 10_000
_CONFLICTS_READ = 10_000
_INBOX_READ = 2000
_INBOX_SLACK_NS = 60 * 10**9
_REPORTING = 8
_REPORTS_AT_ONCE = 200
_PRUNE_SECONDS = 3600.0


class CommitCatalog(Protocol):
    """What judging asks of the catalog client."""

    def locate(self, request: LocateRequest, *, acting_for: str | None = None) -> Iterable[Located]:
        """See CatalogClient. Raises CatalogError, also from the iterator."""

    def conflicts(self, state: str | None = "open", *, limit: int = 1000) -> Sequence[Conflict]:
        """See CatalogClient."""


class Reporter(Protocol):
    """Brings reports to a requester (`dgis.dimse.commit_report.EventReporter`)."""

    def report(
        self, ae: str, transactions: Sequence[Transaction], told: Callable[[Transaction, str | None], None]
    ) -> str | None:
        """Call `told` for each that was answered, with the reason of a refusal; say why it ended early, else None."""


@dataclass(frozen=True, slots=True)
class CommitRules:
    """`copies` verified copies commit an instance. Seconds: `timeout` for the verdict, `grace` for an instance that is
    not known yet, `retry` for the report, `turn` from one look to the next."""

    copies: int
    timeout: float = 3600.0
    grace: float = 10.0
    retry: float = 86400.0
    report: ReportBy = "new"
    turn: float = 0.25


@dataclass(slots=True)
class _Progress:
    """What is decided of a pending transaction; asked again from the start after a restart, which is harmless."""

    undecided: list[tuple[str, str]]
    failures: list[tuple[str, str, int]] = field(default_factory=list)
    look_at: float = 0.0


class Committer:
    """Runs in the worker's process; `run` returns when `stop` is set."""

    def __init__(
        self,
        spool: Spool,
        store: CommitmentStore,
        catalog: CommitCatalog,
        reporter: Reporter,
        rules: CommitRules,
        *,
        metrics: Metrics,
        errors: ErrorList,
    ) -> None:
        """Nothing is asked before `run`."""
        self._spool, self._store, self._catalog, self._reporter = spool, store, catalog, reporter
        self._rules, self._metrics, self._errors = rules, metrics, errors
        self._progress: dict[str, _Progress] = {}
        self._inbox: dict[str, str] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._busy: set[str] = set()
        self._pruned_at = float("-inf")
        self._reading_seconds = 0.0
        self.shown = BoardCommitments()

    def run(self, stop: threading.Event) -> None:
        """Turn until `stop`."""
        while not stop.is_set():
            try:
                self.turn()
            except Exception as error:  # noqa: BLE001 - the edge of this thread
                log.error("storage commitment failed", error=type(error).__name__, reason=str(error)[:200])
                self._errors.add("storage commitment", f"{type(error).__name__}: {error}")
            # With very many transactions it looks more seldom: reading them never takes more than a tenth of the time.
            stop.wait(max(self._rules.turn, 10 * self._reading_seconds))

    def turn(self) -> None:
        """Judge what is due, then start the reports that are due. Raises SpoolError."""
        # Before the transactions are read: whoever stops reporting one has closed it by then.
        held, busy = self._store.held(), frozenset(self._busy)
        began = time.monotonic()
        transactions = self._store.open()
        self._reading_seconds = min(time.monotonic() - began, 1.0)
        pending = [one for one in transactions if one.state == "pending"]
        self._judge(pending)
        judged = [one for one in transactions if one.state == "judged"]
        if judged:
            self._report(judged, held, busy)
        self._show(pending, judged)

    # --- judging -------------------------------------------------------------------------------------------------

    def _judge(self, pending: Sequence[Transaction]) -> None:
        known = {one.key for one in pending}
        self._progress = {key: value for key, value in self._progress.items() if key in known}
        now = time.monotonic()
        due: list[Transaction] = []
        for one in pending:
            progress = self._progress.setdefault(one.key, _Progress(list(one.references)))
            if now >= progress.look_at or one.age >= self._rules.timeout:
                due.append(one)
        for group in _groups(due, lambda one: len(self._progress[one.key].undecided)):
            evidence = self._evidence(group)
            for transaction in group:
                self._decide(transaction, evidence)

    def _evidence(self, group: Sequence[Transaction]) -> Evidence | None:
        """Ask the catalog once for all of them; None when it cannot be told now."""
        wanted = {uid for one in group for _, uid in self._progress[one.key].undecided}
        # In this order: what leaves the inbox after it was looked at is in the catalog's answers or still counts as
        # unregistered; a conflict is known to the catalog before its entry leaves the inbox.
        unregistered = self._unregistered(wanted, max(one.received_ns for one in group))
        if unregistered is None:
            return None
        try:
            request = LocateRequest(purpose="commit", instances=tuple(sorted(wanted)))
            located = list(self._catalog.locate(request, acting_for=group[0].acting_for))
            conflicts = self._catalog.conflicts("open", limit=_CONFLICTS_READ)
        except CatalogError as error:
            self._errors.add("storage commitment", f"{type(error).__name__}: {error}")
            return None
        if len(conflicts) >= _CONFLICTS_READ:
            self._errors.add("storage commitment", "too many open conflicts: nothing can be committed")
            return None
        known = {one.instance_uid: Known(one.sop_class_uid, _verified(one)) for one in located}
        contested = {(c.instance_uid, c.source_ae) for c in conflicts if c.kind in ("content", "syntax")}
        return Evidence(known, contested, unregistered)

    def _unregistered(self, wanted: set[str], latest_ns: int) -> set[str] | None:
        """Return which of these instances lie in the inbox; None when there are too many entries to read now."""
        names = [name for name in self._spool.inbox_names() if _arrived_ns(name) <= latest_ns + _INBOX_SLACK_NS]
        if sum(name not in self._inbox for name in names) > _INBOX_READ:
            return None
        inbox: dict[str, str] = {}
        for name in names:
            uid = self._inbox.get(name)
            if uid is None:
                try:
                    entry = self._spool.read(name)
                except DamagedEntry:
                    continue
                if entry is None:
                    continue
                uid = entry.record.instance_uid
            inbox[name] = uid
        self._inbox = inbox
        return wanted.intersection(inbox.values())

    def _decide(self, transaction: Transaction, evidence: Evidence | None) -> None:
        progress = self._progress[transaction.key]
        patient = transaction.age < self._rules.grace
        late = transaction.age >= self._rules.timeout
        still: list[tuple[str, str]] = []
        for reference in progress.undecided:
            verdict = None
            if evidence is not None:
                verdict = judge(reference, evidence, ae=transaction.ae, copies=self._rules.copies, patient=patient)
            if verdict is None and late:
                verdict = overdue(reference, evidence)
            if verdict is None:
                still.append(reference)
            elif verdict != COMMITTED:
                progress.failures.append((*reference, verdict))
        progress.undecided = still
        progress.look_at = time.monotonic() + self._pause(transaction.age)
        if not still:
            self._conclude(transaction, progress)

    def _pause(self, age: float) -> float:
        """Look ever more seldom, but at once when a limit has passed."""
        pause = min(max(age / 5, self._rules.turn), _LOOK_LONGEST)
        limits = [limit - age for limit in (self._rules.grace, self._rules.timeout) if limit > age]
        return min([pause, *limits])

    def _conclude(self, transaction: Transaction, progress: _Progress) -> None:
        if self._store.judged(transaction.key, progress.failures) is None:
            return
        failed = len(progress.failures)
        self._metrics.commit_instances.labels(outcome="committed").inc(len(transaction.references) - failed)
        for _, _, reason in progress.failures:
            self._metrics.commit_instances.labels(outcome=f"{reason:04X}").inc()
        log.info(
            "storage commitment judged",
            ae=transaction.ae,
            instances=len(transaction.references),
            failed=failed,
            seconds=round(transaction.age, 1),
        )

    # --- reporting -----------------------------------------------------------------------------------------------

    def _report(self, judged: Sequence[Transaction], held: frozenset[str], busy: frozenset[str]) -> None:
        due: dict[str, list[Transaction]] = defaultdict(list)
        for transaction in judged:
            if transaction.key in held or transaction.ae in busy:
                continue
            if self._rules.report == "same":
                self._give_up(transaction, "the association ended before the report")
            elif transaction.unchanged_seconds > self._rules.retry:
                self._give_up(transaction, "the report could not be delivered")
            elif self._backoff(transaction.key).due:
                due[transaction.ae].append(transaction)
        for ae, waiting in due.items():
            if len(self._busy) >= _REPORTING or not self._backoff(f"ae {ae}").due:
                continue
            self._busy.add(ae)
            arguments = (ae, waiting[:_REPORTS_AT_ONCE])
            threading.Thread(target=self._errand, args=arguments, name="commit-report", daemon=True).start()

    def _errand(self, ae: str, transactions: Sequence[Transaction]) -> None:
        try:
            trouble = self._reporter.report(ae, transactions, self._told)
            if trouble is None:
                self._backoffs.pop(f"ae {ae}", None)
            else:
                self._metrics.commit_reports.labels(outcome="failed").inc()
                self._errors.add("storage commitment report", trouble)
                self._backoff(f"ae {ae}").failed()
        except Exception as error:  # noqa: BLE001 - the edge of this thread
            log.error("storage commitment report failed", ae=ae, error=type(error).__name__)
            self._errors.add("storage commitment report", f"{ae}: {type(error).__name__}")
            self._backoff(f"ae {ae}").failed()
        finally:
            self._busy.discard(ae)

    def _told(self, transaction: Transaction, refused: str | None) -> None:
        if refused is None:
            self._store.finish(transaction.key, "reported")
            self._backoffs.pop(transaction.key, None)
            self._metrics.commit_reports.labels(outcome="taken").inc()
            log.info("storage commitment reported", ae=transaction.ae, failed=len(transaction.failures))
            return
        self._metrics.commit_reports.labels(outcome="refused").inc()
        self._errors.add("storage commitment report", f"{transaction.ae}: {refused}")
        self._backoff(transaction.key).failed()

    def _give_up(self, transaction: Transaction, note: str) -> None:
        self._store.finish(transaction.key, "given_up", note)
        self._backoffs.pop(transaction.key, None)
        self._metrics.commit_reports.labels(outcome="given_up").inc()
        self._errors.add("storage commitment report", f"{transaction.ae}: given up: {note}")
        log.error("storage commitment report given up", ae=transaction.ae, reason=note)

    def _backoff(self, name: str) -> Backoff:
        return self._backoffs.setdefault(name, Backoff(first=1.0, longest=600.0))

    # --- showing -------------------------------------------------------------------------------------------------

    def _show(self, pending: Sequence[Transaction], judged: Sequence[Transaction]) -> None:
        if time.monotonic() - self._pruned_at > _PRUNE_SECONDS:
            self._pruned_at = time.monotonic()
            self._store.prune()
        oldest = max((one.age for one in (*pending, *judged)), default=0.0)
        self.shown = BoardCommitments(pending=len(pending), unreported=len(judged), oldest_seconds=round(oldest))
        self._metrics.commit_open.set(len(pending) + len(judged))


def _verified(located: Located) -> int:
    """Count the storage elements with a verified copy; a spool is none of them (design rule 5)."""
    return len({r.location for r in located.replicas if r.kind == "object" and r.state == "verified"})


def _arrived_ns(name: str) -> int:
    try:
        return int(name[:20])
    except ValueError:
        return 0


def _groups(due: Sequence[Transaction], size: Callable[[Transaction], int]) -> Iterable[list[Transaction]]:
    """Split by whom it is asked for, and so that one question stays bounded."""
    groups: dict[str | None, list[Transaction]] = {}
    for transaction in due:
        group = groups.setdefault(transaction.acting_for, [])
        if group and sum(map(size, group)) + size(transaction) > _LOCATE_AT_ONCE:
            yield group
            group = groups[transaction.acting_for] = []
        group.append(transaction)
    yield from groups.values()
