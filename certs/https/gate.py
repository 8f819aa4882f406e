"""The outermost edge of a request: is the connection still trusted, how much body may be buffered, what went wrong.

Pure ASGI, one object per application; bodies pass through untouched in both directions.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from certs.errors import CertsError, TrustError
from certs.https.access import LIMIT_KEY, BodyLimit, Guard, RefusedMeanwhile, Vigil, connection_of
from certs.https.problem import MEDIA_TYPE, ProblemError
from certs.log import get_log

log = get_log()

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class HttpMetrics:
    """Counters of the harness in a service's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "dgis_http_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "dgis_http_seconds", "Time to the end of the answer", ["route"], buckets=_BUCKETS, registry=registry
        )
        self.refused = Counter(
            "dgis_http_refused_connections",
            "Requests on connections no longer trusted (revoked, expired, CRL missing or stale)",
            registry=registry,
        )


class ResponseCutError(CertsError):
    """A handler failed after its answer had begun; the connection is cut so that the client notices."""


class Gate:
    """ASGI middleware around every route of a service."""

    def __init__(self, app: ASGIApp, *, guard: Guard, metrics: HttpMetrics, body_limit: int) -> None:
        self._app = app
        self._guard = guard
        self._metrics = metrics
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refuse(send, refusal)
            return
        vigil = Vigil(connection_of(scope), self._guard)
        limited = BodyLimit(_watched(receive, vigil), self._body_limit, _declared_length(scope))
        scope["state"][LIMIT_KEY] = limited
        await self._run(scope, limited, _Answer(send, vigil))

    async def _refuse(self, send: Send, refusal: str) -> None:
        self._metrics.refused.inc()
        log.warning("connection_refused", reason=refusal)
        await _send_problem(send, ProblemError(403, "certificate-refused", refusal), close=True)

    def _refusal(self, scope: Scope) -> str | None:
        try:
            return connection_of(scope).refusal(self._guard, time.time())
        except TrustError as error:
            return str(error)

    async def _run(self, scope: Scope, receive: BodyLimit, answer: _Answer) -> None:
        began = time.perf_counter()
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            log.debug("client_gone")
        except RefusedMeanwhile as error:
            if answer.status:
                self._metrics.refused.inc()
                log.warning("connection_refused", reason=str(error))
                raise ResponseCutError("the answer was cut short: its receiver is refused by now") from None
            await self._refuse(answer.unwatched, str(error))
        except Exception as error:  # noqa: BLE001  # the request edge: no data may leak into a traceback
            log.error("request_failed", error=type(error).__name__, where=_where(error), route=_route(scope))
            if answer.status:
                raise ResponseCutError("the answer was cut short by an error, see the log line before") from None
            await _send_problem(answer, ProblemError(500, "internal-error", "see the log of the service"), close=False)
        finally:
            route = _route(scope)
            self._metrics.requests.labels(scope["method"], route, answer.status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)


class _Answer:
    """The send side of a request, remembering whether and with what status it began; nothing goes to the refused."""

    __slots__ = ("_send", "_vigil", "status")

    def __init__(self, send: Send, vigil: Vigil) -> None:
        self._send = send
        self._vigil = vigil
        self.status = 0

    async def __call__(self, message: Message) -> None:
        self._vigil.look()
        await self.unwatched(message)

    async def unwatched(self, message: Message) -> None:
        """Send whatever became of the peer: the refusal itself."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _watched(receive: Receive, vigil: Vigil) -> Receive:
    """Judge the sender again as its bytes come."""

    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            vigil.look()
        return message

    return watched


async def _send_problem(send: Send, problem: ProblemError, *, close: bool) -> None:
    body = problem.to_json()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """Return the route's template, never the path itself: paths hold UIDs and have no bounded number."""
    return getattr(scope.get("route"), "path", None) or "none"


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _where(error: BaseException) -> str:
    """Return file and line where an error was raised; its text may hold what must not be logged."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    code = trace.tb_frame.f_code
    package = sys.modules.get(trace.tb_frame.f_globals.get("__name__", ""))
    return f"{getattr(package, '__name__', Path(code.co_filename).name)}:{trace.tb_lineno} in {code.co_name}"
