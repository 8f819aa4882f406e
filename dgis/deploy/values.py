"""The small values of a site: port ranges, sizes, names, and how each is written in a site file."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from certs.dn import DN
from certs.errors import CertsError
from dgis.config import Size

Protocol = Literal["tcp", "udp"]
ANYWHERE = IPv4Network("0.0.0.0/0")
_RANGE = re.compile(r"(\d{1,5})\s*-\s*(\d{1,5})")


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last`, both included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise ValueError(f"ports are 1 to 65535, lowest first, not {self.first}-{self.last}")

    @classmethod
    def one(cls, port: int) -> PortRange:
        """A range of a single port."""
        return cls(port, port)

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def overlaps(self, other: PortRange) -> bool:
        """Whether any port is in both."""
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.count == 1 else f"{self.first}-{self.last}"


def _ports(value: object) -> object:
    if isinstance(value, PortRange):
        return value
    match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        return PortRange(int(match[1]), int(match[2]))
    if isinstance(value, int) and not isinstance(value, bool):
        return PortRange.one(value)
    raise ValueError("write a port like 2811, or a range like 50000-50099")


def _address(value: object) -> object:
    try:
        return ipaddress.IPv4Address(str(value))
    except ValueError:
        raise ValueError("write an IPv4 address like 10.77.0.11") from None


def _interface(value: object) -> object:
    try:
        if "/" not in str(value):
            raise ValueError
        return ipaddress.IPv4Interface(str(value))
    except ValueError:
        raise ValueError("write an IPv4 address with its prefix length, like 198.51.100.10/24") from None


def _network(value: object) -> object:
    if value == "any":
        return ANYWHERE
    try:
        return ipaddress.IPv4Network(str(value))
    except ValueError:
        pass
    try:
        meant = f", or {ipaddress.IPv4Network(str(value), strict=False)} if you mean the network around it"
    except ValueError:
        meant = ""
    raise ValueError(f"write an IPv4 network like 192.0.2.0/24, an address, or any{meant}") from None


def _text(value: object) -> object:
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError("write one line of at most 200 printable characters")
    return value


def _organisation(value: object) -> object:
    """What the authority takes as O= (its signing policies are read by tools that split at these characters)."""
    fits = isinstance(value, str) and 1 <= len(value) <= 64 and value.isprintable() and value.strip(". ") == value
    if not fits or set(str(value)) & set("/\\'\"*"):
        raise ValueError("write 1 to 64 characters without / \\ ' \" *, no blank or dot at either end")
    return value


def _subject(value: object) -> object:
    try:
        return str(DN.parse(str(value)))
    except CertsError as error:
        raise ValueError(f"write a certificate subject like /O=Grid/OU=People/CN=name: {error}") from None


def _matching(pattern: str, hint: str) -> Any:
    def check(value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(hint)
        return value

    return BeforeValidator(check)


_LABEL = r"[a-z][a-z0-9-]{0,14}"
_DOMAIN = r"(?=.{1,200}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+"
# lo is every host's own; all and default are what sysctl calls every interface and the next one
_INTERFACE_NAME = r"(?!(?:lo|all|default)$)[A-Za-z][A-Za-z0-9._-]{0,14}"
_SSH_KEY = (
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp256|sk-ssh-ed25519@openssh\.com) [A-Za-z0-9+/=]{40,}"
    r"( [\x20-\x7e]{1,100})?"
)


def _text_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$"})


Ports = Annotated[
    PortRange,
    BeforeValidator(_ports),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string", "pattern": r"^\d{1,5}\s*-\s*\d{1,5}$"},
            ]
        }
    ),
]
Address = Annotated[IPv4Address, BeforeValidator(_address), WithJsonSchema({"type": "string", "format": "ipv4"})]
InterfaceAddress = Annotated[
    IPv4Interface, BeforeValidator(_interface), WithJsonSchema({"type": "string", "pattern": r"^[0-9.]{7,15}/\d{1,2}$"})
]
Net = Annotated[
    IPv4Network,
    BeforeValidator(_network),
    WithJsonSchema({"type": "string", "pattern": r"^(any|[0-9.]{7,15}(/\d{1,2})?)$"}),
]
Label = Annotated[
    str,
    _matching(_LABEL, "write a name of 1 to 15 small letters, digits and dashes that begins with a letter, like node1"),
    _text_schema(_LABEL),
]
DomainName = Annotated[
    str, _matching(_DOMAIN, "write a domain name in small letters, like hospital.example"), _text_schema(_DOMAIN)
]
InterfaceName = Annotated[
    str,
    _matching(
        _INTERFACE_NAME,
        "write an interface name of at most 15 characters, like eth0 or dgisbr0, not lo, all or default",
    ),
    _text_schema(_INTERFACE_NAME),
]
Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 200})]
Organisation = Annotated[
    str, BeforeValidator(_organisation), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 64})
]
SshKey = Annotated[
    str,
    _matching(_SSH_KEY, "write a whole public key line, like ssh-ed25519 AAAA... name"),
    WithJsonSchema({"type": "string"}),
]
Subject = Annotated[str, BeforeValidator(_subject), WithJsonSchema({"type": "string", "pattern": "^/"})]
Bytes = Annotated[Size, WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]})]
Port = Annotated[int, Field(ge=1, le=65535)]


def disjoint_from(network: IPv4Network, others: tuple[IPv4Network, ...]) -> bool:
    """Whether the network shares no address with any of the others."""
    return not any(network.overlaps(other) for other in others)
