"""The guest image, booted: a NoCloud seed brings up catalog and storage with certificates by file; state outlives a
power cut and an upgrade in place.

One guest lives through the whole file, in the order of the tests: about five minutes with an image at hand
(DGIS_IMAGE_DIR), two more to build one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import tomli_w

from catalog.client import CatalogClient
from catalog.wire import Site
from certs import ca
from certs.config import IdentityConfig
from certs.https.session import GridSession
from storage_provider.channel import ObjectSpec
from storage_provider.https.client import HttpsChannel
from storage_provider.keys import object_key
from tests.helpers import guestimage, rawtls
from tests.helpers.guestimage import BootedGuest, Image, Way
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.netnode import Node
from tests.helpers.pki import SiteHome, site_home

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

T = TypeVar("T")

CHECKOUT = Path(__file__).parents[2]
ADDRESS, GATEWAY, MAC = "10.77.0.11", "10.77.0.1", "52:54:00:0d:91:50"
URLS = {"catalog": f"https://{ADDRESS}:9441", "storage": f"https://{ADDRESS}:9443"}
OBJECT = b"nobody's image " * 4000
RULES = {"gateway": ["read", "write", "delete", "list"], "operator": ["read", "list"]}
DATA_BYTES = 8 << 30
# Seconds; a free machine takes a third of these
BOOT, SERVICES, UPGRADE = 240.0, 240.0, 900.0


@dataclass
class Rig:
    """The guest, the grid that it is part of, and the outside from where it is asked."""

    image: Image
    guest: BootedGuest
    site: SiteHome
    node: Node
    folder: Path
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def newer(self) -> str:
        """The release that the guest is upgraded to."""
        return f"{self.image.release}.post1"

    @property
    def broken(self) -> str:
        return f"{self.image.release}.post2"

    def boot(self) -> None:
        disks = (self.folder / "root.raw", self.folder / "data.raw")
        self.guest.start(self.node.namespace, "tap0", MAC, disks, self.folder / "seed.iso")

    def asking(self, identity: IdentityConfig, ask: Callable[[GridSession], T]) -> T:
        """Call the guest's services from outside, as somebody."""
        session = GridSession(identity, connect_timeout=10.0, read_timeout=60.0)
        try:
            return self.node.inside(lambda: ask(session))
        finally:
            session.close()

    def get(self, service: str, path: str) -> Any:
        return self.asking(self.site.operator(), lambda session: session.json("GET", URLS[service] + path))

    def wait_healthy(self, name: str) -> None:
        for service in URLS:
            self.figures[f"{name}: {service} healthy"] = self.guest.wait_for(
                f"dgis-health: {service} ok", seconds=SERVICES
            )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image; one that was made for this run goes with it."""
    require_netlab()
    folder = tmp_path_factory.mktemp("image")
    try:
        require(guestimage.missing_tools())
        made = guestimage.guest_image(folder)
        require(guestimage.probe_qemu(made))
        yield made
    finally:
        shutil.rmtree(folder)


def require(missing: str | None) -> None:
    """Skip for this reason; where DGIS_MUST_RUN names ``image``, fail instead."""
    if missing is not None and "image" in os.environ.get("DGIS_MUST_RUN", "").split(","):
        pytest.fail(f"the guest image must run here: {missing}")
    if missing is not None:
        pytest.skip(f"guest image: {missing}")


@pytest.fixture(scope="module")
def rig(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The guest after its first boot."""
    folder = tmp_path_factory.mktemp("guest")
    with Lab("image") as lab:
        node = lab.node("host")
        node.tap("tap0")
        node.address("tap0", f"{GATEWAY}/24")
        site = site_home(folder)
        guest = BootedGuest(image, folder, way=Way(node.namespace, ADDRESS, lab.ssh.key))
        made = Rig(image, guest, site, node, folder)
        guestimage.copy_disk(image, folder / "root.raw")
        guestimage.empty_disk(folder / "data.raw", DATA_BYTES)
        guestimage.make_seed(folder / "seed.iso", seed(site, lab.ssh.public_key))
        try:
            made.boot()
            yield made
        finally:
            guest.kill()
            sys.stderr.write("".join(f"\n{what}: {seconds:.0f} s" for what, seconds in made.figures.items()) + "\n")
            for disk in folder.glob("*.raw"):
                disk.unlink()


def seed(site: SiteHome, login: str) -> dict[str, str]:
    """A NoCloud seed for catalog and storage in one guest, as an operator would write it by hand."""
    files = [written(f"/etc/dgis/trust/{path.name}", path.read_bytes(), mode="0644") for path in site.trust.iterdir()]
    for role, config in (("catalog", catalog_config()), ("storage", storage_config())):
        made = ca.issue_host(site.home, role, ips=(ADDRESS,), roles=(role,), out=site.home / "guest")
        files += [
            written(f"/etc/dgis/{role}/{role}.toml", tomli_w.dumps(config).encode(), mode="0644"),
            written(f"/etc/dgis/{role}/{role}.cert.pem", made.cert.read_bytes(), mode="0644"),
            written(f"/etc/dgis/{role}/{role}.key.pem", made.key.read_bytes(), owner=f"dgis-{role}:dgis-{role}"),
        ]
    site.operator(), site.gateway()
    files.append(written("/etc/dgis/gridmap", site.gridmap.read_bytes(), mode="0644"))
    units = [f"dgis-{role}.service" for role in URLS]
    user = {
        "ssh_authorized_keys": [login],
        "write_files": files,
        "runcmd": [["systemctl", "enable", "--now", *units]],
    }
    card: dict[str, Any] = {"match": {"macaddress": MAC}, "addresses": [f"{ADDRESS}/24"], "set-name": "eth0"}
    card["routes"] = [{"to": "0.0.0.0/0", "via": GATEWAY}]
    return {
        "user-data": "#cloud-config\n" + json.dumps(user, indent=1),
        "meta-data": json.dumps({"instance-id": "dgis-test-1", "local-hostname": "guest-a"}),
        "network-config": json.dumps({"version": 2, "ethernets": {"card": card}}),
    }


def written(path: str, content: bytes, *, mode: str = "0600", owner: str = "root:root") -> dict[str, str]:
    text = b64encode(content).decode()
    return {"path": path, "content": text, "encoding": "b64", "permissions": mode, "owner": owner}


def identity(role: str) -> dict[str, str]:
    here = f"/etc/dgis/{role}/{role}"
    shared = {"trust": "/etc/dgis/trust", "gridmap": "/etc/dgis/gridmap"}
    return {"cert": f"{here}.cert.pem", "key": f"{here}.key.pem", **shared}


def catalog_config() -> dict[str, Any]:
    return {
        "server": {"host": "0.0.0.0", "port": 9441},
        "identity": identity("catalog"),
        "database": {"url": "sqlite:////var/lib/dgis/catalog/catalog.sqlite"},
        "catalog": {"site": "a"},
    }


def storage_config() -> dict[str, Any]:
    return {
        "server": {"host": ADDRESS, "port": 9443},
        "identity": identity("storage"),
        "storage": {"name": "se1", "root": "/var/lib/dgis/storage"},
        "area": [{"name": "main", "rules": RULES}],
    }


def test_the_first_boot_finishes_and_nothing_failed(rig: Rig) -> None:
    rig.figures["boot: ssh"] = rig.guest.wait_ssh(seconds=BOOT)
    rig.figures["boot: cloud-init done"] = rig.guest.wait_for("dgis-guest: cloud-init finished", seconds=BOOT)
    assert "DataSourceNoCloud" in rig.guest.console
    assert rig.guest.ssh("systemctl --failed --no-legend --plain").strip() == ""
    assert json.loads(rig.guest.ssh("cloud-init status --format json"))["errors"] == []
    assert rig.guest.ssh("hostname").strip() == "guest-a"


def test_the_console_says_that_the_services_are_well(rig: Rig) -> None:
    rig.wait_healthy("boot")
    report = json.loads(rig.guest.ssh("cat /run/dgis/health.json"))
    assert {name: each["status"] for name, each in report["services"].items()} == {"catalog": "ok", "storage": "ok"}
    assert report["release"] == rig.image.release


def test_services_answer_over_mutual_tls_from_outside(rig: Rig) -> None:
    for service in URLS:
        health = rig.get(service, "/health")
        assert health["status"] == "ok" and health["version"] == rig.image.release
        assert rig.get(service, "/v1/whoami")["roles"] == ["operator"]


def test_nobody_is_served_without_a_certificate(rig: Rig) -> None:
    context = rawtls.client_context(None, rig.site.operator())

    def ask() -> bytes:
        with rawtls.connect(URLS["catalog"], context) as anonymous:
            anonymous.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            return anonymous.recv(100)

    with pytest.raises((ssl.SSLError, ConnectionError)):
        rig.node.inside(ask)


def test_only_what_was_started_listens(rig: Rig) -> None:
    sockets = [line.split()[:5] for line in rig.guest.ssh("ss -Htuln").splitlines()]
    outward = {f"{each[0]}/{each[4].rpartition(':')[2]}" for each in sockets if not each[4].startswith("127.")}
    assert outward == {"tcp/22", "tcp/9441", "tcp/9443"}
    assert rig.node.scan(ADDRESS, [22, 80, 5355, 9441, 9443]) == {
        22: "open", 80: "refused", 5355: "refused", 9441: "open", 9443: "open",
    }  # fmt: skip


def test_the_empty_second_disk_became_the_data_disk(rig: Rig) -> None:
    mounted = rig.guest.ssh("findmnt --noheadings --output SOURCE,FSTYPE,LABEL /var/lib/dgis")
    assert mounted.split() == ["/dev/vdb", "ext4", "dgisdata"]
    owners = set(rig.guest.ssh("stat -c %U:%a /var/lib/dgis/*").split())
    assert {f"dgis-{role}:700" for role in ("catalog", "storage", "node", "ca")} <= owners


def test_services_run_without_any_privilege(rig: Rig) -> None:
    for role in URLS:
        pid = rig.guest.ssh(f"systemctl show --value -p MainPID dgis-{role}").strip()
        status = dict(
            line.split(":\t", 1) for line in rig.guest.ssh(f"cat /proc/{pid}/status").splitlines() if ":\t" in line
        )
        assert status["Uid"].split()[0] == {"catalog": "942", "storage": "943"}[role]
        assert (status["CapBnd"], status["NoNewPrivs"], status["Seccomp"]) == ("0" * 16, "1", "2")
        # What its sandbox lets it write: its own state, and not the configuration with its key
        enter = f"nsenter --target {pid} --mount setpriv --reuid dgis-{role} --regid dgis-{role} --init-groups"
        assert "Read-only" in rig.guest.ssh(f"{enter} touch /usr/x /opt/dgis/x 2>&1", check=False)
        assert "denied" in rig.guest.ssh(f"{enter} cat /etc/dgis/*/*.key.pem 2>&1 >/dev/null", check=False)
        assert rig.guest.ssh(f"{enter} touch /var/lib/dgis/{role}/.try && rm /var/lib/dgis/{role}/.try") == ""


def test_logins_are_by_key_and_each_guest_has_a_host_key_of_its_own(rig: Rig) -> None:
    effective = rig.guest.ssh("sshd -T")
    assert "permitrootlogin without-password" in effective and "passwordauthentication no" in effective
    assert rig.guest.ssh("ls /etc/ssh/ssh_host_*").split() == [
        "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub",
    ]  # fmt: skip
    assert "BEGIN SSH HOST KEY KEYS" in rig.guest.console
    assert rig.guest.ssh("grep '^root:' /etc/shadow").split(":")[1] in ("*", "!", "!*")


def test_state_outlives_a_power_cut(rig: Rig) -> None:
    store(rig)
    before = rig.guest.ssh("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
    rig.guest.kill()
    rig.boot()
    rig.figures["second boot: ssh"] = rig.guest.wait_ssh(seconds=BOOT)
    rig.wait_healthy("second boot")
    assert rig.guest.ssh("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub") == before
    expect_stored(rig)


def test_an_upgrade_in_place_keeps_state(rig: Rig, tmp_path: Path) -> None:
    release(rig, tmp_path, rig.newer)
    began = rig.guest.seconds
    said = rig.guest.ssh(f"dgis-upgrade --migrate /root/{rig.newer}", seconds=UPGRADE)
    rig.figures["upgrade in place"] = rig.guest.seconds - began
    assert f"release {rig.newer} runs" in said
    assert {rig.get(service, "/health")["version"] for service in URLS} == {rig.newer}
    assert rig.guest.ssh("readlink /opt/dgis/current").strip() == f"releases/{rig.newer}"
    assert rig.guest.ssh(f"ls /var/lib/dgis/catalog/before-{rig.newer}").split()[0] == "catalog.sqlite"
    expect_stored(rig)


def test_a_release_that_does_not_run_is_left_again(rig: Rig) -> None:
    # A release that imports and does not serve, made of the one that runs: what is installed is the test before's
    broken = f"/opt/dgis/releases/{rig.broken}"
    rig.guest.ssh(f"cp -al /opt/dgis/releases/{rig.newer} {broken} && rm {broken}/bin/dgis-storage")
    rig.guest.ssh(f"printf '#!/bin/false\\n' > {broken}/bin/dgis-storage && chmod 755 {broken}/bin/dgis-storage")
    upgrade = f"dgis-upgrade --migrate --wait 20 --to {rig.broken}; echo exit $?"
    said = rig.guest.ssh(upgrade, seconds=UPGRADE, check=False)
    assert f"going back to {rig.newer}" in said and "exit 1" in said
    releases = [f"  {rig.image.release}", f"* {rig.newer}", f"  {rig.broken}"]
    assert rig.guest.ssh("dgis-upgrade --list").splitlines() == releases
    assert {rig.get(service, "/health")["version"] for service in URLS} == {rig.newer}
    expect_stored(rig)


def test_it_powers_off_when_asked(rig: Rig) -> None:
    rig.guest.stop()
    assert "Power down" in rig.guest.console


def store(rig: Rig) -> None:
    """A site in the catalog, an object on the storage provider."""
    site = Site(name="a", title="kept over a power cut")
    rig.asking(rig.site.operator(), lambda session: CatalogClient(session, URLS["catalog"]).put_site(site))
    digest = hashlib.sha256(OBJECT).hexdigest()
    path = rig.folder / "object"
    path.write_bytes(OBJECT)
    spec = ObjectSpec(object_key(digest), len(OBJECT), digest)
    rig.asking(rig.site.gateway(), lambda session: channel(session).put(spec, path))


def expect_stored(rig: Rig) -> None:
    sites = rig.asking(rig.site.operator(), lambda session: CatalogClient(session, URLS["catalog"]).sites())
    assert [(each.name, each.title) for each in sites] == [("a", "kept over a power cut")]

    def read(session: GridSession) -> bytes:
        with channel(session).get(object_key(hashlib.sha256(OBJECT).hexdigest())) as blocks:
            return b"".join(blocks)

    assert rig.asking(rig.site.gateway(), read) == OBJECT


def channel(session: GridSession) -> HttpsChannel:
    return HttpsChannel(session, URLS["storage"] + "/areas/main")


def release(rig: Rig, tmp_path: Path, version: str) -> None:
    """Bring the wheels of another version into the guest: dgis from this checkout, the rest is there."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("certs", "catalog", "storage_provider", "dgis"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    settings = re.sub(r"(?m)^version = .*$", f"version = {version}", (CHECKOUT / "setup.cfg").read_text())
    (source / "setup.cfg").write_text(settings)
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dgis-*.whl")
    place = f"/root/{version}"
    rig.guest.ssh(f"mkdir {place} && cp -l /opt/dgis/wheels/*.whl {place}/ && rm {place}/dgis-*.whl")
    rig.guest.put(wheel, f"{place}/{wheel.name}")
