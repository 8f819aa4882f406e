"""OpenSSH's server in a namespace, for root: what Ansible drives. One key pair and one known_hosts per lab."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SSHD = Path("/usr/sbin/sshd")
# A privileged sshd insists on this directory; Debian makes it when the service starts
_PRIVSEP = Path("/run/sshd")


@dataclass(frozen=True, slots=True)
class SshAccess:
    """A client's throw-away key and the host keys it knows, as files."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> SshAccess:
        """Make the files below a new folder."""
        folder.mkdir(mode=0o700)
        (folder / "id.pub").write_text(_new_key(folder / "id") + "\n")
        (folder / "known_hosts").touch()
        return cls(folder)

    @property
    def key(self) -> Path:
        """The private key file (mode 0600)."""
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        """Every ``NodeSshd`` of the lab, under each of its node's addresses."""
        return self.folder / "known_hosts"

    @property
    def public_key(self) -> str:
        """The line for an authorized_keys."""
        return (self.folder / "id.pub").read_text().strip()

    def options(self) -> list[str]:
        """Options of ssh, sftp and ``ansible_ssh_common_args``: this key, these hosts, nobody's configuration."""
        words = ["-F", os.devnull, "-i", str(self.key), "-o", f"UserKnownHostsFile={self.known_hosts}"]
        for option in ("StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "BatchMode=yes", "ConnectTimeout=10"):
            words += ["-o", option]
        return words


@dataclass(frozen=True, slots=True)
class NodeSshd:
    """An sshd that lets root in by key, with SFTP; its files lie in ``folder``, all logins in ``log``."""

    access: SshAccess
    folder: Path
    port: int

    @property
    def log(self) -> Path:
        """What sshd says."""
        return self.folder / "log"

    def known_as(self, address: str, port: int | None = None) -> None:
        """Make it known under another address or port: a public one that NAT forwards."""
        number = self.port if port is None else port
        name = address if number == 22 else f"[{address}]:{number}"
        with self.access.known_hosts.open("a") as known:
            known.write(f"{name} {(self.folder / 'host_key.pub').read_text()}")

    def write(self, authorized_key: str) -> None:
        """Write its configuration; ``Node.sshd`` calls it."""
        _PRIVSEP.mkdir(mode=0o755, exist_ok=True)
        self.folder.mkdir(mode=0o700)
        (self.folder / "host_key.pub").write_text(_new_key(self.folder / "host_key") + "\n")
        (self.folder / "authorized_keys").write_text(authorized_key.strip() + "\n")
        settings = (
            f"Port {self.port}",
            f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "PidFile none",
            "AuthenticationMethods publickey",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "MaxStartups 200",
            "Subsystem sftp internal-sftp",
            "LogLevel VERBOSE",
        )
        (self.folder / "sshd_config").write_text("".join(f"{line}\n" for line in settings))

    def words(self) -> list[str]:
        """Return its command line; absolute paths, since sshd leaves its directory."""
        return [str(SSHD), "-D", "-E", str(self.log.absolute()), "-f", str(self.folder / "sshd_config")]


def _new_key(path: Path) -> str:
    """Write a new Ed25519 key (mode 0600) and return its public line."""
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
