"""One host of a lab (``netlab``): a namespace with addresses, processes, and eyes to look at others."""

from __future__ import annotations

import functools
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.helpers import netns
from tests.helpers.netprobe import PATIENCE, EchoServer, Greeting, State, greetings, listening, scan
from tests.helpers.netssh import NodeSshd, SshAccess

_RESOLV_CONF = Path("/etc/resolv.conf")
# No wait for duplicate IPv6 addresses, and every ICMP refusal is sent: by default a host sends one a second, so all
# ports but the first would look silent. (bbr stays where it is the default: a namespace may not choose cubic then.)
_SYSCTLS = {"net.ipv6.conf.default.accept_dad": "0", "net.ipv4.icmp_ratelimit": "0"}

T = TypeVar("T")


class LabError(Exception):
    """A command of a lab failed; the text has what it said."""


@dataclass
class Shared:
    """What the nodes of a lab have in common: its folder, what ends with it, its ssh key."""

    folder: Path
    stack: ExitStack

    @functools.cached_property
    def ssh(self) -> SshAccess:
        """Made when it is first needed."""
        return SshAccess.make(self.folder / "ssh")


@dataclass(eq=False)
class Node:
    """One host: a namespace, its addresses, its processes."""

    name: str
    namespace: str
    shared: Shared = field(repr=False)
    addresses: list[str] = field(default_factory=list)
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    def set_up(self) -> None:
        """Make the namespace; the lab calls it."""
        etc = netns.ETC / self.namespace
        etc.mkdir(parents=True)
        self.hosts({})
        if _RESOLV_CONF.exists():
            # Nobody to ask, and known at once: programs that look names up would wait for a server far away
            (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        run_ip("netns", "add", self.namespace)
        self.ip("link set lo up")
        for key, value in _SYSCTLS.items():
            self.sysctl(key, value)

    # The network

    def ip(self, *commands: str) -> None:
        """Run ``ip`` commands here, in one go: ``node.ip("link set eth0 down")``."""
        run_ip("-n", self.namespace, "-batch", "-", batch="\n".join(commands) + "\n")

    def address(self, dev: str, cidr: str) -> None:
        """Give a device an address and put it up."""
        nodad = " nodad" if ":" in cidr else ""
        self.ip(f"address add {cidr} dev {dev}{nodad}", f"link set {dev} up")
        self.addresses.append(cidr.partition("/")[0])

    def route(self, destination: str, *, via: str | None = None, dev: str | None = None) -> None:
        """Add a route (``default``, ``203.0.113.0/24``) by a gateway, or to a device's own segment."""
        where = (f" via {via}" if via else "") + (f" dev {dev}" if dev else "")
        self.ip(f"route add {destination}{where}")

    def tap(self, dev: str) -> None:
        """Make a TAP for an emulated guest (QEMU: ``-netdev tap,ifname=DEV,script=no``); attach it to a bridge."""
        self.ip(f"tuntap add dev {dev} mode tap", f"link set {dev} up")

    def sysctl(self, key: str, value: str | int) -> None:
        """Set a kernel parameter of this namespace; ``net.ipv4.ip_forward``."""
        self.inside(lambda: _sysctl_file(key).write_text(str(value)))

    def read_sysctl(self, key: str) -> str:
        """Read a kernel parameter of this namespace."""
        return self.inside(lambda: _sysctl_file(key).read_text().strip())

    def hosts(self, names: Mapping[str, str]) -> None:
        """Replace what /etc/hosts says to this node's processes, besides loopback; running ones see it, too."""
        lines = [f"127.0.0.1 localhost {self.name} {socket.gethostname()}", "::1 localhost"]
        lines += [f"{address} {name}" for name, address in names.items()]
        # Written into, not replaced: it is bound over /etc/hosts, and a new file would not be
        (netns.ETC / self.namespace / "hosts").write_text("\n".join(lines) + "\n")

    def nft(self, rules: str) -> None:
        """Load nftables rules, all or nothing."""
        self.run(["nft", "-f", "-"], stdin=rules)

    # Processes

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs ``words`` here, for callers that start their processes themselves."""
        return ["ip", "netns", "exec", self.namespace, *map(str, words)]

    def run(
        self,
        words: Sequence[str | Path],
        *,
        check: bool = True,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; ``check``: LabError with its output when it fails."""
        done = subprocess.run(
            self.command(words), input=stdin, env=env, timeout=timeout, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: {' '.join(map(str, words))}: exit {done.returncode}: {said}")
        return done

    def popen(
        self, words: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that runs on, its output added to ``log``; the lab kills it at its end."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                self.command(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
            )
        self._children.append(child)
        return child

    def await_listening(self, port: int, *, child: subprocess.Popen[bytes] | None = None, seconds: float = 20) -> None:
        """Wait until something listens on a TCP port here; LabError when it does not, or ``child`` ends first."""
        until = time.monotonic() + seconds
        while port not in self.listening():
            if child is not None and child.poll() is not None:
                raise LabError(f"{self.name}: ended with {child.returncode} and never listened on port {port}")
            if time.monotonic() > until:
                raise LabError(f"{self.name}: nothing listens on port {port} after {seconds:g} s")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill every process here at once, as a power cut does; network and rules stay."""
        netns.kill([self.namespace])
        self.reap()

    def reap(self) -> None:
        """Take leave of the children that were killed."""
        for child in self._children:
            child.wait(10)
        self._children.clear()

    def sshd(self, port: int = 22, *, authorized_key: str | None = None, known_as: Iterable[str] = ()) -> NodeSshd:
        """Start OpenSSH's server for root, by key only; see ``NodeSshd``. The lab's key is let in unless another is."""
        made = NodeSshd(self.shared.ssh, self.shared.folder / f"sshd-{self.name}-{port}", port)
        made.write(authorized_key or self.shared.ssh.public_key)
        child = self.popen(made.words(), log=made.log)
        self.await_listening(port, child=child)
        for address in (*self.addresses, *known_as):
            made.known_as(address)
        return made

    def ssh(self, address: str, words: Sequence[str], *, port: int = 22) -> subprocess.CompletedProcess[str]:
        """Run a command on the far side as root, from here, with the lab's key."""
        return self.run(["ssh", *self.shared.ssh.options(), "-p", str(port), f"root@{address}", *words], check=False)

    # Probing

    def inside(self, work: Callable[[], T]) -> T:
        """Run a function on a thread in this namespace; sockets that it makes stay here."""
        return netns.inside(self.namespace, work)

    def listening(self) -> set[int]:
        """Return the TCP ports that something listens on here."""
        return self.inside(listening)

    def connect(
        self, address: str, port: int, *, udp: bool = False, source_port: int | None = None, timeout: float = PATIENCE
    ) -> State:
        """Try one port: open, refused, silent (dropped) or unreachable (ICMP said so, or no route)."""
        tried = self.inside(lambda: scan(address, [port], udp=udp, source_port=source_port, timeout=timeout))
        return tried[port]

    def scan(
        self, address: str, ports: Iterable[int], *, udp: bool = False, timeout: float = PATIENCE
    ) -> dict[int, State]:
        """Try many ports at once; a thousand silent ones take ``timeout``, not more."""
        return self.inside(lambda: scan(address, ports, udp=udp, timeout=timeout))

    def ask(self, address: str, port: int, *, udp: bool = False, timeout: float = PATIENCE) -> Greeting:
        """Ask a node's ``serve_echo`` who it is and whom it sees; LabError when nobody says."""
        found = self.answers(address, [port], udp=udp, timeout=timeout)
        if port not in found:
            raise LabError(f"{self.name}: nobody says who is at {address} port {port}")
        return found[port]

    def answers(
        self, address: str, ports: Iterable[int], *, udp: bool = False, timeout: float = PATIENCE
    ) -> dict[int, Greeting]:
        """Ask many ports at once; those where nobody says who it is are left out."""
        return self.inside(lambda: greetings(address, ports, udp=udp, timeout=timeout))

    def dial(self, address: str, port: int, *, source_port: int | None = None, timeout: float = 5.0) -> socket.socket:
        """Return a connection that stays open, its greeting (``serve_echo``) not yet read: ``read_greeting``."""
        source = None if source_port is None else ("", source_port)
        return self.inside(lambda: socket.create_connection((address, port), timeout, source))

    def serve_echo(self, ports: Iterable[int], *, udp: Iterable[int] = ()) -> EchoServer:
        """Listen on many ports: each connection is told who answers and whom it sees, then echoed.

        A context manager, closed at the latest with the lab. It is a thread of the test, so ``kill`` does not reach it.
        """
        server = self.inside(lambda: EchoServer(self.name, ports, udp=udp))
        self.shared.stack.callback(server.close)
        return server


def _sysctl_file(key: str) -> Path:
    return Path("/proc/sys", *key.split("."))


def run_ip(*words: str, batch: str | None = None) -> None:
    """Run iproute2; LabError with what it said when it fails."""
    done = subprocess.run(["ip", *words], input=batch, capture_output=True, text=True, check=False)
    if done.returncode:
        what = f"{' '.join(words)} {(batch or '').strip()}"
        raise LabError(f"ip {what}: {done.stderr.strip()}")
