"""What a server's processes used: CPU time and peak memory by role, forked children included.

CPU is user and system time of all threads, ended ones too. A child that forked for one association and ended is
counted as well: by its parent (cutime + cstime, in steps of 10 ms) once it was waited for, by itself while it is a
zombie. Peak memory is VmHWM, set back before a cell (/proc/PID/clear_refs); children that may have ended by the end of
it are looked at every 50 ms.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

Roles = Mapping[str, Sequence[psutil.Process]]
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by role; peak resident MiB by process (role, or role and number)."""

    cpu: dict[str, float]
    peak_rss_mib: dict[str, float]

    def per_image(self, images: int) -> dict[str, float]:
        """CPU ms an image by role."""
        return {role: seconds * 1000 / images for role, seconds in self.cpu.items()}


class Meter:
    """A context manager around what is measured; `read` afterwards, or in the midst of it.

    ``forking``: the roles' processes fork for each association.
    """

    def __init__(self, roles: Callable[[], Roles], *, forking: bool = False) -> None:
        self._roles, self._forking = roles, forking
        self._before: dict[str, float] = {}
        self._most: dict[str, float] = {}
        self._children: dict[tuple[str, int], float] = {}
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Meter:
        roles = self._roles()
        for processes in roles.values():
            for process in processes:
                with contextlib.suppress(OSError):
                    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        self._before = cpu_seconds(roles)
        if self._forking:
            self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if self._forking:
            self._sampler.join()

    def read(self) -> Usage:
        """What was used since the beginning."""
        roles = self._roles()
        now = cpu_seconds(roles)
        cpu = {role: used - self._before.get(role, 0.0) for role, used in now.items()}
        self._most = {role: max(used, self._most.get(role, 0.0)) for role, used in cpu.items()}
        cpu = self._most if self._forking else cpu  # a child that was waited for is counted in coarser steps
        return Usage(dict(cpu), {**peaks(roles), **self._forked()})

    def _forked(self) -> dict[str, float]:
        """Peaks of the children as one figure for each role: together, as if all had run at once."""
        sums: dict[str, float] = {}
        for (role, _), mib in self._children.items():
            sums[f"{role}, children"] = sums.get(f"{role}, children", 0.0) + mib
        return sums

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for role, processes in self._roles().items():
                for child in (one for process in processes for one in _children(process)):
                    mib = peak_rss_mib(child.pid)
                    if mib:
                        self._children[role, child.pid] = mib


def cpu_seconds(roles: Roles) -> dict[str, float]:
    """User and system time of every role's processes, their children and the children these waited for.

    A child that has a role of its own (a receiver below its supervisor) counts there only.
    """
    named = frozenset(process.pid for processes in roles.values() for process in processes)
    return {role: sum(_cpu_of(process, named) for process in processes) for role, processes in roles.items()}


def _cpu_of(process: psutil.Process, named: frozenset[int]) -> float:
    used = 0.0
    for one in (process, *(child for child in _children(process) if child.pid not in named)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            used += _own_cpu(one.pid, times.user + times.system) + times.children_user + times.children_system
    return used


def _own_cpu(pid: int, ticks: float) -> float:
    """The clock of clock_getcpuclockid(3), which counts nanoseconds where /proc counts steps of 10 ms."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return ticks


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def peaks(roles: Roles) -> dict[str, float]:
    """Peak resident memory of the roles' own processes, MiB."""
    found: dict[str, float] = {}
    for role, processes in roles.items():
        for number, process in enumerate(processes, 1):
            mib = peak_rss_mib(process.pid)
            if mib:
                found[f"{role}{number if len(processes) > 1 else ''}"] = mib
    return found


def peak_rss_mib(pid: int) -> float | None:
    """VmHWM of one process, MiB; None when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None
