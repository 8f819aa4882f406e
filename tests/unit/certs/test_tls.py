"""Who gets a connection, who keeps it, over real sockets."""

from __future__ import annotations

import http.client
import shutil
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from certs import ca
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import CredentialError, Unanswered
from certs.https.session import GridSession
from certs.tls import client_context
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome, service
from tests.helpers.rawtls import Kept

NOW = datetime.now(UTC)
CHECK_YOURS = "check your certificate and its revocation"


def refusal(url: str, context: ssl.SSLContext) -> str:
    """Return what a raw client is told when it is refused; fails when it gets an answer."""
    try:
        kept = Kept(url, context)
        status, _ = kept.get()
    except (ssl.SSLError, ConnectionError, http.client.HTTPException) as error:
        return str(error).lower()
    raise AssertionError(f"the server answered {status}")


def nobody(site: SiteHome) -> IdentityConfig | None:
    return None


def revoked(site: SiteHome) -> IdentityConfig:
    identity = site.host("lost")
    site.revoke(identity)
    return identity


def proxy_of_revoked(site: SiteHome) -> IdentityConfig:
    user = site.user("leaver")
    proxy = site.proxy_of(user, "leaver.proxy")
    site.revoke(user)
    return proxy


def expired(site: SiteHome) -> IdentityConfig:
    return site.host_at("old", now=NOW - timedelta(days=2), life=timedelta(days=1))


def missing_crl(site: SiteHome) -> IdentityConfig:
    identity = site.gateway()
    site.drop_crls()
    return identity


def stale_crl(site: SiteHome) -> IdentityConfig:
    identity = site.gateway()
    site.put_crl(ends=NOW - timedelta(minutes=1))
    return identity


@pytest.mark.parametrize(
    ("broken", "alert"),
    [
        (nobody, "certificate required"),
        (revoked, "certificate revoked"),
        (proxy_of_revoked, "certificate revoked"),
        (expired, "certificate expired"),
        (missing_crl, "unknown ca|bad certificate|certificate unknown"),
        (stale_crl, "certificate expired|bad certificate|certificate unknown"),
    ],
)
def test_refused_in_the_handshake_with_an_alert(
    fresh_site: SiteHome, broken: Callable[[SiteHome], IdentityConfig | None], alert: str
) -> None:
    server = fresh_site.catalog()
    identity = broken(fresh_site)
    with service(server) as (_app, url, _):
        told = refusal(url, rawtls.client_context(identity, server))
    assert any(word in told for word in alert.split("|")), told


def test_another_ca_with_the_same_names_is_refused(site: SiteHome, other_site: SiteHome) -> None:
    server = site.catalog()
    with service(server) as (_app, url, _):
        told = refusal(url, rawtls.client_context(other_site.gateway(), server))
    assert any(word in told for word in ("unknown ca", "decrypt error", "bad certificate")), told


def test_tls_1_2_is_refused_alike(fresh_site: SiteHome) -> None:
    server = fresh_site.catalog()
    context = rawtls.client_context(revoked(fresh_site), server)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with service(server) as (_app, url, _):
        assert "certificate revoked" in refusal(url, context)


def test_older_tls_is_refused(site: SiteHome) -> None:
    server = site.catalog()
    context = rawtls.client_context(site.gateway(), server)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with service(server) as (_app, url, _), pytest.raises((ssl.SSLError, ConnectionError)):
        rawtls.connect(url, context)


def test_our_client_explains_its_refusal(fresh_site: SiteHome) -> None:
    identity = fresh_site.host("lost")
    session = GridSession(identity)
    fresh_site.revoke(identity)
    with service(fresh_site.catalog()) as (_app, url, _), pytest.raises(Unanswered, match=CHECK_YOURS) as caught:
        session.json("POST", f"{url}/v1/whoami", body={})
    assert "CN=lost is revoked" in str(caught.value)
    assert (caught.value.permanent, caught.value.service) == (False, url.removeprefix("https://"))


def test_an_expired_credential_is_not_even_tried(site: SiteHome) -> None:
    with pytest.raises(CredentialError, match="expired on .* have the CA issue"):
        GridSession(expired(site))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(site: SiteHome, version: ssl.TLSVersion) -> None:
    server = site.catalog()
    context = rawtls.client_context(site.gateway(), server)
    context.maximum_version = version
    with service(server) as (_app, url, _):
        first = Kept(url, context)
        assert first.get()[0] == 200
        offered = first.socket.session
        second = Kept(url, context, session=offered)
        assert second.get()[0] == 200
        assert first.socket.version() == second.socket.version() == version.name.replace("v1_", "v1.")
        assert not second.socket.session_reused
        assert not second.socket.session.has_ticket


def test_identity_is_the_end_entity(site: SiteHome) -> None:
    server, user = site.catalog(), site.user("joe", "user")
    proxy = site.proxy_of(site.proxy_of(user, "joe.proxy"), "joe.proxy.proxy")
    with service(server) as (_app, url, _):
        answers = [Kept(url, rawtls.client_context(each, server)).get() for each in (user, proxy)]
    assert [status for status, _ in answers] == [200, 200]
    direct, proxied = (body for _, body in answers)
    assert (direct["proxied"], proxied["proxied"]) == (False, True)
    assert proxied == direct | {"proxied": True}
    assert direct["dn"] == "/O=Test Grid/OU=People/CN=joe"
    assert (direct["account"], direct["roles"]) == ("joe", ["user"])
    assert int(direct["serial"], 16) == Credential(user.cert, user.key).chain()[0].serial_number


class TestWhileConnected:
    """What changes around connections that are up."""

    def test_revocation_ends_one_connection_and_spares_the_others(self, fresh_site: SiteHome) -> None:
        server, leaver, stayer = fresh_site.catalog(), fresh_site.host("leaver"), fresh_site.gateway()
        with service(server) as (_app, url, _):
            gone = Kept(url, rawtls.client_context(leaver, server))
            kept = Kept(url, rawtls.client_context(stayer, server))
            assert (gone.get()[0], kept.get()[0]) == (200, 200)
            fresh_site.revoke(leaver)
            status, problem = gone.get()
            assert (status, problem["type"]) == (403, "urn:dgis:problem:certificate-refused")
            assert "CN=leaver is revoked" in problem["detail"]
            assert kept.get()[0] == 200
            assert "certificate revoked" in refusal(url, rawtls.client_context(leaver, server))

    def test_the_server_closes_what_it_refuses(self, fresh_site: SiteHome) -> None:
        server, leaver = fresh_site.catalog(), fresh_site.host("leaver")
        with service(server) as (_app, url, _):
            gone = Kept(url, rawtls.client_context(leaver, server))
            assert gone.get()[0] == 200
            fresh_site.revoke(leaver)
            gone.socket.sendall(b"GET /v1/whoami HTTP/1.1\r\nhost: x\r\n\r\n")
            with gone.socket.makefile("rb") as rest:
                assert rest.read().startswith(b"HTTP/1.1 403")  # read() returns at the end of the connection

    def test_a_revoked_users_proxy_is_cut_off_too(self, fresh_site: SiteHome) -> None:
        server, user = fresh_site.catalog(), fresh_site.user("leaver")
        with service(server) as (_app, url, _):
            kept = Kept(url, rawtls.client_context(fresh_site.proxy_of(user, "p"), server))
            assert kept.get()[0] == 200
            fresh_site.revoke(user)
            assert kept.get()[0] == 403

    def test_a_crl_going_stale_refuses(self, fresh_site: SiteHome) -> None:
        server = fresh_site.catalog()
        with service(server) as (_app, url, _):
            kept = Kept(url, rawtls.client_context(fresh_site.gateway(), server))
            fresh_site.put_crl(ends=datetime.now(UTC) + timedelta(seconds=1.5))
            assert kept.get()[0] == 200
            time.sleep(2.1)  # CRL times are whole seconds
            status, problem = kept.get()
            assert (status, "CRL" in problem["detail"]) == (403, True)

    def test_a_renewed_server_certificate_is_taken_up(self, fresh_site: SiteHome) -> None:
        server, client = fresh_site.catalog(), fresh_site.gateway()
        context = rawtls.client_context(client, server)
        with service(server) as (_app, url, _):
            before = Kept(url, context)
            old = before.socket.getpeercert()
            in_two_months = datetime.now(UTC) + timedelta(days=61)
            mine = Credential(server.cert, server.key)
            assert ca.renew_due(fresh_site.home, [mine], now=in_two_months) == (mine,)
            # The new one begins in two months: the server keeps the old one rather than break
            still = Kept(url, context)
            assert (still.socket.getpeercert(), still.get()[0]) == (old, 200)
            ca.issue_host(fresh_site.home, "catalog", dns=["localhost"], ips=["127.0.0.1"], out=server.cert.parent)
            after = Kept(url, context)
            assert after.socket.getpeercert()["serialNumber"] != old["serialNumber"]  # type: ignore[index]
            assert (before.get()[0], after.get()[0]) == (200, 200)

    def test_a_removed_ca_is_refused(self, fresh_site: SiteHome, guests: SiteHome) -> None:
        guest = guests.host("visitor")
        for path in guests.trust.glob("????????.*"):
            shutil.copy(path, fresh_site.trust)
        server = fresh_site.catalog()
        with service(server) as (_app, url, _):
            kept = Kept(url, rawtls.client_context(guest, server))
            assert kept.get()[1]["dn"] == "/O=Guests/OU=Hosts/CN=visitor"
            for path in guests.trust.glob("????????.*"):
                (fresh_site.trust / path.name).unlink()
            assert "unknown ca" in refusal(url, rawtls.client_context(guest, server))
            assert kept.get()[0] == 403


class TestOurClient:
    """What our side demands of a server."""

    def test_a_revoked_server(self, fresh_site: SiteHome) -> None:
        server, client = fresh_site.catalog(), fresh_site.gateway()
        with service(server, client) as (_app, url, [session]):
            assert session.json("GET", f"{url}/v1/whoami")["account"] == "dgis"
            fresh_site.revoke(server)
            with pytest.raises(Unanswered, match="its certificate is refused: the certificate is revoked"):
                session.json("GET", f"{url}/v1/whoami")

    def test_a_server_without_crl(self, fresh_site: SiteHome) -> None:
        """The server trusts another directory, so only the client's check can refuse."""
        shutil.copytree(fresh_site.trust, fresh_site.home / "bare-trust")
        client = fresh_site.gateway().model_copy(update={"trust": fresh_site.home / "bare-trust"})
        for path in client.trust.glob("*.r0"):
            path.unlink()
        with service(fresh_site.catalog(), client) as (_app, url, [session]), pytest.raises(Unanswered, match="no CRL"):
            session.json("GET", f"{url}/v1/whoami")

    def test_a_server_of_another_ca(self, site: SiteHome, other_site: SiteHome) -> None:
        refused = pytest.raises(Unanswered, match="its certificate is refused")
        with service(other_site.catalog(), site.gateway()) as (_app, url, [session]), refused:
            session.json("GET", f"{url}/v1/whoami")

    def test_a_server_by_a_wrong_name(self, site: SiteHome) -> None:
        made = ca.issue_host(site.home, "elsewhere", dns=["elsewhere.example.org"], out=site.home / "identities")
        refused = pytest.raises(Unanswered, match="IP address mismatch|not valid for '127.0.0.1'")
        with service(site.identity(made), site.gateway()) as (_app, url, [session]), refused:
            session.json("GET", f"{url}/v1/whoami")

    def test_trust_is_exactly_the_grids(self, site: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment's bundles beat session.verify in requests, unless it is told not to look."""
        bundle = str(site.trust / "ca.pem")
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, "/etc/ssl/certs/ca-certificates.crt")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        with service(site.catalog(), site.gateway()) as (_app, url, [session]):
            assert session.json("GET", f"{url}/v1/whoami")["account"] == "dgis"
            assert session.cert_store_stats() == {"x509": 2, "x509_ca": 2, "crl": 2}
            subjects = {str(each["subject"]) for each in session._tls.context.get_ca_certs()}
        assert len(subjects) == open(bundle).read().count("BEGIN CERTIFICATE") == 2  # noqa: SIM115

    def test_renewal_and_crls_reach_a_running_session(self, fresh_site: SiteHome) -> None:
        client = fresh_site.gateway()
        with service(fresh_site.catalog(), client) as (_app, url, [session]):
            first = session.json("GET", f"{url}/v1/whoami")["serial"]
            ca.issue_host(fresh_site.home, "dgis", ips=["127.0.0.1"], roles=["gateway"], out=client.cert.parent)
            second = session.json("GET", f"{url}/v1/whoami")["serial"]
        assert first != second

    def test_a_half_written_renewal_changes_nothing(self, fresh_site: SiteHome) -> None:
        client = fresh_site.gateway()
        with service(fresh_site.catalog(), client) as (_app, url, [session]):
            shutil.copy(fresh_site.host("other").cert, client.cert)  # does not match the key
            assert session.json("GET", f"{url}/v1/whoami")["account"] == "dgis"


def test_a_context_never_loads_the_systems_cas(site: SiteHome) -> None:
    made = client_context(site.gateway())
    assert made.context.verify_mode == ssl.CERT_REQUIRED
    assert made.context.check_hostname
    assert made.context.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN == ssl.VERIFY_CRL_CHECK_CHAIN
    assert made.context.cert_store_stats()["x509_ca"] == 2


def test_plain_text_gets_no_http(site: SiteHome) -> None:
    with service(site.catalog()) as (_app, url, _), rawtls.plain_connect(url) as plain:
        plain.settimeout(0.5)
        plain.sendall(b"GET /v1/whoami HTTP/1.1\r\nhost: x\r\n\r\n")
        with suppress(ConnectionResetError, TimeoutError):
            assert b"HTTP/" not in plain.recv(4096)
