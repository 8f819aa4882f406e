"""Specific Character Set (0008,0005): text to bytes and back, with code extensions (PS3.3 C.12.1.1.2, PS3.5 6.1; pure).

One codec for both sides, so that a name in a query becomes the same Unicode as the name in a stored header. What a set
cannot hold is never written as something else: `encode` says None.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_ESC = 0x1B
_TEXT_DELIMITERS = frozenset(b"\\\r\n\t\f")  # back to the first set after them (PS3.5 6.1.2.5.3)
_NAME_DELIMITERS = _TEXT_DELIMITERS | frozenset(b"^=")


@dataclass(frozen=True, slots=True)
class CodeElement:
    """One half of the code table: G0 (bytes below 0x80) or G1 (above), designated by an escape sequence."""

    escape: bytes
    codec: str
    high: bool = True
    double: bool = False

    def decode(self, raw: bytes) -> str:
        """Turn the one or two bytes of a character into it; raises UnicodeError."""
        if self.codec == "jis-roman":
            return "\N{OVERLINE}" if raw == b"~" else raw.decode("ascii")
        if self.double and not self.high:
            raw = bytes(byte | 0x80 for byte in raw)
        return (b"\x8f" + raw if self.codec == "jis-0212" else raw).decode(_PYTHON.get(self.codec, self.codec))

    def encode(self, char: str) -> bytes | None:
        """Turn a character into its bytes, None when it is not in this half."""
        if self.codec == "jis-roman":
            # Its yen sign has the code of the backslash, which separates values: it cannot be written.
            return b"~" if char == "\N{OVERLINE}" else char.encode() if char.isascii() and char not in "\\~" else None
        try:
            raw = char.encode(_PYTHON.get(self.codec, self.codec))
        except UnicodeError:
            return None
        if self.codec == "jis-0212":
            raw = raw[1:] if raw[:1] == b"\x8f" else b""
        if len(raw) != 1 + self.double or any((byte >= 0x80) != (self.high or self.double) for byte in raw):
            return None
        if self.codec == "jis-0208" and raw[0] == 0x8E:  # half-width kana are of JIS X 0201
            return None
        return bytes(byte & 0x7F for byte in raw) if self.double and not self.high else raw


_PYTHON = {"jis-kana": "shift_jis", "jis-0208": "euc_jp", "jis-0212": "euc_jp"}
_ASCII = CodeElement(b"(B", "ascii", high=False)
_ROMAN = CodeElement(b"(J", "jis-roman", high=False)
# PS3.3 tables C.12-2 to C.12-4: number -> code elements (G0, G1 or both)
_SETS: dict[str, tuple[CodeElement, ...]] = {
    "6": (_ASCII,),
    "100": (_ASCII, CodeElement(b"-A", "latin_1")),
    "101": (_ASCII, CodeElement(b"-B", "iso8859_2")),
    "109": (_ASCII, CodeElement(b"-C", "iso8859_3")),
    "110": (_ASCII, CodeElement(b"-D", "iso8859_4")),
    "144": (_ASCII, CodeElement(b"-L", "iso8859_5")),
    "127": (_ASCII, CodeElement(b"-G", "iso8859_6")),
    "126": (_ASCII, CodeElement(b"-F", "iso8859_7")),
    "138": (_ASCII, CodeElement(b"-H", "iso8859_8")),
    "148": (_ASCII, CodeElement(b"-M", "iso8859_9")),
    "203": (_ASCII, CodeElement(b"-b", "iso8859_15")),
    "166": (_ASCII, CodeElement(b"-T", "tis_620")),
    "13": (_ROMAN, CodeElement(b")I", "jis-kana")),
    "87": (CodeElement(b"$B", "jis-0208", high=False, double=True),),
    "159": (CodeElement(b"$(D", "jis-0212", high=False, double=True),),
    "149": (CodeElement(b"$)C", "euc_kr", double=True),),
    "58": (CodeElement(b"$)A", "gb2312", double=True),),
}
_ALONE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk", "ISO 2022 GBK": "gbk"}  # no code extensions
_MULTI_BYTE = frozenset(("87", "159", "149", "58"))
_BY_ESCAPE = {element.escape: element for found in _SETS.values() for element in found}


def is_defined(term: str) -> bool:
    """Whether this is a defined term; the empty one is, as the first of several."""
    return term in _ALONE or _number(term) in _SETS


def defined_terms() -> tuple[str, ...]:
    """Name every defined term that is read and written, those without code extensions first."""
    single = [f"ISO_IR {number}" for number in _SETS if number not in _MULTI_BYTE]
    return (*single, *_ALONE, *(f"ISO 2022 IR {number}" for number in _SETS))


def _number(term: str) -> str:
    for prefix in ("ISO_IR ", "ISO 2022 IR "):
        if term.startswith(prefix):
            return term[len(prefix) :]
    return "6" if not term else ""


@dataclass(frozen=True, slots=True)
class Repertoire:
    """What a value of (0008,0005) makes of bytes: one codec that stands alone, or code elements to switch between.

    `first` are the elements in force at the start of each value and after delimiters, `known` all that may be used.
    """

    alone: str
    first: tuple[CodeElement, ...] = ()
    known: tuple[CodeElement, ...] = ()

    def decode(self, raw: bytes, *, name: bool) -> str:
        """Decode a whole value, backslashes included. Raises UnicodeError on bytes outside the declared sets."""
        if self.alone:
            return raw.decode(self.alone)
        if _ESC not in raw and self.first[0] is _ASCII and len(self.first) == 2:
            return raw.decode(self.first[1].codec)
        return _Decoding(self, _NAME_DELIMITERS if name else _TEXT_DELIMITERS).run(raw)

    def encode(self, text: str, *, name: bool) -> bytes | None:
        """Encode a whole value; None when one of its characters is in none of the sets."""
        if self.alone:
            try:
                return text.encode(self.alone)
            except UnicodeError:
                return None
        return _Encoding(self, _NAME_DELIMITERS if name else _TEXT_DELIMITERS).run(text)


@lru_cache(maxsize=256)
def repertoire(terms: tuple[str, ...]) -> Repertoire:
    """Read the terms of (0008,0005); unknown ones are passed over, none at all means ASCII (PS3.3 C.12.1.1.2)."""
    terms = tuple(term for term in terms if is_defined(term)) or ("",)
    if terms[0] in _ALONE:
        return Repertoire(_ALONE[terms[0]])
    numbers = [_number(term) for term in terms if term not in _ALONE]
    start = "6" if numbers[0] in _MULTI_BYTE else numbers[0]
    first = _SETS[start]
    # With code extensions ASCII is always there to fall back on, and so is a multi-byte set that was named first.
    known = dict.fromkeys(element for number in (start, *numbers) for element in _SETS[number])
    return Repertoire("", first, tuple(known) if len(terms) > 1 or start != numbers[0] else first)


class _Decoding:
    """One value being read: the elements in G0 and G1, and where they go back to their first state."""

    def __init__(self, sets: Repertoire, delimiters: frozenset[int]) -> None:
        self._delimiters = delimiters
        self._start = next(element for element in sets.first if not element.high)
        # Some senders designate the upper half once for several components: take the one that can be meant.
        self._start_high = next((element for element in (*sets.first, *sets.known) if element.high), None)
        self._reset()

    def _reset(self) -> None:
        self._low, self._high = self._start, self._start_high

    def run(self, raw: bytes) -> str:
        out: list[str] = []
        at = 0
        while at < len(raw):
            byte = raw[at]
            if byte == _ESC:
                at = self._designate(raw, at + 1)
            elif byte < 0x20 or (byte in self._delimiters and not self._low.double):
                out.append(chr(byte) if byte != 0x5C else "\\")
                at += 1
                if byte in self._delimiters:
                    self._reset()
            else:
                element = self._low if byte < 0x80 else self._high
                if element is None:
                    raise UnicodeDecodeError("dicom", raw, at, at + 1, "no such half of the code table")
                width = 2 if element.double and byte not in (0x20, 0xA0) else 1
                out.append(element.decode(raw[at : at + width]) if width == 1 + element.double else chr(byte))
                at += width
        return "".join(out)

    def _designate(self, raw: bytes, at: int) -> int:
        for length in (3, 2):
            element = _BY_ESCAPE.get(raw[at : at + length])
            if element is not None:
                if element.high:
                    self._high = element
                else:
                    self._low = element
                return at + length
        raise UnicodeDecodeError("dicom", raw, at - 1, at, "an unknown escape sequence")


class _Encoding:
    """One value being written; switches back before every delimiter and at the end (PS3.5 6.1.2.5.3)."""

    def __init__(self, sets: Repertoire, delimiters: frozenset[int]) -> None:
        self._sets, self._delimiters = sets, delimiters
        self._start = next(element for element in sets.first if not element.high)
        self._start_high = next((element for element in sets.first if element.high), None)
        self._low, self._high = self._start, self._start_high
        self._out = bytearray()

    def run(self, text: str) -> bytes | None:
        for char in text:
            if char < " " or (char.isascii() and ord(char) in self._delimiters):
                self._home()
                self._out += char.encode()
                if ord(char) in self._delimiters:
                    self._high = self._start_high
            elif not self._put(char):
                return None
        self._home()
        return bytes(self._out)

    def _home(self) -> None:
        if self._low is not self._start:
            self._out += b"\x1b" + self._start.escape
            self._low = self._start

    def _put(self, char: str) -> bool:
        """Write one character, in what is designated now if it can be."""
        current = [element for element in (self._low, self._high) if element is not None]
        for element in (*current, *self._sets.known):
            raw = element.encode(char)
            if raw is None:
                continue
            if element not in current:
                self._out += b"\x1b" + element.escape
                if element.high:
                    self._high = element
                else:
                    self._low = element
            self._out += raw
            return True
        return False
