"""How much copying may run beside receiving. Pure: arrivals, ages and sizes in, a number of batches out."""

from __future__ import annotations

from dataclasses import dataclass

# A stream that is worth stepping back for, objects or bytes per second; shorter moments than this say little of a rate
_OBJECTS, _BYTES = 80.0, 40.0 * 1024 * 1024
_MOMENT_SECONDS = 0.05
# How long, and how much, copying waits for a stream to end before it goes on beside it
HOLD_SECONDS, HOLD_BYTES = 5.0, 2 * 1024**3
# Then it has one batch at a time, until the oldest object has waited for so long
_PRESSED_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What was registered in some seconds."""

    seconds: float
    objects: int
    bytes: int

    @property
    def streaming(self) -> bool:
        """Whether a fast sender is at it."""
        seconds = max(self.seconds, _MOMENT_SECONDS)
        return self.objects >= _OBJECTS * seconds or self.bytes >= _BYTES * seconds


@dataclass(frozen=True, slots=True)
class Pressure:
    """What waits: seconds since the oldest that only waits for its turn was registered, and bytes in the spool."""

    oldest_seconds: float
    bytes: int


def allowed(arrivals: Arrivals, pressure: Pressure, *, parallel: int, spool_limit: int | None) -> int:
    """Return how many batches of copies may run at once.

    All, while nothing streams in. None beside a stream, for whom a copy made now costs the time of an object not yet
    received; but for HOLD_SECONDS and HOLD_BYTES at most, then one, so that no object waits for the end of a stream
    that has none; all again when the oldest has waited long or half of the spool (`spool_limit` bytes) is used.
    """
    full = spool_limit is not None and pressure.bytes > spool_limit / 2
    if not arrivals.streaming or full or pressure.oldest_seconds > _PRESSED_SECONDS:
        return parallel
    held = pressure.oldest_seconds < HOLD_SECONDS and pressure.bytes < HOLD_BYTES
    return 0 if held else 1
