"""``dgis conflicts``: instances that came twice with different content, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from catalog.client import CatalogClient
from catalog.errors import CatalogError
from dgis.cli.nodes import node_options, operator_session, read_node
from dgis.cli.output import Format, console, format_option, print_rows


@click.group("conflicts", epilog="Example: dgis conflicts list --home grid")
def command() -> None:
    """Instances that came twice with different content: the first is shown, the second is safe in quarantine."""


@contextmanager
def _catalog(home: Path, config: Path | None) -> Iterator[CatalogClient]:
    try:
        yield CatalogClient(operator_session(home, config), read_node(home, config).catalog.url)
    except CatalogError as error:
        raise click.ClickException(str(error)) from error


@command.command("list")
@node_options
@click.option("--state", default="open", show_default=True, help="open, kept_first, replaced, reported, or all.")
@format_option
def list_command(*, home: Path, config: Path | None, state: str, fmt: Format) -> None:
    """List them, oldest first. Kinds: content; syntax (only the transfer syntax differs); patient (a study's second
    patient, reported and nothing else)."""
    with _catalog(home, config) as catalog:
        rows = [
            {
                "id": conflict.id,
                "kind": conflict.kind,
                "state": conflict.state,
                "instance_uid": conflict.instance_uid,
                "source_ae": conflict.source_ae,
                "opened_at": conflict.opened_at.isoformat(timespec="seconds"),
                "kept": conflict.kept.object_key if conflict.kept else None,
                "quarantined": conflict.quarantined.object_key if conflict.quarantined else None,
            }
            for conflict in catalog.conflicts(state=state)
        ]
    shown = rows if fmt == "json" else [{k: v for k, v in r.items() if k not in ("kept", "quarantined")} for r in rows]
    print_rows(fmt, "Conflicts", shown, empty="no conflicts")


@command.command("resolve")
@click.argument("conflict_id")
@click.argument("action", type=click.Choice(["keep_first", "replace"]))
@node_options
def resolve_command(
    *, conflict_id: str, action: Literal["keep_first", "replace"], home: Path, config: Path | None
) -> None:
    """Decide one: keep_first leaves what is shown, replace shows the second copy from now on.

    Neither copy is deleted.
    """
    with _catalog(home, config) as catalog:
        catalog.resolve_conflict(conflict_id, action=action)
    console().print(f"conflict {conflict_id}: {action}")
