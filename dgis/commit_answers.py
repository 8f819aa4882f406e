"""Reports that this node waits for as storage commitment SCU, when they come to its receivers (PS3.4 J.3.3).

    <spool>/commitment/asked/<key>        somebody on this machine has asked a peer and waits
    <spool>/commitment/asked/<key>.json   the report, put there by the receiver that got it

A key is a digest of the Transaction UID. Reports that nobody waits for are refused, so strangers cannot fill a disk.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dgis.disk import replace_file, spool_error

_FORGOTTEN_AFTER = 7 * 86400.0


class Answered(BaseModel):
    """What the peer reported: (SOP class UID, SOP instance UID), of the failed ones with the failure reason."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    committed: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str, int], ...]


class CommitAnswers:
    """One directory, shared by processes. Raises SpoolError for the disk."""

    def __init__(self, spool_root: Path) -> None:
        """Make the directory."""
        self._root = spool_root / "commitment" / "asked"
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise spool_error(error, "cannot make the commitment directory") from error

    def expect(self, transaction_uid: str) -> None:
        """Let the report of this transaction in; forget what nobody came for."""
        try:
            for path in self._root.iterdir():
                if path.stat().st_mtime < time.time() - _FORGOTTEN_AFTER:
                    path.unlink(missing_ok=True)
            self._path(transaction_uid).touch()
        except OSError as error:
            raise spool_error(error, "cannot wait for a report") from error

    def put(self, transaction_uid: str, answered: Answered) -> bool:
        """Keep a report; False when nobody waits for it."""
        path = self._path(transaction_uid)
        if not path.exists():
            return False
        try:
            replace_file(path.with_suffix(".json"), answered.model_dump_json().encode())
        except OSError as error:
            raise spool_error(error, "cannot keep a report") from error
        return True

    def take(self, transaction_uid: str) -> Answered | None:
        """Return the report if it has come."""
        try:
            return Answered.model_validate_json(self._path(transaction_uid).with_suffix(".json").read_bytes())
        except (OSError, ValidationError):
            return None

    def forget(self, transaction_uid: str) -> None:
        """Wait no longer."""
        path = self._path(transaction_uid)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)

    def _path(self, transaction_uid: str) -> Path:
        return self._root / hashlib.sha256(transaction_uid.encode("utf-8", "replace")).hexdigest()
