"""Delegation at the accepting side, and connections between ends that show proxies."""

from __future__ import annotations

import ssl

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import CredentialError
from certs.proxy import Delegation
from certs.tls import delegated_context, dn_of
from certs.trust import Trust, VerifiedChain
from tests.helpers.pki import SiteHome

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
INDEPENDENT = bytes.fromhex("300c300a06082b06010505071502")


def chain(site: SiteHome, identity: IdentityConfig) -> VerifiedChain:
    return Trust(site.trust).judge(identity.cert.read_bytes())


def delegated(site: SiteHome, identity: IdentityConfig) -> bytes:
    delegation = Delegation(KEY)
    return delegation.accept(site.delegate(identity, delegation.request), chain(site, identity))


def test_what_was_signed_is_a_proxy_of_the_peer_with_our_key(site: SiteHome) -> None:
    identity = site.gateway()
    pem = delegated(site, identity)
    judged = Trust(site.trust).judge(pem[pem.index(b"-----BEGIN CERT") :])
    assert judged.proxied and judged.dn == Credential(identity.cert, identity.key).dn()
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, rsa.RSAPrivateKey) and key.private_numbers() == KEY.private_numbers()


def test_a_proxy_may_delegate_further(site: SiteHome) -> None:
    proxy = site.proxy_of(site.gateway(), "delegating-proxy")
    assert Trust(site.trust).judge(delegated(site, proxy)).proxies == 2


def test_what_is_no_proxy_of_the_peer_for_our_key_is_refused(site: SiteHome) -> None:
    me, other, delegation = site.gateway(), site.operator(), Delegation(KEY)
    mine = chain(site, me)
    wrong = {
        "somebody else's": site.delegate(other, delegation.request),
        "another key": site.delegate(me, Delegation().request),
        "all rights": site.delegate(me, delegation.request, info=INDEPENDENT),
        "no proxy": mine.certs[0].public_bytes(serialization.Encoding.DER),
        "nothing": b"",
        "too long": b"\x30" * 200_000,
    }
    for words, signed in wrong.items():
        with pytest.raises(CredentialError, match=words if words != "somebody else's" else "not signed|somebody"):
            delegation.accept(signed, mine)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=300), cut=st.integers(0, 700))
def test_any_bytes_are_an_error_of_ours(site: SiteHome, junk: bytes, cut: int) -> None:
    delegation, me = Delegation(KEY), site.gateway()
    signed = site.delegate(me, delegation.request)
    for text in (junk, signed[: min(cut, len(signed) - 1)], signed + b"0" + junk):
        with pytest.raises(CredentialError):
            delegation.accept(text, chain(site, me))


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory; raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)
    done = [False, False]
    for turn in range(20):
        at = (turn + 1) % 2
        try:
            ends[at].do_handshake()
            done[at] = True
        except ssl.SSLWantReadError:
            continue
        if all(done):
            return ends
    raise AssertionError("the handshake does not end")


def test_ends_with_proxies_know_each_other(site: SiteHome, other_site: SiteHome) -> None:
    trust = Trust(site.trust)
    me, other = site.gateway(), site.operator()
    ends = meet(
        delegated_context(delegated(site, me), "server", trust),
        delegated_context(delegated(site, other), "client", trust),
    )
    names = [str(dn_of(end, trust)) for end in ends]
    assert names == [str(Credential(other.cert, other.key).dn()), str(Credential(me.cert, me.key).dn())]
    stranger = other_site.gateway()
    with pytest.raises(ssl.SSLError):
        meet(
            delegated_context(delegated(site, me), "server", trust),
            delegated_context(delegated(other_site, stranger), "client", trust),
        )


def test_a_revoked_partys_proxy_is_refused(fresh_site: SiteHome) -> None:
    me, lost = fresh_site.gateway(), fresh_site.host("lost")
    mine, theirs = delegated(fresh_site, me), delegated(fresh_site, lost)
    fresh_site.revoke(lost)
    trust = Trust(fresh_site.trust)
    for pems in ((mine, theirs), (theirs, mine)):
        with pytest.raises(ssl.SSLError):
            meet(delegated_context(pems[0], "server", trust), delegated_context(pems[1], "client", trust))


def test_a_broken_credential_says_so(site: SiteHome) -> None:
    with pytest.raises(CredentialError):
        delegated_context(b"nonsense", "server", Trust(site.trust))
