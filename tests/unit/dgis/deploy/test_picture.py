"""The picture shows all that a site has, in words that nobody can break out of, and none lies over another."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from lxml import etree

from dgis.deploy import check, picture
from dgis.deploy.canvas import NAMESPACE, plain, width_of
from dgis.deploy.crossings import rows
from dgis.deploy.topology import Site
from tests.helpers.fontwidths import advances
from tests.helpers.madesites import HOSTILE, sites

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
SVG = f"{{{NAMESPACE}}}"


@dataclass(frozen=True)
class Box:
    """A rectangle with what it is."""

    left: float
    top: float
    right: float
    bottom: float
    what: str

    def meets(self, other: Box, slack: float = 0.5) -> bool:
        return (
            self.left < other.right - slack
            and other.left < self.right - slack
            and self.top < other.bottom - slack
            and other.top < self.bottom - slack
        )

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.top <= y <= self.bottom


@dataclass(frozen=True)
class Drawn:
    """A picture taken apart."""

    root: etree._Element
    page: Box
    texts: list[Box]
    boxes: list[Box]
    wires: list[Box]


def drawn(site: Site) -> Drawn:
    root = etree.fromstring(picture.svg(site))
    page = Box(0, 0, float(root.get("width", 0)), float(root.get("height", 0)), "page")
    texts = [text_box(element) for element in root.iter(f"{SVG}text")]
    boxes = [rect_box(element) for element in root.iter(f"{SVG}rect") if element.get("stroke")]
    wires = [wire for element in root.iter(f"{SVG}polyline") for wire in wire_boxes(element)]
    return Drawn(root, page, texts, boxes, wires)


def text_box(element: etree._Element) -> Box:
    """Where the letters are: from the height of capitals to the depth of a p."""
    x, y, size = (float(element.get(key, 0)) for key in ("x", "y", "font-size"))
    width = real_width(element.text or "", size, bold=element.get("font-weight") == "bold")
    return Box(x, y - 0.76 * size, x + width, y + 0.24 * size, element.text or "")


def real_width(text: str, size: float, *, bold: bool) -> float:
    """By the font where it is installed; by the picture's own estimate where it is not, or lacks a letter."""
    face = advances(bold) or {}
    return sum(face[ord(char)] * size if ord(char) in face else width_of(char, size, bold=bold) for char in text)


def rect_box(element: etree._Element) -> Box:
    x, y, width, height = (float(element.get(key, 0)) for key in ("x", "y", "width", "height"))
    return Box(x, y, x + width, y + height, "box")


def wire_boxes(element: etree._Element) -> Iterator[Box]:
    """Each stretch of a wire as a thin box."""
    points = [tuple(map(float, point.split(","))) for point in element.get("points", "").split()]
    for (x0, y0), (x1, y1) in pairwise(points):
        yield Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1, f"wire {x0},{y0} {x1},{y1}")


def looks_right(site: Site) -> None:
    found = drawn(site)
    for one, other in combinations(found.texts, 2):
        assert not one.meets(other), (one, other)
    for text in found.texts:
        assert text.what.strip() == text.what != ""
        assert found.page.holds(text.left, text.top) and found.page.holds(text.right, text.bottom), text
        for box in found.boxes:
            if box.holds(text.left, (text.top + text.bottom) / 2):
                assert box.holds(text.right, text.bottom) and box.holds(text.left, text.top), (text, box)
        for wire in found.wires:
            assert not wire.meets(text), (wire, text)
    for one, other in combinations(found.boxes, 2):
        apart = not one.meets(other)
        within = any(a.holds(b.left, b.top) and a.holds(b.right, b.bottom) for a, b in ((one, other), (other, one)))
        assert apart or within, (one, other)
    assert found.page.right <= (1070 if len(site.hosts) == 1 else 400 + 620 * len(site.hosts))


@every_example
def test_nothing_lies_over_another_in_an_example(path: Path) -> None:
    looks_right(check.load(path))


@settings(max_examples=60)
@given(sites())
def test_nothing_lies_over_another_in_any_site(site: Site) -> None:
    looks_right(site)


def test_the_estimate_of_widths_is_never_too_small() -> None:
    for bold in (False, True):
        face = advances(bold)
        if face is None:
            pytest.skip("DejaVu Sans is not installed: apt-get install fonts-dejavu-core")
        for text in (
            "TCP 50000-50099",
            "store, gate",
            "WWWW mmmm iiii",
            "Žďár nad Sázavou",
            "10.77.0.11",
            "firr fftt",
            "<&>",
        ):
            assert real_width(text, 12, bold=bold) <= width_of(text, 12, bold=bold) + 0.01, (text, bold)


def shown(site: Site) -> None:
    root = etree.fromstring(picture.svg(site))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    named = [(element.text, element.get("font-size")) for element in root.iter(f"{SVG}text")]
    for guest in site.guests:
        assert named.count((guest.name, "14")) == 1 and str(guest.address) in texts
        if guest.dimse is not None:
            assert guest.dimse.aet in texts
            for entity in guest.dimse.aes:
                assert entity.title in texts
    for host in site.hosts:
        assert named.count((host.name, "16")) == 1
    for peer in site.peers:
        assert f"site {peer.site}" in texts and str(peer.public) in texts
    ports = {f"{row.protocol.upper()} {row.ports}" for row in rows(site) if row.direction != "inner"}
    assert {text for text in texts if text and text.startswith(("TCP ", "UDP "))} >= ports


@every_example
def test_an_example_shows_all_that_the_site_has(path: Path) -> None:
    shown(check.load(path))


@settings(max_examples=40)
@given(sites())
def test_any_site_is_shown_whole_and_as_words(site: Site) -> None:
    shown(site)
    harmless(picture.svg(site), site.title)


def harmless(written: bytes, title: str) -> None:
    """Only shapes and words, nothing that runs, loads or links; the title is there letter by letter."""
    root = etree.fromstring(written)
    known = {"svg", "title", "desc", "rect", "text", "polyline", "polygon"}
    assert {etree.QName(element).localname for element in root.iter()} <= known
    names = {str(name) for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith(("on", "{")) or name in ("href", "style", "class")]
    assert written.startswith(b"<?xml") and b"<!" not in written
    texts = [element.text or "" for element in root.iter(f"{SVG}text") if element.get("font-size") == "22"]
    assert "".join(texts).replace(" ", "") == plain(title).replace(" ", "")


@pytest.mark.parametrize("title", [*HOSTILE, "half \ud83c of a pair", "a\u0300" * 90, "\x85"])
def test_hostile_titles_stay_words(title: str) -> None:
    site = replace(check.load(EXAMPLES[0]), title=title)
    harmless(picture.svg(site), title)
    looks_right(site)


def test_it_can_be_heard() -> None:
    root = etree.fromstring(picture.svg(check.load(next(path for path in EXAMPLES if path.stem == "dmz-pair"))))
    assert root.get("role") == "img" and root.get("aria-labelledby") == "title description"
    assert root.findtext(f"{SVG}title") == "Site brno: University hospital Brno"
    description = root.findtext(f"{SVG}desc") or ""
    assert (
        "Guests: front (front), store (storage), gate (dgis)." in description and "Other sites: motol." in description
    )


def test_panels_say_who_comes_and_where_to() -> None:
    motol = [box.what for box in drawn(check.load(next(p for p in EXAMPLES if p.stem == "hospital"))).texts]
    for words in (
        "from site bulovka",
        "from sites bulovka, brno",
        "to site brno",
        "from viewers and modalities",
        "to VIEWER1",
        "to package proxy",
    ):
        assert words in motol
    assert "GridFTP connecting back (MODE E) to gate" in motol and "HTTPS, SFTP to meta, store1, store2" in motol
    cesnet = [box.what for box in drawn(check.load(next(p for p in EXAMPLES if p.stem == "pilot-cesnet"))).texts]
    assert "from sites lf1, uvn" in cesnet and "from anybody" in cesnet and "wiki to wiki" in cesnet


def test_hosts_behind_are_joined_and_a_translating_firewall_stands_in_front() -> None:
    texts = [box.what for box in drawn(check.load(next(p for p in EXAMPLES if p.stem == "dmz-pair"))).texts]
    assert "inner wire 10.32.0.0/24" in texts
    assert "Firewall of the institution: 198.51.100.80 outside is 10.31.0.10 inside" in texts
    plainly = [box.what for box in drawn(check.load(next(p for p in EXAMPLES if p.stem == "hospital"))).texts]
    assert not [text for text in plainly if text.startswith(("inner wire", "Firewall"))]


def test_words_are_dark_enough_on_their_ground() -> None:
    """WCAG 2.1, 1.4.3: 4.5 to 1 for text of this size. The ground of a word is the smallest box around it."""
    for path in EXAMPLES:
        root = etree.fromstring(picture.svg(check.load(path)))
        grounds = [
            (rect_box(element), element.get("fill", "")) for element in root.iter(f"{SVG}rect") if element.get("rx")
        ]
        for element in root.iter(f"{SVG}text"):
            box = text_box(element)
            around = [(each.right - each.left, fill) for each, fill in grounds if each.holds(box.left, box.bottom)]
            ground = min(around, default=(0.0, "#ffffff"))[1]
            lights = sorted((luminance(ground), luminance(element.get("fill", ""))))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, (box.what, ground, element.get("fill"))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_site_without_guests_and_peers_can_be_drawn() -> None:
    site = replace(check.load(EXAMPLES[0]), guests=(), peers=())
    looks_right(site)
    assert "no guests" in [box.what for box in drawn(site).texts]


def test_the_same_file_gives_the_same_picture() -> None:
    assert picture.svg(check.load(EXAMPLES[0])) == picture.svg(check.load(EXAMPLES[0]))


@every_example
def test_a_renderer_takes_it(path: Path, tmp_path: Path) -> None:
    if shutil.which("rsvg-convert") is None:
        pytest.skip("rsvg-convert is missing: apt-get install librsvg2-bin")
    (tmp_path / "site.svg").write_bytes(picture.svg(check.load(path)))
    command = ["rsvg-convert", str(tmp_path / "site.svg"), "-o", str(tmp_path / "site.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    image = (tmp_path / "site.png").read_bytes()
    width = int.from_bytes(image[16:20])
    assert image.startswith(b"\x89PNG") and 900 <= width <= 1100
