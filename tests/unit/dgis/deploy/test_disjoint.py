"""Lists in which no two permissions overlap: nft takes no others into its sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dgis.deploy import nat
from dgis.deploy.plan import Permission, disjoint
from dgis.deploy.values import ANYWHERE, PortRange, Protocol
from tests.helpers import sitefiles
from tests.helpers.ruletools import NFT, refusals, require

NFT_SET = (
    "table inet dgis {{\n set s {{\n type ipv4_addr . ipv4_addr . inet_proto . inet_service\n flags interval\n"
    " elements = {{ {} }}\n }}\n}}\n"
)
addresses = st.sampled_from(("10.77.0.10", "10.77.0.11", "10.77.1.10")).map(IPv4Network)
networks = st.sampled_from(("0.0.0.0/0", *sitefiles.NETWORKS[1:])).map(IPv4Network)
ranges = st.tuples(st.integers(1, 12), st.integers(0, 6)).map(lambda two: PortRange(two[0], two[0] + two[1]))
protocols: st.SearchStrategy[Protocol] = st.sampled_from(("tcp", "udp"))
permissions = st.one_of(
    *(
        st.lists(st.builds(Permission, *ends, protocols, ranges), max_size=12)
        for ends in ((networks, addresses), (addresses, networks), (networks, st.just(ANYWHERE)))
    )
)


@settings(max_examples=100)
@given(permissions)
def test_disjoint_allows_the_same_and_no_two_overlap(given: list[Permission]) -> None:
    made = disjoint(given)
    for one, other in itertools.combinations(made, 2):
        alike = one.protocol == other.protocol and one.ports.overlaps(other.ports)
        assert not (alike and one.source.overlaps(other.source) and one.target.overlaps(other.target))
    sources = {address for each in given for address in (each.source[0], each.source[-1])}
    targets = {address for each in given for address in (each.target[0], each.target[-1])}
    for packet in itertools.product(sources, targets, ("tcp", "udp"), range(1, 20)):
        assert allows(given, *packet) == allows(made, *packet), packet


def allows(
    permissions: Iterable[Permission], source: IPv4Address, target: IPv4Address, protocol: str, port: int
) -> bool:
    return any(
        source in each.source and target in each.target and protocol == each.protocol and port in each.ports
        for each in permissions
    )


def written(permissions: Iterable[Permission]) -> str:
    rows = ((each.source, each.target, each.protocol, each.ports) for each in permissions)
    return NFT_SET.format(", ".join(" . ".join(map(nat.written, row)) for row in rows))


def test_nft_refuses_what_overlaps_and_takes_it_disjoint(tmp_path: Path) -> None:
    require(NFT, tmp_path)
    found: list[list[Permission]] = []

    @settings(max_examples=40, database=None, derandomize=True)
    @given(permissions)
    def collect(given: list[Permission]) -> None:
        if given:
            found.append(given)

    collect()
    assert refusals(NFT, [written(disjoint(given)) for given in found], tmp_path) == [""] * len(found)
    guest = IPv4Network("10.77.0.10")
    wide = Permission(ANYWHERE, guest, "tcp", PortRange(80, 90))
    for narrow in (replace(wide, ports=PortRange(85, 95)), replace(wide, source=guest, ports=PortRange(90, 91))):
        refused, taken = refusals(NFT, [written([wide, narrow]), written(disjoint([wide, narrow]))], tmp_path)
        assert refused != "" and taken == "", "else the lists need not be disjoint"
