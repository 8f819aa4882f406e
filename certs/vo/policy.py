"""The rights of a virtual organisation: groups, grants and their scopes, and the one decision over them. Pure.

Default deny: an actor may do an action with a study when a grant to it names the action and its scope covers the
study. An actor is a DN or ``ae:TITLE@SITE``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

Action = Literal[
    "find", "retrieve", "store", "send", "receive", "share", "label", "delete", "administer", "audit", "break_glass"
]
Role = Literal["viewer", "contributor", "exchange", "researcher", "operator", "patient"]
ScopeKind = Literal["site", "modality", "institution", "label"]

ACTIONS: frozenset[Action] = frozenset(get_args(Action))
SCOPE_KINDS: tuple[ScopeKind, ...] = get_args(ScopeKind)
ROLE_ACTIONS: Mapping[Role, frozenset[Action]] = {
    "viewer": frozenset({"find", "retrieve"}),
    "contributor": frozenset({"store"}),
    "exchange": frozenset({"find", "retrieve", "send", "receive"}),
    "researcher": frozenset({"find", "retrieve"}),
    "operator": frozenset({"share", "label", "delete", "administer", "audit"}),
    "patient": frozenset({"find", "retrieve"}),
}
# What is done with a study, and so is bounded by a scope; the rest is done with the grid
OF_STUDIES: frozenset[Action] = frozenset({"find", "retrieve", "send", "share", "label", "delete"})
ANYONE = "anyone"
GROUP = "group:"


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What a scope looks at. A study has a modality, a site or an institution when one of its series has.

    ``grantees`` are the actors, and groups as ``group:NAME``, that it is shared with now; ``opened_to`` are the actors
    that broke the glass for it.
    """

    sites: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    institutions: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    grantees: frozenset[str] = frozenset()
    opened_to: frozenset[str] = frozenset()

    def values(self, kind: ScopeKind) -> frozenset[str]:
        """Return what the study has of one kind."""
        have = {"site": self.sites, "modality": self.modalities, "institution": self.institutions, "label": self.labels}
        return have[kind]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which studies: all that have one of the values of every kind named. ``shared``: shared with the actor, too.

    Nothing named is every study. ``opened`` is the scope of a broken glass; no policy file can say it.
    """

    values: Mapping[ScopeKind, frozenset[str]] = field(default_factory=dict)
    shared: bool = False
    opened: bool = False

    @property
    def everything(self) -> bool:
        """Whether every study is in it."""
        return not (self.values or self.shared or self.opened)

    def covers(self, study: StudyFacts, actor: str, names: frozenset[str]) -> bool:
        """Say whether a study is in it, for an actor with these names (its own and its groups')."""
        if self.shared and names.isdisjoint(study.grantees):
            return False
        if self.opened and actor not in study.opened_to:
            return False
        return all(not wanted.isdisjoint(study.values(kind)) for kind, wanted in self.values.items())


@dataclass(frozen=True, slots=True)
class Grant:
    """Who (group names, or ``anyone``) may do which actions with which studies."""

    name: str
    to: tuple[str, ...]
    actions: frozenset[Action]
    scope: Scope = Scope()
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class BreakGlass:
    """Who may open a study that no grant shows them, with a reason, and for how long (minutes)."""

    to: tuple[str, ...]
    minutes: int


@dataclass(frozen=True)
class Policy:
    """A whole policy. ``groups`` hold patterns of actors, in which ``*`` stands for anything but ``/`` and ``@``."""

    vo: str
    groups: Mapping[str, tuple[str, ...]]
    grants: tuple[Grant, ...]
    break_glass: BreakGlass | None = None

    def groups_of(self, actor: str) -> frozenset[str]:
        """Return the names of the groups that an actor is in."""
        return frozenset(name for name, pattern in self._patterns.items() if pattern.fullmatch(actor))

    def rights_of(self, actor: str) -> Rights:
        """Return what an actor may do."""
        groups = self.groups_of(actor)
        addressed = groups | {ANYONE}
        grants = [grant for grant in self.grants if not addressed.isdisjoint(grant.to)]
        glass = self.break_glass
        may_break = glass is not None and not addressed.isdisjoint(glass.to)
        if may_break:
            assert glass is not None
            grants.append(Grant("break-glass", glass.to, frozenset({"break_glass"})))
            grants.append(Grant("broken glass", glass.to, frozenset({"find", "retrieve"}), Scope(opened=True)))
        return Rights(actor, groups, tuple(grants))

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        return {name: re.compile("|".join(map(_pattern, members)) or r"(?!)") for name, members in self.groups.items()}


@dataclass(frozen=True, slots=True)
class Rights:
    """What one actor may do under one policy."""

    actor: str
    groups: frozenset[str]
    grants: tuple[Grant, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names under which something can be shared with the actor."""
        return frozenset({self.actor, *(GROUP + name for name in self.groups)})

    def may_ever(self, action: Action) -> bool:
        """Say whether there may be a study with which the action is allowed; for others: whether it is allowed."""
        return any(action in grant.actions for grant in self.grants)

    def scopes(self, action: Action) -> tuple[Scope, ...]:
        """Return the scopes of an action: a study in any of them may be seen so. Empty: none may."""
        found = tuple(grant.scope for grant in self.grants if action in grant.actions)
        whole = next((scope for scope in found if scope.everything), None)
        return found if whole is None else (whole,)

    def grant_for(self, action: Action, study: StudyFacts | None) -> Grant | None:
        """Return the first grant that allows an action; ``study`` None is for what is done with the grid."""
        for grant in self.grants:
            if action not in grant.actions:
                continue
            if study is None or action not in OF_STUDIES or grant.scope.covers(study, self.actor, self.names):
                return grant
        return None


def _pattern(text: str) -> str:
    # A star never crosses a part of a DN, nor the sign between a title and its site: ae:*@a is no name of site b
    return "[^/@]*".join(re.escape(part) for part in text.split("*"))
