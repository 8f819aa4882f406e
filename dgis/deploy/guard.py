"""What `apply` makes sure of before it touches a machine: nobody else works on it, it is the host that the site file
means, and whoever asks for it can come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan

Address = IPv4Address | IPv6Address
Interfaces = Mapping[str, frozenset[Address]]
LOCK_SECONDS: Final = 20.0  # for a run of somebody else's to end
# The lock lasts as long as the process, and that as long as its input is open: whoever dies leaves no lock behind
_LOCK: Final = (
    'set -e; if ! mkdir -p "$(dirname "$1")" || ! : >> "$1"; then '
    'echo "apply has to write there, as root" >&2; exit 1; fi; exec 9>> "$1"; '
    'if ! flock -w "$2" 9; then '
    'echo "another dgis deploy works on this host and did not end in $2 s; try again after it" >&2; exit 1; fi; '
    "echo held; exec cat > /dev/null"
)
# Up the parents, since sudo takes it out of the environment
_CALLER: Final = """\
import os
process = os.getpid()
while process > 1:
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            variables = dict(each.partition(b"=")[::2] for each in file.read().split(b"\\0"))
        with open(f"/proc/{process}/stat") as file:
            process = int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        break
    if b"SSH_CONNECTION" in variables:
        print(variables[b"SSH_CONNECTION"].decode())
        break
"""


def alone(machine: Machine, path: str, *, patience: float = LOCK_SECONDS) -> AbstractContextManager[None]:
    """Be the only one who works on a machine, by a lock on a file of its; waits so many seconds for another to end."""
    return machine.holding(("sh", "-c", _LOCK, "sh", path, f"{patience:g}"), timeout=30 + patience)


def interfaces(machine: Machine) -> Interfaces:
    """The interfaces of a machine that have addresses, and which."""
    said = machine.run(("ip", "-j", "address"))
    try:
        rows: list[dict[str, Any]] = json.loads(said or "[]")
    except ValueError as error:
        raise HostError(f"ip -j address gave no JSON (Debian: iproute2): {error}") from error
    return {
        str(row["ifname"]): frozenset(ip_address(each["local"]) for each in row.get("addr_info", ()) if "local" in each)
        for row in rows
        if row
    }


def same(plan: HostPlan, there: Interfaces) -> tuple[str, ...]:
    """Raise HostError when it is another machine: every wire of the host has its address. Returns what is no error:
    rules speak of bridges by name, and those may come later."""
    host = plan.host
    wires = (("uplink", host.uplink), ("inner", host.inner), ("lan", host.lan))
    wrong = [
        f"{key} is {wire.interface} with {wire.ip}, here {wire.interface} {_has(there, wire.interface)}"
        for key, wire in wires
        if wire is not None and wire.ip not in there.get(wire.interface, ())
    ]
    if wrong:
        has = ", ".join(f"{name} {address}" for name, each in there.items() if name != "lo" for address in _of(each))
        raise HostError(
            f"this machine is not {host.name} as the site file has it: {'; '.join(wrong)} (it has {has or 'nothing'}). "
            "Say by --host which host this is, or set up its wires first"
        )
    return tuple(
        f"{network.bridge} has no {network.gateway} here yet: until it does nothing reaches its guests"
        for network in host.networks
        if network.gateway not in there.get(network.bridge, ())
    )


def way_back(plan: HostPlan, machine: Machine, there: Interfaces) -> None:
    """Raise HostError when who asks comes by ssh, and these rules would not let them in again."""
    words = machine.run(("python3", "-I", "-S", "-c", _CALLER)).split()
    if len(words) != 4:
        return
    source, address, port = _address(words[0]), _address(words[2]), int(words[3])
    guarded = {*plan.outer, *plan.inner, *plan.bridges}
    if source in _all(there) or not any(address in there.get(name, ()) for name in guarded):
        return  # from the host itself, or by a way that no rule of ours is about
    if isinstance(source, IPv6Address) and plan.host.firewall != "nft":
        return
    if not any(source in each.source and each.protocol == "tcp" and port in each.ports for each in plan.inputs):
        raise HostError(
            f"these rules would lock you out: you come by ssh from {source} to {address}, port {port}, and the site "
            f"file lets nobody in by that; add {source} to admins (and ssh: {port} to {plan.host.name}, if that is "
            "its port), or say --force when you have another way in"
        )


def _has(there: Interfaces, name: str) -> str:
    addresses = _of(there.get(name, frozenset()))
    return f"has {', '.join(map(str, addresses))}" if addresses else "has no address or is missing"


def _of(addresses: frozenset[Address]) -> list[IPv4Address]:
    return sorted(each for each in addresses if isinstance(each, IPv4Address))


def _all(there: Interfaces) -> frozenset[Address]:
    return frozenset().union(*there.values())


def _address(text: str) -> Address:
    """As SSH_CONNECTION has it; a link-local one ends with its interface."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
