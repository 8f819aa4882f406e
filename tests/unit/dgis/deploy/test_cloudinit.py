"""NoCloud seeds: cloud-init itself takes them, and does with them what was meant."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dgis.deploy import cloudinit, services, sitefile, topology
from dgis.deploy.cloudinit import Seed
from dgis.deploy.errors import DeployError
from dgis.deploy.services import File
from dgis.deploy.topology import Guest, Site

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's cloud-init lives there


@functools.cache
def load(path: Path) -> Site:
    return topology.resolve(sitefile.read(path)[0])


def site(name: str) -> Site:
    return load(next(path for path in EXAMPLES if path.stem == name))


GUESTS = [(site, guest) for site in map(load, EXAMPLES) for guest in site.guests]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=60)


@functools.cache
def missing() -> str:
    try:
        done = run("cloud-init", "--version")
    except OSError as error:
        return f"cloud-init cannot be run: {error.strerror}"
    return "" if done.returncode == 0 else f"cloud-init does not work: {done.stderr[:200]}"


@pytest.fixture
def cloud_init() -> None:
    if why := missing():
        pytest.skip(why)


def user(seed: Seed) -> dict[str, Any]:
    first, _, rest = seed.user_data.partition("\n")
    assert first == "#cloud-config"
    data: dict[str, Any] = yaml.safe_load(rest)
    return data


def written(seed: Seed) -> dict[str, dict[str, str]]:
    return {entry["path"]: entry for entry in user(seed)["write_files"]}


@pytest.mark.parametrize(("site", "guest"), GUESTS, ids=lambda each: each.name)
def test_cloud_init_takes_the_user_data(site: Site, guest: Guest, tmp_path: Path, cloud_init: None) -> None:
    file = tmp_path / "user-data"
    secrets = {"/etc/dgis/trust/a.0": File(b"\x00\xff", 0o640, "root:dgis")}
    file.write_text(cloudinit.seed(site, guest, secrets=secrets).user_data)
    done = run("cloud-init", "schema", "--config-file", file)
    assert done.returncode == 0 and "Valid cloud-config" in done.stdout, done.stdout + done.stderr


def test_cloud_init_refuses_a_wrong_one(tmp_path: Path, cloud_init: None) -> None:
    """So that the test above can fail."""
    own = site("hospital")
    file = tmp_path / "user-data"
    file.write_text(cloudinit.seed(own, own.guest("gate")).user_data.replace("ssh_pwauth: false", "ssh_pwauth: [1]"))
    assert run("cloud-init", "schema", "--config-file", file).returncode != 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_networkd_gets_address_route_and_names(path: Path, tmp_path: Path, cloud_init: None) -> None:
    own = load(path)
    guest = own.guests[-1]
    file, out = tmp_path / "network-config", tmp_path / "out"
    file.write_text(cloudinit.seed(own, guest).network_config)
    words = ["-p", file, "-k", "yaml", "-d", out, "-D", "debian", "-O", "networkd"]
    done = run("cloud-init", "devel", "net-convert", *words)
    assert done.returncode == 0, done.stderr
    lines = set((out / "etc/systemd/network/10-cloud-init-eth0.network").read_text().split("\n"))
    network = own.network_of(guest)
    assert {
        f"MACAddress={guest.mac}",
        f"Address={guest.address}/{network.cidr.prefixlen}",
        "Destination=0.0.0.0/0",
        f"Gateway={network.gateway}",
        *(f"DNS={resolver}" for resolver in own.resolvers),
        "DHCP=no",
    } <= lines


def test_without_resolvers_none_are_named() -> None:
    own = replace(site("hospital"), resolvers=())
    config = yaml.safe_load(cloudinit.seed(own, own.guest("gate")).network_config)
    assert "nameservers" not in config["ethernets"]["eth0"]


def test_a_mac_address_stays_one_for_yaml() -> None:
    """YAML 1.1 reads 52:54:00:11:22:33 as a number to the base of sixty."""
    own = site("hospital")
    guest = replace(own.guest("gate"), mac="52:54:00:11:22:33")
    config = yaml.safe_load(cloudinit.seed(own, guest).network_config)
    assert config["ethernets"]["eth0"]["match"]["macaddress"] == "52:54:00:11:22:33"


def test_a_guest_is_first_booted_again_when_its_network_changes_and_only_then() -> None:
    own = site("pilot-lf1")
    node = own.guest("node")
    at_home, moved = (
        cloudinit.seed(own, node),
        replace(node, host="xen2", address=own.host("xen2").networks[0].cidr[11]),
    )
    away = cloudinit.seed(own, moved)
    assert re.fullmatch(r"dgis-lf1-node-[0-9a-f]{8}", instance(at_home))
    assert instance(at_home) != instance(away)
    grown = cloudinit.seed(own, replace(node, memory=2**33), secrets={"/etc/dgis/node/x": File(b"x")})
    assert instance(grown) == instance(at_home) and grown.user_data != at_home.user_data
    assert cloudinit.seed(own, node) == at_home


def instance(seed: Seed) -> str:
    meta = yaml.safe_load(seed.meta_data)
    assert meta["local-hostname"] == "node"
    return str(meta["instance-id"])


def test_a_guest_knows_the_names_of_the_grid_and_its_own() -> None:
    own = site("pilot-lf1")
    entry = written(cloudinit.seed(own, own.guest("node")))["/etc/hosts"]
    lines = [line.split() for line in entry["content"].splitlines()]
    assert ["127.0.1.1", "node.lf1.example", "node"] in lines
    assert ["198.51.100.10", "catalog.node.cesnet.example"] in lines
    # Its own service by its public address, as everybody calls it: never by the loopback
    assert [ip for ip, *names in lines if "storage.node.lf1.example" in names] == ["203.0.113.20"]
    assert user(cloudinit.seed(own, own.guest("node")))["manage_etc_hosts"] is False


def test_only_operators_with_a_key_come_in() -> None:
    own = site("hospital")
    config = user(cloudinit.seed(own, own.guest("gate")))
    (operator,) = config["users"]
    assert operator["ssh_authorized_keys"] == list(own.admin_keys) and operator["lock_passwd"] is True
    assert config["ssh_pwauth"] is False and config["disable_root"] is True
    # Debian has a group `operator`: useradd refuses to make another one
    assert operator["name"] == operator["primary_group"] == "operator"
    assert config["ssh_genkeytypes"] == ["ed25519"] and config["ssh_deletekeys"] is False


@pytest.mark.parametrize(
    ("file", "name", "units"),
    [
        ("pilot-cesnet", "node", ["dgis-catalog.service", "dgis-storage.service", "dgis-node.service"]),
        ("hospital", "authority", ["dgis-ca.timer"]),
        ("hospital", "front", ["haproxy.service"]),
        ("pilot-cesnet", "wiki", []),
    ],
)
def test_the_roles_units_are_enabled(file: str, name: str, units: list[str]) -> None:
    own = site(file)
    config = user(cloudinit.seed(own, own.guest(name)))
    assert config.get("runcmd", []) == [["systemctl", "enable", "--now", unit] for unit in units]


def test_time_servers_and_the_package_proxy_are_told() -> None:
    own = site("hospital")
    seed = cloudinit.seed(own, own.guest("gate"))
    assert user(seed)["ntp"]["servers"] == ["10.20.0.123"]
    assert written(seed)["/etc/apt/apt.conf.d/90dgis-proxy"]["content"] == (
        'Acquire::http::Proxy "http://10.20.0.80:3142";\n'
    )
    silent = cloudinit.seed(replace(own, time=(), updates=()), own.guest("gate"))
    assert "ntp" not in user(silent) and "/etc/apt/apt.conf.d/90dgis-proxy" not in written(silent)


def test_services_files_and_secrets_lie_where_they_belong() -> None:
    own = site("hospital")
    gate = own.guest("gate")
    key = File(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, "dgis-node:dgis-node")
    entries = written(cloudinit.seed(own, gate, secrets={"/etc/dgis/node/node.key.pem": key}))
    assert entries["/etc/dgis/node/node.key.pem"] == {
        "path": "/etc/dgis/node/node.key.pem",
        "owner": "dgis-node:dgis-node",
        "permissions": "0600",
        "content": key.content.decode(),
    }
    for path, file in services.files(own, gate).items():
        assert entries[path]["content"].encode() == file.content and entries[path]["owner"] == file.owner
    mine = File(b"mine\n")
    assert written(cloudinit.seed(own, gate, secrets={"/etc/hosts": mine}))["/etc/hosts"]["content"] == "mine\n"


@pytest.mark.parametrize("path", ["etc/x", "/etc/../root/x", "/etc/a\nb"])
def test_a_file_without_a_proper_path_is_refused(path: str) -> None:
    own = site("hospital")
    with pytest.raises(DeployError, match="absolute path"):
        cloudinit.seed(own, own.guest("gate"), secrets={path: File(b"")})


CONTENT = st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
COMMENT = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)


@given(content=CONTENT, comment=COMMENT)
@settings(max_examples=80, deadline=None)
def test_no_text_breaks_out_of_the_yaml(content: bytes, comment: str) -> None:
    own = replace(site("hospital"), admin_keys=(f"ssh-ed25519 {'A' * 68} {comment}",))
    seed = cloudinit.seed(own, own.guest("front"), secrets={"/x": File(content)})
    config = user(seed)
    assert set(config) == {
        *("hostname", "fqdn", "manage_etc_hosts", "users", "disable_root", "ssh_pwauth", "ssh_deletekeys"),
        *("ssh_genkeytypes", "write_files", "ntp", "runcmd"),
    }
    assert config["users"][0]["ssh_authorized_keys"] == list(own.admin_keys)
    entry = written(seed)["/x"]
    if entry.get("encoding") != "b64":
        assert entry["content"].encode() == content
    seed.user_data.encode()


_RUN = """
import json, sys, yaml
from cloudinit import util
from cloudinit.config import cc_write_files
config = yaml.safe_load(open(sys.argv[1]).read())
cc_write_files.write_files("write_files", config["write_files"], "root:root")
json.dump(util.shellify(config.get("runcmd", [])), sys.stdout)
"""


def test_cloud_inits_own_modules_do_what_was_meant(tmp_path: Path, cloud_init: None) -> None:
    """Only files below a folder of this test are written; the rest of the seed is left out."""
    if os.getuid():
        pytest.skip("cloud-init gives files to their owners, which takes root")
    own = site("hospital")
    contents = [
        b"",
        b"plain\n",
        b"no end",
        b"a\r\nb\n",
        bytes(range(256)),
        b"  x: {{ y }}\n\t$z `w`\n",
        "é\u2028\n".encode(),
    ]
    secrets = {f"{tmp_path}/out/{n}": File(content, 0o640) for n, content in enumerate(contents)}
    config = user(cloudinit.seed(own, own.guest("gate"), secrets=secrets))
    config["write_files"] = [each for each in config["write_files"] if each["path"].startswith(str(tmp_path))]
    (tmp_path / "user-data").write_text(yaml.safe_dump(config))
    done = run(SYSTEM_PYTHON, "-c", _RUN, tmp_path / "user-data")
    assert done.returncode == 0, done.stderr
    for number, content in enumerate(contents):
        file = tmp_path / f"out/{number}"
        assert file.read_bytes() == content and oct(file.stat().st_mode & 0o7777) == "0o640"
    assert "'systemctl' 'enable' '--now' 'dgis-node.service'" in json.loads(done.stdout)
