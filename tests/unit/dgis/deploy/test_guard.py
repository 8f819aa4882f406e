"""Before anything is touched: one at a time, the right machine, and a way back for whoever asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from dgis.deploy import check, flows, guard
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan, plan

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"
THERE = {
    "lo": frozenset({ip_address("127.0.0.1")}),
    "eth0": frozenset({ip_address("198.51.100.10"), ip_address("2001:db8::10")}),
    "dgisbr0": frozenset({ip_address("10.77.0.1")}),
    "projbr0": frozenset({ip_address("10.78.0.1")}),
    "tun0": frozenset({ip_address("172.16.0.1")}),
}


def plan_of(name: str = "pilot-cesnet", host: str = "xen1") -> HostPlan:
    site = check.load(EXAMPLES / f"{name}.yml")
    return plan(site, flows.derive(site), site.host(host))


@dataclass(frozen=True, slots=True)
class Saying(Machine):
    """A machine that says this, whatever it is asked."""

    out: str = ""

    def attempt(
        self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, self.out, "")


def test_of_two_at_once_one_waits_and_then_says_who_is_in_the_way(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / ".lock")
    said = "another dgis deploy works on this host and did not end in 0.1 s"
    first, second = guard.alone(Machine(), path), guard.alone(Machine(), path, patience=0.1)
    with first, pytest.raises(HostError, match=said), second:
        pytest.fail("two at once")
    with guard.alone(Machine.behind(("env",)), path, patience=0.1):
        pass


def test_a_run_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    path = str(tmp_path / ".lock")
    script = (
        "import sys; from dgis.deploy import guard; from dgis.deploy.machine import Machine\n"
        "with guard.alone(Machine(), sys.argv[1]):\n print('in', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", script, path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=EXAMPLES.parents[1]) as child:
        assert child.stdout is not None and child.stdout.readline() == b"in\n"
        with pytest.raises(HostError, match="another dgis deploy"), guard.alone(Machine(), path, patience=0):
            pass
        child.send_signal(signal.SIGKILL)
    with guard.alone(Machine(), path, patience=5):
        pass


def test_a_place_that_cannot_be_written_is_said_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "x" / ".lock")
    with pytest.raises(HostError, match="; apply has to write there"), guard.alone(Machine(), path):
        pytest.fail("no lock at all")


def test_interfaces_of_this_machine() -> None:
    assert ip_address("127.0.0.1") in guard.interfaces(Machine()).get("lo", {ip_address("127.0.0.1")})
    assert guard.interfaces(Saying(out='[{}, {"ifname": "a"}]')) == {"a": frozenset()}
    with pytest.raises(HostError, match="gave no JSON"):
        guard.interfaces(Saying(out="BusyBox"))


def test_another_machine_is_refused_with_what_it_has() -> None:
    assert guard.same(plan_of(), THERE) == ()
    other = THERE | {"eth0": frozenset({ip_address("198.51.100.11")})}
    with pytest.raises(HostError) as refused:
        guard.same(plan_of(), other)
    said = str(refused.value)
    assert "not xen1 as the site file has it: uplink is eth0 with 198.51.100.10, here eth0 has 198.51.100.11" in said
    assert "dgisbr0 10.77.0.1" in said and "--host" in said
    with pytest.raises(HostError, match="inner is eth0 with .*, here eth0 has no address or is missing"):
        guard.same(plan_of("pilot-lf1", "xen2"), {"lo": THERE["lo"]})


def test_a_bridge_that_is_missing_is_no_error() -> None:
    there = {name: each for name, each in THERE.items() if name != "projbr0"}
    assert guard.same(plan_of(), there) == (
        "projbr0 has no 10.78.0.1 here yet: until it does nothing reaches its guests",
    )


def admin(of: HostPlan) -> str:
    return str(next(each for each in of.inputs if each.ports.first == 22).source.network_address)


@pytest.mark.parametrize(
    ("connection", "locked_out"),
    [
        ("", False),
        ("ADMIN 4000 198.51.100.10 22", False),
        ("ADMIN 4000 198.51.100.10 2200", True),  # sshd is at a port that the file does not have
        ("100.64.0.99 4000 198.51.100.10 22", True),
        ("::ffff:100.64.0.99 4000 ::ffff:198.51.100.10 22", True),
        ("2001:db8::99 4000 2001:db8::10 22", True),
        ("198.51.100.10 4000 198.51.100.10 22", False),  # from the host itself
        ("100.64.0.99 4000 172.16.0.1 22", False),  # an interface that is not guarded
        ("100.64.0.99 4000 203.0.113.9 22", False),  # left from another machine
    ],
)
def test_who_comes_by_ssh_is_not_locked_out(connection: str, locked_out: bool) -> None:
    made = plan_of()
    machine = Saying(out=connection.replace("ADMIN", admin(made)))
    if not locked_out:
        guard.way_back(made, machine, THERE)
        return
    with pytest.raises(HostError, match="would lock you out: .* add .* to admins .* or say --force"):
        guard.way_back(made, machine, THERE)


def test_iptables_says_nothing_about_ipv6() -> None:
    made = plan_of()
    made = replace(made, host=replace(made.host, firewall="iptables"))
    guard.way_back(made, Saying(out="2001:db8::99 4000 2001:db8::10 22"), THERE)


def test_the_caller_is_found_although_sudo_takes_it_away() -> None:
    words = "100.64.0.99 4000 198.51.100.10 22"
    away = ("env", "-i", f"PATH={os.environ['PATH']}")
    # the shell stays, as sudo does
    prefix = ("env", f"SSH_CONNECTION={words}", "sh", "-c", '"$@"; code=$?; exit $code', "sh", *away)
    with pytest.raises(HostError, match="you come by ssh from 100.64.0.99"):
        guard.way_back(plan_of(), Machine(prefix), THERE)
