"""Moving a guest in a site file: a few words change, everything else stays as it was written."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dgis.deploy import move
from dgis.deploy.errors import DeployError, SiteFileError

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"
LF1 = (EXAMPLES / "pilot-lf1.yml").read_text()
TWO = (
    "      - {name: grid, bridge: dgisbr0, cidr: 10.77.1.0/24}\n      - {name: more, bridge: br1, cidr: 10.79.0.0/24}\n"
)
ONE = TWO.splitlines(keepends=True)[0]


def changed(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.splitlines(keepends=True), after.splitlines(keepends=True), strict=True)
    return [(old.strip(" "), new.strip(" ")) for old, new in pairs if old != new]


def test_host_and_address_change_and_nothing_else() -> None:
    after, site = move.moved(LF1, "lf1.yml", "node", "xen2")
    assert changed(LF1, after) == [
        ("host: xen1\n", "host: xen2\n"),
        ("address: 10.77.0.11\n", "address: 10.77.1.11\n"),
    ]
    assert site.guest("node").host == "xen2" and site.guest("node").address == IPv4Address("10.77.1.11")
    assert move.moved(after, "lf1.yml", "node", "xen1")[0] == LF1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    host: xen1\n", "    host:   xen1      # its home\n"),
        ("    host: xen1\n", '    host: "xen1"\n'),
        ("    address: 10.77.0.11\n", "    address: '10.77.0.11' # by hand\n"),
        ("    host: xen1\n    address: 10.77.0.11\n", "    # before\n    address: 10.77.0.11\n\n    host: xen1\n"),
        ("\n", "\r\n"),
    ],
)
def test_comments_quotes_order_and_line_ends_stay(old: str, new: str) -> None:
    text = LF1.replace(old, new)
    after, site = move.moved(text, "lf1.yml", "node", "xen2")
    assert len(changed(text, after)) == 2 and site.guest("node").host == "xen2"
    for comment in ("# its home", "# by hand", "# before"):
        assert text.count(comment) == after.count(comment)
    assert text.count("\r\n") == after.count("\r\n")


def test_a_file_in_one_line_style() -> None:
    begin, end = LF1.index("  - name: node"), LF1.index("peers:\n")
    text = f"{LF1[:begin]}  - {{name: plain, host: xen1, address: 10.77.0.40, roles: [ca]}} # other\n{LF1[begin:]}"
    after, _ = move.moved(text, "lf1.yml", "plain", "xen2")
    assert "- {name: plain, host: xen2, address: 10.77.1.40, roles: [ca]} # other" in after
    assert begin < end


def test_a_name_that_yaml_would_read_as_something_else() -> None:
    text = LF1.replace("- name: xen2", '- name: "no"')
    after, site = move.moved(text, "lf1.yml", "node", "no")
    assert '    host: "no"\n' in after and site.guest("node").host == "no"


def test_into_one_of_several_networks() -> None:
    text = LF1.replace(ONE, TWO).replace("    host: xen1\n", "    host: xen1\n    network: grid\n")
    after, _ = move.moved(text, "lf1.yml", "node", "xen2", network="more")
    assert "network: more" in after and "address: 10.79.0.11" in after
    # the network of the same name is meant when nothing is said
    assert "address: 10.77.1.11" in move.moved(text, "lf1.yml", "node", "xen2")[0]


def test_with_an_address_of_its_own() -> None:
    after, site = move.moved(LF1, "lf1.yml", "node", "xen2", address=IPv4Address("10.77.1.99"))
    assert site.guest("node").address == IPv4Address("10.77.1.99") and "address: 10.77.1.99" in after
    with pytest.raises(SiteFileError, match=r"guests.node.address: write an address of 10.77.1.0/24"):
        move.moved(LF1, "lf1.yml", "node", "xen2", address=IPv4Address("10.99.0.1"))


OTHER = "  - {name: other, host: xen2, address: 10.77.1.11}\n  - name: node"


@pytest.mark.parametrize(
    ("text", "guest", "host", "says"),
    [
        (LF1, "nod", "xen2", "lf1.yml: no guest nod; there are node"),
        (LF1, "node", "xen3", "lf1.yml: no host xen3; there are xen1, xen2"),
        (LF1, "node", "xen1", "lf1.yml: node is on xen1 already"),
        (LF1.replace("  - name: node", OTHER, 1), "node", "xen2",
         "lf1.yml: by its number node would be 10.77.1.11, as guest other is: give --address"),
        (LF1.replace("cidr: 10.77.1.0/24}", "cidr: 10.77.1.0/24, gateway: 10.77.1.11}"), "node", "xen2",
         "lf1.yml: by its number node would be 10.77.1.11, as network grid is: give --address"),
        (LF1.replace("cidr: 10.77.1.0/24", "cidr: 10.77.1.0/29"), "node", "xen2",
         "lf1.yml: node has no place in 10.77.1.0/29 by its number: give --address"),
        (LF1.replace(ONE, TWO), "node", "xen2", "lf1.yml: say by --network into which: grid, more"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(text: str, guest: str, host: str, says: str) -> None:
    with pytest.raises(DeployError) as caught:
        move.moved(text, "lf1.yml", guest, host)
    assert str(caught.value) == says


def test_a_network_that_has_to_be_written_first() -> None:
    with pytest.raises(DeployError, match="xen2 has several networks: write network: more into node first"):
        move.moved(LF1.replace(ONE, TWO), "lf1.yml", "node", "xen2", network="more")


def test_a_file_that_is_wrong_before_is_not_touched() -> None:
    with pytest.raises(SiteFileError, match="lf1.yml:"):
        move.moved(LF1.replace("address: 10.77.0.11", "address: 10.99.0.11"), "lf1.yml", "node", "xen2")
