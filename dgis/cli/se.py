"""``dgis se``: the storage elements that the catalog knows, their doors, and what these are like."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click
from rich.markup import escape

from catalog.client import CatalogClient
from catalog.errors import CatalogError
from catalog.wire import Site, StorageElement
from dgis.board import BoardElement, read_board
from dgis.cli.nodes import node_options, operator_session, read_node
from dgis.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PARTLY,
    Format,
    console,
    format_option,
    notes,
    print_json,
    print_rows,
    table,
)
from dgis.config import NodeConfig
from storage_provider.channel import Channel
from storage_provider.errors import DoorURL, StorageError
from storage_provider.transfer.route import by_preference

_MB = 10**6


@click.group("se", epilog="Example: dgis se list --home grid")
def command() -> None:
    """Storage elements: which there are, by which doors they are reached, and how well."""


@contextmanager
def _catalog(home: Path, config: Path | None) -> Iterator[CatalogClient]:
    try:
        yield CatalogClient(operator_session(home, config), read_node(home, config).catalog.url)
    except CatalogError as error:
        raise click.ClickException(str(error)) from error


@command.command("list", epilog="Example: dgis se list --home grid --format json")
@node_options
@format_option
def list_command(*, home: Path, config: Path | None, fmt: Format) -> None:
    """List them with their doors, best first, and the door that this node's transfers use now."""
    with _catalog(home, config) as catalog:
        elements = catalog.storage_elements()
    board = read_board(read_node(home, config).dgis.spool)
    seen = {element.name: element for element in board.elements} if board else {}
    rows = [_row(element, seen.get(element.name)) for element in elements]
    if fmt == "json":
        print_json(rows)
    elif not rows:
        notes().print("none; dgis se add NAME ... registers one")
    else:
        lines = [[row["name"], row["site"], row["state"], *_door_cells(door)] for row in rows for door in row["doors"]]
        console().print(table("Storage elements", ("Element", "Site", "Mode", "Door", "State", "Last error"), lines))


def _row(element: StorageElement, seen: BoardElement | None) -> dict[str, Any]:
    known = {door.url: door for door in seen.doors} if seen else {}
    doors = []
    for url in element.doors:
        door = known.get(url)
        doors.append(
            {
                "url": url,
                "in_use": door.in_use if door else False,
                "reachable": door.reachable if door else None,
                "last_error": door.last_error if door else None,
            }
        )
    return {"name": element.name, "site": element.site, "state": element.state, "doors": doors}


def _door_cells(door: dict[str, Any]) -> list[str]:
    state = "[red]down[/red]" if door["reachable"] is False else "[green]in use[/green]" if door["in_use"] else ""
    return [door["url"], state, door["last_error"] or ""]


def _opener(node: NodeConfig) -> Callable[[str], Channel]:
    """Channels as this node's own transfers open them (the libraries take a third of a second to import)."""
    from certs.https.session import GridSession
    from dgis.node import open_doors

    return open_doors(node, GridSession(node.identity))


@command.command(
    "add",
    epilog="Example: dgis se add se3 --site b --door gsiftp://se3.b.example:2811/areas/main "
    "--door https://se3.b.example:9443/areas/main --home grid",
)
@click.argument("name")
@click.option("--site", required=True, help="The institution that it stands in.")
@click.option("--door", "doors", multiple=True, required=True, help="A storage URL (repeatable).")
@click.option("--ordered", is_flag=True, help="Keep the doors in the order given; otherwise gsiftp, sftp, https.")
@click.option("--state", type=click.Choice(["active", "readonly", "draining"]), default="active", show_default=True)
@node_options
def add_command(
    *,
    name: str,
    site: str,
    doors: tuple[str, ...],
    ordered: bool,
    state: Literal["active", "readonly", "draining"],
    home: Path,
    config: Path | None,
) -> None:
    """Register one, or change what is registered. Needs the role operator in the catalog's gridmap.

    A door is gsiftp://HOST:PORT/PATH, sftp://[USER@]HOST:PORT/PATH or https://HOST:PORT/areas/NAME. The path
    /areas/NAME means a provider of dgis; any other one is a directory of a GridFTP server or sshd (docs/storage.md).

    Refused when a door is another element's, or a provider that answers there calls itself otherwise than NAME: one
    file under two names would count as two copies.
    """
    open_door = _opener(read_node(home, config))
    for door in doors:
        _check_whose(open_door, door, name)
    wanted = tuple(dict.fromkeys(doors)) if ordered else by_preference(doors)
    try:
        element = StorageElement(name=name, site=site, doors=wanted, state=state)
    except ValueError:
        raise click.UsageError("names have letters, digits, dot, dash and underscore only") from None
    with _catalog(home, config) as catalog:
        if site not in {known.name for known in catalog.sites()}:
            catalog.put_site(Site(name=site))
        catalog.put_storage_element(element)
    console().print(f"{name} at {', '.join(wanted)}: {state}")


def _check_whose(open_door: Callable[[str], Channel], door: str, name: str) -> None:
    """Refuse a door that cannot be, or where another element answers; warn when nobody can be asked now."""
    from dgis.doortest import element_behind

    try:
        said = element_behind(open_door, door)
    except DoorURL as error:
        raise click.UsageError(f"{door}: {error.detail}") from None
    except StorageError as error:
        text = f"{door} does not say whose it is ({error.detail}); make sure that it is {name}'s: dgis se test {name}"
        notes().print(f"[yellow]![/yellow] {escape(text)}", highlight=False)
        return
    if said not in (None, name):
        raise click.ClickException(
            f"{door}: the storage element that answers there says that it is {said}, not {name}; "
            "one file under two names would count as two copies"
        )


@command.command("remove", epilog="Example: dgis se remove se3 --home grid")
@click.argument("name")
@click.option("--lost", is_flag=True, help="It is gone for good: its copies count as lost.")
@node_options
def remove_command(*, name: str, lost: bool, home: Path, config: Path | None) -> None:
    """Take one out of the catalog; refused while it has copies. Needs the role operator in the catalog's gridmap."""
    with _catalog(home, config) as catalog:
        reply = catalog.remove_storage_element(name, lost=lost)
    if reply.last:
        notes().print(f"[red]![/red] {reply.last} objects have no other copy", highlight=False)
    console().print(f"{name} is out" + (f"; {reply.lost} copies count as lost" if lost else ""))


@command.command("test", epilog="Example: dgis se test se1 --size 64 --home grid")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--size", default=16.0, show_default=True, type=click.FloatRange(0.001, 4096), help="MB to put and get.")
@node_options
@format_option
def test_command(*, names: tuple[str, ...], size: float, home: Path, config: Path | None, fmt: Format) -> None:
    """Put, get, compare and delete a random object by every door, as this node; show latency and MB/s.

    Exit code 0 when every door did, 3 when some did, 1 when none.
    """
    with _catalog(home, config) as catalog:
        elements = catalog.storage_elements()
    unknown = sorted(set(names) - {element.name for element in elements})
    if unknown:
        raise click.UsageError(f"no storage element {', '.join(unknown)}; dgis se list shows them")
    wanted = [element for element in elements if not names or element.name in names]
    rows = list(_examined(read_node(home, config), wanted, int(size * _MB)))
    right = ("connect_ms", "answer_ms", "put_mb_s", "get_mb_s")
    print_rows(fmt, f"Doors, {size:g} MB", rows, right=right, empty="no storage elements")
    well = sum(not row["trouble"] for row in rows)
    sys.exit(EXIT_OK if well == len(rows) else EXIT_PARTLY if well else EXIT_FAILED)


def _examined(node: NodeConfig, elements: list[StorageElement], size: int) -> Iterator[dict[str, Any]]:
    from dgis.doortest import examine

    open_door = _opener(node)
    with tempfile.TemporaryDirectory(prefix="dgis-se-test-") as scratch:
        for element in elements:
            for door in element.doors:
                notes().print(f"{element.name}: {door}", style="dim")
                yield {"element": element.name, **asdict(examine(open_door, door, size=size, scratch=Path(scratch)))}
