"""The channel contract: what every kind of door (https, gsiftp, sftp, a foreign server) can be asked to do.

One conformance suite (tests/conformance/contract.py) runs unchanged over every implementation. A channel that
cannot do a verb says so in `capabilities` and raises `Unsupported`; the engine asks the capabilities, never the scheme.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from storage_provider.checksum import chunk_count
from storage_provider.errors import Refused, StorageError
from storage_provider.keys import is_sha256, parse_key


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What an object is: key, size in bytes, SHA-256, and the SHA-256 of each 4 MiB when it is larger than that."""

    key: str
    size: int
    sha256: str
    chunks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if parse_key(self.key) != self.sha256:
            raise Refused("key and SHA-256 differ")
        if self.size < 0:
            raise Refused("negative size")
        if self.chunks and len(self.chunks) != chunk_count(self.size):
            raise Refused("the number of chunk digests does not fit the size")
        if not all(is_sha256(chunk) for chunk in self.chunks):
            raise Refused("not a chunk digest")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that lies committed at the far side, its digest computed there from what lies on disk."""

    key: str
    size: int
    sha256: str
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class Put:
    """One object of a batch to store: `spec.size` bytes of `path` from `offset`."""

    spec: ObjectSpec
    path: Path
    offset: int = 0
    acting_for: str | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """One object, or a range of it (`length` None: to its end), of a batch to get."""

    key: str
    offset: int = 0
    length: int | None = None
    acting_for: str | None = None


@dataclass(frozen=True, slots=True)
class Got:
    """An answer to a Want: its bytes as they arrive, or (raised by `blocks`) why there are none."""

    want: Want
    blocks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Stat:
    """An object as listed: present and complete, not re-read."""

    key: str
    size: int
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that may ever be used, may still be written now, and are used, as the door reports them."""

    total: int
    free: int
    used: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a channel's far side can do.

    `far_verify`: the far side checks the digest before the object becomes visible; otherwise `put` reads back itself.
    `atomic_commit`: an object appears under its key whole or not at all.
    """

    ranged_get: bool
    resume_put: bool
    far_verify: bool
    atomic_commit: bool
    checksum: bool
    listing: bool
    delete: bool
    pull: bool
    space: bool


EVERYTHING = Capabilities(
    ranged_get=True,
    resume_put=True,
    far_verify=True,
    atomic_commit=True,
    checksum=True,
    listing=True,
    delete=True,
    pull=True,
    space=True,
)
"""What our own server does over HTTPS and GridFTP; other far sides say what they lack of it."""


class Channel(Protocol):
    """One door of one storage element; thread-safe; connections are reused inside.

    Every call waits at most a bounded time without progress and then raises Unreachable. Every call is idempotent, so
    it may be repeated after Unreachable; errors with `permanent` will come again. `acting_for` names the party on whose
    behalf a gateway asks (a DN or ae:TITLE@SITE); a door that cannot carry it drops it.
    """

    @property
    def door(self) -> str:
        """The URL this channel was opened with; object keys are appended by the channel, never by callers."""

    @property
    def capabilities(self) -> Capabilities:
        """What the far side can do; constant for the life of the channel, known without a network call."""

    def put(self, spec: ObjectSpec, path: Path, *, offset: int = 0, acting_for: str | None = None) -> Stored:
        """Store `spec.size` bytes of `path` from `offset` as the object and verify them at the far side.

        Atomic: afterwards the object is there whole, or nothing is visible. An object that is already there is
        re-verified, not sent twice where that can be helped. Resumes what an earlier interrupted call left.
        Raises Corrupt when the far side's digest differs, NoSpace, Denied, Refused, Unreachable, LocalFault.
        """

    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, acting_for: str | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Give the bytes of (a range of) an object as they arrive, unverified, in blocks of at most 1 MiB.

        The iterator yields whatever has come within half a second, so that a caller can judge progress; it raises
        Unreachable when the stream ends early. Leaving the context early is allowed and stops the transfer.
        Raises on entering: NotFound, Denied, Refused (range outside the object), Unreachable.
        """

    def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store many objects, each as `put` does, with requests in flight while others are answered.

        Yields every put once, in any order, with what is stored or why not; an error of one never ends the rest. `puts`
        is read ahead by a bounded number; closing the iterator stops the rest.
        """

    def get_many(self, wants: Sequence[Want]) -> AbstractContextManager[Iterator[Got]]:
        """Give many objects in the order asked, with requests in flight ahead.

        `blocks` of one must be used up (or left) before the next Got is taken, and raises what `get` raises; only
        Unreachable ends the rest, which is then raised for each of them, too.
        """

    def stat(self, key: str) -> Stat:
        """Return size and age of a committed object; NotFound otherwise (also for half objects)."""

    def checksum(self, key: str) -> str:
        """Return the SHA-256 of the object re-read from the far disk now; it need not equal the key's."""

    def delete(self, key: str) -> None:
        """Remove the object; NotFound when it is not there."""

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """Yield committed objects whose key begins with `prefix`, in key order, in bounded memory."""

    def pull(
        self, spec: ObjectSpec, source_doors: Sequence[str], permit: str | None, *, acting_for: str | None = None
    ) -> Stored:
        """Let the far side fetch the object from another SE's doors (third-party copy) and verify it.

        `permit` is the token that the far side shows at the source. Atomic and idempotent as `put`.
        """

    def space(self) -> Space:
        """Return the space of the area behind the door."""

    def close(self) -> None:
        """Release connections; afterwards the channel is not used again."""
