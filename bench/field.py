"""The servers of one measurement together: started, warmed up, restarted after a failure, stopped whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from bench.images import ImageSet
from bench.peers import Server
from bench.report import NotMeasured
from bench.senders import send

T = TypeVar("T")
TLS = "-tls"
"""How the keys of servers end whose port is for DICOM TLS alone."""


class Field:
    """A context manager over servers by key; one that does not start costs its own cells only."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self._servers = dict(servers)
        self._missing: dict[str, str] = {}

    def __enter__(self) -> Field:
        """Start all at once, those with TLS last: the grid's CA issues their certificates."""
        try:
            for wave in (False, True):
                with ThreadPoolExecutor() as pool:
                    list(pool.map(self._start, (key for key in self._servers if key.endswith(TLS) == wave)))
        except BaseException:  # told to stop while they start
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._stop, self._servers.values()))

    def __getitem__(self, key: str) -> Server:
        """The server; NotMeasured, with the reason, when it did not start."""
        if key in self._missing:
            raise NotMeasured(self._missing[key])
        return self._servers[key]

    def again(self, key: str) -> None:
        """Restart a server after a failed cell, so that the next one finds it in order."""
        if key not in self._missing:
            self._stop(self._servers[key])
            self._start(key)

    def warm_up(self, images: ImageSet) -> None:
        """Send every server a few images that do not count: code paths, caches and pools are as in daily work."""
        for key, server in self._servers.items():
            if key in self._missing:
                continue
            try:
                door = server.door(tls=key.endswith(TLS))
                send(images.take(min(images.count, 16), 1), door, nodelay=True)
                server.settle()
            except Exception as error:  # noqa: BLE001  its cells will say what is wrong
                print(f"{server.name}: warm-up failed: {error}", file=sys.stderr)

    def _start(self, key: str) -> None:
        """Start a server, with a second try; note why it is missing otherwise."""
        server = self._servers[key]
        for _ in range(2):
            try:
                server.start()
                self._missing.pop(key, None)
                return
            except NotMeasured as error:
                self._missing[key] = str(error)
                return
            except Exception as error:  # noqa: BLE001  whatever kept it from starting: the others are measured
                traceback.print_exc()
                self._missing[key] = f"{server.name} did not start: {' '.join(str(error).split())}"[:400]
                self._stop(server)

    @staticmethod
    def _stop(server: Server) -> None:
        try:
            server.stop()
        except Exception:  # noqa: BLE001  the next one has to be stopped, too
            traceback.print_exc()


class Place:
    """A folder for one measurement on the disk of the machine, and everything in it gone afterwards."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dgis-bench-"))
        spread(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove(self.path)

    @staticmethod
    def remove(folder: Path) -> None:
        """Take a folder away, in the midst of a measurement, too: the disk has an end."""
        shutil.rmtree(folder, ignore_errors=True)


def spread(place: Path) -> None:
    """Have each directory that is made in ``place`` in a block group of its own, where the file system knows that.

    On ext4 without a journal, making a file looks at every inode that was deleted nearby within a minute: up to half a
    millisecond. What one server or an earlier cell deleted would be paid for by another one.
    """
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["chattr", "+T", str(place)], capture_output=True, check=False)


def quiet_disk() -> None:
    """Write back what earlier cells left in memory: nobody pays for another one's dirty pages."""
    os.sync()


def rotated(keys: Iterable[T], number: int) -> list[T]:
    """The order of round ``number``: another server begins each time."""
    order = list(keys)
    at = number % max(1, len(order))
    return order[at:] + order[:at]
