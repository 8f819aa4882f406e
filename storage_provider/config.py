"""The settings of a storage element: one TOML file, unknown keys refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from certs.config import ConfigPath, IdentityConfig, ListenConfig, LogConfig, Table
from certs.peer import ROLES

_BYTES = re.compile(r"(\d{1,15})\s*([kMGTP]?)(i?)B")
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_bytes(text: object) -> object:
    """Read `500GB`, `64MiB` or a plain number of bytes."""
    if not isinstance(text, str):
        return text
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError('write a number of bytes, or "500GB", "64MiB"')
    return int(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]]


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
VerbName = Literal["read", "write", "delete", "list"]


class StorageTable(Table):
    """`[storage]`: the SE's name in the catalog, and the directory of its areas."""

    name: Name
    root: ConfigPath


class AreaTable(Table):
    """`[[area]]`: a part of the SE; `reserve` bytes of the file system always stay free."""

    name: Name
    quota: Bytes | None = None
    reserve: Bytes = 256 * 1000 * 1000
    rules: Mapping[str, frozenset[VerbName]]

    @model_validator(mode="after")
    def _known_roles(self) -> AreaTable:
        unknown = sorted(set(self.rules) - ROLES)
        if unknown:
            raise ValueError(f"unknown role {', '.join(unknown)} in rules; roles are {', '.join(sorted(ROLES))}")
        return self


class GsiftpTable(Table):
    """`[gsiftp]`: the GridFTP door, served when the table is there.

    Data connections come in at `data_ports` (lowest and highest; any without) of the address `advertise` (without, the
    one that the client reached). A login may take `grace_seconds`; `idle_seconds` ends a session without commands
    and a transfer without bytes. `sessions` may be logged in, `sessions_per_peer` of them of one DN; `waiting` may be
    before their login besides, `waiting_per_address` of them from one address. A transfer may have `streams` data
    connections.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=2811, ge=0, le=65535)
    data_ports: tuple[Port, Port] | None = None
    advertise: str | None = None
    grace_seconds: float = Field(default=20.0, gt=0, le=600)
    idle_seconds: float = Field(default=300.0, gt=0, le=86400)
    sessions: int = Field(default=200, ge=1, le=10000)
    sessions_per_peer: int = Field(default=50, ge=1, le=10000)
    waiting: int = Field(default=200, ge=1, le=10000)
    waiting_per_address: int = Field(default=40, ge=1, le=10000)
    streams: int = Field(default=16, ge=1, le=256)

    @model_validator(mode="after")
    def _a_range(self) -> GsiftpTable:
        if self.data_ports is not None and self.data_ports[0] > self.data_ports[1]:
            raise ValueError("data_ports are the lowest and the highest, like data_ports = [50000, 50199]")
        return self


class SftpTable(Table):
    """`[sftp]`: the SFTP door, served when the table is there; `[identity]` then needs `ssh_peers`.

    A login may take `grace_seconds`, a connection may do nothing for `idle_seconds`. `connections` may be logged
    in, `per_address` of them from one address; `waiting` may be before their login besides, `waiting_per_address` of
    them from one address. `open_files` to a session, `disk_threads` for all of them.
    `advertise` is the host in the URL that is printed.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=2222, ge=0, le=65535)
    advertise: str | None = None
    grace_seconds: float = Field(default=20.0, gt=0, le=600)
    idle_seconds: float = Field(default=300.0, gt=0, le=86400)
    connections: int = Field(default=200, ge=1, le=10000)
    waiting: int = Field(default=200, ge=1, le=10000)
    waiting_per_address: int = Field(default=40, ge=1, le=10000)
    per_address: int = Field(default=60, ge=1, le=10000)
    open_files: int = Field(default=128, ge=1, le=10000)
    disk_threads: int = Field(default=8, ge=1, le=256)


class StorageConfig(Table):
    """The whole file."""

    server: ListenConfig = ListenConfig()
    gsiftp: GsiftpTable | None = None
    sftp: SftpTable | None = None
    identity: IdentityConfig
    storage: StorageTable
    area: Annotated[tuple[AreaTable, ...], Field(min_length=1)]
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _distinct(self) -> StorageConfig:
        names = [area.name for area in self.area]
        if len(set(names)) != len(names):
            raise ValueError("two areas have the same name")
        return self

    @model_validator(mode="after")
    def _with_peers(self) -> StorageConfig:
        if self.sftp is not None and self.identity.ssh_peers is None:
            raise ValueError(
                "[sftp] needs ssh_peers in [identity]: a directory with the certificates (PEM) of those who may come, "
                "since SSH shows bare keys"
            )
        return self
