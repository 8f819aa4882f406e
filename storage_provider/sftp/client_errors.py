"""What an SFTP status means in the storage room's error tree."""

from __future__ import annotations

from storage_provider.errors import (
    Busy,
    Conflict,
    Corrupt,
    Denied,
    Faulty,
    NoSpace,
    NotFound,
    Refused,
    StorageError,
    Unreachable,
    Unsupported,
)
from storage_provider.sftp.client_replies import Status
from storage_provider.sftp.numbers import Code

_BY_WORD = {
    kind.problem_type: kind
    for kind in (Busy, Conflict, Corrupt, Denied, Faulty, NoSpace, NotFound, Refused, Unreachable, Unsupported)
}
# draft-ietf-secsh-filexfer-02 section 7. OpenSSH says FAILURE for everything else, a full disk included.
_BY_CODE: dict[int, type[StorageError]] = {
    Code.NO_SUCH_FILE: NotFound,
    Code.PERMISSION_DENIED: Denied,
    Code.BAD_MESSAGE: Refused,
    Code.NO_CONNECTION: Unreachable,
    Code.CONNECTION_LOST: Unreachable,
    Code.OP_UNSUPPORTED: Unsupported,
}
_MOST_TEXT = 200


class Failed(Exception):
    """A request was answered by a status that is not OK."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status

    @property
    def absent(self) -> bool:
        """Whether the status says that there is no such file."""
        return self.status.code == Code.NO_SUCH_FILE

    @property
    def vague(self) -> bool:
        """Whether the status says no more than that it failed."""
        return self.status.code == Code.FAILURE and _word(self.status) not in _BY_WORD

    def error(self, *, door: str, key: str = "") -> StorageError:
        """Return it as our own servers named it (`no-space: ...`), else by its code."""
        kind = _BY_WORD.get(_word(self.status)) or _BY_CODE.get(self.status.code, Faulty)
        text = "".join(each for each in self.status.message[:_MOST_TEXT] if each.isprintable())
        return kind(text.partition(": ")[2] or text or f"SFTP status {self.status.code}", door=door, key=key)


def _word(status: Status) -> str:
    return status.message.partition(":")[0]
