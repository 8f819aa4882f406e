"""Keep a host's rules in step with its guests and with its site file: the loop of `dgis deploy watch`.

A door leads to a guest that runs. When a guest stops, its doors shut and its connections end at once, instead of
packets into nothing; when it runs again, they open. A guest that misses one look keeps its doors: `patience` looks in a
row must miss it. A site file that is broken, or a hypervisor that cannot be asked, changes nothing and is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dgis.deploy import apply, check, flows, guests, plan
from dgis.deploy.apply import Applied, Way
from dgis.deploy.errors import DeployError, HostError
from dgis.deploy.guests import Means
from dgis.deploy.topology import Host, Site


@dataclass(frozen=True, slots=True)
class Watched:
    """What to keep in step: a host of a site file, and how its guests are asked for."""

    file: Path
    host: str
    way: Way
    means: Means | None
    patience: int = 2


@dataclass(slots=True)
class Watch:
    """The state between two looks."""

    watched: Watched
    _site: Site | None = None
    _seen: bytes = b""
    _absent: dict[str, int] = field(default_factory=dict)
    _in_force: tuple[bytes, frozenset[str]] | None = None
    _trouble: str = ""

    def looks(self, pause: Callable[[], bool]) -> Iterator[str]:
        """One line for whatever changed, until `pause` (wait for the next look) says False."""
        while True:
            yield from self.look()
            if not pause():
                return

    def look(self) -> Iterator[str]:
        """Look once: bring the host in step if something changed; yields what was done or is wrong."""
        try:
            yield from self._look()
        except (DeployError, OSError) as error:
            text = str(error)
            if text != self._trouble:
                yield f"nothing changed: {text}"
            self._trouble = text
            return
        if self._trouble:
            self._trouble = ""
            yield "all well again"

    def _look(self) -> Iterator[str]:
        site = self._read()
        host = self._host(site)
        up = self._up(site, host)
        asked = (self._seen, up)
        # Looked at anew each time: rules that somebody else changed come back, too
        done = apply.apply(plan.plan(site, flows.derive(site), host, running=up), self.watched.way)
        if done.changed or done.cut or asked != self._in_force:
            yield _said(done, up)
        self._in_force = asked

    def _read(self) -> Site:
        text = self.watched.file.read_bytes()
        if self._site is None or text != self._seen:
            self._site, self._seen = check.load(self.watched.file), text
        return self._site

    def _host(self, site: Site) -> Host:
        try:
            return site.host(self.watched.host)
        except KeyError:
            raise HostError(f"{self.watched.file} has no host {self.watched.host} any more") from None

    def _up(self, site: Site, host: Host) -> frozenset[str]:
        """The guests whose doors are open: those that run, those just missed, and those of other hosts."""
        elsewhere = {guest.name for guest in site.guests if guest.host != host.name}
        means = self.watched.means or guests.means_of(host)
        alive = guests.running(site, host, self.watched.way.machine, means)
        before = self._in_force[1] if self._in_force is not None else frozenset()
        kept = set()
        for guest in site.guests_at(host):
            self._absent[guest.name] = 0 if guest.name in alive else self._absent.get(guest.name, 0) + 1
            if guest.name in before and self._absent[guest.name] < self.watched.patience:
                kept.add(guest.name)
        return alive | elsewhere | frozenset(kept)


def _said(done: Applied, up: frozenset[str]) -> str:
    changed = ", ".join(done.changed) or "nothing"
    return (
        f"{done.host}: changed {changed}; {done.cut} connections ended; doors open of {', '.join(sorted(up)) or 'none'}"
    )
