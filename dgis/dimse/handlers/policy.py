"""Which request is which action of the VO's policy, and whether that lets the caller do it, from first to last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from catalog.wire import Located, LocateRequest
from certs.vo.policy import Action
from dgis.dimse.command import Field
from dgis.dimse.services import Retrieve, Rights
from dgis.errors import RetrieveForbidden, RetrieveUnavailable

# Storage commitment is the sender's care for what it stored
ACTION_OF: Final[dict[int, Action]] = {
    Field.C_FIND: "find",
    Field.C_MOVE: "retrieve",
    Field.C_GET: "retrieve",
    Field.N_ACTION: "store",
}
# A right that is taken away ends a retrieve that is under way within this time (seconds)
_ASK_AGAIN = 5.0


def refused_by_policy(rights: Rights | None, actor: str, action: Action) -> bool:
    """Say whether the policy lets this actor do the action with no study at all."""
    return rights is not None and bool(rights.refusal(actor, action))


class StillPermitted:
    """Asks the catalog again, every five seconds of a long retrieve, whether what is left of it may be had."""

    def __init__(self, retrieve: Retrieve, actor: str, planned: Sequence[Located]) -> None:
        self._retrieve, self._actor = retrieve, actor
        self._left = [one.instance_uid for one in planned]
        self._allowed: frozenset[str] | None = None
        self._due = time.monotonic() + _ASK_AGAIN
        self._done = 0

    def __call__(self, instance_uid: str) -> bool:
        """Say whether the next instance of the plan may still be given. A catalog that is away changes nothing."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _ASK_AGAIN
            self._ask()
        self._done += 1
        return self._allowed is None or instance_uid in self._allowed

    def _ask(self) -> None:
        request = LocateRequest(instances=tuple(self._left[self._done :]))
        try:
            found = self._retrieve.plan(request, acting_for=self._actor).instances
            self._allowed = frozenset(one.instance_uid for one in found)
        except RetrieveForbidden:
            self._allowed = frozenset()
        except RetrieveUnavailable:
            return
