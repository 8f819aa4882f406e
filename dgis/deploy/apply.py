"""Make a host do what its site file says: checked first, switched in one step, and what is no longer allowed is cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from dgis.deploy import hostfiles, live, routes
from dgis.deploy.errors import HostError
from dgis.deploy.front import RunningFront
from dgis.deploy.machine import Machine
from dgis.deploy.plan import Front, HostPlan

RELOAD = ("systemctl", "reload-or-restart", "haproxy")
_SYSTEMD = "/run/systemd/system"
_SYSCTL = "sysctl.conf"


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
        return RunningFront(self.machine, self.socket)


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


def apply(plan: HostPlan, way: Way, *, dry_run: bool = False) -> Applied:
    """Bring a host in step with its plan. Idempotent: a second run changes nothing.

    Everything is checked by the tool that will read it before anything is touched. The firewall is replaced in one
    step, so a mistake leaves the old rules in force. Raises HostError with the tool's own words.
    """
    machine, rules = way.machine, live.firewall(plan, way.machine)
    wanted = files(plan, way)
    rules.check(wanted[rules.file])
    changed = [name for name, text in wanted.items() if machine.read(way.path(name)) != text]
    settings = _settings(plan, machine)
    stale = rules.listed() != rules.expected(wanted[rules.file])
    if stale:
        changed.append("live rules")
    changed += [f"sysctl {name}" for name in settings]
    if not dry_run:
        for name, value in settings.items():
            machine.run(("sysctl", "-q", "-w", f"{name}={value}"))
        if stale:
            rules.load(wanted[rules.file])
        _keep(way, wanted, changed)
    notes, switched = _front(plan.front, way, changed, dry_run=dry_run)
    ended = live.cut(plan, machine, dry_run=dry_run) + _end_sessions(plan.front, way, dry_run=dry_run)
    return Applied(plan.host.name, tuple(changed + switched), ended, notes)


def _settings(plan: HostPlan, machine: Machine) -> dict[str, str]:
    """The kernel settings that are not as they should be; one that this kernel has not is no matter."""
    differing = {}
    for name, value in hostfiles.sysctl(plan.host).items():
        done = machine.attempt(("sysctl", "-n", name))
        if done.returncode == 0 and done.stdout.strip() != value:
            differing[name] = value
    return differing


def _keep(way: Way, wanted: dict[str, str], changed: list[str]) -> None:
    for name, text in wanted.items():
        if name in changed:
            way.machine.write(way.path(name), text)


def _front(front: Front | None, way: Way, changed: list[str], *, dry_run: bool) -> tuple[tuple[str, ...], list[str]]:
    """Maps by the running process, anything else by a reload; connections survive both."""
    if front is None:
        return (), []
    if front.guest is not None:
        return (f"the front runs in the guest {front.guest}: its files come with its seed and the role sni_front",), []
    running = way.front
    if routes.CONFIG in changed or not running.answers():
        return _reload(way, dry_run=dry_run), ["front reloaded"]
    if dry_run:
        return (), ["front maps"] if running.maps() != routes.maps(front) else []
    return (), ["front maps"] if running.update(front) else []


def _reload(way: Way, *, dry_run: bool) -> tuple[str, ...]:
    machine, config = way.machine, way.path(routes.CONFIG)
    command = way.reload
    if not command and machine.attempt(("test", "-d", _SYSTEMD)).returncode == 0:
        command = RELOAD
    if not command:
        return (f"no systemd here: start or reload the front yourself, haproxy -W -f {config}",)
    if dry_run:
        return ()
    machine.run(("haproxy", "-c", "-f", config))
    machine.run(command)
    return ()


def _end_sessions(front: Front | None, way: Way, *, dry_run: bool) -> int:
    if front is not None and front.guest is not None:
        return 0
    try:
        return way.front.cut(front, dry_run=dry_run)
    except HostError:
        return 0  # no front runs here: nobody is in it
