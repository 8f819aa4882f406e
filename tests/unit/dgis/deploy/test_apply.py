"""Applying a plan: which files a host keeps, what is asked of it, and sites whose front is not on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dgis.deploy import apply, check, flows, routes
from dgis.deploy.apply import Way
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan, plan
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.sitelab import World

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"


def plan_of(name: str, host: str) -> HostPlan:
    site = check.load(EXAMPLES / f"{name}.yml")
    return plan(site, flows.derive(site), site.host(host))


@dataclass(frozen=True, slots=True)
class Saying(Machine):
    """A machine on which some commands say something, the others nothing; those with a code fail."""

    says: dict[str, str] = field(default_factory=dict)
    fails: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def attempt(
        self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        words = " ".join(argv)
        self.asked.append(words)
        code = int(any(each in words for each in self.fails))
        said = next((text for key, text in self.says.items() if key in words), "")
        return subprocess.CompletedProcess(argv, code, said, "no such thing here\n" if code else "")


def test_each_host_keeps_what_it_needs() -> None:
    front = {"haproxy.cfg", "front-networks.map", "front-routes.map"}
    kept = {
        ("pilot-cesnet", "xen1"): {"nat.nft", "sysctl.conf", *front},
        ("pilot-lf1", "xen2"): {"nat.nft", "sysctl.conf"},
        ("dmz-pair", "dmz1"): {"nat.iptables", "sysctl.conf"},  # its front is a guest
        ("hospital", "kvm1"): {"nat.nft", "sysctl.conf"},
    }
    for (name, host), wanted in kept.items():
        assert set(apply.files(plan_of(name, host), Way())) == wanted


def test_settings_that_this_kernel_has_not_are_left_out() -> None:
    machine = Saying(says={"sysctl": "net.ipv4.ip_forward = 0\nnet.ipv6.conf.br0/5.disable_ipv6 = 1\n"})
    found = apply.settings(plan_of("pilot-cesnet", "xen1"), machine)
    assert found == {"net.ipv4.ip_forward": "0", "net.ipv6.conf.br0/5.disable_ipv6": "1"}
    (asked,) = machine.asked
    assert asked.startswith("sysctl -e net.ipv4.ip_forward ")


def test_addresses_of_a_rules_file() -> None:
    text = "dnat 198.51.100.10 : 10.77.0.11 . 80\n-d 10.78.0.20/32 --to 10.78.0.20:80 v1.2.3.4.5 999.1.1.1\n"
    assert apply._addresses(text) == {IPv4Address(each) for each in ("198.51.100.10", "10.77.0.11", "10.78.0.20")}


def test_the_masters_socket_is_debians_or_beside_the_other_one() -> None:
    assert Way().front._master == routes.MASTER
    assert Way(socket="/run/x/front.sock").front._master == "/run/x/master.sock"


@pytest.mark.parametrize("tool", ["conntrack --version", "python3 --version", "nft -c", "haproxy -c"])
def test_what_cannot_be_done_to_the_end_is_not_begun(tool: str) -> None:
    listed, expected = '{"nftables": []}\n', '{"nftables": [{"set": {"name": "outer"}}]}\n'
    says = {"unshare": expected, "nft -j list": listed, "python3 -I": "[null, null, null, null, null]"}
    machine = Saying(says=says, fails=(tool,))
    with pytest.raises(HostError, match="no such thing here"):
        apply.apply(plan_of("pilot-cesnet", "xen1"), Way(machine))
    touching = ("nft -f -", "sysctl -q", "mv ", "conntrack -L")
    done = [each for each in machine.asked if not each.startswith("unshare")]
    assert not [each for each in done if any(word in each for word in touching)]


def test_a_front_that_is_a_guest_is_left_to_it_and_the_rest_is_done_once() -> None:
    require_netlab()
    with Lab("dmz") as lab:
        world = World(lab)
        world.add(check.load(EXAMPLES / "dmz-pair.yml"))
        for host in ("dmz1", "inside1"):
            first, second = world.apply("brno", host), world.apply("brno", host)
            assert "live rules" in first.changed and second.changed == () and second.cut == 0
            if host == "dmz1":
                note = "the front runs in the guest front: its files come with its seed and the role sni_front"
                assert second.notes == (note,)
            else:
                assert second.notes == ()


def test_without_systemd_and_without_a_command_the_front_is_left_to_a_person() -> None:
    require_netlab()
    with Lab("alone") as lab:
        world = World(lab)
        world.add(check.load(EXAMPLES / "pilot-cesnet.yml"))
        way = world.way("cesnet", "xen1")
        alone = Way(way.machine, way.root, way.socket)
        if way.machine.attempt(("test", "-d", "/run/systemd/system")).returncode == 0:
            pytest.skip("systemd runs here, and would be asked")
        done = apply.apply(world.plan("cesnet", "xen1"), alone)
        assert "front reloaded" not in done.changed
        assert done.notes == (
            f"no systemd here: start or reload the front yourself, haproxy -W -f {way.root}/haproxy.cfg",
        )
