from __future__ import annotations

import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs import ca
from certs.credential import Credential
from certs.errors import CaError
from certs.gridmap import Gridmap
from tests.helpers.pki import SiteHome

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl program is not installed")


def extension(cert: x509.Certificate, kind: type) -> object:
    return next(each.value for each in cert.extensions if isinstance(each.value, kind))


def issuing_crl(site: SiteHome) -> x509.CertificateRevocationList:
    issuer = site.authority().cert.subject
    crls = [x509.load_pem_x509_crl(path.read_bytes()) for path in site.trust.glob("*.r0")]
    return next(crl for crl in crls if crl.issuer == issuer)


def credential(identity: object) -> Credential:
    return Credential(identity.cert, identity.key)  # type: ignore[attr-defined]


def test_chain_from_root_to_leaf(site: SiteHome) -> None:
    root, issuing = site.authority("root").cert, site.authority("issuing").cert
    leaf = credential(site.catalog()).chain()[0]
    lengths = [extension(cert, x509.BasicConstraints).path_length for cert in (root, issuing)]  # type: ignore[attr-defined]
    assert lengths == [1, 0]
    assert not extension(leaf, x509.BasicConstraints).ca  # type: ignore[attr-defined]
    for child, parent in ((root, root), (issuing, root), (leaf, issuing)):
        child.verify_directly_issued_by(parent)
        own = extension(parent, x509.SubjectKeyIdentifier).digest  # type: ignore[attr-defined]
        assert extension(child, x509.AuthorityKeyIdentifier).key_identifier == own  # type: ignore[attr-defined]
        assert child.serial_number.bit_length() == 128
    assert credential(site.catalog()).chain() == (leaf, issuing)


def test_keys_stock_grid_tools_accept(site: SiteHome) -> None:
    for name in ("root", "issuing"):
        key = site.authority(name).cert.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size >= 3072
    host, user = (credential(each).chain()[0] for each in (site.catalog(), site.user("joe", "user")))
    assert isinstance(host.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(host.public_key().curve, ec.SECP256R1)  # type: ignore[union-attr]
    assert isinstance(user.public_key(), rsa.RSAPublicKey)
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert all(set(extension(each, x509.ExtendedKeyUsage)) == both for each in (host, user))  # type: ignore[call-overload]


def test_hosts_answer_to_their_names_and_addresses(site: SiteHome) -> None:
    names = extension(credential(site.catalog()).chain()[0], x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_clocks_may_differ_by_minutes(site: SiteHome) -> None:
    now = datetime.now(UTC)
    leaf = credential(site.host("skewed")).chain()[0]
    assert timedelta(minutes=4) < now - leaf.not_valid_before_utc < timedelta(minutes=7)
    crl = issuing_crl(site)
    assert now - crl.last_update_utc > timedelta(minutes=1)
    assert crl.next_update_utc is not None
    assert timedelta(hours=24) < crl.next_update_utc - now < timedelta(hours=48)


def test_private_keys_are_private(site: SiteHome) -> None:
    site.catalog()
    keys = list(site.home.rglob("*.key.pem"))
    assert len(keys) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@needs_openssl
def test_openssl_finds_everything_in_the_trust_directory(site: SiteHome) -> None:
    """openssl verify looks up HASH.0 and HASH.r0 by itself, as GCT does; x509_strict is Python 3.13's default."""
    for identity in (site.catalog(), site.user("joe", "user")):
        asked = [OPENSSL, "verify", "-x509_strict", "-crl_check_all", "-CApath", str(site.trust), str(identity.cert)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, f"{identity.cert}: OK"), done.stderr


@needs_openssl
def test_signing_policy_lies_beside_each_ca(site: SiteHome) -> None:
    for path in (site.home / "ca").rglob("*.cert.pem"):
        asked = [OPENSSL, "x509", "-noout", "-hash", "-in", str(path)]
        digest = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        assert {f"{digest}.0", f"{digest}.r0"} <= {each.name for each in site.trust.iterdir()}
        policy = (site.trust / f"{digest}.signing_policy").read_text().splitlines()
        subject = "/O=Test Grid/CN=Test Grid Root CA" if "root" in path.name else "/O=Test Grid/CN=Test Grid Issuing CA"
        assert [line.split(maxsplit=2) for line in policy] == [
            ["access_id_CA", "X509", f"'{subject}'"],
            ["pos_rights", "globus", "CA:sign"],
            ["cond_subjects", "globus", "'\"/O=Test Grid/*\"'"],
        ]


def test_init_again_keeps_the_ca(fresh_site: SiteHome) -> None:
    fresh_site.catalog()
    before = fresh_site.authority().cert, fresh_site.gridmap.read_text(), issuing_crl(fresh_site)
    ca.init_site(fresh_site.home, organisation="Another")
    assert (fresh_site.authority().cert, fresh_site.gridmap.read_text()) == before[:2]
    assert issuing_crl(fresh_site).last_update_utc > before[2].last_update_utc


def test_issuing_maps_the_name(fresh_site: SiteHome) -> None:
    identity = fresh_site.user("Jan Novák", "user", "monitor")
    entry = Gridmap(fresh_site.gridmap).lookup(credential(identity).dn())
    assert entry is not None
    assert (entry.account, entry.roles) == ("Jan_Novák", {"user", "monitor"})


def test_each_crl_is_newer_than_the_last(fresh_site: SiteHome) -> None:
    """OpenSSL keeps the CRL it has when thisUpdate is equal, so two in one second must differ."""
    seen = []
    for _ in range(3):
        ca.refresh_crls(fresh_site.home)
        crl = issuing_crl(fresh_site)
        seen.append((crl.last_update_utc, crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number))
    assert seen == sorted(set(seen))
    assert [number - seen[0][1] for _, number in seen] == [0, 1, 2]


def test_revoked_is_in_the_crl_at_once(fresh_site: SiteHome) -> None:
    identity = fresh_site.host("lost")
    serial = credential(identity).chain()[0].serial_number
    assert issuing_crl(fresh_site).get_revoked_certificate_by_serial_number(serial) is None
    ca.revoke(fresh_site.home, identity.cert)
    ca.revoke(fresh_site.home, identity.cert)
    assert issuing_crl(fresh_site).get_revoked_certificate_by_serial_number(serial) is not None


def test_concurrent_revocations_all_reach_the_crl(fresh_site: SiteHome) -> None:
    identities = [fresh_site.host(f"h{n}") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(fresh_site.revoke, identities))
    crl = issuing_crl(fresh_site)
    assert {entry.serial_number for entry in crl} == {credential(each).chain()[0].serial_number for each in identities}


def test_a_foreign_certificate_is_not_ours_to_revoke(fresh_site: SiteHome) -> None:
    foreign = fresh_site.host_at("foreign", now=datetime.now(UTC), life=timedelta(days=1))
    with pytest.raises(CaError, match="not issued by the CA"):
        ca.revoke(fresh_site.home, foreign.cert)


def test_without_a_ca_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CaError, match="dgis-certs init"):
        ca.issue_host(tmp_path, "x", out=tmp_path)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "x" * 65, "tab\there", 'quo"te', " blank", "..", "star*"])
def test_names_that_would_break_files_or_policies(site: SiteHome, tmp_path: Path, name: str) -> None:
    with pytest.raises(CaError):
        ca.issue_host(site.home, name, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


class TestRenewal:
    def test_nothing_is_due_at_first(self, fresh_site: SiteHome) -> None:
        assert ca.renew_due(fresh_site.home, [credential(fresh_site.catalog())]) == ()

    @pytest.mark.parametrize("days", [61, 200])
    def test_due_or_expired_keeps_key_names_and_dn(self, fresh_site: SiteHome, days: int) -> None:
        """61 of 90 days is past two thirds; 200 is a site that was switched off too long."""
        mine = credential(fresh_site.catalog())
        old, key = mine.chain()[0], mine.key.read_bytes()
        later = datetime.now(UTC) + timedelta(days=days)
        assert ca.renew_due(fresh_site.home, [mine], now=later) == (mine,)
        new = mine.chain()[0]
        assert new.serial_number != old.serial_number
        assert new.not_valid_after_utc > later + timedelta(days=80)
        assert (mine.key.read_bytes(), new.subject, new.public_key()) == (key, old.subject, old.public_key())
        assert extension(new, x509.SubjectAlternativeName) == extension(old, x509.SubjectAlternativeName)

    def test_revoked_is_not_renewed(self, fresh_site: SiteHome) -> None:
        identity = fresh_site.host("lost")
        fresh_site.revoke(identity)
        later = datetime.now(UTC) + timedelta(days=80)
        assert ca.renew_due(fresh_site.home, [credential(identity)], now=later) == ()


def test_the_root_key_may_be_offline(fresh_site: SiteHome) -> None:
    (fresh_site.home / "ca" / "root" / "root.key.pem").unlink()
    before = issuing_crl(fresh_site).last_update_utc
    ca.refresh_crls(fresh_site.home)
    assert issuing_crl(fresh_site).last_update_utc > before
    assert fresh_site.host("still-issued").cert.exists()
