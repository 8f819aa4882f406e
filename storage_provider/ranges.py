"""Byte ranges: half-open, normalised, immutable; and their HTTP spellings (RFC 9110 section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from storage_provider.errors import Refused

Span = tuple[int, int]
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ranges:
    """A set of byte positions as sorted, disjoint, non-touching half-open spans."""

    spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Ranges:
        """Build from spans in any order; overlapping and touching ones are joined, empty ones dropped."""
        joined: list[Span] = []
        for start, stop in sorted(spans):
            if start < 0 or stop < start:
                raise Refused("not a byte range")
            if start == stop:
                continue
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        return cls(tuple(joined))

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans)

    @property
    def total(self) -> int:
        """The number of bytes covered."""
        return sum(stop - start for start, stop in self.spans)

    def add(self, start: int, stop: int) -> Ranges:
        """Return the union with one span."""
        return Ranges.of((*self.spans, (start, stop)))

    def intersect(self, start: int, stop: int) -> Ranges:
        """Return the part inside one span."""
        return Ranges.of((max(a, start), min(b, stop)) for a, b in self.spans if a < stop and b > start)

    def subtract(self, start: int, stop: int) -> Ranges:
        """Return the part outside one span."""
        kept: list[Span] = []
        for a, b in self.spans:
            if b <= start or a >= stop:
                kept.append((a, b))
                continue
            if a < start:
                kept.append((a, start))
            if b > stop:
                kept.append((stop, b))
        return Ranges.of(kept)

    def missing(self, start: int, stop: int) -> Ranges:
        """Return what of one span is not covered."""
        gap = Ranges.of([(start, stop)])
        for a, b in self.spans:
            gap = gap.subtract(a, b)
        return gap

    def covers(self, start: int, stop: int) -> bool:
        """Tell whether every byte of the span is covered."""
        return not self.missing(start, stop)


def parse_range(header: str | None, size: int) -> Span | None:
    """Return the one span a `Range` header asks of an object of `size` bytes; None when the header is absent.

    Raises Refused when it asks for several ranges, is malformed, or lies wholly outside (the caller answers 416).
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or (not match[1] and not match[2]):
        raise Refused("not a single byte range")
    if not match[1]:
        length = min(int(match[2]), size)
        start, stop = size - length, size
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
    if start >= stop:
        raise Refused("the range lies outside the object")
    return start, stop


def format_range(start: int, length: int | None) -> str:
    """Spell a `Range` request header."""
    return f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"


def parse_content_range(header: str | None) -> tuple[int, int, int]:
    """Return (start, stop, size) of a `Content-Range` header; refuse anything but the complete form."""
    match = _CONTENT_RANGE.fullmatch(header or "")
    if match is None:
        raise Refused("Content-Range: bytes FIRST-LAST/SIZE is needed")
    start, last, size = int(match[1]), int(match[2]), int(match[3])
    if last < start or last >= size:
        raise Refused("Content-Range lies outside the object")
    return start, last + 1, size


def format_content_range(start: int, stop: int, size: int) -> str:
    """Spell a `Content-Range` header for the half-open span."""
    return f"bytes {start}-{stop - 1}/{size}"
