"""Turn encoded DICOM values into Unicode, and names into the key they are matched by (pure; PS3.5 6.1, 6.2)."""
from __future__ import annotations

import unicodedata
from functools import lru_cache

from catalog.charset import is_defined, repertoire

INDEXED_LENGTH = 512  # characters; a PostgreSQL index row holds 2704 bytes, and no legal value comes near
_SPECIAL = str.maketrans({"ø": "o", "ł": "l", "ı": "i", "đ": "d", "ħ": "h", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d"})


@lru_cache(maxsize=256)
def terms_of(specific_character_set: bytes) -> tuple[str, ...]:
    """Split a (0008,0005) value into its terms, unknown ones left out."""
    terms = [term.strip(" \0") for term in specific_character_set.decode("ascii", "replace").split("\\")]
    return tuple(term for n, term in enumerate(terms) if is_defined(term) and (term or n == 0))


def decode(value: bytes, terms: tuple[str, ...], *, name: bool = False) -> str:
    """Decode a whole value (backslashes included); bytes outside the declared set are UTF-8, else Windows.

    Decoding comes before splitting because multi-byte sets may hold 0x5C inside a character.
    """
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    try:
        return repertoire(terms).decode(value, name=name)
    except UnicodeError:
        if b"\x1b" in value:
            return value.decode("latin-1")
    kanji = ("shift_jis",) if terms[:1] == ("ISO_IR 13",) else ()  # declared so by old Japanese devices
    for encoding in (*kanji, "utf-8", "cp1252"):  # the last: what undeclared bytes most often are
        try:
            return value.decode(encoding)
        except UnicodeError:
            continue
    return value.decode("latin-1")


def clean(text: str) -> str:
    """Drop what no database takes (NUL, lone surrogates) and the padding around a value."""
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        text = text.encode("utf-8", "ignore").decode("utf-8")
    return text.strip(" ")


@lru_cache(maxsize=4096)
def name_key(name: str) -> str:
    """Fold a person name for matching: no case, no accents, per component group, without trailing delimiters.

    Works on wildcard patterns too: `*` and `?` stay. "Müller^Jörg" and "MULLER^JORG^^" have one key.
    """
    groups = [_fold(group).rstrip("^ ") for group in name.split("=")]
    return "=".join(groups).rstrip("=")


def _fold(text: str) -> str:
    if text.isascii():
        return text.casefold()
    decomposed = unicodedata.normalize("NFKD", text.casefold().translate(_SPECIAL))
    bare = "".join(ch for ch in decomposed if not unicodedata.combining(ch))
    return bare.casefold().translate(_SPECIAL)
