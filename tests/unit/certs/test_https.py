"""The harness: rules, problems, limits, streams, health, metrics, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from certs.config import ListenConfig
from certs.dn import DN
from certs.errors import Answered, ConfigError, Unanswered
from certs.gridmap import map_dn
from certs.https import protocol
from certs.https.problem import ProblemError
from certs.https.server import add_check, create_app, guarded, route_rules, rule, running
from certs.https.session import GridSession
from certs.peer import Peer
from certs.policy import ANY_ROLE, OPEN_TO_VERIFIED, Rule
from certs.tls import server_context
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome
from tests.helpers.rawtls import Kept

OPERATE = Rule("operate", frozenset({"operator"}))
SECRET = "Novak^Jan"


class Item(BaseModel, frozen=True, extra="forbid"):
    name: str
    count: int


class Gates:
    """Lets a test and a handler wait for each other."""

    def __init__(self) -> None:
        self.first_chunk = threading.Event()
        self.client_has_first = threading.Event()


def make_app(site: SiteHome, gates: Gates, *, body_limit: int = 100_000) -> FastAPI:
    app = create_app(title="things", version="9", identity=site.catalog(), body_limit=body_limit)
    router = APIRouter(prefix="/v1")

    @router.post("/items")
    async def post_item(item: Item, peer: Annotated[Peer, Depends(rule(ANY_ROLE))]) -> dict[str, object]:
        return {"name": item.name, "by": str(peer.dn), "for": peer.acting_for}

    @router.delete("/items", dependencies=[Depends(rule(OPERATE))])
    async def delete_items() -> Response:
        return Response(status_code=204)

    @router.get("/fails", dependencies=[Depends(rule(OPEN_TO_VERIFIED))])
    def fails() -> None:
        raise ValueError(SECRET)

    @router.get("/taken", dependencies=[Depends(rule(OPEN_TO_VERIFIED))])
    async def taken() -> None:
        raise ProblemError(409, "already-there", "another has it", extensions={"kept": "a"})

    @router.put("/fast-stream")
    async def fast_stream(request: Request, peer: Annotated[Peer, Depends(rule(ANY_ROLE))]) -> dict[str, int]:
        return {"bytes": await count(request, gates)}

    async def plain_stream(request: Request, peer: Peer) -> Response:
        return Response(json.dumps({"bytes": await count(request, gates)}))

    async def busy(request: Request, peer: Peer) -> Response:
        await asyncio.sleep(0.8)
        return Response(json.dumps({"bytes": await count(request, gates)}))

    async def early(request: Request, peer: Peer) -> Response:
        raise ProblemError(507, "no-space", "the area is full")

    async def down(request: Request, peer: Peer) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a" * 1000
            deadline = time.monotonic() + 5
            while not gates.client_has_first.is_set() and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            yield b"b" if gates.client_has_first.is_set() else b"x"

        return StreamingResponse(chunks())

    async def cut(request: Request, peer: Peer) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a" * 1000
            raise ValueError(SECRET)

        return StreamingResponse(chunks(), headers={"content-length": "5000"})

    app.include_router(router)
    app.add_route("/plain-stream", guarded(ANY_ROLE, plain_stream), methods=["PUT"])
    app.add_route("/busy", guarded(ANY_ROLE, busy), methods=["PUT"])
    app.add_route("/early", guarded(ANY_ROLE, early), methods=["PUT"])
    app.add_route("/down", guarded(ANY_ROLE, down), methods=["GET", "HEAD"])
    app.add_route("/cut", guarded(ANY_ROLE, cut), methods=["GET"])
    return app


async def count(request: Request, gates: Gates) -> int:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        gates.first_chunk.set()
    return total


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates()


@pytest.fixture(scope="module")
def url(site: SiteHome, gates: Gates) -> Iterator[str]:
    with running(make_app(site, gates), site.catalog()) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(site: SiteHome) -> GridSession:
    return GridSession(site.gateway())


@pytest.fixture(scope="module")
def operator(site: SiteHome) -> GridSession:
    return GridSession(site.operator())


class TestRules:
    def test_every_route_names_its_rule(self, site: SiteHome) -> None:
        rules = route_rules(make_app(site, Gates()))
        assert {name: found.name for name, found in rules.items() if found is not None} == {
            "GET /v1/whoami": "open-to-verified",
            "GET /health": "open-to-verified",
            "GET /metrics": "metrics",
            "GET /openapi.json": "open-to-verified",
            "POST /v1/items": "any-role",
            "DELETE /v1/items": "operate",
            "GET /v1/fails": "open-to-verified",
            "GET /v1/taken": "open-to-verified",
            "PUT /v1/fast-stream": "any-role",
            "PUT /plain-stream": "any-role",
            "PUT /busy": "any-role",
            "PUT /early": "any-role",
            "GET /down": "any-role",
            "GET /cut": "any-role",
        }
        assert None not in rules.values()

    def test_an_app_with_a_bare_route_is_not_served(self, site: SiteHome) -> None:
        app = create_app(title="bare", version="1", identity=site.catalog())
        app.add_api_route("/open", lambda: None)
        with pytest.raises(ConfigError, match="no access rule on GET /open"), running(app, site.catalog()):
            pass

    def test_only_the_role_passes(self, url: str, gateway: GridSession, operator: GridSession) -> None:
        assert operator.json("DELETE", f"{url}/v1/items") is None
        with pytest.raises(Answered, match="operate needs the role operator; .*CN=dgis has gateway") as caught:
            gateway.json("DELETE", f"{url}/v1/items")
        assert (caught.value.http_status, caught.value.permanent) == (403, True)
        assert caught.value.problem_type == "urn:dgis:problem:not-allowed"

    def test_a_stranger_is_told_about_the_gridmap(self, url: str, site: SiteHome) -> None:
        stranger = GridSession(site.host("roleless"))
        assert stranger.json("GET", f"{url}/v1/whoami")["roles"] == []
        with pytest.raises(Answered, match="any-role needs the role"):
            stranger.json("POST", f"{url}/v1/items", body={"name": "x", "count": 1})

    def test_roles_follow_the_gridmap(self, fresh_site: SiteHome) -> None:
        session = GridSession(fresh_site.host("mover"))
        with running(make_app(fresh_site, Gates()), fresh_site.catalog()) as address:
            assert session.json("GET", f"{address}/v1/whoami")["roles"] == []
            dn = DN.parse("/O=Test Grid/OU=Hosts/CN=mover")
            map_dn(fresh_site.gridmap, dn, account="new", roles=frozenset({"storage", "monitor"}))
            after = session.json("GET", f"{address}/v1/whoami")
            assert (after["account"], after["roles"]) == ("new", ["monitor", "storage"])
            fresh_site.gridmap.write_text("nonsense\n")
            assert session.json("GET", f"{address}/v1/whoami")["account"] == "new"

    def test_acting_for_counts_from_gateways_only(self, url: str, gateway: GridSession, operator: GridSession) -> None:
        for actor in ("ae:CT1@site-a", "/O=Grid/CN=Žofie Nováková"):
            said = {"name": "x", "count": 1}
            assert gateway.json("POST", f"{url}/v1/items", body=said, acting_for=actor)["for"] == actor
            assert operator.json("POST", f"{url}/v1/items", body=said, acting_for=actor)["for"] is None

    def test_a_control_character_in_acting_for(self, url: str, gateway: GridSession) -> None:
        with pytest.raises(Answered, match="400"):
            gateway.json("GET", f"{url}/v1/whoami", acting_for="x\ny")


class TestProblems:
    def test_what_a_handler_raises(self, url: str, gateway: GridSession) -> None:
        with pytest.raises(Answered, match="409: Already there: another has it") as caught:
            gateway.json("GET", f"{url}/v1/taken")
        assert (caught.value.title, caught.value.detail) == ("Already there", "another has it")

    @pytest.mark.parametrize(
        ("method", "path", "status"), [("GET", "/nowhere", 404), ("PATCH", "/v1/items", 405), ("GET", "/%2e%2e", 404)]
    )
    def test_no_such_thing(self, url: str, gateway: GridSession, method: str, path: str, status: int) -> None:
        with pytest.raises(Answered) as caught:
            gateway.json(method, url + path)
        assert (caught.value.http_status, caught.value.permanent) == (status, True)
        assert caught.value.problem_type.startswith("urn:dgis:problem:")

    def test_an_invalid_body_names_places_not_values(self, url: str, gateway: GridSession) -> None:
        with pytest.raises(Answered, match=r"422: Not valid: body\.count: .*; body\.extra: ") as caught:
            gateway.json("POST", f"{url}/v1/items", body={"name": "x", "count": SECRET, "extra": SECRET})
        assert SECRET not in str(caught.value)

    def test_a_failing_handler_leaks_nothing(
        self, url: str, gateway: GridSession, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(Answered, match="500") as caught:
            gateway.json("GET", f"{url}/v1/fails")
        assert not caught.value.permanent
        written = "".join(capfd.readouterr())
        assert "ValueError" in written
        assert "test_https" in written
        assert SECRET not in written + str(caught.value)

    def test_a_cut_answer_is_no_answer(self, url: str, gateway: GridSession, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(Unanswered), gateway.stream("GET", f"{url}/cut") as response:
            while response.raw.read(500):
                pass
        assert SECRET not in "".join(capfd.readouterr())
        assert gateway.json("GET", f"{url}/v1/whoami")

    @pytest.mark.parametrize("declared", [True, False])
    def test_a_buffered_body_has_a_limit(self, url: str, gateway: GridSession, declared: bool) -> None:
        body = json.dumps({"name": "x" * 150_000, "count": 1}).encode()
        data = body if declared else (body[at : at + 10_000] for at in range(0, len(body), 10_000))
        headers = {"content-type": "application/json"}
        refused = pytest.raises(Answered, match="413")
        with refused, gateway.stream("POST", f"{url}/v1/items", headers=headers, data=data):
            pass

    def test_a_refusal_before_the_body_is_read_still_arrives(self, url: str, gateway: GridSession) -> None:
        """The client is still sending when the answer is there; its connection is good for the next call."""
        for _ in range(5):
            refused = pytest.raises(Answered, match="507: No space: the area is full")
            with refused, gateway.stream("PUT", f"{url}/early", data=b"z" * 5_000_000):
                pass
            assert gateway.json("GET", f"{url}/v1/whoami")

    def test_deeply_nested_json(self, url: str, gateway: GridSession) -> None:
        refused = pytest.raises(Answered, match="4[02][02]")
        headers = {"content-type": "application/json"}
        with refused, gateway.stream("POST", f"{url}/v1/items", headers=headers, data=b"[" * 90_000):
            pass


class TestStreams:
    @pytest.mark.parametrize("path", ["/v1/fast-stream", "/plain-stream"])
    def test_a_request_passes_through_unbuffered_and_unlimited(
        self, url: str, gateway: GridSession, gates: Gates, path: str
    ) -> None:
        """The second part is sent only after the handler has seen the first; all of it is above the buffer limit."""
        gates.first_chunk.clear()
        waited = []

        def parts() -> Iterator[bytes]:
            yield b"a" * 50_000
            waited.append(gates.first_chunk.wait(5))
            for _ in range(20):
                yield b"b" * 50_000

        assert gateway_put(gateway, url + path, parts()) == {"bytes": 1_050_000}
        assert waited == [True]

    def test_an_answer_passes_through_unbuffered(self, url: str, gateway: GridSession, gates: Gates) -> None:
        gates.client_has_first.clear()
        with gateway.stream("GET", f"{url}/down") as response:
            assert response.raw.read(1000) == b"a" * 1000
            gates.client_has_first.set()
            assert response.raw.read() == b"b"

    def test_a_file_is_sent_in_large_blocks(self, url: str, gateway: GridSession, tmp_path: object) -> None:
        reads: list[int] = []

        class Source:
            """A file-like body of 1 MiB that notes how it is read."""

            left = 1 << 20

            def __len__(self) -> int:
                return 1 << 20

            def __iter__(self) -> Iterator[bytes]:
                return iter((b"",))

            def read(self, size: int = -1) -> bytes:
                reads.append(size)
                taken = min(size, self.left)
                self.left -= taken
                return b"z" * taken

        assert gateway_put(gateway, f"{url}/plain-stream", Source()) == {"bytes": 1 << 20}
        assert min(reads) >= 256 * 1024

    def test_a_busy_service_may_read_late(self, url: str, site: SiteHome) -> None:
        """Sending has its own patience: neither the connect timeout nor, on a kept connection, the last read's."""
        session = GridSession(site.gateway(), connect_timeout=0.3, read_timeout=5)
        for _ in range(2):
            assert gateway_put(session, f"{url}/busy", b"z" * 30_000_000) == {"bytes": 30_000_000}

    def test_one_connection_serves_every_kind_of_call(self, url: str, site: SiteHome, gates: Gates) -> None:
        gates.client_has_first.set()
        session = GridSession(site.operator())
        for _ in range(3):
            with session.stream("HEAD", f"{url}/down") as response:
                assert response.status_code == 200
            with session.stream("DELETE", f"{url}/v1/items") as response:
                assert response.status_code == 204
            with session.stream("GET", f"{url}/down") as response:
                assert len(response.raw.read()) == 1001
            with session.stream("GET", f"{url}/v1/whoami") as response:
                buffer = bytearray(int(response.headers["content-length"]))
                assert response.raw.readinto(buffer) == len(buffer)  # the end itself is never asked for
            gateway_put(session, f"{url}/plain-stream", b"")
            with pytest.raises(Answered):
                session.json("GET", f"{url}/nowhere")
        pools = session._adapter.poolmanager.pools
        [key] = list(pools.keys())
        assert pools[key].num_connections == 1

    def test_an_answer_left_unread_costs_only_its_connection(self, url: str, gateway: GridSession) -> None:
        with gateway.stream("GET", f"{url}/down"):
            pass
        assert gateway.json("GET", f"{url}/v1/whoami")

    def test_errors_of_the_caller_stay_the_callers(self, url: str, gateway: GridSession) -> None:
        with pytest.raises(OSError, match="No space left"), gateway.stream("GET", f"{url}/v1/whoami"):
            raise OSError(28, "No space left on device")


def gateway_put(session: GridSession, url: str, data: object) -> object:
    with session.stream("PUT", url, data=data) as response:  # type: ignore[arg-type]
        return json.loads(response.raw.read())


class TestHealthAndMetrics:
    def test_health_names_each_check(self, site: SiteHome, gateway: GridSession) -> None:
        app = make_app(site, Gates())
        add_check(app, "disk", lambda: "12 GB free")
        with running(app, site.catalog()) as address:
            health = gateway.json("GET", f"{address}/health")
            assert (health["status"], health["service"], health["version"]) == ("ok", "things", "9")
            assert {name: check["ok"] for name, check in health["checks"].items()} == {
                "certificate": True, "revocation": True, "disk": True,
            }  # fmt: skip
            assert health["checks"]["disk"]["detail"] == "12 GB free"

            def broken() -> str:
                raise ValueError(SECRET)

            add_check(app, "disk", broken)
            with pytest.raises(Answered, match="503"):
                gateway.json("GET", f"{address}/health")
            kept = Kept(address, rawtls.client_context(site.gateway(), site.catalog()))
            status, body = kept.get("/health")
            assert (status, body["status"]) == (503, "failed")
            assert body["checks"]["disk"] == {"ok": False, "detail": "ValueError"}

    def test_metrics_count_by_route_never_by_path(self, url: str, operator: GridSession, gateway: GridSession) -> None:
        with pytest.raises(Answered):
            gateway.json("GET", f"{url}/v1/patients/{SECRET}")
        with operator.stream("GET", f"{url}/metrics") as response:
            text = response.raw.read().decode()
        assert 'dgis_http_requests_total{method="GET",route="/v1/whoami",status="200"}' in text
        assert 'dgis_http_requests_total{method="GET",route="none",status="404"}' in text
        assert "Novak" not in text
        with pytest.raises(Answered, match="403"):
            gateway.json("GET", f"{url}/metrics")

    def test_expiry_is_measured_and_alarmed(self, site: SiteHome, url: str, operator: GridSession) -> None:
        with operator.stream("GET", f"{url}/metrics") as response:
            lines = response.raw.read().decode().splitlines()
        values = {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}
        left = values["dgis_crl_expiry_seconds"] - time.time()
        assert timedelta(hours=35) < timedelta(seconds=left) < timedelta(hours=37)
        left = values["dgis_certificate_expiry_seconds"] - time.time()
        assert timedelta(days=89) < timedelta(seconds=left) < timedelta(days=91)
        watch = make_app(site, Gates()).state.watch
        now = datetime.now(UTC)
        assert watch.look(now=now) == ()
        assert "is its CA publishing" in watch.look(now=now + timedelta(hours=13))[0]
        assert "has expired" in watch.look(now=now + timedelta(hours=37))[0]
        assert "was not renewed" in watch.look(now=now + timedelta(days=61))[-1]

    def test_openapi_is_published(self, url: str, gateway: GridSession) -> None:
        document = gateway.json("GET", f"{url}/openapi.json")
        assert {"/v1/whoami", "/health", "/metrics", "/v1/items"} <= set(document["paths"])


class TestPatience:
    """Clients that misbehave are cut, and nobody else notices."""

    def test_slow_and_garbage_do_not_hold_up_others(self, url: str, site: SiteHome, gateway: GridSession) -> None:
        context = rawtls.client_context(site.gateway(), site.catalog())
        silent = [rawtls.plain_connect(url) for _ in range(50)]
        idle = [rawtls.connect(url, context) for _ in range(50)]
        for each in idle[:25]:
            each.sendall(b"GET /v1/whoami HT")
        for each in silent[:10]:
            each.sendall(b"\x16\x03\x01\xff\xff" + b"\0" * 100)
        garbage = rawtls.connect(url, context)
        garbage.sendall(b"\x00\x01\x02 garbage\r\n\r\n")
        assert garbage.recv(65536).startswith(b"HTTP/1.1 400")
        began = time.monotonic()
        for _ in range(20):
            assert gateway.json("GET", f"{url}/v1/whoami")["account"] == "dgis"
        assert time.monotonic() - began < 1.0
        for each in (*silent, *idle):
            each.close()

    @pytest.mark.parametrize("sent", [b"", b"GET /v1/whoami HTTP/1.1\r\nhost: x\r\nx-slow: "])
    def test_a_head_that_does_not_come_is_cut(
        self, url: str, site: SiteHome, monkeypatch: pytest.MonkeyPatch, sent: bytes
    ) -> None:
        monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.2)
        client = rawtls.connect(url, rawtls.client_context(site.gateway(), site.catalog()))
        client.sendall(sent)
        with client.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 408")

    def test_a_body_that_stalls_is_cut(self, url: str, site: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "BODY_TIMEOUT", 0.2)
        client = rawtls.connect(url, rawtls.client_context(site.gateway(), site.catalog()))
        client.sendall(b"PUT /plain-stream HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
        client.settimeout(5)
        assert read_to_the_end(client) == b""

    def test_a_kept_connection_is_not_a_late_head(
        self, url: str, site: SiteHome, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.2)
        kept = Kept(url, rawtls.client_context(site.gateway(), site.catalog()))
        assert kept.get()[0] == 200
        time.sleep(1.5)
        assert kept.get()[0] == 200

    def test_an_endless_head_is_refused(self, url: str, site: SiteHome) -> None:
        client = rawtls.connect(url, rawtls.client_context(site.gateway(), site.catalog()))
        client.sendall(b"GET / HTTP/1.1\r\n")
        told = b""
        for _ in range(100):
            try:
                client.sendall(b"x-more: " + b"y" * 4000 + b"\r\n")
            except OSError:
                break
        client.settimeout(5)
        try:
            told = client.recv(65536)
        except OSError:
            told = b"HTTP/1.1 431 (reset before it could be read)"
        assert told.startswith(b"HTTP/1.1 431")


@contextmanager
def forgetful_server(site: SiteHome, seen: list[bytes]) -> Iterator[str]:
    """Close the first connection on its request, answer the second."""
    context = server_context(site.catalog()).context
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)

    def run() -> None:
        for answer in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"):
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with context.wrap_socket(plain, server_side=True) as connection:
                seen.append(connection.recv(65536))
                connection.sendall(answer)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(6)


def read_to_the_end(client: ssl.SSLSocket) -> bytes:
    """Return what comes until the other side ends or resets the connection; a timeout is an error."""
    got = b""
    try:
        while chunk := client.recv(4096):
            got += chunk
    except (ConnectionResetError, ssl.SSLEOFError):
        pass
    return got


class TestSilence:
    def test_nobody_listens(self, gateway: GridSession) -> None:
        with pytest.raises(Unanswered, match="connection refused; is the service running") as caught:
            gateway.json("GET", "https://127.0.0.1:1/v1/whoami")
        assert (caught.value.service, caught.value.permanent) == ("127.0.0.1:1", False)

    def test_a_read_timeout(self, url: str, gateway: GridSession, gates: Gates) -> None:
        gates.client_has_first.clear()
        began = time.monotonic()
        late = pytest.raises(Unanswered, match="within the read timeout")
        with late, gateway.stream("GET", f"{url}/down", read_timeout=0.3) as response:
            response.raw.read()
        assert time.monotonic() - began < 3
        gates.client_has_first.set()

    def test_a_listener_that_never_speaks(self, gateway: GridSession) -> None:
        made = protocol.listening_socket(ListenConfig())
        session_url = protocol.url_of(made, "127.0.0.1")
        short = GridSession(gateway._identity, connect_timeout=0.5)
        began = time.monotonic()
        with pytest.raises(Unanswered, match="no connection within|no answer within"):
            short.json("GET", session_url)
        assert time.monotonic() - began < 3
        made.close()

    def test_a_restarted_service_is_found_again(self, site: SiteHome) -> None:
        session = GridSession(site.gateway())
        with running(make_app(site, Gates()), site.catalog()) as address:
            assert session.json("GET", f"{address}/v1/whoami")
        listen = ListenConfig(port=int(address.rsplit(":", 1)[1]))
        with running(make_app(site, Gates()), site.catalog(), listen=listen) as again:
            assert again == address
            assert session.json("GET", f"{address}/v1/whoami")

    @pytest.mark.parametrize(("method", "asked_again"), [("GET", True), ("POST", False)])
    def test_a_connection_closed_while_idle(self, site: SiteHome, method: str, asked_again: bool) -> None:
        """Asked again where that is harmless; whether a POST was done nobody knows, so its caller is told."""
        seen: list[bytes] = []
        with forgetful_server(site, seen) as address:
            session = GridSession(site.gateway(), read_timeout=3)
            if asked_again:
                assert session.json(method, f"{address}/x") == {}
            else:
                with pytest.raises(Unanswered, match="closed the connection"):
                    session.json(method, f"{address}/x", body={})
        assert len(seen) == (2 if asked_again else 1)

    def test_only_https(self, gateway: GridSession) -> None:
        with pytest.raises(ConfigError, match="begins with https://"):
            gateway.json("GET", "http://127.0.0.1:1/")

    def test_a_taken_port_is_named(self, site: SiteHome, url: str) -> None:
        taken = ListenConfig(port=int(url.rsplit(":", 1)[1]))
        refused = pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{taken.port}")
        with refused, running(make_app(site, Gates()), site.catalog(), listen=taken):
            pass
