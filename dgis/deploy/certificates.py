"""Certificates by file: issue them for every service of a site, and lay them out as guests want them.

The other way is by request: `csr.cnf` beside each service, key and request made in the guest, `dgis-certs sign`. Here
the keys are made where the authority is and travel with the seed: for a first boot without a hand, and for a site whose
authority and guests are one operator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from certs import ca
from certs.credential import Credential
from dgis.deploy import names, requests
from dgis.deploy.errors import DeployError
from dgis.deploy.services import ETC, File
from dgis.deploy.topology import GRID_ROLES, Guest, Service, Site

_PEERS, _TRUST = "ssh_peers", "trust"


def issue(site: Site, home: Path, out: Path) -> tuple[str, ...]:
    """Issue what is missing in `out`: GUEST/SERVICE.cert.pem and .key.pem, trust/, ssh_peers/. Returns what is new.

    The authority below `home` must have the site's organisation, or the names in every gridmap would be wrong. Raises
    DeployError, and CertsError of the authority.
    """
    made = []
    for guest in site.guests:
        for service in guest.services:
            if service.role not in GRID_ROLES:
                continue
            cert = _cert(out, guest, service)
            if cert.exists():
                _check_whose(site, cert, service)
                continue
            _issue(site, home, out, guest, service)
            made.append(f"{guest.name}/{cert.name}")
    _copy_trust(home / _TRUST, out / _TRUST)
    return tuple(made)


def _check_whose(site: Site, cert: Path, service: Service) -> None:
    """A directory is one site's: in another one's a guest of the same name would get the wrong certificate."""
    found, wanted = Credential(cert, cert).dn(), names.subject(site, service.name)
    if found != wanted:
        raise DeployError(f"{cert} is {found}'s, not {wanted}'s: name a directory of this site's own by --out")


def _issue(site: Site, home: Path, out: Path, guest: Guest, service: Service) -> None:
    alt = requests.alt_names(site, guest, service)
    directory = out / guest.name
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    roles, ips = (GRID_ROLES[service.role],), tuple(map(str, alt.ips))
    made = ca.issue_host(home, service.name, dns=alt.dns, ips=ips, roles=roles, out=directory)
    if made.dn() != names.subject(site, service.name):
        made.cert.unlink()
        text = f"the authority in {home} issues {made.dn()}; the site file wants {names.subject(site, service.name)}"
        raise DeployError(f"{text}: give both the same organisation")
    made.key.rename(directory / f"{service.directory}.key.pem")
    if service.role != "catalog":  # who meets others over SSH is known by a certificate
        peers = out / _PEERS
        peers.mkdir(exist_ok=True)
        (peers / f"{service.name}.pem").write_bytes(made.cert.read_bytes())
    made.cert.rename(_cert(out, guest, service))  # last: with it the credential is whole


def _cert(out: Path, guest: Guest, service: Service) -> Path:
    return out / guest.name / f"{service.directory}.cert.pem"


def _copy_trust(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        (target / path.name).write_bytes(path.read_bytes())


def of_guest(directory: Path, guest: Guest) -> dict[str, File]:
    """The files of `issue` as they lie in a guest, by absolute path. Raises DeployError when one is missing."""
    found = dict(_shared(directory))
    for service in guest.services:
        if service.role not in GRID_ROLES:
            continue
        owner = f"dgis-{service.directory}:dgis-{service.directory}"
        for kind, mode in (("cert", 0o644), ("key", 0o600)):
            path = directory / guest.name / f"{service.directory}.{kind}.pem"
            if not path.exists():
                raise DeployError(f"{path} is missing: run dgis deploy certificates first, or put it there")
            found[f"{ETC}/{service.directory}/{path.name}"] = File(path.read_bytes(), mode, owner)
    return found if guest.services else {}


def _shared(directory: Path) -> Iterator[tuple[str, File]]:
    for name in (_TRUST, _PEERS):
        for path in sorted((directory / name).glob("*")):
            yield f"{ETC}/{name}/{path.name}", File(path.read_bytes(), 0o644, "root:dgis")
