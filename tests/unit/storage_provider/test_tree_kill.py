"""kill -9 at random moments while a door writes objects, uploads and parts: whole or invisible, and one can go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from storage_provider.tree import Tree
from tests.conformance.memory_channel import spec_of
from tests.unit.storage_provider.test_tree import Place, path

KILLS = 4
BIG = 9 * 1024 * 1024
BLOCK = 300_000

# Prints each key only after its commit returned: what was printed must be there after the kill.
CHILD = """
import random, sys
from pathlib import Path
from storage_provider import writing
from tests.conformance.memory_channel import spec_of
from tests.unit.storage_provider.test_tree import Place, path
writing.SYNC_BYTES = 1 << 20
place, rng = Place(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
place.open()
tree = place.tree()
print("ready", flush=True)
def write(where, data, order, **how):
    ready = tree.write(where, **how)
    for start, stop in ready.received.missing(0, len(data)):
        starts = list(range(start, stop, 300_000))
        if order:
            rng.shuffle(starts)
        for at in starts:
            ready.write(at, data[at:min(at + 300_000, stop)])
    ready.commit()
while True:
    small = rng.randbytes(rng.choice([0, 1, 5000, 700_000]))
    write(path(spec_of(small).key), small, True, size=len(small))
    print(spec_of(small).key, flush=True)
    big = random.Random(rng.randrange(4)).randbytes(9 << 20)
    write(path(spec_of(big).key), big, True, size=len(big))
    print(spec_of(big).key, flush=True)
    tree.delete(path(spec_of(big).key))
    part = "/areas/main/stage/" + spec_of(small).sha256 + ".part"
    write(part, small, False)
    tree.rename(part, path(spec_of(small).key))
"""


def run_and_kill(root: Path, seed: int, delay: float) -> list[str]:
    argv = [sys.executable, "-c", CHILD, str(root), str(seed)]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    keys = child.stdout.read().split()
    child.wait()
    return [key for key in keys if len(key) == 73]


def test_kill_at_any_instant(tmp_path: Path) -> None:
    rng = random.Random(12)
    bigs = [random.Random(number).randbytes(BIG) for number in range(4)]
    wide = {spec_of(big).key for big in bigs}
    promised: set[str] = set()
    cut = False  # some upload half way: at least once, or the end shows nothing
    for number in range(12 * KILLS):
        promised.update(set(run_and_kill(tmp_path, number, rng.uniform(0.0, 0.4))) - wide)
        place = Place(tmp_path)
        place.open()
        store, tree = place.areas[0].store, place.tree()
        present = {stat.key: stat.size for stat in store.list()}
        assert promised <= set(present)
        for key in present:
            assert store.checksum(key)[0] == key[-64:], "half an object is visible"
        parts = sum(node.size for node in tree.entries("/areas/main/stage"))
        assert place.used == sum(present.values()) + parts + BIG * len(place.areas[0].uploads)
        cut = cut or any(tree.missing(path(spec_of(big).key), BIG) not in ((), ((0, BIG),)) for big in bigs)
        place.close()
        if cut and number >= KILLS:
            break
    assert promised and cut
    place.open()
    _finish(place.tree(), bigs)
    place.close()


def _finish(tree: Tree, bigs: list[bytes]) -> None:
    """Whatever was begun is ended with what it says is missing; nothing that it kept is wrong."""
    for big in bigs:
        where = path(spec_of(big).key)
        missing = tree.missing(where, BIG)
        if missing:
            ready = tree.write(where, size=BIG)
            for start, stop in missing:
                ready.write(start, big[start:stop])
            ready.commit()
        fd, size = tree.read(where)
        assert os.pread(fd, size, 0) == big
        os.close(fd)
    for node in list(tree.entries("/areas/main/stage")):
        tree.delete(node.path)
