"""The DIMSE status table of this edge: which outcome is said by which code, PS3.7 annex C and PS3.4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dgis.dimse.command import Answer
from dgis.errors import BadDataSet, NotReplicated, RejectedByCatalog, SpoolError, SpoolFull

SUCCESS: Final = 0x0000
PENDING: Final = 0xFF00
PENDING_UNSUPPORTED_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
PROCESSING_FAILURE: Final = 0x0110
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORISED: Final = 0x0124
UNRECOGNISED_OPERATION: Final = 0x0211
NOT_BY_POLICY: Final = "the policy of the VO does not allow it to this AE"  # an Error Comment (LO)

# N-ACTION and N-EVENT-REPORT, PS3.7 10.1.1.1.8 and 10.1.4.1.10
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_CLASS: Final = 0x0118
NO_SUCH_ACTION: Final = 0x0123
NO_SUCH_EVENT: Final = 0x0113
RESOURCE_LIMITATION: Final = 0x0213

# C-STORE, PS3.4 B.2.3
STORE_OUT_OF_RESOURCES: Final = 0xA700
STORE_MISMATCH: Final = 0xA900
STORE_CANNOT_UNDERSTAND: Final = 0xC000

# C-FIND, PS3.4 C.4.1.1.4
FIND_OUT_OF_RESOURCES: Final = 0xA700
# C-FIND, C-MOVE, C-GET
IDENTIFIER_MISMATCH: Final = 0xA900
UNABLE_TO_PROCESS: Final = 0xC000
CATALOG_UNREACHABLE: Final = 0xC001

# C-MOVE, C-GET, PS3.4 C.4.2.1.5 and C.4.3.1.4
MATCHES_NOT_COUNTED: Final = 0xA701
SUB_OPERATIONS_FAILED: Final = 0xA702
DESTINATION_UNKNOWN: Final = 0xA801
SOME_SUB_OPERATIONS_FAILED: Final = 0xB000


@dataclass(frozen=True, slots=True)
class Said:
    """One row of the table: what a code of ours means in these services."""

    services: tuple[str, ...]
    code: int
    meaning: str


STORE, FIND, RETRIEVE, EVERY = ("store",), ("find",), ("move", "get"), ("echo", "store", "find", "move", "get")
ASKED, COMMIT = FIND + RETRIEVE, ("commit",)
TABLE: Final = (
    Said(EVERY, SUCCESS, "Success"),
    Said(ASKED, PENDING, "Matches or sub-operations are continuing"),
    Said(FIND, PENDING_UNSUPPORTED_KEYS, "Matches are continuing; an optional key is not supported and stays empty"),
    Said(ASKED, CANCELLED, "Ended by C-CANCEL"),
    Said(STORE, STORE_OUT_OF_RESOURCES, "Out of resources: no room, or the wanted copies cannot be made now"),
    Said(STORE, STORE_MISMATCH, "The data set does not match the command, or lacks a UID that files it"),
    Said(STORE, STORE_CANNOT_UNDERSTAND, "The bytes are no data set, or the catalog refuses it"),
    Said(FIND, FIND_OUT_OF_RESOURCES, "The limit of matches is reached and not all were sent, or too many queries run"),
    Said(ASKED, IDENTIFIER_MISMATCH, "The identifier lacks its level or unique key, or has a value that cannot be one"),
    Said(ASKED, UNABLE_TO_PROCESS, "The identifier cannot be read or served"),
    Said(ASKED, CATALOG_UNREACHABLE, "A catalog did not answer: what was sent is true but may not be all"),
    Said(RETRIEVE, MATCHES_NOT_COUNTED, "Out of resources: too many retrieves run"),
    Said(RETRIEVE, SUB_OPERATIONS_FAILED, "Every sub-operation failed"),
    Said(("move",), DESTINATION_UNKNOWN, "The move destination is not known"),
    Said(
        RETRIEVE, SOME_SUB_OPERATIONS_FAILED, "Some sub-operations failed; the Failed SOP Instance UID List names them"
    ),
    Said(EVERY, PROCESSING_FAILURE, "Internal error"),
    Said(COMMIT, SUCCESS, "The transaction is kept; its report follows as N-EVENT-REPORT"),
    Said(COMMIT, PROCESSING_FAILURE, "The transaction cannot be kept, or its UID is in use for other instances"),
    Said(COMMIT, NO_SUCH_INSTANCE, "Not the well-known instance of storage commitment"),
    Said(COMMIT, NO_SUCH_CLASS, "Not the Storage Commitment Push Model"),
    Said(COMMIT, NO_SUCH_ACTION, "An action type other than 1"),
    Said(COMMIT, INVALID_ARGUMENT, "The action information names no transaction, or no instances"),
    Said(COMMIT, RESOURCE_LIMITATION, "No room for another transaction now, or too many instances in one"),
    Said(ASKED + COMMIT, SOP_CLASS_NOT_SUPPORTED, "The operation does not belong to the presentation context"),
    Said(STORE + ASKED + COMMIT, NOT_AUTHORISED, "This AE may not do that"),
    Said(EVERY, UNRECOGNISED_OPERATION, "An operation that is not offered"),
)
# What peers say and we do not, PS3.7 annex C, PS3.4 B.2.3 and C.4; the last of a prefix counts for its whole class.
_OF_PEERS: Final = {
    0x0105: "no such attribute", 0x0106: "invalid attribute value", 0x0107: "attribute list error",
    0x0111: "the instance is there already", 0x0112: "no such instance", 0x0116: "attribute value out of range",
    0x0117: "invalid object instance", 0x0118: "no such SOP class", 0x0210: "duplicate message ID",
    0x0212: "mistyped argument", 0x0213: "resource limitation", 0xB000: "stored with coerced elements",
    0xB006: "stored without some elements", 0xB007: "stored, but the data set does not match its SOP class",
}  # fmt: skip
_OF_CLASSES: Final = {0xA7: "out of resources", 0xA9: "does not match the SOP class", 0xC: "cannot be processed"}


def meaning(code: int, service: str) -> str:
    """Say what a status means in a service ("store", "find", "move", "get", ...), ours or a peer's."""
    for row in TABLE:
        if row.code == code and service in row.services:
            return row.meaning
    return _OF_PEERS.get(code) or _OF_CLASSES.get(code >> 8) or _OF_CLASSES.get(code >> 12) or "not in the standard"


def kind_of(code: int) -> str:
    """Return the status class of PS3.7 annex C."""
    if code in (PENDING, PENDING_UNSUPPORTED_KEYS):
        return "Pending"
    if code == CANCELLED:
        return "Cancel"
    return "Success" if code == SUCCESS else "Warning" if is_warning(code) else "Failure"


def is_warning(status: int) -> bool:
    """Whether a C-STORE status means stored with a remark (PS3.7 C.3, PS3.4 B.2.3)."""
    return status >> 12 == 0xB or status in (0x0001, 0x0107, 0x0116)


def of_store_error(error: Exception) -> Answer:
    """Say what a failed C-STORE is answered with. Comments tell the rule, never a value."""
    if isinstance(error, BadDataSet):
        return Answer(error.status, error.reason)
    if isinstance(error, SpoolFull):
        return Answer(STORE_OUT_OF_RESOURCES, "no room for this instance")
    if isinstance(error, NotReplicated):
        return Answer(STORE_OUT_OF_RESOURCES, "kept here, but the wanted copies are not made yet")
    if isinstance(error, RejectedByCatalog):
        return Answer(STORE_CANNOT_UNDERSTAND, "the catalog refused to register the instance")
    if isinstance(error, SpoolError):
        return Answer(STORE_OUT_OF_RESOURCES, "the instance cannot be written now")
    return Answer(PROCESSING_FAILURE, "internal error")
