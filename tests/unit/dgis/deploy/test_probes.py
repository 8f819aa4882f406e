"""What is tried from where, and what must come of it."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

from dgis.deploy import check, flows, verify
from dgis.deploy.machine import Machine
from dgis.deploy.plan import plan
from dgis.deploy.probes import Try, of_doors, of_guest
from dgis.deploy.topology import Site
from dgis.deploy.verify import Vantage

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"
CESNET = check.load(EXAMPLES / "pilot-cesnet.yml")
PUBLIC = IPv4Address("198.51.100.10")
LF1, OUTSIDE, ADMIN = IPv4Address("203.0.113.20"), IPv4Address("100.64.0.10"), IPv4Address("192.0.2.3")


def tries(seen: IPv4Address, *, inside: bool = False, site: Site = CESNET, host: str = "xen1") -> tuple[Try, ...]:
    derived = flows.derive(site)
    return of_doors(plan(site, derived, site.host(host)), derived, seen, inside=inside)


def expected(found: tuple[Try, ...]) -> dict[tuple[str, int, str], str]:
    return {(one.kind, one.port, one.name): one.expected for one in found}


def test_every_door_is_tried_by_its_own_kind_and_each_place_has_its_own_answers() -> None:
    catalog, wiki = "catalog.node.cesnet.example", "wiki.cesnet.example"
    doors = {
        ("tls", 443, catalog): (LF1, ADMIN),
        ("tls", 443, "dgis.node.cesnet.example"): (ADMIN,),
        ("tls", 443, wiki): (LF1, OUTSIDE, ADMIN),
        ("ssh", 443, ""): (LF1,),
        ("tcp", 2811, ""): (LF1,),
        ("tcp", 50000, ""): (LF1,),
        ("tcp", 50099, ""): (LF1,),
        ("tcp", 8080, ""): (LF1, OUTSIDE, ADMIN),
        ("tcp", 11112, ""): (),
    }
    for seen in (LF1, OUTSIDE, ADMIN):
        found = expected(tries(seen))
        assert {key: found[key] for key in doors} == {
            key: "open" if seen in who else "closed" for key, who in doors.items()
        }


def test_ports_that_nobody_declared_must_be_closed_next_to_the_doors_and_where_people_forget_them() -> None:
    found = {one.port for one in tries(OUTSIDE) if one.what == "nobody declared it"}
    assert {22, 5432, 2810, 2812, 8079, 8081, 49999, 50100, 9443} <= found
    assert not found & {443, 2811, 8080, 50000, 50050, 50099, 11112}
    # an administrator may reach the host's own SSH: that is no mistake
    assert 22 not in {one.port for one in tries(ADMIN)}


def test_only_data_ports_may_be_idle() -> None:
    assert {one.port for one in tries(LF1) if one.idle} == {50000, 50099}


def test_every_try_is_made_once() -> None:
    for seen in (LF1, OUTSIDE, ADMIN):
        found = tries(seen)
        assert len(found) == len({(one.kind, one.address, one.port, one.name) for one in found})


def test_inside_the_hosts_own_address_is_meant_and_outside_the_one_that_is_known_there() -> None:
    site = check.load(EXAMPLES / "pilot-uvn.yml")
    inside = tries(IPv4Address("172.16.8.70"), inside=True, site=site, host="kvm1")
    assert {str(one.address) for one in inside} == {"172.16.8.130"}
    assert {str(one.address) for one in tries(PUBLIC, site=site, host="kvm1")} == {"203.0.113.130"}


def test_from_the_host_itself_its_doors_are_open_and_names_are_not() -> None:
    found = expected(tries(PUBLIC, inside=True))
    assert found[("tcp", 2811, "")] == found[("tcp", 8080, "")] == "open"
    assert found[("tls", 443, "wiki.cesnet.example")] == "open"
    assert found[("tls", 443, "catalog.node.cesnet.example")] == "closed"


def test_shut_doors_of_a_guest_that_does_not_run_are_expected_to_be_closed() -> None:
    derived = flows.derive(CESNET)
    host = plan(CESNET, derived, CESNET.host("xen1"), running=frozenset({"node"}))
    for seen, inside in ((PUBLIC, True), (OUTSIDE, False)):
        found = expected(of_doors(host, derived, seen, inside=inside))
        assert found[("tcp", 8080, "")] == found[("tls", 443, "wiki.cesnet.example")] == "closed"
    assert expected(of_doors(host, derived, PUBLIC, inside=True))[("tcp", 2811, "")] == "open"


def test_from_a_guest_its_ways_out_and_what_it_must_not_reach() -> None:
    derived = flows.derive(CESNET)
    host = plan(CESNET, derived, CESNET.host("xen1"))
    found = of_guest(host, derived, CESNET.guest("node"), CESNET.guests)
    open_ones = {(str(one.address), one.port) for one in found if one.expected == "open"}
    closed = {(str(one.address), one.port) for one in found if one.expected == "closed"}
    assert {("203.0.113.20", 2811), ("203.0.113.130", 51049), ("198.51.100.70", 104), ("192.0.2.53", 53)} <= open_ones
    assert ("192.0.2.123", 123) not in open_ones  # UDP cannot be tried so
    assert {("10.77.0.1", 22), ("10.78.0.20", 22), ("203.0.113.20", 22), (str(PUBLIC), 11112)} <= closed
    assert not open_ones & closed and all(one.idle for one in found if one.expected == "open")


def test_a_place_is_known_by_what_the_site_sees_of_it() -> None:
    derived = flows.derive(CESNET)
    host = plan(CESNET, derived, CESNET.host("xen1"))
    nowhere = Machine(("false",))  # nobody has to be asked
    by_name = verify._tries(CESNET, derived, host, Vantage("lf1", nowhere))
    assert by_name == verify._tries(CESNET, derived, host, Vantage("outside", nowhere, LF1)) == tries(LF1)
    assert verify._tries(CESNET, derived, host, Vantage("lf1", nowhere, OUTSIDE)) == tries(OUTSIDE)


def test_a_host_without_doors_has_nothing_to_try() -> None:
    site = check.load(EXAMPLES / "pilot-lf1.yml")
    derived = flows.derive(site)
    behind = plan(site, derived, site.host("xen2"))
    (row,) = verify.from_vantage(site, derived, behind, Vantage("outside", Machine(("false",))))
    assert (row.subject, row.state) == ("from outside", "not tried")
