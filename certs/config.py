"""Configuration files: TOML in, frozen models out, errors that name file, table and key.

The tables here are shared by every service. Relative paths count from the directory of the configuration file.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from certs.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def _from_config_file(path: Path, info: ValidationInfo) -> Path:
    base = info.context.get("base") if isinstance(info.context, dict) else None
    expanded = path.expanduser()
    return base / expanded if isinstance(base, Path) else expanded


ConfigPath = Annotated[Path, AfterValidator(_from_config_file)]
"""A path setting: relative ones are joined to the directory of the configuration file."""


class Table(BaseModel):
    """Base of every configuration table: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ListenConfig(Table):
    """``[server]``: where to listen; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)


class IdentityConfig(Table):
    """``[identity]``: the service's credential, whom it trusts and what verified names may do.

    ``trust`` is a hashed directory with CA certificates and CRLs; without ``gridmap`` no peer has a role.
    ``ssh_peers`` is a directory of certificates (PEM, leaf first) of SSH clients and hosts: SSH shows bare keys, and a
    key counts only through such a certificate. ``ssh_known_hosts`` (OpenSSH's form) names hosts that have none.
    """

    cert: ConfigPath
    key: ConfigPath
    trust: ConfigPath
    gridmap: ConfigPath | None = None
    ssh_peers: ConfigPath | None = None
    ssh_known_hosts: ConfigPath | None = None


class AuditConfig(Table):
    """``[audit]``: where the audit trail is kept (default: `audit` beside the database), and what a full disk means.

    ``when_full``: "continue" goes on, holds records in memory while there is room, counts and tells what is lost;
    "refuse" does nothing that cannot be recorded.
    """

    directory: ConfigPath | None = None
    when_full: Literal["continue", "refuse"] = "continue"


class LogConfig(Table):
    """``[log]``: how much and in which form, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


def load_toml(path: Path, model: type[ModelT]) -> ModelT:
    """Read a TOML file into a model.

    Raises ConfigError naming file, table and key, and what to write instead; values are never repeated, since they may
    be secrets. With several mistakes all are listed, one per line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {_reason(error)}", file=str(path)) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", file=str(path)) from error
    try:
        return model.model_validate(data, context={"base": path.absolute().parent})
    except ValidationError as error:
        raise explain(path, model, error) from None


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"


def explain(path: Path, model: type[BaseModel], error: ValidationError) -> ConfigError:
    """Turn what pydantic found into an error that names file, table and key of each mistake, and repeats no value."""
    details = error.errors(include_url=False, include_input=False)
    lines = [_sentence(path, model, detail) for detail in details]
    table, key = _place(details[0]["loc"])
    return ConfigError("\n".join(lines), file=str(path), table=table, key=key)


def _place(loc: tuple[int | str, ...]) -> tuple[str, str]:
    """Split an error location into table and key; ``area, 0, quota`` becomes table ``area.1`` and key ``quota``."""
    names = [str(part + 1) if isinstance(part, int) else part for part in loc]
    if not names:
        return "", ""
    return ".".join(names[:-1]), names[-1]


def _sentence(path: Path, model: type[BaseModel], detail: ErrorDetails) -> str:
    table, key = _place(detail["loc"])
    where = f"{path}: table [{table}]" if table else f"{path}: top level"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{did_you_mean(model, detail['loc'])}"
    if detail["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    return f"{where}: key {key!r}: {detail['msg'].removeprefix('Value error, ')}"


def did_you_mean(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """Say which known key an unknown one was probably meant to be; begins with a semicolon, or is empty."""
    known = _fields_at(model, loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known keys: {', '.join(sorted(known))}" if known else ""


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    here: type[BaseModel] = model
    for part in loc:
        if isinstance(part, int):
            continue
        field = next((f for n, f in here.model_fields.items() if part in (n, f.alias)), None)
        inner = _model_in(field.annotation) if field is not None else None
        if inner is None:
            return []
        here = inner
    return [field.alias or name for name, field in here.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
