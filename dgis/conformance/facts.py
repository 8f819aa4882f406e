"""What negotiation answers, found by asking it: SOP classes, transfer syntaxes, roles, extended negotiation. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydicom._uid_dict import UID_dictionary

from dgis.dimse.negotiation import Context, Service, answer_extended, negotiate, service_of

PROPOSED_ROLES = {"SCU": (True, False), "SCP": (False, True), "SCU and SCP": (True, True)}
_OPTIONS = ("relational queries or retrievals", "combined date-time matching", "fuzzy matching", "time zone adjustment")


@dataclass(frozen=True, slots=True)
class Named:
    """A UID with its name in PS3.6."""

    uid: str
    name: str
    retired: bool = False


@lru_cache(maxsize=1)
def sop_classes() -> Mapping[Service, tuple[Named, ...]]:
    """Return every SOP class of PS3.6 that is accepted, by service."""
    found: dict[Service, list[Named]] = {}
    for uid, (name, kind, _, retired, _) in UID_dictionary.items():
        service = service_of(uid)
        if kind in ("SOP Class", "Meta SOP Class") and service is not Service.NONE:
            found.setdefault(service, []).append(Named(uid, name, bool(retired)))
    return {service: tuple(sorted(group, key=lambda one: one.name)) for service, group in found.items()}


@lru_cache(maxsize=1)
def known_syntaxes() -> tuple[Named, ...]:
    """Return every transfer syntax of PS3.6."""
    return tuple(
        Named(uid, name, bool(retired))
        for uid, (name, kind, _, retired, _) in UID_dictionary.items()
        if kind == "Transfer Syntax"
    )


def accepted_syntaxes(sop_class: str) -> tuple[Named, ...]:
    """Return those of `known_syntaxes` in which a context for this SOP class is accepted."""
    contexts = tuple(Context(number, sop_class, (one.uid,)) for number, one in enumerate(known_syntaxes()))
    accepted = {context.id for context in negotiate(contexts, {}).accepted}
    return tuple(one for number, one in enumerate(known_syntaxes()) if number in accepted)


def accepts(sop_class: str, syntax: str) -> bool:
    """Whether a context is accepted, of SOP classes and syntaxes that no table lists, too."""
    return bool(negotiate((Context(1, sop_class, (syntax,)),), {}).accepted)


def roles(sop_class: str) -> Mapping[str, str]:
    """Return what is answered to each role that a requestor may propose (PS3.7 D.3.3.4)."""
    answers = {}
    for said, proposed in PROPOSED_ROLES.items():
        scu, scp = negotiate((), {sop_class: proposed}).roles.get(sop_class, (False, False))
        granted = " and ".join(role for role, has in (("SCU", scu), ("SCP", scp)) if has)
        answers[said] = granted or "no answer: default roles"
    return answers


def extended(sop_class: str) -> tuple[tuple[str, bool], ...]:
    """Return (option, whether it is granted) of a query or retrieve SOP class (PS3.4 C.5)."""
    answer = answer_extended({sop_class: b"\x01" * len(_OPTIONS)}).get(sop_class, b"")
    return tuple((option, byte == 1) for option, byte in zip(_OPTIONS, answer, strict=False))


def storage_level(sop_class: str) -> bytes:
    """Return the service-class-application-information of a storage SOP class (PS3.4 B.3.1)."""
    return answer_extended({sop_class: bytes(5)}).get(sop_class, b"")


def name_of(uid: str) -> str:
    """Return the name of a UID in PS3.6, or the UID."""
    entry = UID_dictionary.get(uid)
    return entry[0] if entry is not None else uid
