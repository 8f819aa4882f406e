"""What a storage element does, whatever the door: areas, rules, storing, uploads, pulls. Blocking, thread-safe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from certs.peer import Peer
from certs.permit import Permit
from storage_provider.access import AreaRules, Verb
from storage_provider.channel import ObjectSpec, Stored
from storage_provider.errors import Denied, NotFound, StorageError
from storage_provider.keys import parse_key
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.store import Store
from storage_provider.transfer.engine import Doors, Engine, Source
from storage_provider.upload import Upload
from storage_provider.uploads import Uploads
from storage_provider.wire import AreaSpace, SpaceReply, StoredReply, UploadReply
from storage_provider.writing import Writers, writer_name


@dataclass(frozen=True, slots=True)
class Area:
    """A named part of the SE with its own store, room and rules."""

    name: str
    store: Store
    uploads: Uploads
    rules: AreaRules
    parts: Parts
    writers: Writers = field(default_factory=Writers)


class StorageService:
    """One storage element. `engine_for` makes the engine for one pull under one permit; the service closes it."""

    def __init__(
        self, name: str, areas: Sequence[Area], *, engine_for: Callable[[str | None], Engine], metrics: Metrics
    ) -> None:
        self.name = name
        self.metrics = metrics
        self._areas = {area.name: area for area in areas}
        self._engine_for = engine_for

    def admit(self, area_name: str, peer: Peer, verb: Verb, key: str, permit: Permit | None) -> Area:
        """Return the area when the peer may do this to this key there; Denied also for areas that do not exist."""
        area = self._areas.get(area_name)
        if area is None:
            raise Denied("there is no such area for you")
        decision = area.rules.decide(peer, verb, key, permit)
        if not decision.allowed:
            raise Denied(decision.reason, key=key)
        if key:
            parse_key(key)
        return area

    def area(self, name: str) -> Area:
        """Return an area that the caller was admitted to."""
        return self._areas[name]

    def visible(self, peer: Peer, permit: Permit | None) -> list[Area]:
        """Return the areas that a peer may know of: those where a role may do anything, all with a permit."""
        permitted = permit is not None and permit.dn == peer.dn
        return [area for area in self._areas.values() if permitted or area.rules.known_to(peer)]

    def admit_upload(self, area_name: str, peer: Peer, ident: str, permit: Permit | None) -> Area:
        """Return the area when the peer may (still) write the object that its upload is for."""
        area = self._areas.get(area_name)
        if area is None:
            raise Denied("there is no such area for you")
        return self.admit(area_name, peer, "write", area.uploads.status(ident, str(peer.dn)).spec.key, permit)

    def put_whole(self, area: Area, key: str, size: int, blocks: Sequence[bytes]) -> tuple[Stored, bool]:
        """Store an object whose bytes are all here."""
        incoming = area.store.begin(key, size)
        for block in blocks:
            incoming.write(block)
        return self.count(area, incoming.commit())

    def begin_upload(self, area: Area, spec: ObjectSpec, owner: str) -> UploadReply:
        """Begin or take up an upload; answers `committed` when the object is there and was just re-read.

        The owner's session at another door that has this upload loses it: its connection may be dead.
        """
        area.writers.end(writer_name(owner, spec.key))
        present = area.store.confirm(spec.key, spec.size)
        if present is not None:
            return UploadReply(upload="", state="committed", stored=stored_reply(present))
        return upload_reply(*area.uploads.begin(spec, owner))

    def commit_upload(self, area: Area, ident: str, owner: str) -> Stored:
        """Verify an upload and make it an object."""
        return self.count(area, (area.uploads.commit(ident, owner), True))[0]

    def delete(self, area: Area, key: str) -> None:
        """Delete an object."""
        area.store.delete(key)
        self.metrics.deleted.labels(area.name).inc()

    def pull(
        self,
        area: Area,
        spec: ObjectSpec,
        sources: Sequence[str],
        *,
        permit: str | None,
        cancelled: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> Stored:
        """Fetch an object from other SEs' doors with our own identity and the permit, verify and commit it."""
        present = area.store.confirm(spec.key, spec.size)
        if present is not None:
            return present
        source = Source(tuple(Doors(url, (url,)) for url in sources), spec.key, spec.size, spec.sha256, spec.chunks)
        engine = self._engine_for(permit)

        def bring(path: Path) -> None:
            engine.fetch(source, path, cancelled=cancelled, progress=progress)

        try:
            return self.count(area, area.store.admit(spec.key, spec.size, bring))[0]
        finally:
            engine.close()

    def space(self) -> SpaceReply:
        """Return the space of every area."""
        areas = []
        for area in self._areas.values():
            space = area.store.space()
            areas.append(AreaSpace(name=area.name, total=space.total, free=space.free, used=space.used))
        return SpaceReply(name=self.name, areas=tuple(areas))

    def open_uploads(self) -> dict[str, int]:
        """Return how many uploads are open in each area."""
        return {area.name: len(area.uploads) for area in self._areas.values()}

    def check(self) -> str:
        """Say for /health how the space is; raise when an area cannot take another byte."""
        free = {area.name: area.free for area in self.space().areas}
        full = sorted(name for name, left in free.items() if left <= 0)
        if full:
            raise StorageError(f"no space left in {', '.join(full)}")
        return ", ".join(f"{name}: {left} bytes free" for name, left in sorted(free.items()))

    def count(self, area: Area, outcome: tuple[Stored, bool]) -> tuple[Stored, bool]:
        """Count what was stored and pass it on."""
        self.metrics.stored.labels(area.name, "new" if outcome[1] else "already-there").inc()
        return outcome

    def close(self) -> None:
        """Give the stores up."""
        for area in self._areas.values():
            area.store.close()


def spec_of(key: str, size: int, chunks: tuple[str, ...]) -> ObjectSpec:
    """Build the spec of an object named in a request."""
    return ObjectSpec(key, size, parse_key(key), chunks)


def stored_reply(stored: Stored) -> StoredReply:
    """Put a stored object on the wire."""
    return StoredReply(key=stored.key, size=stored.size, sha256=stored.sha256, verified_at=stored.verified_at)


def upload_reply(ident: str, upload: Upload) -> UploadReply:
    """Put an upload's state on the wire."""
    if upload.state == "aborted":
        raise NotFound("no such upload")
    return UploadReply(upload=ident, state=upload.state, missing=upload.missing)
