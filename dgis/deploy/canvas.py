"""A small drawing board: boxes, arrows and lines of text as SVG, made by lxml so that no word can become markup. Pure.

Lengths are pixels. Text is measured without a font: widths are those of DejaVu Sans, the widest of the faces that
`system-ui` and `sans-serif` stand for on common systems, so that what fits here fits everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lxml import etree

NAMESPACE: Final = "http://www.w3.org/2000/svg"
INK, MUTED, PAPER = "#16202b", "#4a5866", "#ffffff"
LEADING: Final = 1.42  # from one line to the next, in sizes
_ASCENT: Final = 0.98  # from the top of a line to its base line
# Advance widths in sizes, by character; whatever is not listed is as wide as a digit
_WIDTHS: Final[tuple[tuple[float, str], ...]] = (
    (0.30, "'ijlIJ"),
    (0.36, " ,./:;\\|-"),
    (0.42, "()[]ft!r"),
    (0.53, '"*_`sz?'),
    (0.60, "cLFkvxyPTYao"),
    (0.70, "KAVBRXZC"),
    (0.80, "UHNDG&OQw"),
    (0.87, "#+<=>^~M"),
    (1.00, "%mW@"),
)
_WIDTH_OF: Final = {char: width for width, chars in _WIDTHS for char in chars}
_BOLD: Final = 1.15
# What XML 1.0 cannot hold (2.2), and marks that would turn or stack the letters around them
_UNWRITABLE = re.compile("[^\t\n\r -\U0010ffff]|[\ud800-\udfff\ufffe\uffff\u200b-\u200f\u202a-\u202e\u2060-\u2069]")


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of the picture; y grows downwards."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text. `indent` is from the left edge of its box, `below` room beneath it, `beside` on its height."""

    text: str
    size: float = 12
    bold: bool = False
    colour: str = INK
    indent: float = 0
    below: float = 0
    beside: tuple[Line, ...] = ()

    @property
    def height(self) -> float:
        return self.size * LEADING + self.below

    @property
    def width(self) -> float:
        own = self.indent + width_of(self.text, self.size, bold=self.bold)
        return max((own, *(line.width for line in self.beside)))


def plain(text: str) -> str:
    """One line of what can be written, whatever came."""
    return " ".join(_UNWRITABLE.sub("\ufffd", text).split())


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """How wide a text gets at most."""
    return sum(map(_width_of, text)) * size * (_BOLD if bold else 1)


def _width_of(char: str) -> float:
    if char.isascii():
        return _WIDTH_OF.get(char, 0.64)
    base = unicodedata.normalize("NFD", char)[0]
    if base.isascii():
        return _WIDTH_OF.get(base, 0.64) + 0.08
    # Letters of other scripts are at most an em, those of East Asia and pictures somewhat more in some faces
    return 1.2 if unicodedata.east_asian_width(char) in "WF" else 1.05


def wrapped(
    text: str, width: float, *, size: float = 12, bold: bool = False, colour: str = INK, indent: float = 0
) -> list[Line]:
    """The text in lines that are at most `width` wide, indent included; words that are too long are cut."""
    lines: list[str] = []
    for word in plain(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(joined, size, bold=bold) <= width - indent:
            lines[-1] = joined
        else:
            lines += _pieces(word, width - indent, size, bold=bold)
    return [Line(each, size, bold, colour, indent) for each in lines]


def _pieces(word: str, width: float, size: float, *, bold: bool) -> list[str]:
    pieces, rest = [], word
    while width_of(rest, size, bold=bold) > width and len(rest) > 1:
        fits = 1
        while width_of(rest[: fits + 1], size, bold=bold) <= width:
            fits += 1
        pieces.append(rest[:fits])
        rest = rest[fits:]
    return [*pieces, rest]


def height_of(lines: Iterable[Line]) -> float:
    """How high lines get beneath one another."""
    return sum(line.height for line in lines)


class Canvas:
    """The picture under way. `title` and `description` are for those who hear it read."""

    def __init__(self, title: str, description: str) -> None:
        self.root = etree.fromstring(f'<svg xmlns="{NAMESPACE}"/>')
        self.root.set("role", "img")
        self.root.set("aria-labelledby", "title description")
        self.root.set("font-family", "system-ui, sans-serif")
        self._add("title", {"id": "title"}).text = plain(title)
        self._add("desc", {"id": "description"}).text = plain(description)
        self._paper = self._add("rect", {"x": "0", "y": "0", "fill": PAPER})

    def box(self, area: Area, *, fill: str, stroke: str, radius: float = 6, dash: str = "") -> None:
        """A rectangle with round corners."""
        element = self._add(
            "rect", {"x": _n(area.x), "y": _n(area.y), "rx": _n(radius), "fill": fill, "stroke": stroke}
        )
        element.set("width", _n(area.width))
        element.set("height", _n(area.height))
        if dash:
            element.set("stroke-dasharray", dash)

    def text(self, x: float, top: float, line: Line) -> None:
        """A line of text whose box has its left upper corner there."""
        for other in line.beside:
            self.text(x, top, other)
        if not line.text:
            return
        element = self._add("text", {"x": _n(x + line.indent), "y": _n(top + line.size * _ASCENT)})
        element.set("font-size", _n(line.size))
        element.set("fill", line.colour)
        if line.bold:
            element.set("font-weight", "bold")
        element.text = line.text

    def lines(self, x: float, top: float, lines: Iterable[Line]) -> float:
        """Lines beneath one another; returns where the next one would begin."""
        for line in lines:
            self.text(x, top, line)
            top += line.height
        return top

    def wire(self, points: Sequence[tuple[float, float]], *, colour: str, head: bool = False, dash: str = "") -> None:
        """A line through points, with an arrow head at the last one; the last stretch is upright or level."""
        (x0, y0), (x1, y1) = points[-2:]
        if head:
            size = 7.0
            dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
            base = (x1 - dx * size, y1 - dy * size)
            wings = [(base[0] + dy * size * 0.6 * s, base[1] + dx * size * 0.6 * s) for s in (1, -1)]
            self._add("polygon", {"points": _points([(x1, y1), *wings]), "fill": colour})
            points = [*points[:-1], base]
        element = self._add("polyline", {"points": _points(points), "fill": "none", "stroke": colour})
        element.set("stroke-width", "2")
        if dash:
            element.set("stroke-dasharray", dash)

    def triangle(self, x: float, top: float, size: float, *, colour: str, right: bool) -> None:
        """A small arrow head alone, as a mark before a text."""
        base, tip = (x, x + size) if right else (x + size, x)
        corners = [(base, top), (base, top + size), (tip, top + size / 2)]
        self._add("polygon", {"points": _points(corners), "fill": colour})

    def finished(self, width: float, height: float) -> bytes:
        """The picture of that size as a file."""
        for element in (self.root, self._paper):
            element.set("width", _n(width))
            element.set("height", _n(height))
        self.root.set("viewBox", f"0 0 {_n(width)} {_n(height)}")
        written: bytes = etree.tostring(self.root, encoding="utf-8", xml_declaration=True, pretty_print=True)
        return written

    def _add(self, tag: str, attributes: dict[str, str]) -> etree._Element:
        return etree.SubElement(self.root, f"{{{NAMESPACE}}}{tag}", attributes)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
