"""kill -9 at random moments while objects and uploads go in: whole or invisible, and the next start is clean."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from storage_provider.store import Store
from storage_provider.uploads import Uploads
from tests.conformance.memory_channel import spec_of

KILLS = 12

# Prints each key only after its commit returned: what was printed must be there after the kill.
CHILD = """
import hashlib, random, sys
from pathlib import Path
from storage_provider.channel import ObjectSpec
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.keys import object_key
from storage_provider.store import Store
from storage_provider.uploads import Uploads
root, seed = Path(sys.argv[1]), int(sys.argv[2])
store, rng = Store(root), random.Random(seed)
uploads = Uploads(store)
print("ready", flush=True)
while True:
    data = rng.randbytes(rng.choice([0, 1, 4096, 200_000]))
    key = object_key(hashlib.sha256(data).hexdigest())
    incoming = store.begin(key, len(data))
    incoming.write(data)
    incoming.commit()
    print(key, flush=True)
    big = random.Random(7).randbytes(CHUNK_BYTES + 1000) + bytes([rng.randrange(8)])
    sha = hashlib.sha256(big).hexdigest()
    chunks = tuple(hashlib.sha256(big[n:n + CHUNK_BYTES]).hexdigest() for n in (0, CHUNK_BYTES))
    ident, state = uploads.begin(ObjectSpec(object_key(sha), len(big), sha, chunks), "me")
    for start, stop in state.missing:
        for at in range(start, stop, 1 << 20):
            writer = uploads.open_range(ident, "me", at, min(at + (1 << 20), stop))
            writer.write(big[at:min(at + (1 << 20), stop)])
            writer.close()
    uploads.commit(ident, "me")
    print(object_key(sha), flush=True)
"""


def run_and_kill(root: Path, seed: int, delay: float) -> list[str]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root), str(seed)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    keys = child.stdout.read().split()
    child.wait()
    return [key for key in keys if len(key) == 73]


def test_kill_at_any_instant(tmp_path: Path) -> None:
    rng, promised = random.Random(11), set[str]()
    for number in range(KILLS):
        promised.update(run_and_kill(tmp_path, number, rng.uniform(0.0, 0.15)))
        store = Store(tmp_path)
        present = {stat.key for stat in store.list()}
        assert promised <= present
        for key in present:
            assert store.checksum(key)[0] == key[-64:], "half an object is visible"
        assert not list((tmp_path / "stage").iterdir())
        uploads = Uploads(store)
        for folder in (tmp_path / "uploads").iterdir():
            assert (folder / "journal.json").exists(), "an orphan was left"
        assert len(uploads) == len(list((tmp_path / "uploads").iterdir()))
        store.close()
    assert promised


def test_an_upload_cut_by_a_kill_is_finished_with_right_bytes(tmp_path: Path) -> None:
    for number in range(4):
        run_and_kill(tmp_path, number, 0.02 + 0.02 * number)
    store = Store(tmp_path)
    uploads = Uploads(store)
    for last in range(8):
        data = random.Random(7).randbytes(4 * 1024 * 1024 + 1000) + bytes([last])
        spec = spec_of(data)
        ident, state = uploads.begin(spec, "me")
        for start, stop in state.missing:
            writer = uploads.open_range(ident, "me", start, stop)
            writer.write(data[start:stop])
            writer.close()
        assert uploads.commit(ident, "me").sha256 == hashlib.sha256(data).hexdigest()
