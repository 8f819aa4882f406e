"""FTP replies: every split of the bytes gives the same replies, and nothing a server sends is unbounded."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_provider.gridftp.replies import (
    MOST_LINE_BYTES,
    Reply,
    ReplyError,
    ReplyReader,
    adat_token,
    format_reply,
    protected_command,
    protected_reply,
)

LINE = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=40)


@given(st.integers(100, 659), st.lists(LINE, min_size=1, max_size=6), st.integers(1, 50))
def test_what_is_spelled_is_read_whatever_the_splits(code: int, lines: list[str], step: int) -> None:
    raw = format_reply(code, *lines) * 2
    reader, found = ReplyReader(), []
    for at in range(0, len(raw), step):
        found += reader.feed(raw[at : at + step])
    middle = [f" {line}" for line in lines[1:-1]]
    spelled = (lines[0], *middle, lines[-1]) if len(lines) > 1 else (lines[0],)
    assert found == [Reply(code, spelled)] * 2


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_give_replies_or_a_reply_error(chunks: list[bytes]) -> None:
    reader = ReplyReader()
    with contextlib.suppress(ReplyError):
        for chunk in chunks:
            for reply in reader.feed(chunk):
                assert 100 <= reply.code <= 699


def test_lines_that_look_like_other_replies_stay_in_the_reply() -> None:
    raw = b"211-Extensions supported:\r\n DCSC P,D\r\n226 not the end\r\n211-211 neither\r\n211 End.\r\n"
    assert ReplyReader().feed(raw) == [
        Reply(211, ("Extensions supported:", " DCSC P,D", "226 not the end", "211 neither", "End."))
    ]


def test_bare_line_feeds_and_a_bare_code_are_understood() -> None:
    assert ReplyReader().feed(b"220 hello\n226\r\n") == [Reply(220, ("hello",)), Reply(226, ("",))]


def test_endless_lines_and_replies_are_refused() -> None:
    with pytest.raises(ReplyError):
        ReplyReader().feed(b"2" * (MOST_LINE_BYTES + 1))
    reader = ReplyReader(most_reply_bytes=1000)
    reader.feed(b"250-begin\r\n")
    with pytest.raises(ReplyError):
        for _ in range(100):
            reader.feed(b" " + b"x" * 50 + b"\r\n")


def test_protected_replies_are_unwrapped_whole_and_line_by_line() -> None:
    reader = ReplyReader()
    reader.unwrap = lambda token: token[::-1]
    whole = protected_reply(lambda data: data[::-1], format_reply(250, "a", "b", "c"))
    assert reader.feed(whole) == [Reply(250, ("a", " b", "c"))]
    parts = [base64.b64encode(line[::-1]) for line in (b"250-a\r\n", b"250 c\r\n")]
    assert reader.feed(b"632-" + parts[0] + b"\r\n632 " + parts[1] + b"\r\n") == [Reply(250, ("a", "c"))]


@pytest.mark.parametrize("raw", [b"226 done\r\n", b"632 !!!!\r\n", b"632\r\n", b"\r\n"])
def test_what_comes_in_clear_after_the_exchange_is_refused(raw: bytes) -> None:
    reader = ReplyReader()
    reader.unwrap = lambda token: token
    with pytest.raises(ReplyError):
        reader.feed(raw)


def test_tokens() -> None:
    assert adat_token(Reply(335, ("ADAT=aGk=",))) == b"hi"
    assert adat_token(Reply(235, ("GSSAPI Authentication succeeded",))) == b""
    with pytest.raises(ReplyError):
        adat_token(Reply(335, ("ADAT=?",)))
    assert protected_command(lambda data: data, b"NOOP") == b"ENC " + base64.b64encode(b"NOOP\r\n") + b"\r\n"
    with pytest.raises(ReplyError):
        format_reply(250, "a\r\n226 b")
