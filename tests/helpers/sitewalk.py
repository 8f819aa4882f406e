"""Where a connection really ends: it is led through the rule sets of a site's hosts, model by model.

    walk = Walk(facts, {"xen1": NftRules.parse(...)})
    walk.from_beyond("xen1", source, call).end

Routes, addresses and reverse path filtering come from the document (`sitefacts`); translations, verdicts and masks from
the rule sets. A walk also tells whether the answer finds back through the host that translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from tests.helpers.packets import Firewall, Packet
from tests.helpers.sitefacts import Facts, Guest, Host
from tests.helpers.siteoracle import CLOSED, Call, End


@dataclass(frozen=True, slots=True)
class Arrival:
    """The end of a way: `source` as it was seen there, and the hosts that translated on it."""

    end: End
    source: IPv4Address
    translators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Walk:
    """A site with rules in force. `strict`: hosts drop what comes from another side than its source lies."""

    facts: Facts
    rules: Mapping[str, Firewall]
    strict: bool = True

    def from_beyond(self, host: Host, source: IPv4Address, call: Call, *, interface: str | None = None) -> Arrival:
        """Enter a host from outside, by the interface behind which the source lies or by another one."""
        return self._arrive(host, interface or host.way(source), source, call, ())

    def from_guest(self, guest: Guest, call: Call) -> Arrival:
        """Leave a guest."""
        if call.target in guest.bridge.cidr and call.target != guest.bridge.gateway:
            return Arrival(self._guest_end(call), guest.address)
        return self._arrive(self.facts.hosts[guest.host], guest.bridge.interface, guest.address, call, ())

    def from_host(self, host: Host, call: Call) -> Arrival:
        """Leave a host itself: only its output chain and its postrouting see that."""
        oif = host.way(call.target)
        source = call.target if oif == "lo" else host.address_at(oif)
        packet = Packet("", oif, source, call.target, call.protocol, call.port)
        rules = self.rules[host.name]
        found = rules.translated("output", packet)
        if found is not None:
            packet = replace(packet, target=found[0], port=found[1], oif=host.way(found[0]), dnat=True)
        if packet.oif == "lo":
            fate = rules.fate("input", replace(packet, iif="lo", oif=""))
            end = End("host", host.name, packet.port) if fate == "accept" else CLOSED
            return Arrival(end, source)
        return self._send(host, packet, (host.name,) if packet.dnat else ())

    def _arrive(self, host: Host, iif: str, source: IPv4Address, call: Call, seen: tuple[str, ...]) -> Arrival:
        if self.strict and (host.way(source) != iif or source in host.own):
            return Arrival(CLOSED, source)
        rules = self.rules[host.name]
        packet = Packet(iif, "", source, call.target, call.protocol, call.port)
        found = rules.translated("prerouting", packet)
        if found is not None:
            packet = replace(packet, target=found[0], port=found[1], dnat=True)
            seen = (*seen, host.name)
        oif = host.way(packet.target)
        if oif == "lo":
            fate = rules.fate("input", packet)
            return Arrival(End("host", host.name, packet.port) if fate == "accept" else CLOSED, source, seen)
        packet = replace(packet, oif=oif)
        if rules.fate("forward", packet) != "accept":
            return Arrival(CLOSED, source, seen)
        return self._send(host, packet, seen)

    def _send(self, host: Host, packet: Packet, seen: tuple[str, ...]) -> Arrival:
        source = packet.source
        if self.rules[host.name].masked(packet):
            source = host.address_at(packet.oif)
            seen = (*seen, host.name)
        call = Call(packet.target, packet.protocol, packet.port)
        if host.bridge_at(packet.oif) is not None:
            return Arrival(self._guest_end(call), source, seen)
        if host.inner is not None and packet.oif == host.inner.interface:
            return self._along(host, source, call, seen)
        return self._away(host, source, call, seen)

    def _along(self, host: Host, source: IPv4Address, call: Call, seen: tuple[str, ...]) -> Arrival:
        """Over the inner wire: to the host that has the address or its network, else to the gateway."""
        around = [other for other in self.facts.hosts.values() if other.gateway == host.gateway and other is not host]
        for other in around:
            assert other.inner is not None
            if call.target == other.inner.ip:
                return self._arrive(other, other.inner.interface, source, call, seen)
        if host.uplink is None:
            around = [self.facts.hosts[host.gateway]]
        for other in around:
            assert other.inner is not None
            if host.uplink is None or any(call.target in bridge.cidr for bridge in other.bridges):
                return self._arrive(other, other.inner.interface, source, call, seen)
        return Arrival(CLOSED, source, seen)

    def _away(self, host: Host, source: IPv4Address, call: Call, seen: tuple[str, ...]) -> Arrival:
        """Out of the site, and in again at another gateway of it."""
        for other in self.facts.gateways:
            if other is not host and other.uplink is not None and call.target in (other.uplink.ip, other.public):
                assert host.uplink is not None and host.public is not None
                near = call.target in host.uplink.address.network or source != host.uplink.ip
                return self._arrive(other, other.uplink.interface, source if near else host.public, call, ())
        return Arrival(End("away"), source, seen)

    def _guest_end(self, call: Call) -> End:
        guest = self.facts.guest_at(call.target)
        return End("guest", guest.name if guest is not None else "", call.port)

    # And back

    def answered(self, arrival: Arrival, call: Call) -> bool:
        """Whether a guest's answer comes from where it was asked: past every host that translated on the way."""
        if arrival.end.kind != "guest" or not arrival.translators:
            return True
        guest = self.facts.guests[arrival.end.name]
        if arrival.source in guest.bridge.cidr and arrival.source != guest.bridge.gateway:
            return False  # a neighbour on the bridge is answered without any host
        passed = [self.facts.hosts[guest.host]]
        first = passed[0]
        if first.inner is not None and first.way(arrival.source) == first.inner.interface:
            passed += [other for other in self.facts.hosts.values() if other.name == first.gateway]
        return {host.name for host in passed} >= set(arrival.translators)
