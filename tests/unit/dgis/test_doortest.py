"""`dgis se test`: a door is tried with an object that does not stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgis.doortest import examine
from storage_provider.channel import Channel
from storage_provider.errors import Denied, DoorURL
from tests.conformance.memory_channel import Faults, MemoryChannel, MemoryProvider, opener

SIZE = 5_000_000


def test_a_good_door_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    far = MemoryProvider("a")
    report = examine(opener(far), far.door, size=SIZE, scratch=tmp_path)
    assert report.trouble == "" and far.objects == {} and list(tmp_path.iterdir()) == []
    assert None not in (report.connect_ms, report.answer_ms) and report.put_mb_s and report.get_mb_s


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        (Faults(unreachable=True), "Unreachable: refused"),
        (Faults(denied=True), "Denied"),
        (Faults(corrupt_chunks=frozenset({1})), "Corrupt: what came back"),
        (Faults(extra_bytes=1), "Corrupt: what came back"),
    ],
    ids=["unreachable", "denied", "corrupt", "too-long"],
)
def test_a_bad_door_is_told_and_nothing_stays(tmp_path: Path, faults: Faults, told: str) -> None:
    far = MemoryProvider("a", faults=faults)
    report = examine(opener(far), far.door, size=SIZE, scratch=tmp_path)
    assert told in report.trouble
    assert far.objects == {} and list(tmp_path.iterdir()) == []


def test_an_object_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    far = MemoryProvider("a")

    class Keeping(MemoryChannel):
        def delete(self, key: str) -> None:
            raise Denied("you may not delete")

    report = examine(lambda _: Keeping(far), far.door, size=100, scratch=tmp_path)
    (left,) = far.objects
    assert left in report.trouble and "may not delete" in report.trouble and report.get_mb_s is not None


def test_a_door_that_nothing_speaks_is_told(tmp_path: Path) -> None:
    def refuse(url: str) -> Channel:
        raise DoorURL("no channel for that", door=url)

    assert examine(refuse, "x://y", size=1, scratch=tmp_path).trouble == "no channel for that"
