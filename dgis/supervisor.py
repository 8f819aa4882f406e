"""Start, watch and stop the processes of a node.

A supervisor owns its children: it starts them, says when one died, restarts it when told to, and stops all of them
within a bounded time. A child dies with its supervisor (prctl PR_SET_PDEATHSIG), so that nobody keeps a port or a lock
after a ``kill -9`` of the parent. It knows nothing of what the children do.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from certs.log import get_log

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 10.0
RESPAWN_FIRST = 0.2
RESPAWN_MAX = 10.0
STEADY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Child:
    """What to run: ``argv``, descriptors to hand down, and where its standard error goes (None: the parent's)."""

    name: str
    argv: tuple[str, ...]
    fds: tuple[int, ...] = ()
    log: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Slot:
    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float | None = None
    delay: float = RESPAWN_FIRST
    reported: bool = field(default=False)


class Supervisor:
    """Run children until :meth:`stop`.

    With ``respawn`` a dead child is started again with back-off (0.2 s doubling to 10 s, reset after a minute of
    health); without it the death is reported once through ``on_death`` and the others go on.
    """

    def __init__(
        self,
        *,
        respawn: bool,
        on_death: Callable[[str, int, int], None] | None = None,
        environment: dict[str, str],
    ) -> None:
        self._slots: dict[str, _Slot] = {}
        self._respawn = respawn
        self._on_death = on_death
        self._environment = environment
        self._stopping = threading.Event()
        self._log = get_log()

    def start(self, child: Child) -> int:
        """Start ``child`` and return its process id. Must be called from the main thread (it is the children's parent
        in the kernel's eyes, see PR_SET_PDEATHSIG in prctl(2))."""
        slot = _Slot(child)
        self._slots[child.name] = slot
        return self._spawn(slot)

    def pid(self, name: str) -> int | None:
        """The process id of a running child, else None."""
        process = self._slots[name].process
        return process.pid if process is not None and process.poll() is None else None

    def pids(self) -> dict[str, int | None]:
        """The process id of every child by name, None for one that does not run."""
        return {name: self.pid(name) for name in self._slots}

    def alive(self) -> dict[str, bool]:
        """Which children run now."""
        return {name: self.pid(name) is not None for name in self._slots}

    def watch(self, *, tick: Callable[[], None] | None = None, interval: float = 0.1) -> None:
        """Block until :meth:`stop` is asked; look after the children every ``interval`` seconds and call ``tick``."""
        while not self._stopping.wait(interval):
            for slot in self._slots.values():
                self._look_after(slot)
            if tick is not None:
                tick()

    def request_stop(self) -> None:
        """Make :meth:`watch` return; safe in a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once a stop was asked for."""
        return self._stopping.is_set()

    def stop_all(self, groups: Sequence[Sequence[str]] | None = None) -> None:
        """SIGTERM the children, group by group (default: all at once), and SIGKILL what is left of one after 10 s."""
        self._stopping.set()
        for group in groups if groups is not None else [tuple(self._slots)]:
            self._stop_group(group)

    def _stop_group(self, names: Sequence[str]) -> None:
        running = [p for p in (self._slots[n].process for n in names if n in self._slots) if p and p.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _look_after(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.due is not None:
            if now >= slot.due:
                slot.due = None
                self._spawn(slot)
            return
        if slot.process is None or slot.process.poll() is None or slot.reported:
            return
        code, pid = slot.process.returncode, slot.process.pid
        self._log.error("child process ended", child=slot.child.name, pid=pid, exit_code=code, respawn=self._respawn)
        if self._on_death is not None:
            self._on_death(slot.child.name, pid, code)
        if not self._respawn:
            slot.reported = True
            return
        slot.delay = RESPAWN_FIRST if now - slot.started > STEADY_SECONDS else min(slot.delay * 2, RESPAWN_MAX)
        slot.due = now + slot.delay

    def _spawn(self, slot: _Slot) -> int:
        child = slot.child
        slot.started = time.monotonic()
        stderr: IO[bytes] | None = child.log.open("ab") if child.log is not None else None
        try:
            slot.process = subprocess.Popen(
                child.argv,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=child.fds,
                env={**self._environment, **dict(child.environment)},
                preexec_fn=_die_with_parent,
            )
        finally:
            if stderr is not None:
                stderr.close()
        return slot.process.pid


def _die_with_parent() -> None:
    """Run in the child between fork and exec: SIGTERM when the parent dies; SIGINT goes to the parent alone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
