"""The channel contract, unchanged over every channel: what works, and what happens when things break.

A file per rig runs it: it takes everything from here and gives the fixture `open_rig` (see test_memory.py). What a far
side cannot do its rig declares (`Declared`); nothing here asks which rig it is.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from storage_provider.channel import Got, ObjectSpec, Put, Stored, Want
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
    Unsupported,
)
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import Rig, write
from tests.helpers.pki import SiteHome, fresh_site, site

OpenRig = Callable[[SiteHome, Path], AbstractContextManager[Rig]]
SMALL = random.Random(1).randbytes(200_000)
BIG = random.Random(2).randbytes(5 * CHUNK_BYTES + 12_345)
SIZES = {"empty": b"", "one": b"x", "small": SMALL, "single-put": BIG[: 2 * CHUNK_BYTES], "big": BIG}


@pytest.fixture
def rig(open_rig: OpenRig, site: SiteHome, tmp_path: Path) -> Iterator[Rig]:
    with open_rig(site, tmp_path) as ready:
        yield ready


@pytest.fixture
def revocable(open_rig: OpenRig, fresh_site: SiteHome, tmp_path: Path) -> Iterator[Rig]:
    with open_rig(fresh_site, tmp_path) as ready:
        yield ready


def read(rig: Rig, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    with rig.channel.get(key, offset=offset, length=length) as blocks:
        return b"".join(blocks)


def put(rig: Rig, tmp_path: Path, data: bytes) -> ObjectSpec:
    spec = spec_of(data)
    rig.channel.put(spec, write(tmp_path, data))
    return spec


def checksum(rig: Rig, key: str) -> str:
    """What lies at the far side now, told by the far side if it can."""
    if rig.channel.capabilities.checksum:
        return rig.channel.checksum(key)
    return hashlib.sha256(read(rig, key)).hexdigest()


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
    assert checksum(rig, spec.key) == spec.sha256
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
    assert not rig.declared.exact_space or rig.channel.space().used == len(SMALL) + len(BIG)


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
        checksum(rig, key)
    with pytest.raises(NotFound):
        rig.channel.delete(key)


def test_other_keys_are_refused(rig: Rig) -> None:
    calls = [rig.channel.stat, rig.channel.delete, lambda bad: checksum(rig, bad), lambda bad: read(rig, bad)]
    for key in ("", "../../etc/passwd", "/v1", "v1/ab/cd/x", "v1/../../v1", "V1" + "a" * 71):
        for call in calls:
            with pytest.raises((Refused, NotFound)):
                call(key)


def test_space_follows(rig: Rig, tmp_path: Path) -> None:
    if not rig.channel.capabilities.space:
        pytest.skip("the far side cannot tell its space")
    before = rig.channel.space()
    spec = put(rig, tmp_path, SMALL)
    after = rig.channel.space()
    rig.channel.delete(spec.key)
    assert 0 <= before.free <= before.total and before.used + before.free <= before.total
    if rig.declared.exact_space:
        moved = (before.total, after.used - before.used, before.free - after.free)
        assert moved == (rig.declared.quota, len(SMALL), len(SMALL))
        assert rig.channel.space() == before


def test_capabilities_are_as_declared(rig: Rig) -> None:
    assert rig.channel.capabilities == rig.declared.capabilities
    assert rig.channel.capabilities.atomic_commit  # no engine could do without


def test_what_it_cannot_do_it_says(rig: Rig, tmp_path: Path) -> None:
    spec, can = put(rig, tmp_path, SMALL), rig.channel.capabilities
    calls: list[tuple[bool, Callable[[], object]]] = [
        (can.checksum, lambda: rig.channel.checksum(spec.key)),
        (can.listing, lambda: list(rig.channel.list())),
        (can.delete, lambda: rig.channel.delete(spec.key)),
        (can.pull, lambda: rig.channel.pull(spec, [rig.channel.door], None)),
        (can.space, lambda: rig.channel.space()),
    ]
    for able, call in calls:
        if not able:
            with pytest.raises(Unsupported) as caught:
                call()
            assert caught.value.permanent


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
    needs_pull(rig)
    for data in (SMALL, BIG):
        spec, door, permit = rig.source(data)
        stored = rig.channel.pull(spec, [door], permit, acting_for="ae:CT1@a")
        assert (stored.key, stored.sha256) == (spec.key, spec.sha256)
        assert checksum(rig, spec.key) == spec.sha256
        assert rig.channel.pull(spec, [door], permit).size == len(data)


def test_pull_without_permit_is_denied(rig: Rig) -> None:
    needs_pull(rig)
    if not rig.declared.permits:
        pytest.skip("the far side knows no permits")
    spec, door, _ = rig.source(SMALL)
    with pytest.raises(Denied):
        rig.channel.pull(spec, [door], None)
    invisible(rig, spec.key)


def test_pull_of_what_is_not_there(rig: Rig) -> None:
    needs_pull(rig)
    spec, door, permit = rig.source(SMALL)
    with pytest.raises((NotFound, Denied)):
        rig.channel.pull(spec_of(b"other"), [door], permit)
    with pytest.raises(Unreachable):
        rig.channel.pull(spec, [rig.nowhere], permit)
    invisible(rig, spec.key)


def needs_pull(rig: Rig) -> None:
    if not rig.channel.capabilities.pull:
        pytest.skip("the far side cannot fetch from others")


# -- batches ----------------------------------------------------------------------------------------------------


def batch(tmp_path: Path, number: int, *, size: int = 3000) -> list[Put]:
    datas = [SMALL[n : n + size] for n in range(number)]
    return [Put(spec_of(data), write(tmp_path, data)) for data in datas]


def answers(rig: Rig, puts: list[Put]) -> dict[str, Stored | StorageError]:
    """What came of each put, by key; each exactly once."""
    found = list(rig.channel.put_many(iter(puts)))
    assert sorted(put.spec.key for put, _ in found) == sorted(put.spec.key for put in puts)
    return {put.spec.key: outcome for put, outcome in found}


def test_a_batch_goes_and_comes(rig: Rig, tmp_path: Path) -> None:
    puts = [*batch(tmp_path, 60), Put(spec_of(BIG), write(tmp_path, BIG, before=b"head"), 4, "ae:CT1@a")]
    puts += [Put(spec_of(b""), write(tmp_path, b"")), Put(spec_of(b"x"), write(tmp_path, b"xyz"))]
    stored = answers(rig, puts)
    assert all(isinstance(outcome, Stored) for outcome in stored.values())
    assert [stored[key].sha256 for key in stored] == [key[-64:] for key in stored]  # type: ignore[union-attr]
    assert rig.leftovers() == []
    wants = [Want(put.spec.key, acting_for="ae:CT1@a") for put in reversed(puts)]
    with rig.channel.get_many(wants) as gots:
        for want, got in zip(wants, gots, strict=True):
            assert got.want == want
            assert hashlib.sha256(b"".join(got.blocks)).hexdigest() == want.key[-64:]


def test_one_bad_put_of_a_batch_spoils_no_other(rig: Rig, tmp_path: Path) -> None:
    puts = batch(tmp_path, 12)
    spoilt, short, gone = puts[3], puts[5], puts[11]
    spoilt.path.write_bytes(b"!" + spoilt.path.read_bytes()[1:])
    short.path.write_bytes(short.path.read_bytes()[:-1])
    gone.path.unlink()
    found = answers(rig, puts)
    assert isinstance(found[spoilt.spec.key], Corrupt)
    assert isinstance(found[short.spec.key], LocalFault) and isinstance(found[gone.spec.key], LocalFault)
    assert sum(isinstance(outcome, Stored) for outcome in found.values()) == 9
    assert len(list(rig.channel.list())) == 9 and rig.leftovers() == []


def test_a_batch_is_read_ahead_by_a_bound_and_may_be_left(rig: Rig, tmp_path: Path) -> None:
    (one,) = batch(tmp_path, 1)
    taken = itertools.count()
    endless = rig.channel.put_many(one for _ in taken)
    assert [isinstance(next(endless)[1], Stored) for _ in range(3)] == [True] * 3
    endless.close()  # type: ignore[attr-defined]
    assert next(taken) < 500
    assert read(rig, one.spec.key) == one.path.read_bytes()


def test_gets_of_a_batch_may_be_wrong_partial_and_left(rig: Rig, tmp_path: Path) -> None:
    specs = [put(rig, tmp_path, data) for data in (SMALL, BIG, b"abcdef")]
    missing = spec_of(b"missing").key
    wants = [Want(specs[1].key), Want(missing), Want(specs[2].key, 2, 3), Want(specs[1].key, len(BIG) - 5)]
    wants += [Want(specs[2].key, 6, 1), Want(specs[0].key)]
    with rig.channel.get_many(wants) as gots:
        assert BIG.startswith(next(next(gots).blocks))  # and leave the rest of it
        with pytest.raises(NotFound):
            list(next(gots).blocks)
        assert b"".join(next(gots).blocks) == b"cde"
        assert b"".join(next(gots).blocks) == BIG[-5:]
        with pytest.raises(Refused):
            list(next(gots).blocks)
        assert next(gots).want.key == specs[0].key  # and leave all
    assert read(rig, specs[0].key) == SMALL


def test_a_batch_that_is_cut_says_what_is_wanting_and_goes_on(rig: Rig, tmp_path: Path) -> None:
    puts = [*batch(tmp_path, 20, size=50_000), Put(spec_of(BIG), write(tmp_path, BIG))]
    rig.cut_put(100_000)
    assert {type(outcome) for outcome in answers(rig, puts).values()} <= {Stored, Unreachable}
    rig.heal()
    assert {type(outcome) for outcome in answers(rig, puts).values()} == {Stored}
    assert rig.leftovers() == []
    wants = [Want(put.spec.key) for put in puts]
    rig.cut_get(3_000_000)
    with rig.channel.get_many(wants) as gots:
        outcomes = [_outcome(got) for got in gots]
    assert len(outcomes) == len(wants)
    assert Unreachable in outcomes and set(outcomes[outcomes.index(Unreachable) :]) == {Unreachable}
    rig.heal()
    assert read(rig, puts[0].spec.key) == puts[0].path.read_bytes()


def _outcome(got: Got) -> type | None:
    try:
        data = b"".join(got.blocks)
    except StorageError as error:
        return type(error)
    assert hashlib.sha256(data).hexdigest() == got.want.key[-64:]
    return None


# -- what breaks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_wrong_digest_keeps_nothing(rig: Rig, tmp_path: Path, data: bytes) -> None:
    spec = spec_of(data)
    bad = write(tmp_path, data[: len(data) // 2] + b"!" + data[len(data) // 2 + 1 :])
    with pytest.raises(Corrupt) as caught:
        rig.channel.put(spec, bad)
    assert caught.value.permanent
    invisible(rig, spec.key)
    assert rig.leftovers() == []
    assert not rig.declared.exact_space or rig.channel.space().used == 0
    put(rig, tmp_path, data)
    assert read(rig, spec.key) == data


def test_a_file_too_short_is_the_callers_fault(rig: Rig, tmp_path: Path) -> None:
    for data in (SMALL, BIG):
        with pytest.raises(LocalFault):
            rig.channel.put(spec_of(data), write(tmp_path, data[:-10]))
        invisible(rig, spec_of(data).key)


def test_full_keeps_nothing_and_passes(rig: Rig, tmp_path: Path) -> None:
    if rig.declared.quota is None:
        pytest.skip("the far side has the whole disk")
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
    if not rig.declared.heals:
        pytest.skip("the double keeps its first copy")
    for data in (SMALL, BIG):
        spec = put(rig, tmp_path, data)
        rig.rot(spec.key)
        assert checksum(rig, spec.key) != spec.sha256
        put(rig, tmp_path, data)
        assert checksum(rig, spec.key) == spec.sha256
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
        assert checksum(rig, spec.key) == spec.sha256
    rig.channel.put(spec, path)
    assert read(rig, spec.key) == data
    assert rig.leftovers() == []


@pytest.mark.parametrize("way", ["up", "down"])
def test_cut_at_every_stage(rig: Rig, tmp_path: Path, way: str) -> None:
    """From the first byte of a connection on: handshake, login, commands, data."""
    spec, other = put(rig, tmp_path, SMALL), spec_of(BIG[:300_000])
    path = write(tmp_path, BIG[:300_000])
    calls = [lambda: read(rig, spec.key), lambda: rig.channel.stat(spec.key), lambda: rig.channel.put(other, path)]
    for after, call in itertools.product((0, 400, 2000, 5000, 12_000), calls):
        rig.disconnect()
        (rig.cut_put if way == "up" else rig.cut_get)(after)
        with suppress(Unreachable):
            call()
        rig.heal()
    rig.channel.put(other, path)
    assert read(rig, spec.key) == SMALL and rig.leftovers() == []


def test_half_an_object_is_never_seen(rig: Rig, tmp_path: Path) -> None:
    spec, path = spec_of(SMALL), write(tmp_path, SMALL)
    rig.slow(400_000)
    with ThreadPoolExecutor(1) as pool:
        storing = pool.submit(rig.channel.put, spec, path)
        while not storing.done():
            with suppress(NotFound):
                assert rig.channel.stat(spec.key).size == len(SMALL)
            time.sleep(0.02)
        rig.heal()
        assert storing.result(10).sha256 == spec.sha256
    assert read(rig, spec.key) == SMALL


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
    if not rig.declared.ends_sessions:
        rig.disconnect()
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


def test_closed_channels_leave_nothing(rig: Rig, tmp_path: Path) -> None:
    spec = put(rig, tmp_path, BIG)
    other = write(tmp_path, SMALL)
    before = 0
    for turn in range(4):
        channel = rig.open()
        channel.put(spec_of(SMALL), other)
        with channel.get(spec.key) as blocks:
            next(blocks)
        channel.close()
        before = before or _descriptors()
        if turn:
            _settled(before)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _settled(wanted: int) -> None:
    """Connections of both ends are closed within a moment; a few of a pool may stay."""
    deadline = time.monotonic() + 5
    while _descriptors() > wanted + 4:
        assert time.monotonic() < deadline, f"{_descriptors()} descriptors are open, {wanted} were"
        time.sleep(0.05)


def _calls(rig: Rig, tmp_path: Path, spec: ObjectSpec) -> list[Callable[[], object]]:
    other, can = write(tmp_path, b"other"), rig.channel.capabilities
    calls: list[tuple[bool, Callable[[], object]]] = [
        (True, lambda: read(rig, spec.key)),
        (True, lambda: rig.channel.stat(spec.key)),
        (True, lambda: rig.channel.put(spec_of(b"other"), other)),
        (can.delete, lambda: rig.channel.delete(spec.key)),
        (can.checksum, lambda: rig.channel.checksum(spec.key)),
        (can.listing, lambda: list(rig.channel.list())),
        (can.space, lambda: rig.channel.space()),
    ]
    return [call for able, call in calls if able]


__all__ = [name for name in dir() if name.startswith("test_")] + ["fresh_site", "revocable", "rig", "site"]
