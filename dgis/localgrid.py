"""A whole grid below one directory, for one machine: its own CA, one catalog, some storage providers, one DGIS.

Pure layout and configuration text live here, and the few steps that make them true on disk; running the processes is
``dgis.cli.up``'s. Everything in ``HOME`` survives a restart; configuration files are written anew at each start, so
that changed options take effect, and the ports stay the same while they are free.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from certs import ca
from certs.credential import Credential
from certs.errors import TrustError
from certs.trust import Trust
from dgis.config import NodeConfig
from dgis.errors import DgisError
from storage_provider.transfer.route import SCHEMES

LOOPBACK = "127.0.0.1"
SITE = "local"
ORGANISATION = "dgis local grid"
_LOOPBACKS = ["127.0.0.0/8", "::1/128"]
DEFAULT_QUOTA = "1TB"


class GridHomeError(DgisError):
    """The home directory cannot be used as asked; the text says what to do."""


@dataclass(frozen=True, slots=True)
class PeerAE:
    """A declared move destination, from ``--peer AET:HOST:PORT``."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> PeerAE:
        """Read ``AET:HOST:PORT`` (PS3.5 6.2: an AE title has 1 to 16 characters, no backslash). Raises ValueError."""
        title, _, rest = text.partition(":")
        host, _, port = rest.rpartition(":")
        if not title.strip() or len(title) > 16 or "\\" in title or not host or not port.isdigit():
            raise ValueError(f"{text!r} is not AET:HOST:PORT, for example VIEWER:127.0.0.1:11113")
        if not 0 < int(port) < 65536:
            raise ValueError(f"port {port} of {title} is not in 1..65535")
        return cls(title.strip(), host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class GridOptions:
    """What ``dgis up`` was asked for."""

    home: Path
    aet: str = "DGIS"
    port: int = 11112
    peers: tuple[PeerAE, ...] = ()
    providers: int = 2
    workers: int = 2
    accept: str = "spooled"
    tls_port: int = 0
    learn_ports: tuple[int, ...] = ()

    @property
    def copies(self) -> int:
        """Verified copies of each object: two where there are two providers (rows S1-10)."""
        return min(2, self.providers)

    @property
    def provider_names(self) -> tuple[str, ...]:
        """``se1`` .. ``seN``."""
        return tuple(f"se{n}" for n in range(1, self.providers + 1))


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things lie below ``home``."""

    home: Path

    @property
    def trust(self) -> Path:
        return self.home / "trust"

    @property
    def gridmap(self) -> Path:
        return self.home / "gridmap"

    @property
    def policy(self) -> Path:
        return self.home / "policy.toml"

    @property
    def ssh_peers(self) -> Path:
        return self.home / "ssh_peers"

    @property
    def ready(self) -> Path:
        return self.home / "ready.json"

    @property
    def ae_table(self) -> Path:
        return self.home / "ae.toml"

    @property
    def spool(self) -> Path:
        return self.home / "dgis" / "spool"

    @property
    def logs(self) -> Path:
        return self.home / "log"

    def service(self, name: str) -> Path:
        """The directory of one service: its configuration, credential and state."""
        return self.home / name

    def config(self, name: str) -> Path:
        return self.service(name) / ("node.toml" if name == "dgis" else "config.toml")

    def credential(self, name: str) -> Credential:
        return Credential(self.service(name) / f"{name}.cert.pem", self.service(name) / f"{name}.key.pem")


def prepare(options: GridOptions) -> dict[str, int]:
    """Make ``home`` complete for ``options``: PKI, certificates, configuration. Idempotent. Returns the ports by name.

    Raises GridHomeError when the directory belongs to a grid that does not fit (fewer providers than before would
    hide copies).
    """
    paths = Paths(options.home)
    known = _known_providers(paths)
    if known > options.providers:
        raise GridHomeError(
            f"{options.home} holds a grid of {known} storage providers; {options.providers} would leave copies out of "
            f"reach. Use --providers {known}, or another --home."
        )
    options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.logs.mkdir(exist_ok=True)
    if not (options.home / "ca").exists():
        ca.init_site(options.home, organisation=ORGANISATION)
    _issue_missing(options, paths)
    keep_fresh(options)
    if _replace_refused(options, paths):
        keep_fresh(options)
    doors = (door_port(name, scheme) for name in options.provider_names for scheme in SCHEMES)
    ports = choose_ports(paths.home / "ports.json", ("catalog", "dgis", *doors))
    _write_configs(options, paths, ports)
    return ports


def keep_fresh(options: GridOptions) -> None:
    """Re-issue the CRLs and renew the certificates that are due; running services reload both by themselves.

    SSH shows bare keys: everybody finds the others' certificates in one directory, renewed with them.
    """
    paths = Paths(options.home)
    ca.refresh_crls(options.home)
    ca.renew_due(options.home, [paths.credential(name) for name in _service_roles(options)])
    paths.ssh_peers.mkdir(exist_ok=True)
    for name in _ssh_names(options):
        shown, known = paths.credential(name).cert.read_bytes(), paths.ssh_peers / f"{name}.pem"
        if not known.exists() or known.read_bytes() != shown:
            write_atomic(known, shown)


def _ssh_names(options: GridOptions) -> tuple[str, ...]:
    """Who meets over SSH: the DGIS and the operator as clients, the providers as servers and each other's clients."""
    return ("dgis", "operator", *options.provider_names)


def _service_roles(options: GridOptions) -> dict[str, frozenset[str]]:
    roles = {name: frozenset({"storage"}) for name in options.provider_names}
    return {"catalog": frozenset({"catalog"}), "dgis": frozenset({"gateway"}), **roles}


def _issue_missing(options: GridOptions, paths: Paths) -> None:
    for name, roles in _service_roles(options).items():
        if not paths.credential(name).cert.exists():
            paths.service(name).mkdir(exist_ok=True, mode=0o700)
            ca.issue_host(
                options.home, name, dns=("localhost",), ips=(LOOPBACK, "::1"), roles=roles, out=paths.service(name)
            )
    if not paths.credential("operator").cert.exists():
        paths.service("operator").mkdir(exist_ok=True, mode=0o700)
        ca.issue_user(options.home, "operator", roles=frozenset({"operator"}), out=paths.service("operator"))


def _replace_refused(options: GridOptions, paths: Paths) -> bool:
    """Issue anew, with a new key, what the grid itself would refuse: after a revocation the service goes on."""
    trust, replaced = Trust(paths.trust), False
    for name in _service_roles(options):
        credential = paths.credential(name)
        try:
            trust.judge(credential.cert.read_bytes())
        except TrustError:
            credential.cert.unlink()
            replaced = True
    _issue_missing(options, paths)
    return replaced


def _known_providers(paths: Paths) -> int:
    return sum(1 for _ in paths.home.glob("se[0-9]*/config.toml"))


def choose_ports(store: Path, names: Iterable[str]) -> dict[str, int]:
    """The port of each name on loopback: the one written in ``store`` while it is free, else a new one."""
    try:
        before: dict[str, int] = json.loads(store.read_text())
    except (OSError, ValueError):
        before = {}
    chosen: dict[str, int] = {}
    for name in names:
        wanted = before.get(name, 0)
        chosen[name] = wanted if wanted and is_free(wanted) and wanted not in chosen.values() else _any_port()
    write_atomic(store, json.dumps(chosen, indent=1).encode())
    return chosen


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """True when a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def policy_text(operator: str) -> str:
    """The policy that a new local grid begins with: on this machine, whom the AE table admits may do everything."""
    return f'''# Who may do what in this grid. Change it, then: dgis policy put policy.toml
# Groups name people by DN and application entities as ae:TITLE@SITE; docs/policy.md explains every word.
vo = "local grid"

[groups]
operators = ["{operator}"]

[[grant]]
name = "one machine, one team"
to = ["anyone"]
roles = ["viewer", "contributor", "exchange"]

[[grant]]
name = "operation"
to = ["operators"]
roles = ["operator"]
'''


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by rename, so that a reader sees the old text or the new one."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    os.replace(staged, path)


def door_port(name: str, scheme: str) -> str:
    """The name in ports.json of a provider's door; its HTTPS port goes by the provider's own name."""
    return name if scheme == "https" else f"{name}-{scheme}"


def doors(ports: Mapping[str, int], name: str) -> tuple[str, ...]:
    """The storage URLs of a local provider's area, best first."""
    return tuple(f"{scheme}://{LOOPBACK}:{ports[door_port(name, scheme)]}/areas/main" for scheme in SCHEMES)


def service_url(port: int) -> str:
    return f"https://{LOOPBACK}:{port}"


def _write_configs(options: GridOptions, paths: Paths, ports: Mapping[str, int]) -> None:
    _write_toml(paths.config("catalog"), _catalog_config(paths, ports))
    for name in options.provider_names:
        _write_toml(paths.config(name), _storage_config(paths, ports, name))
    _write_toml(paths.config("dgis"), _dgis_config(options, paths, ports))
    if options.peers or not paths.ae_table.exists():
        _merge_peers(paths.ae_table, options.peers)


def _identity(paths: Paths, name: str) -> dict[str, str]:
    credential = paths.credential(name)
    return {
        "cert": str(credential.cert.resolve()),
        "key": str(credential.key.resolve()),
        "trust": str(paths.trust.resolve()),
        "gridmap": str(paths.gridmap.resolve()),
        "ssh_peers": str(paths.ssh_peers.resolve()),
    }


def _catalog_config(paths: Paths, ports: Mapping[str, int]) -> dict[str, Any]:
    database = (paths.service("catalog") / "catalog.sqlite").resolve()
    return {
        "server": {"host": LOOPBACK, "port": ports["catalog"]},
        "identity": _identity(paths, "catalog"),
        "database": {"url": f"sqlite:///{database}"},
        "catalog": {"site": SITE, "name": "catalog"},
    }


def _storage_config(paths: Paths, ports: Mapping[str, int], name: str) -> dict[str, Any]:
    # Other storage elements read under a permit of the catalog only (design: pulls carry one from the start)
    rules = {"gateway": ["read", "write", "delete", "list"], "operator": ["read", "list"]}
    return {
        "server": {"host": LOOPBACK, "port": ports[name]},
        "gsiftp": {"host": LOOPBACK, "port": ports[door_port(name, "gsiftp")]},
        "sftp": {"host": LOOPBACK, "port": ports[door_port(name, "sftp")]},
        "identity": _identity(paths, name),
        "storage": {"name": name, "root": str((paths.service(name) / "store").resolve())},
        "area": [{"name": "main", "quota": DEFAULT_QUOTA, "rules": rules}],
    }


def _dgis_config(options: GridOptions, paths: Paths, ports: Mapping[str, int]) -> dict[str, Any]:
    return {
        "dgis": {
            "aet": options.aet,
            "site": SITE,
            "name": "dgis",
            "spool": str(paths.spool.resolve()),
            "ae_table": str(paths.ae_table.resolve()),
            "copies": options.copies,
            "workers": options.workers,
            "accept": options.accept,
        },
        "dimse": {"host": LOOPBACK, "port": options.port},
        **({"dimse_tls": {"host": LOOPBACK, "port": options.tls_port}} if options.tls_port else {}),
        **({"learned_destinations": _learning(options)} if options.learn_ports else {}),
        "https": {"host": LOOPBACK, "port": ports["dgis"]},
        "identity": _identity(paths, "dgis"),
        "catalog": {"url": service_url(ports["catalog"])},
        "unknown_ae": {"rights": ["echo", "store", "find", "move", "get"], "networks": _LOOPBACKS},
    }


def _learning(options: GridOptions) -> dict[str, Any]:
    return {"enabled": True, "networks": _LOOPBACKS, "ports": list(options.learn_ports)}


def default_node() -> NodeConfig:
    """The node.toml that ``dgis up`` writes when nothing is asked for; names files that need not exist."""
    options = GridOptions(home=Path("grid"))
    return NodeConfig.model_validate(_dgis_config(options, Paths(options.home), {"dgis": 0, "catalog": 0}))


def _write_toml(path: Path, document: Mapping[str, Any]) -> None:
    write_atomic(path, tomli_w.dumps(document).encode())


def _merge_peers(path: Path, peers: Iterable[PeerAE]) -> None:
    from dgis.dimse.ae import ALL_RIGHTS, AeEntry, AeTable

    table = AeTable(path)
    for peer in peers:
        table.put(AeEntry(title=peer.title, host=peer.host, port=peer.port, rights=tuple(sorted(ALL_RIGHTS))))
