"""``dgis se``: the storage elements that the catalog knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from catalog.client import CatalogClient
from catalog.errors import CatalogError
from catalog.wire import Site, StorageElement
from dgis.cli.nodes import node_options, operator_session, read_node
from dgis.cli.output import Format, console, format_option, print_rows


@click.group("se", epilog="Example: dgis se list --home grid")
def command() -> None:
    """Storage elements: which there are, and by which doors they are reached."""


@contextmanager
def _catalog(home: Path, config: Path | None) -> Iterator[CatalogClient]:
    try:
        yield CatalogClient(operator_session(home, config), read_node(home, config).catalog.url)
    except CatalogError as error:
        raise click.ClickException(str(error)) from error


@command.command("list")
@node_options
@format_option
def list_command(*, home: Path, config: Path | None, fmt: Format) -> None:
    """List them."""
    with _catalog(home, config) as catalog:
        rows = [element.model_dump(mode="json") for element in catalog.storage_elements()]
    print_rows(fmt, "Storage elements", rows, empty="none; dgis se add NAME ... registers one")


@command.command(
    "add", epilog="Example: dgis se add se3 --site b --door https://se3.b.example:9443/areas/main --home grid"
)
@click.argument("name")
@click.option("--site", required=True, help="The institution that it stands in.")
@click.option("--door", "doors", multiple=True, required=True, help="A storage URL, best first (repeatable).")
@click.option("--state", type=click.Choice(["active", "readonly", "draining"]), default="active", show_default=True)
@node_options
def add_command(
    *,
    name: str,
    site: str,
    doors: tuple[str, ...],
    state: Literal["active", "readonly", "draining"],
    home: Path,
    config: Path | None,
) -> None:
    """Register one, or change what is registered. Needs the role operator in the catalog's gridmap."""
    try:
        element = StorageElement(name=name, site=site, doors=doors, state=state)
    except ValueError:
        raise click.UsageError("names have letters, digits, dot, dash and underscore only") from None
    with _catalog(home, config) as catalog:
        if site not in {known.name for known in catalog.sites()}:
            catalog.put_site(Site(name=site))
        catalog.put_storage_element(element)
    console().print(f"{name} at {', '.join(doors)}: {state}")
