"""Batches through the HTTPS door: one thread, few lines, every outcome once and in order."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

from storage_provider.channel import Put, Stored, Want
from storage_provider.checksum import READ_BYTES
from storage_provider.errors import Corrupt, LocalFault, NotFound, Refused, StorageError
from storage_provider.https.batches import AHEAD, LANES
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import HttpsRig, write

SMALL = [random.Random(number).randbytes(1000 + 20_000 * number) for number in range(12)]


def puts(folder: Path, *, before: bytes = b"") -> list[Put]:
    return [Put(spec_of(data), write(folder, data, before=before), len(before)) for data in SMALL]


def idle_lines(rig: HttpsRig) -> int:
    return sum(len(lines) for lines in rig.session._lines._idle.values())


def test_small_objects_take_no_thread_and_few_lines(rig: HttpsRig, tmp_path: Path) -> None:
    batch, threads = puts(tmp_path, before=b"before"), set[str]()
    found = []
    for put, outcome in rig.channel.put_many(batch):
        threads |= {thread.name for thread in threading.enumerate() if thread.name.startswith("put")}
        found.append((put, isinstance(outcome, Stored)))
    assert found == [(put, True) for put in batch]
    assert threads == set()
    assert 2 <= idle_lines(rig) <= LANES


def test_what_fails_ends_nothing_else(rig: HttpsRig, tmp_path: Path) -> None:
    batch = puts(tmp_path)
    batch[2] = Put(batch[2].spec, tmp_path / "gone")
    batch[4].path.write_bytes(SMALL[4][:-1])
    batch[6].path.write_bytes(bytes(len(SMALL[6])))
    outcomes = [outcome for _, outcome in rig.channel.put_many(batch)]
    kinds = {2: LocalFault, 4: LocalFault, 6: Corrupt}
    assert [type(outcome) for outcome in outcomes] == [kinds.get(number, Stored) for number in range(len(batch))]


def test_large_objects_between_small_ones(rig: HttpsRig, tmp_path: Path) -> None:
    large = random.Random(99).randbytes(READ_BYTES + 1)
    batch = puts(tmp_path)[:3]
    batch.insert(1, Put(spec_of(large), write(tmp_path, large)))
    assert [outcome.key for _, outcome in rig.channel.put_many(batch) if isinstance(outcome, Stored)] == [
        put.spec.key for put in batch
    ]


def test_no_more_is_read_ahead_than_there_are_lanes(rig: HttpsRig, tmp_path: Path) -> None:
    taken = 0

    def source() -> Iterator[Put]:
        nonlocal taken
        for put in puts(tmp_path):
            taken += 1
            yield put

    for done, _ in enumerate(rig.channel.put_many(source()), 1):
        assert taken < done + LANES
    assert taken == len(SMALL)


def test_a_batch_that_is_left_stops(rig: HttpsRig, tmp_path: Path) -> None:
    outcomes = rig.channel.put_many(puts(tmp_path))
    next(iter(outcomes))
    outcomes.close()  # type: ignore[attr-defined]  # what the engine does to a generator
    assert len(rig.far.objects()) <= LANES
    assert all(isinstance(outcome, Stored) for _, outcome in rig.channel.put_many(puts(tmp_path)))


def test_lines_that_were_cut_meanwhile_cost_no_put(rig: HttpsRig, tmp_path: Path) -> None:
    batch = puts(tmp_path)
    list(rig.channel.put_many(batch[:6]))
    rig.disconnect()
    assert all(isinstance(outcome, Stored) for _, outcome in rig.channel.put_many(batch[6:]))


def test_gets_in_order_whatever_becomes_of_one(rig: HttpsRig, tmp_path: Path) -> None:
    list(rig.channel.put_many(puts(tmp_path)))
    keys = [spec_of(data).key for data in SMALL]
    missing = spec_of(b"nobody has this").key
    wants = [Want(keys[0]), Want(missing), Want(keys[1], 5, 100), Want(keys[2], 10**9), *map(Want, keys[3:])]
    found: list[bytes | type[StorageError]] = []
    with rig.channel.get_many(wants) as stream:
        for got in stream:
            try:
                if got.want.key == keys[5]:
                    found.append(next(got.blocks)[:10])  # and leave the rest
                else:
                    found.append(b"".join(got.blocks))
            except StorageError as error:
                found.append(type(error))
    assert found == [
        SMALL[0], NotFound, SMALL[1][5:105], Refused, SMALL[3], SMALL[4], SMALL[5][:10], *SMALL[6:]
    ]  # fmt: skip
    assert idle_lines(rig) <= max(LANES, AHEAD + 1)


def test_gets_that_are_left_end_their_lines(rig: HttpsRig, tmp_path: Path) -> None:
    list(rig.channel.put_many(puts(tmp_path)))
    with rig.channel.get_many([Want(spec_of(data).key) for data in SMALL]) as stream:
        assert next(next(stream).blocks)
    with rig.channel.get(spec_of(SMALL[3]).key) as blocks:
        assert b"".join(blocks) == SMALL[3]
