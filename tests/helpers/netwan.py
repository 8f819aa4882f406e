"""A ``wanem`` line as a running process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.wanem import Counters, Shape

_ROOT = Path(__file__).resolve().parents[2]


class Wan:
    """A slow line between two devices that it makes; ends are ``NAMESPACE:DEV``."""

    def __init__(self, a: str, b: str, *, ab: Shape, ba: Shape, seed: int = 1) -> None:
        """Start it and wait until both devices are there; they are not up yet."""
        words = ["--a", a, "--b", b, "--ab", str(ab), "--ba", str(ba), "--seed", str(seed)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.wanem", *words],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.wait(10)
            raise OSError(f"wanem ended with {self._process.returncode}; needs root and /dev/net/tun")
        self._counters: tuple[Counters, Counters] | None = None

    def stop(self) -> tuple[Counters, Counters]:
        """Cut the line and return its counters, a to b and back; again is no error."""
        if self._counters is None:
            said = self._process.communicate(timeout=10)[0]
            if self._process.returncode:
                raise OSError(f"the line broke down: wanem ended with {self._process.returncode}, see its errors above")
            ab, ba = json.loads(said)
            self._counters = Counters(**ab), Counters(**ba)
        return self._counters
