"""The error tree of the storage room: every error knows whether trying again can help."""

from __future__ import annotations

from typing import ClassVar


class StorageError(Exception):
    """Say that a storage operation failed; `permanent` says whether the same call can ever succeed later.

    `door` and `key` name what it was about ("" when unknown). The text never holds object content or credentials.
    """

    permanent: bool = True
    problem_type: ClassVar[str] = "storage-error"

    def __init__(self, detail: str, *, door: str = "", key: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.door = door
        self.key = key

    def __str__(self) -> str:
        where = " ".join(part for part in (f"at {self.door}" if self.door else "", self.key) if part)
        return f"{self.detail} ({where})" if where else self.detail


class Unreachable(StorageError):
    """The door did not answer: refused, silent, too slow, cut in the middle, or TLS closed by the peer."""

    permanent = False
    problem_type = "unreachable"


class Faulty(StorageError):
    """The door answered that it failed for the moment (HTTP 5xx, busy upload); it may work later."""

    permanent = False
    problem_type = "faulty"


class Busy(Faulty):
    """The range is being written by another request at this moment; ask again what is missing."""

    problem_type = "upload-busy"


class NoSpace(StorageError):
    """Quota, reserve or disk does not allow the object; nothing of it was kept. Space may come back."""

    permanent = False
    problem_type = "no-space"


class Refused(StorageError):
    """The request itself is wrong: bad key, bad range, bad size. It will never be accepted."""

    problem_type = "refused"


class Denied(StorageError):
    """The peer is known but may not do this: no rule of the area and no valid permit allows it."""

    problem_type = "denied"


class NotFound(StorageError):
    """There is no such object, upload or area."""

    problem_type = "not-found"


class Corrupt(StorageError):
    """The bytes do not have the digest they must have; `bad_chunks` names chunk indexes when they are known."""

    problem_type = "corrupt"

    def __init__(self, detail: str, *, door: str = "", key: str = "", bad_chunks: tuple[int, ...] = ()) -> None:
        super().__init__(detail, door=door, key=key)
        self.bad_chunks = bad_chunks


class Conflict(StorageError):
    """Bytes sent for a range differ from bytes received for it before."""

    problem_type = "upload-conflict"


class Unsupported(StorageError):
    """The channel's capabilities do not include this verb."""

    problem_type = "unsupported"


class Cancelled(StorageError):
    """The caller asked to stop; nothing was kept at the target."""

    permanent = False
    problem_type = "cancelled"


class LocalFault(StorageError):
    """The local file could not be read or written (not the fault of any door)."""

    permanent = False
    problem_type = "local-fault"


class DoorURL(StorageError):
    """A door URL is not one that any channel understands."""

    problem_type = "door-url"
