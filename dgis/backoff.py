"""How long to leave something alone that failed: doubling, bounded, with jitter."""

from __future__ import annotations

import random
import time
from collections.abc import Callable


def delay(failures: int, *, first: float, longest: float) -> float:
    """Return the seconds to wait after this many failures in a row (1 = the first), jitter of a fifth included."""
    return min(first * 2.0 ** (min(failures, 40) - 1), longest) * random.uniform(0.8, 1.2)


class Backoff:
    """One thing that may fail, tried again at most about every `longest` seconds. Not thread-safe."""

    def __init__(
        self, *, first: float = 0.25, longest: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start as if nothing had failed."""
        self._first, self._longest, self._clock = first, longest, clock
        self._failures = 0
        self._until = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it may be tried now."""
        return self._clock() >= self._until

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def failed(self) -> None:
        """Leave it alone for a while."""
        self._failures += 1
        self._until = self._clock() + delay(self._failures, first=self._first, longest=self._longest)

    def worked(self) -> None:
        """Forget the failures."""
        self._failures, self._until = 0, float("-inf")
