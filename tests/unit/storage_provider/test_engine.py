"""The engine over doubles: verified, blamed, fallen over, bounded, cancelled."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from storage_provider.channel import ObjectSpec
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.errors import (
    Cancelled,
    Corrupt,
    Denied,
    DoorURL,
    LocalFault,
    NotFound,
    StorageError,
    Unreachable,
    Unsupported,
)
from storage_provider.transfer.engine import Blame, Doors, Engine, Limits, Patience, Source
from tests.conformance.memory_channel import Faults, MemoryChannel, MemoryProvider, opener

BIG = random.Random(1).randbytes(5 * CHUNK_BYTES + 777)
SMALL = random.Random(2).randbytes(300_000)
QUICK = Patience(stall_seconds=0.4, stall_bytes=64 * 1024)


def providers(*names: str) -> list[MemoryProvider]:
    return [MemoryProvider(name) for name in names]


def source_of(spec: ObjectSpec, far: list[MemoryProvider]) -> Source:
    return Source(tuple(Doors(p.name, (p.door,)) for p in far), spec.key, spec.size, spec.sha256, spec.chunks)


def engine_over(far: list[MemoryProvider], **heard: list[Blame]) -> Engine:
    blames = heard.get("blames", [])
    return Engine(opener(*far), patience=QUICK, limits=Limits(run_bytes=2 * CHUNK_BYTES), on_blame=blames.append)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("data", [SMALL, BIG, b"", b"x", BIG[:CHUNK_BYTES], BIG[: CHUNK_BYTES + 1]])
def test_fetches_verified_by_rename(tmp_path: Path, data: bytes) -> None:
    far = providers("a", "b")
    spec = [p.add(data) for p in far][0]
    fetched = engine_over(far).fetch(source_of(spec, far), tmp_path / "t")
    assert only_file(tmp_path).read_bytes() == data
    assert fetched.sha256 == spec.sha256 and not fetched.blames
    assert sum(size for _, size in fetched.served) == len(data)


def test_a_big_object_comes_from_several_replicas(tmp_path: Path) -> None:
    far = providers("a", "b")
    spec = [p.add(BIG) for p in far][0]
    fetched = engine_over(far).fetch(source_of(spec, far), tmp_path / "t")
    assert {se for se, _ in fetched.served} == {"a", "b"}


@pytest.mark.parametrize("data", [SMALL, BIG])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Faults(unreachable=True), "unreachable"),
        (Faults(denied=True), "refused"),
        (Faults(silent=True), "unreachable"),
        (Faults(cut_after=100_000), "unreachable"),
        (Faults(bytes_per_second=100_000), "unreachable"),
        (Faults(corrupt_chunks=frozenset({0})), "corrupt"),
        (Faults(extra_bytes=9), "corrupt"),
    ],
    ids=["refusing", "denying", "silent", "cut", "slow", "corrupt", "too-long"],
)
def test_one_bad_replica_is_blamed_and_the_other_used(tmp_path: Path, data: bytes, fault: Faults, kind: str) -> None:
    far = providers("bad", "good")
    spec = [p.add(data) for p in far][0]
    far[0].faults = fault
    heard: list[Blame] = []
    start = time.monotonic()
    fetched = engine_over(far, blames=heard).fetch(source_of(spec, far), tmp_path / "t")
    assert time.monotonic() - start < 6
    assert only_file(tmp_path).read_bytes() == data
    assert {(blame.se, blame.kind) for blame in fetched.blames} == {("bad", kind)}
    assert heard == list(fetched.blames)


def test_a_bad_chunk_is_named_and_the_rest_of_that_replica_used(tmp_path: Path) -> None:
    far = providers("a", "b")
    spec = [p.add(BIG) for p in far][0]
    far[0].faults.corrupt_chunks = frozenset({1})
    far[1].faults.corrupt_chunks = frozenset({4})
    fetched = engine_over(far).fetch(source_of(spec, far), tmp_path / "t")
    assert only_file(tmp_path).read_bytes() == BIG
    assert {(b.se, b.chunk) for b in fetched.blames} <= {("a", 1), ("b", 4)}


def test_falls_over_in_mid_object_when_a_replica_vanishes(tmp_path: Path) -> None:
    far = providers("a", "b")
    spec = [p.add(BIG) for p in far][0]
    far[0].faults = Faults(cut_after=CHUNK_BYTES + 1)

    def vanish(received: int) -> None:
        if received:
            far[0].objects.clear()

    fetched = engine_over(far).fetch(source_of(spec, far), tmp_path / "t", progress=vanish)
    assert only_file(tmp_path).read_bytes() == BIG
    assert {b.se for b in fetched.blames} == {"a"}


def test_a_short_break_of_the_only_replica_is_survived(tmp_path: Path) -> None:
    far = providers("a")
    spec = far[0].add(BIG)
    far[0].faults = Faults(cut_after=CHUNK_BYTES + 5, cuts=2)
    engine_over(far).fetch(source_of(spec, far), tmp_path / "t")
    assert only_file(tmp_path).read_bytes() == BIG


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Faults(unreachable=True), Unreachable),
        (Faults(silent=True), Unreachable),
        (Faults(denied=True), Denied),
        (Faults(corrupt_chunks=frozenset({0})), Corrupt),
        (Faults(bytes_per_second=100_000), Unreachable),
    ],
    ids=["refusing", "silent", "denying", "corrupt", "slow"],
)
def test_nothing_left_to_ask_is_an_error_in_time_and_leaves_nothing(
    tmp_path: Path, fault: Faults, error: type[StorageError]
) -> None:
    far = providers("a", "b")
    spec = [p.add(BIG) for p in far][0]
    for provider in far:
        provider.faults = fault
    start = time.monotonic()
    with pytest.raises(error) as caught:
        engine_over(far).fetch(source_of(spec, far), tmp_path / "t")
    assert time.monotonic() - start < 12
    assert caught.value.permanent == (error in (Denied, Corrupt))
    assert list(tmp_path.iterdir()) == []


def test_missing_everywhere_is_not_found(tmp_path: Path) -> None:
    far = providers("a", "b")
    spec = MemoryProvider("x").add(SMALL)
    with pytest.raises(NotFound):
        engine_over(far).fetch(source_of(spec, far), tmp_path / "t")
    with pytest.raises(NotFound):
        engine_over(far).fetch(source_of(spec, []), tmp_path / "t")


def test_missing_here_and_unreachable_there_may_pass(tmp_path: Path) -> None:
    far = providers("a", "b")
    spec = MemoryProvider("x").add(SMALL)
    far[1].faults = Faults(unreachable=True)
    with pytest.raises(Unreachable):
        engine_over(far).fetch(source_of(spec, far), tmp_path / "t")


def test_chunks_that_belong_to_another_object_are_seen_at_the_end(tmp_path: Path) -> None:
    far = providers("a")
    spec = far[0].add(BIG)
    other = MemoryProvider("x").add(BIG[:-1] + b"!")
    far[0].objects[other.key] = far[0].objects[spec.key]
    lying = Source((Doors("a", (far[0].door,)),), other.key, other.size, other.sha256, spec.chunks)
    with pytest.raises(Corrupt):
        engine_over(far).fetch(lying, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [Faults(silent=True), Faults(bytes_per_second=50_000)], ids=["silent", "slow"])
def test_cancelled_within_a_second(tmp_path: Path, fault: Faults) -> None:
    far = providers("a")
    spec = far[0].add(BIG)
    far[0].faults = fault
    start = time.monotonic()
    with pytest.raises(Cancelled):
        engine_over(far).fetch(source_of(spec, far), tmp_path / "t", cancelled=lambda: time.monotonic() > start + 0.3)
    assert time.monotonic() - start < 1.0
    assert list(tmp_path.iterdir()) == []


def test_a_dead_site_is_not_asked_again_for_every_object(tmp_path: Path) -> None:
    far = providers("dead", "good")
    far[0].faults = Faults(silent=True)
    engine = engine_over(far)
    start = time.monotonic()
    for number in range(20):
        spec = [p.add(SMALL + bytes([number])) for p in far][0]
        engine.fetch(source_of(spec, far), tmp_path / str(number))
    assert time.monotonic() - start < 4
    assert [engine.health(Doors(p.name, (p.door,)))[0].reachable for p in far] == [False, True]


def test_store_takes_only_the_object_bytes(tmp_path: Path) -> None:
    far = providers("a")
    spec = MemoryProvider("x").add(SMALL)
    path = tmp_path / "f"
    path.write_bytes(SMALL + b"trailing record")
    stored = engine_over(far).store(spec, path, Doors("a", (far[0].door,)))
    assert far[0].objects[spec.key][0] == SMALL
    assert (stored.key, stored.size, stored.sha256) == (spec.key, spec.size, spec.sha256)


def test_store_of_a_short_or_missing_file_is_a_local_fault(tmp_path: Path) -> None:
    far = providers("a")
    spec = MemoryProvider("x").add(SMALL)
    with pytest.raises(LocalFault):
        engine_over(far).store(spec, tmp_path / "f", Doors("a", (far[0].door,)))
    (tmp_path / "f").write_bytes(SMALL[:-1])
    with pytest.raises(LocalFault):
        engine_over(far).store(spec, tmp_path / "f", Doors("a", (far[0].door,)))


def test_store_falls_through_on_unreachable_only(tmp_path: Path) -> None:
    far = providers("one", "two")
    doors = Doors("se", (far[0].door, far[1].door))
    path = tmp_path / "f"
    path.write_bytes(SMALL)
    spec = MemoryProvider("x").add(SMALL)
    far[0].faults = Faults(denied=True)
    with pytest.raises(Denied):
        engine_over(far).store(spec, path, doors)
    assert not far[1].objects
    far[0].faults = Faults(unreachable=True)
    engine = engine_over(far)
    engine.store(spec, path, doors)
    assert spec.key in far[1].objects
    engine.delete(doors, spec.key)
    assert not far[1].objects
    with pytest.raises(NotFound):
        engine.delete(doors, spec.key)


def test_a_full_local_disk_is_not_blamed_on_the_replica(tmp_path: Path) -> None:
    far = providers("a")
    spec = far[0].add(SMALL)
    with pytest.raises(LocalFault):
        engine_over(far).fetch(source_of(spec, far), tmp_path / "no" / "such" / "folder")


# -- several doors to one element -------------------------------------------------------------------------------


class TwoDoors:
    """One element behind a preferred door and another; both lead to the same objects."""

    def __init__(self, tmp_path: Path) -> None:
        self.preferred, self.other = providers("preferred", "other")
        self.other.objects = self.preferred.objects
        self.doors = Doors("se", (self.preferred.door, self.other.door))
        self.heard: list[Blame] = []
        self.engine = engine_over([self.preferred, self.other], blames=self.heard)
        self.tmp = tmp_path

    def fetch(self, data: bytes) -> None:
        spec = self.preferred.add(data)
        source = Source((self.doors,), spec.key, spec.size, spec.sha256, spec.chunks)
        self.engine.fetch(source, self.tmp / "t")
        assert (self.tmp / "t").read_bytes() == data

    @property
    def in_use(self) -> list[str]:
        return [door.url for door in self.engine.health(self.doors) if door.in_use]


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    "fault",
    [Faults(unreachable=True), Faults(silent=True), Faults(cut_after=100_000), Faults(bytes_per_second=50_000)],
    ids=["refusing", "silent", "cut", "slow"],
)
def test_within_one_fetch_the_next_door_is_taken_without_blame(tmp_path: Path, data: bytes, fault: Faults) -> None:
    two = TwoDoors(tmp_path)
    two.preferred.faults = fault
    start = time.monotonic()
    two.fetch(data)
    assert time.monotonic() - start < 2.5
    assert two.heard == []
    two.fetch(SMALL)
    assert two.in_use == [two.other.door]


def test_doors_that_break_off_in_turn_end_in_an_error_in_time(tmp_path: Path) -> None:
    two = TwoDoors(tmp_path)
    two.preferred.faults = two.other.faults = Faults(cut_after=100_000)
    start = time.monotonic()
    with pytest.raises(Unreachable):
        two.fetch(BIG)
    assert time.monotonic() - start < 8
    assert {blame.se for blame in two.heard} == {"se"}


def test_the_preferred_door_is_probed_and_used_again(tmp_path: Path) -> None:
    two = TwoDoors(tmp_path)
    two.fetch(SMALL)
    assert two.in_use == [two.preferred.door]
    two.preferred.faults = Faults(unreachable=True)
    two.engine.space(two.doors)
    assert two.in_use == [two.other.door]
    asked = two.preferred.gets
    two.fetch(SMALL)
    two.preferred.faults = Faults()
    deadline = time.monotonic() + 5
    while two.in_use != [two.preferred.door]:
        assert time.monotonic() < deadline
        two.engine.space(two.doors)
        time.sleep(0.05)
    assert two.preferred.gets == asked  # no real work was a guinea pig


def test_a_door_that_no_channel_speaks_is_passed_over(tmp_path: Path) -> None:
    two = TwoDoors(tmp_path)
    known = opener(two.other)

    def open_channel(url: str) -> MemoryChannel:
        if url == two.preferred.door:
            raise DoorURL("no channel for that", door=url)
        return known(url)

    two.engine = Engine(open_channel, patience=QUICK, on_blame=two.heard.append)
    two.fetch(SMALL)
    assert two.engine.space(two.doors).total and two.heard == []
    assert two.engine.health(two.doors)[0].last_error == "no channel for that"


def test_what_one_door_cannot_do_another_may(tmp_path: Path) -> None:
    two = TwoDoors(tmp_path)
    spec = two.preferred.add(SMALL)

    class Limited(MemoryChannel):
        def checksum(self, key: str) -> str:
            raise Unsupported("no checksums here", door=self.door)

    def open_channel(url: str) -> MemoryChannel:
        return Limited(two.preferred) if url == two.preferred.door else MemoryChannel(two.other)

    engine = Engine(open_channel)
    assert engine.checksum(two.doors, spec.key) == spec.sha256
    with pytest.raises(Unsupported):
        engine.checksum(Doors("se", two.doors.urls[:1]), spec.key)
    assert all(door.reachable for door in engine.health(two.doors))
