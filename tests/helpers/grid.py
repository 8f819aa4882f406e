"""A local grid as a user starts it: ``dgis up`` as a process of its own, seen through ready.json."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, *, seconds: float, what: str, every: float = 0.05) -> None:
    """Poll until true; AssertionError naming ``what`` when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)


@dataclass
class Grid:
    """``dgis up`` below ``home``; a context manager that stops it."""

    home: Path
    port: int = field(default_factory=free_port)
    aet: str = "DGIS"
    peers: tuple[str, ...] = ()
    providers: int = 2
    workers: int = 2
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    def start(self, *, seconds: float = 60.0) -> Grid:
        argv = [str(BIN / "dgis"), "up", "--home", str(self.home), "--aet", self.aet, "--port", str(self.port)]
        argv += ["--providers", str(self.providers), "--workers", str(self.workers), *self.options]
        for peer in self.peers:
            argv += ["--peer", peer]
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "up.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        path = self.home / "ready.json"
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert self.process.poll() is None, f"dgis up ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"dgis up was not ready in {seconds} s:\n{self.log()}"
            time.sleep(0.05)
        self.ready = json.loads(path.read_text())
        return self

    def log(self) -> str:
        return (self.home / "up.log").read_text(errors="replace")[-4000:]

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"dgis up did not stop:\n{self.log()}") from None

    def kill(self) -> None:
        """kill -9 of the whole tree."""
        assert self.process is not None
        for process in [*self.tree(), psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def __enter__(self) -> Grid:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The running processes by role: catalog, se1.., dgis (its supervisor), dimse, worker, https."""
        roles: dict[str, list[psutil.Process]] = {}
        for process in self.tree():
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            role = _role(line)
            if role:
                roles.setdefault(role, []).append(process)
        return roles

    def peak_rss_mib(self) -> dict[str, float]:
        """VmHWM of every process by role and number, MiB."""
        peaks: dict[str, float] = {}
        for role, processes in self.processes().items():
            for number, process in enumerate(processes, 1):
                try:
                    text = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    continue
                found = re.search(r"VmHWM:\s+(\d+) kB", text)
                assert found is not None
                peaks[f"{role}{number if len(processes) > 1 else ''}"] = int(found[1]) / 1024
        return peaks

    def cpu_seconds(self) -> dict[str, float]:
        """User + system time of every process by role (summed), seconds."""
        used: dict[str, float] = {}
        for role, processes in self.processes().items():
            times = [p.cpu_times() for p in processes]
            used[role] = sum(t.user + t.system for t in times)
        return used

    def cli(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``dgis ARGS --home HOME``."""
        return subprocess.run(
            [str(BIN / "dgis"), *args, "--home", str(self.home)],
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
            env=dict(os.environ, COLUMNS="160"),
        )

    def status(self) -> dict[str, Any]:
        """``dgis status --format json``."""
        result: dict[str, Any] = json.loads(self.cli("status", "--format", "json", check=False).stdout)
        return result

    def doors(self, name: str) -> dict[str, str]:
        """The doors of a provider by scheme."""
        (provider,) = (one for one in self.ready["providers"] if one["name"] == name)
        return {url.split(":", 1)[0]: url for url in provider["urls"]}

    def stored(self, name: str) -> int:
        """How many objects lie at a provider."""
        objects = self.home / name / "store" / "main" / "objects"
        return sum(1 for path in objects.rglob("*") if len(path.name) == 64)

    def wait_drained(self, seconds: float = 60.0) -> None:
        """Until the spool is empty: everything is in the catalog and on its storage elements.

        Looks at the directories: asking ``dgis status`` over and over would take a core from what is waited for."""
        spool = self.home / "dgis" / "spool"
        waiting = ("inbox/*", "registered/*/*")

        def drained() -> bool:
            return not any(next(spool.glob(pattern), None) for pattern in waiting)

        wait_until(drained, seconds=seconds, what="spool drained")


def _role(line: str) -> str | None:
    for pattern, role in (
        (r"dgis-catalog|catalog\.cli", "catalog"),
        (r"/(se\d+)/config\.toml", ""),
        (r"process dimse", "dimse"),
        (r"process worker", "worker"),
        (r"process https", "https"),
        (r"serve --config .*node\.toml", "dgis"),
    ):
        found = re.search(pattern, line)
        if found:
            return role or found[1]
    return None
