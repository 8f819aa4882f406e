"""``dgis deploy`` commands that work on machines: apply, verify, watch."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from dgis.cli.deploy.files import FILE
from dgis.cli.output import EXIT_OK, EXIT_PARTLY, Format, console, format_option, notes, print_json, print_rows
from dgis.deploy.apply import Way
from dgis.deploy.topology import Host, Site

F = TypeVar("F", bound=Callable[..., Any])


def _machine_options(function: F) -> F:
    for option in (
        click.option("--host", help="The host of the site file; without it the one that has this machine's name."),
        click.option("--ssh", metavar="USER@ADDRESS", help="Work on it over ssh; without it on this machine."),
        click.option("--root", default="/etc/dgis/deploy", show_default=True, help="Where the host keeps its files."),
        click.option("--socket", help="HAProxy's administration socket.  [default: /run/haproxy/dgis.sock]"),
        click.option("--reload", help="How to reload HAProxy, where systemd does not."),
    ):
        function = option(function)
    return function


def _way(
    site: Site, name: str | None, ssh: str | None, root: str, socket_: str | None, reload: str | None
) -> tuple[Host, Way]:
    from dgis.deploy import routes
    from dgis.deploy.machine import Machine

    wanted = name or socket.gethostname().split(".")[0]
    names = [host.name for host in site.hosts]
    if wanted not in names:
        if name is None and len(names) == 1 and ssh is not None:
            wanted = names[0]
        else:
            raise click.UsageError(f"the site file has no host {wanted}; say by --host which: {', '.join(names)}")
    host = site.host(wanted)
    machine = Machine.over_ssh(ssh, port=host.ssh_port) if ssh else Machine()
    return host, Way(machine, root, socket_ or routes.SOCKET, tuple(shlex.split(reload or "")))


@click.command("apply", epilog="Example: dgis deploy apply site.yml --host xen1 --ssh root@xen1.example --dry-run")
@click.argument("file", metavar="FILE", type=FILE)
@_machine_options
@click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
@format_option
def apply(
    *,
    file: Path,
    host: str | None,
    ssh: str | None,
    root: str,
    socket: str | None,
    reload: str | None,
    dry_run: bool,
    fmt: Format,
) -> None:
    """Make a host do what the file says: rules in one step, the front's routes without a reload, kernel settings.

    Established connections survive; those that the file no longer allows are cut. A second run changes nothing.
    """
    from dgis.deploy import apply as applying
    from dgis.deploy import check, flows, plan

    site = check.load(file)
    where, way = _way(site, host, ssh, root, socket, reload)
    done = applying.apply(plan.plan(site, flows.derive(site), where), way, dry_run=dry_run)
    if fmt == "json":
        print_json(asdict(done))
        return
    verb = "would change" if dry_run else "changed"
    console().print(f"{done.host}: {verb} {', '.join(done.changed) or 'nothing'}", highlight=False, soft_wrap=True)
    if done.cut:
        text = f"{done.host}: {done.cut} connections {'would be' if dry_run else 'were'} cut"
        console().print(text, highlight=False, soft_wrap=True)
    for note in done.notes:
        notes().print(note, highlight=False, markup=False, soft_wrap=True)


@click.command(
    "verify",
    epilog="Example: dgis deploy verify site.yml --host xen1 --vantage outside='ssh me@elsewhere.example'",
)
@click.argument("file", metavar="FILE", type=FILE)
@_machine_options
@click.option(
    "--vantage", "vantages", multiple=True, metavar="NAME[@ADDRESS]=COMMAND",
    help="Try from there too: outside, lan, or a guest's name; COMMAND goes before what is run, as ssh does; ADDRESS is how the site sees it.",
)  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Show what is as written, too, not only drift.")
@format_option
def verify(
    *,
    file: Path,
    host: str | None,
    ssh: str | None,
    root: str,
    socket: str | None,
    reload: str | None,
    vantages: tuple[str, ...],
    every: bool,
    fmt: Format,
) -> None:
    """Hold file, kept files, live rules, front and reality against one another, and try every way.

    Without --vantage it is tried from the host itself only. Exit code 3 when something drifted.
    """
    from dgis.deploy import check, flows, plan
    from dgis.deploy import verify as verifying

    site = check.load(file)
    where, way = _way(site, host, ssh, root, socket, reload)
    derived = flows.derive(site)
    wanted = plan.plan(site, derived, where)
    rows = [*verifying.of_host(wanted, way)]
    for vantage in (verifying.Vantage("host", way.machine), *_vantages(vantages)):
        rows += _tried(verifying, site, derived, wanted, vantage)
    drifted = [row for row in rows if row.state == "drift"]
    shown = [asdict(row) for row in rows if every or fmt == "json" or row.state != "as written"]
    print_rows(
        fmt, f"{where.name}: {len(drifted)} of {len(rows)} drifted", shown, empty=f"{len(rows)} checks, no drift"
    )
    sys.exit(EXIT_PARTLY if drifted else EXIT_OK)


def _vantages(given: tuple[str, ...]) -> Iterator[Any]:
    from dgis.deploy.machine import Machine
    from dgis.deploy.verify import Vantage

    for text in given:
        name, equals, command = text.partition("=")
        words = tuple(shlex.split(command))
        if not (name and equals and words):
            raise click.BadParameter(f"{text!r} is not NAME=COMMAND", param_hint="--vantage")
        name, at, address = name.partition("@")
        try:
            seen = IPv4Address(address) if at else None
        except ValueError:
            raise click.BadParameter(f"{address} is no IPv4 address", param_hint="--vantage") from None
        yield Vantage(name, Machine(words, quoted=words[0].rsplit("/", 1)[-1] == "ssh"), seen)


def _tried(verifying: Any, site: Site, derived: Any, wanted: Any, vantage: Any) -> list[Any]:
    from dgis.deploy.errors import HostError

    try:
        return list(verifying.from_vantage(site, derived, wanted, vantage))
    except HostError as error:
        return [verifying.unreachable(wanted.host.name, vantage, error)]


@click.command("watch", epilog="Example: dgis deploy watch /etc/dgis/deploy/site.yml --host xen1 --every 5")
@click.argument("file", metavar="FILE", type=FILE)
@_machine_options
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
@click.option("--once", is_flag=True, help="Look once and end.")
def watch(
    *,
    file: Path,
    host: str | None,
    ssh: str | None,
    root: str,
    socket: str | None,
    reload: str | None,
    means: Literal["auto", "virsh", "xl", "heartbeat"],
    every: float,
    patience: int,
    once: bool,
) -> None:
    """Keep a host in step with its running guests and with the file, until Ctrl-C.

    The doors of a guest that stops are shut and its connections end; they open when it runs again. A broken file, or
    a hypervisor that does not answer, changes nothing and is said.
    """
    from dgis.deploy import check
    from dgis.deploy.watch import Watch, Watched

    where, way = _way(check.load(file), host, ssh, root, socket, reload)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    state = Watch(Watched(file, where.name, way, None if means == "auto" else means, patience))
    for line in state.looks(lambda: not once and not stop.wait(every)):
        click.echo(line)
