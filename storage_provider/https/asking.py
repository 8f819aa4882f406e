"""One door's requests over the grid session: headers, timeouts, errors in our words. Imports no server library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlencode

import requests
from pydantic import BaseModel, ValidationError

from certs.errors import Answered, ServerRefused, Unanswered
from certs.https.lines import Exchange
from certs.https.session import GridSession, Params, SizedBody
from storage_provider.errors import Denied, Faulty, Unreachable
from storage_provider.https.problems import from_answer, from_silence
from storage_provider.timeouts import Timeouts
from storage_provider.wire import PERMIT_HEADER

STALE_SECONDS = 1.0

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; `key` is for the error's sake only."""

    method: str
    url: str
    key: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes | memoryview | SizedBody | None = None
    params: Params | None = None
    acting_for: str | None = None
    patience: float | None = None


class Asker:
    """Sends requests to one door; thread-safe. The permit, if any, goes with every request."""

    def __init__(self, session: GridSession, door: str, *, permit: str | None, timeouts: Timeouts) -> None:
        self.door = door
        self.timeouts = timeouts
        self._session = session
        self._permit = {PERMIT_HEADER: permit} if permit else {}

    @contextmanager
    def said(self, key: str) -> Iterator[None]:
        """Put the session's errors into StorageErrors."""
        try:
            yield
        except ServerRefused as error:
            refused = Denied(str(error), door=self.door, key=key)
            refused.permanent = False  # a renewed certificate or a fresh CRL changes it
            raise refused from error
        except Unanswered as error:
            raise from_silence(error, door=self.door, key=key) from error
        except Answered as error:
            raise from_answer(error, door=self.door, key=key) from error

    @contextmanager
    def stream(self, ask: Ask) -> Iterator[requests.Response]:
        """Hand out requests' response before its body is read; raises StorageErrors, also inside the block."""
        with (
            self.said(ask.key),
            self._session.stream(
                ask.method,
                ask.url,
                headers={**self._permit, **ask.headers},
                data=bytes(ask.data) if isinstance(ask.data, memoryview) else ask.data,
                params=ask.params,
                acting_for=ask.acting_for,
                read_timeout=ask.patience or self.timeouts.answer,
            ) as response,
        ):
            yield response

    def begin(self, ask: Ask) -> Exchange:
        """Send a request; then comes `answer`, and always the exchange's `close`. Raises StorageErrors."""
        url = f"{ask.url}?{urlencode(ask.params)}" if ask.params else ask.url
        headers = {**self._permit, **ask.headers}
        with self.said(ask.key):
            return self._session.begin(
                ask.method, url, headers=headers, data=ask.data or b"", acting_for=ask.acting_for
            )

    def answer(self, exchange: Exchange, ask: Ask) -> None:
        """Wait for the head of the answer; raises StorageErrors."""
        with self.said(ask.key):
            exchange.answer(ask.patience or self.timeouts.answer)

    @contextmanager
    def answered(self, ask: Ask) -> Iterator[Exchange]:
        """Ask, and hand out the answer before its body is read."""
        with self.answer_of(self.begin(ask), ask) as exchange:
            yield exchange

    @contextmanager
    def answer_of(self, exchange: Exchange, ask: Ask) -> Iterator[Exchange]:
        """Hand out the answer of an exchange begun; asks a reader's question once more when its kept line was gone."""
        try:
            try:
                self.answer(exchange, ask)
            except Unreachable:
                if ask.method != "GET" or not exchange.kept:
                    raise
                exchange.close()
                exchange = self.begin(ask)
                self.answer(exchange, ask)
            yield exchange
        finally:
            exchange.close()

    def whole(self, ask: Ask) -> bytes:
        """Return the body of a small answer."""
        with self.answered(ask) as exchange, self.said(ask.key):
            return exchange.whole()

    def model(self, kind: type[ModelT], ask: Ask, *, body: BaseModel | None = None) -> ModelT:
        """Send JSON, if any, and parse the JSON answer; asks again once when a kept connection was gone."""
        if body is not None:
            headers = {**ask.headers, "content-type": "application/json"}
            data = body.model_dump_json().encode()
            ask = Ask(ask.method, ask.url, ask.key, headers, data, ask.params, ask.acting_for, ask.patience)
        return self.parsed(kind, self.again(lambda: self.whole(ask)), ask.key)

    def parsed(self, kind: type[ModelT], raw: bytes, key: str) -> ModelT:
        """Parse an answer; one that is not what the protocol says is Faulty."""
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise Faulty("the answer is not what the protocol says", door=self.door, key=key) from error

    def again(self, call: Callable[[], T]) -> T:
        """Call once more when a kept connection turned out to be gone at once (every call here is idempotent)."""
        began = time.monotonic()
        try:
            return call()
        except Unreachable:
            if time.monotonic() - began > STALE_SECONDS:
                raise
            return call()
