"""kill -9 at random instants: what was acknowledged is there, whole; nothing half-done is visible."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

from dgis.spool import Spool
from tests.helpers.objects import data_set
from tests.helpers.spooling import store

KILLS = 20


def receive_for_ever(root: Path, acknowledged: int, life: int) -> None:
    """The child: commit objects and tell the parent of each one after its commit, as Success would."""
    spool = Spool(root)
    for n in range(1_000_000):
        uid = f"1.{life}.{n}"
        entry = store(spool, uid, data=data_set(uid, pixels=bytes(200_000)), step=16384)
        os.write(acknowledged, f"{entry.name} {entry.record.sha256}\n".encode())


def one_life(root: Path, life: int) -> dict[str, str]:
    """Run a receiver, kill it at a random instant, return what it had acknowledged."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            receive_for_ever(root, writer, life)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as lines:
        first = lines.readline()
        time.sleep(random.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return dict(line.split() for line in [first, *lines] if line.endswith("\n"))


def test_twenty_kills_lose_nothing_and_show_nothing_half_done(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    acknowledged: dict[str, str] = {}
    for life in range(KILLS):
        acknowledged |= one_life(root, life)
    spool = Spool(root)
    spool.remove_stale()
    visible = {entry.name: entry for entry in spool.inbox()}
    assert acknowledged.keys() <= visible.keys()
    # Between rename and acknowledgement a kill may leave one more whole object a life, never a part of one.
    assert len(visible) - len(acknowledged) <= KILLS
    assert spool.damaged() == ()
    for name, entry in visible.items():
        stored = entry.path.read_bytes()[: entry.record.size]
        assert hashlib.sha256(stored).hexdigest() == entry.record.sha256 == acknowledged.get(name, entry.record.sha256)
    assert [d for d in (root / "incoming").iterdir() if d.is_dir()] == []
