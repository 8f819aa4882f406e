"""Rigs: one storage element of each kind, reached through a channel, with the faults a test asks for.

A new channel joins the suite by a module with its rig and a file that runs the contract over it (like test_https.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.https.server import running
from certs.https.session import GridSession
from certs.permit import Permit, sign
from storage_provider.channel import EVERYTHING, Capabilities, Channel, ObjectSpec
from storage_provider.config import AreaTable, StorageConfig, StorageTable
from storage_provider.https.client import HttpsChannel
from storage_provider.node import build
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import FaultyWire, Wired, spoil
from tests.conformance.memory_channel import CAPABILITIES, Faults, MemoryChannel, MemoryProvider, spec_of
from tests.helpers.pki import SiteHome

QUOTA = 64 * 1024 * 1024
TIMEOUT = 1.0
FULL_RULES: dict[str, frozenset[str]] = {
    "gateway": frozenset({"read", "write", "delete", "list"}),
    "operator": frozenset({"read", "list"}),
}


@dataclass(frozen=True, slots=True)
class Declared:
    """What a rig's far side is like; write why beside whatever is less than the default.

    `quota`: bytes that it takes in all (None: no test can fill it). `exact_space`: `space` counts this area's objects
    and nothing else. `permits`: a pull needs a permit for its source. `ends_sessions`: a revoked peer is refused in
    mid-session, otherwise at its next login. `heals`: a rotten object is replaced by a put.
    """

    capabilities: Capabilities
    quota: int | None = QUOTA
    exact_space: bool = True
    permits: bool = True
    ends_sessions: bool = True
    heals: bool = True


class Rig(Protocol):
    """What the suite needs of a storage element under test.

    `cut_get(n)` and `cut_put(n)`: from now on every connection (control and data alike) is reset once n more bytes have
    come down or gone up it. `slow` limits each connection. `disconnect` resets all that are up, so that the next call
    connects anew. `open` gives one more channel to the same door. `source` puts data at another element from where the
    far side may pull, and returns door and permit; `nowhere` is a door of such an element that nobody serves.
    """

    channel: Channel
    declared: Declared
    nowhere: str

    def open(self) -> Channel: ...
    def disconnect(self) -> None: ...
    def refuse(self) -> None: ...
    def silence(self) -> None: ...
    def slow(self, bytes_per_second: float) -> None: ...
    def cut_get(self, after: int) -> None: ...
    def cut_put(self, after: int) -> None: ...
    def heal(self) -> None: ...
    def rot(self, key: str) -> None: ...
    def revoke(self) -> None: ...
    def restart(self) -> None: ...
    def leftovers(self) -> list[str]: ...
    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]: ...


def write(folder: Path, data: bytes, *, before: bytes = b"", after: bytes = b"") -> Path:
    path = folder / f"{random.getrandbits(64):x}"
    path.write_bytes(before + data + after)
    return path


# -- in memory --------------------------------------------------------------------------------------------------


class MemoryRig:
    """The double keeps the contract too, so that tests built on it mean something."""

    def __init__(self) -> None:
        self.far = MemoryProvider("main", capacity=QUOTA)
        self.peer = MemoryProvider("peer")
        self.far.peers[self.peer.door] = self.peer
        self.channel: Channel = MemoryChannel(self.far)
        self.declared = Declared(CAPABILITIES, heals=False)
        self.nowhere = "memory://nowhere"

    def open(self) -> Channel:
        return MemoryChannel(self.far)

    def disconnect(self) -> None:
        """There is no connection."""

    def refuse(self) -> None:
        self.far.faults = Faults(unreachable=True)

    def silence(self) -> None:
        self.far.faults = Faults(silent=True)

    def slow(self, bytes_per_second: float) -> None:
        self.far.faults = Faults(bytes_per_second=bytes_per_second)

    def cut_get(self, after: int) -> None:
        self.far.faults = Faults(cut_after=after)

    def cut_put(self, after: int) -> None:
        self.far.faults = Faults(cut_after=after)

    def heal(self) -> None:
        self.far.faults = Faults()

    def rot(self, key: str) -> None:
        data, at = self.far.objects[key]
        self.far.objects[key] = (bytes([data[0] ^ 1]) + data[1:], at)

    def revoke(self) -> None:
        self.far.faults = Faults(denied=True)

    def restart(self) -> None:
        self.heal()

    def leftovers(self) -> list[str]:
        return []

    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]:
        self.peer.permits = lambda permit: permit == "good"
        return self.peer.add(data), self.peer.door, "good"


@contextmanager
def memory_rig(site: SiteHome, tmp_path: Path) -> Iterator[Rig]:
    yield MemoryRig()


# -- https over mutual TLS --------------------------------------------------------------------------------------


@dataclass
class HttpsProvider:
    """A real storage element in this process; `url` changes with each start."""

    identity: IdentityConfig
    name: str
    root: Path
    quota: int | None = QUOTA
    rules: dict[str, frozenset[str]] = field(default_factory=lambda: dict(FULL_RULES))
    reserve: int = 0
    url: str = ""
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> str:
        area = AreaTable(name="main", quota=self.quota, reserve=self.reserve, rules=self.rules)  # type: ignore[arg-type]
        config = StorageConfig(
            identity=self.identity, storage=StorageTable(name=self.name, root=self.root), area=(area,)
        )
        self._stack = ExitStack()
        self.url = self._stack.enter_context(running(build(config), self.identity))
        return self.url

    def stop(self) -> None:
        self._stack.close()

    @property
    def door(self) -> str:
        return f"{self.url}/areas/main"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    def objects(self) -> list[Path]:
        return sorted(path for path in (self.root / "main" / "objects").rglob("*") if path.is_file())

    def leftovers(self) -> list[str]:
        main = self.root / "main"
        return [path.name for folder in ("stage", "uploads") for path in (main / folder).iterdir()]


class HttpsRig(Wired):
    """An SE behind a faulty wire, and a second one to pull from."""

    def __init__(self, site: SiteHome, tmp_path: Path) -> None:
        self.site = site
        self.gateway = site.gateway()
        self.far = HttpsProvider(site.storage("se1"), "se1", tmp_path / "se1")
        self.peer = HttpsProvider(
            site.storage("se2"), "se2", tmp_path / "se2", rules={"gateway": FULL_RULES["gateway"]}
        )
        self.far.start()
        self.wire = FaultyWire(self.far.address)
        self.session = GridSession(self.gateway, connect_timeout=TIMEOUT)
        self.door = f"https://127.0.0.1:{self.wire.port}/areas/main"
        self.channel: Channel = self.open()
        self.declared = Declared(EVERYTHING)
        self.nowhere = "https://127.0.0.2:1/areas/main"
        self._tmp = tmp_path
        self._peer_up = False

    def open(
        self, door: str | None = None, *, session: GridSession | None = None, permit: str | None = None
    ) -> HttpsChannel:
        patience = Timeouts(answer=TIMEOUT, write=TIMEOUT)
        return HttpsChannel(session or self.session, door or self.door, permit=permit, timeouts=patience)

    def rot(self, key: str) -> None:
        spoil(self.far.root / "main" / "objects" / key)

    def revoke(self) -> None:
        self.site.revoke(self.gateway)

    def restart(self) -> None:
        self.far.stop()
        self.wire.drop_all()
        self.far.start()
        self.wire.target = self.far.address

    def leftovers(self) -> list[str]:
        return self.far.leftovers()

    def source(self, data: bytes) -> tuple[ObjectSpec, str, str]:
        if not self._peer_up:
            self.peer.start()
            self._peer_up = True
        spec = spec_of(data)
        self.open(self.peer.door).put(spec, write(self._tmp, data))
        return spec, self.peer.door, self.permit(keys=(spec.key,))

    def permit(
        self,
        *,
        keys: tuple[str, ...],
        se: str = "se2",
        verbs: tuple[str, ...] = ("read",),
        holder: IdentityConfig | None = None,
        signer: IdentityConfig | None = None,
        seconds: int = 300,
        now: datetime | None = None,
    ) -> str:
        """A permit for se1 (or `holder`) signed by the catalog (or `signer`)."""
        who = holder or self.far.identity
        by = signer or self.site.catalog()
        moment = now or datetime.now(UTC)
        permit = Permit(Credential(who.cert, who.key).dn(), se, keys, verbs, moment + timedelta(seconds=seconds))
        return sign(permit, Credential(by.cert, by.key), now=moment)

    def close(self) -> None:
        self.wire.close()
        self.session.close()
        self.far.stop()
        if self._peer_up:
            self.peer.stop()


@contextmanager
def https_rig(site: SiteHome, tmp_path: Path) -> Iterator[HttpsRig]:
    rig = HttpsRig(site, tmp_path)
    try:
        yield rig
    finally:
        rig.close()
