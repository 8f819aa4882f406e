"""The transfer engine: verified fetches from several replicas, verified stores, deletes, and what the doors are like.

It takes plain sources and a channel factory; it knows no catalog, no scheme and no credential.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from certs.log import get_log
from storage_provider.channel import Channel, ObjectSpec, Put, Space, Stored
from storage_provider.errors import (
    Cancelled,
    Corrupt,
    DoorURL,
    LocalFault,
    NotFound,
    StorageError,
    Unreachable,
    Unsupported,
)
from storage_provider.keys import object_key
from storage_provider.transfer.fetch import Blame, Caller, Fetch, Patience, Source
from storage_provider.transfer.landing import Landing
from storage_provider.transfer.plan import Limits
from storage_provider.transfer.reading import Reading
from storage_provider.transfer.route import FIRST_REST, DoorChange, DoorHealth, Doors, Route
from storage_provider.transfer.storing import StoreMany, local_fault

__all__ = ["Blame", "DoorHealth", "Doors", "Engine", "Fetched", "Limits", "Patience", "Source", "ignore_blame"]

log = get_log()

T = TypeVar("T")
_ASK_SECONDS = 0.1
_NO_OBJECT = object_key("0" * 64)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified local copy; `served` gives bytes by SE, `blames` what replicas did wrong on the way."""

    path: Path
    size: int
    sha256: str
    served: tuple[tuple[str, int], ...]
    blames: tuple[Blame, ...]


def _log_change(change: DoorChange) -> None:
    tell = log.info if change.back else log.warning
    tell("door changed", se=change.se, was=change.was, now=change.now, why=change.why)


def _space(channel: Channel) -> Space | None:
    if channel.capabilities.space:
        return channel.space()
    _ask(channel)
    return None


def _ask(channel: Channel) -> None:
    """Have a door answer anything; raises what says that it did not, or will not."""
    try:
        channel.stat(_NO_OBJECT)
    except NotFound:
        return


def never() -> bool:
    """Be the default of `cancelled`."""
    return False


def _quiet(received: int) -> None:
    """Be the default of `progress`."""


def ignore_blame(blame: Blame) -> None:
    """Be the default of `on_blame`."""


class Engine:
    """Moves objects; thread-safe; channels are opened once per door and kept.

    `on_blame` hears of every wrong a replica did, also when the fetch then fails (from the fetching thread).
    """

    def __init__(
        self,
        open_channel: Callable[[str], Channel],
        *,
        limits: Limits | None = None,
        patience: Patience | None = None,
        route: Route | None = None,
        on_blame: Callable[[Blame], None] = ignore_blame,
    ) -> None:
        self._factory = open_channel
        self._limits = limits or Limits()
        self._patience = patience or Patience()
        self._route = route or Route(on_change=_log_change)
        self._on_blame = on_blame
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()

    def fetch(
        self,
        source: Source,
        target: Path,
        *,
        acting_for: str | None = None,
        cancelled: Callable[[], bool] = never,
        progress: Callable[[int], None] = _quiet,
    ) -> Fetched:
        """Write the object to `target` by temporary file and rename, verified piece by piece and as a whole.

        Uses several replicas at once for a chunked object, falls over to others in mid-object, and blames a bad chunk
        on its source. `cancelled` is asked ten times a second; `progress` hears the verified bytes. Raises Cancelled;
        NoSpace or LocalFault for the local disk; else the error of the replicas, a passing one if any was passing.
        """
        ObjectSpec(source.key, source.size, source.sha256, source.chunks)
        self._await_a_door(source, cancelled)
        for doors in source.doors:
            self._probe_if_due(doors)
        with Landing(target, source.key) as landing:
            fetch = Fetch(source, landing, route=self._route, open_channel=self.channel, limits=self._limits)
            try:
                fetch.run(Caller(acting_for, cancelled, progress), self._patience)
            finally:
                for blame in fetch.blames:
                    self._on_blame(blame)
            landing.publish()
        return Fetched(target, source.size, source.sha256, tuple(fetch.served.items()), tuple(fetch.blames))

    def read_ahead(self, sources: Sequence[Source], *, acting_for: str | None, window: int) -> Reading | None:
        """Begin a batch of small objects that lie at the same storage elements, at the first of these that works.

        None when none has answered lately. Nothing is blamed, or tried elsewhere: `fetch` what the batch cannot give.
        """
        doors = next((doors for doors in sources[0].doors if doors.urls and not self._route.rests(doors)), None)
        if doors is None:
            return None
        self._probe_if_due(doors)
        url, began = self._route.order(doors)[0], self._route.clock()

        def too_slow(silent: float) -> None:
            self._route.failed(doors, url, "too slow", began=began, silent=silent)

        return Reading(
            doors.se, lambda: self.channel(url), sources, acting_for=acting_for, window=window, too_slow=too_slow
        ).start()

    def _await_a_door(self, source: Source, cancelled: Callable[[], bool]) -> None:
        """When no replica answered lately, wait for the next try if it is near, else say so at once: the thousandth
        object of a study must not wait out what the first one showed."""
        rest = min((self._route.back_in(doors) for doors in source.doors if doors.urls), default=0.0)
        if rest > FIRST_REST:
            raise Unreachable(
                f"no storage element with a copy answered lately; tried again in {rest:.0f} s", key=source.key
            )
        deadline = time.monotonic() + rest
        while (left := deadline - time.monotonic()) > 0:
            if cancelled():
                raise Cancelled("fetch cancelled", key=source.key)
            time.sleep(min(left, _ASK_SECONDS))

    def store(
        self, spec: ObjectSpec, path: Path, doors: Doors, *, offset: int = 0, acting_for: str | None = None
    ) -> Stored:
        """Store the first `spec.size` bytes of `path` (from `offset`) at one SE, verified at the far side.

        Idempotent and resumable. Bytes after the object's are ignored; a shorter file is a LocalFault.
        """
        fault = local_fault(Put(spec, path, offset))
        if fault is not None:
            raise fault
        stored = self._try_doors(
            doors, lambda channel: channel.put(spec, path, offset=offset, acting_for=acting_for), key=spec.key
        )
        if (stored.key, stored.size, stored.sha256) != (spec.key, spec.size, spec.sha256):
            raise Corrupt("the far side stored something else", key=spec.key)
        return stored

    def store_many(self, puts: Iterable[Put], doors: Doors) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store many objects at one SE, each as `store` does, over a door's own batch.

        Yields every put once, in any order; an error of one never ends the rest. `puts` is read ahead by a bounded
        number, in the thread that iterates. Closing the iterator stops the rest.
        """
        self._probe_if_due(doors)
        return StoreMany(puts, doors, route=self._route, open_channel=self.channel).outcomes()

    def delete(self, doors: Doors, key: str) -> None:
        """Remove a replica; NotFound when it is not there."""
        self._try_doors(doors, lambda channel: channel.delete(key), key=key)

    def checksum(self, doors: Doors, key: str) -> str:
        """Let an SE re-read an object; its SHA-256 as it is there now. Unsupported when no door can."""
        return self._try_doors(doors, lambda channel: channel.checksum(key), key=key)

    def space(self, doors: Doors) -> Space | None:
        """Ask an SE for its space, and so whether it answers; None when it does and its door cannot tell the space."""
        return self._try_doors(doors, _space, key="")

    def pull(
        self,
        spec: ObjectSpec,
        doors: Doors,
        sources: tuple[str, ...],
        permit: str | None,
        *,
        acting_for: str | None = None,
    ) -> Stored:
        """Let an SE fetch the object from other SEs' doors (third-party copy). Unsupported when no door can."""
        return self._try_doors(
            doors, lambda channel: channel.pull(spec, sources, permit, acting_for=acting_for), key=spec.key
        )

    def health(self, doors: Doors) -> tuple[DoorHealth, ...]:
        """Return what the last calls showed of every door of an SE, in order of preference."""
        return self._route.health(doors)

    def channel(self, url: str) -> Channel:
        """Return the kept channel of a door."""
        with self._lock:
            channel = self._channels.get(url)
            if channel is None:
                channel = self._channels[url] = self._factory(url)
            return channel

    def close(self) -> None:
        """Close every channel."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def _try_doors(self, doors: Doors, call: Callable[[Channel], T], *, key: str) -> T:
        """Use the first door that answers; fall through when one does not, or cannot do this at all."""
        self._probe_if_due(doors)
        passed: StorageError | None = None
        for url in self._route.order(doors):
            began = self._route.clock()
            try:
                result = call(self.channel(url))
            except (Unreachable, DoorURL) as error:
                self._route.failed(doors, url, error.detail, began=began)
                passed = error if passed is None or isinstance(error, Unreachable) else passed
            except Unsupported as error:
                passed = passed or error
            except StorageError as error:
                if not isinstance(error, LocalFault):
                    self._route.worked(doors, url, began=began)
                raise
            else:
                self._route.worked(doors, url, began=began)
                return result
        raise passed or Unreachable("the storage element has no doors", key=key)

    def _probe_if_due(self, doors: Doors) -> None:
        """Ask a preferred door that had failed whether it is back, beside the work that goes by another one."""
        url = self._route.due_probe(doors)
        if url is not None:
            threading.Thread(target=self._probe, args=(doors, url), name="probe", daemon=True).start()

    def _probe(self, doors: Doors, url: str) -> None:
        """Any answer will do, also that there is no such object (this is the edge of the probe's thread)."""
        began = self._route.clock()
        try:
            _ask(self.channel(url))
        except (Unreachable, DoorURL) as error:
            self._route.failed(doors, url, error.detail, began=began)
            return
        except StorageError:
            pass
        except Exception as error:  # noqa: BLE001  whatever a channel does, the door must not stay under probe
            self._route.failed(doors, url, f"{type(error).__name__} while probing", began=began)
            return
        self._route.worked(doors, url, began=began)
