"""The stock GridFTP programs of Debian (GCT): a server as an unprivileged account, and globus-url-copy.

`with serve(site, host_identity, *users) as server:` gives a server over `server.root`; `copy(identity, ...)` runs the
client. Everything lies in a folder of its own that the server's account can reach (pytest's own folders it cannot).
Both run in a namespace of a lab where a `node` is given.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from certs.config import IdentityConfig
from certs.credential import Credential
from tests.helpers.netnode import Node
from tests.helpers.pki import SiteHome

SERVER = Path("/usr/sbin/globus-gridftp-server")
CLIENT = Path("/usr/bin/globus-url-copy")
NEEDS_SERVER = pytest.mark.skipif(
    not SERVER.exists(), reason="no GridFTP server of the Grid Community Toolkit (Debian: globus-gridftp-server-progs)"
)
NEEDS_CLIENT = pytest.mark.skipif(
    not CLIENT.exists(), reason="globus-url-copy is not installed (Debian: globus-gass-copy-progs)"
)
ACCOUNT = "nobody"
START_SECONDS = 20.0


def have_server() -> bool:
    return SERVER.exists()


def have_client() -> bool:
    return CLIENT.exists()


@dataclass
class GctServer:
    """A running server; all its users may do what its account may do below `root`."""

    site: SiteHome
    identity: IdentityConfig
    users: tuple[IdentityConfig, ...]
    folder: Path
    interface: str
    data_ports: tuple[int, int]
    encrypt: bool = True
    port: int = 0
    node: Node | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def root(self) -> Path:
        """What it serves."""
        return self.folder / "store"

    @property
    def url(self) -> str:
        """The door `gsiftp://HOST:PORT` with the absolute path of `root`."""
        return f"gsiftp://{self.interface}:{self.port}{self.root}"

    def start(self) -> None:
        """Start it (again) and wait until it accepts; the first start picks the port."""
        self.port = self.port or free_port(self.interface)
        options = ["-c", os.devnull, "-p", str(self.port), "-control-interface", self.interface]
        options += ["-data-interface", self.interface, "-rp", str(self.root), "-perms", "0640"]
        options += ["-auth-level", "7", "-d", "error,warn,info", "-l", str(self.folder / "server.log")]
        if self.encrypt:
            options.append("-encrypt-data")
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command(options),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(),
                cwd=self.folder,
                start_new_session=True,
                **({} if self.node is not None else _as_account()),
            )
        self._wait()

    def stop(self) -> None:
        """End it and the processes of its sessions."""
        if self._process is not None:
            for each in _descendants(self._process.pid):
                _kill(each)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def sync_trust(self) -> None:
        """Take over the site's CAs, CRLs and signing policies; the server reads them for every connection."""
        target = self.folder / "trust"
        fresh = self.folder / "trust.new"
        shutil.copytree(self.site.trust, fresh, dirs_exist_ok=True)
        for path in fresh.iterdir():
            path.chmod(0o644)
            path.replace(target / path.name)
        fresh.rmdir()

    def map_users(self, *users: IdentityConfig) -> None:
        """Write the grid-mapfile: these DNs and nobody else."""
        account = ACCOUNT if os.geteuid() == 0 else _own_name()
        lines = [f'"{Credential(user.cert, user.key).dn()}" {account}\n' for user in users]
        path = self.folder / "grid-mapfile.new"
        path.write_text("".join(lines))
        path.chmod(0o644)
        path.replace(self.folder / "grid-mapfile")

    def log(self) -> str:
        return "".join(
            path.read_text(errors="replace")
            for path in (self.folder / "output.log", self.folder / "server.log")
            if path.exists()
        )

    def _command(self, options: list[str]) -> list[str]:
        words = [str(SERVER), *options]
        if self.node is None:
            return words
        # A namespace is entered as root: the account is taken inside
        return self.node.command(["setpriv", "--reuid", ACCOUNT, "--regid", "nogroup", "--clear-groups", *words])

    def _dial(self) -> socket.socket:
        if self.node is not None:
            return self.node.dial(self.interface, self.port, timeout=1)
        return socket.create_connection((self.interface, self.port), timeout=1)

    def _environment(self) -> dict[str, str]:
        low, high = self.data_ports
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "X509_CERT_DIR": str(self.folder / "trust"),
            "X509_USER_CERT": str(self.folder / "host.cert.pem"),
            "X509_USER_KEY": str(self.folder / "host.key.pem"),
            "GRIDMAP": str(self.folder / "grid-mapfile"),
            "GLOBUS_TCP_PORT_RANGE": f"{low},{high}",
        }

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process is not None and self._process.poll() is None, self.log()[-3000:]
            try:
                with self._dial() as probe:
                    probe.settimeout(START_SECONDS)
                    if probe.recv(3) == b"220":
                        return
            except OSError:
                assert time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.02)

    def prepare(self) -> None:
        """Lay out store, trust, keys and mapping, readable for the server's account and (keys) for it alone."""
        self.folder.chmod(0o755)
        for name in ("store", "trust"):
            (self.folder / name).mkdir(exist_ok=True)
        self.sync_trust()
        self.map_users(*self.users)
        for source, name in ((self.identity.cert, "host.cert.pem"), (self.identity.key, "host.key.pem")):
            shutil.copy(source, self.folder / name)
            (self.folder / name).chmod(0o600)
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, ACCOUNT)


@contextmanager
def serve(
    site: SiteHome,
    *users: IdentityConfig,
    identity: IdentityConfig | None = None,
    interface: str = "127.0.0.1",
    data_ports: tuple[int, int] = (41000, 41999),
    encrypt: bool = True,
    place: Path | None = None,
    node: Node | None = None,
    port: int = 0,
) -> Iterator[GctServer]:
    """Run a server for `users`; skips when there is none on this machine. `place`: where its folder is made.

    In a namespace (`node`, which needs root) name the `interface` there and the `port`.
    """
    if not have_server():
        pytest.skip("no GridFTP server of the Grid Community Toolkit (Debian: globus-gridftp-server-progs)")
    folder = Path(tempfile.mkdtemp(prefix="gct-", dir=place))
    host = identity or site.host("gct-server")
    server = GctServer(site, host, users, folder, interface, data_ports, encrypt, port, node)
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def copy(
    identity: IdentityConfig,
    *args: str | os.PathLike[str],
    timeout: float = 60,
    ports: tuple[int, int] | None = None,
    node: Node | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run globus-url-copy with this identity (RSA: it delegates); skips when it is not installed.

    `ports`: where servers may connect to it; `env`: what else it is told. Raises TimeoutExpired.
    """
    return subprocess.run(
        _words(args, node),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        env=_told(identity, ports, env),
        check=False,
    )


@contextmanager
def copying(
    identity: IdentityConfig,
    *args: str | os.PathLike[str],
    ports: tuple[int, int] | None = None,
    node: Node | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run globus-url-copy beside the test, and end it with the block."""
    child = subprocess.Popen(
        _words(args, node),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_told(identity, ports, env),
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)


def _words(args: Sequence[str | os.PathLike[str]], node: Node | None) -> list[str]:
    if not have_client():
        pytest.skip("globus-url-copy is not installed (Debian: globus-gass-copy-progs)")
    words = [str(CLIENT), *map(os.fspath, args)]
    return words if node is None else node.command(words)


def _told(identity: IdentityConfig, ports: tuple[int, int] | None, more: Mapping[str, str] | None) -> dict[str, str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.devnull,
        "X509_CERT_DIR": str(identity.trust),
        "X509_USER_CERT": str(identity.cert),
        "X509_USER_KEY": str(identity.key),
        "X509_USER_PROXY": os.devnull + "/none",
        # Our test certificates name what we connect to, not what its address resolves to
        "GLOBUS_GSSAPI_NAME_COMPATIBILITY": "STRICT_RFC2818",
    }
    if ports is not None:
        environment["GLOBUS_TCP_PORT_RANGE"] = f"{ports[0]},{ports[1]}"
    return {**environment, **(more or {})}


def free_port(interface: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((interface, 0))
        return int(probe.getsockname()[1])


def _as_account() -> dict[str, str]:
    return {"user": ACCOUNT, "group": "nogroup"} if os.geteuid() == 0 else {}


def _own_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _descendants(pid: int) -> list[int]:
    """The processes of the sessions: the server forks one per connection, and they end when they like."""
    found: list[int] = []
    try:
        listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return found
    for child in " ".join(listed).split():
        found += [int(child), *_descendants(int(child))]
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return
