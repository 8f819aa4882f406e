"""A machine on which commands are run: this one, or one behind a command prefix such as ssh. Nowhere else is it done.

Arguments are never glued into shell text: over ssh they are quoted one by one, and the few helper scripts are constants
that take what varies as arguments.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dgis.deploy.errors import HostError, Unreachable

_SSH: Final = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_SSH_FAILED: Final = 255
# Staged beside its place, flushed, then renamed: a reader sees the old text or the new one, also after a power cut
_WRITE: Final = (
    'set -e; mkdir -p "$(dirname "$1")"; cat > "$1.new"; chmod "$2" "$1.new"; sync "$1.new"; mv "$1.new" "$1"'
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where commands run. `prefix` goes before each; `quoted` says that it hands them to a shell, as ssh does."""

    prefix: tuple[str, ...] = ()
    quoted: bool = False

    @classmethod
    def over_ssh(cls, target: str, *, port: int = 22) -> Machine:
        """A machine that this one reaches by ssh with a key (`user@host`)."""
        return cls((*_SSH, "-p", str(port), target, "--"), quoted=True)

    def run(self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0) -> str:
        """Run a command with `text` as its input; returns what it printed. Raises HostError with its own words."""
        done = self.attempt(argv, text=text, timeout=timeout)
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
            raise HostError(f"{_short(argv)}: {words[-2000:]}")
        return done.stdout

    def attempt(
        self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """The same, with any exit code. Raises HostError when it is missing, hangs, or ssh does not get through."""
        words = (shlex.join(argv),) if self.quoted else tuple(argv)
        try:
            done = subprocess.run(
                (*self.prefix, *words), input=text, capture_output=True, text=True, timeout=timeout, check=False
            )
        except FileNotFoundError as error:
            raise HostError(f"{error.filename} is not installed here") from error
        except subprocess.TimeoutExpired:
            raise HostError(f"{_short(argv)}: no answer within {timeout:g} s") from None
        if self.quoted and done.returncode == _SSH_FAILED:
            raise Unreachable(f"{self.prefix[-2]} does not answer: {done.stderr.strip()[-500:]}")
        if done.returncode == 127 and self.quoted:
            raise HostError(f"{argv[0]} is not installed on {self.prefix[-2]}")
        return done

    def read(self, path: str) -> str | None:
        """The text of a file, None when there is none."""
        done = self.attempt(("cat", path))
        return done.stdout if done.returncode == 0 else None

    def write(self, path: str, content: str, *, mode: str = "0644") -> None:
        """Replace a file by rename; its directory is made."""
        self.run(("sh", "-c", _WRITE, "sh", path, mode), text=content)

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        self.run(("rm", "-f", path))


def _short(argv: Sequence[str]) -> str:
    """A command as an error names it: helper scripts without their text."""
    if len(argv) > 2 and argv[1] == "-c":
        return shlex.join((argv[0], "...", *argv[3:5]))
    return shlex.join(argv[:6])
