"""An area as files, for the doors that know paths (gsiftp, sftp): one Tree per session over the one service.

Every operation asks anew who the party is and whether it may. Blocking, thread-safe.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from certs.peer import Peer
from certs.permit import Permit
from storage_provider.access import Verb
from storage_provider.channel import ObjectSpec, Space, Stat, Stored
from storage_provider.checksum import blocks
from storage_provider.errors import Cancelled, Denied, NotFound, Refused, StorageError
from storage_provider.keys import parse_key
from storage_provider.parts import PartStat
from storage_provider.paths import Place, parse_path
from storage_provider.ranges import Ranges, Span
from storage_provider.service import Area, StorageService
from storage_provider.targets import StagedTarget, UploadTarget, Whole
from storage_provider.wire import SINGLE_PUT_BYTES
from storage_provider.writing import Target, Writing, writer_name

Identify = Callable[[], tuple[Peer, Permit | None]]
"""Who the party is by now and the permit it has shown; raises Denied when it is refused."""

DIGESTS = ("sha256", "sha512", "sha1", "md5", "adler32")
_NUMBERS = itertools.count()
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Node:
    """A file or a directory as a door lists it; `size` of a part is that of its gapless front."""

    path: str
    kind: Literal["dir", "file"]
    size: int = 0
    modified: datetime = _EPOCH

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Party:
    """Who asks, by now."""

    peer: Peer
    permit: Permit | None

    @property
    def owner(self) -> str:
        return str(self.peer.dn)


class Tree:
    """What one session sees. Paths are absolute and resolved (see paths.resolve).

    Every verb raises Denied, NotFound for what is no path of an area, and LocalFault.
    """

    def __init__(self, service: StorageService, identify: Identify) -> None:
        self._service = service
        self.element = service.name
        self._identify = identify

    def check(self, path: str, verb: Verb) -> None:
        """Raise Denied when the party may not (any more) do this there; for doors with a transfer under way."""
        self._admit(parse_path(path), verb)

    def stat(self, path: str) -> Node:
        """Return what is at a path: directories for whoever may see the area, objects for readers, own parts."""
        place = parse_path(path)
        if place.kind == "object":
            return _object_node(path, self._admit_any(place, ("read", "list"))[0].store.stat(place.key))
        area, party = self._see(place)
        if place.kind == "part" and area is not None:
            return _part_node(path, area.parts.stat(party.owner, place.inside))
        return Node(path, "dir")

    def entries(self, path: str) -> Iterator[Node]:
        """Yield what is in a directory, by name, in bounded memory. Objects take the right to list."""
        place = parse_path(path)
        top = path.rstrip("/")
        if place.kind in ("root", "areas"):
            names = ["areas"] if place.kind == "root" else [a.name for a in self._service.visible(*self._who())]
            return (Node(f"{top}/{name}", "dir") for name in sorted(names))
        if place.kind == "area":
            self._see(place)
            return (Node(f"{top}/{name}", "dir") for name in ("objects", "stage"))
        if place.kind == "stage":
            area, party = self._see(place)
            parts = area.parts.of(party.owner) if area is not None else []
            return (_part_node(f"{top}/{part.name}", part) for part in parts)
        if not place.folder:
            raise Refused("not a directory")
        return self._objects(place, top)

    def read(self, path: str) -> tuple[int, int]:
        """Open an object or an own part: (descriptor, size). The caller closes it."""
        place = parse_path(path)
        if place.kind == "part":
            area, party = self._admit(place, "write")
            return area.parts.open(party.owner, place.inside)
        _must_be_object(place)
        return self._admit(place, "read")[0].store.open(place.key)

    def sent(self, path: str, count: int) -> None:
        """Count bytes that the door has sent of an object."""
        self._service.metrics.sent.labels(parse_path(path).area).inc(count)

    def refused(self, error: StorageError) -> None:
        """Count a refusal that the door answers with."""
        self._service.metrics.refused.labels(error.problem_type).inc()

    def write(self, path: str, *, size: int | None = None, fresh: bool = False) -> Writing:
        """Open an object or an own part for writing; NoSpace when there is no room for `size`.

        A large object of known size is taken up where this party's last try left it, a part, too, unless `fresh`. An
        object of unknown size is kept only by a commit of the same Writing. An earlier Writing of the same name is
        closed: the newest session has it.
        """
        place = parse_path(path)
        if place.kind not in ("object", "part"):
            raise Refused("only objects and parts can be written")
        area, party = self._admit(place, "write")
        name = writer_name(party.owner, place.inside or place.key)
        if place.kind == "object" and (size is None or size <= SINGLE_PUT_BYTES):
            name += f" {next(_NUMBERS)}"  # nothing to resume, so nobody's way to stand in

        def make() -> Writing:
            target = self._target(place, area, party, size, fresh)
            return Writing(target, judge=lambda: self.check(path, "write"), ended=ended, key=place.key)

        def ended(writing: Writing, came: int) -> None:
            area.writers.forget(name, writing)
            self._service.metrics.received.labels(area.name).inc(came)
            if writing.outcome is not None:
                self._service.count(area, writing.outcome)

        return area.writers.begin(name, make)

    def whole(self, path: str, size: int) -> Whole | None:
        """Make room for a small object that comes in one piece; None for what is no object. Ends with `take` or drop.

        NoSpace as `write`.
        """
        place = parse_path(path)
        if place.kind != "object":
            return None
        return Whole(self._admit(place, "write")[0].store, place.key, size)

    def take(self, path: str, whole: Whole, data: memoryview) -> Stored:
        """Store what has come of a small object; raises as a Writing's commit."""
        try:
            area = self._admit(parse_path(path), "write")[0]
        except StorageError:
            whole.drop()
            raise
        self._service.metrics.received.labels(area.name).inc(len(data))
        return self._service.count(area, whole.commit(data))[0]

    def missing(self, path: str, size: int) -> tuple[Span, ...]:
        """Return what a put of `size` bytes still has to send: of this party's upload, or part, nothing kept means all.

        () for an object that is there: it was just read again.
        """
        place = parse_path(path)
        area, party = self._admit(place, "write")
        if place.kind == "part":
            return area.parts.received(party.owner, place.inside).missing(0, size).spans
        _must_be_object(place)
        if area.store.confirm(place.key, size) is not None:
            return ()
        upload = area.uploads.find(place.key, party.owner)
        come = upload.received if upload is not None and upload.spec.size == size else Ranges()
        return come.missing(0, size).spans

    def rename(self, source: str, target: str) -> None:
        """Make an own part an object: verified (Corrupt throws the part away), synced, atomic, idempotent."""
        part, place = parse_path(source), parse_path(target)
        if part.kind != "part" or place.kind != "object" or part.area != place.area:
            raise Refused("only a part can be renamed, to an object of the same area")
        area, party = self._admit(place, "write")
        area.writers.end(writer_name(party.owner, part.inside))
        try:
            self._service.count(area, area.parts.take(party.owner, part.inside, place.key))
        except NotFound:
            # The answer to an earlier rename may have been lost
            if area.store.confirm(place.key, area.store.stat(place.key).size) is None:
                raise

    def delete(self, path: str) -> None:
        """Delete an object, or throw an own part away."""
        place = parse_path(path)
        if place.kind == "part":
            area, party = self._admit(place, "write")
            area.writers.end(writer_name(party.owner, place.inside))
            area.parts.delete(party.owner, place.inside)
            return
        _must_be_object(place)
        self._service.delete(self._admit(place, "delete")[0], place.key)

    def mkdir(self, path: str) -> None:
        """Do nothing for a directory of the layout: all of them are there. Refused for any other."""
        place = parse_path(path)
        self._see(place)
        if not place.folder:
            raise Refused("there are no directories but those of the layout")

    def checksum(
        self,
        path: str,
        *,
        offset: int = 0,
        length: int | None = None,
        algorithm: str = "sha256",
        stop: Callable[[], bool] | None = None,
    ) -> str:
        """Return the digest (lower-case hex) of (a range of) a file as it is on disk now; `stop` makes it Cancelled."""
        fd, size = self.read(path)
        try:
            span = size - offset if length is None else length
            if not 0 <= offset <= offset + span <= size:
                raise Refused("the range lies outside the object")
            return _digest(fd, algorithm, offset, span, stop)
        finally:
            os.close(fd)

    def space(self, path: str) -> Space:
        """Return the space of the area that a path lies in."""
        place = parse_path(path)
        area, _ = self._see(place)
        if area is None:
            raise NotFound("space is that of an area")
        return area.store.space()

    def _who(self) -> tuple[Peer, Permit | None]:
        return self._identify()

    def _admit(self, place: Place, verb: Verb) -> tuple[Area, _Party]:
        peer, permit = self._identify()
        if not place.area:
            raise Denied("this is in no area")
        return self._service.admit(place.area, peer, verb, place.key, permit), _Party(peer, permit)

    def _admit_any(self, place: Place, verbs: tuple[Verb, ...]) -> tuple[Area, _Party]:
        for verb in verbs[:-1]:
            try:
                return self._admit(place, verb)
            except Denied:
                continue
        return self._admit(place, verbs[-1])

    def _see(self, place: Place) -> tuple[Area | None, _Party]:
        """Return the area of a place when the party may know of it (None above the areas)."""
        party = _Party(*self._identify())
        if not place.area:
            return None, party
        for area in self._service.visible(party.peer, party.permit):
            if area.name == place.area:
                return area, party
        raise Denied("there is no such area for you")

    def _objects(self, place: Place, top: str) -> Iterator[Node]:
        area, _ = self._admit(place, "list")
        if place.kind == "objects":
            return iter([Node(f"{top}/v1", "dir")])
        if len(place.inside) < len("v1/ab/cd"):
            return (Node(f"{top}/{name}", "dir") for name in area.store.folders(place.inside))
        return (_object_node(f"{top}/{stat.key[-64:]}", stat) for stat in area.store.list(place.inside + "/"))

    def _target(self, place: Place, area: Area, party: _Party, size: int | None, fresh: bool) -> Target:
        if place.kind == "part":
            return area.parts.write(party.owner, place.inside, size=size, fresh=fresh)
        if size is None or size <= SINGLE_PUT_BYTES:
            return StagedTarget(area.store, place.key, size)
        return UploadTarget(area.uploads, ObjectSpec(place.key, size, parse_key(place.key)), party.owner)


def _must_be_object(place: Place) -> None:
    if place.kind != "object":
        raise Refused("not a file")


def _object_node(path: str, stat: Stat) -> Node:
    return Node(path, "file", stat.size, stat.stored_at)


def _part_node(path: str, part: PartStat) -> Node:
    return Node(path, "file", part.size, part.modified)


def _digest(fd: int, algorithm: str, offset: int, length: int, stop: Callable[[], bool] | None) -> str:
    if algorithm not in DIGESTS:
        raise Refused(f"checksums are {', '.join(DIGESTS)}")
    total, digest = 1, None if algorithm == "adler32" else hashlib.new(algorithm, usedforsecurity=False)
    for block in blocks(fd, offset=offset, length=length):
        if stop is not None and stop():
            raise Cancelled("checksum stopped")
        if digest is None:
            total = zlib.adler32(block, total)
        else:
            digest.update(block)
    return f"{total:08x}" if digest is None else digest.hexdigest()
