"""The security layer between two ends of this process, with real certificates; and the data channel's credential."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from certs.gridmap import Gridmap
from certs.tls import client_context, peer_of, server_context
from storage_provider.gridftp import dcsc
from storage_provider.gridftp.gss import MOST_TOKEN_BYTES, Gss, GssError
from storage_provider.gridftp.replies import ReplyError
from tests.helpers.pki import SiteHome, other_site, site

__all__ = ["other_site", "site"]


def pair(server_site: SiteHome, client_site: SiteHome, host: str = "127.0.0.1") -> tuple[Gss, Gss]:
    server = Gss(server_context(server_site.storage()).context, server_side=True)
    client = Gss(client_context(client_site.gateway()).context, server_side=False, host=host)
    return server, client


def shake(server: Gss, client: Gss) -> None:
    token = client.step()
    for _ in range(10):
        if server.established and client.established:
            return
        answer = server.step(token)
        token = client.step(answer) if answer else b""
    raise AssertionError("the handshake does not end")


def test_both_ends_talk_and_know_each_other(site: SiteHome) -> None:
    server, client = pair(site, site)
    shake(server, client)
    for size in (1, 100, 40_000):
        assert server.unwrap(client.wrap(b"c" * size)) == b"c" * size
        assert client.unwrap(server.wrap(b"s" * size)) == b"s" * size
    context = server_context(site.storage())
    peer = peer_of(server.tls, Gridmap(site.gridmap), context.trust)
    assert "gateway" in peer.roles


def test_the_wrong_host_and_a_foreign_authority_are_refused(site: SiteHome, other_site: SiteHome) -> None:
    server, client = pair(site, site, host="example.org")
    with pytest.raises(GssError) as caught:
        shake(server, client)
    assert isinstance(caught.value.cause, ssl.SSLCertVerificationError)
    assert caught.value.alert
    server, client = pair(site, other_site)
    with pytest.raises(GssError):
        shake(server, client)


@given(st.binary(min_size=1, max_size=200))
def test_any_token_is_an_error_or_waits_for_more(junk: bytes) -> None:
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = Gss(plain, server_side=True)
    try:
        server.step(junk)
    except GssError:
        return
    assert not server.established


def test_a_token_that_was_changed_or_is_too_long_is_refused(site: SiteHome) -> None:
    server, client = pair(site, site)
    shake(server, client)
    token = bytearray(client.wrap(b"hello"))
    token[-1] ^= 1
    with pytest.raises(GssError):
        server.unwrap(bytes(token))
    with pytest.raises(GssError):
        client.unwrap(b"x" * (MOST_TOKEN_BYTES + 1))


def test_a_data_credential_has_the_form_that_gct_wants() -> None:
    made = dcsc.make()
    again = dcsc.parse(made.blob)
    assert dcsc.parse(again.blob) == again
    first, second = x509.load_pem_x509_certificates(made.pem)
    assert first == second and first.subject == first.issuer
    assert b"BEGIN RSA PRIVATE KEY" in made.pem
    key = serialization.load_pem_private_key(again.pem, password=None)
    assert key.public_key() == first.public_key()


@pytest.mark.parametrize("text", ["", "?", "aGVsbG8=", "A" * 200_000])
def test_other_data_credentials_are_refused(text: str) -> None:
    with pytest.raises(ReplyError):
        dcsc.parse(text)


def test_a_credential_without_a_key_or_with_two_is_refused() -> None:
    pem = dcsc.make().pem
    cert, key, _ = pem.partition(b"-----BEGIN RSA")
    for bad in (cert, pem + key + _, pem + b"-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----\n"):
        with pytest.raises(ReplyError):
            dcsc.parse(dcsc.DataCredential(bad).blob)
