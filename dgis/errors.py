"""The error tree of dgis.

"The peer said no" and "the peer did not answer" never mix; no message carries patient data, only object keys, names of
storage elements and operating-system reasons.
"""

from __future__ import annotations

CANNOT_UNDERSTAND = 0xC000
DATA_SET_MISMATCH = 0xA900


class DgisError(Exception):
    """The root of every error that the rooms of dgis raise."""


class SpoolError(DgisError):
    """The spool could not do its work: an operating-system error, not the sender's fault. Worth another try."""


class SpoolFull(SpoolError):
    """The disk, the spool's limit or its reserve is used up; nothing of the object was kept (A700, PS3.4 B.2.3)."""


class SpoolLocked(SpoolError):
    """Another process already holds the lock of this part of the spool."""


class DamagedEntry(SpoolError):
    """A spool file whose trailer cannot be read back."""


class BadDataSet(DgisError):
    """The data set cannot be filed; `status` is the C-STORE status that says so (PS3.4 B.2.3).

    `status` is A900 when the data set does not match its command or lacks a UID that files it, C000 when it cannot be
    parsed. Permanent: sending the same bytes again changes nothing.
    """

    def __init__(self, reason: str, *, status: int = CANNOT_UNDERSTAND) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class NotReplicated(DgisError):
    """`accept = "replicated"` and the wanted copies were not verified in time; the object is safe in the spool."""


class RejectedByCatalog(DgisError):
    """The catalog refused to register the object; it is kept in the spool's rejected/ for the operator."""


class SearchIncomplete(DgisError):
    """A catalog did not answer, or stopped in mid-answer: the rows given so far are true but not all (C001)."""


class SearchRefused(DgisError):
    """The catalog will not answer this query: it asks for something that cannot be matched. Permanent."""


class SearchForbidden(SearchRefused):
    """The VO's policy lets this caller find nothing at all."""


class RetrieveForbidden(DgisError):
    """The VO's policy lets this caller retrieve nothing at all."""


class RetrieveUnavailable(DgisError):
    """The catalog could not be asked where the instances are; says nothing about whether they exist."""
