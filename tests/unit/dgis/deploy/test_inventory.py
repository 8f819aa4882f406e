"""Ansible's inventory: groups, the way to each machine as ssh reads it, and nothing that a site file can slip in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgis.deploy import check, inventory, libvirt, requests, xen
from dgis.deploy.topology import Site

EXAMPLES = Path(__file__).parents[4] / "vm-images/examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yml"))
BIN = Path(sys.executable).parent
needs_ansible = pytest.mark.skipif(
    not (BIN / "ansible-inventory").exists(), reason="ansible-core is not installed (the extra `ansible`)"
)
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed (Debian: openssh-client)")


class Loader(yaml.SafeLoader):
    """YAML as Ansible has it."""


Loader.add_constructor("!unsafe", lambda loader, node: inventory.Literally(loader.construct_scalar(node)))


def site(name: str) -> Site:
    return check.load(EXAMPLES / f"{name}.yml")


def written(one: Site, folder: Path) -> Path:
    """Write a site's inventory; returns the hosts file."""
    for path, text in inventory.files(one).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder / "inventory" / "hosts.yml"


def listed(*files: Path) -> tuple[dict[str, Any], str]:
    """What ansible-inventory makes of inventories, and what it warns of."""
    words = [word for file in files for word in ("-i", str(file))]
    done = subprocess.run([BIN / "ansible-inventory", *words, "--list"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_machine_is_in_the_groups_of_what_it_is_for(name: str) -> None:
    one = site(name)
    groups = inventory.inventory(one)["all"]["children"]
    hypervisors = groups["hypervisors"]["children"]
    for host in one.hosts:
        assert f"{host.name}.{one.domain}" in hypervisors[host.hypervisor]["hosts"]
    for guest in inventory.ours(one):
        full = f"{guest.name}.{one.domain}"
        assert full in groups["guests"]["hosts"]
        assert {role for role in inventory.ROLES if full in groups[role]["hosts"]} == set(guest.roles)
    everybody = groups[f"site_{one.name}"]["hosts"]
    assert set(everybody) == {
        f"{each}.{one.domain}" for each in [*(h.name for h in one.hosts), *(g.name for g in inventory.ours(one))]
    }


def test_guests_of_other_projects_are_not_ours_to_reach() -> None:
    one = site("pilot-cesnet")
    made = inventory.files(one)
    assert "wiki.cesnet.example" not in "".join(made.values()).replace("198.51.100.10 wiki.cesnet.example", "")
    assert inventory.host_vars(one, one.host("xen1"))["dgis_foreign"] == ["wiki"]
    assert inventory.host_vars(one, one.host("xen1"))["dgis_guests"] == ["node.cesnet.example"]


def test_variables_say_what_the_other_artefacts_say() -> None:
    one = site("hospital")
    guest = one.guest("gate")
    said = inventory.guest_vars(one, guest)
    for path in said["dgis_disks"].values():
        assert f'file="{path}"'.encode() in libvirt.domain(one, guest)
    service = guest.service("dgis")
    assert service is not None
    assert said["dgis_services"][0]["sign"] == [*requests.sign_arguments(one, guest, service)]
    assert said["dgis_services"][0]["unit"] == "dgis-node.service"
    assert (said["dgis_memory"], said["dgis_cpus"], said["dgis_data"]) == (4 * 2**30, 2, 100 * 2**30)
    lf1 = site("pilot-lf1")
    for path in inventory.guest_vars(lf1, lf1.guest("node"))["dgis_disks"].values():
        assert path in xen.config(lf1, lf1.guest("node"))


def test_the_way_to_a_machine_is_the_one_that_its_administrators_have() -> None:
    def ways(name: str) -> dict[str, tuple[str, str | None]]:
        one = site(name)
        found = {host.name: inventory.way_to_host(one, host) for host in one.hosts}
        found |= {f"guest {guest.name}": inventory.way_to_guest(one, guest) for guest in one.guests}
        return {each: (str(way.address), way.through) for each, way in found.items()}

    # from far away: the public address; the second host through the first, a guest through its own host
    assert ways("pilot-lf1") == {
        "xen1": ("203.0.113.20", None),
        "xen2": ("10.76.0.2", "xen1.lf1.example"),
        "guest node": ("10.77.0.11", "xen1.lf1.example"),
    }
    # from within the institution: the LAN where there is one, the uplink's own address behind a translating firewall
    assert ways("hospital")["kvm1"] == ("10.20.1.10", None)
    assert ways("pilot-uvn")["kvm1"] == ("172.16.8.130", None)
    assert ways("dmz-pair") | {} == {
        "dmz1": ("10.31.0.10", None),
        "inside1": ("10.30.1.20", None),
        "guest front": ("10.77.0.10", "dmz1.brno.example"),
        "guest store": ("10.77.0.13", "dmz1.brno.example"),
        "guest gate": ("10.77.1.11", "inside1.brno.example"),
    }


@needs_ssh
def test_ssh_reads_the_same_way_from_its_configuration(tmp_path: Path) -> None:
    moved = site("pilot-lf1")
    moved = replace(moved, guests=tuple(replace(guest, host="xen2") for guest in moved.guests))
    hosts = written(moved, tmp_path)

    def ask(name: str) -> dict[str, str]:
        command = ["ssh", "-F", hosts.with_name("ssh_config"), "-G", name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)

    guest, behind, gateway = ask("node.lf1.example"), ask("xen2.lf1.example"), ask("xen1.lf1.example")
    assert (guest["hostname"], guest["user"], guest["proxyjump"]) == ("10.77.0.11", "operator", "xen2.lf1.example")
    assert (behind["hostname"], behind["user"], behind["proxyjump"]) == ("10.76.0.2", "root", "xen1.lf1.example")
    assert gateway["hostname"] == "203.0.113.20" and "proxyjump" not in gateway
    # learned at the first connection by way of a host that is known, which is never learned by itself
    assert guest["stricthostkeychecking"] == "accept-new"
    assert gateway["stricthostkeychecking"] == behind["stricthostkeychecking"] == "ask"


@needs_ansible
def test_inventories_of_several_sites_lie_side_by_side(tmp_path: Path) -> None:
    files = [written(site(name), tmp_path / name) for name in NAMES]
    found, warnings = listed(*files)
    assert warnings == ""  # a host called as a group is, say: the guest front has the role front
    machines = found["_meta"]["hostvars"]
    assert len(machines) == sum(len(site(name).hosts) + len(inventory.ours(site(name))) for name in NAMES)
    # the guests of three sites have one address, and must not share a connection or a host key
    same = [values for values in machines.values() if values["ansible_host"] == "10.77.0.11"]
    assert len(same) > 2
    assert len({values["ansible_control_path"] for values in machines.values()}) == len(machines)
    assert len({values["ansible_ssh_common_args"].partition("HostKeyAlias=")[2] for values in same}) == len(same)
    assert {values["dgis_site"] for values in same} > {"cesnet", "lf1", "uvn"}


@needs_ansible
def test_text_of_a_site_file_is_no_template(tmp_path: Path) -> None:
    hosts = written(replace(site("hospital"), organisation="Grid {{ 7 + 7 }} {% raw %}"), tmp_path)
    command = [
        BIN / "ansible",
        "-i",
        hosts,
        "kvm1.motol.example",
        "-c",
        "local",
        "-m",
        "debug",
        "-a",
        "var=dgis_organisation",
    ]
    said = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    assert '"dgis_organisation": "Grid {{ 7 + 7 }} {% raw %}"' in said
    assert yaml.load(hosts.read_text(), Loader)["all"]["children"]["site_motol"]["vars"][
        "dgis_organisation"
    ].startswith("Grid {{")


def test_the_same_file_gives_the_same_inventory() -> None:
    assert inventory.files(site("hospital")) == inventory.files(site("hospital"))
