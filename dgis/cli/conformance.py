"""``dgis conformance``: the DICOM Conformance Statement of a node."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Literal

import click

from dgis.cli.nodes import node_options, node_table, read_node
from dgis.cli.output import notes


@click.command("conformance", epilog="Example: dgis conformance --home grid --format html --out conformance.html")
@node_options
@click.option(
    "--format", "fmt", type=click.Choice(["md", "html"]), default="md", show_default=True, help="Output form."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write (default: standard output)."
)
@click.option("--local-default", is_flag=True, help="Of the configuration that dgis up writes, not of a node.")
def command(
    *, home: Path, config: Path | None, fmt: Literal["md", "html"], out: Path | None, local_default: bool
) -> None:
    """Write the DICOM Conformance Statement (PS3.2) of a node, from its configuration and from what it negotiates.

    Give it to whoever connects a device: it names SOP classes, roles, transfer syntaxes, query keys and statuses.
    """
    from dgis.conformance.render import html, markdown
    from dgis.conformance.statement import build
    from dgis.localgrid import default_node
    from dgis.node import dimse_settings

    node = default_node() if local_default else read_node(home, config)
    remotes = () if local_default else node_table(home, config).entries()
    statement = build(node, dimse_settings(node), remotes, version=version("dgis"))
    text = markdown(statement) if fmt == "md" else html(statement)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror}") from None
    notes().print(f"written to {out}", markup=False)
