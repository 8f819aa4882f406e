"""The client of every measurement of storing: N of DCMTK's storescu at once, the same for every server."""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import dcmtk

LONGEST = 300.0
"""No cell sends longer than this, seconds."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where to send: port and called AE title; ``tls`` are DCMTK's options that show a certificate."""

    port: int
    called: str
    tls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """Until the last association was released: seconds, and the CPU time of all senders."""

    seconds: float
    cpu_seconds: float


def send(shares: Sequence[Sequence[Path]], door: Door, *, nodelay: bool) -> Sent:
    """Send each share from a storescu of its own, all at once.

    Raises RuntimeError when a sender fails or takes longer than `LONGEST`.
    """
    before = _cpu_of_ended_children()
    started = time.monotonic()
    processes = [start(share, door, nodelay=nodelay) for share in shares]
    codes = wait(processes)
    seconds = time.monotonic() - started
    if any(codes):
        raise RuntimeError(f"storescu ended with {[code for code in codes if code]}")
    return Sent(seconds, _cpu_of_ended_children() - before)


def start(share: Sequence[Path], door: Door, *, nodelay: bool) -> subprocess.Popen[bytes]:
    """Start one storescu; with ``nodelay`` it has TCP_NODELAY=1 in its environment."""
    return dcmtk.start("storescu", *door.tls, "-aec", door.called, "127.0.0.1", str(door.port), *share, nodelay=nodelay)


def wait(processes: Sequence[subprocess.Popen[bytes]], *, longest: float = LONGEST) -> list[int]:
    """Wait for all; kill what still runs after ``longest`` seconds. Exit codes in order.

    Popen.wait(timeout) polls in steps of up to 50 ms, which is 5 % of a cell: a timer that kills is exact.
    """
    timer = threading.Timer(longest, _kill, [processes])
    timer.start()
    try:
        return [process.wait() for process in processes]
    finally:
        timer.cancel()
        for process in processes:
            if process.poll() is None:
                process.kill()


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()


def _cpu_of_ended_children() -> float:
    """User and system time of all children that were waited for: servers run on, so that only clients are in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
