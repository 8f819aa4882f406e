"""What a caller may do under the VO's policy: the policy in force, kept at hand, and the questions that routes ask.

A gateway's own work (copies, repairs, registration) is not the policy's business: it acts for nobody. All that it does
for somebody is. While no policy is in force, roles in the gridmap decide alone, as they always must as well.
"""
from __future__ import annotations

import threading
import time

from catalog.errors import CatalogForbidden, UnknownSubject
from catalog.store import Store
from catalog.store.visible import View
from certs.errors import ConfigError
from certs.peer import GATEWAY, OPERATOR, Peer
from certs.vo.explain import Answer, explain
from certs.vo.file import parse_policy
from certs.vo.policy import ACTIONS, Action, Policy, Rights, StudyFacts

_LOOK_SECONDS = 0.5  # another process (a command, a second catalog) may put a policy in force, too
_MOST_ACTORS = 4096
_NOT_UNDERSTOOD = "a VO whose policy this catalog does not understand"
_CLOSED = Policy("a VO whose policy is missing", {}, ())


class Access:
    """Thread-safe. With `required`, nobody may do anything while no policy is in force."""

    def __init__(self, store: Store, *, required: bool = False) -> None:
        self._store, self._required = store, required
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._version = 0
        self._policy: Policy | None = _CLOSED if required else None
        self._rights: dict[str, Rights] = {}

    def version(self) -> int:
        """Tell the version in force; 0 when there is none."""
        self._current()
        return self._version

    def forget(self) -> None:
        """Look again at once: the policy was changed here."""
        with self._lock:
            self._looked = float("-inf")

    def check(self) -> str:
        """Say what is in force (a health check); raises when the policy in force is not understood."""
        policy = self._current()
        if policy is None:
            return "no policy is in force: roles in the gridmap decide alone"
        if not self._version:
            return "no policy is in force, and one is required: nobody may do anything"
        if policy.vo == _NOT_UNDERSTOOD:
            raise ConfigError(f"the policy in force (version {self._version}) is not understood: nobody has a right")
        return f"version {self._version} of the policy of {policy.vo} is in force"

    def view(self, peer: Peer, action: Action) -> View | None:
        """Tell which studies a caller may do something with; None is all.

        Raises CatalogForbidden when that can be none at all.
        """
        only = peer.proxy_policy.studies if peer.proxy_policy.kind == "studies" else None
        rights = self._rights_of(peer)
        if rights is not None and not rights.may_ever(action):
            raise CatalogForbidden(self.answer(actor_of(peer), action, None).text)
        return None if rights is None and only is None else View(action, rights, only)

    def require(self, peer: Peer, action: Action, study: StudyFacts | None = None) -> None:
        """Raise CatalogForbidden unless a caller may do this, with this study."""
        rights = self._rights_of(peer)
        if rights is not None and rights.grant_for(action, study) is None:
            raise CatalogForbidden(self.answer(actor_of(peer), action, study).text)

    def answer(self, actor: str, action: str, study: StudyFacts | None) -> Answer:
        """Say whether, and why, an actor may do something under the policy in force.

        Raises UnknownSubject while there is none, or for an action that nobody knows.
        """
        known = next((one for one in ACTIONS if one == action), None)
        if known is None:
            raise UnknownSubject(f"there is no such action; there are {', '.join(sorted(ACTIONS))}")
        policy = self._current()
        if policy is None:
            raise UnknownSubject("no policy is in force; roles in the gridmap decide alone")
        return explain(policy, actor, known, study)

    def broken_minutes(self) -> int:
        """Tell for how many minutes a broken glass stays open; 0 when the policy has none."""
        policy = self._current()
        return 0 if policy is None or policy.break_glass is None else policy.break_glass.minutes

    def share_groups(self, actor: str, other: str) -> bool:
        """Say whether two actors are in one group."""
        policy = self._current()
        return policy is not None and not policy.groups_of(actor).isdisjoint(policy.groups_of(other))

    def _rights_of(self, peer: Peer) -> Rights | None:
        """Give a caller's rights; None when the policy does not bound it."""
        if GATEWAY in peer.roles and peer.acting_for is None:
            return None
        policy = self._current()
        if policy is None:
            if not peer.roles & {GATEWAY, OPERATOR}:
                raise CatalogForbidden(f"{peer.dn} has rights by the VO's policy only, and none is in force")
            return None
        return self._known(policy, actor_of(peer))

    def _known(self, policy: Policy, actor: str) -> Rights:
        found = self._rights.get(actor)
        if found is None:
            found = policy.rights_of(actor)
            with self._lock:
                if policy is self._policy:
                    if len(self._rights) >= _MOST_ACTORS:
                        self._rights = {}
                    self._rights[actor] = found
        return found

    def _current(self) -> Policy | None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return self._policy
        with self._lock:
            if now - self._looked >= _LOOK_SECONDS:
                version = self._store.policy_version()
                if version != self._version:
                    self._policy, self._version, self._rights = self._read(version), version, {}
                self._looked = now
            return self._policy

    def _read(self, version: int) -> Policy:
        try:
            return parse_policy(self._store.policy(version).text)
        except ConfigError:
            # Put there by a newer program: what is not understood grants nothing
            return Policy(_NOT_UNDERSTOOD, {}, ())


def actor_of(peer: Peer) -> str:
    """Name on whose behalf a call counts."""
    return peer.acting_for or str(peer.dn)
