"""The routes of the VO's policy."""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, FastAPI, Path, Query
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from catalog import wire
from catalog.policyservice import PolicyService
from certs.https.server import rule
from certs.peer import OPERATOR, Peer
from certs.policy import ANY_ROLE, Rule

T = TypeVar("T")
# The policy itself decides further who may, by its own roles
POLICY = Rule("policy-change", frozenset({OPERATOR}))
MEMBER = ANY_ROLE
Operator = Annotated[Peer, Depends(rule(POLICY))]
Member = Annotated[Peer, Depends(rule(MEMBER))]


class Threads(Protocol):
    """Where blocking calls run."""

    def read(self, call: Callable[..., T], *args: object) -> Awaitable[T]:
        """Run a call that reads."""

    def write(self, call: Callable[[], T]) -> Awaitable[T]:
        """Run a call that writes."""


def add_policy_routes(app: FastAPI, service: PolicyService, threads: Threads) -> None:
    """Add everything below /v1/policy, /v1/shares, /v1/labels and /v1/break-glass."""
    _policy(app, service, threads)
    _studies(app, service, threads)


def _policy(app: FastAPI, service: PolicyService, threads: Threads) -> None:
    @app.get("/v1/policy", summary="Read the policy in force", response_model=wire.PolicyText)
    async def policy(peer: Member, request: Request) -> Response:
        found = await threads.read(service.read)
        tag = f'"{found.version}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return JSONResponse(found.model_dump(mode="json"), headers={"etag": tag})

    @app.put("/v1/policy", summary="Put a policy in force")
    async def put_policy(new: wire.PolicyPut, peer: Operator) -> wire.PolicyVersion:
        return await threads.write(lambda: service.put(peer, new))

    @app.get("/v1/policy/versions", summary="List the versions of the policy")
    async def policy_versions(peer: Operator) -> list[wire.PolicyVersion]:
        return await threads.read(service.versions, peer)

    @app.get("/v1/policy/versions/{version}", summary="Read one version of the policy")
    async def policy_version(version: Annotated[int, Path(ge=1, le=2**31 - 1)], peer: Operator) -> wire.PolicyText:
        return await threads.read(service.read, version)

    @app.post("/v1/policy/check", summary="Explain who may do what")
    async def policy_check(question: wire.PolicyQuestion, peer: Member) -> wire.PolicyAnswer:
        return await threads.read(service.check, peer, question)


def _studies(app: FastAPI, service: PolicyService, threads: Threads) -> None:
    @app.post("/v1/shares", summary="Share a study")
    async def share(request: wire.ShareRequest, peer: Member) -> wire.Share:
        return await threads.write(lambda: service.share(peer, request))

    @app.get("/v1/shares", summary="List the shares that count now")
    async def shares(peer: Member, study: Annotated[str | None, Query(max_length=64)] = None) -> list[wire.Share]:
        return await threads.read(service.shares, peer, study)

    @app.delete("/v1/shares/{share_id}", summary="End a share", status_code=204)
    async def unshare(share_id: Annotated[str, Path(max_length=64)], peer: Member) -> None:
        await threads.write(lambda: service.unshare(peer, share_id))

    @app.post("/v1/labels", summary="Label a study")
    async def labels(request: wire.LabelRequest, peer: Member) -> wire.LabelReply:
        return await threads.write(lambda: service.label(peer, request))

    @app.post("/v1/break-glass", summary="Open a study that no grant shows, with a reason")
    async def break_glass(request: wire.BreakGlassRequest, peer: Member) -> list[wire.Share]:
        return await threads.write(lambda: service.break_glass(peer, request))
