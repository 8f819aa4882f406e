"""Permits: what the catalog signs so that a named peer may touch named objects at one SE for a few minutes.

A compact JWS (RFC 7515, ES256) whose ``x5c`` header carries the signer's certificate chain. The SE judges that chain
against its own trust, so revoking the signer revokes its permits.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.credential import Credential
from certs.dn import DN
from certs.errors import CredentialError, PermitError, TrustError
from certs.trust import Trust, VerifiedChain

LONGEST = timedelta(seconds=600)
MOST_KEYS = 400  # a permit travels in one HTTP header line of at most 64 KiB
_SKEW = timedelta(seconds=60)
_TYPE = "dgis-permit+jwt"
_ALGORITHM = "ES256"
_CLAIMS = ["sub", "aud", "keys", "verbs", "iat", "exp"]
_MOST_CERTS = 4


@dataclass(frozen=True, slots=True)
class Permit:
    """Who (``dn``) may do what (``verbs``) with which objects (``keys``) at which SE until when."""

    dn: DN
    se: str
    keys: tuple[str, ...]
    verbs: tuple[str, ...]
    expires: datetime

    def __post_init__(self) -> None:
        if not self.se or not 1 <= len(self.keys) <= MOST_KEYS or not self.verbs:
            raise PermitError(f"a permit names one SE, 1 to {MOST_KEYS} object keys and at least one verb")
        if self.expires.tzinfo is None:
            raise PermitError("a permit's end carries its time zone")

    def allows(self, dn: DN, verb: str, key: str) -> bool:
        """Say whether this permit lets a peer do one thing with one object."""
        return dn == self.dn and verb in self.verbs and key in self.keys


def sign(permit: Permit, credential: Credential, *, now: datetime | None = None) -> str:
    """Sign a permit as a service with a P-256 key; raises PermitError when it lasts too long, CredentialError."""
    issued = now or datetime.now(UTC)
    if not issued < permit.expires <= issued + LONGEST:
        raise PermitError(f"a permit lasts at most {LONGEST.seconds} s and ends in the future")
    key = credential.private_key()
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{credential.key}: permits are signed with a P-256 host key")
    claims = {
        "sub": str(permit.dn),
        "aud": permit.se,
        "keys": list(permit.keys),
        "verbs": list(permit.verbs),
        "iat": int(issued.timestamp()),
        "exp": int(permit.expires.timestamp()),
    }
    chain = [base64.b64encode(cert.public_bytes(Encoding.DER)).decode() for cert in credential.chain()]
    return jwt.encode(claims, key, algorithm=_ALGORITHM, headers={"typ": _TYPE, "x5c": chain})


def verify(
    token: str,
    trust: Trust,
    *,
    signer_allowed: Callable[[DN], bool],
    se: str,
    now: datetime | None = None,
) -> Permit:
    """Check a permit offline and return it.

    Raises PermitError for another SE, a wrong time, a signature that does not hold, or a signer that is not trusted,
    revoked, a proxy, or not ``signer_allowed`` (the gridmap's role catalog).
    """
    moment = now or datetime.now(UTC)
    signer = _signer(token, trust)
    if not signer_allowed(signer.dn):
        raise PermitError(f"{signer.dn} may not sign permits here; it needs the role catalog in this gridmap")
    claims = _claims(token, signer, se)
    _check_times(claims, moment)
    return _permit(claims)


def _signer(token: str, trust: Trust) -> VerifiedChain:
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise PermitError("the permit is no compact JWS") from error
    if header.get("alg") != _ALGORITHM or header.get("typ") != _TYPE:
        raise PermitError(f"a permit is a JWS of type {_TYPE} signed with {_ALGORITHM}, nothing else")
    try:
        signer = trust.judge(_chain_pem(header.get("x5c")), purpose="client")
    except TrustError as error:
        raise PermitError(f"the permit's signer is not trusted: {error}") from error
    if signer.proxied:
        raise PermitError("a permit is signed by a service's own certificate, not by a proxy")
    return signer


def _chain_pem(x5c: object) -> bytes:
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= _MOST_CERTS:
        raise PermitError("the permit carries no certificate chain (x5c)")
    try:
        ders = [base64.b64decode(str(each), validate=True) for each in x5c]
        return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)
    except ValueError as error:
        raise PermitError("the permit's certificate chain (x5c) cannot be read") from error


def _claims(token: str, signer: VerifiedChain, se: str) -> dict[str, object]:
    key = signer.certs[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PermitError("the permit's signer has no P-256 key")
    # Times are checked by the caller's clock, below
    options = {"require": _CLAIMS, "verify_exp": False, "verify_iat": False, "verify_aud": True}
    try:
        return dict(jwt.decode(token, key, algorithms=[_ALGORITHM], audience=se, options=options))  # type: ignore[arg-type]
    except jwt.InvalidAudienceError as error:
        raise PermitError(f"the permit is for another SE, not for {se}") from error
    except jwt.MissingRequiredClaimError as error:
        raise PermitError(f"the permit lacks its {error.claim}") from error
    except (jwt.PyJWTError, ValueError) as error:
        raise PermitError("the permit's signature does not hold") from error


def _check_times(claims: dict[str, object], moment: datetime) -> None:
    issued, ends = _time(claims, "iat"), _time(claims, "exp")
    if ends - issued > LONGEST:
        raise PermitError(f"the permit lasts longer than {LONGEST.seconds} s")
    if issued > moment + _SKEW:
        raise PermitError("the permit is from the future; compare the clocks")
    if ends <= moment:
        raise PermitError(f"the permit ran out at {ends:%H:%M:%S} UTC; ask the catalog for a new one")


def _time(claims: dict[str, object], name: str) -> datetime:
    value = claims[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise PermitError(f"the permit's {name} is no time")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise PermitError(f"the permit's {name} is no time") from error


def _permit(claims: dict[str, object]) -> Permit:
    try:
        dn = DN.parse(str(claims["sub"]))
    except CredentialError as error:
        raise PermitError("the permit names nobody") from error
    expires = _time(claims, "exp")
    return Permit(dn, str(claims["aud"]), _texts(claims, "keys"), _texts(claims, "verbs"), expires)


def _texts(claims: dict[str, object], name: str) -> tuple[str, ...]:
    value = claims[name]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise PermitError(f"the permit's {name} is no list of names")
    return tuple(value)
