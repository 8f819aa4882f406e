"""GridFTP through the NAT that `dgis deploy` renders: control and data ports, passive and MODE E, with stock software.

Two institutions of the pilot and the hospital stand in network namespaces with their rules applied; the pilot's storage
providers are real processes with the rendered configuration. Peers without NAT are plain machines: `globus-url-copy` at
one, `globus-gridftp-server` at the other. A watch at the router between them notes who opens a connection to whom, so
that each test says by which ports the data went, and which side connected.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from certs import ca, profiles
from certs.config import IdentityConfig
from certs.tls import client_context
from dgis.config import load_node
from dgis.deploy.topology import Site
from storage_provider.channel import Put, Stored, Want
from storage_provider.errors import Unreachable
from storage_provider.gridftp.client.channel import GsiftpChannel
from storage_provider.gridftp.settings import DataSettings
from storage_provider.timeouts import Timeouts
from tests.conformance.memory_channel import spec_of
from tests.helpers import gct
from tests.helpers.grid import wait_until
from tests.helpers.gsiftp import path_of
from tests.helpers.madesites import parsed
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.pilot import Grid, mount_points
from tests.helpers.pki import SiteHome
from tests.helpers.sitelab import World

pytestmark = pytest.mark.timeout(180)
EXAMPLES = Path(__file__).resolve().parents[2] / "vm-images" / "examples"
CESNET, UVN, MOTOL = "198.51.100.10", "203.0.113.130", "192.0.2.10"
LF1, BULOVKA = "203.0.113.20", "198.51.100.40"  # peers, as plain machines without NAT
BESIDE = "203.0.113.21"  # lf1's neighbour: nobody's peer
INSIDE, UVN_UPLINK = "10.77.0.11", "172.16.8.130"  # what only the own host, or the own firewall, may see
CESNET_STORE, UVN_STORE = "storage.node.cesnet.example", "storage.node.uvn.example"
BULOVKA_STORE = "storage.gct.bulovka.example"
CONTROL = 2811
CESNET_DATA, UVN_DATA, BULOVKA_DATA = range(50000, 50100), range(51000, 51050), range(50000, 50200)
ACTIVE = range(50300, 50350)
PUBLISHED = "{name: node, roles: [dgis, storage], gridftp: {data: 50000-50099}, sftp: 443}"
WITH_ACTIVE = PUBLISHED.replace("}, sftp", "}, active: 50300-50349, sftp")
MODES = {"stream": (), "mode-e": ("-fast",), "mode-e-parallel": ("-fast", "-p", "2")}
EACH_MODE = pytest.mark.parametrize("options", MODES.values(), ids=MODES)
# Which address the stock client names as its own; the others are what one finds recommended and what does not help
ADVERTISED = {"GLOBUS_FTP_CLIENT_DATA_IP": MOTOL}
IN_VAIN: dict[str, dict[str, str]] = {
    "nothing": {},
    "hostname": {"GLOBUS_HOSTNAME": MOTOL},
    "source-pasv": {"GLOBUS_FTP_CLIENT_SOURCE_PASV": "1"},
}
WATCH = """
table ip watch {
  set opened { type ipv4_addr . ipv4_addr . inet_service . inet_service; size 65535; flags dynamic; }
  chain watch {
    type filter hook prerouting priority raw;
    tcp flags & (syn | ack) == syn add @opened { ip saddr . ip daddr . tcp dport . tcp sport }
  }
}
"""
Way = tuple[str, str, int]


@dataclass(frozen=True)
class Watch:
    """Who opened connections through a machine, before it translates them; what it drops is seen, too."""

    node: Node

    def start(self) -> None:
        self.node.nft(WATCH)

    def opened(self) -> list[Way]:
        """The connections, as (source, target, port) each."""
        listed = json.loads(self.node.run(["nft", "-j", "list", "set", "ip", "watch", "opened"]).stdout)
        found = next(each["set"] for each in listed["nftables"] if "set" in each).get("elem", [])
        return sorted((source, target, port) for source, target, port, _ in (each["concat"] for each in found))

    def data(self) -> list[Way]:
        """Those that carry data."""
        return [way for way in self.opened() if way[2] != CONTROL]

    def forget(self) -> None:
        self.node.run(["nft", "flush", "set", "ip", "watch", "opened"])


def between(ways: list[Way], source: str, target: str, ports: range) -> bool:
    """Whether data connections were opened, and all of them so."""
    return bool(ways) and all((way[0], way[1]) == (source, target) and way[2] in ports for way in ways)


@dataclass
class Scene:
    """The sites with their rules and storage providers, and the machines of peers."""

    world: World
    grid: Grid
    folder: Path
    places: dict[str, Node] = field(default_factory=dict)
    copiers: dict[str, IdentityConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.internet = Watch(self.world.router)
        self.internet.start()
        for name, address in (("lf1", f"{LF1}/25"), ("beside", f"{BESIDE}/25"), ("bulovka", f"{BULOVKA}/24")):
            self.places[name] = self.world.place(name, IPv4Interface(address))
            self.places[name].hosts({CESNET_STORE: CESNET, UVN_STORE: UVN, BULOVKA_STORE: BULOVKA})

    def place(self, name: str) -> Node:
        """A peer's machine by its name, a guest by SITE/GUEST."""
        site, _, guest = name.partition("/")
        return self.world.node(site, guest) if guest else self.places[name]

    def copy(self, *args: str, at: str = "lf1", **env: str) -> subprocess.CompletedProcess[str]:
        """Run `globus-url-copy` with private data channels."""
        ports = (ACTIVE[0], ACTIVE[-1])
        return gct.copy(self.copiers[at], "-dcpriv", *args, timeout=30, node=self.place(at), ports=ports, env=env)

    def good(self, *args: str, at: str = "lf1", **env: str) -> list[Way]:
        """The same, which must succeed; the data connections that it took."""
        self.internet.forget()
        done = self.copy(*args, at=at, **env)
        assert done.returncode == 0, done.stderr[-2000:]
        return self.internet.data()

    def hangs(self, *args: str, at: str = "lf1", once: Callable[[], object], **env: str) -> None:
        """The same, which must get no answer any more `once` something is so."""
        self.internet.forget()
        ports = (ACTIVE[0], ACTIVE[-1])
        words = ("-dcpriv", *args)
        with gct.copying(self.copiers[at], *words, node=self.place(at), ports=ports, env=env) as child:
            wait_until(once, seconds=30, what="somebody tries to connect")
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(1.2)

    def local(self, name: str, data: bytes = b"") -> str:
        (self.folder / name).write_bytes(data)
        return f"file://{self.folder / name}"

    def got(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def stored(self, site: str, data: bytes) -> bool:
        where = self.world.sites[site]
        key = path_of(data).removeprefix("/areas/main/objects/")
        return (self.grid.state(where, where.guest("node")) / "storage" / "main" / "objects" / key).exists()

    @contextmanager
    def applied(self, host: str, site: Site) -> Iterator[None]:
        """Another form of a site file, applied at its host for a while."""
        before, self.world.sites[site.name] = self.world.sites[site.name], site
        try:
            self.world.apply(site.name, host)
            yield
        finally:
            self.world.sites[site.name] = before
            self.world.apply(site.name, host)


def changed(name: str, old: str, new: str) -> Site:
    """The site of an example whose text says something else at one place."""
    text = (EXAMPLES / f"{name}.yml").read_text()
    assert old in text, f"{name}.yml does not say {old!r} any more"
    return parsed(text.replace(old, new))


def with_rsa(home: Path, name: str, out: Path) -> IdentityConfig:
    """A second certificate for a gateway: stock clients delegate, which a P-256 key cannot."""
    out.mkdir(exist_ok=True)
    key, request, kept = profiles.new_user_key(), out / "request.pem", out / f"{name}.key.pem"
    kept.write_bytes(profiles.key_pem(key))
    kept.chmod(0o600)
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    request.write_bytes(asked.public_bytes(serialization.Encoding.PEM))
    ca.sign_request(home, request, ca.Host(name, dns=(name,), roles=("gateway",)), out=out)
    return IdentityConfig(cert=out / f"{name}.cert.pem", key=kept, trust=home / "trust")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require_netlab()
    folder = tmp_path_factory.mktemp("gridftp")
    with mount_points(), Lab("gridftp") as lab:
        world = World(lab)
        cesnet = world.add(changed("pilot-cesnet", PUBLISHED, WITH_ACTIVE))
        uvn = world.add(parsed((EXAMPLES / "pilot-uvn.yml").read_text()))
        motol = world.add(changed("hospital", "organisation: Hospital Grid", f"organisation: {cesnet.organisation}"))
        world.apply_all()
        grid = Grid(world, folder / "grid", dict.fromkeys(world.sites, world.outside))
        grid.prepare(cesnet, uvn, motol)
        for site in (cesnet, uvn):
            grid.start(site, site.guest("node"), "storage")
        made = Scene(world, grid, folder)
        lf1 = with_rsa(grid.home, "dgis.node.lf1.example", folder / "rsa")
        gate = with_rsa(grid.home, "dgis.gate.motol.example", folder / "rsa")
        made.copiers = {"lf1": lf1, "beside": lf1, "motol/gate": gate}
        for site in (cesnet, uvn):
            child = grid.running[site.name, "node", "storage"]
            world.node(site.name, "node").await_listening(CONTROL, child=child, seconds=60)
        yield made


@pytest.fixture(scope="module")
def stock(scene: Scene) -> Iterator[gct.GctServer]:
    """The stock server of bulovka, a peer of motol's."""
    home, where = SiteHome(scene.grid.home), scene.folder / "bulovka"
    made = ca.issue_host(home.home, BULOVKA_STORE, dns=(BULOVKA_STORE,), ips=(BULOVKA,), roles=("storage",), out=where)
    with gct.serve(
        home,
        scene.copiers["motol/gate"],
        identity=home.identity(made),
        interface=BULOVKA,
        data_ports=(BULOVKA_DATA[0], BULOVKA_DATA[-1]),
        node=scene.place("bulovka"),
        port=CONTROL,
    ) as server:
        yield server


def some(*salt: object) -> bytes:
    """An object that no other test has."""
    return hashlib.sha256(repr(salt).encode()).digest() + random.Random(3).randbytes(3_000_000)


def url(store: str, data: bytes) -> str:
    return f"gsiftp://{store}:{CONTROL}{path_of(data)}"


@pytest.mark.parametrize(
    ("here", "address", "ports", "there", "seen"),
    [
        ("lf1", CESNET, CESNET_DATA, "cesnet/node", LF1),
        ("lf1", UVN, UVN_DATA, "uvn/node", LF1),
        ("bulovka", MOTOL, ACTIVE, "motol/gate", BULOVKA),
        ("cesnet/node", LF1, ACTIVE, "lf1", CESNET),
        ("motol/gate", BULOVKA, BULOVKA_DATA, "bulovka", MOTOL),
        ("cesnet/node", UVN, UVN_DATA, "uvn/node", CESNET),
        ("uvn/node", CESNET, CESNET_DATA, "cesnet/node", UVN),
    ],
    ids=["data-in", "data-in-behind-a-firewall", "active-in", "active-out", "data-out", "two-nats", "two-nats-back"],
)
def test_every_port_of_a_range_leads_to_its_own(
    scene: Scene, here: str, address: str, ports: range, there: str, seen: str
) -> None:
    """Each to the same port, where the other side sees the public address; and not one port further."""
    node, place, beyond = scene.place(there), scene.place(here), (ports[0] - 1, ports[-1] + 1)
    with node.serve_echo((*ports, *beyond)):
        found = place.answers(address, ports)
        assert {port: (each.node, each.port, each.peer[0]) for port, each in found.items()} == {
            port: (node.name, port, seen) for port in ports
        }
        assert place.scan(address, beyond, timeout=0.5) == dict.fromkeys(beyond, "silent")


def test_a_range_is_shut_for_all_but_its_peers(scene: Scene) -> None:
    ranges = [("cesnet/node", CESNET, CESNET_DATA), ("uvn/node", UVN, UVN_DATA), ("motol/gate", MOTOL, ACTIVE)]
    with ExitStack() as stack, ThreadPoolExecutor(len(ranges)) as pool:
        for guest, _, ports in ranges:
            stack.enter_context(scene.place(guest).serve_echo(ports))
        tried = [pool.submit(scene.place("beside").scan, address, ports) for _, address, ports in ranges]
        assert [set(each.result().values()) for each in tried] == [{"silent"}] * len(ranges)


@gct.NEEDS_CLIENT
@EACH_MODE
def test_a_peer_puts_and_gets(scene: Scene, options: tuple[str, ...]) -> None:
    """In MODE E it is the sender who connects: the server, for a get, to the ports that the peer declares."""
    data = some("peer", options)
    streams = 2 if "-p" in options else 1
    up = scene.good(*options, scene.local("sent", data), url(CESNET_STORE, data))
    assert scene.stored("cesnet", data)
    assert between(up, LF1, CESNET, CESNET_DATA) and len(up) == streams
    down = scene.good(*options, url(CESNET_STORE, data), scene.local("got"))
    assert scene.got("got") == data
    assert between(down, CESNET, LF1, ACTIVE) if options else between(down, LF1, CESNET, CESNET_DATA)
    assert len(down) == streams


@gct.NEEDS_CLIENT
@EACH_MODE
def test_servers_behind_two_nats_copy_to_one_another(scene: Scene, options: tuple[str, ...]) -> None:
    """Third party: the client has both control connections, the data goes straight from server to server."""
    there, back = some("there", options), some("back", options)
    for data, store in ((there, CESNET_STORE), (back, UVN_STORE)):
        scene.good(scene.local("sent", data), url(store, data))
    out = scene.good(*options, url(CESNET_STORE, there), url(UVN_STORE, there))
    home = scene.good(*options, url(UVN_STORE, back), url(CESNET_STORE, back))
    assert scene.stored("uvn", there) and scene.stored("cesnet", back)
    assert between(out, CESNET, UVN, UVN_DATA)
    assert between(home, UVN_UPLINK, CESNET, CESNET_DATA)  # as it comes to its firewall, which makes it UVN


@gct.NEEDS_CLIENT
def test_who_is_no_peer_gets_nothing(scene: Scene) -> None:
    """The same certificate, from the next address."""
    data = some("stranger")
    scene.good(scene.local("sent", data), url(CESNET_STORE, data))
    for ends in ((scene.local("sent", data), url(UVN_STORE, data)), (url(CESNET_STORE, data), scene.local("got"))):
        scene.hangs(*ends, at="beside", once=scene.internet.opened)
        assert scene.internet.data() == []
    assert scene.got("got") == b"" and not scene.stored("uvn", data)


def channel(scene: Scene, stock: gct.GctServer, data: DataSettings) -> GsiftpChannel:
    """What the gate's DGIS would open, to be used in its namespace only."""
    issued, trust = scene.grid.issued(scene.world.sites["motol"]) / "gate", scene.grid.home / "trust"
    identity = IdentityConfig(cert=issued / "node.cert.pem", key=issued / "node.key.pem", trust=trust)
    return GsiftpChannel(client_context(identity), stock.url, timeouts=Timeouts(answer=2, write=10), data=data)


def without_active(scene: Scene) -> Site:
    """The hospital, to whose guest nobody connects back."""
    motol = scene.world.sites["motol"]
    return replace(motol, guests=tuple(replace(guest, active=None) for guest in motol.guests))


def transfer_settings(scene: Scene) -> DataSettings:
    """What the rendered node.toml of the gate says."""
    motol = scene.world.sites["motol"]
    node = load_node(scene.grid.etc(motol, motol.guest("gate")) / "node" / "node.toml")
    return DataSettings(node.transfer.active, node.transfer.ports, node.transfer.advertise, node.transfer.sessions)


def test_a_stock_server_connects_back_to_our_channel(scene: Scene, stock: gct.GctServer) -> None:
    """A batch of downloads in MODE E, over one connection from outside to the guest."""
    objects = [some("back", number) for number in range(5)]
    settings = transfer_settings(scene)
    assert settings == DataSettings(active=True, ports=(ACTIVE[0], ACTIVE[-1]), advertise=MOTOL)

    def run() -> list[bytes]:
        with closing(channel(scene, stock, settings)) as here:
            puts = [Put(spec_of(data), scene.folder / f"o{number}") for number, data in enumerate(objects)]
            assert all(isinstance(outcome, Stored) for _, outcome in here.put_many(puts))
            assert between(scene.internet.data(), MOTOL, BULOVKA, BULOVKA_DATA)
            scene.internet.forget()
            with here.get_many([Want(put.spec.key) for put in puts]) as gots:
                return [b"".join(got.blocks) for got in gots]

    for number, data in enumerate(objects):
        scene.local(f"o{number}", data)
    scene.internet.forget()
    assert scene.place("motol/gate").inside(run) == objects
    ways = scene.internet.data()
    assert between(ways, BULOVKA, MOTOL, ACTIVE) and len(ways) == 1


def test_what_makes_it_work_is_the_rule_and_the_address(scene: Scene, stock: gct.GctServer) -> None:
    data = some("why")
    spec, settings = spec_of(data), transfer_settings(scene)
    (stock.root / "objects" / spec.key).parent.mkdir(parents=True, exist_ok=True)
    (stock.root / "objects" / spec.key).write_bytes(data)

    def run(which: DataSettings) -> bytes:
        scene.internet.forget()
        with closing(channel(scene, stock, which)) as here, here.get(spec.key) as blocks:
            return b"".join(blocks)

    gate = scene.place("motol/gate")
    # nothing need connect inward: a connection for each object instead
    assert gate.inside(lambda: run(DataSettings())) == data
    assert between(scene.internet.data(), MOTOL, BULOVKA, BULOVKA_DATA)
    # the server is told where the guest thinks that it is
    with pytest.raises(Unreachable, match="Network is unreachable"):
        gate.inside(lambda: run(replace(settings, advertise=None)))
    assert between(scene.internet.data(), BULOVKA, INSIDE, ACTIVE)
    # without the range in the site file the server comes as far as the host
    with scene.applied("kvm1", without_active(scene)):
        with pytest.raises(Unreachable, match="did not connect"):
            gate.inside(lambda: run(settings))
        assert between(scene.internet.data(), BULOVKA, MOTOL, ACTIVE)
    assert gate.inside(lambda: run(settings)) == data


@gct.NEEDS_CLIENT
@pytest.mark.parametrize("options", [MODES["mode-e"], MODES["mode-e-parallel"]], ids=["mode-e", "mode-e-parallel"])
def test_a_stock_server_connects_back_to_a_stock_client(
    scene: Scene, stock: gct.GctServer, options: tuple[str, ...]
) -> None:
    """GLOBUS_FTP_CLIENT_DATA_IP is the address that `globus-url-copy` names as its own."""
    data = some("guest", options)
    source = f"gsiftp://{BULOVKA_STORE}:{CONTROL}{stock.root}/stock{len(options)}"
    up = scene.good(*options, scene.local("sent", data), source, at="motol/gate")
    assert between(up, MOTOL, BULOVKA, BULOVKA_DATA)
    down = scene.good(*options, source, scene.local("got"), at="motol/gate", **ADVERTISED)
    assert scene.got("got") == data
    assert between(down, BULOVKA, MOTOL, ACTIVE)
    with scene.applied("kvm1", without_active(scene)):
        ends = (source, scene.local("got"))
        scene.hangs(*options, *ends, at="motol/gate", once=scene.internet.data, **ADVERTISED)
        assert between(scene.internet.data(), BULOVKA, MOTOL, ACTIVE) and scene.got("got") == b""


@gct.NEEDS_CLIENT
@pytest.mark.parametrize("env", IN_VAIN.values(), ids=IN_VAIN)
def test_what_does_not_help_a_stock_client(scene: Scene, stock: gct.GctServer, env: dict[str, str]) -> None:
    """It names the guest's own address; in stream mode it is the client who connects, and that needs nothing."""
    data = some("in vain")
    (stock.root / "vain").write_bytes(data)
    source = f"gsiftp://{BULOVKA_STORE}:{CONTROL}{stock.root}/vain"
    scene.internet.forget()
    done = scene.copy("-fast", source, scene.local("got"), at="motol/gate", **env)
    assert done.returncode != 0 and f"Unable to connect to {INSIDE}" in done.stderr
    assert (BULOVKA, INSIDE) in {way[:2] for way in scene.internet.data()}
    assert between(scene.good(source, scene.local("got"), at="motol/gate", **env), MOTOL, BULOVKA, BULOVKA_DATA)
    assert scene.got("got") == data


@gct.NEEDS_CLIENT
def test_our_server_connects_back_only_where_the_peer_entry_says_so(scene: Scene) -> None:
    """The last test: our server goes on trying for ten seconds, which the next one would see."""
    data, within = some("control"), Watch(scene.place("cesnet/xen1"))
    scene.good(scene.local("sent", data), url(CESNET_STORE, data))
    within.start()
    with scene.applied("xen1", parsed((EXAMPLES / "pilot-cesnet.yml").read_text())):
        scene.hangs("-fast", url(CESNET_STORE, data), scene.local("got"), once=within.data)
        assert between(within.data(), INSIDE, LF1, ACTIVE)
        assert scene.internet.data() == [] and scene.got("got") == b""
