"""Errors as replies: one table. A text begins with our problem type, and holds key and reason only."""

from __future__ import annotations

from storage_provider.errors import (
    Cancelled,
    Denied,
    Faulty,
    LocalFault,
    NoSpace,
    NotFound,
    StorageError,
    Unreachable,
    Unsupported,
)

# RFC 959 section 4.2: 4yz may work later, 5yz will not
_CODES: tuple[tuple[type[StorageError], int], ...] = (
    (NotFound, 550),
    (Denied, 550),
    (NoSpace, 452),
    (Unsupported, 504),
    (LocalFault, 451),
    (Cancelled, 426),
    (Faulty, 450),
    (Unreachable, 425),
)
_OTHERS = 550
_MOST_TEXT = 500


def reply_to(error: StorageError) -> tuple[int, str]:
    """Return code and text of the reply to an error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), _OTHERS)
    text = f"{error.problem_type}: {error.detail}" + (f" ({error.key})" if error.key else "")
    return code, "".join(mark if mark.isprintable() else "?" for mark in text[:_MOST_TEXT])
