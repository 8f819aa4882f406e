"""dgis-certs as a person and a script use it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from certs.credential import Credential
from certs.gridmap import Gridmap
from tests.helpers.pki import SiteHome


def run(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from certs.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def test_from_nothing_to_a_revoked_user(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    assert run("init", "--home", home, "--organisation", "Grid").returncode == 0
    issued = run("issue", "user", "joe", "--home", home, "--out", out)
    assert issued.stdout.splitlines() == ["/O=Grid/OU=People/CN=joe", str(out / "joe.cert.pem")]
    assert stat.S_IMODE((out / "joe.key.pem").stat().st_mode) == 0o600
    assert len(Credential(out / "joe.cert.pem", out / "joe.key.pem").chain()) == 2
    entry = Gridmap(home / "gridmap").lookup(Credential(out / "joe.cert.pem", out / "joe.key.pem").dn())
    assert entry is not None
    assert entry.roles == {"user"}
    assert run("revoke", out / "joe.cert.pem", "--home", home).returncode == 0
    shown = json.loads(run("show", "--home", home, "--format", "json").stdout)
    status = {row["dn"]: row["status"] for row in shown["certificates"]}
    assert status == {
        "/O=Grid/CN=Grid Root CA": "valid",
        "/O=Grid/CN=Grid Issuing CA": "valid",
        "/O=Grid/OU=People/CN=joe": "revoked",
    }
    assert sorted((row["issuer"], row["revoked"], row["status"]) for row in shown["crls"]) == [
        ("/O=Grid/CN=Grid Issuing CA", 1, "current"),
        ("/O=Grid/CN=Grid Root CA", 0, "current"),
    ]


def test_hosts_and_tables(fresh_site: SiteHome, tmp_path: Path) -> None:
    home = fresh_site.home
    made = run("issue", "host", "se9", "--home", home, "--out", tmp_path, "--role", "storage", "--role", "monitor",
               "--dns", "se9.example.org", "--ip", "10.0.0.9", "--format", "json")  # fmt: skip
    facts = json.loads(made.stdout)
    assert facts["dn"] == "/O=Test Grid/OU=Hosts/CN=se9"
    before = json.loads(run("show", "--home", home, "--format", "json").stdout)["crls"]
    assert run("crl", "--home", home).returncode == 0
    after = json.loads(run("show", "--home", home, "--format", "json").stdout)["crls"]
    assert [row["number"] for row in after] == [row["number"] + 1 for row in before]
    table = run("show", "--home", home).stdout
    assert all(words in table for words in ("CN=se9", "host", "Current until", "valid"))
    [leaf, issuing] = json.loads(run("show", facts["cert"], "--format", "json").stdout)["certificates"]
    assert (leaf["dn"], issuing["profile"], 88 <= leaf["days_left"] <= 90) == (facts["dn"], "ca", True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["issue", "user", "x", "--home", "nowhere"], 1, "dgis-certs: nowhere: no site CA here; run: dgis-certs init"),
        (["revoke", "nothing.pem", "--home", "nowhere"], 1, "dgis-certs: nothing.pem: cannot be read"),
        (["show"], 2, "name certificate FILES or a site by --home"),
        (["issue", "user", "x"], 2, "--home"),
        (["issue", "user", "x", "--home", "h", "--role", "root"], 2, "root"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_failures_are_one_line_on_stderr(words: list[str], code: int, said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
