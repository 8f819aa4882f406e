"""How storage errors cross HTTP: one table, used by the service to answer and by the client to read the answer."""

from __future__ import annotations

from certs.errors import Answered, Unanswered
from storage_provider.errors import (
    Busy,
    Conflict,
    Corrupt,
    Denied,
    Faulty,
    LocalFault,
    NoSpace,
    NotFound,
    Refused,
    StorageError,
    Unreachable,
    Unsupported,
)

# Type, HTTP status. The slug of the problem type is the class's `problem_type`.
TABLE: tuple[tuple[type[StorageError], int], ...] = (
    (Refused, 400),
    (Denied, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Corrupt, 422),
    (Unsupported, 501),
    (Unreachable, 502),
    (Busy, 503),
    (Faulty, 503),
    (LocalFault, 500),
    (NoSpace, 507),
)
STATUS = dict(TABLE)
_BY_SLUG = {kind.problem_type: kind for kind, _ in TABLE}
_BY_STATUS: dict[int, type[StorageError]] = {
    400: Refused, 403: Denied, 404: NotFound, 409: Conflict, 416: Refused, 422: Refused, 507: NoSpace,
}  # fmt: skip


def status_of(error: StorageError) -> int:
    """Return the HTTP status that answers a storage error."""
    return STATUS.get(type(error), 500 if not error.permanent else 400)


def error_named(slug: str, detail: str, *, door: str, key: str) -> StorageError:
    """Return the error that a far side named; a local fault over there is Faulty over here."""
    kind = _BY_SLUG.get(slug, Faulty)
    if kind is LocalFault:
        kind = Faulty
    return kind(detail, door=door, key=key)


def from_answer(answer: Answered, *, door: str, key: str) -> StorageError:
    """Translate a no: by problem type when it is ours, else by status."""
    slug = answer.problem_type.rsplit(":", 1)[-1]
    detail = answer.detail or answer.title
    if slug == "certificate-refused":
        refused = Denied(detail, door=door, key=key)
        refused.permanent = False  # a renewed certificate or a fresh CRL changes it, as for a refused handshake
        return refused
    if slug in _BY_SLUG:
        return error_named(slug, detail, door=door, key=key)
    kind = _BY_STATUS.get(answer.http_status, Refused if answer.permanent else Faulty)
    return kind(detail, door=door, key=key)


def from_silence(error: Unanswered, *, door: str, key: str) -> Unreachable:
    """Translate an answer that did not come."""
    return Unreachable(str(error), door=door, key=key)
