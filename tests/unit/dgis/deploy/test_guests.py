"""Which guests run: what the tools print (libvirt 9, Xen 4.17), and the heartbeat on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dgis.deploy import check, guests
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.topology import Site

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"
CESNET = check.load(EXAMPLES / "pilot-cesnet.yml")
HEAD = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"


@dataclass(frozen=True, slots=True)
class Saying(Machine):
    """A machine whose only program prints this."""

    out: str = ""
    code: int = 0
    wanted: tuple[str, ...] = ()

    def attempt(
        self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        assert tuple(argv) == self.wanted
        return subprocess.CompletedProcess(argv, self.code, self.out, self.out if self.code else "")


def xl(*rows: tuple[str, int, str]) -> Saying:
    """`xl list` as xl_list.c prints it: "%-40s %5d %5lu %5d     %c%c%c%c%c%c  %8.1f"."""
    lines = [f"{name:<40} {number:5d} {1024:5d} {2:5d}     {state}  {12.3:8.1f}\n" for name, number, state in rows]
    return Saying(out=HEAD + "".join(lines), wanted=("xl", "list"))


def running(machine: Machine, means: guests.Means, site: Site = CESNET) -> frozenset[str]:
    return guests.running(site, site.host("xen1"), machine, means)


@pytest.mark.parametrize(
    ("state", "up"),
    [("r-----", True), ("-b----", True), ("------", True), ("--p---", False), ("---s--", False), ("---sc-", False),
     ("-----d", False)],
)  # fmt: skip
def test_xl_says_the_state_of_each(state: str, up: bool) -> None:
    said = xl(("Domain-0", 0, "r-----"), ("node", 3, state), ("wiki", 14, "-b----"), ("stranger", 15, "r-----"))
    assert running(said, "xl") == ({"node", "wiki"} if up else {"wiki"})


def test_xl_in_the_middle_of_something() -> None:
    said = xl(("Domain-0", 0, "r-----"), ("(null)", 4, "--ps-d"), ("node--incoming", 5, "--p---"))
    assert running(said, "xl") == frozenset()
    assert running(Saying(out=HEAD, wanted=("xl", "list")), "xl") == frozenset()


@pytest.mark.parametrize("out", ["", "xl: something else\n", "[]\n"])
def test_xl_that_says_something_else_changes_nothing(out: str) -> None:
    with pytest.raises(HostError, match="xl list says what no version known here says"):
        running(Saying(out=out, wanted=("xl", "list")), "xl")


def test_virsh_names_those_that_run() -> None:
    wanted = ("virsh", "--quiet", "list", "--name", "--state-running")
    assert running(Saying(out="node\nother\n\n", wanted=wanted), "virsh") == {"node"}
    assert running(Saying(out="\n", wanted=wanted), "virsh") == frozenset()
    failed = Saying(out="error: failed to connect to the hypervisor\n", code=1, wanted=wanted)
    with pytest.raises(HostError, match="virsh .* failed to connect to the hypervisor"):
        running(failed, "virsh")


@pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is not installed (Debian: libvirt-clients)")
def test_the_real_virsh_is_understood() -> None:
    """Its test driver has one domain, called test, which runs."""
    machine = Machine(("env", "LIBVIRT_DEFAULT_URI=test:///default"))
    site = replace(CESNET, guests=(replace(CESNET.guest("node"), name="test"), CESNET.guest("wiki")))
    assert running(machine, "virsh", site) == {"test"}


def test_each_kind_of_host_is_asked_its_own_way() -> None:
    host = CESNET.host("xen1")
    assert guests.means_of(host) == "xl"
    assert guests.means_of(replace(host, hypervisor="kvm")) == "virsh"


def test_the_heartbeat_is_an_answer_of_any_kind() -> None:
    """Loopback refuses port 22 or takes it: either is an answer. One that is full says nothing."""
    here = tuple(replace(guest, address=IPv4Address(f"127.99.0.{n}")) for n, guest in enumerate(CESNET.guests, 1))
    assert running(Machine(), "heartbeat", replace(CESNET, guests=here)) == {"node", "wiki"}
    assert running(Machine(), "heartbeat", replace(CESNET, guests=())) == frozenset()


def test_the_heartbeat_misses_who_does_not_answer() -> None:
    try:
        silent = socket.create_server(("127.99.1.1", 22), backlog=0)
    except PermissionError:
        pytest.skip("only root may listen on port 22 of a loopback address")
    with silent:
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.99.1.1", 22))
        here = tuple(
            replace(guest, address=IPv4Address(address))
            for guest, address in zip(CESNET.guests, ("127.99.1.1", "127.99.1.2"), strict=True)
        )
        assert running(Machine(), "heartbeat", replace(CESNET, guests=here)) == {"wiki"}
        for each in waiting:
            each.close()


def test_doors_are_open_of_those_that_run_and_of_those_that_are_not_asked_about() -> None:
    site = check.load(EXAMPLES / "pilot-cesnet.yml")
    (host,) = site.hosts
    assert guests.doors(site, host, frozenset(), every=False) == {"wiki"}
    assert guests.doors(site, host, frozenset({"node"}), every=True) == {"node"}
    elsewhere = check.load(EXAMPLES / "pilot-lf1.yml")
    assert guests.doors(elsewhere, elsewhere.host("xen2"), frozenset(), every=True) == {"node"}
