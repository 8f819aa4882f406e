"""Only keys that object_key makes exist."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_provider.errors import Refused
from storage_provider.keys import object_key, parse_key, parse_prefix

DIGEST = "0123456789abcdef" * 4
KEY = f"v1/01/23/{DIGEST}"

BAD = [
    "",
    "/",
    "../" + KEY,
    "/" + KEY,
    KEY + "/",
    KEY + "\n",
    KEY + "\0",
    KEY.upper(),
    KEY.replace("v1", "V1"),
    KEY.replace("v1", "v2"),
    KEY.replace("v1/", "v1//"),
    KEY.replace("/", "%2f"),
    KEY.replace("/", "\\"),
    f"v1/01/24/{DIGEST}",
    f"v1/../23/{DIGEST}",
    f"v1/01/23/../../01/23/{DIGEST}",
    f"v1/01/23/{DIGEST[:-1]}",
    f"v1/01/23/{DIGEST}0",
    f"v1/01/23/{DIGEST[:-1]}\u0661",
    f"v1/01/23/{DIGEST[:-1]}A",
    f" {KEY}",
]


def test_a_digest_has_one_key_and_back() -> None:
    assert object_key(DIGEST) == KEY
    assert parse_key(KEY) == DIGEST


@pytest.mark.parametrize("key", BAD)
def test_anything_else_is_refused(key: str) -> None:
    with pytest.raises(Refused):
        parse_key(key)


@given(st.text(max_size=90))
def test_no_text_makes_a_path_that_is_not_a_key(text: str) -> None:
    try:
        digest = parse_key(text)
    except Refused:
        return
    assert object_key(digest) == text


@pytest.mark.parametrize("digest", ["", "g" * 64, DIGEST.upper(), DIGEST + "0", "../" * 21 + "a"])
def test_only_digests_make_keys(digest: str) -> None:
    with pytest.raises(Refused):
        object_key(digest)


@given(st.integers(0, len(KEY)))
def test_every_beginning_of_a_key_is_a_prefix(length: int) -> None:
    assert parse_prefix(KEY[:length]) == KEY[:length]


@pytest.mark.parametrize("prefix", ["..", "/", "v2", "v1/..", "v1/0/", "v1/01/23/xyz", KEY + "0"])
def test_other_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(Refused):
        parse_prefix(prefix)
