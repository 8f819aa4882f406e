"""Specific Character Set (0008,0005) of a requestor: read its values, and write ours so that it can read them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.charset import is_defined, repertoire
from catalog.text import decode, terms_of

UTF8 = "ISO_IR 192"
LATIN1 = "ISO_IR 100"


@dataclass(frozen=True, slots=True)
class Charset:
    """What a data set says of its encoding. `terms` are the defined terms as sent, empty when it says nothing."""

    terms: tuple[str, ...]

    @classmethod
    def of(cls, value: bytes | None) -> Charset:
        """Read (0008,0005); an unknown term is passed over, its data is then read like undeclared text."""
        terms = terms_of(value or b"")
        return cls(terms if any(terms) else ())

    @classmethod
    def parse(cls, text: str) -> Charset:
        """Read terms as an operator writes them. Raises ValueError for one that the standard does not define."""
        terms = tuple(term.strip() for term in text.split("\\"))
        if not text.strip() or not all(is_defined(term) for term in terms):
            raise ValueError("defined terms of PS3.3 C.12.1.1.2, like ISO_IR 100 or ISO 2022 IR 6\\ISO 2022 IR 87")
        return cls(terms)

    @property
    def value(self) -> str:
        """The element's value."""
        return "\\".join(self.terms)

    def decode(self, raw: bytes, *, name: bool) -> str:
        """Decode a text value, person names by component, exactly as the catalog reads stored ones."""
        return decode(raw, self.terms, name=name)

    def encode(self, text: str, *, name: bool) -> bytes | None:
        """Encode a text value; None when this set cannot represent it."""
        if text.isascii():
            return text.encode("ascii")
        return repertoire(self.terms).encode(text, name=name)

    def replace(self, text: str, *, name: bool) -> tuple[bytes, int]:
        """Encode with a question mark for each character that this set does not have; say how many those were."""
        held = [char if char == "\\" or self.encode(char, name=name) is not None else "" for char in text]
        whole = self.encode("".join(char or "?" for char in held), name=name)
        return (whole if whole is not None else b""), sum(not char for char in held)
