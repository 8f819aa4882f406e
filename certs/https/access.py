"""Access rules on routes: who called, on whose behalf, and whether the route's rule lets them in."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import unquote

from fastapi import routing
from fastapi.dependencies.models import Dependant
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from certs.errors import CertsError, TrustError
from certs.gridmap import Gridmap
from certs.https.problem import ProblemError
from certs.peer import Peer
from certs.policy import Rule, decide, effective_actor
from certs.tls import peer_of_chain
from certs.trust import Trust, VerifiedChain

STATE_KEY = "dgis_connection"
LIMIT_KEY = "dgis_body_limit"
ACTING_FOR = b"dgis-acting-for"
_LONGEST_ACTOR = 2048
# While bytes of a request move, its connection is judged again this often (seconds)
REJUDGE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Guard:
    """What access decisions of one service stand on."""

    trust: Trust
    gridmap: Gridmap


class Connection:
    """The verified chain of one connection and the address it comes from, with what was last derived from them."""

    __slots__ = ("_address", "_checked", "_generation", "_mapped", "_peer", "_placed", "chain")

    def __init__(self, chain: VerifiedChain, address: str = "") -> None:
        self.chain = chain
        self._address = address
        self._placed: tuple[int, str | None] = (-1, None)
        self._generation = -1
        self._checked = 0.0
        self._mapped = -1
        self._peer: Peer | None = None

    def refusal(self, guard: Guard, now: float) -> str | None:
        """Say why this connection is refused by now; cheap while trust and gridmap are unchanged."""
        trust = guard.trust
        trust.reload_if_changed()
        if self._generation == trust.generation and now < self._checked:
            return self._misplaced(guard.gridmap)
        reason = trust.refusal(self.chain, now=datetime.fromtimestamp(now, UTC))
        if reason is None:
            self._generation, self._checked = trust.generation, trust.good_until(self.chain)
        return reason or self._misplaced(guard.gridmap)

    def _misplaced(self, gridmap: Gridmap) -> str | None:
        gridmap.reload_if_changed()
        if self._placed[0] != gridmap.generation:
            self._placed = gridmap.generation, gridmap.misplaced(self.chain.dn, self._address)
        return self._placed[1]

    def peer(self, gridmap: Gridmap) -> Peer:
        """Return the peer with its roles of this moment."""
        gridmap.reload_if_changed()
        if self._peer is None or self._mapped != gridmap.generation:
            self._mapped = gridmap.generation
            self._peer = peer_of_chain(self.chain, gridmap)
        return self._peer


class RefusedMeanwhile(CertsError):
    """The certificate of a connection is refused by now; the gate ends the request, by 403 while that is possible."""


class Vigil:
    """Judges the connection of one request again while its bytes move, at most once in `every` seconds."""

    __slots__ = ("_connection", "_due", "_every", "_guard", "_reason")

    def __init__(self, connection: Connection, guard: Guard, *, every: float = REJUDGE_SECONDS) -> None:
        self._connection = connection
        self._guard = guard
        self._every = every
        self._due = time.monotonic() + every
        self._reason: str | None = None

    def look(self) -> None:
        """Raise RefusedMeanwhile, now and from then on, when the certificate is refused; cheap in between."""
        now = time.monotonic()
        if self._reason is None and now >= self._due:
            self._due = now + self._every
            self._reason = self._connection.refusal(self._guard, time.time())
        if self._reason is not None:
            raise RefusedMeanwhile(self._reason)


class BodyLimit:
    """Bounds what a route may buffer of a request body; routes that stream are freed of it when they are admitted."""

    __slots__ = ("_left", "_limit", "_receive")

    def __init__(self, receive: Receive, limit: int, declared: int) -> None:
        self._receive = receive
        self._limit = limit
        self._left: int | None = -1 if declared > limit else limit

    def lift(self) -> None:
        """Stop counting: the handler reads the rest as a stream."""
        self._left = None

    async def __call__(self) -> Message:
        if self._left is None:
            return await self._receive()
        if self._left >= 0:
            message = await self._receive()
            self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise BodyTooLarge(self._limit)
        return message


class BodyTooLarge(HTTPException):
    """The request body is larger than a buffered route takes; Starlette's kind, which FastAPI lets through."""

    def __init__(self, limit: int) -> None:
        detail = f"a request body of this route has at most {limit} bytes"
        # No "connection: close": a client still sending would be reset before it reads this; uvicorn drops the rest
        super().__init__(413, detail)


class RuleDependency:
    """A FastAPI dependency that admits a request under its rule and returns the Peer."""

    def __init__(self, access: Rule) -> None:
        self.rule = access

    async def __call__(self, request: Request) -> Peer:
        return admit(request.scope, self.rule)


def rule(access: Rule) -> RuleDependency:
    """Make the dependency for a route: ``peer: Annotated[Peer, Depends(rule(READ))]``."""
    return RuleDependency(access)


class GuardedEndpoint:
    """A plain Starlette endpoint under a rule, for byte streams: FastAPI's per-request work is left out."""

    def __init__(self, access: Rule, endpoint: Callable[[Request, Peer], Awaitable[Response]]) -> None:
        self.rule = access
        self._endpoint = endpoint

    async def endpoint(self, request: Request) -> Response:
        """Admit the request, then hand it on with its peer."""
        return await self._endpoint(request, admit(request.scope, self.rule))


def guarded(
    access: Rule, endpoint: Callable[[Request, Peer], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Wrap ``endpoint(request, peer)`` for ``app.add_route(path, guarded(RULE, endpoint), methods=[...])``."""
    return GuardedEndpoint(access, endpoint).endpoint


def admit(scope: Scope, access: Rule) -> Peer:
    """Return the peer of a request, with acting_for when it may name one; raises ProblemError 403 when it may not pass.

    From here on the body is the handler's: the limit for buffered bodies is lifted.
    """
    guard: Guard = scope["app"].state.guard
    peer = connection_of(scope).peer(guard.gridmap)
    named = _acting_for(scope)
    if named is not None:
        peer = replace(peer, acting_for=effective_actor(peer, named))
    decision = decide(access, peer)
    if not decision.allowed:
        raise ProblemError(403, "not-allowed", decision.reason)
    limit = scope["state"].get(LIMIT_KEY)
    if isinstance(limit, BodyLimit):
        limit.lift()
    return peer


def judge_again(scope: Scope) -> None:
    """Judge the connection now, before what a request asks for takes effect; raises RefusedMeanwhile."""
    guard: Guard = scope["app"].state.guard
    reason = connection_of(scope).refusal(guard, time.time())
    if reason is not None:
        raise RefusedMeanwhile(reason)


def connection_of(scope: Scope) -> Connection:
    """Return the verified connection of a request; raises TrustError when there is none."""
    found = scope.get("state", {}).get(STATE_KEY)
    if not isinstance(found, Connection):
        raise TrustError(("this connection carries no verified certificate chain",))
    return found


def _acting_for(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == ACTING_FOR:
            text = unquote(value.decode("latin-1"), errors="replace")
            if not 1 <= len(text) <= _LONGEST_ACTOR or not text.isprintable():
                raise ProblemError(400, "bad-acting-for", "Dgis-Acting-For is a DN or ae:TITLE@SITE")
            return text
    return None


def route_rules(app: Starlette) -> dict[str, Rule | None]:
    """Return the rule of each route as ``{"GET /v1/whoami": Rule}``; None where a route names none."""
    return {f"{method} {path}": found for path, methods, found in _routes(app) for method in sorted(methods)}


def _routes(app: Starlette) -> Iterator[tuple[str, set[str], Rule | None]]:
    contexts = getattr(routing, "iter_route_contexts", None)  # FastAPI that nests included routers
    for route in contexts(app.routes) if contexts is not None else app.routes:
        methods = set(getattr(route, "methods", None) or {"ANY"}) - {"HEAD"}
        yield str(getattr(route, "path", route)), methods or {"HEAD"}, _rule_of(route)


def _rule_of(route: object) -> Rule | None:
    owner = getattr(getattr(route, "endpoint", None), "__self__", None)
    if isinstance(owner, GuardedEndpoint):
        return owner.rule
    dependant = getattr(route, "dependant", None)
    return _rule_in(dependant) if isinstance(dependant, Dependant) else None


def _rule_in(dependant: Dependant) -> Rule | None:
    if isinstance(dependant.call, RuleDependency):
        return dependant.call.rule
    found = (_rule_in(inner) for inner in dependant.dependencies)
    return next((each for each in found if each is not None), None)
