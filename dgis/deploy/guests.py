"""Which guests run on a host: what libvirt or Xen says, or who answers when neither can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, Literal

from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.topology import Host, Site

Means = Literal["virsh", "xl", "heartbeat"]
# Name ID Mem VCPUs State Time; the states are r, b (waiting), p(aused), s(hut down), c(rashed), d(ying)
_XL_COLUMNS, _XL_GONE = 6, frozenset("pscd")
# A guest whose kernel answers, with a connection or by refusing one, is alive; ssh runs in every guest of ours
_BEAT: Final = """\
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def alive(address):
    try:
        socket.create_connection((address, 22), timeout=1.5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
asked = json.loads(sys.stdin.read())
with ThreadPoolExecutor(max_workers=32) as pool:
    print(json.dumps(list(pool.map(alive, asked))))
"""


def means_of(host: Host) -> Means:
    """How a host of this kind is asked."""
    return "virsh" if host.hypervisor == "kvm" else "xl"


def running(site: Site, host: Host, machine: Machine, means: Means) -> frozenset[str]:
    """The guests of the site file that run on a host now. Raises HostError when nobody can say."""
    ask: dict[Means, Callable[[], frozenset[str]]] = {
        "virsh": lambda: _virsh(machine),
        "xl": lambda: _xl(machine),
        "heartbeat": lambda: _heartbeat(site, host, machine),
    }
    declared = {guest.name for guest in site.guests_at(host)}
    return ask[means]() & declared


def doors(site: Site, host: Host, alive: frozenset[str], *, every: bool) -> frozenset[str]:
    """The guests whose doors are open on a host where these run.

    Those of other hosts are their hosts' matter; what a guest without roles is called there, and who starts it, is its
    project's, so that its doors stay open unless `every` guest counts.
    """
    others = (guest.name for guest in site.guests if guest.host != host.name or not (guest.roles or every))
    return alive | frozenset(others)


def _virsh(machine: Machine) -> frozenset[str]:
    return frozenset(machine.run(("virsh", "--quiet", "list", "--name", "--state-running")).split())


def _xl(machine: Machine) -> frozenset[str]:
    """The short list has the states, which `xl list --long` leaves out: one that has crashed may still be listed."""
    lines = machine.run(("xl", "list")).splitlines()
    if not lines or lines[0].split()[:2] != ["Name", "ID"]:
        raise HostError(f"xl list says what no version known here says: {' '.join(lines[:1])[:100] or 'nothing'}")
    rows = (words for line in lines[1:] if len(words := line.split()) == _XL_COLUMNS)
    return frozenset(row[0] for row in rows if row[1] != "0" and not _XL_GONE & set(row[4]))


def _heartbeat(site: Site, host: Host, machine: Machine) -> frozenset[str]:
    guests = site.guests_at(host)
    said = machine.run(("python3", "-I", "-S", "-c", _BEAT), text=json.dumps([str(guest.address) for guest in guests]))
    answers: list[bool] = json.loads(said)
    if len(answers) != len(guests):
        raise HostError("the heartbeat did not say something of every guest")
    return frozenset(guest.name for guest, alive in zip(guests, answers, strict=True) if alive)
