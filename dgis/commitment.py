"""Storage commitment transactions (PS3.4 annex J): what one is, and how an instance is judged. Pure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from dgis.errors import DgisError

# Failure Reason (0008,1197), PS3.3 C.14.1.1.
COMMITTED: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_INSTANCE_CONFLICT: Final = 0x0119
RESOURCE_LIMITATION: Final = 0x0213

State = Literal["pending", "judged", "reported", "given_up"]
ReportBy = Literal["new", "same", "same_then_new"]
KEY_OF_AE = 16


class TransactionConflict(DgisError):
    """The Transaction UID is in use by the same AE for other instances."""


class TooManyTransactions(DgisError):
    """As many transactions are open as this node holds; worth another try later."""


class Transaction(BaseModel):
    """One storage commitment transaction. `references` are (SOP class UID, SOP instance UID), `failures` with reason.

    `received_ns` is on the clock that names inbox entries.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    transaction_uid: str
    ae: str
    called_ae: str
    acting_for: str | None
    received_ns: int
    references: tuple[tuple[str, str], ...]
    state: State = "pending"
    failures: tuple[tuple[str, str, int], ...] = ()
    changed_at: datetime | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """The name it is kept under."""
        return transaction_key(self.ae, self.transaction_uid)

    @property
    def number(self) -> str:
        """What people call it."""
        return self.key[KEY_OF_AE : KEY_OF_AE + 12]

    @property
    def committed(self) -> tuple[tuple[str, str], ...]:
        """The references that did not fail; only meaningful once judged."""
        failed = {(sop_class, instance) for sop_class, instance, _ in self.failures}
        return tuple(reference for reference in self.references if reference not in failed)

    @property
    def age(self) -> float:
        """Seconds since it was received."""
        return max(0.0, (time.time_ns() - self.received_ns) / 1e9)

    @property
    def unchanged_seconds(self) -> float:
        """Seconds since it was judged or closed."""
        return self.age if self.changed_at is None else (datetime.now(UTC) - self.changed_at).total_seconds()


def transaction_key(ae: str, transaction_uid: str) -> str:
    """Return the name a transaction is kept under; the transactions of one AE begin with the same 16 digits."""
    return _digest(ae)[:KEY_OF_AE] + _digest(f"{ae}\n{transaction_uid}")[:48]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


# --- judging: pure ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalog says of one instance: its SOP class, and on how many storage elements it is verified."""

    sop_class_uid: str
    verified: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now: `contested` are (instance, AE) of open conflicts, `unregistered` still lie in the inbox."""

    known: Mapping[str, Known]
    contested: Collection[tuple[str, str]]
    unregistered: Collection[str]


def judge(reference: tuple[str, str], evidence: Evidence, *, ae: str, copies: int, patient: bool) -> int | None:
    """Return COMMITTED, a failure reason, or None while it cannot be told.

    `patient`: the transaction is so young that an unknown instance may still come. An instance whose content from this
    AE is in quarantine is not committed, whatever is kept under its UID: two contents share the UID, and a commitment
    would let the sender delete the only good copy of its own.
    """
    sop_class, instance = reference
    if instance in evidence.unregistered:
        return None
    if (instance, ae) in evidence.contested:
        return PROCESSING_FAILURE
    known = evidence.known.get(instance)
    if known is None:
        return None if patient else NO_SUCH_INSTANCE
    if known.sop_class_uid != sop_class:
        return CLASS_INSTANCE_CONFLICT
    return COMMITTED if known.verified >= copies else None


def overdue(reference: tuple[str, str], evidence: Evidence | None) -> int:
    """Return why an undecided instance fails when time is up.

    Resource limitation when it is stored but the copies could not be made; processing failure when it could not even be
    found out (the catalog did not answer, or it was never registered).
    """
    stored = evidence is not None and reference[1] in evidence.known
    return RESOURCE_LIMITATION if stored else PROCESSING_FAILURE
