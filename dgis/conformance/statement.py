"""Put the facts together with a node's configuration: everything a Conformance Statement says, as rows. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from catalog.charset import defined_terms
from catalog.keys import LEVELS, Level
from dgis.config import NodeConfig
from dgis.conformance import facts
from dgis.conformance.facts import Named
from dgis.conformance.queries import Attribute, attributes
from dgis.dimse.ae import AeEntry
from dgis.dimse.ask import MODELS
from dgis.dimse.negotiation import APPLICATION_CONTEXT, STORAGE_COMMITMENT, VERIFICATION, Service
from dgis.dimse.services import DimseSettings
from dgis.dimse.status import TABLE, kind_of
from dgis.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dgis.transcode.plan import DECODABLE, LOSSY, NATIVE

_OTHER_TABLES = frozenset(("https", "identity", "catalog", "log", "user"))  # of node.toml, not about DICOM
_SERVICES = {
    Service.ECHO: "Verification",
    Service.STORE: "Storage",
    Service.FIND: "Query (C-FIND)",
    Service.MOVE: "Retrieve (C-MOVE)",
    Service.GET: "Retrieve (C-GET)",
    Service.COMMIT: "Storage Commitment",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """One row of the overview: a service or SOP class with our roles in it."""

    service: str
    name: str
    uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One status of one service."""

    code: str
    kind: str
    meaning: str


@dataclass(frozen=True, slots=True)
class OutSyntax:
    """A transfer syntax of stored instances, and what a receiver gets that does not accept it."""

    named: Named
    otherwise: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting: its value in this configuration and its default."""

    key: str
    value: str
    default: str


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """One table of node.toml."""

    name: str
    purpose: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """All that the statement says beside its fixed texts."""

    version: str
    node: NodeConfig
    settings: DimseSettings
    remotes: tuple[AeEntry, ...]
    implementation_class: str
    implementation_version: str
    application_context: str
    offers: tuple[Offer, ...]
    storage: tuple[Named, ...]
    identifier_syntaxes: tuple[Named, ...]
    storage_syntaxes: tuple[OutSyntax, ...]
    native: tuple[Named, ...]
    roles: Mapping[str, Mapping[str, str]]
    extended: Mapping[str, tuple[tuple[str, bool], ...]]
    storage_level: bytes
    statuses: Mapping[str, tuple[StatusRow, ...]]
    attributes: Mapping[Level, tuple[Attribute, ...]]
    charsets: tuple[str, ...]
    parameters: tuple[ParameterTable, ...]


def build(node: NodeConfig, settings: DimseSettings, remotes: tuple[AeEntry, ...], *, version: str) -> Statement:
    """Say what a node with this configuration and these remote AEs conforms to."""
    classes = facts.sop_classes()
    storage = classes[Service.STORE]
    return Statement(
        version=version,
        node=node,
        settings=settings,
        remotes=remotes,
        implementation_class=IMPLEMENTATION_CLASS_UID,
        implementation_version=IMPLEMENTATION_VERSION_NAME,
        application_context=APPLICATION_CONTEXT,
        offers=tuple(_offers()),
        storage=storage,
        identifier_syntaxes=facts.accepted_syntaxes(VERIFICATION),
        storage_syntaxes=tuple(
            _out(one, converting=node.transcoding.enabled) for one in facts.accepted_syntaxes(storage[0].uid)
        ),
        native=tuple(Named(uid, facts.name_of(uid)) for uid in NATIVE),
        roles={title: facts.roles(classes[service][0].uid) for service, title in _SERVICES.items()},
        extended={title: facts.extended(classes[s][0].uid) for s, title in _SERVICES.items() if s in _QUERYING},
        storage_level=facts.storage_level(storage[0].uid),
        statuses={title: tuple(_statuses(service.value)) for service, title in _SERVICES.items()},
        attributes={level: attributes(level) for level in LEVELS},
        charsets=defined_terms(),
        parameters=tuple(_parameters(node)),
    )


_QUERYING = (Service.FIND, Service.MOVE, Service.GET)


def _offers() -> Iterator[Offer]:
    """Every SOP class with a line of its own; the storage SOP classes are listed elsewhere."""
    as_scu = {VERIFICATION, STORAGE_COMMITMENT, *MODELS.values()}
    for service, title in _SERVICES.items():
        if service is Service.STORE:
            continue
        for one in facts.sop_classes()[service]:
            yield Offer(title, one.name.removesuffix(" SOP Class"), one.uid, scu=one.uid in as_scu, scp=True)


def _out(syntax: Named, *, converting: bool) -> OutSyntax:
    if converting and syntax.uid in NATIVE:
        return OutSyntax(syntax, "another uncompressed encoding")
    if converting and syntax.uid in DECODABLE:
        return OutSyntax(syntax, "decompressed" + (" (the image stays marked as lossy)" if syntax.uid in LOSSY else ""))
    return OutSyntax(syntax, "not sent: the sub-operation fails")


def _statuses(service: str) -> Iterator[StatusRow]:
    for row in sorted((row for row in TABLE if service in row.services), key=lambda row: row.code):
        yield StatusRow(f"{row.code:04X}", kind_of(row.code), row.meaning)


def _parameters(node: NodeConfig) -> Iterator[ParameterTable]:
    for name in type(node).model_fields:
        table = getattr(node, name)
        if isinstance(table, BaseModel) and name not in _OTHER_TABLES:
            purpose = " ".join((type(table).__doc__ or "").split()).replace("``", "`")
            yield ParameterTable(name, purpose, tuple(_settings(table)))


def _settings(table: BaseModel) -> Iterator[Parameter]:
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        shown = "a path" if isinstance(value, Path) else _shown(value)
        yield Parameter(key, shown, "required" if field.default is PydanticUndefined else _shown(field.default))


def _shown(value: object) -> str:
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
