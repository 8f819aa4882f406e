"""Ansible drives a host and a guest over real ssh: namespaces with a root file system of their own, real nft, HAProxy,
libvirt's test driver behind its daemon, and a storage service with a certificate by request."""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
import yaml

from certs import ca
from dgis.deploy import check, tree
from dgis.deploy.render import render
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.netprobe import read_greeting
from tests.helpers.netssh import NodeSshd
from tests.helpers.sitelab import World

_HERE = Path(__file__).resolve().parents[2]
_ANSIBLE = _HERE / "vm-images" / "ansible"
_BIN = Path(sys.executable).parent
_TOOLS = {
    _BIN / "ansible-playbook": "ansible-core, the extra `ansible`",
    Path("/usr/sbin/libvirtd"): "libvirt-daemon",
    Path("/usr/bin/virsh"): "libvirt-clients",
    Path("/usr/sbin/haproxy"): "haproxy",
    Path("/usr/sbin/conntrack"): "conntrack",
    Path("/usr/sbin/sshd"): "openssh-server",
    Path("/usr/bin/openssl"): "openssl",
}
_MISSING = [f"{path.name} ({package})" for path, package in _TOOLS.items() if not path.exists()]
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")

# A root file system that may be written to at will and is gone with the process: what is below / on the machine lies
# under it, and the folders that may be mounts of their own are bound into it
_ROOT = """set -e
top=$1; prepare=$2; shift 2
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
for each in /dev /proc /sys; do mount --rbind "$each" "$top/root$each"; done
for each in "$@"; do
  if [ "$each" = -- ]; then break; fi
  mkdir -p "$top/root$each"; mount --bind "$each" "$top/root$each"
done
while [ "$1" != -- ]; do shift; done; shift
mkdir -p "$top/root/run/written"; mount --bind "$top/upper" "$top/root/run/written"
chroot "$top/root" sh -ec "$prepare"
exec chroot "$top/root" "$@"
"""
# The test driver forgets everything with its last connection, so one stays open. Without drivers of its own the daemon
# needs neither QEMU nor D-Bus
_LIBVIRT = """mkdir -p /run/haproxy /run/libvirt /run/nothing
printf 'auth_unix_ro = "none"\\nauth_unix_rw = "none"\\n' > /run/libvirtd.conf
printf 'log_outputs = "3:file:/run/libvirtd.log"\\n' >> /run/libvirtd.conf
LIBVIRT_DRIVER_DIR=/run/nothing libvirtd -d -f /run/libvirtd.conf -p /run/libvirtd-test.pid
tail -f /dev/null | virsh -c test+unix:///default > /dev/null 2>&1 &
"""
_GUEST = f"""systemd-sysusers {shlex.quote(str(_HERE / "vm-images/build/files/usr/lib/sysusers.d/dgis.conf"))}
mkdir -p /var/lib/dgis/storage
"""
_FRONT = """#!/bin/sh
if [ -s /run/front.pid ] && kill -0 "$(cat /run/front.pid)" 2>/dev/null; then exec kill -USR2 "$(cat /run/front.pid)"; fi
exec haproxy -W -D -p /run/front.pid -f /etc/dgis/deploy/haproxy.cfg
"""
# What a guest without systemd is asked: does it answer, as whom it says it is, to whom it knows
_HEALTH = """import socket, ssl, sys
name, etc = sys.argv[1], "/etc/dgis/storage/storage"
context = ssl.create_default_context(cafile="/etc/dgis/trust/ca.pem")
context.load_cert_chain(etc + ".cert.pem", etc + ".key.pem")
with context.wrap_socket(socket.create_connection(("127.0.0.1", 9443), 5), server_hostname=name) as link:
    link.sendall(f"GET /health HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    sys.exit(b" 200 " not in link.recv(100))
"""
_STORAGE = "storage.store.lab.example"
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass
class Controller:
    """The operator's machine: a site file, what is rendered from it, and Ansible."""

    lab: Lab
    node: Node
    site: dict[str, object]
    certificates: Path
    folder: Path = field(init=False)
    said: str = ""

    def __post_init__(self) -> None:
        self.folder = self.lab.folder / "operator"
        self.folder.mkdir()
        image = self.folder / "image"
        image.mkdir()
        for name in ("vmlinuz", "initrd.gz", "disk.raw"):
            (image / name).write_bytes(name.encode() * 100)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def render(self) -> None:
        """What an operator does after an edit: write the file, check it, render."""
        file = self.folder / "site.yml"
        file.write_text(yaml.safe_dump(self.site, sort_keys=False))
        tree.write(render(check.load(file)), self.out)
        # the lab's key and its known hosts, where an operator has his own in ~/.ssh
        ways = self.out / "inventory" / "ssh_config"
        known = f"UserKnownHostsFile {self.lab.ssh.known_hosts}\n  GlobalKnownHostsFile none\n"
        ways.write_text(f"Host *\n  IdentityFile {self.lab.ssh.key}\n  {known}\n{ways.read_text()}")

    def play(self, playbook: str, *words: str, **more: object) -> Mapping[str, int]:
        """Run a playbook; returns how many tasks changed each machine. Fails with what Ansible said."""
        values = {**self._variables(), **more}
        command = [
            _BIN / "ansible-playbook",
            "-i",
            self.out / "inventory/hosts.yml",
            playbook,
            "-e",
            json.dumps(values),
        ]
        environment = {**os.environ, "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"), "ANSIBLE_NOCOLOR": "1"}
        # A file: the connections that stay for the next run would hold a pipe open
        with (self.folder / "said").open("w+") as said:
            done = subprocess.run(
                self.node.command([*map(str, command), *words]),
                cwd=_ANSIBLE, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=300, check=False,
            )  # fmt: skip
            said.seek(0)
            self.said = said.read()
        assert done.returncode == 0, self.said[-8000:]
        recap = {name: tuple(map(int, counts)) for name, *counts in _RECAP.findall(self.said)}
        assert recap and all(unreachable == failed == 0 for _, _, unreachable, failed in recap.values()), self.said
        return {name: changed for name, (_, changed, _, _) in recap.items()}

    def _variables(self) -> dict[str, object]:
        serve = [str(_BIN / "dgis-storage"), "serve", "--config", "/etc/dgis/storage/storage.toml"]
        daemon = ["start-stop-daemon", "--start", "--background", "--make-pidfile", "--pidfile", "/run/storage.pid"]
        return {
            # the sshd of a lab lets root in, by the lab's key
            "ansible_user": "root",
            "ansible_become": False,
            "dgis_manage_packages": False,
            "dgis_site_file": str(self.folder / "site.yml"),
            "dgis_image": str(self.folder / "image"),
            "dgis_bin": str(_BIN / "dgis"),
            "dgis_deploy_options": ["--reload", f"sh {self.folder / 'front'}"],
            "dgis_virsh": ["virsh", "-c", "test+unix:///default"],
            "ca_home": str(self.certificates),
            "dgis_signer": str(_BIN / "dgis-certs"),
            "dgis_certs": str(_BIN / "dgis-certs"),
            "dgis_service_start": [*daemon, "--startas", serve[0], "--", *serve[1:]],
            "dgis_service_health": [sys.executable, "-c", _HEALTH, _STORAGE],
        }


@dataclass(frozen=True)
class Machine:
    """A node with a root file system of its own and an sshd in it."""

    node: Node
    child: subprocess.Popen[bytes]

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.child.pid}/root")

    def run(self, *words: str) -> str:
        """Run a command in its root file system."""
        return subprocess.run(
            ["nsenter", "--target", str(self.child.pid), "--mount", "--net", "--root", *words],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip

    def state(self) -> dict[str, object]:
        """Everything that a playbook may change: files that were written with their times, rules, kernel settings."""
        written = self.root / "run" / "written"
        found: dict[str, object] = {
            str(path.relative_to(written)): (info.st_mtime_ns, info.st_size, info.st_mode, info.st_uid, info.st_gid)
            for each in ("etc", "home", "opt", "root/.ssh", "usr", "var/lib/dgis")
            for path in ((written / each).rglob("*") if (written / each).exists() else ())
            for info in (path.lstat(),)
        }
        found["rules"] = self.run("nft", "list", "ruleset")
        return {**found, "forward": self.run("sysctl", "net.ipv4.ip_forward")}


def _machine(lab: Lab, node: Node, name: str, prepare: str) -> Machine:
    """Give a node its root file system and an sshd; it is known by its name in the inventory."""
    sshd = NodeSshd(lab.ssh, lab.folder / f"sshd-{node.name}", 22)
    sshd.write(lab.ssh.public_key)
    sshd.known_as(name)
    top = lab.folder / f"root-{node.name}"
    top.mkdir()
    bound = [str(each) for each in dict.fromkeys((lab.folder, _HERE, Path(sys.prefix)))]
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ROOT, "sh", top, prepare, *bound, "--"]
    log = lab.folder / f"{node.name}.log"
    child = node.popen([*words, *sshd.words()], log=log)
    try:
        node.await_listening(22, child=child)
    except Exception:
        print(log.read_text())
        raise
    return Machine(node, child)


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
                "networks": [{"name": "grid", "bridge": "dgisbr0", "cidr": "10.77.0.0/24"}],
            }
        ],
        "guests": [
            {
                "name": "store",
                "host": "kvm1",
                "address": "10.77.0.13",
                "roles": ["storage"],
                "data": "2 GiB",
                "gridftp": {"data": "50000-50009"},
            },
            {
                "name": "wiki",
                "host": "kvm1",
                "address": "10.77.0.20",
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
        operator = Controller(lab, admin, _site(lab.ssh.public_key), home)
        (operator.folder / "front").write_text(_FRONT)
        operator.render()
        world.add(check.load(operator.folder / "site.yml"))
        host = _machine(lab, world.node("lab", "kvm1"), "kvm1.lab.example", _LIBVIRT)
        store = _machine(lab, world.node("lab", "store"), "store.lab.example", _GUEST)
        yield Scene(operator, host, store, world.node("lab", "wiki"), world.outside, peer)


def _through_front(scene: Scene) -> bytes:
    """Ask the storage service by the public port, as the DGIS of the other site."""
    operator = scene.operator
    mine = ca.issue_host(operator.certificates, "dgis.gate.far.example", roles=("gateway",), out=operator.folder)
    context = ssl.create_default_context(cafile=str(operator.certificates / "trust" / "ca.pem"))
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
    """Check mode changes nothing, the first run makes the site, the second finds nothing to do, an edit opens one port."""
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
    listed = scene.host.run("virsh", "-c", "test+unix:///default", "list", "--name").split()
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
