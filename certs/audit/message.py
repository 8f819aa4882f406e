"""Audit messages as XML (PS3.15 section A.5.1), written and read again. Pure."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lxml import etree

from certs.audit.event import CODES, OK, Code, Event, Kind, Outcome

_STUDY: Final = Code("110180", "Study Instance UID")
_APPLICATION: Final = Code("110150", "Application")
_KINDS: Final[dict[tuple[str, str, str], Kind]] = {
    (codes.event.value, codes.action, codes.type.value if codes.type else ""): kind for kind, codes in CODES.items()
}
_OUTCOMES: Final[dict[str, Outcome]] = {"0": OK, "4": 4, "8": 8, "12": 12}
# XML 1.0 has no way to write these
_UNPRINTABLE = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Source:
    """Who records: the service's name and its site."""

    name: str
    site: str


def write(event: Event, source: Source) -> bytes:
    """Write the message of an event, in UTF-8 on one line."""
    codes = CODES[event.kind]
    root = etree.Element("AuditMessage")
    head = etree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=codes.action,
        EventDateTime=event.at.isoformat(timespec="microseconds"),
        EventOutcomeIndicator=str(event.outcome),
    )
    _coded(head, "EventID", codes.event)
    if codes.type is not None:
        _coded(head, "EventTypeCode", codes.type)
    if event.detail:
        etree.SubElement(head, "EventOutcomeDescription").text = _clean(event.detail)
    _participant(root, event.actor, requestor=True)
    if event.peer and event.peer != event.actor:
        _participant(root, event.peer, requestor=False)
    etree.SubElement(
        root, "AuditSourceIdentification", AuditSourceID=_clean(source.name), AuditEnterpriseSiteID=_clean(source.site)
    )
    for uid in event.studies:
        _study(root, uid)
    if event.count is not None:
        # What is counted is instances of these studies, or rows of an answer
        _detail(root, "count", str(event.count))
    return etree.tostring(root, encoding="UTF-8", xml_declaration=False)


def read(message: bytes) -> tuple[Event, Source]:
    """Read a message that `write` wrote. Raises ValueError for anything else."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        root = etree.fromstring(message, parser)
        head, source = root.find("EventIdentification"), root.find("AuditSourceIdentification")
        if head is None or source is None:
            raise ValueError("no audit message")
        people = root.findall("ActiveParticipant")
        event = Event(
            kind=_KINDS[_code(head, "EventID"), _attribute(head, "EventActionCode"), _code(head, "EventTypeCode")],
            at=datetime.fromisoformat(_attribute(head, "EventDateTime")),
            actor=_attribute(people[0], "UserID"),
            peer=_attribute(people[1], "UserID") if len(people) > 1 else "",
            outcome=_OUTCOMES[_attribute(head, "EventOutcomeIndicator")],
            studies=tuple(
                _attribute(each, "ParticipantObjectID")
                for each in root.findall("ParticipantObjectIdentification")
                if _code(each, "ParticipantObjectIDTypeCode") == _STUDY.value
            ),
            count=_count(root),
            detail=head.findtext("EventOutcomeDescription", default=""),
        )
        return event, Source(_attribute(source, "AuditSourceID"), _attribute(source, "AuditEnterpriseSiteID"))
    except (etree.XMLSyntaxError, KeyError, IndexError) as error:
        raise ValueError("no audit message of ours") from error


def _coded(parent: etree._Element, tag: str, code: Code) -> None:
    etree.SubElement(
        parent, tag, {"csd-code": code.value, "codeSystemName": "DCM", "originalText": code.meaning}
    )


def _participant(root: etree._Element, user: str, *, requestor: bool) -> None:
    element = etree.SubElement(
        root, "ActiveParticipant", UserID=_clean(user), UserIsRequestor="true" if requestor else "false"
    )
    _coded(element, "RoleIDCode", _APPLICATION)


def _study(root: etree._Element, uid: str) -> None:
    element = etree.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(uid),
        ParticipantObjectTypeCode="2",  # system object
        ParticipantObjectTypeCodeRole="3",  # report
    )
    _coded(element, "ParticipantObjectIDTypeCode", _STUDY)


def _detail(root: etree._Element, name: str, value: str) -> None:
    element = etree.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=name,
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="26",  # processing element
    )
    _coded(element, "ParticipantObjectIDTypeCode", Code("110182", "Node ID"))
    etree.SubElement(element, "ParticipantObjectDetail", type=name, value=base64.b64encode(value.encode()).decode())


def _count(root: etree._Element) -> int | None:
    found = root.find("ParticipantObjectIdentification/ParticipantObjectDetail[@type='count']")
    return None if found is None else int(base64.b64decode(_attribute(found, "value")))


def _code(parent: etree._Element, tag: str) -> str:
    found = parent.find(tag)
    return "" if found is None else _attribute(found, "csd-code")


def _attribute(element: etree._Element, name: str) -> str:
    return str(element.attrib[name])


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)
