"""The HTTPS harness: an application with identity, problems, health and metrics, and the server that runs it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from certs.config import IdentityConfig, ListenConfig
from certs.credential import Credential
from certs.descriptors import raise_descriptor_limit
from certs.errors import CertsError, ConfigError, Unanswered
from certs.gridmap import Gridmap
from certs.https.access import (
    Guard,
    RuleDependency,
    admit,
    connection_of,
    guarded,
    route_rules,
    rule,
)
from certs.https.express import GridApp
from certs.https.gate import Gate, HttpMetrics
from certs.https.problem import MEDIA_TYPE, ProblemError
from certs.https.protocol import GridServer, inherited_socket, listening_socket, server_config, url_of
from certs.https.watch import ExpiryWatch
from certs.log import get_log
from certs.peer import MONITOR, OPERATOR, Peer
from certs.policy import OPEN_TO_VERIFIED, Rule
from certs.tls import server_context
from certs.trust import Trust

__all__ = [
    "HealthCheck", "RuleDependency", "admit", "add_check", "connection_of", "create_app", "guarded", "problem_response",
    "route_rules", "rule", "running", "serve",
]  # fmt: skip

HealthCheck = Callable[[], str]
"""A check of ``/health``: returns a word on what is well, raises when it is not; runs in a thread."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

log = get_log()

BODY_LIMIT = 64 * 1024 * 1024
Verified = Annotated[Peer, Depends(rule(OPEN_TO_VERIFIED))]
METRICS = Rule("metrics", frozenset({MONITOR, OPERATOR}))
_CHECK_TIMEOUT = 5.0
_STOP_WITHIN = 10.0
_START_WITHIN = 30.0


@dataclass(slots=True)
class _Health:
    """The checks behind ``/health``."""

    checks: dict[str, HealthCheck] = field(default_factory=dict)


def create_app(
    *,
    title: str,
    version: str,
    identity: IdentityConfig,
    metrics_registry: CollectorRegistry | None = None,
    lifespan: Lifespan | None = None,
    body_limit: int = BODY_LIMIT,
) -> FastAPI:
    """Make an application with ``/v1/whoami``, ``/health``, ``/metrics``, ``/openapi.json`` and problem answers.

    Every route added to it must carry a rule (``rule`` or ``guarded``), or ``serve`` refuses to start. ``body_limit``
    (bytes) bounds bodies that FastAPI buffers; handlers that read the request as a stream are not bounded.
    Raises TrustError or ConfigError when trust or gridmap cannot be read.
    """
    registry = metrics_registry or CollectorRegistry()
    app = GridApp(title=title, version=version, lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    guard = Guard(Trust(identity.trust), Gridmap(identity.gridmap))
    app.state.guard = guard
    app.state.health = _Health()
    credential = Credential(identity.cert, identity.key)
    app.state.watch = ExpiryWatch(guard.trust, credential, registry)
    app.gate = partial(Gate, guard=guard, metrics=HttpMetrics(registry), body_limit=body_limit)
    _answer_problems(app)
    _add_routes(app, registry)
    add_check(app, "certificate", lambda: _check_certificate(credential))
    add_check(app, "revocation", lambda: _check_revocation(guard.trust))
    return app


def add_check(app: FastAPI, name: str, check: HealthCheck) -> None:
    """Add a named check to ``/health``; each gets a thread and 5 s."""
    app.state.health.checks[name] = check


def _add_routes(app: FastAPI, registry: CollectorRegistry) -> None:
    @app.get("/v1/whoami", summary="Who the service takes you for")
    async def whoami(peer: Verified) -> dict[str, object]:
        return {
            "dn": str(peer.dn),
            "account": peer.account,
            "roles": sorted(peer.roles),
            "fingerprint": peer.fingerprint,
            "serial": f"{peer.serial:x}",
            "proxied": peer.proxied,
            "acting_for": peer.acting_for,
        }

    @app.get("/health", summary="Whether the service can do its work", dependencies=[Depends(rule(OPEN_TO_VERIFIED))])
    async def health() -> JSONResponse:
        checks = {name: await _run_check(check) for name, check in app.state.health.checks.items()}
        well = all(result["ok"] for result in checks.values())
        content = {"status": "ok" if well else "failed", "service": app.title, "version": app.version, "checks": checks}
        return JSONResponse(content, status_code=200 if well else 503)

    @app.get("/metrics", summary="Prometheus metrics", dependencies=[Depends(rule(METRICS))])
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(rule(OPEN_TO_VERIFIED))])
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())


async def _run_check(check: HealthCheck) -> Mapping[str, object]:
    try:
        with anyio.fail_after(_CHECK_TIMEOUT):
            detail = await anyio.to_thread.run_sync(check, abandon_on_cancel=True)
        return {"ok": True, "detail": detail}
    except TimeoutError:
        return {"ok": False, "detail": f"no answer within {_CHECK_TIMEOUT:.0f} s"}
    except CertsError as error:
        return {"ok": False, "detail": str(error)}
    except Exception as error:  # noqa: BLE001  # a check of another room: its text may hold anything
        return {"ok": False, "detail": type(error).__name__}


def _check_certificate(credential: Credential) -> str:
    credential.check()
    end = credential.not_after()
    return f"valid until {end:%Y-%m-%d %H:%M} UTC, {(end - datetime.now(UTC)).days} days"


def _check_revocation(trust: Trust) -> str:
    trust.reload_if_changed()
    problems = trust.problems()
    if problems:
        raise ConfigError("; ".join(problems))
    return f"CRLs current until {trust.crl_expiry():%Y-%m-%d %H:%M} UTC"


def _answer_problems(app: FastAPI) -> None:
    async def on_problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return problem_response(error)

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        slugs = {404: "no-such-route", 405: "method-not-allowed", 413: "body-too-large"}
        slug = slugs.get(error.status_code, "request-refused")
        return problem_response(
            ProblemError(error.status_code, slug, str(error.detail), headers=dict(error.headers or {}))
        )

    async def on_invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Places and rules only: the values sent may be patient data
        wrong = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()[:10]]
        return problem_response(ProblemError(422, "not-valid", "; ".join(wrong)))

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)


def problem_response(problem: ProblemError) -> Response:
    """Turn a problem into a response."""
    return Response(problem.to_json(), problem.http_status, dict(problem.headers), MEDIA_TYPE)


def serve(
    app: FastAPI,
    listen: ListenConfig,
    identity: IdentityConfig,
    *,
    ready: Callable[[str], None] | None = None,
    extra_fds: Sequence[int] = (),
) -> None:
    """Run an application until SIGTERM or SIGINT; returns after a graceful stop of at most 5 s.

    ``ready`` is called with the URL once connections are accepted. ``extra_fds`` are listening sockets of a parent
    process, served besides. Raises ConfigError, CredentialError or TrustError before it listens.
    """
    server, sockets = _prepare(app, listen, identity, ready, extra_fds)
    asyncio.run(server.serve(sockets=sockets))


def _prepare(
    app: FastAPI,
    listen: ListenConfig,
    identity: IdentityConfig,
    ready: Callable[[str], None] | None,
    extra_fds: Sequence[int],
) -> tuple[GridServer, list[socket.socket]]:
    bare = sorted(name for name, found in route_rules(app).items() if found is None)
    if bare:
        raise ConfigError(f"{app.title}: no access rule on {', '.join(bare)}; add Depends(rule(...)) or guarded(...)")
    raise_descriptor_limit()
    context = server_context(identity, trust=app.state.guard.trust)
    own = listening_socket(listen)
    url = url_of(own, listen.host)

    def on_ready() -> None:
        log.info("listening", url=url, title=app.title)
        if ready is not None:
            ready(url)

    sockets = [own, *(inherited_socket(descriptor) for descriptor in extra_fds)]
    return GridServer(server_config(app), context.context, on_ready, app.state.watch.look), sockets


@contextmanager
def running(app: FastAPI, identity: IdentityConfig, *, listen: ListenConfig | None = None) -> Iterator[str]:
    """Run an application in a thread, for tests and tools: yields its URL, stops it at the end."""
    urls: list[str] = []
    up = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        up.set()

    server, sockets = _prepare(app, listen or ListenConfig(), identity, ready, ())

    def run() -> None:
        try:
            asyncio.run(server.serve(sockets=sockets))
        finally:
            up.set()

    thread = threading.Thread(target=run, name=f"https {app.title}", daemon=True)
    thread.start()
    up.wait(_START_WITHIN)
    if not urls:
        raise Unanswered(f"{app.title} did not start", service=app.title)
    try:
        yield urls[0]
    finally:
        server.should_exit = True
        thread.join(_STOP_WITHIN)
