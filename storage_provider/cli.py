"""`dgis-storage`: serve a storage element, and check what it keeps. Exit codes: 0 ok, 1 failed, 2 usage, 10 corrupt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from certs.config import load_toml
from certs.errors import CertsError
from certs.log import configure
from storage_provider.config import StorageConfig
from storage_provider.errors import StorageError
from storage_provider.fsck import Report, check

EXIT_FAILED = 1
EXIT_CORRUPT = 10

_config = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="The TOML file."
)


@click.group()
@click.version_option(package_name="dgis")
def main() -> None:
    """Keep content-addressed objects and hand them out to the grid."""


@main.command()
@_config
def serve(config: Path) -> None:
    """Serve a storage element until SIGTERM."""
    from storage_provider.node import run  # the server libraries take a third of a second to import

    try:
        settings = load_toml(config, StorageConfig)
        configure("dgis-storage", settings.log.level, settings.log.format)
        run(settings, ready=lambda urls: click.echo(f"ready: {settings.storage.name} at {', '.join(urls)}"))
    except (CertsError, StorageError) as error:
        _fail(str(error))


@main.command()
@_config
@click.option("--area", "only", multiple=True, help="Check only this area (may be repeated).")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def fsck(config: Path, only: tuple[str, ...], form: str) -> None:
    """Re-read every object and compare it with its name; changes nothing. Exit 10 when an object is not what it was."""
    try:
        settings = load_toml(config, StorageConfig)
    except CertsError as error:
        _fail(str(error))
    unknown = sorted(set(only) - {area.name for area in settings.area})
    if unknown:
        raise click.UsageError(f"no such area: {', '.join(unknown)}")
    names = [area.name for area in settings.area if not only or area.name in only]
    reports = {name: _check(settings.storage.root / name) for name in names}
    click.echo(_as_json(reports) if form == "json" else _as_text(reports))
    if not all(report.clean for report in reports.values()):
        sys.exit(EXIT_CORRUPT)


def _check(root: Path) -> Report:
    """Check with a line of progress on a terminal."""
    if not sys.stderr.isatty():
        return check(root)

    def show(report: Report) -> None:
        click.echo(f"\r{report.objects} objects, {report.bytes / 1e9:.2f} GB", nl=False, err=True)

    report = check(root, progress=show)
    click.echo(err=True)
    return report


def _as_json(reports: dict[str, Report]) -> str:
    return json.dumps(
        {
            name: {
                "objects": report.objects,
                "bytes": report.bytes,
                "corrupt": report.corrupt,
                "unreadable": report.unreadable,
                "foreign": report.foreign,
            }
            for name, report in reports.items()
        },
        indent=2,
    )


def _as_text(reports: dict[str, Report]) -> str:
    lines = []
    for name, report in reports.items():
        lines.append(f"{name}: {report.objects} objects, {report.bytes} bytes, {len(report.corrupt)} corrupt")
        lines += [f"  corrupt: {key} reads as {found}" for key, found in report.corrupt.items()]
        lines += [f"  unreadable: {key}: {reason}" for key, reason in report.unreadable.items()]
        lines += [f"  not an object: {key}" for key in report.foreign]
    return "\n".join(lines)


def _fail(reason: str) -> NoReturn:
    click.echo(f"dgis-storage: {reason}", err=True)
    sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
