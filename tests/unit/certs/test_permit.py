from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certs.credential import Credential
from certs.dn import DN
from certs.errors import CredentialError, PermitError
from certs.gridmap import Gridmap
from certs.permit import Permit, sign, verify
from certs.trust import Trust
from tests.helpers.pki import SiteHome

NOW = datetime.now(UTC).replace(microsecond=0)
KEY = "v1/ab/cd/" + "ab" * 32
HOLDER = DN.parse("/O=Test Grid/OU=Hosts/CN=se2")
PERMIT = Permit(HOLDER, "se1", (KEY,), ("read",), NOW + timedelta(minutes=5))


def signer(site: SiteHome) -> Credential:
    identity = site.catalog()
    return Credential(identity.cert, identity.key)


def check(site: SiteHome, token: str, *, se: str = "se1", now: datetime = NOW) -> Permit:
    gridmap = Gridmap(site.gridmap)

    def is_catalog(dn: DN) -> bool:
        entry = gridmap.lookup(dn)
        return entry is not None and "catalog" in entry.roles

    return verify(token, Trust(site.trust), signer_allowed=is_catalog, se=se, now=now)


def forged(token: str, part: int, change: Callable[[dict[str, object]], None]) -> str:
    """Change a decoded part of a JWS and put it back without signing again."""
    parts = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(parts[part] + "=="))
    change(content)
    parts[part] = base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
    return ".".join(parts)


def test_a_permit_says_again_what_was_signed(site: SiteHome) -> None:
    permit = check(site, sign(PERMIT, signer(site), now=NOW))
    assert permit == PERMIT
    assert permit.allows(HOLDER, "read", KEY)
    assert not permit.allows(HOLDER, "delete", KEY)
    assert not permit.allows(HOLDER, "read", KEY.replace("b", "c"))
    assert not permit.allows(DN.parse("/O=Test Grid/OU=Hosts/CN=se3"), "read", KEY)


def test_the_most_keys_fit_into_a_header_line(site: SiteHome) -> None:
    many = replace(PERMIT, keys=tuple(f"v1/ab/cd/{n:064x}" for n in range(400)))
    token = sign(many, signer(site), now=NOW)
    assert len(token) < 60_000
    assert check(site, token) == many
    with pytest.raises(PermitError, match="1 to 400"):
        replace(PERMIT, keys=(*many.keys, KEY))


def test_another_se(site: SiteHome) -> None:
    with pytest.raises(PermitError, match="for another SE, not for se2"):
        check(site, sign(PERMIT, signer(site), now=NOW), se="se2")


def test_run_out(site: SiteHome) -> None:
    token = sign(PERMIT, signer(site), now=NOW)
    assert check(site, token, now=NOW + timedelta(seconds=299)) == PERMIT
    with pytest.raises(PermitError, match="ran out"):
        check(site, token, now=NOW + timedelta(seconds=300))


@pytest.mark.parametrize("seconds", [601, 0, -1])
def test_nobody_signs_for_longer_or_for_the_past(site: SiteHome, seconds: int) -> None:
    with pytest.raises(PermitError, match="at most 600 s"):
        sign(replace(PERMIT, expires=NOW + timedelta(seconds=seconds)), signer(site), now=NOW)


def encode(site: SiteHome, **changes: object) -> str:
    """Sign whatever claims with the catalog's key, as a faulty or malicious catalog would."""
    mine = signer(site)
    header = jwt.get_unverified_header(sign(PERMIT, mine, now=NOW))
    claims: dict[str, object] = {
        "sub": str(HOLDER), "aud": "se1", "keys": [KEY], "verbs": ["read"],
        "iat": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 300,
    }  # fmt: skip
    claims |= changes
    kept = {name: value for name, value in claims.items() if value is not None}
    key = mine.private_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return jwt.encode(kept, key, algorithm="ES256", headers={"typ": header["typ"], "x5c": header["x5c"]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exp": int(NOW.timestamp()) + 601}, "longer than 600 s"),
        ({"iat": int(NOW.timestamp()) + 120, "exp": int(NOW.timestamp()) + 300}, "from the future"),
        ({"exp": 10**18}, "no time|longer"),
        ({"exp": "soon"}, "no time|signature"),
        ({"sub": None}, "lacks its sub"),
        ({"exp": None}, "lacks its exp"),
        ({"aud": None}, "lacks its aud|another SE"),
        ({"sub": "nobody"}, "names nobody"),
        ({"keys": KEY}, "keys is no list"),
        ({"keys": []}, "1 to 400"),
        ({"verbs": [1]}, "verbs is no list"),
    ],
)
def test_claims_that_make_no_sense(site: SiteHome, changes: dict[str, object], words: str) -> None:
    assert check(site, encode(site)) == PERMIT
    with pytest.raises(PermitError, match=words):
        check(site, encode(site, **changes))


def test_tampered(site: SiteHome) -> None:
    token = sign(PERMIT, signer(site), now=NOW)
    more = forged(token, 1, lambda claims: claims.update(verbs=["read", "delete"]))
    with pytest.raises(PermitError, match="signature does not hold"):
        check(site, more)
    with pytest.raises(PermitError, match="signature does not hold"):
        check(site, token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB"))


def test_algorithm_none_and_others(site: SiteHome) -> None:
    token = sign(PERMIT, signer(site), now=NOW)
    without = forged(token, 0, lambda header: header.update(alg="none")).rsplit(".", 1)[0] + "."
    for bad in (without, forged(token, 0, lambda header: header.update(alg="HS256"))):
        with pytest.raises(PermitError, match="signed with ES256, nothing else"):
            check(site, bad)
    for junk in ("", "x", "a.b.c", token + ".x", "\xff"):
        with pytest.raises(PermitError):
            check(site, junk)


def test_a_signer_without_the_role(site: SiteHome) -> None:
    storage = site.storage()
    with pytest.raises(PermitError, match="CN=se1 may not sign permits here"):
        check(site, sign(PERMIT, Credential(storage.cert, storage.key), now=NOW))


def test_anothers_chain_over_ones_own_signature(site: SiteHome) -> None:
    """The chain is the catalog's, the signature somebody else's."""
    storage = site.storage()
    stolen = jwt.get_unverified_header(sign(PERMIT, signer(site), now=NOW))["x5c"]
    token = sign(PERMIT, Credential(storage.cert, storage.key), now=NOW)
    key = Credential(storage.cert, storage.key).private_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    claims = jwt.decode(token, options={"verify_signature": False})
    bad = jwt.encode(claims, key, algorithm="ES256", headers={"typ": "dgis-permit+jwt", "x5c": stolen})
    with pytest.raises(PermitError, match="signature does not hold"):
        check(site, bad)


def test_another_cas_catalog(site: SiteHome, other_site: SiteHome) -> None:
    with pytest.raises(PermitError, match="signer is not trusted"):
        check(site, sign(PERMIT, signer(other_site), now=NOW))


def test_a_revoked_signer(fresh_site: SiteHome) -> None:
    token = sign(PERMIT, signer(fresh_site), now=NOW)
    assert check(fresh_site, token) == PERMIT
    fresh_site.revoke(fresh_site.catalog())
    with pytest.raises(PermitError, match="signer is not trusted: .*revoked"):
        check(fresh_site, token)


def test_a_proxy_signs_nothing(site: SiteHome) -> None:
    proxy = site.proxy_of(site.catalog(), "catalog.proxy")
    with pytest.raises(PermitError, match="not by a proxy"):
        check(site, sign(PERMIT, Credential(proxy.cert, proxy.key), now=NOW))


def test_users_keys_are_no_signers(site: SiteHome) -> None:
    user = site.user("joe", "user")
    with pytest.raises(CredentialError, match="P-256"):
        sign(PERMIT, Credential(user.cert, user.key), now=NOW)
