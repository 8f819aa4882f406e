"""Markers of a running transfer: 111 restart markers and 112 performance markers (GFD.20 sections 3.6, 3.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from storage_provider.errors import Refused
from storage_provider.ranges import Ranges, Span

RESTART_CODE = 111
PERFORMANCE_CODE = 112
_LEAD = "Range Marker "
_SPAN = re.compile(r"(\d{1,18})-(\d{1,18})", re.A)
# More spans than a transfer with every connection of its own makes; beyond it the marker says less, never wrong.
MOST_SPANS = 256
_BYTES = re.compile(r"Stripe Bytes Transferred:\s*(\d{1,18})", re.A)


@dataclass(frozen=True, slots=True)
class Performance:
    """How far a transfer is: POSIX time and bytes of one stripe."""

    moment: float
    transferred: int


def format_spans(spans: Sequence[Span]) -> str:
    """Spell half-open spans, `0-100,200-300`, as restart markers and REST have them."""
    return ",".join(f"{start}-{stop}" for start, stop in spans[:MOST_SPANS])


def parse_spans(text: str) -> Ranges:
    """Read spans; the empty text is no span. Raises Refused."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    found = [_SPAN.fullmatch(part) for part in parts]
    if len(parts) > 16 * MOST_SPANS or None in found:
        raise Refused("not byte ranges (0-100,200-300)")
    return Ranges.of((int(match[1]), int(match[2])) for match in found if match is not None)


def restart_line(received: Ranges) -> str:
    """Return the text of a 111 reply: what is safe at the far side."""
    return _LEAD + format_spans(received.spans)


def parse_restart(text: str) -> Ranges:
    """Read the text of a 111 reply; raises Refused."""
    head, lead, spans = text.partition(_LEAD)
    if not lead or head.strip():
        raise Refused("not a restart marker")
    return parse_spans(spans)


def performance_lines(mark: Performance) -> tuple[str, ...]:
    """Return the lines of a 112 reply; we are one stripe."""
    return (
        "Perf Marker",
        f"Timestamp:  {mark.moment:.1f}",
        "Stripe Index: 0",
        f"Stripe Bytes Transferred: {mark.transferred}",
        "Total Stripe Count: 1",
        "End.",
    )


def parse_performance(text: str) -> int:
    """Return the bytes that the text of a 112 reply tells of; raises Refused."""
    match = _BYTES.search(text)
    if match is None:
        raise Refused("not a performance marker")
    return int(match[1])
