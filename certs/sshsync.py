"""Keeping an sshd's files in step with certificates and CRLs: who may log in, and which keys are revoked.

OpenSSH reads both files at every login, so what is written here holds from the next one on. Each line also ends with
the CRL it was judged by: when nobody syncs any more, nobody gets in any more. A trust directory that stays away longer
than a moment leaves authorized_keys empty.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]

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
    """What a run found: names let in, names refused with the reason, and which files it wrote anew.

    `gone`: a key that was let in before is not any more.
    """

    admitted: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    written: tuple[Path, ...]
    gone: bool


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
    gone = bool(_keys(_current(targets.authorized)) - _keys("\n".join(admitted)))
    written = [targets.revoked] if targets.revoked and _replaced(targets.revoked, revoked) else []
    written += [targets.authorized] if _replaced(targets.authorized, list(admitted)) else []
    return Synced(tuple(sorted(set(admitted.values()))), tuple(sorted(refused.items())), tuple(written), gone)


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
        except (OSError, CredentialError) as error:
            log.error("ssh_sync_failed", reason=str(error))
        if stop.wait(every):
            return


def end_sessions(pid_file: Path, account: str) -> int:
    """End the sessions of an account at the sshd of a pid file; returns how many. Raises OSError, CredentialError.

    sshd itself never looks again at a key that has logged in. Whoever may still come connects anew and goes on.
    """
    try:
        listener = psutil.Process(int(pid_file.read_text()))
        sessions = [each for each in listener.children() if _serves(each, account)]
    except (ValueError, psutil.Error) as error:
        raise CredentialError(f"{pid_file}: names no running sshd") from error
    ended = 0
    for session in sessions:
        with contextlib.suppress(psutil.NoSuchProcess):
            session.terminate()
            ended += 1
    return ended


def _serves(session: psutil.Process, account: str) -> bool:
    """Say whether a child of the listener is a session of this account: sshd's title says so, in every version."""
    try:
        title = " ".join(session.cmdline())
    except psutil.Error:
        return False
    return re.search(rf"sshd(-session)?: {re.escape(account)}[ @]", title) is not None


def _keys(text: str) -> set[str]:
    """Return the keys of authorized_keys lines."""
    return set(re.findall(r"(?:^|\s)((?:ssh|ecdsa)-\S+ [A-Za-z0-9+/=]+)(?:\s|$)", text, re.MULTILINE))


def _current(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _replaced(path: Path, entries: list[str]) -> bool:
    data = lines(entries, head=_HEAD)
    if path.exists() and path.read_bytes() == data:
        return False
    write_atomically(path, data, mode=_MODE)
    return True


def _name(found: Found) -> str:
    return f"{DN.from_name(found.certs[0].subject)} ({found.path.name})"
