"""What crosses the HTTPS door as JSON (see PROTOCOL.md); frozen, unknown fields refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PERMIT_HEADER = "Dgis-Permit"
STORED_HEADER = "Dgis-Stored-At"
# One request carries at most this much of an upload, so that a slow line gets an answer (and a durable range) in time.
PART_BYTES = 16 * 1024 * 1024
# Objects up to this size travel in one PUT.
SINGLE_PUT_BYTES = 8 * 1024 * 1024
LIST_PAGE = 1000

Key = Annotated[str, Field(min_length=73, max_length=73)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=1 << 50)]
Chunks = Annotated[tuple[Sha256, ...], Field(max_length=1 << 20)]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredReply(_Wire):
    """An object that is committed and was verified at `verified_at`."""

    key: Key
    size: Size
    sha256: Sha256
    verified_at: datetime


class UploadRequest(_Wire):
    """Begin, or take up again, the staged upload of an object."""

    key: Key
    size: Size
    chunks: Chunks = ()


class UploadReply(_Wire):
    """How far an upload is: half-open byte ranges still missing; `stored` once the object is committed."""

    upload: str
    state: Literal["receiving", "verifying", "committed"]
    missing: tuple[tuple[int, int], ...] = ()
    stored: StoredReply | None = None


class StatReply(_Wire):
    """A committed object as listed."""

    key: Key
    size: Size
    stored_at: datetime


class ListReply(_Wire):
    """One page of a listing in key order; `after` is the cursor of the next page, None at the end."""

    objects: tuple[StatReply, ...]
    after: str | None


class ChecksumReply(_Wire):
    """The digest of an object as it lies on disk now."""

    key: Key
    size: Size
    sha256: Sha256
    checked_at: datetime


class PullRequest(_Wire):
    """Fetch an object from other SEs' doors."""

    key: Key
    size: Size
    chunks: Chunks = ()
    sources: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], Field(min_length=1, max_length=16)]
    permit: Annotated[str, Field(max_length=65536)] | None = None


class PullEvent(_Wire):
    """One NDJSON line of a running pull: a marker with the bytes so far, and at the end `stored` or `error`."""

    received: int = 0
    stored: StoredReply | None = None
    error: str | None = None
    detail: str = ""


class AreaSpace(_Wire):
    """Space of one area in bytes; `total` is the quota, or the file system's size without one."""

    name: str
    total: int
    free: int
    used: int


class SpaceReply(_Wire):
    """Space of every area of the SE."""

    name: str
    areas: tuple[AreaSpace, ...]


class Journal(_Wire):
    """What is kept on disk of an upload: only ranges whose bytes were synced before this was written."""

    key: Key
    size: Size
    chunks: Chunks
    owner: str
    received: tuple[tuple[int, int], ...]
