"""The DIMSE status table of this edge: which outcome is said by which code, PS3.7 annex C and PS3.4."""

from __future__ import annotations

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
