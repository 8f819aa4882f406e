"""What Ansible is told about a site: who is there, how each is reached, and what follows for it from the file. Pure.

Hosts and guests are called by their name and the site's domain (`node1.hospital.example`): no such name is that of a
group, and the inventories of several sites lie side by side although their guests may have the same private addresses.
For the same reason every machine is known to SSH by that name (`HostKeyAlias`), and has a control socket of its own.
Guests of other projects are theirs: no playbook reaches them, `dgis_foreign` has their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

import yaml

from dgis.deploy import cloudinit
from dgis.deploy.cloudinit import OPERATOR
from dgis.deploy.libvirt import disks
from dgis.deploy.requests import alt_names, sign_arguments
from dgis.deploy.topology import Guest, Host, Service, Site

HOSTS, VARS, SSH_CONFIG, KEYS = "hosts.yml", "host_vars", "ssh_config", "authorized_keys"
NAMES: Final = "etc_hosts"
ROLES: Final = ("dgis", "catalog", "storage", "front", "ca")
_HEAD: Final = "# made from the site file by dgis deploy render; edit that, not this\n"
_PRIVATE: Final = tuple(IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
Vars = dict[str, Any]


class Literally(str):
    """Text of a site file that Ansible must not take for a template, whatever it holds."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(Literally, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))


@dataclass(frozen=True, slots=True)
class Way:
    """How a machine is reached by SSH: the address, the port, and the machine to pass through (its inventory name)."""

    address: IPv4Address
    port: int
    through: str | None


def files(site: Site) -> dict[str, str]:
    """Every file of the inventory by its path below OUT: groups, variables, SSH's way to each, keys, /etc/hosts."""
    made = {
        f"inventory/{HOSTS}": _yaml(inventory(site)),
        f"inventory/{SSH_CONFIG}": ssh_config(site),
        f"inventory/{KEYS}": "".join(f"{key}\n" for key in site.admin_keys),
    }
    for host in site.hosts:
        made[f"inventory/{VARS}/{name_of(site, host.name)}.yml"] = _yaml(host_vars(site, host))
    for guest in ours(site):
        made[f"inventory/{VARS}/{name_of(site, guest.name)}.yml"] = _yaml(guest_vars(site, guest))
        made[f"inventory/{NAMES}/{name_of(site, guest.name)}"] = cloudinit.hosts(site, guest)
    return made


def ours(site: Site) -> tuple[Guest, ...]:
    """The guests that are made from our image."""
    return tuple(guest for guest in site.guests if guest.roles)


def inventory(site: Site) -> Vars:
    """The groups, as Ansible's YAML inventory has them; what holds for the whole site stands at `site_NAME`."""
    kinds = {kind: _group(site, _of_kind(site, kind)) for kind in ("xen", "kvm")}
    machines = [host.name for host in site.hosts] + [guest.name for guest in ours(site)]
    children: Vars = {
        "hypervisors": {"children": kinds},
        "guests": _group(site, (guest.name for guest in ours(site))),
        **{role: _group(site, (guest.name for guest in site.guests if role in guest.roles)) for role in ROLES},
        f"site_{site.name.replace('-', '_')}": {**_group(site, machines), "vars": site_vars(site)},
    }
    return {"all": {"children": children}}


def site_vars(site: Site) -> Vars:
    """Variables of every machine of the site. `dgis_rendered` is OUT of `dgis deploy render`, on the controller."""
    return {
        "dgis_site": site.name,
        "dgis_domain": site.domain,
        "dgis_organisation": Literally(site.organisation),
        "dgis_rendered": "{{ inventory_dir | dirname }}",
        "dgis_admin_keys": f"{{{{ inventory_dir }}}}/{KEYS}",
        "dgis_time": [str(server) for server in site.time],
        "dgis_authorities": [name_of(site, guest.name) for guest in site.with_role("ca")],
        "dgis_hosts": [name_of(site, host.name) for host in site.hosts],
    }


def host_vars(site: Site, host: Host) -> Vars:
    """Variables of a hypervisor, reached as root."""
    gateway = site.host(host.gateway)
    front = site.front_of(gateway)
    return {
        **_connection(site, host.name, way_to_host(site, host), user="root"),
        "dgis_host": host.name,
        "dgis_gateway": name_of(site, host.gateway),
        "dgis_hypervisor": host.hypervisor,
        "dgis_guest_type": host.guest_type,
        "dgis_firewall": host.firewall,
        "dgis_images": host.images,
        "dgis_inner": str(host.inner.ip) if host.inner is not None else None,
        "dgis_networks": [
            {"name": network.name, "bridge": network.bridge, "cidr": str(network.cidr)} for network in host.networks
        ],
        "dgis_front": name_of(site, front.name) if front is not None else name_of(site, host.gateway),
        "dgis_guests": [name_of(site, guest.name) for guest in site.guests_at(host) if guest.roles],
        "dgis_foreign": [guest.name for guest in site.guests if not guest.roles],
    }


def guest_vars(site: Site, guest: Guest) -> Vars:
    """Variables of a guest, reached as `operator` with sudo. Sizes are bytes."""
    host = site.host(guest.host)
    return {
        **_connection(site, guest.name, way_to_guest(site, guest), user=OPERATOR),
        "ansible_become": True,
        "dgis_guest": guest.name,
        "dgis_host": host.name,
        "dgis_hypervisor_host": name_of(site, host.name),
        "dgis_gateway": name_of(site, host.gateway),
        "dgis_address": str(guest.address),
        "dgis_mac": guest.mac,
        "dgis_uuid": guest.uuid,
        "dgis_memory": guest.memory,
        "dgis_cpus": guest.cpus,
        "dgis_disk": guest.disk,
        "dgis_data": guest.data,
        "dgis_disks": {disk.use: disk.file for disk in disks(site, guest)},
        "dgis_roles": list(guest.roles),
        "dgis_services": [_service(site, guest, each) for each in guest.services],
    }


def name_of(site: Site, name: str) -> str:
    """What a host or guest is called in the inventory."""
    return f"{name}.{site.domain}"


def way_to_host(site: Site, host: Host) -> Way:
    """The address of a host that its administrators reach, through its gateway where it has none of its own."""
    near = [wire for wire in (host.lan, host.uplink) if wire is not None and _meets(site.admins, wire.reach)]
    if near:
        return Way(near[0].ip, host.ssh_port, None)
    if host.uplink is not None:
        outside = host.public if host.public is not None else host.uplink.ip
        # Administrators with private addresses are on this side of a firewall that translates
        private = any(network.subnet_of(each) for network in site.admins for each in _PRIVATE)
        return Way(host.uplink.ip if private else outside, host.ssh_port, None)
    assert host.inner is not None  # the model: a host without an uplink has one
    return Way(host.inner.ip, host.ssh_port, name_of(site, host.gateway))


def way_to_guest(site: Site, guest: Guest) -> Way:
    """Through its own host: no other machine, and no door, leads to a guest's sshd."""
    return Way(guest.address, 22, name_of(site, guest.host))


def ssh_config(site: Site) -> str:
    """How ssh reaches every machine by its inventory name: `ssh -F OUT/inventory/ssh_config node1.hospital.example`.

    A guest's key is learned at the first connection, which comes by its host, whose own key has to be known.
    """
    blocks = [_HEAD.rstrip("\n")]
    for host in site.hosts:
        blocks.append(_block(site, host.name, way_to_host(site, host), user="root"))
    for guest in ours(site):
        block = _block(site, guest.name, way_to_guest(site, guest), user=OPERATOR)
        blocks.append(f"{block}\n  StrictHostKeyChecking accept-new")
    blocks.append("# what is said above comes first\nMatch all\n  Include ~/.ssh/config")
    return "\n\n".join(blocks) + "\n"


def _block(site: Site, name: str, way: Way, *, user: str) -> str:
    full = name_of(site, name)
    lines = [f"Host {full}", f"HostName {way.address}", f"Port {way.port}", f"User {user}", f"HostKeyAlias {full}"]
    if way.through is not None:
        lines.append(f"ProxyJump {way.through}")
    return "\n  ".join(lines)


def _connection(site: Site, name: str, way: Way, *, user: str) -> Vars:
    full = name_of(site, name)
    arguments = [f"-F '{{{{ inventory_dir }}}}/{SSH_CONFIG}'", f"-o HostKeyAlias={full}"]
    if way.through is not None:
        arguments.append(f"-o ProxyJump={way.through}")
    if user == OPERATOR:
        arguments.append("-o StrictHostKeyChecking=accept-new")
    # Ansible's own name for the socket knows address, port and user alone, and two sites may have the same
    socket = hashlib.sha256(full.encode()).hexdigest()[:12]
    return {
        "ansible_host": str(way.address),
        "ansible_port": way.port,
        "ansible_user": user,
        "ansible_ssh_common_args": " ".join(arguments),
        "ansible_control_path": f"%(directory)s/{socket}-%%r",
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def _service(site: Site, guest: Guest, each: Service) -> Vars:
    """A service of a guest; `request` and `sign` are the words for `dgis-certs` that say its names and role."""
    alt = alt_names(site, guest, each)
    request = [word for name in alt.dns for word in ("--dns", name)]
    request += [word for address in alt.ips for word in ("--ip", str(address))]
    return {
        "role": each.role,
        "directory": each.directory,
        "user": f"dgis-{each.directory}",
        "unit": f"dgis-{each.directory}.{'timer' if each.role == 'ca' else 'service'}",
        "name": each.name,
        "https_port": each.https_port,
        "request": request,
        "sign": list(sign_arguments(site, guest, each)),
    }


def _of_kind(site: Site, kind: str) -> Iterable[str]:
    return (host.name for host in site.hosts if host.hypervisor == kind)


def _group(site: Site, names: Iterable[str]) -> Vars:
    return {"hosts": {name_of(site, name): {} for name in names}}


def _meets(some: Iterable[IPv4Network], others: tuple[IPv4Network, ...]) -> bool:
    return any(one.overlaps(other) for one in some for other in others)


def _yaml(data: Mapping[str, Any]) -> str:
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return _HEAD + text
