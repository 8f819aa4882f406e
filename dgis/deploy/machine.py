"""A machine on which commands are run: this one, or one behind a command prefix such as ssh. Nowhere else is it done.

Arguments are never glued into shell text: over ssh they are quoted one by one, and the few helper scripts are constants
that take what varies as arguments.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from dgis.deploy.errors import HostError, Unreachable

_SSH: Final = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_SSH_FAILED, _NO_FILE = 255, 44
_READ: Final = f'[ -e "$1" ] || exit {_NO_FILE}; cat "$1"'
# Staged beside its place, flushed, then renamed: a reader sees the old text or the new one, also after a power cut.
# Under a name of its own, so that two writers never mix
_WRITE: Final = (
    'set -e; mkdir -p "$(dirname "$1")"; new="$(mktemp "$1.XXXXXXXX")"; trap \'rm -f "$new"\' EXIT; '
    'cat > "$new"; chmod "$2" "$new"; sync "$new"; mv "$new" "$1"'
)
_DEBIAN: Final = {
    "conntrack": "conntrack", "haproxy": "haproxy", "ip": "iproute2", "iptables-restore": "iptables",
    "iptables-save": "iptables", "nft": "nftables", "python3": "python3-minimal", "ssh": "openssh-client",
    "sysctl": "procps", "unshare": "util-linux", "virsh": "libvirt-clients", "xl": "xen-utils-common",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """Where commands run. `prefix` goes before each; `quoted` says that it hands them to a shell, as ssh does."""

    prefix: tuple[str, ...] = ()
    quoted: bool = False

    @classmethod
    def over_ssh(cls, target: str, *, port: int = 22) -> Machine:
        """A machine that this one reaches by ssh with a key (`user@host`)."""
        return cls((*_SSH, "-p", str(port), "--", target), quoted=True)

    @classmethod
    def behind(cls, prefix: Sequence[str]) -> Machine:
        """A machine behind a command of the operator's, like `ssh me@there` or `ip netns exec there`."""
        return cls(tuple(prefix), quoted=any(PurePosixPath(word).name == "ssh" for word in prefix))

    def run(self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0) -> str:
        """Run a command with `text` as its input; returns what it printed. Raises HostError with its own words."""
        done = self.attempt(argv, text=text, timeout=timeout)
        if done.returncode != 0:
            words = _one_line(done.stderr or done.stdout) or f"exit code {done.returncode}"
            raise HostError(f"{_short(argv)}: {words}")
        return done.stdout

    def attempt(
        self, argv: Sequence[str], *, text: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """The same, with any exit code. Raises HostError when it is missing, hangs, or ssh does not get through."""
        try:
            # Bytes both ways: a text stream would hide carriage returns, and end at what is no UTF-8
            done = subprocess.run(
                self._words(argv), input=text.encode(), capture_output=True, timeout=timeout, check=False
            )
        except FileNotFoundError as error:
            raise _missing(str(error.filename), "here") from error
        except PermissionError as error:
            raise HostError(f"{error.filename} may not be run by this user") from error
        except subprocess.TimeoutExpired:
            raise HostError(f"{_short(argv)}: no answer within {timeout:g} s") from None
        return self._ended(argv, done.returncode, done.stdout, done.stderr)

    def _words(self, argv: Sequence[str]) -> tuple[str, ...]:
        return (*self.prefix, *((shlex.join(argv),) if self.quoted else argv))

    def _ended(self, argv: Sequence[str], code: int, output: bytes, errors: bytes) -> subprocess.CompletedProcess[str]:
        """What a command said; raises HostError when it was not even run."""
        said, complaint = output.decode(errors="replace"), errors.decode(errors="replace")
        if self.quoted and code == _SSH_FAILED:
            raise Unreachable(f"{shlex.join(self.prefix)} does not get through: {_one_line(complaint)}")
        where = f"there ({shlex.join(self.prefix)})" if self.prefix else "here"
        if self.prefix and code != 0 and _says_missing(argv[0], complaint):
            raise _missing(argv[0], where)
        inside = _missing_in_script(argv, complaint) if code != 0 else None
        if inside is not None:
            raise _missing(inside, where)
        return subprocess.CompletedProcess(argv, code, said, complaint)

    @contextmanager
    def holding(self, argv: Sequence[str], *, timeout: float = 60.0) -> Iterator[None]:
        """Keep a command running while the block does: it says a line once it stands, and goes when its input ends,
        which happens however this process ends. Raises HostError when it ends without that line."""
        try:
            child = subprocess.Popen(
                self._words(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise _missing(str(error.filename), "here") from error
        except PermissionError as error:
            raise HostError(f"{error.filename} may not be run by this user") from error
        assert child.stdout is not None
        late = threading.Timer(timeout, child.kill)
        late.start()
        try:
            stands = child.stdout.readline()
            late.cancel()
            if not stands:
                output, errors = child.communicate()
                done = self._ended(argv, child.returncode, output, errors)
                raise HostError(f"{_short(argv)}: {_one_line(done.stderr) or f'no answer within {timeout:g} s'}")
            yield
        finally:
            late.cancel()
            _let_go(child)

    def read(self, path: str) -> str | None:
        """The text of a file, None when there is none. Raises HostError when it may not be read."""
        done = self.attempt(("sh", "-c", _READ, "sh", path))
        if done.returncode not in (0, _NO_FILE):
            raise HostError(f"{path} cannot be read: {_one_line(done.stderr)}")
        return done.stdout if done.returncode == 0 else None

    def digests(self, paths: Sequence[str]) -> dict[str, str]:
        """SHA-256 of each file that is there, by path; `digest_of` says what that of a text would be."""
        if not paths:
            return {}
        done = self.attempt(("sha256sum", "--zero", "--", *paths))
        if done.returncode not in (0, 1):  # 1: some are not there
            raise HostError(f"{_short(('sha256sum', *paths))}: {_one_line(done.stderr)}")
        return {line[66:]: line[:64] for line in done.stdout.split("\0") if line}

    def write(self, path: str, content: str, *, mode: str = "0644") -> None:
        """Replace a file by rename; its directory is made."""
        self.run(("sh", "-c", _WRITE, "sh", path, mode), text=content)


def digest_of(text: str) -> str:
    """What `Machine.digests` says of a file with this text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _one_line(said: str) -> str:
    """What a tool said, without the line breaks: an error of ours is one line."""
    return "; ".join(line.strip() for line in said.strip().splitlines() if line.strip())[-2000:]


def _let_go(child: subprocess.Popen[bytes]) -> None:
    """End a process by the end of its input, or by force."""
    try:
        child.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def _missing(program: str, where: str) -> HostError:
    package = _DEBIAN.get(PurePosixPath(program).name)
    return HostError(f"{program} is not installed {where}{f' (Debian: {package})' if package else ''}")


def _says_missing(program: str, complaint: str) -> bool:
    """How a shell (ssh), `ip netns exec` and `env` say that there is no such program."""
    name = re.escape(program)
    ways = rf'\b{name}: (command )?not found|exec of "{name}" failed: No such file|\b{name}\W{{1,3}} ?No such file'
    return re.search(ways, complaint) is not None


def _missing_in_script(argv: Sequence[str], complaint: str) -> str | None:
    """Which program a helper script found none of."""
    found = re.search(r"\b([a-z0-9-]+): not found", complaint) if "sh" in argv and "-c" in argv else None
    return found[1] if found is not None and found[1] in _DEBIAN else None


def _short(argv: Sequence[str]) -> str:
    """A command as an error names it: helper scripts without their text."""
    if "-c" in argv and argv[0] in ("sh", "python3"):
        rest = argv[argv.index("-c") + 2 :]
        return shlex.join((argv[0], "...", *rest[rest[:1] == argv[:1] :][:2]))
    return shlex.join(argv[:6])
