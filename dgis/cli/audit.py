"""``dgis audit``: whether the audit trail is whole, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import click

from certs.audit.event import Kind
from certs.audit.journal import files_of
from certs.audit.trail import Entry, entries, matches, verify
from dgis.cli.output import EXIT_FAILED, EXIT_OK, Format, console, format_option, print_json, print_rows

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
KINDS: tuple[Kind, ...] = get_args(Kind)


@click.group("audit", epilog="Example: dgis audit search --study 1.2.840.1 --home grid")
def command() -> None:
    """The audit trail: is it whole, and what does it say."""


def _where(home: Path, directory: Path | None) -> Path:
    found = directory or home / "catalog" / "audit"
    if not found.is_dir() or not files_of(found):
        raise click.UsageError(
            f"there is no audit trail in {found}: name a local grid with --home, or a catalog's [audit] directory "
            "with --directory"
        )
    return found


_home = click.option(
    "--home", type=_DIRECTORY, default=Path(".grid"), show_default=True, envvar="DGIS_HOME", help="A local grid."
)
_directory = click.option("--directory", type=_DIRECTORY, help="The directory of a trail, in place of a local grid's.")


@command.command("verify", epilog="Example: dgis audit verify --home grid")
@_home
@_directory
@format_option
def verify_command(*, home: Path, directory: Path | None, fmt: Format) -> None:
    """Check that no record was changed, taken out, put in or moved. Exit code 1 when one was.

    Not found by this alone: records, or files, cut off at the end. Keep a copy elsewhere.
    """
    verdict = verify(_where(home, directory))
    if fmt == "json":
        print_json({"records": verdict.records, "breaks": list(verdict.breaks)})
    else:
        for one in verdict.breaks:
            console().print(one, style="red", soft_wrap=True, highlight=False, markup=False)
        click.echo(f"{verdict.records} records, {len(verdict.breaks) or 'no'} breaks")
    sys.exit(EXIT_FAILED if verdict.breaks else EXIT_OK)


@command.command("search", epilog="Example: dgis audit search --actor ae:VIEWER@local --kind access --home grid")
@click.option("--study", help="Study Instance UID.")
@click.option("--actor", help="A DN, or ae:TITLE@SITE: who did it, or through whom.")
@click.option("--kind", type=click.Choice(KINDS), help="What was done.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="The newest so many.")
@_home
@_directory
@format_option
def search_command(
    *,
    study: str | None,
    actor: str | None,
    kind: Kind | None,
    limit: int,
    home: Path,
    directory: Path | None,
    fmt: Format,
) -> None:
    """List records, the oldest first: of a study, by an actor, of a kind."""
    found = [one for one in entries(_where(home, directory)) if matches(one, study=study, actor=actor, kind=kind)]
    print_rows(fmt, "Audit trail", [_row(one) for one in found[-limit:]], empty="no record says so")


def _row(entry: Entry) -> dict[str, object]:
    event = entry.event
    return {
        "at": f"{event.at:%Y-%m-%d %H:%M:%S}",
        "kind": event.kind,
        "actor": event.actor,
        "through": "" if event.peer == event.actor else event.peer,
        "outcome": "done" if event.outcome == 0 else "not done",
        "studies": list(event.studies),
        "count": event.count,
        "detail": event.detail,
    }
