"""Debian's Orthanc as a peer, on ports of its own, its storage below a given folder."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
import pytest

from tests.helpers.grid import free_port

PROGRAM = Path("/usr/sbin/Orthanc")
NEEDS = pytest.mark.skipif(not PROGRAM.exists(), reason="Orthanc is not installed (Debian: orthanc)")


@dataclass
class Orthanc:
    """A running Orthanc; ``nodelay`` sets TCP_NODELAY=1 in its environment (DCMTK leaves Nagle on otherwise)."""

    home: Path
    nodelay: bool = False
    port: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    modalities: dict[str, tuple[str, str, int] | dict[str, object]] = field(default_factory=dict)
    extra: dict[str, object] = field(default_factory=dict)  # more keys of its configuration
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Orthanc:
        self.home.mkdir(parents=True, exist_ok=True)
        config = self.home / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "Name": "ORTHANC",
                    "StorageDirectory": str(self.home / "db"),
                    "IndexDirectory": str(self.home / "db"),
                    "DicomAet": "ORTHANC",
                    "DicomPort": self.port,
                    "HttpPort": self.http,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "Plugins": [],
                    "DicomAlwaysAllowStore": True,
                    "DicomAlwaysAllowFind": True,
                    "DicomAlwaysAllowGet": True,
                    "DicomAlwaysAllowMove": True,
                    "DicomCheckCalledAet": False,
                    "DicomModalities": {
                        name: value if isinstance(value, dict) else list(value)
                        for name, value in self.modalities.items()
                    },
                    **self.extra,
                }
            )
        )
        env = {k: v for k, v in os.environ.items() if k != "TCP_NODELAY"} | (
            {"TCP_NODELAY": "1"} if self.nodelay else {}
        )
        with (self.home / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen([str(PROGRAM), str(config)], stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.rest("/system")
                return self
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "Orthanc did not start"
                time.sleep(0.1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)

    def rest(self, path: str, body: object = None) -> object:
        """GET, or POST with ``body``; the JSON answer."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", data=data, timeout=120) as reply:
            return json.loads(reply.read() or b"null")

    def upload(self, path: Path) -> None:
        """Give it one file over HTTP; urllib's HTTPError when it is refused."""
        url = f"http://127.0.0.1:{self.http}/instances"
        with urllib.request.urlopen(url, data=path.read_bytes(), timeout=60) as reply:
            reply.read()

    def cpu_seconds(self) -> float:
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def peak_rss_mib(self) -> float:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmHWM")
