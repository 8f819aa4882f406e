"""The application of a service: FastAPI behind the gate, with a short way for endpoints that move bytes.

FastAPI's own stack (telemetry, error pages, body limits, form limits) does nothing here that the gate does not do, and
costs each request some 60 us; a guarded endpoint needs no part of it but its route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from certs.https.access import GuardedEndpoint

Handlers = Mapping[Any, Callable[[Request, Any], Response | Awaitable[Response]]]


class GridApp(FastAPI):
    """FastAPI whose whole middleware is `gate`, put around everything; `gate` is set before the first request."""

    gate: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        """Put the gate before the guarded endpoints, and these before FastAPI's routes (which need the exit stack)."""
        handlers = self.exception_handlers
        routes = ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=handlers)
        guarded = [route for route in self.routes if isinstance(route, Route) and _guarded(route)]
        return self.gate(Express(routes, guarded, handlers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)


def _guarded(route: Route) -> bool:
    return isinstance(getattr(route.endpoint, "__self__", None), GuardedEndpoint)


class Express:
    """Answers requests for guarded endpoints at once; everything else goes to `rest`."""

    def __init__(self, rest: ASGIApp, routes: list[Route], handlers: Handlers) -> None:
        self._rest = rest
        self._routes = routes
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in self._routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    scope["route"] = route
                    await self._answer(route, Request(scope, receive), _Started(send))
                    return
        await self._rest(scope, receive, send)

    async def _answer(self, route: Route, request: Request, send: _Started) -> None:
        """Answer by the endpoint, or put its exception into an answer by the application's handlers."""
        try:
            response: Response = await route.endpoint(request)
            await response(request.scope, request.receive, send)
        except Exception as error:
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None or send.started:
                raise
            made = handler(request, error)
            refusal = made if isinstance(made, Response) else await made
            await refusal(request.scope, request.receive, send)


class _Started:
    """The send side, remembering whether the answer began."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)
