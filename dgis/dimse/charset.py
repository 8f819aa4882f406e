"""Specific Character Set (0008,0005) of a requestor: read its values, and write ours so that it can read them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.charset import python_encoding as _encodings
from pydicom.valuerep import PersonName

UTF8 = "ISO_IR 192"
_NAME_DELIMITERS = {0x5C, 0x5E, 0x3D, 0x0D, 0x0A, 0x09, 0x0C}
_TEXT_DELIMITERS = {0x5C, 0x0D, 0x0A, 0x09, 0x0C}


@dataclass(frozen=True, slots=True)
class Charset:
    """What a data set says of its encoding. `terms` are the defined terms as sent, empty when it says nothing."""

    terms: tuple[str, ...]

    @classmethod
    def of(cls, value: bytes | None) -> Charset:
        """Read (0008,0005); an unknown term is passed over, its data is then read as ASCII with replacements."""
        text = (value or b"").decode("ascii", "replace").strip("\x00 ")
        terms = tuple(term.strip() for term in text.split("\\")) if text else ()
        return cls(tuple(term for i, term in enumerate(terms) if term in _encodings or (i == 0 and not term)))

    @property
    def value(self) -> str:
        """The element's value."""
        return "\\".join(self.terms)

    def decode(self, raw: bytes, *, name: bool) -> str:
        """Decode a text value, person names by component."""
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        return decode_bytes(raw, self._python(), _NAME_DELIMITERS if name else _TEXT_DELIMITERS)

    def encode(self, text: str, *, name: bool) -> bytes | None:
        """Encode a text value; None when this set cannot represent it."""
        if text.isascii():
            return text.encode("ascii")
        if not self.terms:
            return None
        encodings = self._python()
        if not all(char.isascii() or _one_of(char, encodings) for char in text):
            return None
        if len(encodings) == 1:
            return text.encode(encodings[0])
        raw = PersonName(text).encode(encodings) if name else encode_string(text, encodings)
        return raw if self.decode(raw, name=name) == text else None

    def _python(self) -> list[str]:
        return list(convert_encodings(list(self.terms)))


def _one_of(char: str, encodings: list[str]) -> bool:
    for encoding in encodings:
        try:
            char.encode(encoding)
        except (UnicodeError, LookupError):
            continue
        return True
    return False
