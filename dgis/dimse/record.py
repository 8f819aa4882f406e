"""What one association did, for one log line at its end. Counts and names of AEs only: never a patient attribute."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from certs.log import get_log

log = get_log()


@dataclass(slots=True)
class AssociationRecord:
    """Counted by the handlers, written by `close`."""

    association_id: str
    calling: str
    called: str
    address: str
    certificate: str = ""  # subject DN of the caller, verified
    user: str = ""  # from user identity negotiation: a claim unless `user_checked`
    user_checked: bool = False
    tls: bool = False
    started: float = field(default_factory=time.monotonic)
    stored: int = 0
    stored_bytes: int = 0
    store_failures: int = 0
    echoes: int = 0
    queries: int = 0
    answers: int = 0
    retrieves: int = 0
    sent: int = 0
    send_failures: int = 0
    unauthorised: int = 0

    def close(self, how: str) -> None:
        """Write the line; zero counts are left out."""
        counts = {
            name: getattr(self, name)
            for name in (
                "stored", "stored_bytes", "store_failures", "echoes", "queries", "answers", "retrieves", "sent",
                "send_failures", "unauthorised",
            )
            if getattr(self, name)
        }  # fmt: skip
        log.info(
            "association ended",
            association=self.association_id,
            calling=self.calling,
            called=self.called,
            peer=self.address,
            how=how,
            seconds=round(time.monotonic() - self.started, 3),
            **self._identity(),
            **counts,
        )

    def _identity(self) -> dict[str, str | bool]:
        """Who it was, as far as is known; nothing for an AE title on a plain port."""
        facts: dict[str, str | bool] = {"tls": True} if self.tls else {}
        if self.certificate:
            facts["certificate"] = self.certificate
        if self.user:
            facts["user"], facts["user_checked"] = self.user, self.user_checked
        return facts
