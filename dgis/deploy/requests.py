"""Certificate requests: what every service's certificate has to say, as a configuration of `openssl req`. Pure.

For a guest that has stock openssl and nothing of ours; `dgis-certs request` makes the same request by itself. What is
signed in the end is the CA's to say: these names are what to say there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address

from dgis.deploy import names
from dgis.deploy.errors import DeployError
from dgis.deploy.topology import GRID_ROLES, Guest, Service, Site

_DNS = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+")


@dataclass(frozen=True, slots=True)
class AltNames:
    """The subject alternative names of a certificate (RFC 5280 section 4.2.1.6)."""

    dns: tuple[str, ...]
    ips: tuple[IPv4Address, ...]


def alt_names(site: Site, guest: Guest, service: Service) -> AltNames:
    """By which names and addresses a service is reached.

    Its DNS name and the public address; a DGIS also at the address that viewers use for DICOM TLS, the LAN's or, where
    the institution sees the uplink itself, the uplink's.
    """
    gateway, host = site.gateway_of(guest), site.host(guest.host)
    found = [gateway.public]
    if service.role == "dgis":
        local = host.lan or gateway.uplink
        found.append(local.ip if local is not None else None)
    return AltNames((service.name,), tuple(dict.fromkeys(ip for ip in found if ip is not None)))


def sign_arguments(site: Site, guest: Guest, service: Service) -> tuple[str, ...]:
    """The options of `dgis-certs sign` (and of `request`, but for the role) that say the same at the CA."""
    alt, role = alt_names(site, guest, service), GRID_ROLES.get(service.role)
    words = [word for name in alt.dns for word in ("--dns", name)]
    words += [word for ip in alt.ips for word in ("--ip", str(ip))]
    return (*words, "--role", role) if role is not None else tuple(words)


def config(site: Site, guest: Guest, service: Service) -> str:
    """A service's `csr.cnf`. Raises DeployError for names that no certificate can have."""
    subject, alt = names.subject(site, service.name), alt_names(site, guest, service)
    bad = [name for name in alt.dns if not _DNS.fullmatch(name)]
    if bad:
        raise DeployError(f"{bad[0]!a} is no DNS name: change the guest's name or the domain in the site file")
    what = service.directory
    return "\n".join(
        (
            f"# openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -config {what}.csr.cnf \\",
            f"#   -keyout {what}.key.pem -out {what}.csr.pem",
            "[req]",
            "prompt = no",
            "utf8 = yes",
            "string_mask = utf8only",
            "default_md = sha256",
            "distinguished_name = subject",
            "req_extensions = extensions",
            "",
            "[subject]",
            *(f"{attribute} = {_escaped(value)}" for attribute, value in subject.parts),
            "",
            "[extensions]",
            "basicConstraints = critical, CA:FALSE",
            "keyUsage = critical, digitalSignature",
            # A service calls others with the certificate that it answers with
            "extendedKeyUsage = serverAuth, clientAuth",
            "subjectAltName = @names",
            "",
            "[names]",
            *(f"DNS.{number} = {name}" for number, name in enumerate(alt.dns, start=1)),
            *(f"IP.{number} = {ip}" for number, ip in enumerate(alt.ips, start=1)),
            "",
        )
    )


def _escaped(value: str) -> str:
    """A value as config(5ssl) reads it back: $ would expand, # begin a comment, quotes and \\ vanish."""
    return re.sub(r"""([\\$#"'`])""", r"\\\1", value)
