"""Applying a plan: which files a host keeps, what is asked of it, and sites whose front is not on the host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dgis.deploy import apply, check, flows, live, routes
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

    @contextmanager
    def holding(self, argv: Sequence[str], *, timeout: float = 60.0) -> Iterator[None]:
        self.asked.append(f"holding {' '.join(argv)}")
        yield
        self.asked.append("let go")


NO_FRONT = "[null, null, null, null, null]"
XEN1 = json.dumps(
    [
        {"ifname": name, "addr_info": [{"local": address}]}
        for name, address in (("eth0", "198.51.100.10"), ("dgisbr0", "10.77.0.1"), ("projbr0", "10.78.0.1"))
    ]
)


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
    says = {"unshare": expected, "nft -j list": listed, "SSH_CONNECTION": "", "ip -j": XEN1, "python3 -I": NO_FRONT}
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


@pytest.fixture
def world() -> Iterator[World]:
    """The site lf1 in namespaces, with nothing applied."""
    require_netlab()
    with Lab("guard") as lab:
        made = World(lab)
        made.add(check.load(EXAMPLES / "pilot-lf1.yml"))
        yield made


def tables(way: Way) -> str:
    return way.machine.run(("nft", "list", "tables"))


def forwards(way: Way) -> str:
    return way.machine.run(("sysctl", "-n", "net.ipv4.ip_forward")).strip()


def test_a_machine_that_is_another_host_is_not_touched(world: World) -> None:
    way = world.way("lf1", "xen1")
    for dry_run in (True, False):
        with pytest.raises(HostError, match="this machine is not xen2 as the site file has it"):
            apply.apply(world.plan("lf1", "xen2"), way, dry_run=dry_run)
    assert tables(way) == "" and forwards(way) == "0"


def test_nothing_is_forwarded_before_the_rules_stand(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    way = world.way("lf1", "xen1")

    def fail(self: live.Nft, text: str) -> None:
        raise HostError("the kernel refuses")

    with monkeypatch.context() as patched:
        patched.setattr(live.Nft, "load", fail)
        with pytest.raises(HostError, match="^the kernel refuses$"):
            apply.apply(world.plan("lf1", "xen1"), way)
    assert forwards(way) == "0"
    world.apply("lf1", "xen1")
    assert forwards(way) == "1" and world.apply("lf1", "xen1").changed == ()


def test_a_front_that_does_not_come_up_leaves_rules_that_last_and_what_they_used_to_lead_to(world: World) -> None:
    way = world.way("lf1", "xen1")
    broken = replace(way, reload=("sh", "-c", "echo no such unit >&2; exit 5"))
    rules = Path(way.root) / "nat.nft"
    rules.write_text("10.99.0.7\n")
    for _ in range(2):  # the second run changes no rules, and has to know all the same
        with pytest.raises(HostError) as failed:
            apply.apply(world.plan("lf1", "xen1"), broken)
        said = str(failed.value)
        assert "the rules of the site file are in force" in said and "the front does not come up" in said
        assert "no such unit" in said and "journalctl -u haproxy" in said
        assert rules.read_text() == apply.files(world.plan("lf1", "xen1"), way)["nat.nft"] and "dgis" in tables(way)
        assert (Path(way.root) / "former").read_text() == "10.99.0.7\n"
    seen: list[frozenset[IPv4Address]] = []

    def cut(of: HostPlan, machine: Machine, *, former: frozenset[IPv4Address], dry_run: bool) -> int:
        seen.append(former)
        return 0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(live, "cut", cut)
        world.apply("lf1", "xen1")
    assert IPv4Address("10.99.0.7") in seen[0]
    assert not (Path(way.root) / "former").exists() and world.apply("lf1", "xen1").changed == ()


def test_two_at_once_end_as_one_after_the_other(world: World) -> None:
    way, whole = world.way("lf1", "xen1"), world.plan("lf1", "xen1")
    less = replace(whole, translations=whole.translations[1:])
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(apply.apply, each, way) for each in (whole, less, whole)]
    assert [name for each in runs for name in each.result().changed].count("live rules") >= 1
    rules = live.firewall(whole, way.machine)
    assert rules.listed() == rules.expected((Path(way.root) / "nat.nft").read_text())
    assert {path.name for path in Path(way.root).iterdir() if path.name.startswith("nat.nft")} == {"nat.nft"}


def test_an_operator_from_elsewhere_is_not_locked_out(world: World) -> None:
    host, way = world.node("lf1", "xen1"), world.way("lf1", "xen1")
    address = str(world.plan("lf1", "xen1").host.wires[0].ip)
    host.sshd(22, known_as=[address])
    prefix = tuple(world.outside.command(["ssh", *world.lab.ssh.options(), f"root@{address}"]))
    over = replace(way, machine=Machine(prefix, quoted=True))
    with pytest.raises(HostError, match=r"lock you out: you come by ssh from 100\.64\.0\.10 to .*, port 22"):
        apply.apply(world.plan("lf1", "xen1"), over)
    assert tables(way) == "" and forwards(way) == "0"
    assert world.outside.connect(address, 22) == "open"


def test_with_another_way_in_one_may_lock_oneself_out() -> None:
    says = {
        "unshare": '{"nftables": [{"set": {"name": "outer"}}]}\n', "nft -j list": '{"nftables": []}\n',
        "SSH_CONNECTION": "100.64.0.99 4000 198.51.100.10 22", "ip -j": XEN1, "python3 -I": NO_FRONT,
    }  # fmt: skip
    made, way = plan_of("pilot-cesnet", "xen1"), Way(Saying(says=says))
    with pytest.raises(HostError, match="lock you out"):
        apply.apply(made, way, dry_run=True)
    assert "live rules" in apply.apply(made, way, dry_run=True, force=True).changed
