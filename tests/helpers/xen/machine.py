"""dom0 as the product's `Machine`: what `dgis deploy` does to a host is done to a Xen host, by its own tools."""

from __future__ import annotations

import base64
import functools
import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dgis.deploy.machine import Machine
from tests.helpers.xen.debs import Unavailable
from tests.helpers.xen.host import XenHost

PYTHON = "/usr/bin/python3"
# What `dgis deploy apply` and `watch` run on a host; busybox' sha256sum and sysctl lack options of theirs
PROGRAMS = (PYTHON, "sha256sum", "sysctl")
_MODULES = """\
import concurrent.futures.thread, encodings.idna, json, socket, sys
print(json.dumps([module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)]))
"""


@dataclass(frozen=True, slots=True)
class Dom0(Machine):
    """A machine whose commands run in a host's dom0, as root."""

    host: XenHost | None = None

    def attempt(
        self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """As the parent says; the far side's time is an emulated processor's, so it gets four times as much."""
        assert self.host is not None
        script = shlex.join(argv)
        if text:
            script = f"base64 -d <<< {base64.b64encode(text.encode()).decode()} | {script}"
        done = self.host.run(script, timeout=int(timeout * 4), check=False)
        return subprocess.CompletedProcess(argv, done.status, done.out, done.err)

    @contextmanager
    def holding(self, argv: Sequence[str], *, timeout: float = 60.0) -> Iterator[None]:
        """Nothing: commands run one by one there, and nobody else works on it."""
        yield


@functools.cache
def python_files() -> dict[str, bytes]:
    """The modules of Debian's Python that the product's scripts for hosts import, by path: some fifty files."""
    try:
        done = subprocess.run([PYTHON, "-I", "-c", _MODULES], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{PYTHON} is not there for dom0: {error}") from error
    return {path: Path(path).read_bytes() for path in json.loads(done.stdout)}
