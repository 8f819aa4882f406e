"""Children are started, watched, restarted when asked, stopped in time, and never outlive their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dgis.supervisor import Child, Supervisor
from tests.helpers.grid import wait_until

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
STUBBORN = (sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")


def _watched(supervisor: Supervisor, act: Callable[[], None]) -> None:
    """Watch in this (the main) thread while ``act`` runs in another."""
    errors: list[AssertionError] = []

    def run() -> None:
        try:
            act()
        except AssertionError as error:
            errors.append(error)
        finally:
            supervisor.request_stop()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        supervisor.watch(interval=0.02)
    finally:
        thread.join()
        supervisor.stop_all()
    if errors:
        raise errors[0]


def test_a_dead_child_is_reported_once_and_left_alone() -> None:
    deaths: list[tuple[str, int, int]] = []
    supervisor = Supervisor(respawn=False, on_death=lambda *facts: deaths.append(facts), environment=dict(os.environ))
    first = supervisor.start(Child("a", SLEEP))
    supervisor.start(Child("b", SLEEP))

    def act() -> None:
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: deaths, seconds=5, what="death reported")
        time.sleep(0.3)
        assert deaths == [("a", first, -signal.SIGKILL)]
        assert supervisor.alive() == {"a": False, "b": True}

    _watched(supervisor, act)


def test_a_dead_child_comes_back_when_asked() -> None:
    supervisor = Supervisor(respawn=True, environment=dict(os.environ))
    first = supervisor.start(Child("a", SLEEP))

    def act() -> None:
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: supervisor.pid("a") not in (None, first), seconds=10, what="respawned")

    _watched(supervisor, act)


def test_stop_is_bounded_even_for_the_stubborn() -> None:
    supervisor = Supervisor(respawn=False, environment=dict(os.environ))
    pid = supervisor.start(Child("a", STUBBORN))
    time.sleep(0.5)
    started = time.monotonic()
    supervisor.stop_all()
    assert time.monotonic() - started < 12
    assert not Path(f"/proc/{pid}").exists()


def test_children_die_with_their_supervisor() -> None:
    code = (
        "import os, sys, time; from dgis.supervisor import *; "
        "s = Supervisor(respawn=False, environment=dict(os.environ)); "
        f"print(s.start(Child('a', {SLEEP!r})), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until(lambda: not _running(child), seconds=5, what="orphan gone")


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
