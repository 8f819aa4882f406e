"""``dgis deploy`` commands that work on machines: apply, verify, watch."""

from __future__ import annotations

import functools
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import click

from dgis.cli.deploy.files import FILE
from dgis.cli.output import EXIT_OK, EXIT_PARTLY, Format, console, format_option, notes, print_json, print_rows
from dgis.deploy.apply import Way
from dgis.deploy.topology import Host, Site

if TYPE_CHECKING:
    from dgis.deploy.verify import Vantage

P = ParamSpec("P")
R = TypeVar("R")
_KEPT = "dgis.cli.deploy.target"


@dataclass(frozen=True, slots=True)
class Target:
    """Which host of a site file is worked on, and by which way; the fields are the options of `on_a_machine`."""

    host: str | None
    ssh: str | None
    root: str
    socket: str | None
    reload: str | None

    def of(self, site: Site) -> tuple[Host, Way]:
        """The host and the way to it. Raises UsageError when the site has no such host."""
        from dgis.deploy import routes
        from dgis.deploy.machine import Machine

        host = site.host(self._name(site))
        machine = Machine.over_ssh(self.ssh, port=host.ssh_port) if self.ssh else Machine()
        return host, Way(machine, self.root, self.socket or routes.SOCKET, _words(self.reload or "", "--reload"))

    def _name(self, site: Site) -> str:
        names = [host.name for host in site.hosts]
        if self.host is None and self.ssh is not None and len(names) == 1:
            return names[0]
        wanted = self.host or socket.gethostname().split(".")[0]
        if wanted not in names:
            raise click.UsageError(f"the site file has no host {wanted}; say by --host which: {', '.join(names)}")
        return wanted


def on_a_machine(function: Callable[Concatenate[Target, P], R]) -> Callable[P, R]:
    """Options that say which machine; the command gets them as a Target, its first argument."""

    def command(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> R:
        given = context.meta[_KEPT]
        return function(Target(*(given[field.name] for field in fields(Target))), *args, **kwargs)

    def keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        context.meta.setdefault(_KEPT, {})[parameter.name] = value

    # its own options and its text were hung onto the function itself
    functools.update_wrapper(command, function)
    wrapped = click.pass_context(command)
    for name, help_text, default, metavar in reversed(_TARGET_OPTIONS):
        wrapped = click.option(
            name,
            help=help_text,
            default=default,
            show_default=default is not None,
            metavar=metavar,
            callback=keep,
            expose_value=False,
        )(wrapped)
    return wrapped


_TARGET_OPTIONS: tuple[tuple[str, str, str | None, str | None], ...] = (
    ("--host", "The host of the site file; without it the one that has this machine's name.", None, "NAME"),
    ("--ssh", "Work on it over ssh; without it on this machine.", None, "USER@ADDRESS"),
    ("--root", "Where the host keeps its files.", "/etc/dgis/deploy", "DIRECTORY"),
    ("--socket", "HAProxy's administration socket.  [default: /run/haproxy/dgis.sock]", None, "PATH"),
    ("--reload", "How to reload HAProxy, where systemd does not.", None, "COMMAND"),
)


FORCE = click.option(
    "--force",
    is_flag=True,
    help="Also when the rules shut out whoever asks for them by ssh, from no address of admins.",
)
ALL_GUESTS = click.option(
    "--all-guests", is_flag=True,
    help="Guests without roles, too; without it those, which other projects define and start under names of their own, "
    "count as running.",
)  # fmt: skip


@click.command("apply", epilog="Example: dgis deploy apply site.yml --host xen1 --ssh root@xen1.example --dry-run")
@click.argument("file", metavar="FILE", type=FILE)
@on_a_machine
@click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
@FORCE
@format_option
def apply(target: Target, *, file: Path, dry_run: bool, force: bool, fmt: Format) -> None:
    """Make a host do what the file says: rules in one step, the front's routes without a reload, kernel settings.

    Established connections survive; those that the file no longer allows are cut. A second run changes nothing.
    """
    from dgis.deploy import apply as applying
    from dgis.deploy import check, flows, plan

    site = check.load(file)
    where, way = target.of(site)
    done = applying.apply(plan.plan(site, flows.derive(site), where), way, dry_run=dry_run, force=force)
    if fmt == "json":
        print_json(asdict(done))
        return
    lines = [f"{done.host}: {'would change' if dry_run else 'changed'} {', '.join(done.changed) or 'nothing'}"]
    if done.cut:
        counted = "1 connection" if done.cut == 1 else f"{done.cut} connections"
        lines.append(f"{done.host}: {'would cut' if dry_run else 'cut'} {counted}")
    for line in lines:
        console().print(line, highlight=False, markup=False, soft_wrap=True)
    for note in done.notes:
        notes().print(note, highlight=False, markup=False, soft_wrap=True)


@click.command(
    "verify",
    epilog="Example: dgis deploy verify site.yml --host xen1 --vantage outside='ssh me@elsewhere.example'",
)
@click.argument("file", metavar="FILE", type=FILE)
@on_a_machine
@click.option(
    "--vantage", "vantages", multiple=True, metavar="NAME[@ADDRESS]=COMMAND",
    help="Try from there too: outside, lan, a guest's name or a peer's site; COMMAND goes before what is run, as ssh "
    "does; ADDRESS is how the site sees it.",
)  # fmt: skip
@click.option(
    "--patience", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Seconds to wait for an answer."
)
@click.option(
    "--guests", "means", type=click.Choice(["all", "auto", "virsh", "xl", "heartbeat"]), default="all",
    show_default=True, help="Whose doors have to be open: all guests', or those of guests that run, as watch asks.",
)  # fmt: skip
@ALL_GUESTS
@click.option("--all", "every", is_flag=True, help="Show what is as written, too, not only drift.")
@format_option
def verify(
    target: Target,
    *,
    file: Path,
    vantages: tuple[str, ...],
    patience: float,
    means: Literal["all", "auto", "virsh", "xl", "heartbeat"],
    all_guests: bool,
    every: bool,
    fmt: Format,
) -> None:
    """Hold file, kept files, live rules, front and reality against one another, and try every way.

    Without --vantage it is tried from the host itself only. Exit code 3 when something drifted.
    """
    from dgis.deploy import check, flows, guests, plan
    from dgis.deploy import verify as verifying

    site = check.load(file)
    where, way = target.of(site)
    places = tuple(_vantages(site, vantages))
    derived = flows.derive(site)
    running = None
    if means != "all":
        alive = guests.running(site, where, way.machine, guests.means_of(where) if means == "auto" else means)
        running = guests.doors(site, where, alive, every=all_guests)
    made = plan.plan(site, derived, where, running=running)
    rows = verifying.report(site, derived, made, way, places, patience=patience)
    drifted = [row for row in rows if row.state == "drift"]
    if fmt == "json":
        print_json([asdict(row) for row in rows])
    else:
        shown = _shown([asdict(row) for row in rows if every or row.state != "as written"])
        title = f"{where.name}: {len(drifted)} of {len(rows)} drifted"
        print_rows(fmt, title, shown, empty=f"{where.name}: {len(rows)} checks, no drift")
    sys.exit(EXIT_PARTLY if drifted else EXIT_OK)


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for people: the host stands in the title, and so does the state when it is the same in all."""
    left_out = {"host"} | ({"state"} if all(row["state"] == "drift" for row in rows) else set())
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


def _vantages(site: Site, given: tuple[str, ...]) -> Iterator[Vantage]:
    from dgis.deploy.machine import Machine
    from dgis.deploy.verify import Vantage

    known = ["outside", "lan", *(guest.name for guest in site.guests), *(peer.site for peer in site.peers)]
    for text in given:
        place, equals, command = text.partition("=")
        name, at, address = place.partition("@")
        words = _words(command, "--vantage")
        if not (name and equals and words):
            raise _wrong("--vantage", f"{text!r} is not NAME=COMMAND, like outside='ssh me@elsewhere.example'")
        if name not in known:
            raise _wrong("--vantage", f"{name} is no place of this site; write one of {', '.join(known)}")
        try:
            seen = IPv4Address(address) if at else None
        except ValueError:
            raise _wrong("--vantage", f"{address or 'nothing'} after @ is no IPv4 address") from None
        yield Vantage(name, Machine.behind(words), seen)


def _words(command: str, option: str) -> tuple[str, ...]:
    """A command as a shell takes it apart."""
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise _wrong(option, f"{command!r} is no command line: {error}") from None


def _wrong(option: str, text: str) -> click.BadParameter:
    return click.BadParameter(text, param_hint=option)


@click.command("watch", epilog="Example: dgis deploy watch /etc/dgis/deploy/site.yml --host xen1 --every 5")
@click.argument("file", metavar="FILE", type=FILE)
@on_a_machine
@click.option(
    "--guests", "means", type=click.Choice(["auto", "virsh", "xl", "heartbeat"]), default="auto", show_default=True,
    help="Who says which guests run: the hypervisor's tool, or the guests by answering.",
)  # fmt: skip
@click.option(
    "--every", type=click.FloatRange(0.2, 3600), default=5.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--patience", type=click.IntRange(1, 100), default=2, show_default=True, help="Looks that must miss a guest."
)
@ALL_GUESTS
@click.option("--once", is_flag=True, help="Look once and end; a guest that is missed then is missing.")
@FORCE
def watch(
    target: Target,
    *,
    file: Path,
    means: Literal["auto", "virsh", "xl", "heartbeat"],
    every: float,
    patience: int,
    all_guests: bool,
    once: bool,
    force: bool,
) -> None:
    """Keep a host in step with its running guests and with the file, until Ctrl-C.

    The doors of a guest with roles that stops are shut and its connections end; they open when it runs again. A broken
    file, or a hypervisor that does not answer, changes nothing and is said.
    """
    from dgis.deploy import check
    from dgis.deploy.watch import Watch, Watched

    where, way = target.of(check.load(file))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    asked, looks = None if means == "auto" else means, 1 if once else patience
    state = Watch(Watched(file, where.name, way, asked, looks, all_guests, force))
    for line in state.looks(lambda: not once and not stop.wait(every)):
        click.echo(line)
