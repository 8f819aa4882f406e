"""node.toml: everything a DGIS process needs to know before it starts. Read-only; `ae.toml` beside it is rewritten by
`dgis ae` and belongs to `dgis.dimse.ae`.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from certs.config import ConfigPath, IdentityConfig, ListenConfig, LogConfig, Table, load_toml

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*")
Right = Literal["echo", "store", "find", "move", "get", "commit"]


def _bytes(value: object) -> object:
    """Turn "20 GB" or 20000000000 into bytes; anything else is left for pydantic to refuse."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, str):
            raise ValueError('write a size like "20 GB" or "512 MiB"')
        return value
    unit = _UNITS.get(match[2].upper())
    if unit is None:
        raise ValueError('write a size like "20 GB" or "512 MiB"')
    return int(float(match[1]) * unit)


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError(f'write an address or a network, like "192.168.1.0/24", not {value!r}') from None


def _ae_title(value: str) -> str:
    stripped = value.strip()
    if not 1 <= len(stripped) <= 16 or "\\" in stripped or not stripped.isascii() or not stripped.isprintable():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash (PS3.5 6.2)")
    return stripped


Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class DgisConfig(Table):
    """`[dgis]`: who this node is and how it keeps what it receives.

    `copies` verified replicas are made of every object; `accept` says whether Success means safe in the spool or on
    that many storage elements (then at most `accept_timeout` seconds later). `workers` is the number of receivers,
    `transfers` how many batches of copies run at once (silent ones do not count).
    Storage commitment: what has not `copies` after `commit_timeout` seconds is reported failed, an instance that nobody
    knows after `commit_grace`; `commit_report` says on which association, tried again for `commit_retry` seconds.
    """

    aet: AeTitle
    site: Name
    name: Name = "dgis"
    spool: ConfigPath
    ae_table: ConfigPath | None = None
    copies: int = Field(default=2, ge=1, le=16)
    accept: Literal["spooled", "replicated"] = "spooled"
    accept_timeout: float = Field(default=30.0, gt=0, le=600)
    workers: int = Field(default=2, ge=1, le=64)
    transfers: int = Field(default=4, ge=1, le=64)
    issuer: str = Field(default="", max_length=64)
    spool_limit: Size | None = None
    spool_reserve: Size = 256 * 10**6
    settle: float = Field(default=2.0, ge=0, le=60)
    commit_timeout: float = Field(default=3600.0, gt=0, le=30 * 86400)
    commit_grace: float = Field(default=10.0, ge=0, le=3600)
    commit_report: Literal["new", "same", "same_then_new"] = "new"
    commit_retry: float = Field(default=86400.0, gt=0, le=30 * 86400)

    @property
    def default_issuer(self) -> str:
        """The issuer of patient IDs whose sender names none: the site, unless `issuer` says otherwise."""
        return self.issuer or self.site


class PolicyConfig(Table):
    """`[policy]`: with `required`, AEs may do nothing before this node knows the VO's policy."""

    required: bool = False


class DimseConfig(Table):
    """`[dimse]`: the local side. `also_called` lists further AE titles that this node answers to.

    AE titles are compared without the spaces around them, and without case with `ignore_title_case`. `user_identity`:
    "accept" takes a user identity (PS3.7 D.3.3.7) as a claim, "check" wants a passcode that is sent to be right,
    "require" wants username and passcode of every association; `[[user]]` names them.

    A C-FIND: `names` "insensitive" finds person names whatever their case and accents, "exact" only as written (PS3.4
    C.2.2.2.1 leaves both open). `hierarchy` "strict" refuses a query that lacks a unique key of an upper level and did
    not negotiate relational queries; "lenient" answers it. `find_limit` answers at most, A700 says when there are more.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    accept_any_called: bool = False
    also_called: tuple[AeTitle, ...] = ()
    ignore_title_case: bool = False
    user_identity: Literal["accept", "check", "require"] = "accept"
    max_pdu: int = Field(default=131072, ge=4096, le=131072)
    find_limit: int | None = Field(default=None, ge=1)
    names: Literal["insensitive", "exact"] = "insensitive"
    hierarchy: Literal["lenient", "strict"] = "lenient"


class DimseTlsConfig(Table):
    """`[dimse_tls]`: a DICOM TLS listener beside the plain one (PS3.15 B.12), there when the table is.

    It shows `cert` with `key` and believes in `trust`, or the node's identity where they are not given. Without a
    client certificate there is no association unless `client_certificate` is "optional".
    """

    host: str = "127.0.0.1"
    port: int = Field(default=2762, ge=0, le=65535)
    cert: ConfigPath | None = None
    key: ConfigPath | None = None
    trust: ConfigPath | None = None
    client_certificate: Literal["required", "optional"] = "required"

    @model_validator(mode="after")
    def _a_pair(self) -> DimseTlsConfig:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both, or neither")
        return self

    def identity(self, node: IdentityConfig) -> IdentityConfig:
        """What the listener shows and trusts."""
        return IdentityConfig(cert=self.cert or node.cert, key=self.key or node.key, trust=self.trust or node.trust)


class DimseLimitsConfig(Table):
    """`[dimse_limits]`: how many peers each receiver serves, and how many seconds each way of waiting may last.

    `waiting` connections may be open on each port before their A-ASSOCIATE-RQ, which must come within `artim` seconds,
    after a TLS handshake of at most `handshake`. `acse` is for negotiation and release, `dimse` for a response, `send`
    for a peer that takes no data, `stall` within a message, `network` between messages, `close` after the last PDU,
    `connect` for our own associations. `retrieves` run at once.
    """

    associations: int = Field(default=200, ge=1, le=10000)
    per_ae: int = Field(default=100, ge=1, le=10000)
    waiting: int = Field(default=256, ge=1, le=10000)
    artim: float = Field(default=10.0, gt=0, le=600)
    retrieves: int = Field(default=64, ge=1, le=1000)
    handshake: float = Field(default=10.0, gt=0, le=600)
    connect: float = Field(default=10.0, gt=0, le=600)
    acse: float = Field(default=20.0, gt=0, le=600)
    dimse: float = Field(default=60.0, gt=0, le=3600)
    send: float = Field(default=60.0, gt=0, le=3600)
    stall: float = Field(default=60.0, gt=0, le=3600)
    network: float = Field(default=900.0, gt=0, le=86400)
    close: float = Field(default=3.0, gt=0, le=60)


_PASSCODE = r"^scrypt\$\d{1,8}\$\d{1,3}\$\d{1,3}\$[A-Za-z0-9+/=]{16,128}\$[A-Za-z0-9+/=]{16,128}$"


class UserConfig(Table):
    """`[[user]]`: a user that associates with a passcode; `dgis ae passcode` writes the hash."""

    name: str = Field(min_length=1, max_length=64)
    passcode: str = Field(pattern=_PASSCODE)


class CatalogConfig(Table):
    """`[catalog]`: where the metacatalog answers."""

    url: str = Field(pattern=r"^https://[^/\s]+(/\S*)?$")


class UnknownAeConfig(Table):
    """`[unknown_ae]`: what an AE may do that is not in the AE table, and from where (nowhere named: from anywhere)."""

    rights: tuple[Right, ...] = ("echo",)
    networks: tuple[Network, ...] = ()


class TranscodingConfig(Table):
    """`[transcoding]`: converting instances for receivers that do not take their transfer syntax.

    `workers` processes a receiver, each with `memory` of address space; a frame may have `frame` bytes decoded and take
    `stall` seconds, a whole instance `total` seconds. With `enabled = false` everything goes out as it is stored.
    """

    enabled: bool = True
    workers: int = Field(default=2, ge=1, le=32)
    memory: Size = 2 * 2**30
    frame: Size = 256 * 2**20
    stall: float = Field(default=30.0, gt=0, le=600)
    total: float = Field(default=1800.0, gt=0, le=86400)


class TransferConfig(Table):
    """`[transfer]`: how this node's GridFTP data channels are made.

    With `active` a foreign server may connect to this node for downloads (at `ports`, of the address `advertise`),
    which lets it send many images over one connection; without, nothing connects inward and such a server sends each
    image over a connection of its own. Own providers need neither. `sessions` control connections a door at most.
    """

    active: bool = False
    ports: tuple[Port, Port] | None = None
    advertise: str | None = Field(default=None, min_length=1, max_length=255)
    sessions: int = Field(default=4, ge=1, le=64)

    @model_validator(mode="after")
    def _a_range(self) -> TransferConfig:
        if self.ports is not None and self.ports[0] > self.ports[1]:
            raise ValueError("ports are the lowest and the highest, like ports = [50000, 50199]")
        return self


class LearnedDestinationsConfig(Table):
    """`[learned_destinations]`: C-MOVE to AEs that are not in the AE table, at the address that they called from.

    Only to `ports`, in this order, and never to an address outside `networks`. With `require_existing_rights` an AE is
    sent to only when it may itself move or get, by the AE table or `[unknown_ae]`; without, when it may do anything.
    """

    enabled: bool = False
    networks: tuple[Network, ...] = ()
    ports: tuple[Port, ...] = Field(default=(11112,), max_length=8)
    require_existing_rights: bool = True

    @model_validator(mode="after")
    def _somewhere(self) -> LearnedDestinationsConfig:
        if self.enabled and not (self.networks and self.ports):
            raise ValueError("name the approved networks and ports, like networks = [\"192.168.1.0/24\"]")
        return self


class NodeConfig(Table):
    """The whole of node.toml."""

    dgis: DgisConfig
    dimse: DimseConfig = DimseConfig()
    dimse_tls: DimseTlsConfig | None = None
    dimse_limits: DimseLimitsConfig = DimseLimitsConfig()
    user: tuple[UserConfig, ...] = ()
    https: ListenConfig = ListenConfig()
    identity: IdentityConfig
    catalog: CatalogConfig
    policy: PolicyConfig = PolicyConfig()
    unknown_ae: UnknownAeConfig = UnknownAeConfig()
    learned_destinations: LearnedDestinationsConfig = LearnedDestinationsConfig()
    transcoding: TranscodingConfig = TranscodingConfig()
    transfer: TransferConfig = TransferConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _distinct_ports(self) -> NodeConfig:
        tables: list[tuple[str, DimseConfig | ListenConfig | DimseTlsConfig]]
        tables = [("dimse", self.dimse), ("https", self.https)]
        if self.dimse_tls is not None:
            tables.append(("dimse_tls", self.dimse_tls))
        taken: dict[tuple[str, int], str] = {}
        for name, table in tables:
            other = taken.setdefault((table.host, table.port), name)
            if table.port and other != name:
                raise ValueError(f"[{other}] and [{name}] must listen on different ports")
        return self


def load_node(path: Path) -> NodeConfig:
    """Read node.toml; relative paths count from its directory. Raises certs.errors.ConfigError."""
    return load_toml(path, NodeConfig)
