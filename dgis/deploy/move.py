"""Move a guest in a site file: only the words that change are changed, comments and layout stay. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import yaml

from dgis.deploy import check, sitefile
from dgis.deploy.errors import DeployError
from dgis.deploy.model import HostTable, NetworkTable, SiteFile
from dgis.deploy.sitefile import Loc, Source
from dgis.deploy.topology import Site


def moved(
    text: str, name: str, guest: str, host: str, *, network: str | None = None, address: IPv4Address | None = None
) -> tuple[str, Site]:
    """The text of the site file with `guest` on `host`, and the site that it then is.

    Without `address` the guest keeps its number within the network: 10.77.0.11 becomes 10.77.1.11. Raises DeployError
    when it cannot be told what to write, and SiteFileError when the result would not be a valid file.
    """
    file, source = sitefile.parse(text, name)
    check.resolved(file, source)
    number = next((number for number, each in enumerate(file.guests) if each.name == guest), None)
    if number is None:
        raise DeployError(
            f"{name}: no guest {guest}; there are {', '.join(each.name for each in file.guests) or 'none'}"
        )
    target = next((each for each in file.hosts if each.name == host), None)
    if target is None:
        raise DeployError(f"{name}: no host {host}; there are {', '.join(each.name for each in file.hosts)}")
    table = file.guests[number]
    if table.host == host:
        raise DeployError(f"{name}: {guest} is on {host} already")
    into = _network(name, target, network or table.network)
    if table.network is None and len(target.networks) > 1:
        raise DeployError(f"{name}: {host} has several networks: write network: {into.name} into {guest} first")
    wanted = {"host": host, "address": str(address or _same_number(name, file, number, into))}
    if table.network is not None and table.network != into.name:
        wanted["network"] = into.name
    changed = _replaced(text, source, ("guests", number), wanted)
    return changed, check.resolved(*sitefile.parse(changed, name))


def _network(name: str, host: HostTable, wanted: str | None) -> NetworkTable:
    found = [each for each in host.networks if wanted in (None, each.name)]
    if len(found) == 1:
        return found[0]
    if not found and len(host.networks) == 1:
        return host.networks[0]
    raise DeployError(f"{name}: say by --network into which: {', '.join(each.name for each in host.networks)}")


def _same_number(name: str, file: SiteFile, number: int, into: NetworkTable) -> IPv4Address:
    table = file.guests[number]
    home = next(each for each in file.hosts if each.name == table.host)
    old: IPv4Network = next(each.cidr for each in home.networks if table.network in (None, each.name))
    offset = int(table.address) - int(old.network_address)
    if offset >= into.cidr.num_addresses - 1:
        raise DeployError(f"{name}: {table.name} has no place in {into.cidr} by its number: give --address")
    wanted = into.cidr.network_address + offset
    taken = {each.address: f"guest {each.name}" for each in file.guests}
    taken[into.gateway or into.cidr.network_address + 1] = f"network {into.name}"
    if wanted in taken:
        raise DeployError(
            f"{name}: by its number {table.name} would be {wanted}, as {taken[wanted]} is: give --address"
        )
    return wanted


def _replaced(text: str, source: Source, place: Loc, wanted: dict[str, str]) -> str:
    spans = []
    for key, value in wanted.items():
        span = source.span((*place, key))
        if span is None:
            raise DeployError(f"{source.name}: {source.words(place)} has no {key} that could be changed")
        # A name like no would be read as something else
        spans.append((*span, value if yaml.safe_load(value) == value else f'"{value}"'))
    for begin, end, value in sorted(spans, reverse=True):
        text = text[:begin] + value + text[end:]
    return text
