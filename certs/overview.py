"""What a person asks of a site's certificates: whose, until when, still good?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509

from certs.ca import issued_certificates
from certs.credential import Credential
from certs.dn import DN
from certs.errors import CredentialError

Status = Literal["valid", "due", "expired", "revoked", "not yet valid"]


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One certificate; ``due`` means that two thirds of its life are over and it should be renewed."""

    dn: str
    profile: str
    serial: str
    not_before: datetime
    not_after: datetime
    status: Status

    def days_left(self, now: datetime) -> int:
        """Return whole days until it ends, negative once it has."""
        return (self.not_after - now).days


@dataclass(frozen=True, slots=True)
class CrlRow:
    """One CRL of a trust directory."""

    issuer: str
    number: int
    revoked: int
    this_update: datetime
    next_update: datetime
    status: Literal["current", "stale"]


def of_site(home: Path, *, now: datetime | None = None) -> tuple[CertificateRow, ...]:
    """Return every certificate that a site's CA has issued, the CAs first; raises CaError when there is no CA."""
    moment = now or datetime.now(UTC)
    rows = [
        CertificateRow(
            dn=each.dn,
            profile=each.profile,
            serial=f"{each.serial:x}",
            not_before=each.not_before,
            not_after=each.not_after,
            status="revoked" if each.revoked_at else _status(each.not_before, each.not_after, moment),
        )
        for each in issued_certificates(home)
    ]
    return tuple(sorted(rows, key=lambda row: row.profile != "ca"))


def of_file(path: Path, *, now: datetime | None = None) -> tuple[CertificateRow, ...]:
    """Return the certificates in a PEM file, as they stand there; raises CredentialError."""
    moment = now or datetime.now(UTC)
    return tuple(
        CertificateRow(
            dn=str(DN.from_name(cert.subject)),
            profile="ca" if _is_ca(cert) else "file",
            serial=f"{cert.serial_number:x}",
            not_before=cert.not_valid_before_utc,
            not_after=cert.not_valid_after_utc,
            status=_status(cert.not_valid_before_utc, cert.not_valid_after_utc, moment),
        )
        for cert in Credential(path, path).chain()
    )


def crls(trust: Path, *, now: datetime | None = None) -> tuple[CrlRow, ...]:
    """Return the CRLs of a trust directory; raises CredentialError for one that cannot be read."""
    moment = now or datetime.now(UTC)
    return tuple(_crl_row(path, moment) for path in sorted(trust.glob("????????.r[0-9]")))


def _crl_row(path: Path, moment: datetime) -> CrlRow:
    try:
        crl = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CredentialError(f"{path}: not a PEM CRL") from error
    ends = crl.next_update_utc or crl.last_update_utc
    numbers = [each.value.crl_number for each in crl.extensions if isinstance(each.value, x509.CRLNumber)]
    return CrlRow(
        issuer=str(DN.from_name(crl.issuer)),
        number=numbers[0] if numbers else 0,
        revoked=len(crl),
        this_update=crl.last_update_utc,
        next_update=ends,
        status="current" if ends > moment else "stale",
    )


def _status(begins: datetime, ends: datetime, moment: datetime) -> Status:
    if moment > ends:
        return "expired"
    if moment < begins:
        return "not yet valid"
    return "due" if moment >= begins + (ends - begins) * 2 / 3 else "valid"


def _is_ca(cert: x509.Certificate) -> bool:
    return any(isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in cert.extensions)
