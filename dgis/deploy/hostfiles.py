"""What a host needs besides its firewall: kernel settings, bridges and the wire to the hosts behind it. Pure.

The uplink is left to the institution: it was there before us, and a mistake in it would lock out whoever could mend it.
"""

from __future__ import annotations

from dgis.deploy.topology import Host, Network, Site, Wire

_HEAD = "# made from the site file by dgis deploy render; edit that, not this\n"


def sysctl(host: Host) -> dict[str, str]:
    """Kernel settings by name.

    Bridged frames do not meet the IP rules (br_netfilter, which Docker loads, would show them): guests on one bridge
    are neighbours, and a guest's call to its own public address is routed, not bridged. Strict reverse path filtering
    drops what claims to come from another side, on each interface by name: the laxer of two settings counts. Redirects
    would lead guests past the rules. A host with iptables has no rules for IPv6, and therefore none of it.
    """
    settings = {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all.rp_filter": "1",
        "net.ipv4.conf.all.send_redirects": "0",
        "net.ipv4.conf.all.accept_redirects": "0",
        "net.bridge.bridge-nf-call-iptables": "0",
        "net.bridge.bridge-nf-call-ip6tables": "0",
    }
    for network in host.networks:
        name = _slashed(network.bridge)
        settings[f"net.ipv4.conf.{name}.rp_filter"] = "1"
        settings[f"net.ipv6.conf.{name}.disable_ipv6"] = "1"
        settings[f"net.ipv4.conf.{name}.send_redirects"] = "0"
    for wire in host.wires:
        settings[f"net.ipv4.conf.{_slashed(wire.interface)}.rp_filter"] = "1"
        if host.firewall == "iptables":
            settings[f"net.ipv6.conf.{_slashed(wire.interface)}.disable_ipv6"] = "1"
    return settings


def _slashed(interface: str) -> str:
    """An interface name as sysctl takes it: a dot would part it in two."""
    return interface.replace(".", "/")


def sysctl_text(host: Host) -> str:
    """The file for /etc/sysctl.d; a dash lets a kernel without br_netfilter, or an interface that comes later, go on.

    udev has systemd-sysctl set those of an interface once it is there.
    """
    lines = (f"{_dash(name)}{name} = {value}" for name, value in sysctl(host).items())
    return _HEAD + "\n".join(lines) + "\n"


def _dash(name: str) -> str:
    own = name.split(".")[1] == "ipv4" and name.split(".")[3:4] in (["all"], []) or name == "net.ipv4.ip_forward"
    return "" if own else "-"


def networkd(site: Site, host: Host) -> dict[str, str]:
    """Files for /etc/systemd/network by name."""
    made: dict[str, str] = {}
    for network in host.networks:
        made[f"40-dgis-{network.name}.netdev"] = _HEAD + f"[NetDev]\nName={network.bridge}\nKind=bridge\n"
        made[f"40-dgis-{network.name}.network"] = _HEAD + _bridge(network)
    for key, wire in (("inner", host.inner), ("lan", host.lan)):
        if wire is not None:
            made[f"40-dgis-{key}.network"] = _HEAD + _wire(wire, routes(site, host) if key == "inner" else _lan(wire))
    return made


def routes(site: Site, host: Host) -> list[tuple[str, str]]:
    """Destination and next hop over the inner wire: everything by the gateway, or guests of the hosts behind."""
    if host.behind is not None:
        gateway = site.host(host.behind).inner
        return [("0.0.0.0/0", str(gateway.ip))] if gateway is not None else []
    return [
        (str(network.cidr), str(other.inner.ip))
        for other in site.hosts_behind(host)
        if other.inner is not None
        for network in other.networks
    ]


def _lan(wire: Wire) -> list[tuple[str, str]]:
    if wire.gateway is None:
        return []
    return [(str(network), str(wire.gateway)) for network in wire.networks if network != wire.address.network]


def _bridge(network: Network) -> str:
    address = f"{network.gateway}/{network.cidr.prefixlen}"
    # a bridge without a guest has no carrier, and must have its address all the same
    return (
        f"[Match]\nName={network.bridge}\n\n[Link]\nRequiredForOnline=no\n\n"
        f"[Network]\nAddress={address}\nConfigureWithoutCarrier=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )


def _wire(wire: Wire, ways: list[tuple[str, str]]) -> str:
    parts = [f"[Match]\nName={wire.interface}\n", f"[Network]\nAddress={wire.address}\nLinkLocalAddressing=no\n"]
    parts += [f"[Route]\nDestination={destination}\nGateway={hop}\n" for destination, hop in ways]
    return "\n".join(parts)
