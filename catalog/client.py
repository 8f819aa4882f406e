"""The catalog's client: what a DGIS and an operator ask of it. Thread-safe, as its session is.

"No answer" (CatalogUnavailable), "no" (CatalogRefused) and "not all of it" (CatalogIncomplete) never mix. Every call
is idempotent, so one that fails within two seconds without any answer is tried once more: that is how a connection
shows that the service closed while it was idle.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote

import urllib3
from pydantic import ValidationError

from catalog.errors import (
    CatalogError,
    CatalogForbidden,
    CatalogIncomplete,
    CatalogRefused,
    CatalogUnavailable,
    UnknownSubject,
)
from catalog.wire import (
    BreakGlassRequest,
    Change,
    Conflict,
    LabelReply,
    LabelRequest,
    Located,
    LocateRequest,
    PermitReply,
    PermitRequest,
    PolicyAnswer,
    PolicyPut,
    PolicyQuestion,
    PolicyText,
    PolicyVersion,
    Query,
    RegisterBatch,
    RegisterReply,
    RegisterResult,
    RemovedReply,
    ReplicaChange,
    ReplicaChanges,
    ReplicaReply,
    ResolveRequest,
    RetireReply,
    RetireRequest,
    Row,
    Share,
    ShareRequest,
    Site,
    StorageElement,
    Wire,
)
from certs.errors import Answered, CertsError, Unanswered
from certs.https.session import GridSession

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
W = TypeVar("W", bound=Wire)
_QUICK = 2.0
_LONG = 120.0  # seconds that a write may wait behind others
_BODY = 24 * 1024 * 1024  # larger batches are sent in halves
_PAGE = 65536
_CHANGES = 10_000  # replica changes in one request


class CatalogClient:
    """Calls one catalog. `url` is its base (https://HOST:PORT); `acting_for` is a DN or `ae:TITLE@SITE`."""

    def __init__(self, session: GridSession, url: str) -> None:
        self._session, self._url = session, url.rstrip("/")

    def register(self, batch: RegisterBatch, *, acting_for: str | None = None) -> list[RegisterResult]:
        """Register instances; one result per record, in order. Idempotent: the same batch again changes nothing."""
        body = batch.model_dump(mode="json")
        if len(batch.instances) > 1 and _size(batch) > _BODY:
            middle = len(batch.instances) // 2
            halves = (batch.instances[:middle], batch.instances[middle:])
            return [result for half in halves for result in self.register(
                RegisterBatch(instances=half), acting_for=acting_for)]
        reply = self._call("POST", "/v1/register", body, acting_for=acting_for, read_timeout=_LONG)
        return list(_parsed(RegisterReply, reply).results)

    def query(self, query: Query, *, acting_for: str | None = None) -> Stream[Row]:
        """Ask for matching entities: an iterator of rows, to be read to its end or closed.

        Raises CatalogIncomplete from the iterator when the answer breaks off; the rows before it are true. After
        the end, `truncated` says whether the limit cut it.
        """
        return self._stream("/v1/query", query, json.loads, acting_for)

    def locate(self, request: LocateRequest, *, acting_for: str | None = None) -> Stream[Located]:
        """Ask where instances are: an iterator like that of `query`. Unknown UIDs are left out."""
        return self._stream("/v1/locate", request, Located.model_validate_json, acting_for)

    def update_replicas(self, changes: Sequence[ReplicaChange], *, acting_for: str | None = None) -> None:
        """Report copies that appeared, changed or went; idempotent.

        Raises CatalogRefused when any change was refused (an unknown object, another digest); the rest was applied.
        """
        refused = []
        for start in range(0, len(changes), _CHANGES):
            body = ReplicaChanges(changes=tuple(changes[start : start + _CHANGES])).model_dump(mode="json")
            reply = self._call("POST", "/v1/replicas", body, acting_for=acting_for, read_timeout=_LONG)
            refused += list(_parsed(ReplicaReply, reply).refused)
        if refused:
            raise CatalogRefused(f"{len(refused)} of {len(changes)} replica changes were refused, the first because "
                                 f"{refused[0].reason} ({refused[0].object_key} at {refused[0].location})")

    def retire(self, instances: Sequence[str], *, acting_for: str | None = None) -> int:
        """Take instances out of the catalog; says how many were there. Their copies are the operator's to delete."""
        body = RetireRequest(instances=tuple(instances)).model_dump(mode="json")
        reply = self._call("POST", "/v1/retire", body, acting_for=acting_for, read_timeout=_LONG)
        return _parsed(RetireReply, reply).retired

    def conflicts(self, state: str | None = "open", *, limit: int = 1000) -> list[Conflict]:
        """List conflicts, newest first: open, kept_first, replaced, reported, or None for all."""
        params: dict[str, str | int | list[str]] = {"limit": limit}
        if state is not None:
            params["state"] = state
        return [_parsed(Conflict, one) for one in self._call("GET", "/v1/conflicts", params=params)]

    def resolve_conflict(
        self, conflict_id: str, action: Literal["keep_first", "replace"], *, acting_for: str | None = None
    ) -> Conflict:
        """Settle a conflict; CatalogRefused when there is no such one, or it was settled the other way."""
        path = f"/v1/conflicts/{quote(conflict_id, safe='')}/resolve"
        body = ResolveRequest(action=action).model_dump(mode="json")
        return _parsed(Conflict, self._call("POST", path, body, acting_for=acting_for))

    def issue_permit(self, request: PermitRequest, *, acting_for: str | None = None) -> PermitReply:
        """Have a permit signed that a storage element will honour."""
        reply = self._call("POST", "/v1/permits", request.model_dump(mode="json"), acting_for=acting_for)
        return _parsed(PermitReply, reply)

    def changes(self, after: int = 0, limit: int = 1000) -> list[Change]:
        """Read the change feed after a sequence number."""
        found = self._call("GET", "/v1/changes", params={"after": after, "limit": limit})
        return [_parsed(Change, one) for one in found]

    def storage_elements(self) -> list[StorageElement]:
        """List the storage elements with their doors."""
        return [_parsed(StorageElement, one) for one in self._call("GET", "/v1/storage-elements")]

    def put_storage_element(self, element: StorageElement) -> None:
        """Add or replace a storage element."""
        self._call("PUT", f"/v1/storage-elements/{quote(element.name, safe='')}", element.model_dump(mode="json"))

    def remove_storage_element(self, name: str, *, lost: bool = False) -> RemovedReply:
        """Take a storage element out; with `lost`, the copies that it has count as lost.

        Raises CatalogRefused when there is no such one, or while it has copies.
        """
        params: dict[str, str | int | list[str]] = {"lost": "true"} if lost else {}
        path = f"/v1/storage-elements/{quote(name, safe='')}"
        return _parsed(RemovedReply, self._call("DELETE", path, params=params, read_timeout=_LONG))

    def sites(self) -> list[Site]:
        """List the sites."""
        return [_parsed(Site, one) for one in self._call("GET", "/v1/sites")]

    def put_site(self, site: Site) -> None:
        """Add or replace a site."""
        self._call("PUT", f"/v1/sites/{quote(site.name, safe='')}", site.model_dump(mode="json"))

    def policy(self, version: int | None = None) -> PolicyText | None:
        """Read the policy in force, or one of its versions; None when there is none."""
        path = "/v1/policy" if version is None else f"/v1/policy/versions/{version}"
        try:
            return _parsed(PolicyText, self._call("GET", path))
        except UnknownSubject:
            return None

    def put_policy(self, text: str, *, follows: int | None = None) -> PolicyVersion:
        """Put a policy in force. Raises CatalogRefused saying what is wrong with it."""
        body = PolicyPut(text=text, follows=follows).model_dump(mode="json")
        return _parsed(PolicyVersion, self._call("PUT", "/v1/policy", body))

    def policy_versions(self) -> list[PolicyVersion]:
        """List the versions of the policy, newest first."""
        return [_parsed(PolicyVersion, one) for one in self._call("GET", "/v1/policy/versions")]

    def check_policy(self, question: PolicyQuestion) -> PolicyAnswer:
        """Ask who may do what, and why."""
        return _parsed(PolicyAnswer, self._call("POST", "/v1/policy/check", question.model_dump(mode="json")))

    def share(self, request: ShareRequest) -> Share:
        """Share a study with an actor or a group."""
        return _parsed(Share, self._call("POST", "/v1/shares", request.model_dump(mode="json")))

    def unshare(self, share_id: str) -> None:
        """End a share at once."""
        self._call("DELETE", f"/v1/shares/{quote(share_id, safe='')}")

    def shares(self, study_uid: str | None = None) -> list[Share]:
        """List the shares that count now, of one study or of all."""
        params: dict[str, str | int | list[str]] = {} if study_uid is None else {"study": study_uid}
        return [_parsed(Share, one) for one in self._call("GET", "/v1/shares", params=params)]

    def label(self, request: LabelRequest) -> LabelReply:
        """Change the labels of a study."""
        return _parsed(LabelReply, self._call("POST", "/v1/labels", request.model_dump(mode="json")))

    def break_glass(self, request: BreakGlassRequest) -> list[Share]:
        """Open a study that no grant shows."""
        return [_parsed(Share, one) for one in self._call("POST", "/v1/break-glass", request.model_dump(mode="json"))]

    def health(self) -> dict[str, Any]:
        """Read the service's health report; CatalogUnavailable when it is not well."""
        report = self._call("GET", "/health")
        return dict(report)

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: dict[str, str | int | list[str]] | None = None,
        acting_for: str | None = None,
        read_timeout: float | None = None,
    ) -> Any:
        return _twice(lambda: self._session.json(
            method, self._url + path, body=body, params=params, acting_for=acting_for, read_timeout=read_timeout))

    def _stream(
        self, path: str, body: Wire, parse: Callable[[bytes], T], acting_for: str | None
    ) -> Stream[T]:
        def opened() -> tuple[AbstractContextManager[requests.Response], requests.Response]:
            context = self._session.stream(
                "POST", self._url + path, headers={"content-type": "application/json"},
                data=body.model_dump_json().encode(), acting_for=acting_for)
            return context, context.__enter__()

        return Stream(*_twice(opened), parse)


class Stream(Iterator[T], Generic[T]):
    """An answer as it arrives. Close it, or use it as a context manager, unless it is read to its end."""

    def __init__(
        self, context: AbstractContextManager[requests.Response], response: requests.Response,
        parse: Callable[[bytes], T],
    ) -> None:
        self._context: AbstractContextManager[requests.Response] | None = context
        self._lines = _lines(response)
        self._parse = parse
        self.count = 0
        self.truncated = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._context is None:
            raise StopIteration
        try:
            line = next(self._lines, None)
            if line is None:
                raise CatalogIncomplete(f"the answer broke off after {self.count} rows")
            if not line.startswith(b'{"$end"'):
                row = self._parse(line)
                self.count += 1
                return row
            end = json.loads(line)["$end"]
            self.truncated = bool(end["truncated"])
            complete = end["count"] == self.count
        except CatalogError:
            self.close()
            raise
        except (CertsError, OSError, ValueError, KeyError) as error:
            self.close()
            raise CatalogIncomplete(f"the answer broke off after {self.count} rows ({type(error).__name__})") from None
        self._finish()
        if not complete:
            raise CatalogIncomplete(f"{self.count} rows arrived of {end['count']}")
        raise StopIteration

    def close(self) -> None:
        """Give up the rest of the answer; harmless after the end."""
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self) -> None:
        """Read the end of the transfer, so that the connection can be used again, and let go of it."""
        with contextlib.suppress(CatalogError, CertsError, OSError, ValueError):  # every row is here already
            next(self._lines, None)
        self.close()


def _lines(response: requests.Response) -> Iterator[bytes]:
    """Split the body into lines as its chunks arrive; a last line without its end is no line."""
    rest = b""
    try:
        for chunk in response.raw.stream(_PAGE):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
    except urllib3.exceptions.HTTPError as error:
        raise CatalogIncomplete(f"the connection was lost in mid-answer ({type(error).__name__})") from None


def _twice(call: Callable[[], T]) -> T:
    """Do a call, once more when it failed quickly without an answer; map the errors of HTTP to ours."""
    began = time.monotonic()
    try:
        try:
            return call()
        except Unanswered:
            if time.monotonic() - began > _QUICK:
                raise
            return call()
    except Unanswered as error:
        raise CatalogUnavailable(f"the catalog did not answer: {error}") from error
    except Answered as error:
        if not error.permanent:
            raise CatalogUnavailable(f"the catalog said no: {error}") from error
        slug = error.problem_type.rpartition(":")[2]
        kind = {"not-permitted": CatalogForbidden, "no-such-subject": UnknownSubject}.get(slug, CatalogRefused)
        raise kind(f"the catalog said no: {error}") from error


def _parsed(model: type[W], value: Any) -> W:
    try:
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise CatalogError(f"the catalog answered in another language: {error.error_count()} fields of "
                           f"{model.__name__} are wrong", permanent=True) from None


def _size(batch: RegisterBatch) -> int:
    return sum(len(one.header.zstd) * 4 // 3 + 80 * len(one.chunks) + 1024 for one in batch.instances)
