"""What a guest's services are told: every file is read back by the service's own reader."""

from __future__ import annotations

import functools
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import config as catalog_config
from certs.config import load_toml
from certs.dn import DN
from certs.gridmap import read_gridmap
from dgis.config import NodeConfig, load_node
from dgis.deploy import names, services, sitefile, topology
from dgis.deploy.errors import DeployError
from dgis.deploy.services import File
from dgis.deploy.topology import Guest, Site
from dgis.deploy.values import PortRange
from dgis.dimse.ae import AeTable, UnknownAe
from storage_provider.config import StorageConfig
from storage_provider.gridftp.settings import GsiftpSettings
from storage_provider.sftp.settings import SftpSettings

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))


@functools.cache
def load(path: Path) -> Site:
    return topology.resolve(sitefile.read(path)[0])


def site(name: str) -> Site:
    return load(next(path for path in EXAMPLES if path.stem == name))


def put(files: dict[str, File], root: Path) -> Path:
    """Write a guest's files below `root`; gives its /etc/dgis."""
    for path, file in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
    return root / "etc/dgis"


def node_of(site: Site, guest: Guest, root: Path) -> NodeConfig:
    return load_node(put(services.files(site, guest), root) / "node/node.toml")


def storage_of(site: Site, guest: Guest, root: Path) -> StorageConfig:
    return load_toml(put(services.files(site, guest), root) / "storage/storage.toml", StorageConfig)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_service_reads_what_it_is_given(path: Path, tmp_path: Path) -> None:
    own = load(path)
    for guest in own.guests:
        etc = put(services.files(own, guest), tmp_path / guest.name)
        found = {str(each.relative_to(etc)) for each in etc.rglob("*") if each.is_file()}
        wanted = {"gridmap"} if guest.services else set()
        for service in guest.services:
            wanted.add(f"{service.directory}/{service.directory}.csr.cnf")
        if guest.service("dgis"):
            wanted |= {"node/node.toml", "node/ae.toml"}
            node = load_node(etc / "node/node.toml")
            assert node.dgis.site == own.name and node.dgis.copies == own.copies
            assert str(node.dgis.ae_table) == "/var/lib/dgis/node/ae.toml"
        if guest.service("catalog"):
            wanted.add("catalog/catalog.toml")
            catalog = catalog_config.load(etc / "catalog/catalog.toml")
            assert catalog.database.url == "sqlite:////var/lib/dgis/catalog/catalog.sqlite"
            assert (catalog.server.host, catalog.server.port) == ("0.0.0.0", 9441)
        if guest.service("storage"):
            wanted.add("storage/storage.toml")
            storage = load_toml(etc / "storage/storage.toml", StorageConfig)
            assert storage.storage.name == f"{own.name}-{guest.name}"
        assert found == wanted
        if guest.services:
            assert read_gridmap(etc / "gridmap")


def test_a_file_belongs_to_root_and_is_read_by_its_service_alone() -> None:
    own = site("hospital")
    files = services.files(own, own.guest("gate"))
    assert {path: (file.owner, oct(file.mode)) for path, file in files.items()} == {
        "/etc/dgis/gridmap": ("root:dgis", "0o640"),
        "/etc/dgis/node/ae.toml": ("root:dgis-node", "0o640"),
        "/etc/dgis/node/node.csr.cnf": ("root:dgis-node", "0o640"),
        "/etc/dgis/node/node.toml": ("root:dgis-node", "0o640"),
    }
    assert services.files(own, own.guest("front")) == {}


def test_a_dgis_listens_inside_and_speaks_of_itself_as_seen_from_outside(tmp_path: Path) -> None:
    own = site("hospital")
    node = node_of(own, own.guest("gate"), tmp_path)
    assert (node.dgis.aet, node.dgis.name) == ("MOTOL", "motol-gate")
    assert (node.dimse.host, node.dimse.port, node.https.port) == ("0.0.0.0", 11112, 9442)
    assert node.dimse_tls is not None and node.dimse_tls.port == 2762
    assert (node.transfer.active, node.transfer.ports, node.transfer.advertise) == (True, (50300, 50349), "192.0.2.10")
    assert node.catalog.url == "https://catalog.meta.motol.example:443"
    assert node.unknown_ae.rights == ("echo",) and node.unknown_ae.networks == ("10.20.0.0/16",)
    identity = {key: str(value) for key, value in node.identity.model_dump().items() if value}
    assert identity == {
        "cert": "/etc/dgis/node/node.cert.pem",
        "key": "/etc/dgis/node/node.key.pem",
        "trust": "/etc/dgis/trust",
        "gridmap": "/etc/dgis/gridmap",
        "ssh_peers": "/etc/dgis/ssh_peers",
    }


def test_nothing_connects_to_a_dgis_without_active_ports_or_dicom_tls(tmp_path: Path) -> None:
    own = site("pilot-lf1")
    node = node_of(own, own.guest("node"), tmp_path)
    assert node.dimse_tls is None and not node.transfer.active and node.transfer.ports is None


def test_aes_have_their_rights_where_they_are_and_nobody_elsewhere(tmp_path: Path) -> None:
    own = site("hospital")
    etc = put(services.files(own, own.guest("gate")), tmp_path)
    unknown = load_node(etc / "node/node.toml").unknown_ae
    table = AeTable(
        etc / "node/ae.toml", unknown=UnknownAe(frozenset(unknown.rights), networks=tuple(unknown.networks))
    )
    assert table.caller("CT1", "10.20.7.9").rights == {"echo", "store", "commit"}
    assert table.caller("CT1", "10.20.8.9").rights == frozenset()  # bound to its network: nobody else has the title
    # Without networks of its own an AE calls from where DIMSE is open
    assert table.caller("VIEWER1", "10.20.99.9").rights == {"echo", "find", "move", "get"}
    assert table.caller("VIEWER1", "192.0.2.99").rights == frozenset()
    destination = table.destination("VIEWER1")
    assert destination is not None and (destination.host, destination.port) == ("10.20.4.31", 11113)
    assert table.destination("CT1") is None


def test_a_dgis_that_knows_no_ae_has_an_empty_table(tmp_path: Path) -> None:
    own = site("hospital")
    gate = own.guest("gate")
    assert gate.dimse is not None
    etc = put(services.files(own, replace(gate, dimse=replace(gate.dimse, aes=()))), tmp_path)
    assert AeTable(etc / "node/ae.toml").entries() == ()


def test_a_storage_element_has_its_doors_and_most_of_the_disk(tmp_path: Path) -> None:
    own = site("hospital")
    storage = storage_of(own, own.guest("store2"), tmp_path)
    assert storage.gsiftp is not None and storage.sftp is not None
    gsiftp = GsiftpSettings(**storage.gsiftp.model_dump())
    sftp = SftpSettings(**storage.sftp.model_dump())
    assert (gsiftp.host, gsiftp.port, gsiftp.data_ports) == ("0.0.0.0", 2812, (50100, 50199))
    assert gsiftp.advertise == "192.0.2.10"
    # NAT and the front show many peers at one address: no limit of one address is below the limit of all
    assert gsiftp.waiting_per_address == gsiftp.waiting
    assert (sftp.host, sftp.port) == ("0.0.0.0", 2222)
    assert (sftp.per_address, sftp.waiting_per_address) == (sftp.connections, sftp.waiting)
    (area,) = storage.area
    assert area.name == "main" and area.quota is not None
    assert 0.94 * 4 * 2**40 < area.quota <= 0.95 * 4 * 2**40
    assert area.rules["gateway"] == {"read", "write", "delete", "list"} and area.rules["operator"] == {"read", "list"}
    assert "storage" not in area.rules  # other elements pull with a permit


def test_a_disk_that_services_share_is_not_the_storage_elements_alone(tmp_path: Path) -> None:
    own = site("pilot-cesnet")
    (area,) = storage_of(own, own.guest("node"), tmp_path).area
    assert area.quota is not None and area.quota <= 0.85 * 500 * 2**30


def test_a_storage_element_without_data_disk_or_doors(tmp_path: Path) -> None:
    own = site("hospital")
    storage = storage_of(own, replace(own.guest("store1"), data=0, gridftp=None, sftp=None), tmp_path)
    assert storage.area[0].quota is None and storage.gsiftp is None and storage.sftp is None


def test_one_data_port_is_a_range_too(tmp_path: Path) -> None:
    own = site("hospital")
    store = own.guest("store1")
    one = replace(store, gridftp=topology.Gridftp(2811, PortRange.one(50000)))
    storage = storage_of(own, one, tmp_path)
    assert storage.gsiftp is not None and storage.gsiftp.data_ports == (50000, 50000)


def test_the_gridmap_names_services_of_all_sites_and_operators(tmp_path: Path) -> None:
    own = replace(site("hospital"), operators=("/O=Hospital Grid/OU=People/CN=Jana  N. #1",))
    entries = read_gridmap(put(services.files(own, own.guest("meta")), tmp_path) / "gridmap")
    roles = {str(dn): sorted(entry.roles) for dn, entry in entries.items()}
    base = "/O=Hospital Grid/OU=Hosts/CN="
    assert roles == {
        f"{base}dgis.gate.motol.example": ["gateway"],
        f"{base}catalog.meta.motol.example": ["catalog"],
        f"{base}storage.store1.motol.example": ["storage"],
        f"{base}storage.store2.motol.example": ["storage"],
        f"{base}dgis.gate.brno.example": ["gateway"],
        f"{base}storage.store.brno.example": ["storage"],
        f"{base}dgis.gate.bulovka.example": ["gateway"],
        f"{base}storage.gct.bulovka.example": ["storage"],
        "/O=Hospital Grid/OU=People/CN=Jana  N. #1": ["operator"],
    }
    assert len({entry.account for entry in entries.values()}) == len(entries)


def test_the_pilots_sites_agree_on_who_has_which_role(tmp_path: Path) -> None:
    maps = []
    for name in ("pilot-cesnet", "pilot-lf1", "pilot-uvn"):
        own = site(name)
        entries = read_gridmap(put(services.files(own, own.guest("node")), tmp_path / name) / "gridmap")
        maps.append({dn: entry for dn, entry in entries.items() if entry.roles != {"operator"}})
    assert len(maps[0]) == 7 and maps[0] == maps[1] == maps[2]


LINE = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
AET = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"), min_size=1, max_size=16)


@given(organisation=LINE, operator=LINE, aet=AET, title=AET)
@settings(max_examples=60, deadline=None)
def test_no_text_of_a_site_file_breaks_out_of_its_place(
    organisation: str, operator: str, aet: str, title: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain, root = site("hospital"), tmp_path_factory.mktemp("etc")
    gate = plain.guest("gate")
    assert gate.dimse is not None
    aes = tuple(entity.model_copy(update={"title": title}) for entity in gate.dimse.aes)
    odd_gate = replace(gate, dimse=replace(gate.dimse, aet=aet, aes=aes))
    odd = replace(plain, organisation=organisation, operators=(f"/O=Grid/CN={operator}",))
    try:
        etc = put(services.files(odd, odd_gate), root)
    except DeployError:
        return
    if aet.strip() and title.strip():
        assert load_node(etc / "node/node.toml").dgis.aet == aet.strip()
        assert {entry.title for entry in AeTable(etc / "node/ae.toml").entries()} == {title.strip()}
    roles = {dn: entry.roles for dn, entry in read_gridmap(etc / "gridmap").items()}
    assert len(roles) == 9
    assert roles[names.subject(odd, "dgis.gate.motol.example")] == {"gateway"}
    assert [dn for dn, role in roles.items() if role == {"operator"}] == [DN.parse(f"/O=Grid/CN={operator}")]


def test_networks_of_dimse_are_all_named(tmp_path: Path) -> None:
    own = site("hospital")
    gate = own.guest("gate")
    assert gate.dimse is not None
    networks = (IPv4Network("10.20.0.0/24"), IPv4Network("10.21.0.0/16"))
    node = node_of(own, replace(gate, dimse=replace(gate.dimse, networks=networks)), tmp_path)
    assert node.unknown_ae.networks == ("10.20.0.0/24", "10.21.0.0/16")
