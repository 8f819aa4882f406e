"""An area as files: what each party sees and may do, and that bytes become objects whole, verified, or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from certs.dn import DN
from certs.peer import Peer
from certs.permit import Permit
from storage_provider import disk, writing
from storage_provider.access import AreaRules
from storage_provider.channel import ObjectSpec
from storage_provider.checksum import CHUNK_BYTES, digests_of
from storage_provider.errors import Busy, Conflict, Corrupt, Denied, NoSpace, NotFound, Refused, StorageError
from storage_provider.landing import Landing
from storage_provider.metrics import Metrics
from storage_provider.parts import Parts
from storage_provider.ranges import Ranges
from storage_provider.service import Area, StorageService
from storage_provider.store import Store
from storage_provider.transfer.engine import Engine
from storage_provider.tree import Tree
from storage_provider.uploads import Uploads
from storage_provider.writing import Writing
from tests.conformance.memory_channel import spec_of

DATA = random.Random(5).randbytes(300_000)
BIG = random.Random(6).randbytes(3 * CHUNK_BYTES + 77)
SPEC, BIG_SPEC = spec_of(DATA), spec_of(BIG)
RULES = {"gateway": {"read", "write", "delete", "list"}, "operator": {"read", "list"}, "storage": {"read"}}


def peer(name: str = "dgis", *roles: str) -> Peer:
    return Peer(DN.parse(f"/O=Grid/CN={name}"), "00", 1, name, frozenset(roles))


@dataclass
class Place:
    """A service over one folder; `reopen` is a restart."""

    root: Path
    quota: int | None = None
    areas: list[Area] = field(default_factory=list)

    def open(self) -> StorageService:
        rules = AreaRules({role: frozenset(verbs) for role, verbs in RULES.items()})
        for name in ("main", "other"):
            store = Store(self.root / name, quota=self.quota)
            own = rules if name == "main" else AreaRules({"monitor": frozenset({"read"})})
            self.areas.append(Area(name, store, Uploads(store), own, Parts(store)))
        return StorageService("se1", self.areas, engine_for=_no_engine, metrics=Metrics(CollectorRegistry()))

    def close(self) -> None:
        for area in self.areas:
            area.store.close()
        self.areas.clear()

    def tree(self, who: Peer | None = None, permit: Permit | None = None) -> Tree:
        service = StorageService("se1", self.areas, engine_for=_no_engine, metrics=Metrics(CollectorRegistry()))
        return Tree(service, lambda: (who or peer("dgis", "gateway"), permit))

    def left(self) -> list[str]:
        return [p.name for f in ("stage", "uploads", "parts") for p in (self.root / "main" / f).rglob("*.part*")]

    @property
    def used(self) -> int:
        ledger = self.areas[0].store.ledger
        return ledger._used + ledger._promised


def _no_engine(permit: str | None) -> Engine:
    raise AssertionError("no pull here")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.open()
    yield made
    made.close()


def path(key: str) -> str:
    return f"/areas/main/objects/{key}"


def put(tree: Tree, data: bytes, *, step: int = 50_000) -> None:
    ready = tree.write(path(spec_of(data).key), size=len(data))
    for at in range(0, len(data), step):
        ready.write(at, data[at : at + step])
    assert ready.commit() is not None


def whole(tree: Tree, where: str) -> bytes:
    fd, size = tree.read(where)
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def names(tree: Tree, where: str) -> list[str]:
    return [node.name for node in tree.entries(where)]


# -- seeing -----------------------------------------------------------------------------------------------------


def test_a_walk_from_the_root(place: Place) -> None:
    tree = place.tree()
    put(tree, DATA)
    sha = SPEC.sha256
    assert names(tree, "/") == ["areas"]
    assert names(tree, "/areas") == ["main"]
    assert names(tree, "/areas/main") == ["objects", "stage"]
    assert names(tree, "/areas/main/objects") == ["v1"]
    assert names(tree, "/areas/main/objects/v1") == [sha[:2]]
    assert names(tree, f"/areas/main/objects/v1/{sha[:2]}") == [sha[2:4]]
    (node,) = tree.entries(path(SPEC.key).rpartition("/")[0])
    assert (node.name, node.kind, node.size) == (sha, "file", len(DATA))
    assert node == tree.stat(node.path)
    assert abs((node.modified - datetime.now(UTC)).total_seconds()) < 60


def test_who_has_no_role_sees_nothing(place: Place) -> None:
    put(place.tree(), DATA)
    nobody = place.tree(peer("nobody"))
    assert names(nobody, "/areas") == []
    for act in (
        lambda: nobody.stat("/areas/main"),
        lambda: nobody.stat(path(SPEC.key)),
        lambda: nobody.read(path(SPEC.key)),
        lambda: list(nobody.entries("/areas/main/objects/v1")),
        lambda: nobody.space("/areas/main"),
        lambda: nobody.mkdir("/areas/main/objects"),
        lambda: nobody.write("/areas/main/stage/a.part"),
        lambda: nobody.delete(path(SPEC.key)),
    ):
        with pytest.raises(Denied):
            act()


def test_an_operator_may_look_only(place: Place) -> None:
    put(place.tree(), DATA)
    operator = place.tree(peer("op", "operator"))
    assert whole(operator, path(SPEC.key)) == DATA
    assert operator.checksum(path(SPEC.key)) == SPEC.sha256
    for act in (
        lambda: operator.delete(path(SPEC.key)),
        lambda: operator.write(path(SPEC.key), size=1),
        lambda: operator.missing(path(SPEC.key), 1),
    ):
        with pytest.raises(Denied):
            act()


def test_an_area_of_others_is_as_if_it_were_not(place: Place) -> None:
    tree = place.tree()
    answers = []
    for area in ("other", "nowhere"):
        with pytest.raises(Denied) as denied:
            tree.stat(f"/areas/{area}")
        answers.append(str(denied.value))
    assert answers[0] == answers[1]


def test_a_permit_opens_its_objects(place: Place) -> None:
    put(place.tree(), DATA)
    se2 = peer("se2")
    permit = Permit(se2.dn, "se1", (SPEC.key,), ("read",), datetime.now(UTC))
    tree = place.tree(se2, permit)
    assert whole(tree, path(SPEC.key)) == DATA
    assert tree.stat("/areas/main").kind == "dir"
    for act in (
        lambda: tree.read(path(BIG_SPEC.key)),
        lambda: tree.write(path(SPEC.key), size=len(DATA)),
        lambda: list(tree.entries("/areas/main/objects/v1")),
    ):
        with pytest.raises(Denied):
            act()
    with pytest.raises(Denied):
        place.tree(peer("se3"), permit).read(path(SPEC.key))


def test_a_permit_to_write_lets_one_part_in(place: Place) -> None:
    se2 = peer("se2")
    tree = place.tree(se2, Permit(se2.dn, "se1", (SPEC.key,), ("write",), datetime.now(UTC)))
    part = f"/areas/main/stage/{SPEC.sha256}.00ff.part"
    ready = tree.write(part)
    ready.write(0, DATA)
    ready.commit()
    tree.rename(part, path(SPEC.key))
    assert whole(place.tree(), path(SPEC.key)) == DATA
    with pytest.raises(Denied):
        tree.write("/areas/main/stage/any.part")


def test_no_path_but_those_of_the_layout(place: Place, tmp_path: Path) -> None:
    tree = place.tree()
    before = sorted(tmp_path.rglob("*"))
    acts: list[Callable[[str], object]] = [
        tree.stat,
        tree.read,
        tree.delete,
        tree.mkdir,
        tree.space,
        lambda p: list(tree.entries(p)),
        lambda p: tree.write(p, size=3),
        lambda p: tree.rename(p, path(SPEC.key)),
    ]
    for bad in ("/etc/passwd", "/areas/main/../../etc", "/areas/main/uploads/x", "/areas/main/stage/../x.part", ""):
        for act in acts:
            with pytest.raises((NotFound, Refused)):
                act(bad)
    assert sorted(tmp_path.rglob("*")) == before


# -- writing objects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", DATA, BIG], ids=["empty", "byte", "small", "big"])
def test_an_object_is_there_after_commit_only(place: Place, data: bytes) -> None:
    tree = place.tree()
    spec = spec_of(data)
    ready = tree.write(path(spec.key), size=len(data))
    ready.write(0, data)
    with pytest.raises(NotFound):
        tree.stat(path(spec.key))
    stored = ready.commit()
    assert stored is not None and (stored.sha256, stored.size) == (spec.sha256, len(data))
    assert whole(tree, path(spec.key)) == data
    assert place.used == len(data) and not place.left()


def test_the_order_of_blocks_does_not_matter(place: Place) -> None:
    tree = place.tree()
    for data in (DATA, BIG):
        step = len(data) // 37
        starts = list(range(0, len(data), step))
        random.Random(1).shuffle(starts)
        ready = tree.write(path(spec_of(data).key), size=len(data))
        threads = [threading.Thread(target=_send, args=(ready, data, starts[n::4], step)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert ready.commit() is not None
        assert whole(tree, path(spec_of(data).key)) == data


def _send(ready: Writing, data: bytes, starts: list[int], step: int) -> None:
    for start in starts:
        ready.write(start, data[start : start + step])


@pytest.mark.parametrize("size", [len(DATA), None])
def test_wrong_bytes_leave_nothing(place: Place, size: int | None) -> None:
    tree = place.tree()
    ready = tree.write(path(SPEC.key), size=size)
    ready.write(0, DATA[:-1] + b"?")
    with pytest.raises(Corrupt):
        ready.commit()
    with pytest.raises(NotFound):
        tree.stat(path(SPEC.key))
    assert place.used == 0 and not place.left()


def test_too_few_and_too_many_bytes_are_refused(place: Place) -> None:
    tree = place.tree()
    for spec in (SPEC, BIG_SPEC):
        ready = tree.write(path(spec.key), size=spec.size)
        ready.write(0, b"x")
        with pytest.raises(Refused):
            ready.write(spec.size - 1, b"xx")
        with pytest.raises(Refused):
            ready.commit()
        with pytest.raises(Conflict):
            ready.write(0, b"x")


def test_an_object_of_unknown_size_may_grow(place: Place) -> None:
    tree = place.tree()
    ready = tree.write(path(BIG_SPEC.key))
    for at in range(0, len(BIG), 1_000_000):
        ready.write(at, BIG[at : at + 1_000_000])
    ready.commit()
    assert whole(tree, path(BIG_SPEC.key)) == BIG
    ready = tree.write(path(SPEC.key))
    ready.write(0, DATA)
    ready.close()
    with pytest.raises(NotFound):
        tree.stat(path(SPEC.key))
    assert place.used == len(BIG) and not place.left()


def test_a_large_object_goes_on_after_a_cut_and_a_restart(place: Place) -> None:
    tree = place.tree()
    where, half = path(BIG_SPEC.key), CHUNK_BYTES + 5
    ready = tree.write(where, size=len(BIG))
    ready.write(0, BIG[:1000])
    ready.write(half, BIG[half:])
    ready.close()
    place.close()
    place.open()
    tree = place.tree()
    assert tree.missing(where, len(BIG)) == ((1000, half),)
    assert place.tree(peer("another", "gateway")).missing(where, len(BIG)) == ((0, len(BIG)),)
    ready = tree.write(where, size=len(BIG))
    ready.write(1000, BIG[1000:half])
    ready.commit()
    assert whole(tree, where) == BIG
    assert tree.missing(where, len(BIG)) == ()


def test_bytes_that_differ_from_those_before_are_a_conflict(place: Place) -> None:
    ready = place.tree().write(path(BIG_SPEC.key), size=len(BIG))
    ready.write(0, BIG[:1000])
    ready.write(500, BIG[500:2000])
    with pytest.raises(Conflict):
        ready.write(1500, b"?" * 1000)
    ready.discard()
    assert place.used == 0


def test_the_newest_session_has_the_upload(place: Place) -> None:
    tree = place.tree()
    old = tree.write(path(BIG_SPEC.key), size=len(BIG))
    old.write(0, BIG[:CHUNK_BYTES])
    new = tree.write(path(BIG_SPEC.key), size=len(BIG))
    assert new.received == Ranges.of([(0, CHUNK_BYTES)])
    with pytest.raises(Conflict):
        old.write(CHUNK_BYTES, BIG[CHUNK_BYTES:])
    old.close()
    new.write(CHUNK_BYTES, BIG[CHUNK_BYTES:])
    assert new.commit() is not None


def test_an_upload_changes_doors_half_way(place: Place, tmp_path: Path) -> None:
    """Begun here, ended as HTTPS does it (which knows the chunks), and the other way round."""
    tree, uploads, owner = place.tree(), place.areas[0].uploads, "/O=Grid/CN=dgis"
    file = tmp_path / "big"
    file.write_bytes(BIG)
    spec = ObjectSpec(BIG_SPEC.key, len(BIG), BIG_SPEC.sha256, digests_of(file, size=len(BIG))[1])
    ready = tree.write(path(spec.key), size=len(BIG))
    ready.write(0, BIG[:5000])
    ready.close()
    ident, upload = uploads.begin(spec, owner)
    assert upload.missing == ((5000, len(BIG)),)
    middle = uploads.open_range(ident, owner, 5000, CHUNK_BYTES)
    middle.write(BIG[5000:CHUNK_BYTES])
    middle.close()
    ready = tree.write(path(spec.key), size=len(BIG))
    assert ready.received == Ranges.of([(0, CHUNK_BYTES)])
    ready.write(CHUNK_BYTES, BIG[CHUNK_BYTES:])
    ready.commit()
    assert whole(tree, path(spec.key)) == BIG


def test_https_takes_over_what_a_dead_session_of_another_door_holds(place: Place) -> None:
    tree, owner = place.tree(), "/O=Grid/CN=dgis"
    dead = tree.write(path(BIG_SPEC.key), size=len(BIG))
    dead.write(0, BIG[:5000])
    reply = tree._service.begin_upload(place.areas[0], ObjectSpec(BIG_SPEC.key, len(BIG), BIG_SPEC.sha256), owner)
    assert reply.missing == ((5000, len(BIG)),)
    rest = place.areas[0].uploads.open_range(reply.upload, owner, 5000, len(BIG))
    rest.write(BIG[5000:])
    rest.close()
    with pytest.raises(Conflict):
        dead.write(5000, BIG[5000:])
    tree._service.commit_upload(place.areas[0], reply.upload, owner)
    assert whole(tree, path(BIG_SPEC.key)) == BIG


def test_no_space_is_said_at_once_and_keeps_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path, quota=1_000_000)
    place.open()
    tree = place.tree()
    with pytest.raises(NoSpace):
        tree.write(path(BIG_SPEC.key), size=len(BIG))
    with pytest.raises(NoSpace):
        tree.write("/areas/main/stage/a.part", size=len(BIG))
    for where in ("/areas/main/stage/a.part", path(BIG_SPEC.key)):
        ready = tree.write(where)
        with pytest.raises(NoSpace):
            for at in range(0, len(BIG), 100_000):
                ready.write(at, BIG[at : at + 100_000])
        with pytest.raises(Conflict):
            ready.write(0, b"x")
    assert place.used == 0 and not place.left()
    put(tree, DATA)
    assert tree.space("/areas/main/objects").used == len(DATA)
    place.close()


def test_a_right_that_ends_ends_the_transfer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "JUDGE_SECONDS", -1.0)
    known = [peer("dgis", "gateway")]

    def identify() -> tuple[Peer, Permit | None]:
        if not known:
            raise Denied("revoked")
        return known[0], None

    ready = Tree(place.tree()._service, identify).write(path(SPEC.key), size=len(DATA))
    ready.write(0, DATA[:1000])
    known.clear()
    with pytest.raises(Denied):
        ready.write(1000, DATA[1000:])
    ready.close()
    assert place.used == 0 and not place.left()


# -- parts ------------------------------------------------------------------------------------------------------

PART = f"/areas/main/stage/{SPEC.sha256}.0011.part"


def _part(tree: Tree, data: bytes, *, where: str = PART, at: int = 0, fresh: bool = False) -> None:
    ready = tree.write(where, fresh=fresh)
    ready.write(at, data)
    ready.close()


def test_a_part_grows_over_sessions_and_restarts_and_becomes_the_object(place: Place) -> None:
    tree = place.tree()
    _part(tree, DATA[:1000])
    assert tree.stat(PART).size == 1000
    assert names(tree, "/areas/main/stage") == [PART.rpartition("/")[2]]
    place.close()
    place.open()
    tree = place.tree()
    assert tree.stat(PART).size == 1000 and tree.missing(PART, 5000) == ((1000, 5000),)
    assert whole(tree, PART) == DATA[:1000]
    assert place.used == 1000
    _part(tree, DATA[1000:], at=1000)
    assert tree.checksum(PART) == SPEC.sha256
    tree.rename(PART, path(SPEC.key))
    assert whole(tree, path(SPEC.key)) == DATA
    assert names(tree, "/areas/main/stage") == [] and not place.left()
    assert place.used == len(DATA)
    tree.rename(PART, path(SPEC.key))  # the answer got lost: it is done already
    with pytest.raises(NotFound):
        tree.rename(PART, path(BIG_SPEC.key))


def test_a_part_is_its_owners(place: Place) -> None:
    _part(place.tree(), DATA)
    other = place.tree(peer("another", "gateway"))
    assert names(other, "/areas/main/stage") == []
    for act in (
        lambda: other.stat(PART),
        lambda: other.read(PART),
        lambda: other.delete(PART),
        lambda: other.rename(PART, path(SPEC.key)),
    ):
        with pytest.raises(NotFound):
            act()
    _part(other, b"mine")
    assert place.tree().stat(PART).size == len(DATA)


def test_a_part_with_other_bytes_never_becomes_the_object(place: Place) -> None:
    tree = place.tree()
    _part(tree, DATA)
    _part(tree, b"?", at=100)
    with pytest.raises(Corrupt):
        tree.rename(PART, path(SPEC.key))
    assert place.used == 0 and not place.left()
    with pytest.raises(NotFound):
        tree.stat(path(SPEC.key))


def test_what_was_rewritten_counts(place: Place) -> None:
    tree = place.tree()
    ready = tree.write(PART)
    ready.write(0, b"?" * len(DATA))
    ready.write(0, DATA)
    ready.commit()
    tree.rename(PART, path(SPEC.key))
    assert whole(tree, path(SPEC.key)) == DATA


def test_a_gap_is_not_length(place: Place) -> None:
    tree = place.tree()
    ready = tree.write(PART)
    ready.write(0, DATA[:10])
    ready.write(5000, DATA[5000:])
    assert tree.stat(PART).size == 10
    ready.close()
    assert tree.missing(PART, len(DATA)) == ((10, len(DATA)),)
    _part(tree, DATA, fresh=True)
    tree.rename(PART, path(SPEC.key))


def test_fresh_forgets_a_longer_part(place: Place) -> None:
    tree = place.tree()
    _part(tree, BIG[:400_000])
    _part(tree, DATA, fresh=True)
    tree.rename(PART, path(SPEC.key))
    assert place.used == len(DATA)


def test_deleting(place: Place) -> None:
    tree = place.tree()
    _part(tree, DATA)
    open_one = tree.write(PART)
    tree.delete(PART)
    with pytest.raises(Conflict):
        open_one.write(0, b"x")
    put(tree, DATA)
    tree.delete(path(SPEC.key))
    for gone in (PART, path(SPEC.key)):
        with pytest.raises(NotFound):
            tree.delete(gone)
    assert place.used == 0
    for kept in ("/areas/main/stage", "/areas/main/objects"):
        with pytest.raises(Refused):
            tree.delete(kept)


def test_old_parts_go(tmp_path: Path) -> None:
    store, now = Store(tmp_path), [1e9]
    parts = Parts(store, clock=lambda: now[0])
    parts.write("me", "a.part", size=10, fresh=False).keep()
    now[0] += 23 * 3600
    parts.write("me", "b.part", size=None, fresh=False).keep()
    now[0] += 2 * 3600
    still = parts.write("me", "c.part", size=None, fresh=False)
    assert [part.name for part in parts.of("me")] == ["b.part", "c.part"]
    still.keep()
    store.close()


def test_a_party_leaves_only_so_many_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_provider.parts.MOST_PARTS", 3)
    tree = place.tree()
    for n in range(3):
        _part(tree, b"x", where=f"/areas/main/stage/p{n}.part")
    with pytest.raises(Refused):
        tree.write("/areas/main/stage/p3.part")
    _part(tree, b"y", where="/areas/main/stage/p0.part")
    _part(place.tree(peer("another", "gateway")), b"x")


def test_mkdir_and_rename_touch_nothing_else(place: Place) -> None:
    tree = place.tree()
    tree.mkdir("/areas/main/objects/v1/ab/cd")
    for source, target in ((path(SPEC.key), path(BIG_SPEC.key)), (PART, "/areas/main/stage/x.part"), ("/", "/areas")):
        with pytest.raises(Refused):
            tree.rename(source, target)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha1", "md5", "adler32"])
def test_checksums_of_ranges(place: Place, algorithm: str) -> None:
    import zlib

    tree = place.tree()
    put(tree, DATA)
    part = DATA[100:5000]
    want = f"{zlib.adler32(part):08x}" if algorithm == "adler32" else hashlib.new(algorithm, part).hexdigest()
    assert tree.checksum(path(SPEC.key), offset=100, length=4900, algorithm=algorithm) == want
    with pytest.raises(Refused):
        tree.checksum(path(SPEC.key), offset=1, length=len(DATA))
    with pytest.raises(Refused):
        tree.checksum(path(SPEC.key), algorithm="crc32")


# -- landing ----------------------------------------------------------------------------------------------------


@contextmanager
def _file(folder: Path) -> Iterator[int]:
    fd = os.open(folder / "f", os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=30)), max_size=12))
def test_the_digest_is_that_of_the_gapless_front(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[int, bytes]]
) -> None:
    """Whatever comes in whatever order, also twice: as if it were written into memory and hashed at the end."""
    model, there = bytearray(100), set()
    with _file(tmp_path_factory.mktemp("landing")) as fd:
        landing = Landing(fd, rewrite=True)
        for at, data in blocks:
            landing.write(at, data)
            model[at : at + len(data)] = data
            there |= set(range(at, at + len(data)))
        front = next(n for n in range(101) if n not in there)
        assert landing.front == front
        assert landing.digest() == hashlib.sha256(model[:front]).hexdigest()


def test_scattered_writes_are_bounded(tmp_path: Path) -> None:
    with _file(tmp_path) as fd:
        landing = Landing(fd)
        with pytest.raises(Refused):
            for n in range(5000):
                landing.write(2 * n, b"x")


def test_a_disk_that_fails_ends_in_our_words(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = place.tree().write(path(SPEC.key), size=len(DATA))

    def fail(fd: int, data: bytes, offset: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("storage_provider.landing.write_at", fail)
    with pytest.raises(StorageError, match="disk"):
        ready.write(0, b"x")
    ready.close()
    assert place.used == 0 and not place.left()


# -- one writer, none once it is digested -----------------------------------------------------------------------

OPATH = path(SPEC.key)


@contextmanager
def _meanwhile(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, act: Callable[[], object]) -> Iterator[None]:
    """Run `act` once, right after the first call of a method has ended."""
    plain = getattr(owner, method)
    acted: list[bool] = []

    def hooked(*args: object, **how: object) -> object:
        answer = plain(*args, **how)
        if not acted:
            acted.append(True)
            act()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, hooked)
        yield
    assert acted


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("how", ["close", "commit", "open still"])
def test_a_new_writer_never_reaches_a_part_that_is_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch, fresh: bool, how: str
) -> None:
    """Between digest and rename a second session opens, overwrites and ends the same name: that is another file."""
    tree = place.tree()
    _part(tree, DATA)
    evil: list[Writing] = []

    def second() -> None:
        evil.append(place.tree().write(PART, fresh=fresh))
        evil[0].write(0, b"EVIL" * 1000)
        if how != "open still":
            getattr(evil[0], how)()

    with _meanwhile(monkeypatch, Landing, "digest", second):
        tree.rename(PART, OPATH)
    if how == "open still":
        evil[0].write(4000, b"EVIL" * 10)
        evil[0].close()
    assert hashlib.sha256(whole(tree, OPATH)).hexdigest() == SPEC.sha256
    assert whole(tree, PART) == b"EVIL" * (1010 if how == "open still" else 1000)
    tree.delete(PART)
    assert place.used == len(DATA) and not place.left()


def test_a_corrupt_part_takes_nothing_of_a_new_writer_along(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = place.tree()
    _part(tree, b"!" + DATA[1:])

    def second() -> None:
        _part(place.tree(), DATA, fresh=True)

    with _meanwhile(monkeypatch, Landing, "digest", second), pytest.raises(Corrupt):
        tree.rename(PART, OPATH)
    tree.rename(PART, OPATH)
    assert whole(tree, OPATH) == DATA and place.used == len(DATA)


def test_a_part_that_is_being_verified_is_busy_not_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who repeats a rename whose answer does not come must not hear that there is no such part."""
    tree = place.tree()
    _part(tree, DATA)

    def again() -> None:
        with pytest.raises(Busy):
            place.tree().rename(PART, OPATH)

    with _meanwhile(monkeypatch, Landing, "digest", again):
        tree.rename(PART, OPATH)
    tree.rename(PART, OPATH)


@pytest.mark.parametrize("where", [PART, path(BIG_SPEC.key)], ids=["part", "upload"])
def test_a_newer_session_waits_for_a_commit_under_way(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It used to open the file while the older one still cut, closed and published it."""
    tree, size = place.tree(), len(BIG)
    old = tree.write(where, size=size)
    old.write(0, BIG)
    inside, go, newer = threading.Event(), threading.Event(), []
    plain = os.fdatasync

    def slow(fd: int) -> None:
        inside.set()
        assert go.wait(10)
        plain(fd)

    monkeypatch.setattr("os.fdatasync", slow)
    committing = threading.Thread(target=old.commit)
    committing.start()
    assert inside.wait(10)
    second = threading.Thread(target=lambda: newer.append(place.tree().write(where, size=size, fresh=True)))
    second.start()
    second.join(0.2)
    assert not newer, "a second descriptor is open while the first is being committed"
    go.set()
    committing.join(10)
    second.join(10)
    newer[0].write(0, b"EVIL" * 100)
    newer[0].close()
    assert whole(tree, where) == (b"EVIL" * 100 if where == PART else BIG)


def test_parts_have_one_writer_at_the_lowest_level_too(place: Place) -> None:
    parts = place.areas[0].parts
    first = parts.write("me", "a.part", size=None, fresh=False)
    with pytest.raises(Busy):
        parts.write("me", "a.part", size=None, fresh=True)
    first.keep()
    parts.write("me", "a.part", size=None, fresh=True).drop()


@pytest.mark.parametrize("where", [PART, OPATH], ids=["part", "object"])
def test_what_a_failed_write_left_behind_the_front_is_no_part_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    tree = place.tree()
    ready = tree.write(where)
    ready.write(0, DATA)

    def half(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[:10], offset)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("storage_provider.landing.write_at", half)
        with pytest.raises(StorageError):
            ready.write(len(DATA), b"?" * 20)
    ready.commit()
    if where == PART:
        tree.rename(PART, OPATH)
    assert tree.stat(OPATH).size == len(DATA) and tree.checksum(OPATH) == SPEC.sha256


@pytest.mark.parametrize("rewrite", [True, False])
def test_two_threads_at_one_place_leave_the_bytes_that_were_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewrite: bool
) -> None:
    plain, first, go = disk.write_at, threading.Event(), threading.Event()

    def slow(fd: int, data: memoryview, offset: int) -> None:
        if bytes(data) == b"A" * 100:
            first.set()
            go.wait(0.3)
        plain(fd, data, offset)

    monkeypatch.setattr("storage_provider.landing.write_at", slow)
    with _file(tmp_path) as fd:
        landing = Landing(fd, rewrite=rewrite)
        thread = threading.Thread(target=landing.write, args=(0, b"A" * 100))
        thread.start()
        assert first.wait(10)
        with suppress(Conflict):
            landing.write(0, b"B" * 100)
        go.set()
        thread.join(10)
        assert landing.digest() == hashlib.sha256(os.pread(fd, 100, 0)).hexdigest()


# -- after a kill -----------------------------------------------------------------------------------------------


def _kill(place: Place) -> None:
    """A restart of which nobody was told: what is open stays as it is on disk."""
    place.close()
    place.open()


def test_after_a_kill_a_part_is_as_long_as_its_front_was(place: Place) -> None:
    ready = place.tree().write(PART)
    ready.write(0, DATA[:10])
    ready.sync()
    ready.write(5000, DATA[5000:])
    _kill(place)
    tree = place.tree()
    assert tree.stat(PART).size == 10 and place.used == 10
    _part(tree, DATA[10:], at=10)
    tree.rename(PART, OPATH)
    assert whole(tree, OPATH) == DATA


def test_after_a_kill_a_part_without_a_journal_is_gone(place: Place) -> None:
    _part(place.tree(), DATA[:2000])
    ready = place.tree().write(PART)
    ready.write(5000, DATA[5000:])
    _kill(place)
    assert names(place.tree(), "/areas/main/stage") == [] and place.used == 0 and not place.left()


def test_a_journal_of_earlier_bytes_says_nothing_of_fresh_ones(place: Place) -> None:
    ready = place.tree().write(PART)
    ready.write(0, DATA)
    ready.sync()
    ready.close()
    ready = place.tree().write(PART, fresh=True)
    ready.write(100_000, DATA[100_000:])
    _kill(place)
    assert place.tree().missing(PART, len(DATA)) == ((0, len(DATA)),)


def test_a_part_that_was_being_taken_is_there_after_a_kill(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _part(place.tree(), DATA)
    (file,) = (place.root / "main" / "parts").rglob("*.part")
    file.rename(file.with_name(file.name + ".00ff.taken"))
    _kill(place)
    tree = place.tree()
    assert tree.stat(PART).size == len(DATA)
    tree.rename(PART, OPATH)


@pytest.mark.parametrize("where", [PART, path(BIG_SPEC.key)], ids=["part", "upload"])
def test_most_of_a_large_transfer_survives_a_kill(tmp_path: Path, where: str) -> None:
    place = Place(tmp_path)
    place.open()
    ready = place.tree().write(where, size=len(BIG))
    for at in range(0, 10 << 20, 1 << 20):
        ready.write(at, BIG[at : at + (1 << 20)])
    _kill(place)
    ((start, _),) = place.tree().missing(where, len(BIG))
    assert start >= 8 << 20
    place.close()


def test_a_slow_transfer_is_journalled_every_so_many_bytes_a_fast_one_once_a_second(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    synced: list[int] = []
    monkeypatch.setattr("storage_provider.writing.time.monotonic", lambda: now[0])
    monkeypatch.setattr(writing, "SYNC_BYTES", 1000)
    ready = place.tree().write(PART)
    monkeypatch.setattr(ready._target, "sync", lambda: synced.append(ready.received.total))
    for at in range(0, 10_000, 500):
        ready.write(at, DATA[at : at + 500])
        now[0] += 0.25 if at < 5000 else 2.0
    assert synced[:3] == [1000, 3000, 5000] and synced[-3:] == [8000, 9000, 10_000]
    ready.close()
