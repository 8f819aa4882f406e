"""How the own SFTP server listens and what it bears."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SftpSettings:
    """Where the SFTP server listens, and its limits (seconds and counts).

    `advertise` is the host name in the URL that `start` returns (None: `host`). `grace_seconds` is how long a login may
    take, `idle_seconds` how long a connection may do nothing or take nothing of what it asked for. Of `connections`,
    `waiting` at most have not logged in; `per_address` counts those of one address. `disk_threads` work on the disk for
    all sessions.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str | None = None
    grace_seconds: float = 20.0
    idle_seconds: float = 300.0
    connections: int = 200
    waiting: int = 200
    waiting_per_address: int = 40
    per_address: int = 60
    open_files: int = 128
    disk_threads: int = 8

    def __post_init__(self) -> None:
        bounds = (self.connections, self.waiting, self.waiting_per_address, self.per_address)
        if min(*bounds, self.open_files, self.disk_threads) < 1 or min(self.grace_seconds, self.idle_seconds) <= 0:
            raise ValueError("limits of the SFTP server must be positive")
