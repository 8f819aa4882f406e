"""Make a host do what its site file says: checked first, switched in one step, and what is no longer allowed is cut."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import PurePosixPath

from dgis.deploy import guard, hostfiles, live, routes
from dgis.deploy.errors import HostError
from dgis.deploy.front import Look, RunningFront, without_route
from dgis.deploy.machine import Machine, digest_of
from dgis.deploy.plan import HostPlan

RELOAD = ("systemctl", "reload-or-restart", "haproxy")
_SYSTEMD = "/run/systemd/system"
_SYSCTL = "sysctl.conf"
_LOCK, _FORMER = ".lock", "former"
# The configuration as it will be, judged by the program that will read it before anything is touched
_TRY = (
    'd="$(mktemp -d)" && trap \'rm -r "$d"\' EXIT && cat > "$d/haproxy.cfg" && touch "$d/$1" "$d/$2" && '
    'haproxy -c -q -f "$d/haproxy.cfg"'
)
_RELOAD_SECONDS = 15.0
_SEE = "see why by journalctl -u haproxy, then run apply again"


@dataclass(frozen=True, slots=True)
class Way:
    """How to get at a host: where commands run, where its files are kept, and how its front is asked and reloaded."""

    machine: Machine = Machine()
    root: str = "/etc/dgis/deploy"
    socket: str = routes.SOCKET
    reload: tuple[str, ...] = ()

    def path(self, name: str) -> str:
        return str(PurePosixPath(self.root) / name)

    @property
    def front(self) -> RunningFront:
        beside = str(PurePosixPath(self.socket).with_name("master.sock"))
        return RunningFront(self.machine, self.socket, routes.MASTER if self.socket == routes.SOCKET else beside)


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, or would be: what changed by name, connections cut, and what is left to a person."""

    host: str
    changed: tuple[str, ...]
    cut: int
    notes: tuple[str, ...]


def files(plan: HostPlan, way: Way) -> dict[str, str]:
    """What a host keeps below its root, by name."""
    rules = live.firewall(plan, way.machine)
    kept = {rules.file: rules.text(plan), _SYSCTL: hostfiles.sysctl_text(plan.host)}
    if plan.front is not None and plan.front.guest is None:
        kept |= routes.files(plan.front, socket=way.socket)
    return kept


def apply(plan: HostPlan, way: Way, *, dry_run: bool = False, force: bool = False) -> Applied:
    """Bring a host in step with its plan. Idempotent: a second run changes nothing; of two at once one waits.

    Everything is checked by the tool that will read it before anything is touched: that it is this host, and that
    whoever asks by ssh may come again (not with `force`). The firewall is replaced in one step, so a mistake leaves the
    old rules in force. Killed at any instant, or failed after the switch, it is finished by the next run: until then it
    is kept where the rules used to lead to. Raises HostError with the tool's own words.
    """
    run = _Applying(plan, way, dry_run=dry_run, force=force)
    if dry_run:
        return run.run()
    with guard.alone(way.machine, way.path(_LOCK)):
        return run.run()


def settings(plan: HostPlan, machine: Machine) -> dict[str, str]:
    """The kernel settings of a plan as they are now; one that this kernel has not is left out."""
    said = machine.run(("sysctl", "-e", *hostfiles.sysctl(plan.host)))
    pairs = (line.partition(" = ") for line in said.splitlines())
    return {name: value.strip() for name, equals, value in pairs if equals}


class _Applying:
    """One run: what is there, what is wanted, and the steps between."""

    def __init__(self, plan: HostPlan, way: Way, *, dry_run: bool, force: bool) -> None:
        self._plan, self._way, self._dry_run, self._force = plan, way, dry_run, force
        self._machine = way.machine
        self._rules = live.firewall(plan, way.machine)
        self._wanted = files(plan, way)
        self._changed: list[str] = []
        self._notes: list[str] = []

    def run(self) -> Applied:
        there = guard.interfaces(self._machine)
        self._notes += guard.same(self._plan, there)
        text, file = self._wanted[self._rules.file], self._rules.file
        kept = self._machine.digests([self._way.path(name) for name in (*self._wanted, _FORMER)])
        stale = [name for name, each in self._wanted.items() if kept.get(self._way.path(name)) != digest_of(each)]
        unfinished = self._way.path(_FORMER) in kept
        former = _addresses(*(self._machine.read(self._way.path(name)) for name in (file, _FORMER)[: 1 + unfinished]))
        rules_stale = self._rules.listed() != self._rules.expected(text)
        if rules_stale:
            self._rules.check(text)
            if not self._force:
                guard.way_back(self._plan, self._machine, there)
        live.ready(self._machine)
        self._changed += [*stale, *(["live rules"] if rules_stale else [])]
        front = self._front_before()
        if self._dry_run:
            ended = self._after(stale, former, front)
        else:
            ended = self._switch(stale, former, front, load=rules_stale)
            if unfinished or file in stale:
                self._machine.run(("rm", "-f", "--", self._way.path(_FORMER)))
        return Applied(self._plan.host.name, tuple(self._changed), ended, tuple(self._notes))

    def _switch(self, stale: list[str], former: frozenset[IPv4Address], front: Look | None, *, load: bool) -> int:
        if self._rules.file in stale:
            self._machine.write(self._way.path(_FORMER), "".join(f"{address}\n" for address in sorted(former)))
        if load:
            self._rules.load(self._wanted[self._rules.file])
        try:
            return self._after(stale, former, front)
        except HostError as error:
            text = "the rules of the site file are in force, but not all that follows them is done"
            raise HostError(f"{text}: {error}") from error

    def _after(self, stale: list[str], former: frozenset[IPv4Address], front: Look | None) -> int:
        """What follows the switch of the rules; nothing is forwarded before it. Returns how many connections ended."""
        # First of all, so that the next boot has no older rules
        self._keep([name for name in stale if name == self._rules.file])
        self._settings()
        ended = live.cut(self._plan, self._machine, former=former, dry_run=self._dry_run)
        self._keep([name for name in stale if name != self._rules.file])
        return ended + self._front(front)

    def _settings(self) -> None:
        now = settings(self._plan, self._machine)
        wanted = hostfiles.sysctl(self._plan.host)
        wrong = [name for name in wanted if now.get(name, wanted[name]) != wanted[name]]
        self._changed += [f"sysctl {name}" for name in wrong]
        if wrong and not self._dry_run:
            self._machine.run(("sysctl", "-q", "-w", *(f"{name}={wanted[name]}" for name in wrong)))

    def _keep(self, names: list[str]) -> None:
        if not self._dry_run:
            for name in names:
                self._machine.write(self._way.path(name), self._wanted[name])

    def _front_before(self) -> Look | None:
        """The front as it runs; what it would be reloaded with is tried."""
        front = self._plan.front
        if front is not None and front.guest is not None:
            text = f"the front runs in the guest {front.guest}: its files come with its seed and the role sni_front"
            self._notes.append(text)
            return None
        look = self._way.front.look()
        if front is not None and self._outdated(look):
            names = (routes.NETWORKS, routes.ROUTES)
            self._machine.run(("sh", "-c", _TRY, "sh", *names), text=self._wanted[routes.CONFIG])
        return look

    def _outdated(self, look: Look | None) -> bool:
        front = self._plan.front
        return front is not None and (look is None or look.config != routes.digest(front, socket=self._way.socket))

    def _front(self, look: Look | None) -> int:
        """Maps by the running process, anything else by a reload; connections survive both. Returns how many ended."""
        front, running = self._plan.front, self._way.front
        if front is not None and front.guest is not None:
            return 0
        if self._outdated(look):
            look = self._reload() or look
        elif look is not None and look.maps != routes.maps(front):
            self._changed.append("front maps")
            if not self._dry_run:
                running.update(look.maps, routes.maps(front))
                look = running.look()
        ended = without_route(look.sessions, front) if look is not None else ()
        if not self._dry_run:
            running.end(ended)
        return len(ended)

    def _reload(self) -> Look | None:
        """Have the front read its files; returns it as it runs then, None where that is left to a person."""
        command = self._way.reload
        if not command and self._machine.attempt(("test", "-d", _SYSTEMD)).returncode == 0:
            command = RELOAD
        if not command:
            config = self._way.path(routes.CONFIG)
            self._notes.append(f"no systemd here: start or reload the front yourself, haproxy -W -f {config}")
            return None
        self._changed.append("front reloaded")
        if self._dry_run:
            return None
        try:
            self._machine.run(command)
        except HostError as error:
            raise HostError(f"the front does not come up with its new configuration: {error}; {_SEE}") from error
        until = time.monotonic() + _RELOAD_SECONDS
        while True:
            look = self._way.front.look()
            if not self._outdated(look):
                return look
            if time.monotonic() > until:
                raise HostError(f"the front does not run with its new configuration in {_RELOAD_SECONDS:g} s; {_SEE}")
            time.sleep(0.1)


def _addresses(*texts: str | None) -> frozenset[IPv4Address]:
    """Every address that files of rules name."""
    found = set()
    for word in re.findall(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])", "\n".join(text or "" for text in texts)):
        try:
            found.add(IPv4Address(word))
        except AddressValueError:
            continue
    return frozenset(found)
