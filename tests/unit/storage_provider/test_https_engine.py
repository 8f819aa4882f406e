"""The engine over two real storage elements, each behind a wire that can fail."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.https.session import GridSession
from storage_provider.channels import open_channels
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.errors import Cancelled, NotFound, Unreachable
from storage_provider.timeouts import Timeouts
from storage_provider.transfer import route
from storage_provider.transfer.engine import Doors, Engine, Limits, Patience, Source
from tests.conformance.faulty_wire import FaultyWire, Mood
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import HttpsProvider, write
from tests.helpers.pki import SiteHome

BIG = random.Random(5).randbytes(6 * CHUNK_BYTES + 321)
SMALL = random.Random(6).randbytes(300_000)


class Pair:
    """Two SEs a and b, and an engine that reaches them through faulty wires."""

    def __init__(self, site: SiteHome, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.far = [HttpsProvider(site.storage(f"se{n}"), f"se{n}", tmp_path / f"se{n}") for n in (1, 2)]
        self.wires = [FaultyWire(_address(each)) for each in self.far]
        self.doors = [
            Doors(each.name, (f"https://127.0.0.1:{wire.port}/areas/main",))
            for each, wire in zip(self.far, self.wires, strict=True)
        ]
        self.session = GridSession(site.gateway(), connect_timeout=0.7)
        channels = open_channels(self.session, timeouts=Timeouts(answer=0.7, write=2.0))
        self.engine = Engine(
            channels, limits=Limits(run_bytes=2 * CHUNK_BYTES), patience=Patience(stall_seconds=0.7, stall_bytes=262144)
        )

    def spread(self, data: bytes) -> Source:
        spec = spec_of(data)
        for doors in self.doors:
            self.engine.store(spec, write(self.tmp, data + b"tail"), doors)
        return Source(tuple(self.doors), spec.key, spec.size, spec.sha256, spec.chunks)

    def rot(self, number: int, key: str, at: int) -> None:
        path = self.far[number].root / "main" / "objects" / key
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    def close(self) -> None:
        for wire in self.wires:
            wire.close()
        self.session.close()
        for each in self.far:
            each.stop()


def _address(each: HttpsProvider) -> tuple[str, int]:
    each.start()
    return each.address


@pytest.fixture
def pair(site: SiteHome, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(site, tmp_path)
    yield made
    made.close()


def test_comes_from_both_and_is_whole(pair: Pair) -> None:
    fetched = pair.engine.fetch(pair.spread(BIG), pair.tmp / "t")
    assert fetched.path.read_bytes() == BIG
    assert {se for se, _ in fetched.served} == {"se1", "se2"} and not fetched.blames


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    "mood",
    [Mood(silent=True), Mood(bytes_per_second=50_000), Mood(cut_down=100_000, cuts=100), None],
    ids=["silent", "slow", "cut", "refused"],
)
def test_a_bad_line_to_one_replica(pair: Pair, data: bytes, mood: Mood | None) -> None:
    source = pair.spread(data)
    if mood is None:
        pair.wires[0].refuse()
    else:
        pair.wires[0].set(mood)
    began = time.monotonic()
    fetched = pair.engine.fetch(source, pair.tmp / "t")
    assert time.monotonic() - began < 5
    assert fetched.path.read_bytes() == data
    assert {(blame.se, blame.kind) for blame in fetched.blames} == {("se1", "unreachable")}
    assert pair.engine.health(source.doors[0])[0].reachable is False


def test_a_bad_chunk_is_blamed_on_its_source(pair: Pair) -> None:
    source = pair.spread(BIG)
    pair.rot(0, source.key, CHUNK_BYTES + 7)
    pair.rot(1, source.key, 6 * CHUNK_BYTES + 1)
    fetched = pair.engine.fetch(source, pair.tmp / "t")
    assert fetched.path.read_bytes() == BIG
    assert {(blame.se, blame.chunk) for blame in fetched.blames if blame.kind == "corrupt"} <= {("se1", 1), ("se2", 6)}


def test_a_replica_that_vanishes_in_the_middle(pair: Pair) -> None:
    source = pair.spread(BIG)
    pair.wires[0].set(Mood(bytes_per_second=4_000_000))

    def vanish(received: int) -> None:
        path = pair.far[0].root / "main" / "objects" / source.key
        path.unlink(missing_ok=True)
        pair.wires[0].drop_all()

    fetched = pair.engine.fetch(source, pair.tmp / "t", progress=vanish)
    assert fetched.path.read_bytes() == BIG


def test_all_lines_down_is_unreachable_and_back_again_works(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "HOPE_WITHIN", 3.0)
    source = pair.spread(BIG)
    for wire in pair.wires:
        wire.set(Mood(silent=True))
    began = time.monotonic()
    with pytest.raises(Unreachable):
        pair.engine.fetch(source, pair.tmp / "t")
    assert time.monotonic() - began < 12
    assert not (pair.tmp / "t").exists() and not list(pair.tmp.glob(".t.*"))
    began = time.monotonic()
    with pytest.raises(Unreachable, match="lately"):  # the next object of a study does not wait all that out again
        pair.engine.fetch(source, pair.tmp / "t")
    assert time.monotonic() - began < 1
    for wire in pair.wires:
        wire.set(Mood())
    time.sleep(3.0)
    pair.engine.fetch(source, pair.tmp / "t")


def test_cancelled_within_a_second_on_a_silent_line(pair: Pair) -> None:
    source = pair.spread(BIG)
    for wire in pair.wires:
        wire.set(Mood(silent=True))
    began = time.monotonic()
    with pytest.raises(Cancelled):
        pair.engine.fetch(source, pair.tmp / "t", cancelled=lambda: time.monotonic() > began + 0.2)
    assert time.monotonic() - began < 1.0
    assert not list(pair.tmp.glob(".t.*"))


def test_small_objects_reuse_their_connection(pair: Pair) -> None:
    sources = [pair.spread(SMALL[:1000] + bytes([n])) for n in range(10)]
    before = [wire.accepted for wire in pair.wires]
    for number, source in enumerate(sources):
        pair.engine.fetch(source, pair.tmp / f"t{number}")
    assert [wire.accepted for wire in pair.wires] == before


def test_delete_and_checksum_go_through_the_doors(pair: Pair) -> None:
    source = pair.spread(SMALL)
    assert pair.engine.checksum(pair.doors[0], source.key) == source.sha256
    pair.engine.delete(pair.doors[0], source.key)
    with pytest.raises(NotFound):
        pair.engine.delete(pair.doors[0], source.key)
    assert pair.engine.fetch(source, pair.tmp / "t").blames[0].kind == "missing"
    assert pair.engine.space(pair.doors[0]).used == 0
