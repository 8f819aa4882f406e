"""Certificates by file: issue them for every service of a site, and lay them out as guests want them.

The other way is by request: `csr.cnf` beside each service, key and request made in the guest, `dgis-certs sign`. Here
the keys are made where the authority is and travel with the seed: for a first boot without a hand, and for a site whose
authority and guests are one operator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509

from certs import ca
from certs.credential import Credential
from dgis.deploy import names, requests
from dgis.deploy.errors import DeployError
from dgis.deploy.requests import AltNames
from dgis.deploy.services import ETC, File
from dgis.deploy.topology import GRID_ROLES, Guest, Service, Site

_PEERS, _TRUST = "ssh_peers", "trust"
_SOON = timedelta(days=7)  # a guest that boots with less could run out before somebody looks
_AGAIN = "run dgis deploy certificates again"


@dataclass(frozen=True, slots=True)
class _Place:
    """A service of a guest with the files of its certificate below a directory."""

    site: Site
    out: Path
    guest: Guest
    service: Service

    @property
    def credential(self) -> Credential:
        stem = self.out / self.guest.name / self.service.directory
        return Credential(Path(f"{stem}.cert.pem"), Path(f"{stem}.key.pem"))

    @property
    def alt(self) -> AltNames:
        return requests.alt_names(self.site, self.guest, self.service)

    def check_whose(self) -> None:
        """A directory is one site's: in another one's a guest of the same name would get the wrong certificate."""
        cert = self.credential.cert
        found, wanted = self.credential.dn(), names.subject(self.site, self.service.name)
        if found != wanted:
            raise DeployError(f"{cert} is {found}'s, not {wanted}'s: name a directory of this site's own")


def _places(site: Site, out: Path, guest: Guest) -> Iterator[_Place]:
    return (_Place(site, out, guest, service) for service in guest.services if service.role in GRID_ROLES)


def issue(site: Site, home: Path, out: Path) -> tuple[str, ...]:
    """Issue into `out` what is missing, due, or says other names than the site file: GUEST/SERVICE.cert.pem and
    .key.pem, trust/, ssh_peers/. Returns what is new, a line each, with the reason when something was there.

    The authority below `home` must have the site's organisation, or the names in every gridmap would be wrong. Raises
    DeployError, and CertsError of the authority.
    """
    _check_authority(site, home)
    made = []
    for guest in site.guests:
        for place in _places(site, out, guest):
            reason = _issue(place, home) if not place.credential.cert.exists() else _again(place, home)
            if reason is not None:
                made.append(f"{guest.name}/{place.credential.cert.name}{reason}")
    _copy_trust(home / _TRUST, out / _TRUST)
    return tuple(made)


def _check_authority(site: Site, home: Path) -> None:
    cert = home / "ca" / "issuing" / "issuing.cert.pem"
    if not cert.exists():
        raise DeployError(f"{home} has no site CA: run dgis-certs init --home {home}, or name another --home")
    found = dict(Credential(cert, cert).dn().parts).get("O")
    if found != site.organisation:
        text = f"the authority in {home} is of the organisation {found}, the site file of {site.organisation}"
        raise DeployError(f"{text}: give both the same")


def _issue(place: _Place, home: Path) -> str:
    name, directory = place.service.name, place.out / place.guest.name
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    roles, ips = (GRID_ROLES[place.service.role],), tuple(map(str, place.alt.ips))
    made = ca.issue_host(home, name, dns=place.alt.dns, ips=ips, roles=roles, out=directory)
    made.key.rename(place.credential.key)
    _show_peers(place, made.cert)
    made.cert.rename(place.credential.cert)  # last: with it the credential is whole
    return ""


def _again(place: _Place, home: Path) -> str | None:
    """Renew what is due and issue anew what says otherwise than the site file; None when all is well."""
    place.check_whose()
    credential = place.credential
    found, wanted, key = _said(credential), place.alt, credential.key.exists()
    if {*found.dns, *found.ips} != {*wanted.dns, *wanted.ips}:
        if not key:
            text = f"{credential.cert} is for {_words(found)}, the site file says {_words(wanted)}"
            raise DeployError(f"{text}; its key is not here: sign its request again, or move the certificate away")
        _issue(place, home)
        return f": again, for {_words(wanted)} instead of {_words(found)}"
    if key and not _is_pair(credential):
        _issue(place, home)
        return ": again, since its key was another one's"
    if ca.renew_due(home, (credential,)):
        _show_peers(place, credential.cert)
        return f": renewed, until {credential.not_after():%Y-%m-%d}"
    if _ends_soon(credential):
        text = f"{credential.cert} is due, but the authority does not renew it (was it revoked?)"
        raise DeployError(f"{text}: move it and its key away to get new ones")
    return None


def _said(credential: Credential) -> AltNames:
    """What a certificate has as its subject alternative names."""
    entries = [
        entry
        for extension in credential.chain()[0].extensions
        if isinstance(extension.value, x509.SubjectAlternativeName)
        for entry in extension.value
    ]
    dns = tuple(entry.value for entry in entries if isinstance(entry, x509.DNSName))
    addresses = (entry.value for entry in entries if isinstance(entry, x509.IPAddress))
    return AltNames(dns, tuple(ip for ip in addresses if isinstance(ip, IPv4Address)))


def _words(alt: AltNames) -> str:
    return ", ".join((*alt.dns, *map(str, alt.ips))) or "no name"


def _is_pair(credential: Credential) -> bool:
    return credential.private_key().public_key() == credential.chain()[0].public_key()


def _ends_soon(credential: Credential) -> bool:
    leaf = credential.chain()[0]
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_after_utc - datetime.now(UTC) < min(_SOON, life / 3)


def _show_peers(place: _Place, cert: Path) -> None:
    """Who meets others over SSH is known by a certificate."""
    if place.service.role == "catalog":
        return
    peers = place.out / _PEERS
    peers.mkdir(exist_ok=True)
    (peers / f"{place.service.name}.pem").write_bytes(cert.read_bytes())


def _copy_trust(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        (target / path.name).write_bytes(path.read_bytes())


def of_guest(site: Site, directory: Path, guest: Guest) -> dict[str, File]:
    """The files of `issue` as they lie in a guest, by absolute path.

    Raises DeployError when one is missing, empty, somebody else's or about to run out, and CertsError for a file that
    is none of its kind or a key that is not its certificate's.
    """
    found = dict(_shared(directory))
    for place in _places(site, directory, guest):
        _check(place)
        what = place.service.directory
        for path, mode in ((place.credential.cert, 0o644), (place.credential.key, 0o600)):
            found[f"{ETC}/{what}/{path.name}"] = File(path.read_bytes(), mode, f"dgis-{what}:dgis-{what}")
    return found if guest.services else {}


def _check(place: _Place) -> None:
    credential = place.credential
    for path in (credential.cert, credential.key):
        if not path.is_file():
            raise DeployError(f"{path} is missing: run dgis deploy certificates first, or put it there")
        _refuse_empty(path)
    place.check_whose()
    credential.check()
    if _ends_soon(credential):
        raise DeployError(f"{credential.cert} runs out on {credential.not_after():%Y-%m-%d %H:%M} UTC: {_AGAIN}")
    found, wanted = _said(credential), place.alt
    if not {*wanted.dns, *wanted.ips} <= {*found.dns, *found.ips}:
        raise DeployError(f"{credential.cert} is for {_words(found)}, the site file says {_words(wanted)}: {_AGAIN}")


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise DeployError(f"{path} is empty: remove it and {_AGAIN}, or put the right one there")


def _shared(directory: Path) -> Iterator[tuple[str, File]]:
    for name in (_TRUST, _PEERS):
        for path in sorted((directory / name).glob("*")):
            _refuse_empty(path)
            yield f"{ETC}/{name}/{path.name}", File(path.read_bytes(), 0o644, "root:dgis")
