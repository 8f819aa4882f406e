"""Decide on presentation contexts and roles, PS3.8 9.3 and PS3.7 D.3. Pure.

Everything that is not a service we know and do not offer counts as storage: standard, retired and private SOP classes
alike, each with whatever transfer syntax its sender prefers, because nothing is decoded on the way in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from pydicom._uid_dict import UID_dictionary

VERIFICATION = "1.2.840.10008.1.1"
PATIENT_ROOT_FIND, STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_ROOT_MOVE, STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.2.2"
PATIENT_ROOT_GET, STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3", "1.2.840.10008.5.1.4.1.2.2.3"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"  # Push Model, PS3.4 annex J

IMPLICIT_LE, EXPLICIT_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED_LE, EXPLICIT_BE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
IDENTIFIER_SYNTAXES = frozenset((IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE))

ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0x03, 0x04

_UID = re.compile(r"[0-9.]{1,64}\Z")
# These have "Storage" in their name and are none: the commitment services and the DICOMDIR.
_NO_STORAGE = frozenset(("1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2"))


class Service(Enum):
    """What a presentation context is for."""

    ECHO = "echo"
    FIND = "find"
    MOVE = "move"
    GET = "get"
    STORE = "store"
    COMMIT = "commit"
    NONE = "none"


_SERVICES: Mapping[str, Service] = {
    VERIFICATION: Service.ECHO,
    PATIENT_ROOT_FIND: Service.FIND,
    STUDY_ROOT_FIND: Service.FIND,
    PATIENT_ROOT_MOVE: Service.MOVE,
    STUDY_ROOT_MOVE: Service.MOVE,
    PATIENT_ROOT_GET: Service.GET,
    STUDY_ROOT_GET: Service.GET,
    STORAGE_COMMITMENT: Service.COMMIT,
}


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context; accepted ones have exactly one transfer syntax."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]

    @property
    def transfer_syntax(self) -> str:
        """The accepted transfer syntax."""
        return self.transfer_syntaxes[0]


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """A user identity item, PS3.7 D.3.3.7. `secret` is a passcode, ticket, assertion or token: never log it."""

    kind: int  # 1 username, 2 username and passcode, 3 Kerberos, 4 SAML, 5 JSON web token
    name: str  # of kinds 1 and 2, printable
    secret: bytes = field(repr=False)
    answer_wanted: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What an A-ASSOCIATE-RQ and the connection that it came on say. AE titles are stripped of spaces."""

    calling: str
    called: str
    address: str
    application_context: str
    contexts: tuple[Context, ...]
    roles: Mapping[str, tuple[bool, bool]]
    extended: Mapping[str, bytes] = field(default_factory=dict)
    user: UserIdentity | None = None
    certificate: str = ""  # subject DN of the verified client certificate
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Extensions:
    """Options of a query or retrieve SOP class, PS3.4 C.5.1.1 (FIND: all four), C.5.2.1 and C.5.3.1 (the first)."""

    relational: bool = False
    date_time: bool = False
    fuzzy: bool = False
    timezone: bool = False

    def flags(self) -> tuple[bool, ...]:
        """The options in the order of their bytes."""
        return self.relational, self.date_time, self.fuzzy, self.timezone


SUPPORTED: Mapping[Service, Extensions] = {
    Service.FIND: Extensions(relational=True, date_time=True),
    Service.MOVE: Extensions(relational=True),
    Service.GET: Extensions(relational=True),
}
"""What the code really does; an option that is not named here is answered 0."""

_BYTES_OF = {Service.FIND: 4, Service.MOVE: 1, Service.GET: 1}
# Storage, PS3.4 B.3.1: level 2 (full), signature level 3 (bit-preserving), no element is coerced.
_STORAGE_ANSWER = bytes((2, 0, 3, 0, 0))


@dataclass(frozen=True, slots=True)
class Rejection:
    """Result, source and diagnostic of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

    result: int
    source: int
    diagnostic: int


APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
APPLICATION_CONTEXT_NOT_SUPPORTED = Rejection(1, 1, 2)
CALLING_AE_NOT_RECOGNISED = Rejection(1, 1, 3)
CALLED_AE_NOT_RECOGNISED = Rejection(1, 1, 7)
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2)
USER_NOT_ACCEPTED = Rejection(1, 1, 1)  # PS3.7 D.3.3.7: permanent; the table has no reason of its own for it
_REASONS: Mapping[Rejection, str] = {
    APPLICATION_CONTEXT_NOT_SUPPORTED: "application context not supported",
    CALLING_AE_NOT_RECOGNISED: "calling AE title not recognised; dgis ae add registers it",
    CALLED_AE_NOT_RECOGNISED: "called AE title not recognised; it is not one of ours",
    LOCAL_LIMIT_EXCEEDED: "local limit of associations exceeded",
    USER_NOT_ACCEPTED: "user identity not accepted",
}


def explain(rejection: Rejection) -> str:
    """Say in words why an association was rejected."""
    return _REASONS.get(rejection, f"reason {rejection.diagnostic}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered: accepted contexts, (context, reason) of the others, role per SOP class that proposed one.

    `extended` is the service-class-application-information per SOP class that asked, `identity` the server response
    to a user identity that asked for one (None: no item).
    """

    accepted: tuple[Context, ...]
    rejected: tuple[tuple[Context, int], ...]
    roles: Mapping[str, tuple[bool, bool]]
    extended: Mapping[str, bytes] = field(default_factory=dict)
    identity: bytes | None = None


def service_of(abstract_syntax: str) -> Service:
    """Say what an abstract syntax is for; NONE for services that exist and are not offered."""
    service = _SERVICES.get(abstract_syntax)
    if service is not None:
        return service
    known = UID_dictionary.get(abstract_syntax)
    if known is None:
        return Service.STORE if _UID.match(abstract_syntax) else Service.NONE
    name, kind = known[0], known[1]
    if kind == "SOP Class" and "Storage" in name and abstract_syntax not in _NO_STORAGE:
        return Service.STORE
    return Service.NONE


def negotiate(proposed: tuple[Context, ...], roles: Mapping[str, tuple[bool, bool]]) -> Verdict:
    """Answer every context; of the syntaxes that can be served the requestor's first is taken.

    A context in which a C-GET requestor receives is answered so that everything stored can be sent, see `_receiving`.
    """
    accepted: list[Context] = []
    rejected: list[tuple[Context, int]] = []
    gets = any(service_of(context.abstract_syntax) is Service.GET for context in proposed)
    for context in proposed:
        service = service_of(context.abstract_syntax)
        served = [s for s in context.transfer_syntaxes if _served(service, s)]
        if gets and service is Service.STORE and roles.get(context.abstract_syntax, (True, False))[1]:
            served = _receiving(context.abstract_syntax, served, accepted)
        syntax = next(iter(served), None)
        if service is Service.NONE:
            rejected.append((context, ABSTRACT_SYNTAX_NOT_SUPPORTED))
        elif syntax is None:
            rejected.append((context, TRANSFER_SYNTAXES_NOT_SUPPORTED))
        else:
            accepted.append(Context(context.id, context.abstract_syntax, (syntax,)))
    return Verdict(tuple(accepted), tuple(rejected), _answer_roles(roles))


def _receiving(abstract_syntax: str, offered: list[str], accepted: Iterable[Context]) -> list[str]:
    """Order the syntaxes of a context in which we send: what can be sent is known only later.

    Anything decodable fits an uncompressed syntax, so the first of several is one of these; of a further context
    of the same SOP class, or where there is none, the requestor's first that it does not have yet. A single compressed
    syntax before uncompressed ones is a wish for that one ("prefer JPEG 2000" in DCMTK), and is followed: the originals
    in it come byte for byte, instances stored uncompressed then fail as sub-operations, because nothing is compressed.
    """
    have = {c.transfer_syntax for c in accepted if c.abstract_syntax == abstract_syntax}
    plain = [s for s in offered if s in IDENTIFIER_SYNTAXES]
    new = [s for s in offered if s not in have]
    wished = [s for s in offered if s not in IDENTIFIER_SYNTAXES]
    if len(wished) == 1 and offered[0] == wished[0]:
        return offered
    return (plain if plain and not have & IDENTIFIER_SYNTAXES else new) or offered


def _served(service: Service, syntax: str) -> bool:
    return bool(_UID.match(syntax)) if service is Service.STORE else syntax in IDENTIFIER_SYNTAXES


def _answer_roles(roles: Mapping[str, tuple[bool, bool]]) -> dict[str, tuple[bool, bool]]:
    """Grant storage and storage commitment whatever roles were proposed, all else the SCU role (PS3.7 D.3.3.4).

    An old sender proposes SCU=1, SCP=0 for storage and must get it; a C-GET requestor proposes SCP=1, and so does an
    SCP of storage commitment that reports to us on an association of its own (PS3.4 J.3.3). Where nothing would be
    left no item is returned, and the default roles hold.
    """
    both = (Service.STORE, Service.COMMIT)
    answers = {uid: (scu, scp if service_of(uid) in both else False) for uid, (scu, scp) in roles.items()}
    return {uid: granted for uid, granted in answers.items() if any(granted)}


def answer_extended(proposed: Mapping[str, bytes]) -> dict[str, bytes]:
    """Answer SOP class extended negotiation (PS3.7 D.3.3.5): of the options asked for those that are `SUPPORTED`.

    SOP classes whose extended negotiation is not understood get no item, which means none of it.
    """
    answers = {uid: _extended(service_of(uid), asked) for uid, asked in proposed.items()}
    return {uid: answer for uid, answer in answers.items() if answer}


def _extended(service: Service, asked: bytes) -> bytes:
    if service is Service.STORE:
        return _STORAGE_ANSWER
    count = min(len(asked), _BYTES_OF.get(service, 0))
    granted = SUPPORTED.get(service, Extensions()).flags()
    return bytes(want == 1 and have for want, have in zip(asked[:count], granted, strict=False))


def granted_extensions(answers: Mapping[str, bytes], sop_class: str) -> Extensions:
    """Return what was agreed on for a SOP class."""
    return Extensions(*(byte == 1 for byte in answers.get(sop_class, b"")[:4]))


def answer_identity(user: UserIdentity | None) -> bytes | None:
    """Return the server response to a user identity, None for no item (PS3.7 D.3.3.7.2).

    A username gets the empty one. A Kerberos, SAML or JWT identity would need a ticket, an assertion or a token of
    ours: it is let in without a response, which says that the acceptor has not verified it.
    """
    return b"" if user is not None and user.answer_wanted and user.kind in (1, 2) else None
