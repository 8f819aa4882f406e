"""The policy file of a VO: TOML in, a ``Policy`` out, errors that name table and key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from certs.config import Table, explain
from certs.dn import DN
from certs.errors import ConfigError, CredentialError
from certs.vo.policy import ANYONE, ROLE_ACTIONS, SCOPE_KINDS, Action, BreakGlass, Grant, Policy, Role, Scope

MOST_BYTES = 256 * 1024
# Roles that see the studies of others only as far as somebody said so
_BOUNDED: dict[Role, str] = {"researcher": "label", "patient": "shared"}

Word = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
Words = Annotated[tuple[Word, ...], Field(min_length=1, max_length=1000)]
GroupName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class _Studies(Table):
    """`studies` of a grant: a study must have one of the values of each key that is there."""

    site: Words | None = None
    modality: Words | None = None
    institution: Words | None = None
    label: Words | None = None
    shared: bool = False


class _Grant(Table):
    """`[[grant]]`."""

    name: Word
    to: Words
    roles: tuple[Role, ...] = ()
    actions: tuple[Action, ...] = ()
    studies: _Studies = _Studies()


class _BreakGlass(Table):
    """`[break_glass]`."""

    to: Words
    minutes: int = Field(default=60, ge=1, le=24 * 60)


class _File(Table):
    vo: Word
    groups: dict[GroupName, tuple[Word, ...]] = Field(default={}, max_length=1000)
    grant: tuple[_Grant, ...] = Field(default=(), max_length=1000)
    break_glass: _BreakGlass | None = None


def read_policy(path: Path) -> Policy:
    """Read a policy file. Raises ConfigError naming file, table and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the policy cannot be read", file=str(path)) from error
    return parse_policy(text, name=str(path))


def parse_policy(text: str, *, name: str = "policy") -> Policy:
    """Read a policy's text. Raises ConfigError with every mistake, a line each; ``name`` is where it comes from."""
    if len(text.encode()) > MOST_BYTES:
        raise ConfigError(f"{name}: a policy has at most {MOST_BYTES // 1024} KiB", file=name)
    try:
        document = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}", file=name) from error
    except ValidationError as error:
        raise explain(Path(name), _File, error) from None
    mistakes = [f"{name}: {mistake}" for mistake in _mistakes(document)]
    if mistakes:
        raise ConfigError("\n".join(mistakes), file=name)
    glass = document.break_glass
    return Policy(
        document.vo,
        {group: tuple(map(_canonical, members)) for group, members in document.groups.items()},
        tuple(map(_grant, document.grant)),
        None if glass is None else BreakGlass(glass.to, glass.minutes),
    )


def _mistakes(document: _File) -> list[str]:
    found = []
    for group, members in document.groups.items():
        found += [f"table [groups]: key {group!r}: {_wrong(member)}" for member in members if _wrong(member)]
    for number, grant in enumerate(document.grant, start=1):
        where = f"table [grant.{number}]"
        found += _unknown(where, grant.to, document)
        if not grant.roles and not grant.actions:
            found.append(f"{where}: name `roles` ({', '.join(ROLE_ACTIONS)}) or `actions`")
        for role in grant.roles:
            wanted = _BOUNDED.get(role)
            if wanted is not None and not getattr(grant.studies, wanted):
                what = "shared = true" if wanted == "shared" else 'label = ["..."]'
                found.append(f"{where}: the role {role} is for named studies only; add studies = {{ {what} }}")
    names = [grant.name for grant in document.grant]
    found += [f"two grants have the name {twice!r}" for twice in sorted({n for n in names if names.count(n) > 1})]
    if document.break_glass is not None:
        found += _unknown("table [break_glass]", document.break_glass.to, document)
        if ANYONE in document.break_glass.to:
            found.append("table [break_glass]: name groups; anyone would be no glass at all")
    return found


def _unknown(where: str, names: tuple[str, ...], document: _File) -> list[str]:
    known = ", ".join(sorted(document.groups)) or "there are none yet"
    return [
        f"{where}: {name!r} is no group of [groups] ({known}), nor {ANYONE!r}"
        for name in names
        if name not in document.groups and name != ANYONE
    ]


def _wrong(member: str) -> str:
    """Say what is wrong with a group's member, or nothing."""
    if member.startswith("ae:"):
        title, at, site = member.removeprefix("ae:").rpartition("@")
        return "" if title and at and site else f"{member!r}: an AE is written ae:TITLE@SITE"
    try:
        DN.parse(member)
    except CredentialError:
        return f"{member!r} is neither a DN (/O=.../CN=...) nor ae:TITLE@SITE"
    return ""


def _canonical(member: str) -> str:
    return member if member.startswith("ae:") else str(DN.parse(member))


def _grant(grant: _Grant) -> Grant:
    actions = frozenset(grant.actions).union(*(ROLE_ACTIONS[role] for role in grant.roles))
    values = {kind: getattr(grant.studies, kind) for kind in SCOPE_KINDS}
    scope = Scope({kind: frozenset(found) for kind, found in values.items() if found}, grant.studies.shared)
    return Grant(grant.name, grant.to, actions, scope, grant.roles)
