"""Ranges behave like sets of byte positions; HTTP headers are parsed strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_provider.errors import Refused
from storage_provider.ranges import Ranges, format_content_range, format_range, parse_content_range, parse_range

spans = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair)))
sets = st.lists(spans, max_size=6)


def points(ranges: Ranges) -> set[int]:
    return {n for start, stop in ranges for n in range(start, stop)}


def of_list(items: list[tuple[int, int]]) -> set[int]:
    return {n for start, stop in items for n in range(start, stop)}


@given(sets, spans)
def test_like_sets_of_positions(items: list[tuple[int, int]], span: tuple[int, int]) -> None:
    ranges, inside = Ranges.of(items), set(range(*span))
    assert points(ranges) == of_list(items)
    assert points(ranges.add(*span)) == of_list(items) | inside
    assert points(ranges.subtract(*span)) == of_list(items) - inside
    assert points(ranges.intersect(*span)) == of_list(items) & inside
    assert points(ranges.missing(*span)) == inside - of_list(items)
    assert ranges.covers(*span) == (inside <= of_list(items))
    assert ranges.total == len(of_list(items))


@given(sets)
def test_normalised(items: list[tuple[int, int]]) -> None:
    flat = [edge for span in Ranges.of(items) for edge in span]
    assert flat == sorted(set(flat))


@pytest.mark.parametrize(
    ("header", "span"),
    [(None, None), ("bytes=0-0", (0, 1)), ("bytes=5-", (5, 10)), ("bytes=-3", (7, 10)), ("bytes=2-99", (2, 10))],
)
def test_range_header(header: str | None, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-4", "bytes=-", "bytes=-0", "bytes=0-1,3-4", "items=0-1", "x"])
def test_bad_range_headers_are_refused(header: str) -> None:
    with pytest.raises(Refused):
        parse_range(header, 10)


def test_content_range_round_trip() -> None:
    assert parse_content_range(format_content_range(3, 9, 20)) == (3, 9, 20)
    assert format_range(4, 2) == "bytes=4-5"
    assert format_range(4, None) == "bytes=4-"


@pytest.mark.parametrize("header", [None, "", "bytes 0-1/*", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-1/1\n2"])
def test_bad_content_ranges_are_refused(header: str | None) -> None:
    with pytest.raises(Refused):
        parse_content_range(header)
