"""The error tree of certs.

"The peer said no" (``Answered``) and "the peer did not answer" (``Unanswered``) never mix, and both know whether trying
again can help (``permanent``).
"""

from __future__ import annotations

# Statuses after which the same request may succeed later (RFC 9110, RFC 6585, RFC 4918); 507: space may be freed.
_TRANSIENT_STATUSES = frozenset({408, 425, 429})


class CertsError(Exception):
    """Root of every error that this package raises on purpose."""


class ConfigError(CertsError):
    """A setting is missing, unknown or wrong; the text names file, table and key."""

    def __init__(self, message: str, *, file: str = "", table: str = "", key: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.table = table
        self.key = key


class CredentialError(CertsError):
    """A certificate or private key cannot be used; the text says what to do about it."""


class CaError(CertsError):
    """The site CA cannot do what was asked (not initialised, unknown certificate, bad name)."""


class TrustError(CertsError):
    """A certificate chain is not trusted; ``reasons`` holds one sentence per finding."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class PermitError(CertsError):
    """A permit is refused: wrong signer, SE, time, form or signature."""


class ServiceError(CertsError):
    """A call failed; ``service`` is the host and port, ``permanent`` says whether trying again is pointless."""

    def __init__(self, message: str, *, service: str, permanent: bool) -> None:
        super().__init__(message)
        self.service = service
        self.permanent = permanent


class Unanswered(ServiceError):
    """The service did not answer: refused or lost connection, timeout, or TLS cut short. Never permanent."""

    def __init__(self, message: str, *, service: str) -> None:
        super().__init__(message, service=service, permanent=False)


class ServerRefused(Unanswered):
    """We refuse the server's certificate (revoked, expired, another name, no current CRL): what it says counts not."""


class Answered(ServiceError):
    """The service answered and said no; the fields are those of its RFC 9457 problem."""

    def __init__(self, *, service: str, http_status: int, problem_type: str, title: str, detail: str) -> None:
        said = f"{title}: {detail}" if detail else title
        permanent = 300 <= http_status < 500 and http_status not in _TRANSIENT_STATUSES
        super().__init__(f"{service} answered {http_status}: {said}", service=service, permanent=permanent)
        self.http_status = http_status
        self.problem_type = problem_type
        self.title = title
        self.detail = detail
