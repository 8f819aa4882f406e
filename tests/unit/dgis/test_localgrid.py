"""What `dgis up` lays out below HOME: doors, ports, and the certificates by which SSH keys are known."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from certs import ca
from dgis.localgrid import GridOptions, Paths, doors, keep_fresh, prepare


def test_doors_ports_and_peers_stay_and_follow_renewals(tmp_path: Path) -> None:
    options = GridOptions(tmp_path / "grid")
    paths, ports = Paths(options.home), prepare(options)
    assert set(ports) == {
        "catalog",
        "dgis",
        *(f"{se}{door}" for se in ("se1", "se2") for door in ("", "-gsiftp", "-sftp")),
    }
    assert len(set(ports.values())) == len(ports)
    config = tomllib.loads(paths.config("se1").read_text())
    served = [config[table]["port"] for table in ("gsiftp", "sftp", "server")]
    assert doors(ports, "se1") == tuple(
        f"{scheme}://127.0.0.1:{port}/areas/main"
        for scheme, port in zip(("gsiftp", "sftp", "https"), served, strict=True)
    )
    assert config["identity"]["ssh_peers"] == str(paths.ssh_peers)
    names = ("dgis", "operator", "se1", "se2")
    assert {path.name: path.read_bytes() for path in paths.ssh_peers.iterdir()} == {
        f"{name}.pem": paths.credential(name).cert.read_bytes() for name in names
    }

    before = paths.credential("se1").cert.read_bytes()
    ca.revoke(options.home, paths.credential("se1").cert)
    guest = paths.ssh_peers / "elsewhere.pem"
    guest.write_bytes(before)
    assert prepare(options) == ports == json.loads((options.home / "ports.json").read_text())
    after = paths.credential("se1").cert.read_bytes()
    assert after != before and (paths.ssh_peers / "se1.pem").read_bytes() == after
    (paths.ssh_peers / "dgis.pem").write_bytes(before)
    keep_fresh(options)
    assert (paths.ssh_peers / "dgis.pem").read_bytes() == paths.credential("dgis").cert.read_bytes()
    assert guest.exists()  # what an operator put there stays
