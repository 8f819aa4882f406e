"""`dgis-catalog`: run and maintain a metacatalog. Exit codes: 0 ok, 1 failed, 2 usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

_CONFIG = click.option(
    "--config", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The catalog's TOML file.")
_FORMAT = click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dgis")
def main() -> None:
    """The metacatalog: which studies exist and where their verified copies lie."""


@main.command()
@_CONFIG
def serve(path: Path) -> None:
    """Answer requests until SIGTERM. A new database gets its schema."""
    from catalog import config, node

    with _failing():
        node.serve(config.load(path))


@main.command()
@_CONFIG
def migrate(path: Path) -> None:
    """Bring the database to the schema of this version. Harmless when it has it already."""
    from catalog import config, node

    with _failing(), node.opened(config.load(path), check=False) as store:
        store.migrate()
    click.echo("the schema is current", err=True)


@main.command()
@_CONFIG
@_FORMAT
def reindex(path: Path, style: str) -> None:
    """Rebuild every searchable column from the registered headers; storage elements are not asked.

    May run beside the service. When it is interrupted, the next run goes on from there.
    """
    from rich.console import Console
    from rich.progress import Progress

    from catalog import config, node

    done = 0
    console = Console(stderr=True)
    with _failing(), node.opened(config.load(path)) as store, Progress(
        console=console, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("reindex", total=store.instance_count())
        for count in store.reindex():
            done += count
            progress.update(task, completed=done)
    click.echo(json.dumps({"instances": done}) if style == "json" else f"{done} instances reindexed")


@contextmanager
def _failing() -> Iterator[None]:
    """Turn our errors into one line on stderr and exit code 1; anything else is a bug and shows itself."""
    from catalog.errors import CatalogError
    from certs.errors import CertsError

    try:
        yield
    except (CatalogError, CertsError, OSError) as error:
        click.echo(f"dgis-catalog: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
