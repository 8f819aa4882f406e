"""An sshd's files follow certificates and CRLs; the commands that write them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from certs.cli import main
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.ssh import SSHCertificateRequest, known_hosts_keys, parse_key, public_line, ssh_certificate
from certs.sshpeers import SshPeers
from certs.sshsync import Synced, Targets, sync, watch
from certs.trust import Trust
from tests.helpers.pki import SiteHome, fresh_site, site
from tests.helpers.sshd import NEEDS, NEEDS_SFTP, Sshd, account

__all__ = ["fresh_site", "site"]


def line_of(identity: IdentityConfig) -> str:
    return public_line(Credential(identity.cert, identity.key).chain()[0].public_key())


def folder_of(tmp_path: Path, *identities: IdentityConfig) -> Path:
    folder = tmp_path / "peers"
    folder.mkdir(exist_ok=True)
    for each in identities:
        shutil.copy(each.cert, folder)
    return folder


def run(*args: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["ssh", *map(os.fspath, args)])
    assert result.exit_code == code, result.output
    return result.output


def test_without_a_trust_directory_nobody_gets_in(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway, lost = fresh_site.gateway(), fresh_site.host("lost")
    peers = SshPeers(folder_of(tmp_path, gateway, lost), Trust(fresh_site.trust, grace=0.3))
    fresh_site.revoke(lost)
    targets = Targets(tmp_path / "authorized", tmp_path / "revoked")
    stop, heard = threading.Event(), threading.Event()

    def told(outcome: Synced) -> None:
        if not outcome.admitted:
            heard.set()

    thread = threading.Thread(target=watch, args=(peers, targets), kwargs={"stop": stop, "every": 0.1, "told": told})
    thread.start()
    try:
        time.sleep(0.2)
        revoked = targets.revoked.read_bytes() if targets.revoked else b""
        fresh_site.trust.rename(tmp_path / "elsewhere")
        time.sleep(0.15)
        assert "restrict" in targets.authorized.read_text()  # within the grace
        assert heard.wait(3)
        assert "restrict" not in targets.authorized.read_text()
        assert targets.revoked and targets.revoked.read_bytes() == revoked
    finally:
        stop.set()
        thread.join()


def test_the_files_follow(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway, operator = fresh_site.gateway(), fresh_site.operator()
    past = fresh_site.host_at("old", now=datetime.now(UTC) - timedelta(days=2), life=timedelta(days=1))
    peers = SshPeers(folder_of(tmp_path, gateway, operator, past), Trust(fresh_site.trust))
    targets = Targets(tmp_path / "authorized", tmp_path / "revoked")
    first = sync(peers, targets)
    assert len(first.admitted) == 2 and first.written == (targets.revoked, targets.authorized) and not first.gone
    assert [name for name, _reason in first.refused] == ["/O=Test Grid/OU=Hosts/CN=old (old.cert.pem)"]
    assert targets.authorized.read_text().count("restrict,expiry-time=") == 2
    assert line_of(past) not in targets.revoked.read_text()
    assert sync(peers, targets).written == ()
    fresh_site.revoke(gateway)
    after = sync(peers, targets)
    assert after.gone and set(after.written) == {targets.authorized, targets.revoked}
    assert (
        line_of(gateway) not in targets.authorized.read_text() and line_of(operator) in targets.authorized.read_text()
    )
    assert line_of(gateway) in targets.revoked.read_text()


def test_lines_end_with_the_crl(fresh_site: SiteHome, tmp_path: Path) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=7)
    fresh_site.put_crl(ends=ends)
    peers = SshPeers(folder_of(tmp_path, fresh_site.gateway()), Trust(fresh_site.trust))
    sync(peers, Targets(tmp_path / "authorized"))
    assert f'expiry-time="{ends:%Y%m%d%H%M%S}Z"' in (tmp_path / "authorized").read_text()
    fresh_site.drop_crls()
    time.sleep(0.03)
    assert sync(peers, Targets(tmp_path / "authorized")).gone  # no CRL: nobody gets in


def test_watching_survives_what_fails(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway, stop, runs = fresh_site.gateway(), threading.Event(), list[Synced]()
    target = tmp_path / "later" / "authorized"
    peers = SshPeers(folder_of(tmp_path, gateway), Trust(fresh_site.trust))

    def told(outcome: Synced) -> None:
        runs.append(outcome)
        if outcome.gone:
            stop.set()

    thread = threading.Thread(
        target=watch, args=(peers, Targets(target)), kwargs={"stop": stop, "every": 0.05, "told": told}
    )
    thread.start()
    time.sleep(0.15)  # the folder is not there: logged, tried again
    target.parent.mkdir()
    while not runs:
        time.sleep(0.02)
    fresh_site.revoke(gateway)
    thread.join(20)
    assert not thread.is_alive() and line_of(gateway) not in target.read_text()


def test_commands_print_what_openssh_reads(site: SiteHome, tmp_path: Path) -> None:
    se, gateway = site.storage(), site.gateway()
    trust = ("--trust", site.trust)
    assert line_of(gateway) in run("authorized-keys", gateway.cert, *trust)
    known = run("known-hosts", se.cert, "--port", "2222", *trust)
    assert known_hosts_keys(known, "127.0.0.1", 2222)[0] == {parse_key(line_of(se))}
    key = ed25519.Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.OpenSSH
    ca_key = tmp_path / "ssh_ca"
    ca_key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    ca_key.chmod(0o600)
    out = tmp_path / "x-cert.pub"
    run("certificate", gateway.cert, *trust, "--ca-key", ca_key, "--principal", "dgis", "--out", out)
    assert out.read_text().startswith("ecdsa-sha2-nistp256-cert-v01@openssh.com ")
    assert "cert-v01" in run("certificate", se.cert, *trust, "--ca-key", ca_key, "--host")
    run("certificate", se.cert, *trust, "--ca-key", ca_key, code=2)
    ca_key.chmod(0o644)
    assert "chmod 600" in run("certificate", se.cert, *trust, "--ca-key", ca_key, "--host", code=1)


def test_commands_refuse_what_is_not_good(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway = fresh_site.gateway()
    fresh_site.revoke(gateway)
    for command in ("authorized-keys", "known-hosts"):
        assert "revoked" in run(command, gateway.cert, "--trust", fresh_site.trust, code=1)
    assert "no PEM certificate" in run("authorized-keys", gateway.key, "--trust", fresh_site.trust, code=1)
    targets = ("--authorized-keys", tmp_path / "a", "--revoked-keys", tmp_path / "r")
    said = run("sync", "--peers", folder_of(tmp_path, gateway), "--trust", fresh_site.trust, *targets)
    assert "refused: /O=Test Grid/OU=Hosts/CN=dgis" in said and "0 keys may log in" in said


@pytest.mark.peer
@NEEDS
@NEEDS_SFTP
def test_a_revocation_reaches_sshd_and_what_is_logged_in(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway, operator = fresh_site.gateway(), fresh_site.operator()
    folder = folder_of(tmp_path, gateway, operator)
    far = Sshd(fresh_site.storage(), tmp_path / "sshd")
    far.start()
    command = [sys.executable, "-c", "from certs.cli import main; main()", "ssh", "sync", "--watch", "--every", "0.2"]
    command += ["--peers", folder, "--trust", fresh_site.trust, "--authorized-keys", far.authorized_keys]
    command += ["--revoked-keys", far.revoked_keys, "--end-sessions", account(), "--sshd-pid-file", far.pid_file]
    syncing = subprocess.Popen([*map(os.fspath, command)])
    try:
        _within(20, lambda: far.sftp(gateway, "pwd\n").returncode == 0)
        ended, stays = far.sftp_session(gateway), far.sftp_session(gateway)
        stays.communicate(b"ls /\n", timeout=10)
        assert stays.returncode == 0  # so that the other one's failure means something
        fresh_site.revoke(gateway)
        _within(10, lambda: far.sftp(gateway, "pwd\n").returncode != 0)
        ended.communicate(b"ls /\n", timeout=10)
        assert ended.returncode != 0
        assert far.sftp(operator, "pwd\n").returncode == 0
    finally:
        syncing.send_signal(signal.SIGTERM)
        assert syncing.wait(10) == 0
        far.stop()


@pytest.mark.peer
@NEEDS
@NEEDS_SFTP
def test_a_short_certificate_lets_in_until_its_key_is_revoked(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway, key = fresh_site.gateway(), ed25519.Ed25519PrivateKey.generate()
    far = Sshd(fresh_site.storage(), tmp_path / "sshd")
    far.user_ca_keys.write_text(public_line(key.public_key()) + "\n")
    far.start()
    try:
        assert far.sftp(gateway, "pwd\n").returncode != 0
        cert = Credential(gateway.cert, gateway.key).chain()[0]
        line = ssh_certificate(SSHCertificateRequest(cert, (account(),)), key)
        gateway.key.with_name(f"{gateway.key.name}-cert.pub").write_text(f"{line}\n")
        assert far.sftp(gateway, "pwd\n").returncode == 0
        fresh_site.revoke(gateway)
        people = SshPeers(folder_of(tmp_path, gateway), Trust(fresh_site.trust))
        sync(people, Targets(far.authorized_keys, far.revoked_keys))
        assert far.sftp(gateway, "pwd\n").returncode != 0
    finally:
        far.stop()


def _within(seconds: float, holds: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)
