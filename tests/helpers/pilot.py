"""Sites of a `sitelab.World` with their services as real processes, from the files that `dgis deploy` renders.

Each guest is a namespace with an /etc/dgis, a /var/lib/dgis and an /etc/hosts of its own, bound over the machine's, so
that the rendered files are read at the paths that stand in them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from certs import ca
from dgis.deploy import certificates, flows, names, render, tree
from dgis.deploy.topology import Guest, Service, Site
from tests.helpers.grid import wait_until
from tests.helpers.netnode import Node
from tests.helpers.sitelab import World

BIN = Path(sys.executable).parent
_PROGRAMS = {"catalog": "dgis-catalog", "storage": "dgis-storage", "dgis": "dgis"}
_ETC, _STATE = Path("/etc/dgis"), Path("/var/lib/dgis")
# iproute2 gives each command a mount namespace of its own: these mounts are seen by nobody else
_INSIDE = 'mount --bind "$1" /etc/dgis && mount --bind "$2" /var/lib/dgis && shift 2 && exec "$@"'


@contextlib.contextmanager
def mount_points() -> Iterator[None]:
    """Directories to bind over; they go again with the last test that uses them.

    Each leaves a mark, since removing a directory takes away what others have bound over it, in every mount namespace.
    """
    marks = [path / f"used-by-test-{os.getpid()}" for path in (_ETC, _STATE)]
    try:
        for mark in marks:
            wait_until(lambda mark=mark: _marked(mark), seconds=5, what=f"{mark} is there")
        yield
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others use it, or a real guest does
                mark.parent.rmdir()


def _marked(mark: Path) -> bool:
    """Whether a directory is marked; another test may have removed it in between."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        mark.touch()
    return mark.exists()


@dataclass
class Grid:
    """The services of all sites of a world; `admins` are where each site's administrators sit."""

    world: World
    folder: Path
    admins: dict[str, Node]
    logs: Path = field(init=False)
    running: dict[tuple[str, str, str], subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.folder / "authority"
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True)
        organisation = next(iter(self.world.sites.values())).organisation
        ca.init_site(self.home, organisation=organisation)
        ca.issue_user(self.home, "operator", roles=("operator",), out=self.folder / "operator")

    def prepare(self, *sites: Site) -> None:
        """Issue certificates, render, and lay out what each guest has; ssh_peers has everybody's certificate."""
        for site in sites:
            certificates.issue(site, self.home, self.issued(site))
        for site in sites:
            peers = (other for other in sites if other is not site)
            for theirs in (self.issued(other) / "ssh_peers" for other in peers):
                subprocess.run(["cp", "-rT", theirs, self.issued(site) / "ssh_peers"], check=True)
            self.render(site)
            for guest in site.guests:
                self.lay_out(site, guest)

    def render(self, site: Site) -> None:
        """`dgis deploy render` into the site's tree."""
        tree.write(render.render(site, certs=self.issued(site)), self.folder / "out" / site.name)

    def lay_out(self, site: Site, guest: Guest) -> None:
        """What first boot does: files from the seed, state directories, the AE table, names."""
        rendered = self.folder / "out" / site.name / guest.host / "seed" / guest.name / "files" / "etc" / "dgis"
        if guest.services:
            subprocess.run(["cp", "-rT", rendered, self.etc(site, guest)], check=True)
            for service in guest.services:
                (self.state(site, guest) / service.directory).mkdir(parents=True, exist_ok=True)
            table = self.etc(site, guest) / "node" / "ae.toml"
            kept = self.state(site, guest) / "node" / "ae.toml"
            if table.exists() and not kept.exists():
                kept.write_bytes(table.read_bytes())
        found = {name: str(address) for name, address in names.addresses(site).items()}
        self.world.node(site.name, guest.name).hosts(found)
        # inside the institution a host is reached by its own address, whatever its firewall shows to others
        own = {door.name: str(door.address) for door in flows.derive(site).doors if door.route == "name"}
        self.admins[site.name].hosts(found | own)

    def issued(self, site: Site) -> Path:
        """The certificates of a site's services."""
        return self.folder / "issued" / site.name

    def etc(self, site: Site, guest: Guest) -> Path:
        return self._place(site, guest, "etc")

    def state(self, site: Site, guest: Guest) -> Path:
        """What is on the guest's data disk."""
        return self._place(site, guest, "state")

    def _place(self, site: Site, guest: Guest, what: str) -> Path:
        made = self.folder / "guests" / f"{site.name}-{guest.name}" / what
        made.mkdir(parents=True, exist_ok=True)
        return made

    def start(self, site: Site, guest: Guest, *roles: str) -> None:
        """Start a guest's services (all, or those named), in the order of the site file."""
        for service in guest.services:
            if service.role in _PROGRAMS and (not roles or service.role in roles):
                self._start(site, guest, service)

    def _start(self, site: Site, guest: Guest, service: Service) -> None:
        config = f"/etc/dgis/{service.directory}/{service.directory}.toml"
        command = [str(BIN / _PROGRAMS[service.role]), "serve", "--config", config]
        words = ["sh", "-c", _INSIDE, "sh", self.etc(site, guest), self.state(site, guest), *command]
        log = self.logs / f"{site.name}-{guest.name}-{service.role}.log"
        child = self.world.node(site.name, guest.name).popen(words, log=log)
        self.running[site.name, guest.name, service.role] = child

    def kill(self, site: Site, guest: Guest) -> None:
        """Pull the plug of a guest."""
        self.world.node(site.name, guest.name).kill()

    def stop(self, site: Site, guest: Guest) -> None:
        """Shut a guest's services down as a guest that is shut down does."""
        for (where, name, _), child in list(self.running.items()):
            if (where, name) == (site.name, guest.name):
                child.send_signal(signal.SIGTERM)
                child.wait(40)

    def await_health(self, site: Site, guest: Guest, *, seconds: float = 180) -> None:
        """Until every service of a guest answers the operator through the front, by its name, over mutual TLS."""
        for service in guest.services:
            if service.role in _PROGRAMS:
                wait_until(
                    lambda service=service: self._answers(site, service),
                    seconds=seconds,
                    what=f"{service.name} answers",
                    every=0.2,
                )

    def _answers(self, site: Site, service: Service) -> bool:
        out, trust = self.folder / "operator", self.home / "trust" / "ca.pem"
        words = ["curl", "-sf", "-m", "5", "--cacert", trust, "--cert", out / "operator.cert.pem"]
        words += ["--key", out / "operator.key.pem", "-o", "/dev/null", f"https://{service.name}/health"]
        return self.admins[site.name].run(words, check=False).returncode == 0

    def register(self, site: Site, *, at: Node) -> str:
        """Run the site's register.sh as the operator of the grid, on a guest that reaches catalog and doors."""
        config = self.folder / "operator" / "node.toml"
        out = self.folder / "operator"
        identity = {
            "cert": str(out / "operator.cert.pem"),
            "key": str(out / "operator.key.pem"),
            "trust": str(self.home / "trust"),
            "gridmap": str(self.home / "gridmap"),
            "ssh_peers": str(self.issued(site) / "ssh_peers"),
        }
        node = {
            "dgis": {"aet": "OPERATOR", "site": site.name, "spool": str(out / "spool")},
            "identity": identity,
            "catalog": {"url": names.catalog_url(site)},
        }
        config.write_text(tomli_w.dumps(node))
        script = self.folder / "out" / site.name / "register.sh"
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        done = at.run(["sh", script, "--config", config], env=env)
        return done.stdout + done.stderr

    def logs_text(self) -> str:
        """Everything that any service said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.logs.iterdir()))
