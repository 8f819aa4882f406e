"""How long a channel waits for its far side without progress."""

from __future__ import annotations

from dataclasses import dataclass

# A far side re-reads what it has at this speed at least (bytes/s), on top of the plain timeout.
VERIFY_SPEED = 50e6


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without a byte after which a door counts as unreachable: for answers, and where a disk must sync."""

    answer: float = 10.0
    write: float = 30.0

    def verifying(self, size: int) -> float:
        """Return how long the far side may take to re-read `size` bytes."""
        return self.write + size / VERIFY_SPEED
