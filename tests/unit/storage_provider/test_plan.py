"""The transfer plan: whatever goes wrong in whatever order, every piece lands once or the plan says it is stuck."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from storage_provider.checksum import CHUNK_BYTES
from storage_provider.transfer.plan import Limits, Plan, Run, pieces_of

SHA = hashlib.sha256(b"").hexdigest()


def chunked(count: int) -> Plan:
    return Plan(pieces_of(count * CHUNK_BYTES, SHA, (SHA,) * count), [1] * 3, Limits(run_bytes=2 * CHUNK_BYTES))


@settings(max_examples=300)
@given(pieces=st.integers(1, 8), sources=st.integers(0, 3), data=st.data())
def test_always_ends_and_never_asks_the_blamed_again(pieces: int, sources: int, data: st.DataObject) -> None:
    size = pieces * CHUNK_BYTES if pieces > 1 else 10
    chunks = (SHA,) * pieces if pieces > 1 else ()
    limits = Limits(streams=3, streams_per_source=2, run_bytes=2 * CHUNK_BYTES, tries=2)
    plan = Plan(pieces_of(size, SHA, chunks), [1] * sources, limits)
    running: list[tuple[Run, int]] = []
    blamed: set[tuple[int, int]] = set()
    out: set[int] = set()
    landed: list[int] = []
    for _ in range(500):
        while (run := plan.next_run()) is not None:
            assert run.source not in out
            assert not any((run.source, piece.index) in blamed for piece in run.pieces)
            assert [p.index for p in run.pieces] == list(range(run.pieces[0].index, run.pieces[-1].index + 1))
            running.append((run, 0))
        assert plan.running == len(running) <= limits.streams
        if plan.done or plan.stuck:
            break
        assert running, "neither done nor stuck, yet nothing runs"
        run, done = running.pop(data.draw(st.integers(0, len(running) - 1)))
        event = data.draw(st.sampled_from(["piece", "piece", "piece", "bad", "break", "out"]))
        if event == "piece":
            plan.piece_landed(run, run.pieces[done])
            landed.append(run.pieces[done].index)
            if done + 1 < len(run.pieces):
                running.append((run, done + 1))
            else:
                plan.run_ended(run)
        elif event == "bad":
            plan.piece_bad(run, run.pieces[done])
            blamed.add((run.source, run.pieces[done].index))
        elif event == "break":
            plan.run_broke(run)
        else:
            plan.source_out(run)
            out.add(run.source)
    assert plan.done or plan.stuck
    assert len(landed) == len(set(landed)), "a piece landed twice"
    assert plan.done == (len(landed) == pieces)
    if plan.done:
        assert plan.frontier == pieces


def test_a_run_that_was_given_up_counts_no_more() -> None:
    plan = chunked(2)
    run = plan.next_run()
    assert run is not None
    plan.run_broke(run)
    plan.piece_landed(run, run.pieces[0])
    assert plan.frontier == 0 and not plan.done


def test_several_sources_share_the_work() -> None:
    plan = chunked(8)
    runs = list(iter(plan.next_run, None))
    assert sorted(run.source for run in runs) == [0, 0, 1, 2] or sorted(run.source for run in runs) == [0, 1, 2, 0]
    assert [run.offset for run in runs] == [n * 2 * CHUNK_BYTES for n in range(4)]


def test_a_doubtful_source_is_asked_last_and_once() -> None:
    plan = Plan(pieces_of(10, SHA, ()), [1, 1], Limits(tries=3), doubtful={0})
    first = plan.next_run()
    assert first is not None and first.source == 1
    plan.source_out(first)
    second = plan.next_run()
    assert second is not None and second.source == 0
    plan.run_broke(second)
    assert plan.stuck


def test_two_replicas_with_different_bad_chunks_make_one_good_object() -> None:
    plan = Plan(pieces_of(2 * CHUNK_BYTES, SHA, (SHA, SHA)), [1, 1], Limits(streams=1))
    run = plan.next_run()
    assert run is not None and run.source == 0
    plan.piece_bad(run, run.pieces[0])
    while (run := plan.next_run()) is not None:
        for piece in run.pieces:
            if (run.source, piece.index) == (1, 1):
                plan.piece_bad(run, piece)
                break
            plan.piece_landed(run, piece)
        else:
            plan.run_ended(run)
    assert plan.done


def test_a_source_with_another_door_comes_after_those_without_trouble() -> None:
    plan = Plan(pieces_of(10, SHA, ()), [3, 1], Limits(tries=3))
    run = plan.next_run()
    assert run is not None and run.source == 0
    plan.run_turned(run)
    run = plan.next_run()
    assert run is not None and run.source == 1
    plan.run_turned(run)
    run = plan.next_run()
    assert run is not None and run.source == 0
    plan.run_broke(run)  # its last door: each was a try
    runs = []
    while (run := plan.next_run()) is not None:
        runs.append(run.source)
        plan.run_broke(run)
    assert runs == [1, 1, 1] and plan.stuck


def test_a_doubtful_source_gets_one_try_however_many_doors_it_has() -> None:
    plan = Plan(pieces_of(10, SHA, ()), [2, 1], Limits(tries=4), doubtful={0})
    asked = []
    while (run := plan.next_run()) is not None:
        asked.append(run.source)
        plan.run_broke(run)
    assert asked[0] == 1 and asked.count(0) == 1 and plan.stuck
