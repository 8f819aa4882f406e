"""The wire models of the catalog (JSON over HTTPS; PROTOCOL.md says which route takes which).

UIDs, digests and names are plain strings here on purpose: a record that is wrong is rejected alone, by the service,
and never stops the other records of its batch. An unknown field is refused: a silent loss would cost more.
"""
from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

import zstandard
from pydantic import BaseModel, ConfigDict, EncodedBytes, EncoderProtocol, Field

from catalog.errors import HeaderError
from catalog.keys import Level

MAX_BATCH = 1000  # instances in one register request
_HEADER_LIMIT = 1024 * 1024  # no honest header inflates beyond this (the cap at the source is 64 KiB)

MOST_LABELS = 100  # of one study

ShareKind = Literal["share", "break_glass"]
ReplicaKind = Literal["object", "spool"]
ReplicaState = Literal["verified", "spooled", "suspect", "lost"]
ConflictKind = Literal["content", "syntax", "patient"]
ConflictState = Literal["open", "kept_first", "replaced", "reported"]
Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Row = dict[str, str | int | list[str] | None]


class _Plain(EncoderProtocol):
    """Base64 on one line."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        return base64.b64decode(data, validate=True)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> Literal["base64"]:
        return "base64"


Base64 = Annotated[bytes, EncodedBytes(encoder=_Plain)]


class Wire(BaseModel):
    """Immutable; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RawHeader(Wire):
    """The registered header: encoded elements before the pixel data, zstd-compressed. Build it with `pack`."""

    syntax: str
    complete: bool
    zstd: Base64

    @classmethod
    def pack(cls, raw: bytes, *, syntax: str, complete: bool) -> RawHeader:
        """Compress `raw` (as `catalog.header.extract` gives it)."""
        return cls(syntax=syntax, complete=complete, zstd=base64.b64encode(zstandard.compress(raw, 1)))

    def unpack(self) -> bytes:
        """Give the encoded elements back. Raises HeaderError when they are no zstd frame of sane size."""
        try:
            return zstandard.ZstdDecompressor().decompress(
                self.zstd, max_output_size=_HEADER_LIMIT, read_across_frames=False, allow_extra_data=False
            )
        except (zstandard.ZstdError, MemoryError) as error:
            raise HeaderError(f"the header cannot be decompressed: {error}") from error


class InstanceRecord(Wire):
    """One received instance, as the DGIS that holds it in its spool describes it.

    `data_sha256` is of the data set as received without file meta, `sha256` of the stored object, `chunks` the
    SHA-256 of each 4 MiB of it (empty when it is not larger). `pixel_offset` counts in the stored object.
    """

    instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    data_sha256: str
    sha256: str
    size: int
    chunks: tuple[str, ...] = ()
    object_key: str
    header: RawHeader
    pixel_offset: int | None = None
    received_at: datetime
    source_ae: str = ""
    called_ae: str = ""
    issuer: str = ""
    spooled_at: str


class RegisterBatch(Wire):
    """1 to 1000 instances, answered in the same order. `site` is that of the DGIS which received them.

    The policy's scopes look at the site; without one it is the catalog's own.
    """

    site: str = Field(default="", max_length=200)
    instances: tuple[InstanceRecord, ...] = Field(min_length=1, max_length=MAX_BATCH)


class RegisterResult(Wire):
    """What became of one record. `object_key` is the catalog's own key for these bytes.

    `verified_replicas` and `verified_at` (names of storage elements) tell how many verified copies of exactly these
    bytes exist already. `conflict_id` and `kind` come with "conflict", `reason` with "rejected".
    """

    instance_uid: str
    object_key: str
    outcome: Literal["registered", "identical", "conflict", "rejected"]
    conflict_id: str | None = None
    kind: Literal["content", "syntax"] | None = None
    verified_replicas: int = 0
    verified_at: tuple[str, ...] = ()
    reason: str | None = None


class RegisterReply(Wire):
    """One result per record of the batch, in its order."""

    results: tuple[RegisterResult, ...]


class Match(Wire):
    """One matching key. `values` of a range are (low, high), "" is open; else any number, of which one must match.

    An attribute inside a sequence is SEQUENCE.ATTRIBUTE; "StudyDate+StudyTime" ranges over both as one moment.
    """

    keyword: str
    op: Literal["eq", "wild", "range", "in"]
    values: tuple[str, ...] = Field(max_length=100_000)


class Query(Wire):
    """A query at one level: matches are joined by AND, `keys` are the keywords wanted back.

    `unreachable` names storage elements that the caller cannot reach now: an entity with an instance whose only
    copies are there has InstanceAvailability OFFLINE. `near` names the places at hand: one with an instance that has
    no copy there is NEARLINE. Every other one is ONLINE, and nothing is NEARLINE when no place is named.
    """

    level: Level
    matches: tuple[Match, ...] = Field(default=(), max_length=200)
    keys: tuple[str, ...] = Field(default=(), max_length=400)
    limit: int | None = Field(default=None, ge=0, le=2**31)
    names: Literal["insensitive", "exact"] = "insensitive"
    unreachable: tuple[str, ...] = Field(default=(), max_length=10_000)
    near: tuple[str, ...] = Field(default=(), max_length=10_000)


class PatientKey(Wire):
    """A patient; without an issuer, whoever has this id at any issuer."""

    issuer: str | None = None
    patient_id: str


class LocateRequest(Wire):
    """Which instances to locate: a union inside each list, the intersection of the lists that are not empty.

    `purpose` "commit" is a gateway's: whoever may store asks through it what became of its own, and sees nothing.
    """

    purpose: Literal["retrieve", "commit"] = "retrieve"
    patients: tuple[PatientKey, ...] = Field(default=(), max_length=10_000)
    studies: tuple[str, ...] = Field(default=(), max_length=200_000)
    series: tuple[str, ...] = Field(default=(), max_length=200_000)
    instances: tuple[str, ...] = Field(default=(), max_length=200_000)


class ObjectRef(Wire):
    """The stored bytes of one copy of an instance."""

    object_key: str
    size: int
    sha256: str
    data_sha256: str
    chunks: tuple[str, ...] = ()
    pixel_offset: int | None = None


class ReplicaRef(Wire):
    """Where a copy of an object lies: an SE ("object") or a DGIS spool ("spool")."""

    location: str
    kind: ReplicaKind
    state: ReplicaState
    verified_at: datetime | None = None


class Located(Wire):
    """One instance and every copy of its kept object."""

    instance_uid: str
    series_uid: str
    study_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_number: int | None = None
    number_of_frames: int | None = None
    object: ObjectRef
    replicas: tuple[ReplicaRef, ...]


class ReplicaChange(Wire):
    """A copy of a registered object appeared, changed or went; doing it twice is doing it once.

    `size` and `sha256` are what the far side verified; a "verified" change that differs from the object is refused.
    """

    object_key: str
    location: str
    kind: ReplicaKind
    state: Literal["verified", "spooled", "suspect", "lost", "removed"]
    size: int | None = None
    sha256: str | None = None
    verified_at: datetime | None = None


class ReplicaChanges(Wire):
    """Up to 10,000 changes, all in one transaction."""

    changes: tuple[ReplicaChange, ...] = Field(max_length=10_000)


class RefusedChange(Wire):
    """One replica change that was not applied, and why; the others of its request were."""

    object_key: str
    location: str
    reason: str


class ReplicaReply(Wire):
    """What became of a list of replica changes."""

    applied: int
    refused: tuple[RefusedChange, ...] = ()


class RetireRequest(Wire):
    """Instances to take out of the catalog; unknown ones are passed over."""

    instances: tuple[str, ...] = Field(max_length=100_000)


class RetireReply(Wire):
    """How many were there and are gone now."""

    retired: int


class StorageElement(Wire):
    """A storage element and its doors (URLs), best first."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")
    site: str = Field(min_length=1, max_length=200)
    doors: tuple[str, ...] = Field(default=(), max_length=100)
    state: Literal["active", "readonly", "draining"] = "active"


class RemovedReply(Wire):
    """A storage element is out; `lost` copies went with it, `last` of them the only ones of an object."""

    lost: int
    last: int


class Site(Wire):
    """An institution of the grid."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")
    title: str = Field(default="", max_length=1000)


class Conflict(Wire):
    """Two contents under one SOP Instance UID (content, syntax), or a study that names a second patient (patient).

    A `patient` conflict is a report: its instance is stored and findable, and there is no quarantined object.
    """

    id: str
    instance_uid: str
    kind: ConflictKind
    state: ConflictState
    kept: ObjectRef | None = None
    quarantined: ObjectRef | None = None
    opened_at: datetime
    source_ae: str = ""


class ResolveRequest(Wire):
    """What an operator decides: the first copy stays, or the quarantined one takes its place."""

    action: Literal["keep_first", "replace"]


class PermitRequest(Wire):
    """Ask the catalog to sign a permit for `dn` to do `verbs` with `keys` at `se` for `seconds` (1 to 600)."""

    dn: str
    se: str
    keys: tuple[str, ...] = Field(min_length=1, max_length=400)
    verbs: tuple[str, ...] = Field(min_length=1, max_length=10)
    seconds: int = Field(default=600, ge=1, le=600)


class PermitReply(Wire):
    """A signed permit and when it ends."""

    token: str
    expires: datetime


class Change(Wire):
    """One event of the change feed; `seq` grows in commit order inside (catalog_id, epoch)."""

    seq: int
    catalog_id: str
    epoch: int
    origin_site: str
    kind: str
    tombstone: bool
    subject: str
    at: datetime
    payload: Mapping[str, str | int | bool | None]


class PolicyText(Wire):
    """A version of the VO's policy (TOML; see docs/policy.md)."""

    version: int
    text: str
    made_at: datetime
    made_by: str


class PolicyVersion(Wire):
    """One entry of the policy's history."""

    version: int
    made_at: datetime
    made_by: str


class PolicyPut(Wire):
    """A policy to put in force; `follows` is the version that it was made from (0: there was none), None: whichever."""

    text: str = Field(max_length=256 * 1024)
    follows: int | None = Field(default=None, ge=0)


class PolicyQuestion(Wire):
    """May this actor do this action, with this study? Without a study: is there any with which it may."""

    actor: str = Field(min_length=1, max_length=2048)
    action: str = Field(min_length=1, max_length=64)
    study_uid: str | None = Field(default=None, max_length=64)


class PolicyAnswer(Wire):
    """The answer, the grant that gives the right, and why, in one paragraph. `version` is that of the policy."""

    allowed: bool
    grant: str | None
    text: str
    version: int


class Share(Wire):
    """A study that is open to an actor, or a group (group:NAME), until a moment: shared, or by a broken glass."""

    id: str = ""
    study_uid: str
    kind: ShareKind = "share"
    grantee: str
    until: datetime
    reason: str = ""
    made_at: datetime | None = None
    made_by: str = ""


class ShareRequest(Wire):
    """Share a study with an actor or a group for some days."""

    study_uid: str = Field(min_length=1, max_length=64)
    grantee: str = Field(min_length=1, max_length=2048)
    days: int = Field(default=30, ge=1, le=3660)
    reason: str = Field(default="", max_length=1000)


class LabelRequest(Wire):
    """Put labels on a study, or take them off; none changes nothing and tells which there are."""

    study_uid: str = Field(min_length=1, max_length=64)
    add: tuple[Label, ...] = Field(default=(), max_length=MOST_LABELS)
    remove: tuple[Label, ...] = Field(default=(), max_length=MOST_LABELS)


class LabelReply(Wire):
    """The labels that a study has now."""

    labels: tuple[str, ...]


class BreakGlassRequest(Wire):
    """Open a study for oneself without a grant, and say why; `also` is an AE of one's own group that is to see it."""

    study_uid: str = Field(min_length=1, max_length=64)
    reason: str = Field(min_length=10, max_length=1000)
    also: str | None = Field(default=None, max_length=100, pattern=r"^ae:.+@.+$")
