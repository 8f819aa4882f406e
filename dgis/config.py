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
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
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
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class DgisConfig(Table):
    """`[dgis]`: who this node is and how it keeps what it receives.

    `copies` verified replicas are made of every object; `accept` says whether Success means safe in the spool or on
    that many storage elements (then at most `accept_timeout` seconds later). `workers` is the number of receivers.
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

    @property
    def default_issuer(self) -> str:
        """The issuer of patient IDs whose sender names none: the site, unless `issuer` says otherwise."""
        return self.issuer or self.site


class DimseConfig(Table):
    """`[dimse]`: the local side. `also_called` lists further AE titles that this node answers to."""

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    accept_any_called: bool = False
    also_called: tuple[AeTitle, ...] = ()
    find_limit: int | None = Field(default=None, ge=1)
    names: Literal["insensitive", "exact"] = "insensitive"


class CatalogConfig(Table):
    """`[catalog]`: where the metacatalog answers."""

    url: str = Field(pattern=r"^https://[^/\s]+(/\S*)?$")


class UnknownAeConfig(Table):
    """`[unknown_ae]`: what an AE may do that is not in the AE table, and from where (nowhere named: from anywhere)."""

    rights: tuple[Right, ...] = ("echo",)
    networks: tuple[Network, ...] = ()


class NodeConfig(Table):
    """The whole of node.toml."""

    dgis: DgisConfig
    dimse: DimseConfig = DimseConfig()
    https: ListenConfig = ListenConfig()
    identity: IdentityConfig
    catalog: CatalogConfig
    unknown_ae: UnknownAeConfig = UnknownAeConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _distinct_ports(self) -> NodeConfig:
        if self.dimse.port and (self.dimse.host, self.dimse.port) == (self.https.host, self.https.port):
            raise ValueError("[dimse] and [https] must listen on different ports")
        return self


def load_node(path: Path) -> NodeConfig:
    """Read node.toml; relative paths count from its directory. Raises certs.errors.ConfigError."""
    return load_toml(path, NodeConfig)
