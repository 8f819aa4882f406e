"""What the lab offers: each feature once, on a three-site Internet with NAT."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import netns
from tests.helpers.netlab import Bridge, Lab, probe_netlab, require_netlab
from tests.helpers.netnode import LabError, Node
from tests.helpers.netprobe import Greeting, read_greeting
from tests.helpers.netssh import SSHD
from tests.helpers.wanem import Shape

ROOT = Path(__file__).resolve().parents[3]
SITES = {"a": "198.51.100.10", "b": "198.51.100.20", "c": "198.51.100.30"}
OUTSIDE = "198.51.100.99"
PORTS = range(50000, 50050)
# Where silence is expected: long enough for an answer on one machine, and the whole file stays quick
SOON = 0.4
NAT = """
table ip site {
    map ports { type inet_service : ipv4_addr . inet_service; elements = { 443 : 10.77.0.11 . 9442 } }
    map ranges { type inet_service : ipv4_addr; flags interval; elements = { 50000-50049 : 10.77.0.12 } }
    chain arriving {
        type nat hook prerouting priority dstnat;
        ip daddr PUBLIC dnat ip to tcp dport map @ports
        ip daddr PUBLIC tcp dport 50000-50049 dnat to tcp dport map @ranges
        ip daddr PUBLIC udp dport 7000 dnat to 10.77.0.11
    }
    chain leaving { type nat hook postrouting priority srcnat; oifname "pub0" masquerade; }
    chain own { type filter hook input priority filter; policy drop;
        ct state established,related accept; iifname "lo" accept;
        tcp dport 22 accept; tcp dport 81 reject with tcp reset; tcp dport 82 reject with icmp host-prohibited; }
}
"""


class Site:
    """One institution: a host with the public address, two guests behind its NAT."""

    def __init__(self, lab: Lab, internet: Bridge, name: str) -> None:
        public = SITES[name]
        self.host = lab.node(f"{name}-host")
        internet.join(self.host, "pub0", f"{public}/24")
        self.bridge = lab.bridge(self.host, "br-guest", "10.77.0.1/24")
        self.guests = [lab.node(f"{name}-g{number}") for number in (1, 2)]
        for number, guest in enumerate(self.guests, start=11):
            self.bridge.join(guest, "eth0", f"10.77.0.{number}/24", via="10.77.0.1")
        self.host.sysctl("net.ipv4.ip_forward", 1)
        self.host.nft(NAT.replace("PUBLIC", public))


class World:
    """Three sites and somebody outside."""

    def __init__(self, lab: Lab) -> None:
        began = time.monotonic()
        self.lab = lab
        internet = lab.switch("inet")
        self.sites = {name: Site(lab, internet, name) for name in SITES}
        self.outside = lab.node("outside")
        internet.join(self.outside, "eth0", f"{OUTSIDE}/24")
        self.seconds = time.monotonic() - began


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require_netlab()
    with Lab("world") as lab:
        yield World(lab)


@pytest.fixture
def pair() -> Iterator[tuple[Lab, Node, Node]]:
    """Two hosts on one cable, for a test that breaks them."""
    require_netlab()
    with Lab("pair") as lab:
        one, other = lab.node("one"), lab.node("other")
        lab.link(one, "eth0", other, "eth0")
        one.address("eth0", "192.0.2.1/24")
        other.address("eth0", "192.0.2.2/24")
        yield lab, one, other


def test_three_sites_come_up_in_about_a_second(world: World) -> None:
    """0.2 s on a quiet machine."""
    assert world.seconds < 3


class TestProbing:
    def test_each_verdict(self, world: World) -> None:
        a, address = world.sites["a"], SITES["a"]
        with a.guests[0].serve_echo([9442]):
            found = world.outside.scan(address, [443, 80, 81, 82], timeout=SOON)
            assert found == {443: "open", 80: "silent", 81: "refused", 82: "unreachable"}
        assert world.outside.connect(address, 443) == "refused"
        assert world.outside.connect("203.0.113.1", 443) == "unreachable"
        assert world.outside.connect(address, 22) == "refused"

    def test_a_thousand_silent_ports_take_one_wait(self, world: World) -> None:
        began = time.monotonic()
        found = world.outside.scan(SITES["b"], range(1000, 2000))
        assert set(found.values()) == {"silent"}
        assert time.monotonic() - began < 4

    def test_ten_thousand_ports_of_a_guest(self, world: World) -> None:
        guest = world.sites["b"].guests[0]
        with guest.serve_echo([7, 9999]):
            found = world.sites["b"].host.scan("10.77.0.11", range(1, 10001))
        assert {port for port, state in found.items() if state != "refused"} == {7, 9999}

    def test_who_answers_behind_a_port_map_and_whom_it_sees(self, world: World) -> None:
        a = world.sites["a"]
        with a.guests[0].serve_echo([9442]), a.guests[1].serve_echo(PORTS):
            greeting = world.outside.ask(SITES["a"], 443)
            assert (greeting.node, greeting.port, greeting.peer[0]) == ("a-g1", 9442, OUTSIDE)
            answers = world.outside.answers(SITES["a"], range(49999, 50051), timeout=SOON)
            assert {port: (each.node, each.port) for port, each in answers.items()} == {p: ("a-g2", p) for p in PORTS}
            with pytest.raises(LabError, match="nobody says who is at 198.51.100.10 port 444"):
                world.outside.ask(SITES["a"], 444, timeout=SOON)

    def test_a_guest_goes_out_by_its_sites_address(self, world: World) -> None:
        with world.outside.serve_echo([80]):
            assert world.sites["c"].guests[1].ask(OUTSIDE, 80).peer[0] == SITES["c"]

    def test_datagrams(self, world: World) -> None:
        c = world.sites["c"]
        with c.guests[0].serve_echo([], udp=[7000]):
            assert world.outside.ask(SITES["c"], 7000, udp=True).node == "c-g1"
            assert world.outside.scan(SITES["c"], [7000, 7001], udp=True, timeout=SOON) == {
                7000: "open",
                7001: "silent",
            }
            assert c.host.scan("10.77.0.11", [7000, 7001, 7002], udp=True) == {
                7000: "open", 7001: "refused", 7002: "refused",
            }  # fmt: skip

    def test_from_a_certain_source_port_again_and_again(self, world: World) -> None:
        with world.outside.serve_echo([80]):
            host = world.sites["a"].host
            assert [host.connect(OUTSIDE, 80, source_port=20000) for _ in range(3)] == ["open"] * 3
            with host.dial(OUTSIDE, 80, source_port=20001) as connection:
                assert read_greeting(connection) == Greeting("outside", 80, (SITES["a"], 20001))

    def test_a_connection_stays_while_rules_are_replaced(self, world: World) -> None:
        b = world.sites["b"]
        with b.guests[0].serve_echo([9442]), world.outside.dial(SITES["b"], 443) as connection:
            assert read_greeting(connection).node == "b-g1"
            b.host.nft("flush map ip site ports")
            connection.sendall(b"still there?")
            assert connection.recv(100) == b"still there?"
            assert world.outside.connect(SITES["b"], 443, timeout=SOON) == "silent"
            b.host.nft("add element ip site ports { 443 : 10.77.0.11 . 9442 }")
            assert world.outside.connect(SITES["b"], 443) == "open"


class TestProcesses:
    def test_run_tells_what_failed(self, pair: tuple[Lab, Node, Node]) -> None:
        _, one, _ = pair
        assert one.run(["cat"], stdin="words").stdout == "words"
        assert one.run(["false"], check=False).returncode == 1
        with pytest.raises(LabError, match=r"one: ls /nowhere: exit 2: .*No such file"):
            one.run(["ls", "/nowhere"])
        with pytest.raises(LabError, match=r"ip .*link set none up.*Cannot find device"):
            one.ip("link set none up")

    def test_the_real_file_system_and_hosts_of_its_own(self, pair: tuple[Lab, Node, Node], tmp_path: Path) -> None:
        _, one, other = pair
        before = Path("/etc/hosts").read_text()
        one.hosts({"pacs.a.example": "192.0.2.2"})
        seen = one.run(["sh", "-c", f"echo written > {tmp_path}/file; getent hosts pacs.a.example"])
        assert (seen.stdout.split(), (tmp_path / "file").read_text()) == (["192.0.2.2", "pacs.a.example"], "written\n")
        assert other.run(["getent", "hosts", "pacs.a.example"], check=False).returncode == 2
        assert one.run(["getent", "ahostsv4", socket.gethostname()]).stdout.startswith("127.0.0.1 ")
        assert Path("/etc/hosts").read_text() == before

    def test_a_running_process_sees_a_changed_hosts_file(self, pair: tuple[Lab, Node, Node], tmp_path: Path) -> None:
        _, one, _ = pair
        words = one.command(["sh", "-c", "read line; getent hosts moved.example"])
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            one.hosts({"moved.example": "192.0.2.77"})
            assert child.communicate("go\n", timeout=10)[0].split() == ["192.0.2.77", "moved.example"]

    def test_an_unknown_name_is_unknown_at_once(self, world: World) -> None:
        """No waiting for a name server that the lab does not have."""
        began = time.monotonic()
        assert world.sites["a"].guests[0].run(["getent", "hosts", "no.such.example"], check=False).returncode == 2
        assert time.monotonic() - began < 2

    def test_a_service_is_awaited_and_killed(self, pair: tuple[Lab, Node, Node], tmp_path: Path) -> None:
        _, one, other = pair
        log = tmp_path / "log"
        child = one.popen([sys.executable, "-m", "http.server", "8000", "--directory", tmp_path], log=log)
        one.await_listening(8000, child=child)
        assert other.connect("192.0.2.1", 8000) == "open"
        one.kill()
        assert (child.returncode, other.connect("192.0.2.1", 8000)) == (-signal.SIGKILL, "refused")
        dead = one.popen(["false"], log=log)
        with pytest.raises(LabError, match="ended with 1 and never listened on port 8001"):
            one.await_listening(8001, child=dead)

    def test_sysctls_are_the_nodes_own(self, pair: tuple[Lab, Node, Node]) -> None:
        _, one, other = pair
        one.sysctl("net.ipv4.ip_forward", 1)
        assert (one.read_sysctl("net.ipv4.ip_forward"), other.read_sysctl("net.ipv4.ip_forward")) == ("1", "0")
        assert one.read_sysctl("net.bridge.bridge-nf-call-iptables") == "1"


@pytest.mark.skipif(not SSHD.exists(), reason="sshd is not installed (Debian: openssh-server)")
def test_root_logs_in_by_ssh(world: World) -> None:
    host = world.sites["a"].host
    host.hosts({"only.here.example": "192.0.2.50"})
    door = host.sshd(known_as=["a.example"])
    done = world.outside.ssh(SITES["a"], ["id -u; getent hosts only.here.example; ip -br link show br-guest"])
    assert done.returncode == 0, done.stderr + door.log.read_text()
    assert done.stdout.split()[:3] == ["0", "192.0.2.50", "only.here.example"]
    assert "br-guest" in done.stdout
    guest = world.sites["b"].guests[0]
    guest.sshd(9442).known_as(SITES["b"], 443)
    through = world.outside.ssh(SITES["b"], ["hostname"], port=443)
    assert through.returncode == 0, through.stderr
    # Another host under a known name is an attack, as in life
    world.sites["c"].guests[0].sshd(9442)
    refused = world.outside.ssh(SITES["c"], ["true"], port=443)
    assert (refused.returncode, "Host key verification failed" in refused.stderr) == (255, True)


def test_networks_on_one_segment_and_a_guest_of_qemu(pair: tuple[Lab, Node, Node]) -> None:
    lab, one, other = pair
    other.address("eth0", "203.0.113.2/24")
    assert one.connect("203.0.113.2", 80) == "unreachable"
    one.route("203.0.113.0/24", dev="eth0")
    assert one.connect("203.0.113.2", 80) == "refused"
    bridge = lab.bridge(one, "br-guest")
    one.tap("tap0")
    bridge.attach("tap0")
    assert "master br-guest" in one.run(["ip", "link", "show", "tap0"]).stdout


def test_without_root_it_is_skipped_or_where_it_must_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    probe_netlab.cache_clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    try:
        monkeypatch.delenv("DGIS_MUST_RUN", raising=False)
        with pytest.raises(pytest.skip.Exception, match="netlab: network namespaces need root"):
            require_netlab()
        monkeypatch.setenv("DGIS_MUST_RUN", "netlab,qemu")
        with pytest.raises(pytest.fail.Exception, match="must run here: network namespaces need root"):
            require_netlab()
    finally:
        probe_netlab.cache_clear()


class TestLines:
    def test_delay_and_rate(self) -> None:
        """25 ms each way; 800 kbit/s up: 100 kB take about a second."""
        require_netlab()
        with Lab("adsl") as lab:
            internet = lab.switch("inet")
            home, far = lab.node("home"), lab.node("far")
            internet.join(far, "eth0", "198.51.100.1/24")
            shapes = Shape.parse("rate=800k,delay=25"), Shape.parse("rate=3m,delay=25")
            internet.join(home, "ppp0", "198.51.100.2/24", line=shapes)
            with far.serve_echo([80]), home.dial("198.51.100.1", 80) as connection:
                read_greeting(connection)
                began = time.monotonic()
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
                assert 0.05 <= time.monotonic() - began < 0.5
                began, got = time.monotonic(), 0
                connection.sendall(bytes(50_000))
                while got < 50_000:
                    got += len(connection.recv(65536))
                assert 0.45 < time.monotonic() - began < 3

    def test_seeded_loss_and_counters(self) -> None:
        require_netlab()
        with Lab("lossy") as lab:
            one, other = lab.node("one"), lab.node("other")
            line = lab.wan(one, "tap0", other, "tap0", ab=Shape(loss=100), ba=Shape())
            one.address("tap0", "192.0.2.1/24")
            other.address("tap0", "192.0.2.2/24")
            assert other.connect("192.0.2.1", 80, timeout=0.3) == "silent"
            there, back = line.stop()
            assert (there.frames, there.lost >= 1, back.lost, back.frames >= 1) == (0, True, 0, True)
            assert line.stop() == (there, back)

    def test_a_mistyped_line_says_what_it_has(self) -> None:
        with pytest.raises(ValueError, match="unknown: rat; a line has rate, delay, jitter, loss, queue"):
            Shape.parse("rat=1m")


class TestNothingStays:
    def test_after_a_failure(self, tmp_path: Path) -> None:
        require_netlab()
        with pytest.raises(ZeroDivisionError), Lab("fails") as lab:
            node = lab.node("one")
            node.serve_echo([80])
            # A daemon that left its parent
            node.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! > " + str(tmp_path / "pid")])
            child = node.popen(["sleep", "1000"], log=tmp_path / "log")
            _ = 1 / 0
        assert child.returncode == -signal.SIGKILL
        assert not _runs(int((tmp_path / "pid").read_text()))
        assert _left("fails") == []
        assert not lab.folder.exists()

    def test_after_a_failure_while_it_is_made(self) -> None:
        require_netlab()
        with pytest.raises(LabError, match="File exists"), Lab("twice") as lab:
            node = lab.node("one")
            node.ip("link add br0 type bridge")
            lab.bridge(node, "br0")
        assert _left("twice") == []

    def test_what_a_killed_run_left_goes_with_the_next(self, tmp_path: Path) -> None:
        require_netlab()
        code = (
            "import os, signal, sys; from pathlib import Path; from tests.helpers.netlab import Lab\n"
            "lab = Lab('killed').__enter__(); node = lab.node('one')\n"
            "print(node.popen(['sleep', '1000'], log=Path(sys.argv[1])).pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        words = [sys.executable, "-c", code, str(tmp_path / "log")]
        pid = int(subprocess.run(words, stdout=subprocess.PIPE, cwd=ROOT, check=False).stdout)
        with Lab("next"):
            assert not _runs(pid)
            assert _left("killed") == []

    def test_two_labs_of_one_name_at_once(self) -> None:
        require_netlab()
        with Lab("same") as one, Lab("same") as other:
            assert one.node("host").namespace != other.node("host").namespace


def _left(prefix: str) -> list[str]:
    folders = (netns.NETNS, netns.ETC, netns.FOLDERS)
    return [str(path) for folder in folders for path in folder.glob(f"nl-{prefix}-*") if not _is_another_runs(path)]


def _is_another_runs(path: Path) -> bool:
    pid = int(path.name.split("-")[2])
    return pid != os.getpid() and _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
