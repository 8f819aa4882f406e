"""How every command prints: a table for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import click
from rich.console import Console
from rich.table import Table

Format = Literal["text", "json"]
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_PARTLY = 0, 1, 2, 3
F = TypeVar("F", bound=Callable[..., Any])


def format_option(function: F) -> F:
    """``--format text|json``."""
    return click.option(
        "--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form."
    )(function)


def console() -> Console:
    """Standard output as a rich console."""
    return Console()


def notes() -> Console:
    """Standard error as a rich console: progress, remarks, all that is not data."""
    return Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A table with a title; columns named in ``right`` are aligned to the right."""
    out = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    for column in columns:
        out.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*row)
    return out


def print_rows(
    fmt: Format, title: str, rows: Sequence[Mapping[str, Any]], *, right: Sequence[str] = (), empty: str = "nothing"
) -> None:
    """Rows of one shape as a table, or as a JSON list."""
    if fmt == "json":
        print_json(list(rows))
    elif not rows:
        notes().print(empty)
    else:
        columns = list(rows[0])
        console().print(table(title, columns, [[_cell(row.get(c)) for c in columns] for row in rows], right=right))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: 3 d 4 h, 12 min, 8 s."""
    if seconds >= 172800:
        return f"{seconds / 86400:.0f} d"
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
