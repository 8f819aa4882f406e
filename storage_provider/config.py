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


class StorageConfig(Table):
    """The whole file."""

    server: ListenConfig = ListenConfig()
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
