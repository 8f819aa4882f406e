"""Move destinations that nobody had to write into the AE table: AEs that called from an approved network.

An operator allows it (`[learned_destinations]` of node.toml): networks, ports, and whether an AE needs the right to
retrieve. An AE that calls from such a network is remembered with its address (and that it came over TLS, with which
certificate); a C-MOVE to its title goes there, to one of the approved ports. The AE table always comes first. A
destination that two addresses called with is used by each for itself only: images never go to the wrong one.

The state file (`<spool>/state/learned.json`, replaced by rename under a lock) is shared by all receivers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dgis.dimse.ae import AeTable, Right, within
from dgis.dimse.limits import PeerAddress
from dgis.dimse.record import log
from dgis.disk import Lock, replace_file

_KEPT = 1000  # the oldest is forgotten
_FRESH_SECONDS = 3600.0  # a repeated call is written down so often
_RETRIEVING: frozenset[Right] = frozenset(("move", "get"))


@dataclass(frozen=True, slots=True)
class LearningRules:
    """What the operator allows. `require_existing_rights`: only an AE that may retrieve for itself is sent to."""

    enabled: bool = False
    networks: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    require_existing_rights: bool = True


class Learned(BaseModel):
    """An AE that called; `port` is where it answered last, 0 when nothing was sent to it yet."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str
    address: str
    port: int = 0
    tls: bool = False
    certificate: str = ""
    seen: datetime


_Change = Callable[[tuple[Learned, ...]], tuple[Learned, ...]]


class _File(BaseModel):
    learned: tuple[Learned, ...] = ()


class LearnedStore:
    """The state file. Thread-safe; several processes may use it at once."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet; a file that does not exist or cannot be read is empty."""
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._known: tuple[Learned, ...] = ()

    def entries(self) -> tuple[Learned, ...]:
        """Return what is known, read again when the file changed."""
        with self._lock:
            try:
                stat = self.path.stat()
                stamp = (stat.st_mtime_ns, stat.st_ino)
                if stamp != self._stamp:
                    self._known = _File.model_validate_json(self.path.read_bytes()).learned
                    self._stamp = stamp
            except FileNotFoundError:
                self._known, self._stamp = (), None
            except (OSError, ValidationError) as error:
                log.error("learned destinations cannot be read", error=type(error).__name__)
            return self._known

    def put(self, new: Learned) -> None:
        """Remember one in place of what was known of this title at this address. Raises OSError."""
        self._change(lambda known: (*(k for k in known if not _same_place(k, new)), new)[-_KEPT:])

    def remove(self, title: str) -> bool:
        """Forget every address of a title; False when there was none. Raises OSError."""
        found = any(one.title == title.strip() for one in self.entries())
        if found:
            self._change(lambda known: tuple(k for k in known if k.title != title.strip()))
        return found

    def _change(self, change: _Change) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        gate = Lock(self.path.with_suffix(".lock"), wait=True)
        try:
            replace_file(self.path, _File(learned=change(self.entries())).model_dump_json().encode())
        finally:
            gate.release()


class Destinations:
    """Where a move destination may listen: the AE table's entry, else the learned places. Thread-safe."""

    def __init__(self, table: AeTable, store: LearnedStore | None = None, rules: LearningRules | None = None) -> None:
        """Without `rules` that are enabled the table alone decides."""
        self._table, self._store = table, store
        self._rules = rules or LearningRules()

    def called(self, who: Learned) -> None:
        """An AE was admitted. Quick; what cannot be written is logged and not learned."""
        if self._store is None or not self._allowed(who):
            return
        known = next((one for one in self._store.entries() if _same_place(one, who)), None)
        if known is not None:
            age = (who.seen - known.seen).total_seconds()
            if age < _FRESH_SECONDS and (known.tls, known.certificate) == (who.tls, who.certificate):
                return
            who = who.model_copy(update={"port": known.port})
        self._remember(who)
        if known is None:
            log.info("destination learned", title=who.title, address=who.address)

    def find(self, title: str, caller: Learned) -> tuple[PeerAddress, ...]:
        """Return the places to try for a C-MOVE of `caller`, the likeliest first; none when it is not known."""
        declared = self._table.destination(title)
        if declared is not None:
            return (declared,)
        wanted = title.strip()
        if self._store is None:
            return ()
        if wanted == caller.title:
            here = [caller, *(one for one in self._store.entries() if _same_place(one, caller))][-1]
            found = [here.model_copy(update={"tls": caller.tls, "certificate": caller.certificate})]
        else:
            found = [one for one in self._store.entries() if one.title == wanted and self._allowed(one)]
            if len(found) > 1:
                log.warning("destination called from several addresses", title=wanted, addresses=len(found))
        if len(found) != 1 or not self._allowed(found[0]):
            return ()
        return _places(found[0], self._rules.ports)

    def reached(self, peer: PeerAddress) -> None:
        """A destination answered there: try that port first the next time."""
        if self._store is None:
            return
        for one in self._store.entries():
            if (one.title, one.address) == (peer.title, peer.host) and one.port != peer.port:
                self._remember(one.model_copy(update={"port": peer.port}))

    def _allowed(self, who: Learned) -> bool:
        rules = self._rules
        if not (rules.enabled and within(who.address, rules.networks)):
            return False
        rights = self._table.caller(who.title, who.address, who.certificate).rights
        return bool(rights & _RETRIEVING if rules.require_existing_rights else rights)

    def _remember(self, who: Learned) -> None:
        assert self._store is not None
        try:
            self._store.put(who)
        except OSError as error:
            log.error("destination not learned", reason=error.strerror or type(error).__name__)


def seen_now(title: str, address: str, *, tls: bool = False, certificate: str = "") -> Learned:
    """Describe an AE that calls now; IPv4 addresses on an IPv6 socket lose their prefix."""
    return Learned(
        title=title.strip(),
        address=address.removeprefix("::ffff:"),
        tls=tls,
        certificate=certificate,
        seen=datetime.now(UTC),
    )


def _same_place(one: Learned, other: Learned) -> bool:
    return (one.title, one.address) == (other.title, other.address)


def _places(who: Learned, ports: tuple[int, ...]) -> tuple[PeerAddress, ...]:
    first = [who.port] if who.port in ports else []
    order = dict.fromkeys([*first, *ports])
    return tuple(PeerAddress(who.title, who.address, port, tls=who.tls, certificate=who.certificate) for port in order)
