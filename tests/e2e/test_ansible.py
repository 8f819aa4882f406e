"""Ansible drives a host and a guest over real ssh: namespaces with a root file system of their own, real nft, HAProxy,
libvirt's test driver behind its daemon, and a storage service with a certificate by request."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Interface

import pytest

from certs import ca
from dgis.deploy import check
from tests.helpers.ansiblelab import GUEST, HYPERVISOR, NEEDS, VIRSH, Controller, Machine, machine, storage_service
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.netprobe import read_greeting
from tests.helpers.sitelab import World

# 40 to 60 seconds, more on a machine that does other things at the same time
pytestmark = [NEEDS, pytest.mark.timeout(400)]

_STORAGE = "storage.store.lab.example"


def _site(key: str) -> dict[str, object]:
    return {
        "site": "lab",
        "organisation": "Lab Grid",
        "domain": "lab.example",
        "hypervisor": {"kind": "kvm"},
        "admins": ["198.51.100.2"],
        "admin_keys": [key],
        "hosts": [
            {
                "name": "kvm1",
                "uplink": {"interface": "eth0", "address": "198.51.100.10/24"},
                "networks": [
                    {"name": "grid", "bridge": "dgisbr0", "cidr": "10.77.0.0/24"},
                    {"name": "projects", "bridge": "projbr0", "cidr": "10.78.0.0/24"},
                ],
            }
        ],
        "guests": [
            {
                "name": "store",
                "host": "kvm1",
                "network": "grid",
                "address": "10.77.0.13",
                "roles": ["storage"],
                "data": "2 GiB",
                "gridftp": {"data": "50000-50009"},
            },
            {
                "name": "wiki",
                "host": "kvm1",
                "network": "projects",
                "address": "10.78.0.20",
                "memory": "1 GiB",
                "forwards": [{"public": 8080, "guest": 80, "from": ["any"], "purpose": "wiki"}],
            },
        ],
        "peers": [
            {
                "site": "far",
                "domain": "far.example",
                "address": "198.51.100.99",
                "guests": [{"name": "gate", "roles": ["dgis"]}],
            }
        ],
    }


@dataclass(frozen=True)
class Scene:
    """Everything that a test needs: who operates, the host, the guest with the service, and those who come."""

    operator: Controller
    host: Machine
    store: Machine
    wiki: Node
    outside: Node
    peer: Node


@pytest.fixture
def scene() -> Iterator[Scene]:
    require_netlab()
    with Lab("ansible") as lab:
        world = World(lab)
        admin = world.place("admin", IPv4Interface("198.51.100.2/24"))
        peer = world.place("peer", IPv4Interface("198.51.100.99/24"))
        home = lab.folder / "ca"
        ca.init_site(home, organisation="Lab Grid")
        operator = Controller(lab, admin, _site(lab.ssh.public_key), home, storage_service(_STORAGE))
        operator.render()
        world.add(check.load(operator.folder / "site.yml"))
        host = machine(lab, world.node("lab", "kvm1"), "kvm1.lab.example", "root", HYPERVISOR)
        store = machine(lab, world.node("lab", "store"), "store.lab.example", "operator", GUEST)
        yield Scene(operator, host, store, world.node("lab", "wiki"), world.outside, peer)


def _through_front(scene: Scene) -> bytes:
    """Ask the storage service by the public port, as the DGIS of the other site."""
    operator = scene.operator
    assert operator.authority is not None
    mine = ca.issue_host(operator.authority, "dgis.gate.far.example", roles=("gateway",), out=operator.folder)
    context = ssl.create_default_context(cafile=str(operator.authority / "trust" / "ca.pem"))
    context.load_cert_chain(mine.cert, mine.key)
    link = scene.peer.dial("198.51.100.10", 443)
    with closing(context.wrap_socket(link, server_hostname=_STORAGE)) as secure:
        secure.sendall(f"GET /v1/whoami HTTP/1.1\r\nHost: {_STORAGE}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := secure.recv(4096):
            answer += part
    return answer


def _differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


def test_a_site_is_made_kept_and_changed(scene: Scene) -> None:
    """Check mode changes nothing, the first run makes the site, the second has no work, an edit opens one port."""
    operator, wanted = scene.operator, [8080, 8081, 2811, 9443, 22, 443]
    before = scene.host.state(), scene.store.state()
    operator.play("site.yml", "--check", "--diff")
    after = scene.host.state(), scene.store.state()
    assert [each for old, new in zip(before, after, strict=True) for each in _differences(old, new)] == []

    changed = operator.play("site.yml")
    assert changed["kvm1.lab.example"] > 5 and changed["store.lab.example"] > 5
    scene.wiki.serve_echo([80, 81])
    shut = dict.fromkeys(wanted, "silent")
    # The front answers everybody and lets in whom the site file names
    assert scene.outside.scan("198.51.100.10", wanted) == {**shut, 8080: "open"}
    assert scene.outside.ask("198.51.100.10", 8080).node == scene.wiki.name
    answer = _through_front(scene)
    assert b" 200 " in answer and b"dgis.gate.far.example" in answer
    key = scene.store.root / "etc/dgis/storage/storage.key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert not list(operator.folder.rglob("storage.key.pem"))  # it never left the guest
    listed = scene.host.run(*VIRSH, "list", "--name").split()
    assert "store" in listed and "wiki" not in listed  # which is another project's

    assert set(operator.play("site.yml").values()) == {0}, operator.said

    guests = operator.site["guests"]
    assert isinstance(guests, list)
    guests[1]["forwards"].append({"public": 8081, "guest": 81, "from": ["any"], "purpose": "new"})
    operator.render()
    with closing(scene.outside.dial("198.51.100.10", 8080)) as held:
        read_greeting(held)
        assert operator.play("rules.yml") == {"kvm1.lab.example": 2}
        assert scene.outside.scan("198.51.100.10", wanted) == {**shut, 8080: "open", 8081: "open"}
        held.sendall(b"still here")
        assert held.recv(100) == b"still here"
