"""The pilot's first site as a stage: its hosts and guests in namespaces, its peers around, its file open for edits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from dgis.deploy import check, sitefile
from dgis.deploy.apply import Applied, Way
from tests.helpers.frontpeer import Authority, Caller, Stream, TlsEcho, stream
from tests.helpers.netlab import Lab
from tests.helpers.netnode import Node
from tests.helpers.netssh import SSHD
from tests.helpers.sitelab import World

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "vm-images" / "examples"
PUBLIC = "198.51.100.10"
Edit = tuple[str, str]
FORWARD: Edit = ("      - {public: 8080, guest: 80, from: [any], purpose: wiki}\n", "")
FORWARDS: Edit = ("    forwards:\n      - {public: 8080, guest: 80, from: [any], purpose: wiki}\n", "")
NAMES: Edit = ("    names:\n      - {name: wiki.cesnet.example, port: 8443, from: [any]}\n", "")
EGRESS: Edit = ("    egress:\n      - {to: any, ports: 443, purpose: package updates of the wiki}\n", "")
IPTABLES: Edit = ("  - name: xen1\n", "  - name: xen1\n    firewall: iptables\n")


def edited(text: str, *edits: Edit) -> str:
    """The text with each first part replaced, which has to be there."""
    for old, new in edits:
        assert old in text, f"not in the file: {old!r}"
        text = text.replace(old, new, 1)
    return text


@dataclass
class Scene:
    """A site file that is edited, and the world that it describes. `peers` are the other two sites' hosts."""

    world: World
    text: str
    file: Path
    authority: Authority
    peers: dict[str, Node]
    site: str = "cesnet"
    host: str = "xen1"
    _streams: ExitStack = field(default_factory=ExitStack)
    _wiki: list[TlsEcho] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def outside(self) -> Node:
        return self.world.outside

    @property
    def machine(self) -> Node:
        """The host."""
        return self.world.node(self.site, self.host)

    @property
    def way(self) -> Way:
        return self.world.way(self.site, self.host)

    def guest(self, name: str) -> Node:
        return self.world.node(self.site, name)

    def edit(self, *edits: Edit) -> None:
        """Change the site file, for good; nothing is applied."""
        self.text = edited(self.text, *edits)
        self.file.write_text(self.text)
        self.world.sites[self.site] = check.resolved(*sitefile.parse(self.text, "cesnet.yml"))

    def apply(self, *edits: Edit) -> Applied:
        """`dgis deploy apply` on the host, after an edit."""
        self.edit(*edits)
        return self.world.apply(self.site, self.host)

    def words(self, command: str, *options: str) -> list[str]:
        """The command line of `dgis deploy COMMAND` for the host."""
        words = [sys.executable, "-m", "dgis.cli", "deploy", command, str(self.file)]
        return [*words, *self.world.options(self.site, self.host), *options]

    def run(self, command: str, *options: str, columns: int = 120) -> subprocess.CompletedProcess[str]:
        """`dgis deploy COMMAND` as a process on the host."""
        environment = {**os.environ, "COLUMNS": str(columns), "PYTHONPATH": str(ROOT)}
        return self.machine.run(self.words(command, *options), check=False, env=environment)

    def serve(self) -> None:
        """Every service that the site's doors lead to, as echoes; the peers answer, too."""
        node, wiki = self.guest("node"), self.guest("wiki")
        node.serve_echo([9442, 2811, 11112, 50000, 50099])
        if SSHD.exists():
            node.sshd(2222).known_as(PUBLIC, 443)
        wiki.serve_echo([80])
        for role, port in (("catalog", 9441), ("storage", 9443)):
            self.keep(TlsEcho(node, port, self.authority.server(f"{role}.node.cesnet.example")))
        self.serve_wiki("wiki.cesnet.example")
        for peer in (*self.peers.values(), self.outside):
            peer.serve_echo([443, 2811])

    def serve_wiki(self, name: str) -> None:
        """Serve the wiki with a certificate of this name, instead of what serves it now."""
        for server in self._wiki:
            server.close()
        self._wiki = [self.keep(TlsEcho(self.guest("wiki"), 8443, self.authority.server(name)))]

    def keep(self, server: TlsEcho) -> TlsEcho:
        """Close a server at the latest with the scene."""
        return self._open.enter_context(server)

    def caller(self, node: Node) -> Caller:
        """A party that calls by name through the front."""
        return self._streams.enter_context(Caller(node, PUBLIC, 443, self.authority.client(node.name)))

    def stream(self, node: Node, address: str, port: int) -> Stream:
        """A stream that ends at the latest with the act."""
        return self._streams.enter_context(stream(node, address, port))

    def named(self, node: Node, name: str) -> Stream:
        """The same through the front."""
        return self._streams.enter_context(self.caller(node).stream(name))

    @contextmanager
    def act(self) -> Iterator[Scene]:
        """For one of several tests on the same stage: afterwards its streams are gone, and the file is as before."""
        text = self.text
        try:
            yield self
        finally:
            self._streams.close()
            if self.text != text:
                self.apply((self.text, text))


@contextmanager
def scene(folder: Path, *edits: Edit, prefix: str = "scene") -> Iterator[Scene]:
    """The site of pilot-cesnet.yml, applied and with everything that serves in it."""
    text = edited((EXAMPLES / "pilot-cesnet.yml").read_text(), *edits)
    with _tools_of_a_host(), Lab(prefix) as lab:
        world = World(lab)
        world.add(check.resolved(*sitefile.parse(text, "cesnet.yml")))
        peers = {name: world.place(name, IPv4Interface(f"{at}/25")) for name, at in PEERS.items()}
        file = folder / "cesnet.yml"
        file.write_text(text)
        made = Scene(world, text, file, Authority.make(folder / "authority"), peers)
        with made._open, made._streams:
            made.apply()
            made.serve()
            yield made


@contextmanager
def _tools_of_a_host() -> Iterator[None]:
    """What a host would run: the system's own python3, not a developer's, which takes five times as long to start."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"/usr/sbin:/usr/bin:/sbin:/bin:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


PEERS = {"lf1": "203.0.113.20", "uvn": "203.0.113.130"}


def all_flow(streams: Sequence[Stream]) -> bool:
    """Whether every stream still flows."""
    return all(each.still_flows() for each in streams)
