from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs import profiles
from certs import trust as trust_module
from certs.credential import Credential
from certs.errors import TrustError
from certs.profiles import CrlRequest
from certs.tls import client_context
from certs.trust import Trust
from tests.helpers.pki import SiteHome

NOW = datetime.now(UTC)


def judge(site: SiteHome, cert: Path) -> None:
    Trust(site.trust).judge(cert.read_bytes())


def test_a_good_chain_is_returned_up_to_its_anchor(site: SiteHome) -> None:
    identity = site.catalog()
    chain = Trust(site.trust).judge(identity.cert.read_bytes())
    assert str(chain.dn) == "/O=Test Grid/OU=Hosts/CN=catalog"
    assert [cert.subject for cert in chain.certs[1:]] == [site.authority(n).cert.subject for n in ("issuing", "root")]
    assert (chain.proxied, chain.serial) == (False, chain.certs[0].serial_number)


def test_a_proxy_counts_as_its_user(site: SiteHome) -> None:
    user = site.user("joe", "user")
    once = site.proxy_of(user, "joe.proxy")
    twice = site.proxy_of(once, "joe.proxy.proxy")
    for proxy in (once, twice):
        chain = Trust(site.trust).judge(proxy.cert.read_bytes())
        assert chain.proxied
        assert str(chain.dn) == "/O=Test Grid/OU=People/CN=joe"
        assert chain.serial == Credential(user.cert, user.key).chain()[0].serial_number


def test_numbers_in_a_name_are_not_a_proxy(site: SiteHome) -> None:
    """The identity is found by proxyCertInfo, never by cutting /CN=digits off."""
    chain = Trust(site.trust).judge(site.user("12345", "user").cert.read_bytes())
    assert (str(chain.dn), chain.proxied) == ("/O=Test Grid/OU=People/CN=12345", False)


def break_missing(site: SiteHome) -> Path:
    found = site.catalog().cert
    site.drop_crls()
    return found


def break_stale(site: SiteHome) -> Path:
    site.put_crl(ends=NOW - timedelta(minutes=1))
    return site.catalog().cert


def break_revoked(site: SiteHome) -> Path:
    identity = site.host("lost")
    site.revoke(identity)
    return identity.cert


def break_revoked_user_proxy(site: SiteHome) -> Path:
    user = site.user("leaver")
    proxy = site.proxy_of(user, "leaver.proxy")
    site.revoke(user)
    return proxy.cert


def break_expired(site: SiteHome) -> Path:
    return site.host_at("old", now=NOW - timedelta(days=2), life=timedelta(days=1)).cert


def break_future(site: SiteHome) -> Path:
    return site.host_at("early", now=NOW + timedelta(days=1), life=timedelta(days=1)).cert


def break_garbage(site: SiteHome) -> Path:
    path = site.home / "garbage.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return path


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (break_missing, "no CRL of the CA"),
        (break_stale, "CRL for .* has expired"),
        (break_revoked, "CN=lost is revoked"),
        (break_revoked_user_proxy, "CN=leaver is revoked"),
        (break_expired, "CN=old has expired"),
        (break_future, "not valid yet; compare the clocks"),
        (break_garbage, "not PEM"),
    ],
)
def test_refused_with_a_sentence_that_teaches(
    fresh_site: SiteHome, broken: Callable[[SiteHome], Path], words: str
) -> None:
    cert = broken(fresh_site)
    with pytest.raises(TrustError, match=words) as caught:
        judge(fresh_site, cert)
    assert caught.value.reasons


def test_another_ca_with_the_same_name_is_refused(site: SiteHome, other_site: SiteHome) -> None:
    with pytest.raises(TrustError, match="signature|belongs to another CA|no trust anchor"):
        judge(site, other_site.catalog().cert)


def test_a_ca_speaks_for_its_own_names_only(fresh_site: SiteHome, guests: SiteHome) -> None:
    """With two CAs in one directory neither may sign the other's names: the DN is all that the gridmap sees."""
    visitor = guests.host("visitor")
    for path in guests.trust.glob("????????.*"):
        shutil.copy(path, fresh_site.trust)
    trust = Trust(fresh_site.trust)
    assert str(trust.judge(visitor.cert.read_bytes()).dn) == "/O=Guests/OU=Hosts/CN=visitor"
    impostor = guests.host_at("catalog", now=NOW, life=timedelta(days=1))  # named /O=Test Grid/OU=Hosts/CN=catalog
    with pytest.raises(TrustError, match="/O=Test Grid/OU=Hosts/CN=catalog: its CA may not sign this name"):
        trust.judge(impostor.cert.read_bytes())
    assert trust.judge(fresh_site.catalog().cert.read_bytes())


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ("30", True),  # inheritAll, as the helper makes it
        ("limited", True),
        ("independent", False),
        ("unknown", False),
        ("with path length", True),
    ],
)
def test_a_proxy_with_a_policy_we_do_not_know(site: SiteHome, policy: str, allowed: bool) -> None:
    """RFC 3820 section 3.8: who does not know the policy language must refuse the proxy."""
    languages = {
        "limited": "300f300d060b2b060104019b5001010109",
        "independent": "300c300a06082b06010505071502",
        "unknown": "3009300706052a03040506",
        "with path length": "300f020100300a06082b06010505071501",
    }
    info = bytes.fromhex(languages[policy]) if policy in languages else None
    proxy = site.proxy_of(site.user("joe", "user"), f"joe.{policy.replace(' ', '-')}", info=info)
    if allowed:
        assert Trust(site.trust).judge(proxy.cert.read_bytes()).proxied
    else:
        with pytest.raises(TrustError, match="restricts its rights in a way that is not understood"):
            judge(site, proxy.cert)


def test_a_verdict_is_remembered_only_while_it_holds(fresh_site: SiteHome) -> None:
    trust = Trust(fresh_site.trust)
    identity = fresh_site.host("lost")
    first = trust.judge(identity.cert.read_bytes())
    assert trust.judge(identity.cert.read_bytes()) is first
    fresh_site.revoke(identity)
    with pytest.raises(TrustError, match="revoked"):
        trust.judge(identity.cert.read_bytes())
    assert "revoked" in str(trust.refusal(first))


def test_refusal_knows_time(site: SiteHome) -> None:
    trust = Trust(site.trust)
    chain = trust.judge(site.catalog().cert.read_bytes())
    assert trust.refusal(chain) is None
    assert trust.crl_expiry() - timedelta(seconds=1) < datetime.fromtimestamp(trust.good_until(chain), UTC)
    assert "CRL" in str(trust.refusal(chain, now=NOW + timedelta(hours=37)))
    assert "expired" in str(trust.refusal(chain, now=NOW + timedelta(days=91)))


def test_a_broken_crl_counts_as_missing(fresh_site: SiteHome) -> None:
    trust = Trust(fresh_site.trust)
    chain = trust.judge(fresh_site.catalog().cert.read_bytes())
    for path in fresh_site.trust.glob("*.r0"):
        path.with_suffix(".tmp").write_text("nonsense")
        path.with_suffix(".tmp").rename(path)
    assert trust.reload_if_changed()
    assert "no CRL" in str(trust.refusal(chain))
    assert len(trust.problems()) == 2
    assert trust.crl_expiry().year == 1970


def test_a_crl_of_a_stranger_with_the_same_name_changes_nothing(fresh_site: SiteHome, other_site: SiteHome) -> None:
    """It is newer than ours and names our certificate, but our CA did not sign it."""
    trust = Trust(fresh_site.trust)
    chain = trust.judge(fresh_site.catalog().cert.read_bytes())
    request = CrlRequest(((chain.serial, NOW),), 1000, NOW + timedelta(seconds=1), NOW + timedelta(days=1))
    [ours] = [path for path in fresh_site.trust.glob("*.r0") if trust_of(path) == fresh_site.authority().cert.subject]
    forged = profiles.crl(request, other_site.authority())
    assert forged.issuer == trust_of(ours)
    ours.with_suffix(".r1").write_bytes(forged.public_bytes(Encoding.PEM))
    assert trust.reload_if_changed()
    assert trust.refusal(chain) is None
    assert ours.with_suffix(".r1") not in trust.files()


def trust_of(path: Path) -> x509.Name:
    return x509.load_pem_x509_crl(path.read_bytes()).issuer


def test_files_overwritten_in_place_are_noticed(fresh_site: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "_DEEP_LOOK", 0.0)
    trust = Trust(fresh_site.trust)
    while trust.reload_if_changed():  # until the copied files are old enough to be told apart
        pass
    for path in fresh_site.trust.glob("*.r0"):
        path.write_text("nonsense")
    assert trust.reload_if_changed()
    assert trust.problems()


def empty(site: SiteHome) -> None:
    for path in site.trust.iterdir():
        path.unlink()


def rename_away(site: SiteHome) -> None:
    site.trust.rename(site.home / "elsewhere")


def spoil_in_place(site: SiteHome) -> None:
    for path in site.trust.glob("*.0"):
        path.write_text("nonsense")


def lock_out(site: SiteHome) -> None:
    site.trust.rename(site.home / "elsewhere")
    site.trust.write_text("no directory")


LOSSES = (empty, rename_away, spoil_in_place, lock_out)


@pytest.mark.parametrize("lose", LOSSES)
def test_without_a_ca_the_last_version_stays_for_a_moment(
    fresh_site: SiteHome, monkeypatch: pytest.MonkeyPatch, lose: Callable[[SiteHome], None]
) -> None:
    monkeypatch.setattr(trust_module, "_DEEP_LOOK", 0.0)
    trust = Trust(fresh_site.trust)
    cert = fresh_site.catalog().cert.read_bytes()
    chain = trust.judge(cert)
    lose(fresh_site)
    assert not trust.reload_if_changed()
    assert len(trust.anchors()) == 2 and trust.refusal(chain) is None and trust.judge(cert)
    with pytest.raises(TrustError):
        Trust(fresh_site.trust)


@pytest.mark.parametrize("lose", LOSSES)
def test_after_that_moment_nobody_is_trusted(
    fresh_site: SiteHome, monkeypatch: pytest.MonkeyPatch, lose: Callable[[SiteHome], None]
) -> None:
    monkeypatch.setattr(trust_module, "_DEEP_LOOK", 0.0)
    trust = Trust(fresh_site.trust, grace=0.2)
    cert, lost = fresh_site.catalog().cert.read_bytes(), fresh_site.host("lost")
    chain = trust.judge(cert)
    fresh_site.revoke(lost)
    trust.reload_if_changed()
    generation = trust.generation
    lose(fresh_site)
    trust.reload_if_changed()
    time.sleep(0.3)
    assert trust.reload_if_changed() and trust.generation > generation
    assert not trust.reload_if_changed()  # once
    assert "no CA certificate any more" in str(trust.refusal(chain))
    assert trust.problems() and trust.files() == () and trust.crl_expiry().year == 1970
    with pytest.raises(TrustError, match="no CA certificate any more"):
        trust.judge(cert)
    assert trust.is_revoked(tuple(x509.load_pem_x509_certificates(lost.cert.read_bytes())))


def test_a_directory_that_comes_back_is_trusted_again(fresh_site: SiteHome) -> None:
    trust = Trust(fresh_site.trust, grace=0.0)
    chain = trust.judge(fresh_site.catalog().cert.read_bytes())
    rename_away(fresh_site)
    trust.reload_if_changed()
    assert trust.refusal(chain) is not None
    (fresh_site.home / "elsewhere").rename(fresh_site.trust)
    assert trust.reload_if_changed()
    assert trust.refusal(chain) is None and trust.problems() == ()


def test_tls_believes_nobody_then(fresh_site: SiteHome) -> None:
    trust = Trust(fresh_site.trust, grace=0.0)
    tls = client_context(fresh_site.gateway(), trust=trust)
    assert tls.context.cert_store_stats()["x509_ca"] == 2
    rename_away(fresh_site)
    assert tls.refresh()
    assert tls.context.cert_store_stats()["x509"] == 0
