"""Machines for Ansible to drive: namespaces with a root file system of their own, an sshd, and libvirt's test driver
behind its daemon; and the operator's machine, which runs the playbooks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgis.deploy import check, tree
from dgis.deploy.render import render
from tests.helpers.netlab import Lab
from tests.helpers.netnode import Node
from tests.helpers.netssh import NodeSshd

HERE = Path(__file__).resolve().parents[2]
ANSIBLE = HERE / "vm-images" / "ansible"
BIN = Path(sys.executable).parent
_TOOLS = {
    BIN / "ansible-playbook": "ansible-core, the extra `ansible`",
    Path("/usr/sbin/libvirtd"): "libvirt-daemon",
    Path("/usr/bin/virsh"): "libvirt-clients",
    Path("/usr/sbin/haproxy"): "haproxy",
    Path("/usr/sbin/conntrack"): "conntrack",
    Path("/usr/sbin/sshd"): "openssh-server",
    Path("/usr/bin/openssl"): "openssl",
    Path("/usr/bin/sudo"): "sudo",
}
_MISSING = [f"{path.name} ({package})" for path, package in _TOOLS.items() if not path.exists()]
NEEDS = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")

# A root file system that may be written to at will and is gone with the process: what is below / on the machine lies
# under it, and the folders that may be mounts of their own are bound into it
_ROOT = """set -e
top=$1; prepare=$2; hostname "$3"; shift 3
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
rm -f "$top/root/etc/resolv.conf"
echo nameserver 127.0.0.1 > "$top/root/etc/resolv.conf"
chroot "$top/root" sh -ec "$prepare"
exec chroot "$top/root" "$@"
"""
# Whom sshd lets in is what the machine's own files say
_LOGIN = """ssh=$(getent passwd {user} | cut -d: -f6)/.ssh; install -d -m 700 -o {user} "$ssh"
echo {key} > "$ssh/authorized_keys"; chmod 600 "$ssh/authorized_keys"; chown {user} "$ssh/authorized_keys"
"""
# The test driver forgets everything with its last connection, so one stays open. Without drivers of its own the daemon
# needs neither QEMU nor D-Bus
HYPERVISOR = """mkdir -p /run/haproxy /run/libvirt /run/nothing
printf 'auth_unix_ro = "none"\\nauth_unix_rw = "none"\\n' > /run/libvirtd.conf
printf 'log_outputs = "3:file:/run/libvirtd.log"\\n' >> /run/libvirtd.conf
LIBVIRT_DRIVER_DIR=/run/nothing libvirtd -d -f /run/libvirtd.conf -p /run/libvirtd-test.pid
tail -f /dev/null | virsh -c test+unix:///default > /dev/null 2>&1 &
"""
GUEST = f"""systemd-sysusers {shlex.quote(str(HERE / "vm-images/build/files/usr/lib/sysusers.d/dgis.conf"))}
mkdir -p /var/lib/dgis/storage
useradd --gid operator --create-home --shell /bin/bash --password '*' operator
echo 'operator ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/operator
"""
_FRONT = """#!/bin/sh
if kill -0 "$(cat /run/front.pid)" 2>/dev/null; then exec kill -USR2 "$(cat /run/front.pid)"; fi
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
VIRSH = ["virsh", "-c", "test+unix:///default"]
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass
class Controller:
    """The operator's machine: a site file, what is rendered from it, and Ansible."""

    lab: Lab
    node: Node
    site: dict[str, Any]
    authority: Path | None = None  # the CA's home, where it is on the operator's machine
    variables: Mapping[str, object] = field(default_factory=dict)
    folder: Path = field(init=False)
    said: str = ""

    def __post_init__(self) -> None:
        self.folder = self.lab.folder / "operator"
        self.folder.mkdir()
        (self.folder / "front").write_text(_FRONT)
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
            BIN / "ansible-playbook",
            "-i",
            self.out / "inventory/hosts.yml",
            playbook,
            "-e",
            json.dumps(values),
        ]
        environment = {
            **os.environ,
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "ANSIBLE_NOCOLOR": "1",
        }
        # A file: the connections that stay for the next run would hold a pipe open
        with (self.folder / "said").open("w+") as said:
            child = subprocess.Popen(
                self.node.command([*map(str, command), *words]),
                cwd=ANSIBLE, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
            try:
                child.wait(200)
            finally:
                child.kill()
                said.seek(0)
                self.said = said.read()
        assert child.returncode == 0, self.said[-8000:]
        recap = {name: tuple(map(int, counts)) for name, *counts in _RECAP.findall(self.said)}
        assert recap and all(unreachable == failed == 0 for _, _, unreachable, failed in recap.values()), self.said
        return {name: changed for name, (_, changed, _, _) in recap.items()}

    def _variables(self) -> dict[str, object]:
        return {
            "dgis_manage_packages": False,
            "dgis_site_file": str(self.folder / "site.yml"),
            "dgis_image": str(self.folder / "image"),
            "dgis_bin": str(BIN / "dgis"),
            "dgis_deploy_options": ["--reload", f"sh {self.folder / 'front'}"],
            "dgis_virsh": VIRSH,
            "dgis_signer": str(BIN / "dgis-certs"),
            "dgis_certs": str(BIN / "dgis-certs"),
            **({"ca_home": str(self.authority)} if self.authority is not None else {}),
            **self.variables,
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
            str(path.relative_to(written)): (0 if path.is_dir() else info.st_mtime_ns, info.st_mode, info.st_uid)
            for each in ("etc", "home", "opt", "root/.ssh", "usr", "var/lib/dgis")
            for path in ((written / each).rglob("*") if (written / each).exists() else ())
            if ".ansible" not in path.parts  # its own scratch directory
            for info in (path.lstat(),)
        }
        found["rules"] = self.run("nft", "list", "ruleset")
        return {**found, "forward": self.run("sysctl", "net.ipv4.ip_forward")}


def machine(lab: Lab, node: Node, name: str, user: str, prepare: str) -> Machine:
    """Give a node its root file system and an sshd; it is known by its name in the inventory, lets `user` in by key."""
    sshd = NodeSshd(lab.ssh, lab.folder / f"sshd-{node.name}", 22)
    sshd.write(lab.ssh.public_key)
    sshd.known_as(name)
    top = lab.folder / f"root-{node.name}"
    top.mkdir()
    prepare += f"cp {sshd.folder / 'host_key.pub'} /etc/ssh/ssh_host_ed25519_key.pub\n"
    bound = [str(each) for each in dict.fromkeys((lab.folder, HERE, Path(sys.prefix)))]
    log = lab.folder / f"{node.name}.log"
    prepare += _LOGIN.format(user=user, key=shlex.quote(lab.ssh.public_key))
    # A host name of its own: sudo looks it up, and the guest's /etc/hosts knows the guest's
    words = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", _ROOT, "sh"]
    words += [str(top), prepare, name, *bound, "--"]
    child = node.popen([*words, *sshd.words(), "-o", "AuthorizedKeysFile=.ssh/authorized_keys"], log=log)
    try:
        node.await_listening(22, child=child)
    except Exception:
        print(log.read_text())
        raise
    return Machine(node, child)


def storage_service(name: str) -> dict[str, object]:
    """Variables by which a storage service of that name is started, and asked how it is, where no systemd does it."""
    serve = [str(BIN / "dgis-storage"), "serve", "--config", "/etc/dgis/storage/storage.toml"]
    daemon = ["start-stop-daemon", "--start", "--background", "--make-pidfile", "--pidfile", "/run/storage.pid"]
    return {
        "dgis_service_start": [*daemon, "--startas", serve[0], "--", *serve[1:]],
        "dgis_service_health": [sys.executable, "-c", _HEALTH, name],
    }
