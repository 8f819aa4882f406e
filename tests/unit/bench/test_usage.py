"""CPU and peak memory of processes, forked children included."""

from __future__ import annotations

import subprocess
import sys

import psutil

from bench.usage import Meter

WORK = """
import os, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
child = os.fork()
if child == 0:
    block = bytearray(60 << 20)
    burn(0.3)
    os._exit(0)
if sys.argv[1] == "wait": os.waitpid(child, 0)
else: os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print("done", flush=True)
sys.stdin.read()
"""


def _measured(how: str) -> tuple[float, float]:
    command = [sys.executable, "-c", "import sys; sys.stdin.readline(); exec(sys.argv.pop(1))", WORK, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        with Meter(lambda: {"server": [psutil.Process(process.pid)]}, forking=True) as meter:
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            used = meter.read()
        process.stdin.close()
    return used.cpu["server"], used.peak_rss_mib["server, children"]


def test_a_child_that_was_waited_for_counts_in_its_parent() -> None:
    cpu, peak = _measured("wait")
    assert 0.25 < cpu < 0.6 and peak > 60


def test_a_child_that_ended_and_was_not_waited_for_counts_too() -> None:
    cpu, peak = _measured("zombie")
    assert 0.25 < cpu < 0.6 and peak > 60


def test_a_process_with_a_role_of_its_own_is_not_counted_at_its_parent() -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', %r], stdin=0); p.wait()"
    inner = (
        "import sys, time\nsys.stdin.readline()\n"
        "while time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code % inner]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        parent = psutil.Process(process.pid)

        def roles() -> dict[str, list[psutil.Process]]:
            return {"supervisor": [parent], "receiver": parent.children()}

        with Meter(roles) as meter:
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            used = meter.read()
        process.stdin.close()
    assert used.cpu["receiver"] > 0.2 and used.cpu["supervisor"] < 0.25
