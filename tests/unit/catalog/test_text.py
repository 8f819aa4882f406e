"""The name key: what is the same name to a person who searches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.text import clean, decode, name_key, terms_of


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Müller^Jörg", "muller^jorg"),
        ("MULLER^JORG^^", "muller^jorg"),
        ("Weiß", "weiss"),
        ("WEISS", "weiss"),
        ("Łukasiewicz^Grażyna", "lukasiewicz^grazyna"),
        ("Işık^Gülşen", "isik^gulsen"),
        ("İstanbul", "istanbul"),
        ("Sørensen", "sorensen"),
        ("Đorđević", "dordevic"),
        ("Ærø", "aero"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "yamada^tarou=山田^太郎=やまた^たろう"),
        ("Yamada^^=山田^=", "yamada=山田"),
        ("Παπαδόπουλος^Νίκος", "παπαδοπουλοσ^νικοσ"),
        ("Иванов^Пётр", "иванов^петр"),
        ("*müll?r*", "*mull?r*"),
        ("", ""),
        ("^^", ""),
        ("==", ""),
    ],
)
def test_name_key(name: str, key: str) -> None:
    assert name_key(name) == key


@given(st.text(max_size=50))
def test_name_key_is_stable(name: str) -> None:
    assert name_key(name_key(name)) == name_key(name)


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_decoding_never_raises(value: bytes, charset: bytes) -> None:
    clean(decode(value, terms_of(charset))).encode()


def test_a_backslash_inside_a_double_byte_character_does_not_split() -> None:
    assert decode("表示".encode("gb18030"), terms_of(b"GB18030")) == "表示"
    assert decode("ソ".encode("shift_jis"), ("ISO_IR 13",)) == "ソ"
