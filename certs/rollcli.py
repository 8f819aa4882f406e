"""``dgis-certs rollover``: a new CA takes over from the old one, and nobody is cut off."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from certs import ca, rollover
from certs.credential import Credential

_PATH = click.Path(path_type=Path)
_home = click.option("--home", type=_PATH, required=True, envvar="DGIS_HOME", help="Directory of the site.")
_NONE = "no roll-over is under way"


@click.group("rollover")
def rollover_group() -> None:
    """Replace the issuing CA (and the root) while everything runs.

    \b
    Example, with the days between the steps that your trust directories and connections need:
      dgis-certs rollover start --home HOME
      dgis-certs rollover switch --home HOME
      dgis-certs rollover reissue */*.cert.pem --home HOME
      dgis-certs rollover status --home HOME
      dgis-certs rollover finish --home HOME
    """


@rollover_group.command()
@_home
@click.option("--new-root", is_flag=True, help="A new root as well; without it the old root's key must be at hand.")
def start(home: Path, new_root: bool) -> None:
    """Make the new CA and publish it with its CRL; the old one still issues."""
    plan = rollover.start(home, new_root=new_root)
    click.echo(f"{', '.join(plan.coming)}: published in {home / 'trust'}; bring that to all, then: switch", err=True)
    if new_root:
        key = home / "ca" / plan.coming[0] / f"{plan.coming[0]}.key.pem"
        click.echo(f"take {key} offline", err=True)


@rollover_group.command()
@_home
def switch(home: Path) -> None:
    """Let the new CA issue, renewals included."""
    plan = rollover.switch(home)
    click.echo(f"{plan.issuing} issues since {plan.switched}; renew everybody's certificate, then: finish", err=True)


@rollover_group.command()
@click.argument("files", metavar="CERT...", nargs=-1, required=True, type=_PATH)
@_home
def reissue(files: tuple[Path, ...], home: Path) -> None:
    """Certify these certificates' keys anew, in their files, where they are due or of the old CA."""
    for made in ca.renew_due(home, [Credential(path, path) for path in files]):
        click.echo(str(made.cert))


@rollover_group.command()
@_home
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(home: Path, form: str) -> None:
    """Show how far it is, and who still stands on the old CA."""
    plan = rollover.current(home)
    rows = rollover.standing(home) if plan is not None else ()
    if form == "json":
        known = asdict(plan) if plan is not None else None
        click.echo(json.dumps({"rollover": known, "standing": [asdict(row) for row in rows]}, indent=2))
    elif plan is None:
        click.echo(_NONE)
    else:
        click.echo(f"from {', '.join(plan.leaving)} to {', '.join(plan.coming)}")
        click.echo(f"published {plan.published or 'not yet: start'}, switched {plan.switched or 'not yet: switch'}")
        Console().print(_table(rows))


@rollover_group.command()
@_home
@click.option(
    "--settled-hours",
    type=click.FloatRange(0),
    default=rollover.SETTLED.total_seconds() / 3600,
    show_default=True,
    help="How long everybody must have had the new certificate: old connections end meanwhile.",
)
def finish(home: Path, settled_hours: float) -> None:
    """Take the old CA out of the trust directory, when nobody stands on it any more."""
    before = {path.name for path in (home / "trust").iterdir()}
    gone = rollover.finish(home, settled=timedelta(hours=settled_hours))
    away = home / "ca" / "retired"
    click.echo(f"{', '.join(gone)}: out of {home / 'trust'}; its key is in {away}: destroy it", err=True)
    files = " ".join(sorted(before - {path.name for path in (home / "trust").iterdir()}))
    click.echo(f"take these out of every copy of the trust directory: {files}", err=True)


def _table(rows: tuple[rollover.Standing, ...]) -> Table:
    table = Table(title="On the old CA", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("Name", "Ends (UTC)", "New certificate"):
        table.add_column(column, overflow="fold")
    for row in rows:
        again = Text(f"{datetime.fromisoformat(row.again):%Y-%m-%d %H:%M}") if row.again else Text("none", "yellow")
        table.add_row(Text(row.dn), f"{datetime.fromisoformat(row.not_after):%Y-%m-%d %H:%M}", again)
    return table
