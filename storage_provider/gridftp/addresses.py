"""Addresses of data connections in commands and replies: RFC 959 (PORT, PASV), RFC 2428 (EPRT, EPSV), GFD.20 (SPAS)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from storage_provider.errors import Refused

Endpoint = tuple[str, int]

_SIX = re.compile(r"(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3})", re.A)
_EPSV = re.compile(r"\(([!-~])\1\1(\d{1,5})\1\)", re.A)
_FAMILIES = {4: "1", 6: "2"}
_MOST_ENDPOINTS = 16


def is_ipv4(host: str) -> bool:
    """Tell whether this is an IPv4 address, which alone fits PORT and PASV."""
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return False


def format_port(endpoint: Endpoint) -> str:
    """Spell `h1,h2,h3,h4,p1,p2`; Refused for what is no IPv4 address."""
    host, port = endpoint
    if not is_ipv4(host):
        raise Refused("only an IPv4 address fits here; use EPSV or EPRT")
    return f"{host.replace('.', ',')},{port >> 8},{port & 255}"


def parse_port(text: str) -> Endpoint:
    """Read `h1,h2,h3,h4,p1,p2`; raises Refused."""
    match = _SIX.fullmatch(text.strip())
    numbers = [int(each) for each in match.groups()] if match is not None else [256]
    if max(numbers) > 255:
        raise Refused("not an address of the form h1,h2,h3,h4,p1,p2")
    return _checked(".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5])


def format_eprt(endpoint: Endpoint) -> str:
    """Spell `|1|host|port|` (RFC 2428 section 2)."""
    host, port = endpoint
    return f"|{_FAMILIES[ipaddress.ip_address(host).version]}|{host}|{port}|"


def parse_eprt(text: str) -> Endpoint:
    """Read `|1|host|port|` with whatever delimiter; raises Refused."""
    text = text.strip()
    parts = text.split(text[:1]) if text else []
    if len(parts) != 5 or parts[0] or parts[4] or not parts[3].isascii() or not parts[3].isdigit():
        raise Refused("not an address of the form |1|host|port|")
    host, port = _checked(parts[2], int(parts[3][:6]))
    if parts[1] != _FAMILIES[ipaddress.ip_address(host).version]:
        raise Refused("the address is of another family")
    return host, port


def parse_spor(text: str) -> tuple[Endpoint, ...]:
    """Read the addresses of SPOR (one per stripe), each in either form; raises Refused."""
    words = text.split()
    if not 1 <= len(words) <= _MOST_ENDPOINTS:
        raise Refused(f"1 to {_MOST_ENDPOINTS} addresses are expected")
    return tuple(parse_port(word) if word[:1].isdigit() else parse_eprt(word) for word in words)


def pasv_line(endpoint: Endpoint) -> str:
    """Return the text of a 227 reply."""
    return f"Entering Passive Mode ({format_port(endpoint)})"


def parse_pasv(text: str) -> Endpoint:
    """Read the text of a 227 reply, with or without brackets; raises Refused."""
    match = _SIX.search(text)
    if match is None:
        raise Refused("the passive reply holds no address")
    return parse_port(match[0])


def epsv_line(port: int) -> str:
    """Return the text of a 229 reply: the port on the host of the control connection."""
    return f"Entering Extended Passive Mode (|||{port}|)"


def parse_epsv(text: str) -> int:
    """Read the port in the text of a 229 reply; raises Refused."""
    match = _EPSV.search(text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise Refused("the extended passive reply holds no port")
    return int(match[2])


def spas_lines(endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    """Return the lines of the 229 reply to SPAS: an address per stripe."""
    texts = (format_port(each) if is_ipv4(each[0]) else format_eprt(each) for each in endpoints)
    return ("Entering Striped Passive Mode", *texts, "End")


def parse_spas(lines: Sequence[str]) -> tuple[Endpoint, ...]:
    """Read the lines of the 229 reply to SPAS; raises Refused."""
    return parse_spor(" ".join(line.strip() for line in lines[1:-1]))


def _checked(host: str, port: int) -> Endpoint:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise Refused("not an IP address") from error
    if not 1 <= port <= 65535:
        raise Refused("not a port")
    return str(address), port
