"""The NoCloud seed of a guest: user-data, meta-data and network-config for cloud-init 22.4 and later. Pure.

The data disk is not the seed's work: the image makes its file system, and only on a disk that is wholly empty.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from dgis.deploy import names, services
from dgis.deploy.errors import DeployError
from dgis.deploy.services import File
from dgis.deploy.topology import Guest, Site

OPERATOR = "operator"
# Started in this order; a unit without its certificate waits, and is started by whoever brings it
_UNITS = {
    "catalog": "dgis-catalog.service",
    "storage": "dgis-storage.service",
    "dgis": "dgis-node.service",
    "ca": "dgis-ca.timer",
    "front": "haproxy.service",
}
_LOOPBACK = "127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"


@dataclass(frozen=True, slots=True)
class Seed:
    """The three files of a NoCloud seed."""

    user_data: str
    meta_data: str
    network_config: str


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as such, for whoever reads a seed."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def seed(site: Site, guest: Guest, *, secrets: Mapping[str, File] | None = None) -> Seed:
    """The seed of a guest; the same site file and secrets give the same seed.

    `secrets` are further files by absolute path (certificates, keys, trust, the front's routes), for the caller to say;
    what the site file says itself yields to them. The instance-id changes with the network alone, so that a guest that
    moved takes its new address and one whose services changed keeps what runs. Raises DeployError.
    """
    network = _yaml(_network(site, guest))
    digest = hashlib.sha256(network.encode()).hexdigest()[:8]
    meta = {"instance-id": f"dgis-{site.name}-{guest.name}-{digest}", "local-hostname": guest.name}
    user = _user(site, guest, {**_system_files(site, guest), **services.files(site, guest), **(secrets or {})})
    return Seed("#cloud-config\n" + _yaml(user), _yaml(meta), network)


def hosts(site: Site, guest: Guest) -> str:
    """The /etc/hosts of a guest. Its own name is its own address's, its services' names are the public address's."""
    lines = [_LOOPBACK[0], f"127.0.1.1 {guest.name}.{site.domain} {guest.name}", _LOOPBACK[1]]
    return "\n".join((*lines, *(f"{ip} {name}" for name, ip in names.addresses(site).items()))) + "\n"


def units(guest: Guest) -> tuple[str, ...]:
    """The systemd units of a guest's roles, in the order in which they start."""
    return tuple(unit for role, unit in _UNITS.items() if role in guest.roles)


def _system_files(site: Site, guest: Guest) -> dict[str, File]:
    found = {"/etc/hosts": File(hosts(site, guest).encode())}
    if site.updates:
        address, port = site.updates[0]
        line = f'Acquire::http::Proxy "http://{address}:{port}";\n'
        found["/etc/apt/apt.conf.d/90dgis-proxy"] = File(line.encode())
    return found


def _user(site: Site, guest: Guest, files: Mapping[str, File]) -> dict[str, Any]:
    user: dict[str, Any] = {
        "hostname": guest.name,
        "fqdn": f"{guest.name}.{site.domain}",
        "manage_etc_hosts": False,  # it is written below
        "users": [_operator(site)],
        "disable_root": True,
        "ssh_pwauth": False,
        "ssh_deletekeys": False,  # a guest that moved is still the same to its operators
        "ssh_genkeytypes": ["ed25519"],
        "write_files": [_written(path, file) for path, file in sorted(files.items())],
    }
    if site.time:
        servers = [str(server) for server in site.time]
        user["ntp"] = {"enabled": True, "ntp_client": "systemd-timesyncd", "pools": [], "servers": servers}
    enabled = units(guest)
    if enabled:
        user["runcmd"] = [["systemctl", "enable", "--now", unit] for unit in enabled]
    return user


def _operator(site: Site) -> dict[str, Any]:
    return {
        "name": OPERATOR,
        "gecos": "grid operator",
        # Debian has a group of this name: without it useradd refuses
        "primary_group": OPERATOR,
        "groups": ["adm", "systemd-journal"],
        "shell": "/bin/bash",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "ssh_authorized_keys": list(site.admin_keys),
    }


def _written(path: str, file: File) -> dict[str, str]:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or not path.isprintable():
        raise DeployError(f"{path!a}: a file of a guest has an absolute path, like /etc/dgis/trust/1a2b3c4d.0")
    entry = {"path": path, "owner": file.owner, "permissions": f"{file.mode:04o}"}
    text = file.content.decode("utf-8", errors="replace")
    plain = all(char.isprintable() or char in "\n\t" for char in text)
    if plain and text.encode() == file.content:
        return {**entry, "content": text}
    return {**entry, "encoding": "b64", "content": base64.b64encode(file.content).decode()}


def _network(site: Site, guest: Guest) -> Mapping[str, Any]:
    """Version 2, told by MAC address. The route is 0.0.0.0/0: `default` is none to cloud-init 22.4."""
    network = site.network_of(guest)
    card: dict[str, Any] = {
        "match": {"macaddress": guest.mac},
        "set-name": "eth0",
        "dhcp4": False,
        "dhcp6": False,
        "addresses": [f"{guest.address}/{network.cidr.prefixlen}"],
        "routes": [{"to": "0.0.0.0/0", "via": str(network.gateway)}],
    }
    if site.resolvers:
        card["nameservers"] = {"addresses": [str(resolver) for resolver in site.resolvers]}
    return {"version": 2, "ethernets": {"eth0": card}}


def _yaml(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=False)
