"""The one HTTP client: requests under our TLS context, with answers and silence kept apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import requests
import urllib3

from certs.config import IdentityConfig
from certs.errors import ConfigError, CredentialError, ServerRefused, TrustError, Unanswered
from certs.https.adapter import GridAdapter, diagnose, refusal_of, was_cut
from certs.https.lines import Asked, Exchange, Lines
from certs.https.problem import answered
from certs.tls import ReloadingContext, client_context

Body = bytes | IO[bytes] | Iterable[bytes]


class SizedBody(Sized, Iterable[bytes], Protocol):
    """A request body in blocks whose length, in bytes, is known."""


Params = Mapping[str, str | int | list[str]]

_PROBLEM_BYTES = 65_536
_READ_ONLY = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class _Call:
    """One request as the caller meant it."""

    method: str
    url: str
    headers: dict[str, str]
    data: Body | None
    params: Params | None
    acting_for: str | None
    read_timeout: float | None


class GridSession:
    """Calls services as one grid identity. Thread-safe; make one per process and keep it.

    Trust is exactly the grid's CAs, whatever the environment says; the server's host name and its revocation are
    checked. Renewed certificates and new CRLs take effect on the next request; a server that is refused meanwhile is
    left within a second or two of moving bytes (ServerRefused, a kind of Unanswered).
    """

    def __init__(
        self, identity: IdentityConfig, *, connect_timeout: float = 3.0, read_timeout: float = 30.0, pool: int = 8
    ) -> None:
        """Load the identity; raises CredentialError or TrustError. Timeouts are seconds, ``pool`` is per service."""
        self._identity = identity
        self._tls = client_context(identity)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._adapter = GridAdapter(self._tls, pool)
        self._lines = Lines(self._tls, self._unanswered, connect_timeout=connect_timeout, idle=pool)

    @property
    def identity(self) -> IdentityConfig:
        """Whose calls these are."""
        return self._identity

    @property
    def tls(self) -> ReloadingContext:
        """The client side of this identity, for channels that speak something else than HTTP."""
        return self._tls

    def json(
        self,
        method: str,
        url: str,
        *,
        body: object = None,
        params: Params | None = None,
        acting_for: str | None = None,
        read_timeout: float | None = None,
    ) -> Any:
        """Send a JSON request and return the decoded JSON answer, None when it has no body.

        Raises Unanswered or Answered.
        """
        headers = {"accept": "application/json"}
        data = None
        if body is not None:
            headers["content-type"] = "application/json"
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        if acting_for is not None:
            headers["dgis-acting-for"] = _actor(acting_for)
        if params:
            url = f"{url}?{urlencode(params, doseq=True)}"
        raw = self._asked(Asked(method, url, headers, (data or b"",), len(data or b"")), read_timeout)
        try:
            return json.loads(raw) if raw else None
        except ValueError as error:
            raise Unanswered(f"{_service(url)}: the answer is not JSON", service=_service(url)) from error

    def begin(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | memoryview | SizedBody = b"",
        acting_for: str | None = None,
    ) -> Exchange:
        """Send a request, so that several can be under way; then comes its ``answer``, and always its ``close``.

        ``data`` is bytes, or an iterable that knows its length in bytes. Raises Unanswered. For small calls and bulk:
        ``stream`` costs thrice as much; it alone does HEAD and bodies of unknown length.
        """
        sent = dict(headers or {})
        if acting_for is not None:
            sent["dgis-acting-for"] = _actor(acting_for)
        _service(url)
        body = (data,) if isinstance(data, bytes | memoryview) else data
        return self._lines.begin(Asked(method, url, sent, body, len(data)))

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Body | None = None,
        params: Params | None = None,
        acting_for: str | None = None,
        read_timeout: float | None = None,
    ) -> Iterator[requests.Response]:
        """Send a request and hand out the response before its body is read; use ``response.raw`` for bulk bytes.

        ``data`` may be bytes, a binary file or an iterable of bytes, sent as it is read. Raises Unanswered or Answered,
        also for errors of the connection inside the ``with`` block; a body left unread closes the connection.
        """
        with self._sent(_Call(method, url, dict(headers or {}), data, params, acting_for, read_timeout)) as response:
            yield response

    def cert_store_stats(self) -> dict[str, int]:
        """Return how many certificates and CRLs the TLS context trusts (``ssl.SSLContext.cert_store_stats``)."""
        return self._tls.context.cert_store_stats()

    def close(self) -> None:
        """Close pooled connections; calls under way end with their own."""
        self._adapter.close()
        self._lines.close()

    def _asked(self, asked: Asked, read_timeout: float | None) -> bytes:
        """Ask for a small answer; once more where that is harmless and the kept connection was gone."""
        _service(asked.url)
        try:
            return self._asked_once(asked, read_timeout)
        except Unanswered as error:
            harmless = asked.method in _READ_ONLY and not asked.length
            if not harmless or error.__cause__ is None or not was_cut(error.__cause__):
                raise
        return self._asked_once(asked, read_timeout)

    def _asked_once(self, asked: Asked, read_timeout: float | None) -> bytes:
        exchange = self._lines.begin(asked)
        try:
            exchange.answer(read_timeout or self._read_timeout)
            return exchange.whole()
        finally:
            exchange.close()

    @contextmanager
    def _sent(self, call: _Call) -> Iterator[requests.Response]:
        service = _service(call.url)
        response: requests.Response | None = None
        try:
            response = self._send(call)
            if response.status_code >= 300:
                body = response.raw.read(_PROBLEM_BYTES)
                raise answered(service, response.status_code, response.reason, body)
            yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._unanswered(service, error) from error
        finally:
            if response is not None:
                _give_back(response)

    def _send(self, call: _Call) -> requests.Response:
        self._adapter.follow()
        try:
            return self._request(call)
        except requests.ConnectionError as error:
            # A kept-alive connection may have been closed while idle: ask again once where that is harmless
            again = call.method in _READ_ONLY and call.data is None and was_cut(error)
            if not again:
                raise
            return self._request(call)

    def _request(self, call: _Call) -> requests.Response:
        headers = {"user-agent": "dgis", "accept-encoding": "identity", **call.headers}
        if call.acting_for is not None:
            headers["dgis-acting-for"] = _actor(call.acting_for)
        # No requests.Session in between: no environment (REQUESTS_CA_BUNDLE, proxies), no cookies, no redirects; it
        # would cost a quarter of a small call
        asked = requests.Request(call.method, call.url, headers=headers, data=call.data, params=call.params)
        return self._adapter.send(
            asked.prepare(),
            stream=True,
            timeout=(self._connect_timeout, call.read_timeout or self._read_timeout),
        )

    def _unanswered(self, service: str, error: Exception) -> Unanswered:
        kind = Unanswered if refusal_of(error) is None else ServerRefused
        return kind(f"{service}: {diagnose(error, self._own_trouble)}", service=service)

    def _own_trouble(self) -> str:
        """Say what is wrong with our own certificate, judged as the server would, or ""."""
        try:
            self._tls.credential.check()
            self._tls.trust.judge(self._identity.cert.read_bytes())
        except (CredentialError, TrustError) as error:
            return str(error)
        except OSError:
            return f"{self._identity.cert} cannot be read"
        return ""


def _actor(acting_for: str) -> str:
    return quote(acting_for, safe=" /=:@,.+*'()\"")


def _service(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.netloc:
        raise ConfigError("a service URL begins with https://HOST:PORT; nothing is sent unauthenticated")
    return parts.netloc


def _give_back(response: requests.Response) -> None:
    """Return the connection to the pool when its answer was read to the end, close it otherwise."""
    if response.raw.length_remaining == 0:
        response.raw.drain_conn()
    response.close()
