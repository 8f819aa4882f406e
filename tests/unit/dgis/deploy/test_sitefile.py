"""Site files: what a text means, and that every mistake is told with its line, whatever stands in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dgis.deploy import check, sitefile
from dgis.deploy.errors import SiteFileError
from dgis.deploy.model import SiteFile
from tests.helpers import sitefiles
from tests.helpers.sitefiles import Spoiled

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
FILE = f"""\
# a hospital
site: here
organisation: Grid
domain: here.example
hypervisor: {{kind: kvm}}
admins: [192.0.2.0/28]
admin_keys:
  - {sitefiles.KEY}
hosts:
  - name: kvm1
    uplink: {{interface: eth0, address: 198.51.100.10/24}}
    networks:
      - {{name: grid, bridge: br0, cidr: 10.77.0.0/24}}
guests:
  - name: store
    host: kvm1
    address: 10.77.0.11
    roles: [storage]
    memory: 2 GiB
    gridftp: {{data: 50000-50009}}
    sftp: 443
peers:
  - site: there
    domain: there.example
    address: 203.0.113.5
    guests:
      - name: gate
        roles: [dgis]
        stock: yes
"""


def findings(text: str, *, fit: bool = True) -> list[str]:
    """What is said of a text, without the file's name; `fit` asks for what does not fit together, too."""
    with pytest.raises(SiteFileError) as error:
        file, source = sitefile.parse(text, "f.yml")
        if fit:
            check.resolved(file, source)
    said = [str(finding) for finding in error.value.findings]
    assert said and all(line.startswith("f.yml") and line.isprintable() for line in said), said
    return [line.removeprefix("f.yml") for line in said]


def with_line(old: str, new: str) -> str:
    assert FILE.count(old) == 1
    return FILE.replace(old, new)


# What a text means


def test_a_plain_file_is_read() -> None:
    file, source = sitefile.parse(FILE, "f.yml")
    assert check.resolved(file, source).name == "here"
    assert file.guests[0].memory == 2 * 2**30 and file.peers[0].guests[0].stock is True
    assert file.guests[0].gridftp is not None and (file.guests[0].gridftp.data.first, file.guests[0].sftp) == (
        50000,
        443,
    )


@settings(max_examples=30)
@given(sitefiles.documents(), st.booleans())
def test_every_valid_document_is_read_as_it_is_meant(document: dict[str, Any], flow: bool) -> None:
    text = json.dumps(document) if flow else sitefiles.text(document)
    assert sitefile.parse(text, "f.yml")[0] == SiteFile.model_validate(document)
    assert sitefile.parse("\ufeff" + text.replace("\n", "\r\n"), "f.yml")[0] == SiteFile.model_validate(document)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_mean_what_yaml_says(path: Path) -> None:
    assert sitefile.read(path)[0] == SiteFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("word", ["no", "yes", "on", "null-1", "e1"])
def test_words_are_words(word: str) -> None:
    assert sitefile.parse(with_line("site: here", f"site: {word}"), "f.yml")[0].site == word


@pytest.mark.parametrize(
    ("written", "meant"),
    [("0443", 443), ("+443", 443), ('"443"', 443)],
)
def test_numbers_are_decimal(written: str, meant: int) -> None:
    assert sitefile.parse(with_line("sftp: 443", f"sftp: {written}"), "f.yml")[0].guests[0].sftp == meant


@pytest.mark.parametrize("written", ["yes", "true", "0x1bb", "0b11", "1:30", "4.43e2", "2024-01-01", ".inf"])
def test_what_yaml_turns_into_numbers_is_no_port(written: str) -> None:
    assert findings(with_line("sftp: 443", f"sftp: {written}")) == [":21: guests.store.sftp: write a whole number"]


IF_MEANT = "admins.1: write an IPv4 network like 192.0.2.0/24, an address, or any, or 192.0.2.0/28 if you mean"

# Mistakes, each with its line and what to write


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("site: here", "site: Here", 2, "site: write a name of 1 to 15 small letters"),
        ("site: here", "Site: here", 2, "Site: unknown key; did you mean 'site'?"),
        ("organisation: Grid\n", "", 2, "organisation: is missing: add it"),
        ("hypervisor: {kind: kvm}", "hypervisor: {kind: vmware}", 5, "hypervisor.kind: write 'xen' or 'kvm'"),
        ("hypervisor: {kind: kvm}", "hypervisor: kvm", 5, "hypervisor: write keys with values"),
        ("{kind: kvm}", "{kind: kvm, type: pv}", 5, "hypervisor: type (pv or pvh) belongs to xen: leave it out"),
        ("admins: [192.0.2.0/28]", "admins: []", 6, "admins: write at least 1"),
        ("admins: [192.0.2.0/28]", "admins: 192.0.2.0/28", 6, "admins: write a list"),
        ("[192.0.2.0/28]", "[192.0.2.1/28]", 6, IF_MEANT),
        ("[192.0.2.0/28]", "[2001:db8::/32]", 6, "admins.1: write an IPv4 network"),
        ("    uplink: {interface: eth0, address: 198.51.100.10/24}\n", "", 10, "hosts.kvm1: give an uplink, or "),
        ("address: 198.51.100.10/24", "address: 198.51.100.10", 11, "hosts.kvm1.uplink.address: write an "),
        ("interface: eth0", "interface: eth0; rm", 11, "hosts.kvm1.uplink.interface: write an interface name"),
        ("    host: kvm1\n", "", 15, "guests.store.host: is missing: add it"),
        ("address: 10.77.0.11", "address: 10.77.0.256", 17, "guests.store.address: write an IPv4 address like"),
        ("roles: [storage]", "roles: [store]", 18, "guests.store.roles.1: write 'dgis', 'catalog', 'storage', 'ca' or"),
        ("roles: [storage]", "roles: []", 15, "guests.store: gridftp belongs to the role storage: add it to roles"),
        ("memory: 2 GiB", "memory: 2 GibiB", 19, 'guests.store.memory: write a size like "20 GB" or "512 MiB"'),
        ("memory: 2 GiB", f"memory: {'9' * 400} GiB", 19, 'guests.store.memory: write a size like "20 GB"'),
        ("memory: 2 GiB", "memory: -1", 19, "guests.store.memory: write a number from 0 on"),
        ("data: 50000-50009", "data: 50009-50000", 20, "guests.store.gridftp.data: ports are 1 to 65535, lowest first"),
        ("data: 50000-50009", "data: many", 20, "guests.store.gridftp.data: write a port like 2811, or a range like"),
        ("data: 50000-50009", "port: 2811", 20, "guests.store.gridftp.data: is missing: add it"),
        ("sftp: 443", "sftp: 65536", 21, "guests.store.sftp: write a number up to 65535"),
        ("roles: [dgis]", "roles: [ca]", 28, "peers.there.guests.gate.roles.1: write 'dgis', 'catalog' or 'storage'"),
        ("stock: yes", "stock: maybe", 29, "peers.there.guests.gate.stock: write true or false"),
        ("stock: yes", "stocks: yes", 29, "peers.there.guests.gate.stocks: unknown key; did you mean 'stock'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_write(old: str, new: str, line: int, says: str) -> None:
    said = findings(with_line(old, new))
    assert any(each.startswith(f":{line}: {says}") for each in said), said


def test_several_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = with_line("site: here", "site: HERE").replace("sftp: 443", "sftp: 0").replace("192.0.2.0/28", "nowhere")
    assert [each.split(": ")[0] for each in findings(text)] == [":2", ":6", ":21"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: a site file is a list of keys: begin with site: NAME"),
        ("- site\n", ":1: a site file is a list of keys: begin with site: NAME"),
        ("site: a\nsite: b\n", ":2: site: stands here twice; keep one"),
        ("site: a\nhosts:\n  - {name: a, ssh: 1, name: b}\n", ":3: name: stands here twice; keep one"),
        ("site: a\n? [b]\n: c\n", ":2: write a word as the key, like site: NAME"),
        ("a: &x [1]\nb: *x\n", ":1: write it out: no & and * here"),
        ("a: 1\nb: &x [*x]\n", ":2: write it out: no & and * here"),
        ("a: *x\n", ":1: not valid YAML: found undefined alias 'x'"),
        ("site: a\n\t- b\n", ":2: not valid YAML: "),
        ("site: a\nb: [1\n", ":3: not valid YAML: while parsing a flow sequence expected ',' or ']'"),
        ("site: a\n---\nsite: b\n", ":2: not valid YAML: expected a single document in the stream"),
        ("site: a\nb: \0\n", ":2: not valid YAML: take out the character U+0000"),
        ("site: a\n\nb: \x1b[2J\n", ":3: not valid YAML: take out the character U+001B"),
        ('site: a\nb: "\\UFFFFFFFF"\n', ":2: not valid YAML: there are no such numbers"),
        ('site: a\nb: "\\ud800"\n', ":2: write whole characters: half of a pair is none"),
        ('"\\ud800": a\n', ":1: write whole characters: half of a pair is none"),
        ("site: a\nb: !!timestamp x\n", ":2: write it without the tag !!timestamp"),
        ("site: a\nb: !!python/object:os.system x\n", ":2: write it without the tag !!python/object:os.system"),
        ("!!set {a, b}\n", ":1: write it without the tag !!set"),
        ("site: a\nb: " + "[" * 5000, ":2: nested too deep for a site file: write it flatter"),
    ],
)
def test_what_yaml_can_and_a_site_file_does_not_mean(text: str, says: str) -> None:
    assert findings(text)[0].startswith(says)


def test_names_in_messages_are_plain_words() -> None:
    text = with_line("name: store", 'name: "\\e[31m\\nred\\u202e' + "x" * 100 + '"')
    assert findings(text)[0].startswith(":15: guests.?[31m?red?xxx")
    text = with_line("site: here", '"a\\nb\\e": here')
    assert any(each.startswith(":2: a?b?: unknown key; known keys: ") for each in findings(text))


@settings(max_examples=40)
@given(sitefiles.spoiled())
def test_any_mistake_in_any_file_is_told_at_its_line(made: Spoiled) -> None:
    try:
        check.resolved(*sitefile.parse(made.text, "f.yml"))
    except SiteFileError as error:
        last = made.text.count("\n") + 1
        assert all(1 <= finding.line <= last and len(finding.text) > 10 for finding in error.findings)
        blamed = {finding.line for finding in error.findings}
        # A list in block style begins on the line after its key
        assert made.line == 0 or blamed & {made.line, made.line - (made.what == "list")}, error
    else:
        assert made.what in ("gone", "none") or (made.what == "value" and made.key in ("organisation", "title")), made


# Files


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    with pytest.raises(SiteFileError, match=r"f.yml: cannot be read: No such file"):
        sitefile.read(path)
    with pytest.raises(SiteFileError, match=r"cannot be read: Is a directory"):
        sitefile.read(tmp_path)
    with pytest.raises(SiteFileError, match=r"zero: a site file has at most 1 MiB"):
        sitefile.read(Path("/dev/zero"))
    path.write_bytes(b"site: a\ntitle: K\xe4se\n")
    with pytest.raises(SiteFileError, match=r"f.yml:2: is not UTF-8 text: save it as that"):
        sitefile.read(path)
    path.write_bytes(FILE.encode() + b"#" * sitefile.MOST_BYTES)
    with pytest.raises(SiteFileError, match=r"f.yml: a site file has at most 1 MiB"):
        sitefile.read(path)
    path.write_bytes(FILE.encode().ljust(sitefile.MOST_BYTES, b"#"))
    assert sitefile.read(path)[0].site == "here"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is written again and again."""
    return tmp_path_factory.mktemp("fuzz") / "f.yml"


def nothing_but_findings(path: Path) -> None:
    """Read and check a file, whatever stands in it."""
    try:
        check.load(path)
    except SiteFileError as error:
        last = path.read_bytes().count(b"\n") + path.read_bytes().count(b"\r") + 9
        assert error.findings and all(str(each).isprintable() for each in error.findings)
        assert all(0 <= each.line <= last and each.file == str(path) for each in error.findings)


@settings(max_examples=100)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-16")))
@example(b"\xef\xbb\xbf" + FILE.encode())
def test_no_bytes_end_in_a_traceback(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    nothing_but_findings(place)


WORDS = st.sampled_from((
    "a", "site", "hosts", "guests", "name", "peers", ": ", ":", "- ", "\n", "\n  ", "\n- ", "? ", "{", "}", "[", "]",
    ",", "&x ", "*x", "!!int ", "!!binary ", "!!timestamp ", "!!bool ", "!!float ", "!x ", "<<", "|", ">", "'", '"',
    "\\U", "\\x", "0x", "1:2", "2024-13-45", "~", "%YAML 1.", "---\n", "...\n", "\t", "\r", "\u2028", "#", "9" * 5000,
    "é", "\0", "1e999",
))  # fmt: skip


@settings(max_examples=300)
@given(st.lists(WORDS, max_size=25).map("".join))
def test_no_yaml_ends_in_a_traceback(place: Path, text: str) -> None:
    place.write_bytes(text.encode())
    nothing_but_findings(place)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@settings(max_examples=20000)
@given(st.lists(WORDS, max_size=60).map("".join))
def test_no_yaml_of_thousands_does(place: Path, text: str) -> None:
    place.write_bytes(text.encode())
    nothing_but_findings(place)


scalars = st.sampled_from((
    None, True, -1, 0, 1, 443, 65536, 10**20, 1.5, "", "any", "x" * 3000, "9" * 400 + " GB", "9" * 400, "0.0.0.0/0",
    "::", "10.77.0.11", "10.77.0.0/24", "1-2", "50000-50009", "store", "kvm1", "storage", "/", "/O=x", "/O==/=", "é",
    "\ud83d", "\x85",
))  # fmt: skip
structures = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("name", "a", "")), inner)
)


@st.composite
def strange(draw: st.DrawFn) -> bytes:
    """A valid document with some values that are none."""
    document = draw(sitefiles.documents())
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(sitefiles.places(document)))
        holder[key] = draw(structures)
    return str(yaml.safe_dump(document, allow_unicode=False)).encode()


@settings(max_examples=80)
@given(strange())
def test_no_value_anywhere_ends_in_a_traceback(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    nothing_but_findings(place)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@settings(max_examples=5000)
@given(strange())
def test_no_value_of_thousands_does(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    nothing_but_findings(place)
