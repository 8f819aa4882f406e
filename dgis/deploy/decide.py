"""Does a plan let a connection through? Pure: the meaning of a `HostPlan`, beside the texts that are made from it.

`apply` asks it which open connections a new plan no longer allows; the tests ask it what rendered rules must do.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from dgis.deploy.plan import HostPlan, Permission
from dgis.deploy.values import Protocol

Verdict = Literal["allowed", "refused", "foreign"]


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as its first packet was: before any translation."""

    source: IPv4Address
    target: IPv4Address
    protocol: Protocol
    port: int


def judge(plan: HostPlan, connection: Connection) -> Verdict:
    """Whether the plan allows it; `foreign` when it neither touches a guest nor one of this host's addresses."""
    target, port, translated = _translate(plan, connection)
    if _is_own(plan, connection.source):
        # what the host itself opens passes no rule but translation
        return "allowed" if _is_guest(plan, target) or _is_own(plan, target) else "foreign"
    if _is_guest(plan, target):
        allowed = _match(plan.admitted, connection, target, port)
        direct = not translated and _same_bridge(plan, connection.source, target)
        by_a_door = translated or not _from_outer(plan, connection.source)
        return "allowed" if (allowed and by_a_door) or direct else "refused"
    if _is_guest(plan, connection.source) and not _is_own(plan, target):
        return "allowed" if _match(plan.leaving, connection, target, port) else "refused"
    if _is_own(plan, target):
        return "allowed" if _match(plan.inputs, connection, target, port) else "refused"
    return "foreign"


def outlived(
    plan: HostPlan, connection: Connection, landed: tuple[IPv4Address, int], former: frozenset[IPv4Address]
) -> bool:
    """Whether an open connection that leads to `landed` has no place in the plan any more: it may not be, or its door
    leads elsewhere now. What somebody else's rules translate to strangers is theirs; `former` are addresses that used
    to be guests.
    """
    target, port = destination(plan, connection)
    address = landed[0]
    known = _is_guest(plan, address) or _is_own(plan, address) or address in former
    if landed != (target, port) and not known and not _is_guest(plan, connection.source):
        return False
    verdict = judge(plan, connection)
    return verdict == "refused" or (verdict == "allowed" and landed != (target, port))


def destination(plan: HostPlan, connection: Connection) -> tuple[IPv4Address, int]:
    """Where a connection ends up after translation."""
    target, port, _ = _translate(plan, connection)
    return target, port


def _translate(plan: HostPlan, connection: Connection) -> tuple[IPv4Address, int, bool]:
    for each in plan.translations:
        if (each.address, each.protocol) == (connection.target, connection.protocol) and connection.port in each.ports:
            port = each.inside.first if each.ports.count == 1 else connection.port
            return each.target, port, True
    return connection.target, connection.port, False


def _match(permissions: tuple[Permission, ...], connection: Connection, target: IPv4Address, port: int) -> bool:
    return any(
        connection.source in each.source
        and target in each.target
        and connection.protocol == each.protocol
        and port in each.ports
        for each in permissions
    )


def _is_guest(plan: HostPlan, address: IPv4Address) -> bool:
    gateways = (network.gateway for network in plan.host.networks)
    return any(address in network for network in plan.guest_networks) and address not in gateways


def _from_outer(plan: HostPlan, source: IPv4Address) -> bool:
    """Whether it comes by an interface that leads away from the site: on a host behind, only from its LAN."""
    if _is_guest(plan, source) or source in plan.neighbours:
        return False
    if plan.host.behind is None:
        return True
    return plan.host.lan is not None and any(source in network for network in plan.host.lan.reach)


def _same_bridge(plan: HostPlan, source: IPv4Address, target: IPv4Address) -> bool:
    return any(source in network.cidr and target in network.cidr for network in plan.host.networks)


def _is_own(plan: HostPlan, address: IPv4Address) -> bool:
    """Whether the host itself answers there: at its public address only doors do, where a firewall outside has that."""
    return address in {wire.ip for wire in plan.host.wires} | {network.gateway for network in plan.host.networks}
