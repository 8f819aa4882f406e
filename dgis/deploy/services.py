"""What lies in /etc/dgis of a guest: the configuration of its services, who may do what, certificate requests. Pure.

The services listen inside, on ports that are the same in every guest; names and ports of the outside stand where a
service has to tell others about itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w

from certs.dn import DN
from certs.peer import OPERATOR
from dgis.deploy import names, requests
from dgis.deploy.topology import (
    AREA,
    DIMSE_PORT,
    DIMSE_TLS_PORT,
    GRID_ROLES,
    HTTPS_PORTS,
    SFTP_PORT,
    Dimse,
    Guest,
    Service,
    Site,
)

ETC, STATE = "/etc/dgis", "/var/lib/dgis"
_ANY = "0.0.0.0"  # the host's firewall decides who comes
# Other storage elements read under a permit of the catalog only, as everywhere
_RULES = {"gateway": ["read", "write", "delete", "list"], "operator": ["read", "list"]}
# The area's part of the data disk in percent: file system and journal take some, a spool or a database more
_ALONE, _SHARED = 95, 85
# Behind NAT and the front the peers come from few addresses, all through the front from one
_LOGINS = 200


@dataclass(frozen=True, slots=True)
class File:
    """A file of a guest; `owner` is USER:GROUP, `mode` its permissions."""

    content: bytes
    mode: int = 0o644
    owner: str = "root:root"


def files(site: Site, guest: Guest) -> dict[str, File]:
    """Everything below /etc/dgis that follows from the site file, by absolute path; {} for a guest without services.

    Certificates, keys and trust are not among it. Raises DeployError for what no certificate or gridmap can hold.
    """
    if not guest.services:
        return {}
    found = {f"{ETC}/gridmap": File(gridmap(site).encode(), 0o640, "root:dgis")}
    for service in guest.services:
        for name, text in _texts(site, guest, service).items():
            path = f"{ETC}/{service.directory}/{name}"
            found[path] = File(text.encode(), 0o640, f"root:dgis-{service.directory}")
    return found


def gridmap(site: Site) -> str:
    """Who has which role in the grid: own services, the peers' and the operators, one line each (certs.gridmap)."""
    services = [service for guest in site.guests for service in guest.services]
    services += [service for peer in site.peers for far in peer.guests for service in far.services]
    lines = ['# "/DN" account role,role']
    for service in services:
        if service.role in GRID_ROLES:
            lines.append(_mapped(names.subject(site, service.name), service.name, GRID_ROLES[service.role]))
    lines += [_mapped(dn, dn.common_name or OPERATOR, OPERATOR) for dn in names.operators(site)]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _mapped(dn: DN, account: str, role: str) -> str:
    name = re.sub(r'[\s"#]', "_", account)[:128]
    return f'"{dn}" {name} {role}'


def _texts(site: Site, guest: Guest, service: Service) -> dict[str, str]:
    """The files of one service by name."""
    texts = {f"{service.directory}.csr.cnf": requests.config(site, guest, service)}
    if service.role == "dgis" and guest.dimse is not None:
        texts["node.toml"] = tomli_w.dumps(_node(site, guest, service, guest.dimse))
        texts["ae.toml"] = tomli_w.dumps(_aes(guest.dimse))
    elif service.role == "catalog":
        texts["catalog.toml"] = tomli_w.dumps(_catalog(site, service))
    elif service.role == "storage":
        texts["storage.toml"] = tomli_w.dumps(_storage(site, guest, service))
    return texts


def _identity(service: Service) -> dict[str, str]:
    base = f"{ETC}/{service.directory}/{service.directory}"
    identity = {"cert": f"{base}.cert.pem", "key": f"{base}.key.pem", "trust": f"{ETC}/trust"}
    identity["gridmap"] = f"{ETC}/gridmap"
    if service.role in ("dgis", "storage"):  # who speaks SFTP, as a client or a server
        identity["ssh_peers"] = f"{ETC}/ssh_peers"
    return identity


def _listen(service: Service) -> dict[str, Any]:
    return {"host": _ANY, "port": HTTPS_PORTS[service.role]}


def _node(site: Site, guest: Guest, service: Service, dimse: Dimse) -> Mapping[str, Any]:
    state = f"{STATE}/{service.directory}"
    node: dict[str, Any] = {
        "dgis": {
            "aet": dimse.aet,
            "site": site.name,
            "name": service.element,  # told apart in the whole grid: it is where spooled copies are
            "spool": f"{state}/spool",
            "ae_table": f"{state}/ae.toml",
            "copies": site.copies,
        },
        "dimse": {"host": _ANY, "port": DIMSE_PORT},
        "https": _listen(service),
        "identity": _identity(service),
        "catalog": {"url": names.catalog_url(site)},
        "unknown_ae": {"rights": ["echo"], "networks": [str(network) for network in dimse.networks]},
    }
    if dimse.tls_port is not None:
        node["dimse_tls"] = {"host": _ANY, "port": DIMSE_TLS_PORT}
    if guest.active is not None:
        ports = [guest.active.first, guest.active.last]
        node["transfer"] = {"active": True, "ports": ports, "advertise": _public(site, guest)}
    return node


def _aes(dimse: Dimse) -> Mapping[str, Any]:
    """The AE table that a node begins with (dgis.dimse.ae); an AE without networks of its own calls from the AE's."""
    entries = []
    for entity in dimse.aes:
        entry: dict[str, Any] = {"title": entity.title}
        if entity.host is not None and entity.port is not None:
            entry |= {"host": str(entity.host), "port": entity.port}
        entry["rights"] = list(entity.rights)
        entry["networks"] = [str(network) for network in entity.networks or dimse.networks]
        entries.append(entry)
    return {"ae": entries}


def _catalog(site: Site, service: Service) -> Mapping[str, Any]:
    return {
        "server": _listen(service),
        "identity": _identity(service),
        "database": {"url": f"sqlite:///{STATE}/{service.directory}/catalog.sqlite"},
        "catalog": {"site": site.name, "name": service.element},
        "audit": {"directory": f"{STATE}/{service.directory}/audit"},
    }


def _storage(site: Site, guest: Guest, service: Service) -> Mapping[str, Any]:
    area: dict[str, Any] = {"name": AREA, "rules": _RULES}
    if guest.data:
        area["quota"] = guest.data // 100 * (_ALONE if len(guest.services) == 1 else _SHARED)
    storage: dict[str, Any] = {
        "server": _listen(service),
        "identity": _identity(service),
        "storage": {"name": service.element, "root": f"{STATE}/{service.directory}"},
        "area": [area],
    }
    if guest.gridftp is not None:
        data, logins = guest.gridftp.data, {"waiting": _LOGINS, "waiting_per_address": _LOGINS}
        door = {"host": _ANY, "port": guest.gridftp.control, "data_ports": [data.first, data.last]}
        storage["gsiftp"] = {**door, "advertise": _public(site, guest), **logins}
    if guest.sftp is not None:
        door = {"host": _ANY, "port": SFTP_PORT, "advertise": service.name}
        limits = ("connections", "per_address", "waiting", "waiting_per_address")
        storage["sftp"] = {**door, **dict.fromkeys(limits, _LOGINS)}
    return storage


def _public(site: Site, guest: Guest) -> str:
    """The address that data connections from outside come to."""
    return str(site.gateway_of(guest).public)
