"""What is called how: names with their addresses, certificate subjects, and the URLs of services. Pure.

A site needs no name service: every guest gets all of these names in /etc/hosts. Inside a site a name leads to the same
public address as outside, so that one certificate and one URL serve everybody.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from certs.dn import DN
from certs.errors import CaError, CredentialError
from certs.profiles import check_text
from dgis.deploy import flows
from dgis.deploy.errors import DeployError
from dgis.deploy.topology import AREA, Gridftp, Guest, Peer, PeerGuest, Service, Site

UNIT = "Hosts"


def addresses(site: Site) -> dict[str, IPv4Address]:
    """Every name that somebody may ask for here, with the public address behind it, sorted by name.

    These are the names of this site's doors, of services and other projects alike, and of the peers' services.
    """
    known = {service.name: peer.public for peer in site.peers for far in peer.guests for service in far.services}
    known |= {door.name: door.public for door in flows.derive(site).doors if door.route == "name"}
    return dict(sorted(known.items()))


def subject(site: Site, name: str) -> DN:
    """The subject of a service's certificate: /O=ORGANISATION/OU=Hosts/CN=NAME, as our CA makes it.

    Raises DeployError for what the CA would refuse (a CN longer than 64 characters: RFC 5280, ub-common-name).
    """
    try:
        check_text(site.organisation, "organisation")
        check_text(name, f"the service name {name}, a certificate's CN")
    except CaError as error:
        raise DeployError(f"{error}; change it in the site file") from None
    return DN((("O", site.organisation), ("OU", UNIT), ("CN", name)))


def operators(site: Site) -> tuple[DN, ...]:
    """The certificate subjects of the grid's operators. Raises DeployError for what is none."""
    return tuple(_operator(text) for text in site.operators)


def _operator(text: str) -> DN:
    try:
        dn = DN.parse(text)
    except CredentialError as error:
        raise DeployError(f"operators: {error}; write it as the certificate has it") from None
    if not all(value.isprintable() for _, value in dn.parts):
        raise DeployError(f"operators: {str(dn)!a} has characters that no line holds; write it without them")
    return dn


def own_doors(site: Site, guest: Guest) -> tuple[str, ...]:
    """The storage URLs of a guest of this site, best first; () without a storage service."""
    service, gateway = guest.service("storage"), site.gateway_of(guest)
    return _doors(service, guest.gridftp, guest.sftp, gateway.front_port) if service is not None else ()


def peer_doors(peer: Peer, far: PeerGuest) -> tuple[str, ...]:
    """The storage URLs of a guest of another site, best first.

    () for a stock GridFTP server, too: where its files lie is for its operator to say (`dgis se add`).
    """
    service = far.service("storage")
    return _doors(service, far.gridftp, far.sftp, peer.front_port) if service is not None and not far.stock else ()


def _doors(service: Service, gridftp: Gridftp | None, sftp: int | None, front: int) -> tuple[str, ...]:
    ports = (("gsiftp", gridftp.control if gridftp else None), ("sftp", sftp), ("https", front))
    return tuple(f"{scheme}://{service.name}:{port}/areas/{AREA}" for scheme, port in ports if port is not None)


def catalog_url(site: Site) -> str:
    """Where the VO's catalog answers, the port always written out. Raises DeployError when no site has it."""
    found = site.catalog_service
    if found is None:
        raise DeployError(
            "no site has the VO's catalog: give a guest the role catalog, here or at a peer, and name the site by "
            "catalog: SITE when more than one has"
        )
    service, _, port = found
    return f"https://{service.name}:{port}"
