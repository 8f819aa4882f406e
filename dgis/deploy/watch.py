"""Keep a host's rules in step with its guests and with its site file: the loop of `dgis deploy watch`.

A door leads to a guest that runs. When a guest stops, its doors shut and its connections end at once, instead of
packets into nothing; when it runs again, they open. A guest that misses one look keeps its doors: `patience` looks in a
row must miss it, the first ones too, since `apply` opened the doors of all. Guests without roles are other projects',
and keep theirs unless all are watched. While a site file is broken the last one that was good counts; a hypervisor that
cannot be asked changes nothing. Either is said once.
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
    """What to keep in step: a host of a site file, and how its guests are asked for; `every`: those without roles, too;
    `force`: as in `apply`."""

    file: Path
    host: str
    way: Way
    means: Means | None
    patience: int = 2
    every: bool = False
    force: bool = False


@dataclass(slots=True)
class Watch:
    """The state between two looks."""

    watched: Watched
    _site: Site | None = None
    _seen: bytes = b""
    _absent: dict[str, int] = field(default_factory=dict)
    _in_force: tuple[bytes, frozenset[str]] | None = None
    _said: tuple[str, ...] = ()

    def looks(self, pause: Callable[[], bool]) -> Iterator[str]:
        """One line for whatever changed, until `pause` (wait for the next look) says False."""
        while True:
            yield from self.look()
            if not pause():
                return

    def look(self) -> Iterator[str]:
        """Look once: bring the host in step if something changed; yields what was done or is wrong."""
        wrong: list[str] = []
        try:
            yield from self._look(wrong)
        except (DeployError, OSError) as error:
            wrong.append(f"not in step: {error}")
        if tuple(wrong) != self._said:
            yield from (line for line in wrong if line not in self._said)
            if not wrong:
                yield "all well again"
        self._said = tuple(wrong)

    def _look(self, wrong: list[str]) -> Iterator[str]:
        site = self._read(wrong)
        host = self._host(site)
        up = self._up(site, host)
        asked = (self._seen, up)
        # Looked at anew each time: rules that somebody else changed come back, too
        made = plan.plan(site, flows.derive(site), host, running=up)
        done = apply.apply(made, self.watched.way, force=self.watched.force)
        if done.changed or done.cut or asked != self._in_force:
            yield _summary(done, up)
        wrong += done.notes
        self._in_force = asked

    def _read(self, wrong: list[str]) -> Site:
        try:
            text = self.watched.file.read_bytes()
            if self._site is None or text != self._seen:
                self._site, self._seen = check.load(self.watched.file), text
        except (DeployError, OSError) as error:
            if self._site is None:
                raise
            wrong.append(f"the site file as it was before still counts: {error}")
        return self._site

    def _host(self, site: Site) -> Host:
        try:
            return site.host(self.watched.host)
        except KeyError:
            raise HostError(f"{self.watched.file} has no host {self.watched.host} any more") from None

    def _up(self, site: Site, host: Host) -> frozenset[str]:
        """The guests whose doors are open: those that run, those just missed, and those that are not watched."""
        means = self.watched.means or guests.means_of(host)
        alive = guests.running(site, host, self.watched.way.machine, means)
        before = self._in_force[1] if self._in_force is not None else {guest.name for guest in site.guests}
        kept = set()
        for guest in site.guests_at(host):
            self._absent[guest.name] = 0 if guest.name in alive else self._absent.get(guest.name, 0) + 1
            if guest.name in before and self._absent[guest.name] < self.watched.patience:
                kept.add(guest.name)
        return guests.doors(site, host, alive | frozenset(kept), every=self.watched.every)


def _summary(done: Applied, up: frozenset[str]) -> str:
    changed = ", ".join(done.changed) or "nothing"
    doors = ", ".join(sorted(up)) or "no guest"
    return f"{done.host}: changed {changed}; {done.cut} connections ended; open are the doors of {doors}"
