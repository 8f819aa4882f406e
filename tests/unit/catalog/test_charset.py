"""The character set codec: what comes back, what is refused, and that it writes what the standard's examples show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.charset import is_defined, repertoire

# PS3.5 annexes H, I, K: terms, name, bytes.
EXAMPLES = [
    (("", "ISO 2022 IR 87"), "Yamada^Tarou=山田^太郎=やまだ^たろう",
     b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"),
    (("ISO_IR 13", "ISO 2022 IR 87"), "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
     b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J"),
    (("", "ISO 2022 IR 149"), "Hong^Gildong=洪^吉洞=홍^길동",
     b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"),
    (("", "ISO 2022 IR 58"), "Zhang^XiaoDong=张^小东", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"),
    (("GB18030",), "Wang^XiaoDong=王^小东", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab"),
    (("GBK",), "Wang^XiaoDong=王^小东", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab"),
    (("ISO_IR 192",), "Wang^XiaoDong=王^小東", "Wang^XiaoDong=王^小東".encode()),
    (("ISO_IR 100",), "Buc^Jérôme", b"Buc^J\xe9r\xf4me"),
    (("ISO_IR 144",), "Люкceмбypг", b"\xbb\xee\xdace\xdc\xd1yp\xd3"),
    (("ISO_IR 203",), "Œuvre^€", b"\xbcuvre^\xa4"),
]
SETS = ["", "ISO_IR 6", *(f"ISO_IR {n}" for n in (100, 101, 109, 110, 144, 127, 126, 138, 148, 203, 166, 13, 192)),
        "GB18030", "GBK", "\\ISO 2022 IR 87\\ISO 2022 IR 159", "ISO_IR 13\\ISO 2022 IR 87", "\\ISO 2022 IR 149",
        "\\ISO 2022 IR 58", "ISO 2022 IR 100\\ISO 2022 IR 101\\ISO 2022 IR 144\\ISO 2022 IR 87\\ISO 2022 IR 149"]
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")) | st.sampled_from(
    "Žščéüßøłαβγдежםשלกขคｱｲ山田洪吉洞小东¥‾~^=\\ AZaz09"), max_size=24)


@pytest.mark.parametrize(("terms", "name", "raw"), EXAMPLES)
def test_the_examples_of_the_standard(terms: tuple[str, ...], name: str, raw: bytes) -> None:
    assert repertoire(terms).encode(name, name=True) == raw
    assert repertoire(terms).decode(raw, name=True) == name


@pytest.mark.parametrize("terms", SETS)
@given(text=TEXTS)
def test_what_is_written_is_read_back(terms: str, text: str) -> None:
    sets = repertoire(tuple(terms.split("\\")))
    for name in (True, False):
        raw = sets.encode(text, name=name)
        if raw is not None:
            assert sets.decode(raw, name=name) == text
            assert sets.encode(text + "X", name=name) is not None, "a value ends where ASCII can go on"


@pytest.mark.parametrize("terms", SETS)
@given(raw=st.binary(max_size=40) | st.lists(st.sampled_from(
    [b"\x1b", b"$B", b"$)C", b"(B", b"-A", b"^", b"\\", b"\xd4\xcf", b";3", b"A"]), max_size=20).map(b"".join))
def test_any_bytes_are_text_or_a_unicode_error(terms: str, raw: bytes) -> None:
    try:
        text = repertoire(tuple(terms.split("\\"))).decode(raw, name=True)
    except UnicodeError:
        return
    assert isinstance(text, str)


@pytest.mark.parametrize(("terms", "text"), [
    (("",), "Müller"), (("ISO_IR 6",), "Müller"), (("ISO_IR 100",), "Łukasz"), (("", "ISO 2022 IR 87"), "Müller"),
    (("ISO_IR 13",), "山田"), (("ISO_IR 13",), "¥"),
    (("", "ISO 2022 IR 149"), "\uD7A4"), (("ISO_IR 101",), "дом"), (("GBK",), "\U0001F600"),
])
def test_nothing_is_written_as_something_else(terms: tuple[str, ...], text: str) -> None:
    assert repertoire(terms).encode(text, name=True) is None


def test_defined_terms() -> None:
    assert all(is_defined(term) for one in SETS for term in one.split("\\"))
    assert not any(map(is_defined, ("UTF-8", "ISO_IR 999", "ISO 2022", "iso_ir 100", "ISO_IR")))
    assert repertoire(("nonsense",)) == repertoire(())


def test_an_upper_half_designated_once_for_several_components() -> None:
    raw = b"\x1b$)C\xfb\xf3^\xd1\xce\xd4\xd7"  # seen from senders that do not repeat it after the delimiter
    assert repertoire(("", "ISO 2022 IR 149")).decode(raw, name=True) == "洪^吉洞"
