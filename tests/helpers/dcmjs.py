"""dcmjs-dimse from npm as a client; installed for the test session into a folder of its own, nothing stays."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VERSION = "0.3.3"
_CLIENT = Path(__file__).with_name("dcmjs_client.js")


def install(folder: Path) -> Path:
    """``npm install`` below ``folder``; skips with the reason when node, npm or the registry is missing."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed (Debian: nodejs, npm)")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}')
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1")
    argv = ["npm", "install", *options, f"dcmjs-dimse@{VERSION}"]
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry did not answer in 90 s")
    if done.returncode:
        pytest.skip(f"npm cannot install dcmjs-dimse {VERSION}: {done.stderr.strip()[-200:]}")
    return folder / "node_modules" / "dcmjs-dimse"


@dataclass(frozen=True, slots=True)
class Dcmjs:
    """A client of the AE at host:port; ``tls`` names key, certificate and CA files."""

    module: Path
    host: str
    port: int
    calling: str = "DCMJS"
    called: str = "DGIS"
    tls: tuple[str, str, str] | None = None
    identity: dict[str, Any] | None = None

    def run(self, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        """Run the steps, an association each; the results in their order."""
        plan = {
            "host": self.host, "port": self.port, "calling": self.calling, "called": self.called,
            "tls": self.tls, "identity": self.identity, "steps": steps,
        }  # fmt: skip
        done = subprocess.run(
            ["node", str(_CLIENT), str(self.module)],
            input=json.dumps(plan), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        told: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[{") :])
        return told
