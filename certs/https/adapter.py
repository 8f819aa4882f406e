"""How requests reaches the wire: our TLS context in its pools, and foreign exceptions put into words."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.poolmanager import PoolManager

from certs.tls import JudgedSocket, RefusedMeanwhile, ReloadingContext, describe
from certs.trust import Trust

_SERVICES = 64
_BLOCK = 256 * 1024  # bytes per send of a file-like body; the default of 16 KiB makes sixteen times the calls
_SEND_TIMEOUT = 30.0  # seconds without any progress while sending a body

_NETWORK: dict[type[BaseException], str] = {
    ConnectionRefusedError: "connection refused; is the service running?",
    socket.gaierror: "its host name cannot be resolved",
    urllib3.exceptions.IncompleteRead: "the answer ended early",
    http.client.IncompleteRead: "the answer ended early",
}


class _GridConnection(HTTPSConnection):
    """A connection whose sends may wait as long as a busy disk needs; urllib3 gives them the connect timeout."""

    def connect(self) -> None:
        super().connect()
        self._patient()

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        self._patient()
        super().putrequest(method, url, skip_host, skip_accept_encoding)

    def _patient(self) -> None:
        if self.sock is not None:
            self.sock.settimeout(_SEND_TIMEOUT)


def _pool_class(trust: Trust) -> type[HTTPSConnectionPool]:
    """Make the kind of pool whose connections follow this trust; urllib3 hands nothing of ours to them."""

    class Connection(_GridConnection):
        def connect(self) -> None:
            super().connect()
            if isinstance(self.sock, JudgedSocket):
                self.sock.follow(trust)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection

    return Pool


class GridAdapter(HTTPAdapter):
    """requests' adapter over a reloading TLS context; whatever requests believes about trust is ignored."""

    def __init__(self, tls: ReloadingContext, pool: int) -> None:
        self._tls = tls
        super().__init__(pool_connections=_SERVICES, pool_maxsize=pool)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        """Make pools that use the newest TLS context (signature as requests has it)."""
        self._maxsize = maxsize
        self._used = self._tls.context
        self._used.sslsocket_class = JudgedSocket
        made = PoolManager(num_pools=connections, maxsize=maxsize, ssl_context=self._used, blocksize=_BLOCK)
        made.pool_classes_by_scheme = {"https": _pool_class(self._tls.trust)}
        self.poolmanager = made

    def follow(self) -> None:
        """Take up a changed context: new pools for new requests, those under way finish in the old ones while they may.

        So a server revoked meanwhile is not asked again over a connection that was made before.
        """
        self._tls.refresh()
        if self._used is not self._tls.context:
            self.init_poolmanager(_SERVICES, self._maxsize)

    def build_connection_pool_key_attributes(  # type: ignore[override]  # the stubs' types are private
        self, request: requests.PreparedRequest, verify: object, cert: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Name the pool by host and port alone."""
        host, _ = super().build_connection_pool_key_attributes(request, True)
        return dict(host), {"cert_reqs": "CERT_REQUIRED"}

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:
        """Leave the pool alone: trust is in its context, and verify_mode stays CERT_REQUIRED."""


def was_cut(error: BaseException) -> bool:
    """Say whether the other side closed the connection before an answer."""
    cuts = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)
    return any(isinstance(each, cuts) for each in _causes(error))


def refusal_of(error: BaseException) -> str | None:
    """Say why the server's certificate was refused, in the handshake or later; None when that is not what failed."""
    for each in _causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return _server_fault(each)
        if isinstance(each, RefusedMeanwhile):
            return each.strerror or "refused"
    return None


def diagnose(error: BaseException, own_trouble: Callable[[], str]) -> str:
    """Put a transport error into a sentence that says what to look at; ``own_trouble`` judges our certificate."""
    refusal = refusal_of(error)
    if refusal is not None:
        return f"its certificate is refused: {refusal}"
    causes = list(_causes(error))
    if was_cut(error) or any(isinstance(each, ssl.SSLError) for each in causes):
        said = next((describe(each) for each in causes if isinstance(each, ssl.SSLError)), "no answer")
        trouble = own_trouble()
        found = f" (found: {trouble})" if trouble else ""
        return f"it closed the connection ({said}); check your certificate and its revocation{found}"
    known = [_NETWORK[type(each)] for each in causes if type(each) in _NETWORK]
    return known[0] if known else _timeout_or_os_error(causes)


def _timeout_or_os_error(causes: list[BaseException]) -> str:
    if any(isinstance(each, requests.ConnectTimeout) for each in causes):
        return "no connection within the connect timeout"
    if any(isinstance(each, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError) for each in causes):
        return "no answer within the read timeout"
    named = [each.strerror for each in causes if isinstance(each, OSError) and each.strerror]
    return named[0] if named else f"the connection failed ({type(causes[-1]).__name__})"


def _server_fault(error: ssl.SSLCertVerificationError) -> str:
    return error.verify_message if error.verify_code in (62, 64) else describe(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk an exception, what it wraps and what it came from, each once."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        each = todo.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            todo += [getattr(each, "reason", None), each.__cause__, each.__context__, *each.args]
