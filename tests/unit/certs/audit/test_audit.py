"""The audit trail: messages, the chain, full disks, kill -9 and what verifying finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.audit.event import CODES, Event
from certs.audit.journal import AuditUnavailable, Journal, files_of
from certs.audit.message import Source, read, write
from certs.audit.trail import entries, matches, verify
from tests.helpers.grid import wait_until

SOURCE = Source("catalog", "lf1")
AT = datetime(2026, 12, 1, 12, tzinfo=UTC)
EVENT = Event("access", AT, "ae:VIEWER@lf1", "/O=Grid/CN=dgis", studies=("1.2",), count=3)
TEXT = st.text(max_size=60)


@given(st.sampled_from(sorted(CODES)), TEXT, TEXT, st.lists(TEXT, max_size=3), st.none() | st.integers(0, 10**9), TEXT)
def test_what_was_written_is_read(
    kind: str, actor: str, peer: str, studies: list[str], count: int | None, detail: str
) -> None:
    event = replace(EVENT, kind=kind, actor=actor, peer=peer, studies=tuple(studies), count=count, detail=detail)  # type: ignore[arg-type]
    found, source = read(write(event, SOURCE))
    assert (found.kind, found.at, found.count, source) == (kind, EVENT.at, count, SOURCE)
    if all(text.isprintable() for text in (actor, peer, detail, *studies)):
        assert found == (replace(event, peer="") if peer == actor else event)


def test_the_message_has_the_codes_of_the_standard() -> None:
    text = write(replace(EVENT, kind="emergency", detail="in need"), SOURCE).decode()
    assert '<EventID csd-code="110113" codeSystemName="DCM" originalText="Security Alert"/>' in text
    assert 'csd-code="110127"' in text and "\n" not in text
    assert 'ParticipantObjectID="1.2"' in text and 'csd-code="110180"' in text
    with pytest.raises(ValueError, match="audit message"):
        read(b"<AuditMessage/>")
    with pytest.raises(ValueError, match="audit message"):
        read(b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><AuditMessage>&e;</AuditMessage>')


def fill(directory: Path, count: int) -> None:
    journal = Journal(directory, SOURCE)
    for n in range(count):
        journal.record(replace(EVENT, count=n), wait=n == count - 1)
    journal.close()


def test_a_chain_goes_on_over_files_and_many_threads(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    journal = Journal(tmp_path, SOURCE)
    threads = [threading.Thread(target=journal.record, args=(EVENT,), kwargs={"wait": True}) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "20 records" in journal.check()
    journal.close()
    fill(tmp_path, 1)
    assert verify(tmp_path).records == 24 and verify(tmp_path).breaks == ()
    assert [entry.event.count for entry in entries(tmp_path)][:3] == [0, 1, 2]
    assert files_of(tmp_path)[0].stat().st_mode & 0o077 == 0
    found = [e for e in entries(tmp_path) if matches(e, study="1.2", actor="/O=Grid/CN=dgis", kind="access")]
    assert len(found) == 24 and not matches(found[0], study="1.3", actor=None, kind=None)


@pytest.mark.parametrize("harm", ["change", "delete", "insert", "swap", "file", "cut"])
def test_what_was_tampered_with_is_found(tmp_path: Path, harm: str) -> None:
    for _ in range(3):
        fill(tmp_path, 4)
    path = files_of(tmp_path)[1]
    lines = path.read_bytes().splitlines(keepends=True)
    if harm == "change":
        lines[1] = lines[1].replace(b"VIEWER", b"NOBODY")
    elif harm == "delete":
        del lines[2]
    elif harm == "insert":
        lines.insert(1, lines[0])
    elif harm == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif harm == "cut":
        lines[-1] = lines[-1][:-20]
    path.write_bytes(b"".join(lines))
    if harm == "file":
        path.unlink()
    assert verify(tmp_path).breaks


def test_kill_9_loses_nothing_that_was_waited_for(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from datetime import UTC, datetime\n"
        "from certs.audit.journal import Journal; from certs.audit.message import Source\n"
        "from certs.audit.event import Event\n"
        "journal = Journal(Path(sys.argv[1]), Source('x', 'y'))\n"
        "for n in range(10**6):\n"
        "    journal.record(Event('query', datetime.now(UTC), 'a', count=n), wait=True); print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(next(process.stdout)) for _ in range(200)]
        process.kill()
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    fill(tmp_path, 1)
    have = {entry.event.count for entry in entries(tmp_path) if entry.event.actor == "a"}
    assert set(told) <= have
    breaks = verify(tmp_path).breaks
    assert all("cut off" in one or "is no record" in one for one in breaks)


def _ready(journal: Journal) -> bool:
    try:
        journal.ready()
    except AuditUnavailable:
        return False
    return True


class _Disk:
    """os.write that fails as a full disk does, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if self.full:
                real(descriptor, bytes(data)[:10])
                raise OSError(28, "No space left on device")
            return real(descriptor, data)

        monkeypatch.setattr("certs.audit.journal.os.write", write)


def test_a_full_disk_refuses_what_cannot_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, SOURCE)
    disk = _Disk(monkeypatch)
    with pytest.raises(AuditUnavailable):
        journal.record(EVENT, wait=True)
    with pytest.raises(AuditUnavailable, match="No space left"):
        journal.ready()
    with pytest.raises(AuditUnavailable, match="0 records wait"):  # what was refused did not happen: it is not told
        journal.check()
    disk.full = False
    wait_until(lambda: _ready(journal), seconds=5, what="recording again")
    journal.record(EVENT, wait=True)
    journal.close()
    assert [entry.event.kind for entry in entries(tmp_path)] == ["lost", "access"]
    assert "No space left" in next(entries(tmp_path)).event.detail and not verify(tmp_path).breaks


def test_a_site_may_go_on_loudly_and_the_trail_tells_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certs.audit.journal._MOST_HELD", 5)
    journal = Journal(tmp_path, SOURCE, when_full="continue")
    disk = _Disk(monkeypatch)
    for n in range(8):
        journal.record(replace(EVENT, count=n), wait=n == 7)
    journal.ready()
    with pytest.raises(AuditUnavailable, match="3 are lost"):
        journal.check()
    disk.full = False
    journal.close()
    found = [entry.event for entry in entries(tmp_path)]
    assert [event.count for event in found[:5]] == [0, 1, 2, 3, 4]
    assert found[-1].kind == "lost" and found[-1].detail.startswith("3 records")
    assert not verify(tmp_path).breaks


def test_lines_are_json_with_the_message(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    [line] = files_of(tmp_path)[0].read_text().splitlines()
    assert set(json.loads(line)) == {"seq", "prev", "xml"}
