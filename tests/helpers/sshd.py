"""OpenSSH's own server, unprivileged or not: key logins of one account, SFTP only, below a folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.ssh import authorized_key

SSHD = Path("/usr/sbin/sshd")
SFTP = Path("/usr/bin/sftp")
# A privileged sshd insists on this directory; Debian makes it when the service starts
_PRIVSEP = Path("/run/sshd")
NEEDS = pytest.mark.skipif(not SSHD.exists(), reason="sshd is not installed (Debian: openssh-server)")
NEEDS_SFTP = pytest.mark.skipif(not SFTP.exists(), reason="sftp is not installed (Debian: openssh-client)")


def account() -> str:
    """The only account that an unprivileged sshd can let in: ours."""
    return pwd.getpwuid(os.getuid()).pw_name


@dataclass
class Sshd:
    """An sshd on 127.0.0.1 with its host key from ``identity``; ``folder`` holds its files, ``store`` the data."""

    identity: IdentityConfig
    folder: Path
    port: int = 0
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store.mkdir(exist_ok=True)
        for path in (self.authorized_keys, self.revoked_keys, self.user_ca_keys):
            path.touch()
        self.port = self.port or _free_port()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def authorized_keys(self) -> Path:
        return self.folder / "authorized_keys"

    @property
    def revoked_keys(self) -> Path:
        return self.folder / "revoked_keys"

    @property
    def user_ca_keys(self) -> Path:
        return self.folder / "user_ca_keys"

    @property
    def pid_file(self) -> Path:
        return self.folder / "sshd.pid"

    @property
    def door(self) -> str:
        return f"sftp://{account()}@127.0.0.1:{self.port}{self.store}"

    def admit(self, *identities: IdentityConfig) -> None:
        """Let these certificates' keys in."""
        certs = [Credential(each.cert, each.key).chain()[0] for each in identities]
        self.authorized_keys.write_text(
            "".join(f"{authorized_key(cert, until=cert.not_valid_after_utc)}\n" for cert in certs)
        )

    def start(self) -> None:
        if os.getuid() == 0:
            _PRIVSEP.mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{line}\n" for line in (*self._config(), *self.options)))
        log = self.folder / "log"
        seen = log.stat().st_size if log.exists() else 0
        with log.open("ab") as stream:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=stream)
        until = time.monotonic() + 20
        # Its own word for it: somebody else may have taken the port, and would answer, too
        while b"Server listening on" not in log.read_bytes()[seen:]:
            assert self._process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.01)

    def stop(self) -> None:
        """End the listener and every session of it."""
        if self._process is None:
            return
        listener = psutil.Process(self._process.pid)
        listener.suspend()  # no more sessions while those that are up are ended
        for session in listener.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                session.kill()
        listener.kill()
        self._process.wait(10)
        self._process = None

    def sftp(self, identity: IdentityConfig, batch: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a batch with the stock ``sftp`` command."""
        return subprocess.run(
            self._command(identity), input=batch, capture_output=True, text=True, timeout=timeout, check=False
        )

    def sftp_session(self, identity: IdentityConfig) -> subprocess.Popen[bytes]:
        """Start the stock ``sftp`` command, which stays logged in, and wait until it is."""
        session = subprocess.Popen(self._command(identity), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert session.stdin is not None and session.stdout is not None
        session.stdin.write(b"pwd\n")
        session.stdin.flush()
        assert b"pwd" in session.stdout.readline()
        return session

    def _command(self, identity: IdentityConfig) -> list[str]:
        options = ["-q", "-b", "-", "-P", str(self.port), "-i", os.fspath(identity.key)]
        for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes"):
            options += ["-o", option]
        return [os.fspath(SFTP), *options, f"{account()}@127.0.0.1"]

    def _config(self) -> tuple[str, ...]:
        key = self.folder / "host_key"
        shutil.copy(self.identity.key, key)
        key.chmod(0o600)
        return (
            f"ListenAddress 127.0.0.1:{self.port}",
            f"HostKey {key}",
            f"PidFile {self.pid_file}",
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"RevokedKeys {self.revoked_keys}",
            f"TrustedUserCAKeys {self.user_ca_keys}",
            "AuthenticationMethods publickey",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            "UsePAM no",
            "DisableForwarding yes",
            "MaxStartups 200",
            "Subsystem sftp internal-sftp",
            "ForceCommand internal-sftp",
            "LogLevel VERBOSE",
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
