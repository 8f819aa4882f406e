"""What the DIMSE edge is given: the use cases, as far as it needs them, and the names it answers by."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from catalog.wire import Located, LocateRequest, Query, Row
from certs.vo.policy import Action
from dgis.commit_answers import Answered
from dgis.commitment import ReportBy, Transaction
from dgis.dimse.ae import AeTable
from dgis.dimse.learned import Destinations
from dgis.dimse.limits import MAX_PDU, Limits, Timeouts
from dgis.dimse.outgoing import Adapter
from dgis.dimse.users import Policy
from dgis.record import Arrival


class Incoming(Protocol):
    """One object on its way in. After an exception from `write` or `commit` nothing of it is left."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes of the data set; the buffer is the caller's again on return. Raises SpoolFull, ..."""

    def commit(self) -> object:
        """Return when the object is safe. Raises BadDataSet, SpoolFull, SpoolError, NotReplicated, ..."""

    def abort(self) -> None:
        """Forget the object; safe at any time."""


class Ingest(Protocol):
    """The C-STORE use case (`dgis.ingest.Ingest`). Thread-safe."""

    def begin(self, arrival: Arrival) -> Incoming:
        """Start one object. Raises SpoolFull, SpoolError, BadDataSet."""

    def settle(self, association_id: str, *, timeout: float = 2.0) -> bool:
        """Wait until what this association stored is findable, at most `timeout` seconds."""

    def forget(self, association_id: str) -> None:
        """The association ended without release."""


class Commitment(Protocol):
    """Where storage commitment transactions are kept (`dgis.commit_store.CommitmentStore`). Thread-safe."""

    def accept(self, transaction: Transaction) -> bool:
        """Keep one durably. Raises TransactionConflict, TooManyTransactions, SpoolError."""

    def hold(self, key: str) -> None:
        """Say that this process reports it on the requester's association."""

    def release(self, key: str) -> None:
        """Leave the report to the worker. Safe to repeat."""

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Return something that changes when the transaction does; None when it is not open."""

    def read(self, key: str) -> Transaction | None:
        """Return an open transaction."""

    def finish(self, key: str, state: Literal["reported", "given_up"], note: str = "") -> None:
        """Close it. Raises SpoolError."""


class Answers(Protocol):
    """Where reports go that somebody on this machine waits for (`dgis.commit_answers.CommitAnswers`). Thread-safe."""

    def put(self, transaction_uid: str, answered: Answered) -> bool:
        """Keep one; False when nobody waits for it. Raises SpoolError."""


class Search(Protocol):
    """The C-FIND use case (`dgis.search.Search`). Thread-safe."""

    def find(self, query: Query, *, acting_for: str | None) -> Iterator[Row]:
        """Yield one row per entity. Raises SearchIncomplete after the rows it has."""


class Rights(Protocol):
    """The VO's policy as this node knows it (`dgis.rights.Rights`). Thread-safe."""

    def refusal(self, actor: str, action: Action) -> str:
        """Say why an actor may not do something with any study; empty when there may be one."""


class Plan(Protocol):
    """What a retrieve is going to give, in order."""

    @property
    def instances(self) -> tuple[Located, ...]:
        """Every matching instance."""


class Fetched(Protocol):
    """An instance at hand: `data_length` bytes of data set from `data_offset` of `path`, until `release`."""

    @property
    def located(self) -> Located:
        """Which instance."""

    @property
    def path(self) -> Path:
        """The file; other bytes may come before and after the data set."""

    @property
    def data_offset(self) -> int:
        """Where the data set begins."""

    @property
    def data_length(self) -> int:
        """How long it is."""

    def release(self) -> None:
        """The file is not needed any more."""


class Held(Protocol):
    """An instance in memory: `data_length` bytes of data set from `data_offset` of `content`, laid end to end."""

    @property
    def located(self) -> Located:
        """Which instance."""

    @property
    def content(self) -> tuple[bytes, ...]:
        """The bytes, in pieces; other bytes may come before the data set."""

    @property
    def data_offset(self) -> int:
        """Where the data set begins."""

    @property
    def data_length(self) -> int:
        """How long it is."""

    def release(self) -> None:
        """It is not needed any more."""


class Failed(Protocol):
    """An instance that no source could give."""

    @property
    def located(self) -> Located:
        """Which instance."""

    @property
    def reason(self) -> str:
        """Why, without patient data."""


class Retrieve(Protocol):
    """The C-MOVE and C-GET use case (`dgis.retrieve.Retrieve`). Thread-safe.

    A result with a `reason` is a Failed, one with a `content` a Held.
    """

    def plan(self, request: LocateRequest, *, acting_for: str | None) -> Plan:
        """Say which instances match. Raises RetrieveUnavailable when the catalog does not answer."""

    def fetch(
        self, plan: Plan, *, acting_for: str | None, cancelled: Callable[[], bool]
    ) -> Generator[Fetched | Held | Failed, None, None]:
        """Yield each instance of the plan once, reading ahead; stop soon after `cancelled` says so, or when closed."""


@dataclass(frozen=True, slots=True)
class DimseSettings:
    """How the edge answers; all of it from node.toml."""

    aet: str = "DGIS"
    site: str = "local"
    node: str = "dgis"
    issuer: str = ""  # of patient IDs whose sender names none, unless the AE table does
    accept_any_called: bool = False
    also_called: tuple[str, ...] = ()
    ignore_title_case: bool = False
    user_identity: Policy = "accept"
    users: Mapping[str, str] = field(default_factory=dict)  # hashed passcodes by name, see `users`
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_pdu: int = MAX_PDU
    find_limit: int | None = None
    names: Literal["insensitive", "exact"] = "insensitive"
    hierarchy: Literal["lenient", "strict"] = "lenient"
    settle: float = 2.0
    commit_report: ReportBy = "new"
    shutdown_grace: float = 3.0


def ignore(_count: int) -> None:
    """Count nothing."""


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases, the AE table and the VO's policy."""

    ingest: Ingest
    search: Search
    retrieve: Retrieve
    ae_table: AeTable
    commitment: Commitment | None = None  # None: the service is not offered
    commit_answers: Answers | None = None  # None: we never ask others
    adapter: Adapter | None = None  # None: everything goes out as it is stored
    destinations: Destinations | None = None  # None: of the AE table alone
    rights: Rights | None = None  # None: the AE table decides alone
    replaced: Callable[[int], None] = ignore  # counts characters that a forced character set does not have
