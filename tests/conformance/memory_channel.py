"""A storage element in memory that keeps the channel contract, with faults that a test can switch on."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from storage_provider.channel import EVERYTHING, Got, ObjectSpec, Put, Space, Stat, Stored, Want
from storage_provider.checksum import CHUNK_BYTES, chunk_count
from storage_provider.errors import Corrupt, Denied, LocalFault, NoSpace, NotFound, Refused, StorageError, Unreachable
from storage_provider.keys import object_key, parse_key, parse_prefix
from storage_provider.many import get_each, put_each

BLOCK = 256 * 1024
CAPABILITIES = replace(EVERYTHING, resume_put=False)


def spec_of(data: bytes) -> ObjectSpec:
    """The spec of some bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    parts = range(0, len(data), CHUNK_BYTES) if chunk_count(len(data)) else ()
    chunks = tuple(hashlib.sha256(data[at : at + CHUNK_BYTES]).hexdigest() for at in parts)
    return ObjectSpec(object_key(sha256), len(data), sha256, chunks)


@dataclass
class Faults:
    """What goes wrong at the far side, from now on."""

    unreachable: bool = False
    denied: bool = False
    silent: bool = False
    cut_after: int | None = None
    cuts: int = 1_000_000
    bytes_per_second: float | None = None
    corrupt_chunks: frozenset[int] = frozenset()
    extra_bytes: int = 0


@dataclass
class MemoryProvider:
    """One SE: its objects, its capacity and its faults; `gets` counts requests."""

    name: str
    peers: dict[str, MemoryProvider] = field(default_factory=dict)
    capacity: int = 1 << 40
    timeout: float = 0.7
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    gets: int = 0
    permits: Callable[[str | None], bool] = lambda permit: True
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def door(self) -> str:
        return f"memory://{self.name}"

    def add(self, data: bytes) -> ObjectSpec:
        spec = spec_of(data)
        self.objects[spec.key] = (data, datetime.now(UTC))
        return spec


class MemoryChannel:
    """The channel to a MemoryProvider."""

    def __init__(self, provider: MemoryProvider) -> None:
        self._far = provider
        self.door = provider.door
        self.capabilities = CAPABILITIES

    def put(self, spec: ObjectSpec, path: Path, *, offset: int = 0, acting_for: str | None = None) -> Stored:
        self._answer(spec.key)
        try:
            data = path.read_bytes()[offset : offset + spec.size]
        except OSError as error:
            raise LocalFault("cannot read the file") from error
        if len(data) != spec.size:
            raise LocalFault("the file is shorter than the object")
        cut = self._far.faults.cut_after
        if cut is not None and cut < spec.size:
            raise Unreachable("cut", door=self.door)
        return self._keep(spec, data)

    @contextmanager
    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, acting_for: str | None = None
    ) -> Iterator[Iterator[bytes]]:
        self._far.gets += 1
        data = self._object(key)[0]
        stop = len(data) if length is None else min(offset + length, len(data))
        if (offset or length is not None) and not 0 <= offset < stop:
            raise Refused("the range lies outside the object")
        yield self._blocks(data, offset, stop)

    def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
        return put_each(self, puts)

    def get_many(self, wants: Sequence[Want]) -> AbstractContextManager[Iterator[Got]]:
        return get_each(self, wants)

    def stat(self, key: str) -> Stat:
        data, at = self._object(key)
        return Stat(key, len(data), at)

    def checksum(self, key: str) -> str:
        return hashlib.sha256(self._object(key)[0]).hexdigest()

    def delete(self, key: str) -> None:
        self._object(key)
        del self._far.objects[key]

    def list(self, prefix: str = "") -> Iterator[Stat]:
        self._answer("")
        parse_prefix(prefix)
        for key in sorted(self._far.objects):
            if key.startswith(prefix):
                yield self.stat(key)

    def pull(
        self, spec: ObjectSpec, source_doors: Sequence[str], permit: str | None, *, acting_for: str | None = None
    ) -> Stored:
        self._answer(spec.key)
        error: Exception = NotFound("no source")
        for door in source_doors:
            peer = self._far.peers.get(door)
            if peer is None:
                error = Unreachable("no such door")
            elif not peer.permits(permit):
                raise Denied("permit")
            elif spec.key in peer.objects:
                return self._keep(spec, peer.objects[spec.key][0])
        raise error

    def space(self) -> Space:
        self._answer("")
        used = sum(len(data) for data, _ in self._far.objects.values())
        return Space(self._far.capacity, self._far.capacity - used, used)

    def close(self) -> None:
        pass

    def _keep(self, spec: ObjectSpec, data: bytes) -> Stored:
        if hashlib.sha256(data).hexdigest() != spec.sha256 or len(data) != spec.size:
            raise Corrupt("wrong digest", key=spec.key)
        used = sum(len(kept) for key, (kept, _) in self._far.objects.items() if key != spec.key)
        if used + len(data) > self._far.capacity:
            raise NoSpace("full")
        self._far.objects.setdefault(spec.key, (data, datetime.now(UTC)))
        return Stored(spec.key, spec.size, spec.sha256, datetime.now(UTC))

    def _answer(self, key: str) -> None:
        faults = self._far.faults
        if faults.unreachable:
            raise Unreachable("refused", door=self.door)
        if faults.silent:
            time.sleep(self._far.timeout)
            raise Unreachable("silent", door=self.door)
        if faults.denied:
            raise Denied("denied", door=self.door)
        if key:
            parse_key(key)

    def _object(self, key: str) -> tuple[bytes, datetime]:
        self._answer(key)
        try:
            return self._far.objects[key]
        except KeyError:
            raise NotFound("no such object", key=key) from None

    def _blocks(self, data: bytes, start: int, stop: int) -> Iterator[bytes]:
        faults, sent, position = self._far.faults, 0, start
        while position < stop:
            size = min(BLOCK, stop - position)
            if faults.bytes_per_second is not None:
                size = min(size, max(1, int(faults.bytes_per_second / 20)))
                time.sleep(size / faults.bytes_per_second)
            with self._far.lock:
                if faults.cut_after is not None and faults.cuts > 0 and sent + size > faults.cut_after:
                    faults.cuts -= 1
                    raise Unreachable("cut", door=self.door)
            block = data[position : position + size]
            yield self._spoil(block, position)
            position += size
            sent += size
        if faults.extra_bytes:
            yield b"x" * faults.extra_bytes

    def _spoil(self, block: bytes, position: int) -> bytes:
        if position // CHUNK_BYTES in self._far.faults.corrupt_chunks:
            return bytes([block[0] ^ 1]) + block[1:]
        return block


def opener(*providers: MemoryProvider) -> Callable[[str], MemoryChannel]:
    """A channel factory over some providers."""
    by_door = {provider.door: provider for provider in providers}
    return lambda door: MemoryChannel(by_door[door])
