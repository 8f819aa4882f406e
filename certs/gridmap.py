"""The gridmap: which account and roles a verified DN has.

One line per DN, Globus style with a third column: ``"/O=Grid/CN=name" account role,role``; ``#`` starts a comment line.
A line may end with ``from=NETWORK,NETWORK``: this certificate counts only on connections from there, so that a stolen
key is of no use elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from certs.dn import DN
from certs.errors import ConfigError, CredentialError
from certs.files import Signature, signature_of, write_atomically
from certs.log import get_log
from certs.peer import ROLES

_LINE = re.compile(r'^"([^"]+)"\s+(?!from=)(\S+)(?:\s+(?!from=)(\S+))?(?:\s+from=(\S+))?$')
_FORM = '"/O=Grid/CN=name" account role,role from=NETWORK,NETWORK (roles and from= may be left out)'

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

log = get_log()


@dataclass(frozen=True, slots=True)
class Entry:
    """What one DN maps to; ``networks`` is where it may come from, anywhere when there are none."""

    account: str
    roles: frozenset[str]
    networks: tuple[Network, ...] = ()

    def admits(self, address: str) -> bool:
        """Say whether a connection from this IP address may be this DN's; an address that is unknown may not."""
        if not self.networks:
            return True
        try:
            came = ipaddress.ip_address(address)
        except ValueError:
            return False
        # An IPv4 peer of a socket for both families (RFC 4291 section 2.5.5.2)
        mapped = came.ipv4_mapped if isinstance(came, ipaddress.IPv6Address) else None
        return any((mapped or came) in network for network in self.networks)


class Gridmap:
    """A gridmap file that follows its changes: a broken new version is logged and the last good one kept."""

    def __init__(self, path: Path | None) -> None:
        """Read the file; None is a gridmap that knows nobody. Raises ConfigError for a broken file."""
        self._path = path
        self._lock = threading.Lock()
        self._seen: Signature | None = None
        self._entries: dict[DN, Entry] = {}
        self.generation = 0
        if path is not None:
            self._seen = signature_of(path)
            self._entries = read_gridmap(path)

    def lookup(self, dn: DN) -> Entry | None:
        """Return what a DN maps to in the newest version of the file, or None."""
        self.reload_if_changed()
        return self._entries.get(dn)

    def misplaced(self, dn: DN, address: str) -> str | None:
        """Say why this DN may not come from an address, or None (also when the gridmap does not know it)."""
        entry = self.lookup(dn)
        if entry is None or entry.admits(address):
            return None
        return f"{dn} may not come from {address or 'an unknown address'}: the gridmap says from where (from=)"

    def reload_if_changed(self) -> bool:
        """Read the file again when it was replaced; costs one stat otherwise."""
        if self._path is None:
            return False
        seen = signature_of(self._path)
        if seen == self._seen and seen is not None:
            return False
        with self._lock:
            try:
                entries = read_gridmap(self._path)
            except ConfigError as error:
                if seen != self._seen:
                    log.error("gridmap_kept", reason=str(error))
                self._seen = seen
                return False
            self._entries, self._seen = entries, seen
            self.generation += 1
            return True


def read_gridmap(path: Path) -> dict[DN, Entry]:
    """Parse a gridmap file; raises ConfigError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the gridmap cannot be read", file=str(path)) from error
    entries: dict[DN, Entry] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            dn, entry = _parse_line(path, number, text)
            entries[dn] = entry
    return entries


def map_dn(path: Path, dn: DN, *, account: str, roles: frozenset[str]) -> None:
    """Add or replace the line of one DN; the file is replaced in one step, comments and other lines stay.

    Where the DN may come from (``from=``) stays as it was.
    """
    _check_entry(account, roles)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if _dn_of_line(line) != dn]
    bound = next((found[4] for line in lines if _dn_of_line(line) == dn and (found := _LINE.match(line.strip()))), None)
    words = [f'"{dn}" {account}', ",".join(sorted(roles)), f"from={bound}" if bound else ""]
    kept.append(" ".join(word for word in words if word))
    write_atomically(path, ("\n".join(kept) + "\n").encode(), mode=0o644)


def _check_entry(account: str, roles: frozenset[str]) -> None:
    if not re.fullmatch(r"[^\s\"#]{1,128}", account):
        raise ConfigError("an account name has 1 to 128 characters without blanks, quotes or #")
    unknown = roles - ROLES
    if unknown:
        raise ConfigError(f"unknown role {', '.join(sorted(unknown))}; roles are {', '.join(sorted(ROLES))}")


def _dn_of_line(line: str) -> DN | None:
    match = _LINE.match(line.strip())
    if match is None or line.lstrip().startswith("#"):
        return None
    try:
        return DN.parse(match.group(1))
    except CredentialError:
        return None


def _parse_line(path: Path, number: int, text: str) -> tuple[DN, Entry]:
    match = _LINE.match(text)
    where = f"{path}, line {number}"
    if match is None:
        raise ConfigError(f"{where}: expected {_FORM}", file=str(path))
    roles = frozenset(match.group(3).split(",")) if match.group(3) else frozenset()
    unknown = roles - ROLES
    if unknown:
        known = ", ".join(sorted(ROLES))
        raise ConfigError(f"{where}: unknown role {', '.join(sorted(unknown))}; roles are {known}", file=str(path))
    try:
        networks = tuple(ipaddress.ip_network(each, strict=False) for each in (match.group(4) or "").split(",") if each)
        return DN.parse(match.group(1)), Entry(account=match.group(2), roles=roles, networks=networks)
    except (CredentialError, ValueError) as error:
        raise ConfigError(f"{where}: {error}", file=str(path)) from error
