"""The channel contract, unchanged over every channel: what works, and what happens when things break."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import cast

import pytest

from storage_provider.channel import ObjectSpec
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.errors import (
    Corrupt,
    Denied,
    LocalFault,
    NoSpace,
    NotFound,
    Refused,
    StorageError,
    Unreachable,
)
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import QUOTA, RIGS, Rig, write
from tests.helpers.pki import SiteHome, fresh_site, site

__all__ = ["fresh_site", "site"]

SMALL = random.Random(1).randbytes(200_000)
BIG = random.Random(2).randbytes(5 * CHUNK_BYTES + 12_345)
SIZES = {"empty": b"", "one": b"x", "small": SMALL, "single-put": BIG[: 2 * CHUNK_BYTES], "big": BIG}


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, site: SiteHome, tmp_path: Path) -> Iterator[Rig]:
    with cast("AbstractContextManager[Rig]", RIGS[request.param](site, tmp_path)) as ready:
        yield ready


@pytest.fixture(params=sorted(RIGS))
def revocable(request: pytest.FixtureRequest, fresh_site: SiteHome, tmp_path: Path) -> Iterator[Rig]:
    with cast("AbstractContextManager[Rig]", RIGS[request.param](fresh_site, tmp_path)) as ready:
        yield ready


def read(rig: Rig, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    with rig.channel.get(key, offset=offset, length=length) as blocks:
        return b"".join(blocks)


def put(rig: Rig, tmp_path: Path, data: bytes) -> ObjectSpec:
    spec = spec_of(data)
    rig.channel.put(spec, write(tmp_path, data))
    return spec


def invisible(rig: Rig, key: str) -> None:
    with pytest.raises(NotFound):
        rig.channel.stat(key)
    with pytest.raises(NotFound):
        read(rig, key)
    assert key not in [stat.key for stat in rig.channel.list()]


# -- what works -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", SIZES.values(), ids=SIZES)
def test_round_trip(rig: Rig, tmp_path: Path, data: bytes) -> None:
    spec = spec_of(data)
    stored = rig.channel.put(spec, write(tmp_path, data), acting_for="ae:CT1@a")
    assert (stored.key, stored.size, stored.sha256) == (spec.key, spec.size, spec.sha256)
    assert rig.channel.stat(spec.key).size == len(data)
    assert rig.channel.checksum(spec.key) == spec.sha256
    assert read(rig, spec.key) == data
    assert [(stat.key, stat.size) for stat in rig.channel.list()] == [(spec.key, len(data))]
    with pytest.raises(Refused):
        read(rig, spec.key, offset=len(data), length=1)
    assert rig.leftovers() == []
    rig.channel.delete(spec.key)
    invisible(rig, spec.key)


def test_the_object_is_a_part_of_the_file(rig: Rig, tmp_path: Path) -> None:
    for data in (SMALL, BIG):
        spec = spec_of(data)
        rig.channel.put(spec, write(tmp_path, data, before=b"head", after=b"record and magic"), offset=4)
        assert read(rig, spec.key) == data


def test_ranges(rig: Rig, tmp_path: Path) -> None:
    spec, end = put(rig, tmp_path, BIG), len(BIG)
    wanted = [(0, 1), (0, None), (5, 100), (end - 1, 1), (end - 3, None), (CHUNK_BYTES - 1, CHUNK_BYTES + 2)]
    for offset, length in wanted:
        stop = end if length is None else offset + length
        assert read(rig, spec.key, offset=offset, length=length) == BIG[offset:stop]


def test_put_again_is_harmless(rig: Rig, tmp_path: Path) -> None:
    for data in (SMALL, BIG):
        spec = put(rig, tmp_path, data)
        assert put(rig, tmp_path, data) == spec
    assert len(list(rig.channel.list())) == 2
    assert rig.channel.space().used == len(SMALL) + len(BIG)


def test_list_by_prefix_in_order(rig: Rig, tmp_path: Path) -> None:
    keys = sorted(put(rig, tmp_path, SMALL[:100] + bytes([n])).key for n in range(40))
    assert [stat.key for stat in rig.channel.list()] == keys
    prefix = keys[3][:4]
    assert [stat.key for stat in rig.channel.list(prefix)] == [key for key in keys if key.startswith(prefix)]
    assert list(rig.channel.list(keys[0])) == [rig.channel.stat(keys[0])]


def test_what_is_not_there(rig: Rig) -> None:
    key = spec_of(b"nothing").key
    invisible(rig, key)
    with pytest.raises(NotFound):
        rig.channel.checksum(key)
    with pytest.raises(NotFound):
        rig.channel.delete(key)


def test_other_keys_are_refused(rig: Rig) -> None:
    calls = [rig.channel.stat, rig.channel.checksum, rig.channel.delete, lambda bad: read(rig, bad)]
    for key in ("", "../../etc/passwd", "/v1", "v1/ab/cd/x", "v1/../../v1", "V1" + "a" * 71):
        for call in calls:
            with pytest.raises((Refused, NotFound)):
                call(key)


def test_space_follows(rig: Rig, tmp_path: Path) -> None:
    before = rig.channel.space()
    spec = put(rig, tmp_path, SMALL)
    after = rig.channel.space()
    assert (before.total, after.used - before.used, before.free - after.free) == (QUOTA, len(SMALL), len(SMALL))
    rig.channel.delete(spec.key)
    assert rig.channel.space() == before


def test_capabilities_say_what_is_true(rig: Rig) -> None:
    capabilities = rig.channel.capabilities
    assert capabilities.atomic_commit and capabilities.far_verify and capabilities.ranged_get
    assert rig.channel.capabilities == capabilities


def test_many_threads_share_a_channel(rig: Rig, tmp_path: Path) -> None:
    def once(number: int) -> bool:
        data = SMALL[: 50_000 + number]
        spec = put(rig, tmp_path, data)
        return read(rig, spec.key) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(once, range(40)))


def test_leaving_a_get_early_is_allowed(rig: Rig, tmp_path: Path) -> None:
    spec = put(rig, tmp_path, BIG)
    for _ in range(3):
        with rig.channel.get(spec.key) as blocks:
            assert BIG.startswith(next(blocks))
    assert read(rig, spec.key, length=10) == BIG[:10]


def test_pull_from_another_element(rig: Rig) -> None:
    for data in (SMALL, BIG):
        spec, door, permit = rig.source(data)
        stored = rig.channel.pull(spec, [door], permit, acting_for="ae:CT1@a")
        assert (stored.key, stored.sha256) == (spec.key, spec.sha256)
        assert rig.channel.checksum(spec.key) == spec.sha256
        assert rig.channel.pull(spec, [door], permit).size == len(data)


def test_pull_without_permit_is_denied(rig: Rig) -> None:
    spec, door, _ = rig.source(SMALL)
    with pytest.raises(Denied):
        rig.channel.pull(spec, [door], None)
    invisible(rig, spec.key)


def test_pull_of_what_is_not_there(rig: Rig) -> None:
    spec, door, permit = rig.source(SMALL)
    with pytest.raises((NotFound, Denied)):
        rig.channel.pull(spec_of(b"other"), [door], permit)
    with pytest.raises(Unreachable):
        rig.channel.pull(spec, [door.replace("127.0.0.1", "127.0.0.2") if "127" in door else "memory://no"], permit)
    invisible(rig, spec.key)


# -- what breaks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_wrong_digest_keeps_nothing(rig: Rig, tmp_path: Path, data: bytes) -> None:
    spec = spec_of(data)
    bad = write(tmp_path, data[: len(data) // 2] + b"!" + data[len(data) // 2 + 1 :])
    with pytest.raises(Corrupt) as caught:
        rig.channel.put(spec, bad)
    assert caught.value.permanent
    invisible(rig, spec.key)
    assert rig.leftovers() == [] and rig.channel.space().used == 0
    put(rig, tmp_path, data)
    assert read(rig, spec.key) == data


def test_a_file_too_short_is_the_callers_fault(rig: Rig, tmp_path: Path) -> None:
    for data in (SMALL, BIG):
        with pytest.raises(LocalFault):
            rig.channel.put(spec_of(data), write(tmp_path, data[:-10]))
        invisible(rig, spec_of(data).key)


def test_full_keeps_nothing_and_passes(rig: Rig, tmp_path: Path) -> None:
    fillers = [put(rig, tmp_path, BIG + bytes([n])) for n in range(3)]
    for data in (BIG, BIG[: 2 * CHUNK_BYTES]):
        with pytest.raises(NoSpace) as caught:
            rig.channel.put(spec_of(data), write(tmp_path, data))
            rig.channel.put(spec_of(data + b"!"), write(tmp_path, data + b"!"))
        assert not caught.value.permanent
    assert rig.leftovers() == []
    for filler in fillers:
        rig.channel.delete(filler.key)
    put(rig, tmp_path, BIG)


def test_a_rotten_object_is_told_and_healed(rig: Rig, tmp_path: Path) -> None:
    if "MemoryRig" in type(rig).__name__:
        pytest.skip("memory does not rot on its own; the double keeps the first copy")
    for data in (SMALL, BIG):
        spec = put(rig, tmp_path, data)
        rig.rot(spec.key)
        assert rig.channel.checksum(spec.key) != spec.sha256
        put(rig, tmp_path, data)
        assert rig.channel.checksum(spec.key) == spec.sha256
        assert read(rig, spec.key) == data


@pytest.mark.parametrize("after", [0, 20_000, 3_000_000, len(BIG) - 1])
def test_a_get_that_is_cut(rig: Rig, tmp_path: Path, after: int) -> None:
    spec = put(rig, tmp_path, BIG)
    rig.cut_get(after)
    got = b""
    with pytest.raises(Unreachable), rig.channel.get(spec.key) as blocks:
        for block in blocks:
            got += block
    assert len(got) < len(BIG) and BIG.startswith(got)
    rig.heal()
    assert read(rig, spec.key) == BIG


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_a_put_that_is_cut_keeps_nothing_visible_and_goes_on(
    rig: Rig, tmp_path: Path, data: bytes, part: float
) -> None:
    spec, path = spec_of(data), write(tmp_path, data)
    rig.cut_put(int(len(data) * part))
    with suppress(Unreachable):
        rig.channel.put(spec, path)
    rig.heal()
    present = [stat.key for stat in rig.channel.list()]
    if present:
        assert rig.channel.checksum(spec.key) == spec.sha256
    rig.channel.put(spec, path)
    assert read(rig, spec.key) == data
    assert rig.leftovers() == []


def test_refused(rig: Rig, tmp_path: Path) -> None:
    spec = put(rig, tmp_path, SMALL)
    rig.refuse()
    began = time.monotonic()
    for call in _calls(rig, tmp_path, spec):
        with pytest.raises(Unreachable) as caught:
            call()
        assert not caught.value.permanent
    assert time.monotonic() - began < 5


def test_silent_far_sides_are_left_in_time(rig: Rig, tmp_path: Path) -> None:
    spec = put(rig, tmp_path, SMALL)
    rig.silence()
    for call in _calls(rig, tmp_path, spec)[:3]:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            call()
        assert time.monotonic() - began < 4
    rig.heal()
    assert read(rig, spec.key) == SMALL


def test_slow_far_sides_show_their_progress(rig: Rig, tmp_path: Path) -> None:
    spec = put(rig, tmp_path, BIG)
    rig.slow(100_000)
    began = time.monotonic()
    with rig.channel.get(spec.key) as blocks:
        for _ in range(2):
            assert len(next(blocks)) <= 1024 * 1024
            assert time.monotonic() - began < 3
    rig.heal()


def test_revoked_in_mid_session(revocable: Rig, tmp_path: Path) -> None:
    rig = revocable
    spec = put(rig, tmp_path, SMALL)
    assert read(rig, spec.key) == SMALL
    rig.revoke()
    for call in _calls(rig, tmp_path, spec):
        with pytest.raises((Denied, Unreachable)):
            call()


def test_restarted(rig: Rig, tmp_path: Path) -> None:
    specs = [put(rig, tmp_path, data) for data in (SMALL, BIG)]
    rig.restart()
    for spec, data in zip(specs, (SMALL, BIG), strict=True):
        assert read(rig, spec.key) == data
    put(rig, tmp_path, SMALL + b"after")


def test_restarted_in_the_middle_of_a_put(rig: Rig, tmp_path: Path) -> None:
    spec, path = spec_of(BIG), write(tmp_path, BIG)
    rig.cut_put(len(BIG) * 4 // 5)
    with suppress(Unreachable):
        rig.channel.put(spec, path)
    rig.restart()
    rig.heal()
    rig.channel.put(spec, path)
    assert hashlib.sha256(read(rig, spec.key)).hexdigest() == spec.sha256
    assert rig.leftovers() == []


def _calls(rig: Rig, tmp_path: Path, spec: ObjectSpec):  # type: ignore[no-untyped-def]
    other = write(tmp_path, b"other")
    return [
        lambda: read(rig, spec.key),
        lambda: rig.channel.stat(spec.key),
        lambda: rig.channel.put(spec_of(b"other"), other),
        lambda: rig.channel.delete(spec.key),
        lambda: rig.channel.checksum(spec.key),
        lambda: list(rig.channel.list()),
        lambda: rig.channel.space(),
    ]


def test_every_error_knows_whether_it_is_permanent() -> None:
    kinds = [StorageError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert isinstance(kind.permanent, bool)
