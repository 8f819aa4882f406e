"""Named network namespaces (iproute2's /run/netns): entered by a thread, listed, emptied, removed.

A namespace of ours is called ``nl-PREFIX-PID-NUMBER-NODE``: who made it can be read from its name, so what a killed
run left behind is found and removed by the next one.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

NETNS = Path("/run/netns")
# iproute2 binds what lies in here over /etc for each process that `ip netns exec` starts
ETC = Path("/etc/netns")
# Each lab has a folder for its files in here
FOLDERS = Path(tempfile.gettempdir())
_CLONE_NEWNET = 0x40000000
_OURS = re.compile(r"nl-[a-z0-9]+-(\d+)-\d+(?:-.+)?")
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def enter(path: str) -> None:
    """Move the calling thread into the network namespace of a file; Python 3.11 has no os.setns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(descriptor)


def inside(namespace: str, work: Callable[[], T]) -> T:
    """Run ``work`` on a thread of its own in a namespace, and return or raise what it does.

    Sockets made there stay there, whichever thread uses them; /proc/sys/net and /proc/thread-self/net are that
    namespace's. No process has to be started, so it costs less than a millisecond.
    """

    def run() -> T:
        enter(f"{NETNS}/{namespace}")
        return work()

    # The thread ends with the call: one that came back from a namespace would be somebody else's trap
    with ThreadPoolExecutor(1, thread_name_prefix=f"in {namespace}") as thread:
        return thread.submit(run).result()


def processes(namespaces: Iterable[str]) -> list[int]:
    """Return the ids of the processes in these namespaces, never ourselves."""
    wanted = {_inode(NETNS / name) for name in namespaces} - {None}
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if _inode(Path(f"/proc/{pid}/ns/net")) in wanted]


def kill(namespaces: Iterable[str], *, seconds: float = 5.0) -> None:
    """Kill every process in these namespaces, those that fork on the way, too; TimeoutError when one does not go."""
    names = tuple(namespaces)
    until = time.monotonic() + seconds
    while pids := processes(names):
        if time.monotonic() > until:
            raise TimeoutError(f"processes {pids} in {', '.join(names)} are still there after a kill")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def remove(namespaces: Iterable[str]) -> None:
    """Remove namespaces with their processes, devices and /etc files; those that are gone are no error."""
    names = [name for name in namespaces if (NETNS / name).exists() or (ETC / name).exists()]
    if not names:
        return
    kill(names)
    batch = "".join(f"netns del {name}\n" for name in names)
    subprocess.run(["ip", "-force", "-batch", "-"], input=batch, text=True, capture_output=True, check=False)
    for name in names:
        shutil.rmtree(ETC / name, ignore_errors=True)


def remove_stale() -> None:
    """Remove what runs that were killed have left: namespaces and folders of ours whose maker is no more."""
    remove(sorted(name for name in _names(NETNS) | _names(ETC) if _is_stale(name)))
    for name in _names(FOLDERS):
        if _is_stale(name):
            shutil.rmtree(FOLDERS / name, ignore_errors=True)


def _is_stale(name: str) -> bool:
    ours = _OURS.fullmatch(name)
    return ours is not None and not Path("/proc", ours[1]).exists()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("nl-*")}


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
