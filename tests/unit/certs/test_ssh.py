"""SSH's view of X.509 identities: lines, certificates, and who is behind a key."""

from __future__ import annotations

import base64
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_ssh_public_identity
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificate, SSHCertificateType

from certs import ssh
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import CredentialError, TrustError
from certs.ssh import SSHCertificateRequest
from certs.sshpeers import KnownHosts, SshPeers
from certs.trust import Trust
from tests.helpers.pki import SiteHome, fresh_site, other_site, site

__all__ = ["fresh_site", "other_site", "site"]

NOW = datetime.now(UTC)


def leaf(identity: IdentityConfig) -> x509.Certificate:
    return Credential(identity.cert, identity.key).chain()[0]


def blob(identity: IdentityConfig) -> bytes:
    return ssh.key_blob(leaf(identity).public_key())


def peers_dir(tmp_path: Path, *identities: IdentityConfig) -> Path:
    folder = tmp_path / "ssh-peers"
    folder.mkdir(exist_ok=True)
    for each in identities:
        shutil.copy(each.cert, folder / each.cert.name)
    return folder


# -- lines and certificates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1024, 0])
def test_keys_that_ssh_should_not_use(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(CredentialError, match="weak|curve"):
        ssh.public_line(key.public_key())


def test_a_key_is_read_from_line_and_wire() -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    line = ssh.public_line(key)
    assert ssh.parse_key(line + " comment with words") == ssh.key_blob(key) == ssh.parse_key(ssh.key_blob(key))
    for bad in ("", "ssh-rsa", "ssh-rsa !!", line.replace("ssh-ed25519", "ssh-rsa"), "ssh-rsa " + "A" * 7):
        with pytest.raises(CredentialError):
            ssh.parse_key(bad)


def test_authorized_key_ends_with_what_comes_first(site: SiteHome) -> None:
    cert = leaf(site.user("ada"))
    line = ssh.authorized_key(cert, until=NOW + timedelta(hours=1))
    assert line.startswith(f'restrict,expiry-time="{NOW + timedelta(hours=1):%Y%m%d%H%M%S}Z" ssh-rsa AAAA')
    assert line.endswith("/CN=ada") and "\n" not in line
    late = ssh.authorized_key(cert, until=NOW + timedelta(days=9999))
    assert f'"{cert.not_valid_after_utc:%Y%m%d%H%M%SZ}"' in late


def test_known_hosts_lines_read_back(site: SiteHome) -> None:
    cert = leaf(site.host("se1", "storage"))
    key = ssh.key_blob(cert.public_key())
    text = "# comment\n\n" + ssh.known_host(cert, port=2222) + "\n"
    assert ssh.known_hosts_keys(text, "LOCALHOST", 2222) == ({key}, frozenset())
    assert ssh.known_hosts_keys(text, "127.0.0.1", 2222) == ({key}, frozenset())
    assert ssh.known_hosts_keys(text, "localhost", 22) == (frozenset(), frozenset())
    assert ssh.known_hosts_keys("@revoked " + text.splitlines()[2], "localhost", 2222) == (frozenset(), {key})
    assert ssh.known_hosts_keys("@cert-authority " + ssh.known_host(cert), "localhost", 22) == (
        frozenset(),
        frozenset(),
    )
    for junk in ("localhost", "localhost ssh-rsa", "localhost ssh-rsa AAAA", "|1|x|y ssh-rsa AAAA", "@revoked"):
        assert ssh.known_hosts_keys(junk, "localhost", 22) == (frozenset(), frozenset())
    with pytest.raises(CredentialError, match="names no host"):
        ssh.known_host(leaf(site.user("ada")))


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("host", False),
        ("", False),
    ],
)
def test_names(site: SiteHome, host: str, named: bool) -> None:
    assert ssh.names_host(leaf(site.host("se1", "storage")), host) is named


def test_a_wildcard_is_one_label() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName("*.site.example")])
    cert = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    assert ssh.names_host(cert, "a.site.example")
    for other in ("site.example", "a.b.site.example", ".site.example", "*.other"):
        assert not ssh.names_host(cert, other)


def test_ssh_certificates_say_no_more_than_the_x509_one(site: SiteHome) -> None:
    cert, signer = leaf(site.user("ada")), ed25519.Ed25519PrivateKey.generate()
    line = ssh.ssh_certificate(SSHCertificateRequest(cert, ("dgis",)), signer, now=NOW)
    made = load_ssh_public_identity(line.encode())
    assert isinstance(made, SSHCertificate)
    made.verify_cert_signature()
    assert made.type is SSHCertificateType.USER and made.valid_principals == [b"dgis"]
    assert made.key_id.endswith(b"/CN=ada") and not made.extensions and not made.critical_options
    assert made.valid_before == int((NOW + timedelta(hours=12)).timestamp())
    short = SSHCertificateRequest(cert, ("dgis",), timedelta(days=9999))
    ended = load_ssh_public_identity(ssh.ssh_certificate(short, signer).encode())
    assert isinstance(ended, SSHCertificate) and ended.valid_before == int(cert.not_valid_after_utc.timestamp())
    host = load_ssh_public_identity(ssh.ssh_certificate(SSHCertificateRequest(leaf(site.host("se1"))), signer).encode())
    assert isinstance(host, SSHCertificate)
    assert host.type is SSHCertificateType.HOST and host.valid_principals == [b"localhost", b"127.0.0.1"]
    with pytest.raises(CredentialError, match="names no host"):
        ssh.ssh_certificate(SSHCertificateRequest(cert), signer)
    with pytest.raises(CredentialError, match="expired"):
        ssh.ssh_certificate(short, signer, now=cert.not_valid_after_utc + timedelta(seconds=1))


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed (Debian: openssh-client)")
def test_openssh_reads_what_we_write(site: SiteHome, tmp_path: Path) -> None:
    signer = ed25519.Ed25519PrivateKey.generate()
    file = tmp_path / "cert.pub"
    for cert, principals in ((leaf(site.user("ada")), ("dgis",)), (leaf(site.host("se1")), ())):
        file.write_text(ssh.ssh_certificate(SSHCertificateRequest(cert, principals), signer))
        shown = subprocess.run(["ssh-keygen", "-L", "-f", file], capture_output=True, text=True, check=True).stdout
        assert f"CN={cert.subject.rfc4514_string().split('CN=')[1].split(',')[0]}" in shown
    file.write_text(ssh.known_host(leaf(site.host("se1")), port=2200) + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "|1|" in file.read_text() and "localhost" not in file.read_text()
    assert ssh.known_hosts_keys(file.read_text(), "localhost", 2200)[0] == {blob(site.host("se1"))}
    assert ssh.known_hosts_keys(file.read_text(), "localhost", 22)[0] == frozenset()
    found = subprocess.run(["ssh-keygen", "-F", "[localhost]:2200", "-f", file], capture_output=True, text=True)
    assert base64.b64encode(blob(site.host("se1"))).decode() in found.stdout


# -- who is behind a key ----------------------------------------------------------------------------------------------


def test_a_key_is_its_certificates_owner(site: SiteHome, tmp_path: Path) -> None:
    ada, gateway = site.user("ada"), site.gateway()
    peers = SshPeers(peers_dir(tmp_path, ada, gateway), Trust(site.trust))
    assert str(peers.judge(blob(ada)).dn).endswith("/CN=ada")
    assert peers.judge(ssh.public_line(leaf(gateway).public_key())).fingerprint
    with pytest.raises(TrustError, match="no certificate for this SSH key.*NAME.cert.pem"):
        peers.judge(blob(site.operator()))
    with pytest.raises(TrustError, match="not an SSH public key"):
        peers.judge("nonsense")


def test_a_certificate_of_another_ca_admits_nobody(site: SiteHome, other_site: SiteHome, tmp_path: Path) -> None:
    stranger = other_site.gateway()
    peers = SshPeers(peers_dir(tmp_path, stranger), Trust(site.trust))
    with pytest.raises(TrustError, match="no trust anchor|signature"):
        peers.judge(blob(stranger))


def test_revoked_expired_and_without_crl(fresh_site: SiteHome, tmp_path: Path) -> None:
    gateway, past = fresh_site.gateway(), NOW - timedelta(days=2)
    old = fresh_site.host_at("old", now=past, life=timedelta(days=1))
    peers = SshPeers(peers_dir(tmp_path, gateway, old), Trust(fresh_site.trust))
    assert peers.judge(blob(gateway))
    with pytest.raises(TrustError, match="expired"):
        peers.judge(blob(old))
    fresh_site.revoke(gateway)
    with pytest.raises(TrustError, match=r"revoked \(dgis.cert.pem\)"):
        peers.judge(blob(gateway))
    operator = fresh_site.operator()
    peers_dir(tmp_path, operator)
    assert peers.judge(blob(operator))
    fresh_site.drop_crls()
    with pytest.raises(TrustError, match="no CRL"):
        peers.judge(blob(operator))


def test_a_revoked_key_is_not_saved_by_another_certificate(fresh_site: SiteHome, tmp_path: Path) -> None:
    ada = fresh_site.user("ada")
    proxy = fresh_site.proxy_of(ada, "proxy")
    folder = peers_dir(tmp_path, ada, proxy)
    peers = SshPeers(folder, Trust(fresh_site.trust))
    assert peers.judge(blob(proxy)).dn == peers.judge(blob(ada)).dn
    fresh_site.revoke(ada)
    for identity in (ada, proxy):
        with pytest.raises(TrustError, match="revoked"):
            peers.judge(blob(identity))


def test_the_directory_is_followed(site: SiteHome, tmp_path: Path) -> None:
    gateway, operator = site.gateway(), site.operator()
    folder = peers_dir(tmp_path, gateway)
    (folder / "junk.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    (folder / "key.pem").write_bytes(gateway.key.read_bytes())
    peers = SshPeers(folder, Trust(site.trust))
    assert [found.path.name for found in peers.certificates()] == [gateway.cert.name]
    peers_dir(tmp_path, operator)
    assert peers.judge(blob(operator))
    (folder / gateway.cert.name).unlink()
    with pytest.raises(TrustError, match="no certificate"):
        peers.judge(blob(gateway))
    shutil.rmtree(folder)
    with pytest.raises(TrustError, match="no certificate"):
        peers.judge(blob(operator))
    with pytest.raises(TrustError, match="cannot be read"):
        SshPeers(folder, Trust(site.trust))


def test_host_keys(fresh_site: SiteHome, tmp_path: Path) -> None:
    se, user = fresh_site.storage(), fresh_site.user("ada")
    trust = Trust(fresh_site.trust)
    peers = SshPeers(peers_dir(tmp_path, se, user), trust)
    listed = tmp_path / "known_hosts"
    foreign = ed25519.Ed25519PrivateKey.generate().public_key()
    listed.write_text(f"[localhost]:2222 {ssh.public_line(foreign)}\n{ssh.known_host(leaf(se), port=2222)}\n")
    hosts = KnownHosts(peers, listed)
    assert hosts.check(blob(se), "localhost", 2222) is not None
    assert hosts.check(ssh.key_blob(foreign), "localhost", 2222) is None
    for key, host in ((blob(se), "elsewhere"), (blob(user), "localhost"), (ssh.key_blob(foreign), "127.0.0.1")):
        with pytest.raises(TrustError):
            hosts.check(key, host, 2222)
    with pytest.raises(TrustError, match="no ssh_peers directory.*no ssh_known_hosts"):
        KnownHosts(None, None).check(blob(se), "localhost", 2222)
    fresh_site.revoke(se)
    with pytest.raises(TrustError, match="revoked"):  # although known_hosts lists it
        hosts.check(blob(se), "localhost", 2222)
    listed.write_text(f"@revoked [localhost]:2222 {ssh.public_line(foreign)}\n")
    with pytest.raises(TrustError, match="@revoked"):
        hosts.check(ssh.key_blob(foreign), "localhost", 2222)
    listed.unlink()
    with pytest.raises(TrustError, match="cannot be read"):
        hosts.check(blob(se), "localhost", 2222)
