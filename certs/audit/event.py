"""What is recorded: a few kinds of events with the codes of DICOM (PS3.16 CID 400, 401 and 403). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

Kind = Literal[
    "query", "access", "store", "permit", "delete", "policy", "security", "emergency", "refused", "start", "lost"
]
Outcome = Literal[0, 4, 8, 12]  # success, minor, serious, major failure (PS3.15 A.5.1)
OK: Final[Outcome] = 0
REFUSED: Final[Outcome] = 8


@dataclass(frozen=True, slots=True)
class Code:
    """A code of DICOM's own scheme (DCM)."""

    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Codes:
    """How a kind is said: EventID, EventActionCode (C, R, U, D, E), EventTypeCode."""

    event: Code
    action: Literal["C", "R", "U", "D", "E"]
    type: Code | None = None


_ALERT = Code("110113", "Security Alert")
CODES: Final[Mapping[Kind, Codes]] = {
    "query": Codes(Code("110112", "Query"), "E"),
    "access": Codes(Code("110103", "DICOM Instances Accessed"), "R"),
    "store": Codes(Code("110104", "DICOM Instances Transferred"), "C"),
    "permit": Codes(Code("110102", "Begin Transferring DICOM Instances"), "E"),
    "delete": Codes(Code("110103", "DICOM Instances Accessed"), "D"),
    "policy": Codes(_ALERT, "E", Code("110129", "Security Configuration")),
    "security": Codes(_ALERT, "E", Code("110135", "Object Security Attributes Changed")),
    "emergency": Codes(_ALERT, "E", Code("110127", "Emergency Override Started")),
    "refused": Codes(_ALERT, "E", Code("110132", "Use of Restricted Function")),
    "start": Codes(Code("110100", "Application Activity"), "E", Code("110120", "Application Start")),
    "lost": Codes(_ALERT, "E", Code("110133", "Audit Recording Stopped")),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``actor`` is on whose behalf (a DN or ``ae:TITLE@SITE``), ``peer`` the DN that called when it is another one.
    ``studies`` are Study Instance UIDs, ``count`` how many instances or rows. ``detail`` says what the codes cannot,
    without patient data.
    """

    kind: Kind
    at: datetime
    actor: str
    peer: str = ""
    outcome: Outcome = OK
    studies: tuple[str, ...] = ()
    count: int | None = None
    detail: str = ""
