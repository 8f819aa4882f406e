"""Every artefact of every example, as `dgis deploy render` writes it, is accepted by what reads it on a real machine.

One table: a kind of file, who reads it, and a mistake that this reader must find, so that its yes means something. What
the accepted files then say is tested beside: test_libvirt, test_xen, test_cloudinit, test_services, test_inventory.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from certs import ca
from dgis.cli.deploy import command
from dgis.deploy import check
from tests.helpers import readers
from tests.helpers.readers import Missing, Reader, by_commands, by_python
from tests.helpers.xen import cache_folder

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images" / "examples").glob("*.yml"))
GUEST = r"[^/]+/seed/[^/]+"
ETC = rf"{GUEST}/files/etc"
GONE = ""  # a mistake: the file is not there


@dataclass(frozen=True, slots=True)
class Kind:
    """Files whose path below the tree matches, their reader, and a mistake: what is replaced (once), by what."""

    name: str
    path: str
    reader: Reader
    mistake: tuple[str, str]


def kinds(cache: Path) -> tuple[Kind, ...]:
    """What `render` makes."""
    nft = by_commands(("nft", "-c", "-f", "FILE"), own_user=True)
    legacy = ("iptables-legacy-restore", "--test", "--noflush", "FILE")
    iptables = by_commands(("iptables-nft-restore", "--test", "--noflush", "FILE"), legacy, own_user=True)
    domain = by_commands(("virt-xml-validate", "FILE", "domain"), (*VIRSH, "define", "--validate", "FILE"))
    network = by_commands(("virt-xml-validate", "FILE", "network"), (*VIRSH, "net-define", "--validate", "FILE"))
    new_key = ("-noenc", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "/dev/null")
    request = by_commands(("openssl", "req", "-new", "-config", "FILE", *new_key, "-verify"))
    shell = by_commands(("sh", "-n", "FILE"))
    service, certificate, key = map(by_python, (readers.service, readers.certificate, readers.key))
    ca_file, sheet, ssh = by_python(readers.trust), by_python(readers.sheet), readers.ssh_config
    front, host, init, xl = readers.front, readers.host_files, readers.cloud_init, readers.xl(cache)
    login, picture = (
        by_commands(("ssh-keygen", "-l", "-f", "FILE")),
        by_commands(("rsvg-convert", "-f", "svg", "FILE")),
    )
    text = r"(?s)^.*$"
    return (
        Kind("nftables", r"[^/]+/nat\.nft", nft, ("dport", "dprt")),
        Kind("iptables", r"[^/]+/nat\.iptables", iptables, ("--dport", "--dprt")),
        Kind("sysctl", r"[^/]+/sysctl\.conf", host, ("ip_forward", "ip_forwards")),
        Kind("networkd wire or bridge", r"[^/]+/networkd/[^/]+\.network", host, ("Address=", "Adress=")),
        Kind("networkd device", r"[^/]+/networkd/[^/]+\.netdev", host, ("Kind=bridge", "Kind=bidge")),
        Kind("front", rf"([^/]+|{ETC}/haproxy)/haproxy\.cfg", front, ("frontend", "fontend")),
        Kind("front's networks", rf"([^/]+|{ETC}/haproxy)/front-networks\.map", front, (r"^\d+\.", "999.")),
        Kind("front's routes", rf"([^/]+|{ETC}/haproxy)/front-routes\.map", front, (text, GONE)),
        Kind("libvirt network", r"[^/]+/libvirt/networks/[^/]+\.xml", network, ("<bridge", "<brigde")),
        Kind("libvirt domain", r"[^/]+/libvirt/[^/]+\.xml", domain, (r"<vcpu>\d+</vcpu>", "<vcqu/>")),
        Kind("xl", r"[^/]+/xen/[^/]+\.cfg", xl, (r"memory = \d+", 'memory = "much"')),
        Kind("user-data", rf"{GUEST}/user-data", init, (r"ssh_pwauth: false", "ssh_pwauth: [1]")),
        Kind("meta-data", rf"{GUEST}/meta-data", init, ("instance-id", "instance_id")),
        Kind("network-config", rf"{GUEST}/network-config", init, (r"0\.0\.0\.0/0", "everywhere")),
        Kind("seed image", r"[^/]+/seed/[^/]+\.iso", readers.seed_image, ("CD001", "CD002")),
        Kind("service", rf"{ETC}/dgis/\w+/(?!ae)\w+\.toml", service, ("https|server", "sever")),
        Kind("AE table", rf"{ETC}/dgis/node/ae\.toml", service, ("title", "tilte")),
        Kind("gridmap", rf"{ETC}/dgis/gridmap", service, ("gateway|catalog|storage$", "king")),
        Kind("request", rf"{ETC}/dgis/\w+/\w+\.csr\.cnf", request, ("@names", "@nmaes")),
        Kind("certificate", rf"{ETC}/dgis/\w+/\w+\.cert\.pem", certificate, (r"-\n.{40}", f"-\n{'A' * 40}")),
        Kind("key", rf"{ETC}/dgis/\w+/\w+\.key\.pem", key, (text, "")),
        Kind("peer's certificate", rf"{ETC}/dgis/ssh_peers/.+\.pem", certificate, (r"-\n.{40}", f"-\n{'A' * 40}")),
        Kind("authorities", rf"{ETC}/dgis/trust/ca\.pem", ca_file, (r"-\n.{40}", f"-\n{'A' * 40}")),
        Kind("authority", rf"{ETC}/dgis/trust/\w+\.0", ca_file, (text, "")),
        Kind("CRL", rf"{ETC}/dgis/trust/\w+\.r0", ca_file, (text, "")),
        Kind("signing policy", rf"{ETC}/dgis/trust/\w+\.signing_policy", ca_file, ("/O=", "/O=Not ")),
        Kind("inventory", r"inventory/hosts\.yml", readers.ansible, ("children:", "childen:")),
        Kind("variables", r"inventory/host_vars/.+\.yml", readers.ansible, (r"\A", "{")),
        Kind("ssh", r"inventory/ssh_config", ssh, ("HostName", "HostNmae")),
        Kind("names", r"inventory/etc_hosts/.+", readers.etc_hosts, (r"(?m)^(?!127)\d+\.", "999.")),
        Kind("logins", r"inventory/authorized_keys", login, ("AAAA", "BBBB")),
        Kind("registration", r"register\.sh", shell, ("dgis se", "'dgis se")),
        Kind("site file", r"site\.yml", by_python(check.load), (r"(?m)^domain:", "doamin:")),
        Kind("sheet", r"exceptions\.md", sheet, (r"\n\| -", r"\n- | -")),
        Kind("sheet for a spreadsheet", r"exceptions\.csv", sheet, (r"\A", "a,")),
        Kind("picture", r"site\.svg", picture, ("</text>", "</txet>")),
    )


VIRSH = ("virsh", "-c", "test:///default")
NAMES = [kind.name for kind in kinds(Path())]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds(cache_folder(tmp_path_factory))}


def deploy(*words: object) -> str:
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tree of each example, with certificates, as an operator makes them."""
    folder, made = tmp_path_factory.mktemp("accepted"), []
    for example in EXAMPLES:
        organisation = check.load(example).organisation
        home, certs, out = folder / organisation, folder / "certs" / example.stem, folder / "out" / example.stem
        if not home.exists():
            ca.init_site(home, organisation=organisation)
        deploy("certificates", example, "--home", home, "--out", certs)
        deploy("render", example, "--out", out, "--certs", certs)
        made.append(out)
    return made


def files(tree: Path) -> dict[str, Path]:
    """What was rendered, by its path below the tree; `.rendered` is the renderer's own note of it."""
    found = (path for path in sorted(tree.rglob("*")) if path.is_file() and path.name != ".rendered")
    return {path.relative_to(tree).as_posix(): path for path in found}


def of_kind(kind: Kind, tree: Path) -> list[Path]:
    return [path for name, path in files(tree).items() if re.fullmatch(kind.path, name)]


def complaints(kind: Kind, paths: list[Path]) -> dict[Path, str]:
    try:
        return kind.reader(paths)
    except Missing as error:
        pytest.skip(f"{kind.name}: {error}")


def test_every_file_is_of_one_kind_and_every_kind_has_files(trees: list[Path], table: dict[str, Kind]) -> None:
    """A new artefact needs a reader."""
    seen = set()
    for tree in trees:
        for name in files(tree):
            (kind,) = [kind.name for kind in table.values() if re.fullmatch(kind.path, name)] or [f"{name}: none"]
            seen.add(kind)
    assert seen == set(table)


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_its_reader_takes_every_file(name: str, trees: list[Path], table: dict[str, Kind]) -> None:
    paths = [path for tree in trees for path in of_kind(table[name], tree)]
    assert complaints(table[name], paths) == {}


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_its_reader_refuses_a_mistake(name: str, trees: list[Path], table: dict[str, Kind], tmp_path: Path) -> None:
    kind, tree = table[name], tmp_path / "tree"
    shutil.copytree(next(tree for tree in trees if of_kind(kind, tree)), tree)
    path = max(of_kind(kind, tree), key=lambda path: path.stat().st_size)
    before, (old, new) = path.read_bytes(), kind.mistake
    path.write_bytes(re.sub(old.encode(), new.encode(), before, count=1))
    assert path.read_bytes() != before
    if new == GONE:
        path.unlink()
    assert complaints(kind, [path]).keys() == {path}


def test_the_examples_are_as_the_schema_for_editors_says() -> None:
    validator = jsonschema_rs.validator_for(json.loads(deploy("schema")))
    for example in EXAMPLES:
        found = yaml.safe_load(example.read_text())
        assert [error.message for error in validator.iter_errors(found)] == [], example.name
        assert not validator.is_valid({**found, "gusets": []})
        assert not validator.is_valid({**found, "hosts": "xen1"})
