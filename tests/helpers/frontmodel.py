"""The front's two map files as HAProxy reads them: the longest network that has the client, then network and name."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from tests.helpers.packets import ModelError, Target


@dataclass(frozen=True, slots=True)
class FrontMaps:
    """Both maps."""

    networks: dict[IPv4Network, str]
    routes: dict[str, Target]

    @classmethod
    def parse(cls, networks: str, routes: str) -> FrontMaps:
        """Read the texts of the files. Raises ModelError for a key that stands twice: HAProxy takes one of them."""
        ends = {}
        for key, value in _entries(routes):
            address, _, port = value.partition(":")
            ends[key] = (IPv4Address(address), int(port))
        return cls({IPv4Network(key): value for key, value in _entries(networks)}, ends)

    def lead(self, source: IPv4Address, name: str) -> Target | None:
        """Where a client is led who asks for a name; None means closed."""
        around = [network for network in self.networks if source in network]
        longest = max(around, key=lambda network: network.prefixlen, default=None)
        return self.routes.get(f"{self.networks[longest] if longest is not None else 'none'}|{name.lower()}")


def _entries(text: str) -> list[tuple[str, str]]:
    """Key and value of each line; HAProxy parts them at the first space."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key in found or not value or " " in value:
            raise ModelError(f"twice, or no entry: {line}")
        found[key] = value
    return list(found.items())
