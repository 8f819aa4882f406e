"""uvicorn, taught four things: each connection's verified chain, patience with an end, our TLS context, large bodies.

A request head that does not arrive in time or grows too long, and a body that stalls, end the connection. Peers that
stop reading are cut by the kernel (TCP_USER_TIMEOUT). A body of known length is decrypted into the block that the
application gets; only heads, and bodies in chunks, go through the parser.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from types import FrameType
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn import Config, Server
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from certs.config import ListenConfig
from certs.descriptors import descriptor_limit
from certs.errors import ConfigError, TrustError
from certs.https.access import STATE_KEY, Connection
from certs.https.arrivals import Arrivals, Room, Seat
from certs.https.cycle import Cycle
from certs.https.problem import MEDIA_TYPE, ProblemError
from certs.log import get_log
from certs.tls import chain_of

log = get_log()

HEAD_TIMEOUT = 15.0
BODY_TIMEOUT = 60.0
UNREAD_TIMEOUT_MS = 60_000
KEEP_ALIVE = 75
MOST_HEAD_BYTES = 65_536
_BACKLOG = 2048
_STOP_WITHIN = 4
_TICKS_PER_SWEEP = 10  # uvicorn ticks every 0.1 s
_TICKS_PER_WATCH = 6000
_HEAD_READ = 64 * 1024
# A body is received into blocks of this size: as much as asyncio reads of a TLS connection at once
_BODY_READ = 256 * 1024


class MtlsProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """HTTP/1.1 over mutual TLS: ``scope["state"]`` carries the connection's verified chain."""

    cycle: Cycle

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], seat: Seat, scratch: memoryview
    ) -> None:
        """``scratch`` is where heads are received, one for all connections of the loop."""
        super().__init__(config, server_state, app_state)
        self._seat = seat
        self._scratch = scratch
        self._body_left = 0  # of a body whose length was declared
        self._block = memoryview(b"")  # what is free of the block that the body is received into

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._seat.taken = True
        self._head_open = True
        self._head_bytes = 0
        self._last_data = self._head_since = self.loop.time()
        found = transport.get_extra_info("ssl_object")
        if isinstance(found, ssl.SSLObject):
            try:
                # Once per connection; requests get it through uvicorn's copy of app_state
                address = str((transport.get_extra_info("peername") or ("",))[0])
                self.app_state = {**self.app_state, STATE_KEY: Connection(chain_of(found), address)}
            except TrustError as error:
                log.warning("connection_without_chain", reason=str(error))
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._seat.leave()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where what comes next belongs; never more room than is left of a body."""
        if not self._body_left:
            return self._scratch
        if not self._block:
            self._block = memoryview(bytearray(min(self._body_left, _BODY_READ)))
        return self._block

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        if not self._body_left:
            self.data_received(self._scratch[:nbytes])
            return
        self._last_data = self.loop.time()
        self._body_left -= nbytes
        block, self._block = self._block[:nbytes], self._block[nbytes:]
        if not self.cycle.response_complete and self.cycle.feed(block):
            self.flow.pause_reading()
        if not self._body_left:
            self._block = memoryview(b"")
            self.on_message_complete()
            self.parser = _new_parser(self)  # the old one still waits for the body

    def data_received(self, data: bytes | memoryview) -> None:
        self._last_data = self.loop.time()
        super().data_received(data)  # type: ignore[arg-type]  # the parser takes any buffer, and copies
        if self._head_open:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._give_up(ProblemError(431, "head-too-large", f"at most {MOST_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        self._head_open = True
        self._head_bytes = 0
        self._head_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application, or put the request behind the one before it (as uvicorn does, with our cycle)."""
        self._head_open = False
        self._seat.spoke()
        version = self.parser.get_http_version()
        self._complete_scope(version)
        self._body_left = _declared_length(self.headers)
        before = self.cycle
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        app = service_unavailable if self._overloaded() else self.app
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def on_body(self, body: bytes) -> None:
        """Take body bytes that came with the head, or in chunks."""
        self._body_left -= min(len(body), self._body_left)
        if not self.cycle.response_complete and self.cycle.feed(body):
            self.flow.pause_reading()

    def _complete_scope(self, version: str) -> None:
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        self.scope["http_version"] = version
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""

    def _overloaded(self) -> bool:
        most = self.limit_concurrency
        return most is not None and (len(self.connections) >= most or len(self.tasks) >= most)

    def send_400_response(self, msg: str) -> None:
        self._head_open = False
        self._give_up(ProblemError(400, "not-http", msg))

    def sweep(self, now: float) -> None:
        """End the connection when its head or body is overdue."""
        if self.transport.is_closing():
            return
        if self._head_open:
            busy = self.cycle is not None and not self.cycle.response_complete
            if not busy and now - self._head_since > HEAD_TIMEOUT:
                self._give_up(ProblemError(408, "request-timeout", "the request did not arrive in time"))
        elif self._body_stalls(now):
            log.warning("request_body_stalled", seconds=BODY_TIMEOUT)
            self.transport.abort()

    def _body_stalls(self, now: float) -> bool:
        waiting = self.cycle is not None and self.cycle.more_body and not self.flow.read_paused
        return waiting and now - self._last_data > BODY_TIMEOUT

    def _give_up(self, problem: ProblemError) -> None:
        if self.transport.is_closing():
            return
        body = problem.to_json()
        head = (
            f"HTTP/1.1 {problem.http_status} {problem.title}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _new_parser(protocol: MtlsProtocol) -> httptools.HttpRequestParser:
    made = httptools.HttpRequestParser(protocol)
    made.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it: what comes after a close is ours
    return made


def _declared_length(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the length of a body, 0 when it comes in chunks or not at all; the parser has judged the header."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


class GridServer(Server):
    """uvicorn's server on sockets and a TLS context of ours."""

    def __init__(
        self,
        config: Config,
        context: ssl.SSLContext,
        on_ready: Callable[[], None],
        on_watch: Callable[[], object] | None = None,
        *,
        room: Room | None = None,
    ) -> None:
        """``on_watch`` is called, in a thread, at the start and every ten minutes; ``room`` (None: what the
        descriptor limit bears) is how many connections there may be.
        """
        super().__init__(config)
        self._arrivals = Arrivals(room or Room.within(descriptor_limit()), context, self._protocol)
        self._taking: list[asyncio.Task[None]] = []
        self._on_ready = on_ready
        self._on_watch = on_watch
        self._scratch = memoryview(bytearray(_HEAD_READ))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the given sockets only; a failing application start raises ConfigError."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise ConfigError("the service could not start; its log says why")
        self.servers = []  # none of uvicorn's: connections are counted before TLS begins
        self._taking = [asyncio.create_task(self._arrivals.take(each)) for each in sockets or []]
        self.started = True
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, then end what there is."""
        self._arrivals.stop()
        for task in self._taking:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await super().shutdown(sockets)

    def _protocol(self, seat: Seat) -> MtlsProtocol:
        return MtlsProtocol(self.config, self.server_state, self.lifespan.state, seat, self._scratch)

    async def on_tick(self, counter: int) -> bool:
        """Look after overdue connections once a second."""
        if counter % _TICKS_PER_SWEEP == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, MtlsProtocol):
                    connection.sweep(now)
        if counter % _TICKS_PER_WATCH == 0 and self._on_watch is not None:
            asyncio.get_running_loop().run_in_executor(None, self._on_watch)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully; uvicorn would raise the signal again afterwards, and a clean stop exits 0."""
        self.should_exit = True


def server_config(app: Callable[..., Any]) -> Config:
    """Set uvicorn up: httptools, no access log, no banner, a graceful stop of at most a few seconds."""
    room = Room.within(descriptor_limit())
    return Config(
        app,
        loop="asyncio",
        http=MtlsProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=room.connections - room.connections // 10,  # said as 503 before connections are refused
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=_STOP_WITHIN,
    )


def listening_socket(listen: ListenConfig) -> socket.socket:
    """Bind and listen; raises ConfigError naming the address when that is impossible."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    # The protocol must be named: asyncio sets TCP_NODELAY only on sockets that say they are TCP
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(made)
        made.bind((listen.host, listen.port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {listen.host}:{listen.port}: {error.strerror}", table="server", key="port"
        ) from error
    made.setblocking(False)
    return made


def inherited_socket(descriptor: int) -> socket.socket:
    """Take over a listening TCP socket of a parent process."""
    found = socket.socket(fileno=descriptor)
    made = socket.socket(found.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=found.detach())
    tune(made)
    made.setblocking(False)
    return made


def tune(made: socket.socket) -> None:
    """Let accepted connections inherit: probes for vanished peers, an end for those that stop reading."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)


def url_of(made: socket.socket, host: str) -> str:
    """Return the https URL of a listening socket; a host without brackets gets them where IPv6 needs them."""
    port = made.getsockname()[1]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
