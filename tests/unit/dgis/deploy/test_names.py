"""Names without a name service: what /etc/hosts has to say, and URLs that mean the same inside and outside."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from catalog.doors import place_of
from certs.dn import DN
from certs.profiles import name as certificate_name
from dgis.deploy import names, sitefile, topology
from dgis.deploy.errors import DeployError
from dgis.deploy.topology import Site
from storage_provider.gridftp.client.door import Door as GsiftpDoor
from storage_provider.sftp.client_door import Door as SftpDoor
from storage_provider.transfer.route import by_preference

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"
PILOT = ("pilot-cesnet", "pilot-lf1", "pilot-uvn")


def site(name: str) -> Site:
    return topology.resolve(sitefile.read(EXAMPLES / f"{name}.yml")[0])


def test_every_name_that_somebody_asks_for_leads_to_a_public_address() -> None:
    cesnet, hospital = site("pilot-cesnet"), site("hospital")
    assert names.addresses(cesnet) == {
        "catalog.node.cesnet.example": IPv4Address("198.51.100.10"),
        "dgis.node.cesnet.example": IPv4Address("198.51.100.10"),
        "dgis.node.lf1.example": IPv4Address("203.0.113.20"),
        "dgis.node.uvn.example": IPv4Address("203.0.113.130"),
        "storage.node.cesnet.example": IPv4Address("198.51.100.10"),
        "storage.node.lf1.example": IPv4Address("203.0.113.20"),
        "storage.node.uvn.example": IPv4Address("203.0.113.130"),
        "wiki.cesnet.example": IPv4Address("198.51.100.10"),  # another project beside ours
    }
    assert list(names.addresses(hospital)) == sorted(names.addresses(hospital))
    assert names.addresses(hospital)["storage.gct.bulovka.example"] == IPv4Address("198.51.100.40")
    # The issuing CA answers nobody
    assert not any(name.startswith("ca.") for name in names.addresses(hospital))


def test_behind_a_translating_firewall_names_lead_to_what_others_see() -> None:
    assert names.addresses(site("pilot-uvn"))["storage.node.uvn.example"] == IPv4Address("203.0.113.130")
    # A DGIS inside has no door that faces out, so its name is nobody's to ask for
    dmz = names.addresses(site("dmz-pair"))
    assert "dgis.gate.brno.example" not in dmz
    assert dmz["storage.store.brno.example"] == IPv4Address("198.51.100.80")


@pytest.mark.parametrize("name", PILOT)
def test_a_site_and_its_peers_call_the_same_doors_by_the_same_urls(name: str) -> None:
    own = site(name)
    mine = names.own_doors(own, own.guest("node"))
    assert len(mine) == 3
    for other in (site(each) for each in PILOT if each != name):
        peer = next(peer for peer in other.peers if peer.site == own.name)
        assert names.peer_doors(peer, peer.guests[0]) == mine
        assert names.addresses(other).items() >= {("storage.node." + own.domain, peer.public)}
        assert names.catalog_url(other) == names.catalog_url(own) == "https://catalog.node.cesnet.example:443"


def test_doors_are_storage_urls_of_our_own_kind_best_first() -> None:
    hospital = site("hospital")
    doors = names.own_doors(hospital, hospital.guest("store2"))
    assert doors == (
        "gsiftp://storage.store2.motol.example:2812/areas/main",
        "sftp://storage.store2.motol.example:2222/areas/main",
        "https://storage.store2.motol.example:443/areas/main",
    )
    assert by_preference(reversed(doors)) == doors
    assert GsiftpDoor.parse(doors[0]).own and SftpDoor.parse(doors[1]).own
    assert [place_of(door) for door in doors] == list(doors)  # ports written out: one spelling, one place


def test_doors_that_are_not_there_have_no_url() -> None:
    hospital = site("hospital")
    assert names.own_doors(hospital, hospital.guest("gate")) == ()
    bare = replace(hospital.guest("store1"), gridftp=None, sftp=None)
    assert names.own_doors(hospital, bare) == ("https://storage.store1.motol.example:443/areas/main",)
    bulovka = hospital.peers[0]
    gate, gct = bulovka.guests
    assert names.peer_doors(bulovka, gate) == ()
    # Where a stock server keeps its files the site file does not say
    assert gct.stock and names.peer_doors(bulovka, gct) == ()


def test_without_a_catalog_it_is_said_what_to_write() -> None:
    with pytest.raises(DeployError, match="catalog: SITE"):
        names.catalog_url(replace(site("pilot-lf1"), catalog=None))


def test_subjects_are_those_that_our_ca_makes() -> None:
    own = replace(site("pilot-cesnet"), organisation="Český grid & syn, s.r.o")
    subject = names.subject(own, "dgis.node.cesnet.example")
    assert str(subject) == "/O=Český grid & syn, s.r.o/OU=Hosts/CN=dgis.node.cesnet.example"
    made = certificate_name(own.organisation, "dgis.node.cesnet.example", unit="Hosts")
    assert DN.from_name(made) == subject == DN.parse(str(subject))


@pytest.mark.parametrize(
    ("organisation", "name", "words"),
    [
        ("Pilot Grid", "storage.node." + "a" * 45 + ".example", "64"),
        ("Pilot/CN=x", "dgis.node.a.example", "organisation"),
        ("Pilot\u2028Grid", "dgis.node.a.example", "organisation"),
        (" Pilot", "dgis.node.a.example", "organisation"),
    ],
)
def test_subjects_that_no_certificate_can_have_are_refused(organisation: str, name: str, words: str) -> None:
    with pytest.raises(DeployError, match=words):
        names.subject(replace(site("pilot-cesnet"), organisation=organisation), name)


@pytest.mark.parametrize("operator", ["/XX=Grid/CN=a", "/O=Grid/CN=a\u2028b", "/O=Grid/CN=a\\x0Ab"])
def test_operators_that_are_no_subjects_are_refused(operator: str) -> None:
    with pytest.raises(DeployError, match="operators"):
        names.operators(replace(site("pilot-cesnet"), operators=(operator,)))
