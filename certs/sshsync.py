"""Keeping an sshd's files in step with certificates and CRLs: who may log in, and which keys are revoked.

OpenSSH reads both files at every login, so what is written here holds from the next one on. Each line also ends with
the CRL it was judged by: when nobody syncs any more, nobody gets in any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certs.dn import DN
from certs.errors import CredentialError, TrustError
from certs.files import write_atomically
from certs.log import get_log
from certs.ssh import authorized_key, lines, revoked_key
from certs.sshpeers import Found, SshPeers

# sshd refuses an authorized_keys file that others may write; it reads both as the account or as root
_MODE = 0o644
WATCH_SECONDS = 20.0
_HEAD = "written by dgis-certs ssh sync; changes made here are lost"

log = get_log()


@dataclass(frozen=True, slots=True)
class Targets:
    """The files to write; without `revoked` only authorized_keys."""

    authorized: Path
    revoked: Path | None = None


@dataclass(frozen=True, slots=True)
class Synced:
    """What a run found: names let in, names refused with the reason, and which files it wrote anew."""

    admitted: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    written: tuple[Path, ...]


def sync(peers: SshPeers, targets: Targets) -> Synced:
    """Write the files from the certificates of `peers` as they are judged now; files that would not change stay.

    The revoked keys are written first, so that a reader between the two sees too few rights rather than too many.
    """
    peers.trust.reload_if_changed()
    admitted: dict[str, str] = {}
    refused: dict[str, str] = {}
    revoked: list[str] = []
    for found in peers.certificates():
        name = _name(found)
        try:
            chain = peers.judge_file(found)
            until = datetime.fromtimestamp(peers.trust.good_until(chain), UTC)
            admitted[authorized_key(found.certs[0], until=until)] = name
        except (TrustError, CredentialError) as error:
            refused[name] = str(error)
            if peers.trust.is_revoked(found.certs):
                revoked.append(revoked_key(found.certs[0]))
    written = [targets.revoked] if targets.revoked and _replaced(targets.revoked, revoked) else []
    written += [targets.authorized] if _replaced(targets.authorized, list(admitted)) else []
    return Synced(tuple(sorted(set(admitted.values()))), tuple(sorted(refused.items())), tuple(written))


def watch(
    peers: SshPeers,
    targets: Targets,
    *,
    stop: threading.Event,
    every: float = WATCH_SECONDS,
    told: Callable[[Synced], None],
) -> None:
    """Sync again and again until `stop`; `told` hears of every run that changed a file.

    A run that fails (a full disk, say) is logged and tried again; the files stay as they were.
    """
    while True:
        try:
            outcome = sync(peers, targets)
            if outcome.written:
                told(outcome)
        except OSError as error:
            log.error("ssh_sync_failed", file=str(error.filename or ""), reason=error.strerror or "")
        if stop.wait(every):
            return


def _replaced(path: Path, entries: list[str]) -> bool:
    data = lines(entries, head=_HEAD)
    try:
        if path.read_bytes() == data:
            return False
    except FileNotFoundError:
        pass
    write_atomically(path, data, mode=_MODE)
    return True


def _name(found: Found) -> str:
    return f"{DN.from_name(found.certs[0].subject)} ({found.path.name})"
