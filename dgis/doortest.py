"""What a door of a storage element is like: a random object is put, got, compared and deleted through it, and timed.

And whose door it is: an element of ours says its name at each of its doors.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from storage_provider.channel import Channel, ObjectSpec
from storage_provider.checksum import CHUNK_BYTES, chunk_count
from storage_provider.errors import Corrupt, NotFound, StorageError
from storage_provider.keys import object_key

_ASKED = 5
_NO_OBJECT = object_key("0" * 64)


@runtime_checkable
class _Named(Protocol):
    """A channel that can ask the far side for its element's name."""

    def element(self) -> str | None: ...


def element_behind(open_channel: Callable[[str], Channel], door: str) -> str | None:
    """Ask a door for its element's name; None when it does not say: a foreign server (not asked), an older element.

    Raises DoorURL when no channel speaks to such a door or another kind of server answers, StorageError when it does
    not answer, or not that.
    """
    channel = open_channel(door)
    try:
        return channel.element() if isinstance(channel, _Named) else None
    finally:
        channel.close()


@dataclass(slots=True)
class DoorReport:
    """How a door did; what was not reached is None. `trouble` says what went wrong, "" when all went well."""

    door: str
    connect_ms: float | None = None
    answer_ms: float | None = None
    put_mb_s: float | None = None
    get_mb_s: float | None = None
    trouble: str = ""


def examine(open_channel: Callable[[str], Channel], door: str, *, size: int, scratch: Path) -> DoorReport:
    """Try a door with an object of `size` random bytes; never raises StorageError.

    `connect_ms` is the first answer, log-in included, `answer_ms` the median of further ones, MB/s are 10^6 bytes/s
    with verification at the far side (put) and here (get). The object is deleted again.
    """
    report = DoorReport(door)
    try:
        channel = open_channel(door)
    except StorageError as error:
        report.trouble = error.detail
        return report
    try:
        _try(channel, report, size, scratch)
    except StorageError as error:
        report.trouble = f"{type(error).__name__}: {error.detail}"
    finally:
        channel.close()
    return report


def _try(channel: Channel, report: DoorReport, size: int, scratch: Path) -> None:
    report.connect_ms = _ask(channel)
    report.answer_ms = round(statistics.median(_ask(channel) for _ in range(_ASKED)), 1)
    path = scratch / "object"
    spec = _random_object(path, size)
    try:
        began = time.monotonic()
        channel.put(spec, path)
        report.put_mb_s = _rate(size, began)
        began, digest = time.monotonic(), hashlib.sha256()
        with channel.get(spec.key) as blocks:
            for block in blocks:
                digest.update(block)
        report.get_mb_s = _rate(size, began)
        if digest.hexdigest() != spec.sha256:
            raise Corrupt("what came back is not what was sent", key=spec.key)
    finally:
        path.unlink()
        _clean(channel, spec.key, report)


def _ask(channel: Channel) -> float:
    """Return the milliseconds until the door said that there is no such object."""
    began = time.monotonic()
    with contextlib.suppress(NotFound):
        channel.stat(_NO_OBJECT)
    return round((time.monotonic() - began) * 1e3, 1)


def _random_object(path: Path, size: int) -> ObjectSpec:
    digest, chunks = hashlib.sha256(), []
    with path.open("wb") as file:
        for at in range(0, size, CHUNK_BYTES):
            chunk = os.urandom(min(CHUNK_BYTES, size - at))
            file.write(chunk)
            digest.update(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
    sha256 = digest.hexdigest()
    return ObjectSpec(object_key(sha256), size, sha256, tuple(chunks) if chunk_count(size) else ())


def _rate(size: int, began: float) -> float:
    return round(size / 1e6 / max(time.monotonic() - began, 1e-6), 1)


def _clean(channel: Channel, key: str, report: DoorReport) -> None:
    try:
        channel.delete(key)
    except NotFound:
        return  # it was never there
    except StorageError as error:
        if report.put_mb_s is not None:
            report.trouble = f"the test object {key} could not be deleted: {error.detail}"
