"""The alarm long before: a service whose CRL or certificate runs out refuses everybody, so it says so in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, Gauge

from certs.credential import Credential
from certs.errors import CredentialError
from certs.log import get_log
from certs.trust import Trust

log = get_log()

# A CRL lasts 36 h and is re-issued hourly: less than this left means that twelve hours of re-issuing were missed
CRL_ALARM = timedelta(hours=24)


class ExpiryWatch:
    """Two gauges, and a warning in the log on every ``look`` while something needs renewing."""

    def __init__(self, trust: Trust, credential: Credential, registry: CollectorRegistry) -> None:
        self._trust = trust
        self._credential = credential
        crl = Gauge("dgis_crl_expiry_seconds", "POSIX time at which the first CRL runs out", registry=registry)
        own = Gauge("dgis_certificate_expiry_seconds", "POSIX time at which our certificate ends", registry=registry)
        crl.set_function(self._crl_end)
        own.set_function(self._own_end)

    def look(self, *, now: datetime | None = None) -> tuple[str, ...]:
        """Log what runs out soon and return it: CRLs with less than a day left, a certificate in its last third."""
        moment = now or datetime.now(UTC)
        self._trust.reload_if_changed()
        found = [*self._trust.problems(now=moment)]
        if not found and self._trust.crl_expiry() - moment < CRL_ALARM:
            found.append(f"a CRL runs out at {self._trust.crl_expiry():%Y-%m-%d %H:%M} UTC; is its CA publishing?")
        found += self._own_trouble(moment)
        for each in found:
            log.warning("expiry_alarm", reason=each)
        return tuple(found)

    def _own_trouble(self, moment: datetime) -> list[str]:
        try:
            cert = self._credential.chain()[0]
        except CredentialError as error:
            return [str(error)]
        life = cert.not_valid_after_utc - cert.not_valid_before_utc
        if moment < cert.not_valid_before_utc + life * 2 / 3:
            return []
        return [f"{self._credential.cert} ends at {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC and was not renewed"]

    def _crl_end(self) -> float:
        self._trust.reload_if_changed()
        return self._trust.crl_expiry().timestamp()

    def _own_end(self) -> float:
        try:
            return self._credential.not_after().timestamp()
        except CredentialError:
            return 0.0
