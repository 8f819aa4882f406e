"""``dgis move``: C-MOVE; an AE sends what it has to another one."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import TaskID

from dgis.cli.output import Format, console, format_option, notes, print_json
from dgis.cli.peers import (
    LEVELS,
    Interrupt,
    ending_json,
    exit_code,
    key_options,
    nothing_found,
    progress_bar,
    remote,
    retrieve_identifier,
    retrieved,
    say,
    target_options,
    total_of,
)
from dgis.dimse.ask import Key, Model
from dgis.dimse.query_scu import Ending, PeerSilent, open_asking

_EXAMPLES = """\b
Examples:
  dgis move DGIS --home grid --to VIEWER -k StudyInstanceUID=1.2.3
  dgis move ORTHANC@192.0.2.7:4242 --to DGIS -k StudyInstanceUID='1.2.3\\1.2.4'
  dgis move DGIS --to VIEWER -k StudyInstanceUID=1.2.3 -k SeriesInstanceUID=1.2.3.4 --format json"""


@click.command("move", epilog=_EXAMPLES)
@target_options
@click.option("--to", "destination", required=True, metavar="TITLE", help="AE title to send to, as TARGET knows it.")
@click.option("--level", type=click.Choice(LEVELS), help="Query/Retrieve Level (default: of the deepest UID given).")
@key_options
@format_option
def command(
    *,
    target: str,
    aet: str,
    timeout: float,
    tls: bool,
    home: Path,
    config: Path | None,
    destination: str,
    level: str | None,
    keys: tuple[Key, ...],
    model: Model,
    fmt: Format,
) -> None:
    """Have TARGET send studies, series or images to the AE named by --to.

    TARGET is an AE title of the AE table, the node's own, or AET@HOST:PORT; it must know the destination. Progress is
    what TARGET reports. Ctrl-C cancels. Exit code 3: some instances were not sent.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    wanted = retrieve_identifier(keys, level)
    problem = ""
    with Interrupt() as interrupt, open_asking(there.ae, there.peer, model=model, service="move") as asking:
        with progress_bar() as bar:
            task: TaskID = bar.add_task(f"to {destination}", total=None)
            try:
                for counts, _ in asking.run(wanted, stop=interrupt, destination=destination):
                    if counts is not None:
                        done, total = total_of(counts)
                        bar.update(task, completed=done, total=total)
            except PeerSilent as error:
                problem = str(error)
        ending = asking.ending
    _report(fmt, ending, problem)
    sys.exit(exit_code(ok=ending is not None and ending.ok, some=retrieved(ending)))


def _report(fmt: Format, ending: Ending | None, problem: str) -> None:
    if fmt == "json":
        print_json(ending_json(ending, "move") if ending is not None else {"status": None, "comment": problem})
        return
    if ending is None:
        notes().print(f"not known how it ended: {problem}", markup=False)
        return
    counts = ending.counts
    if nothing_found(ending):
        notes().print("nothing matches: no instance was sent")
    elif counts is not None:
        console().print(f"{counts.completed} sent, {counts.warning} with warnings, {counts.failed} failed")
    if not ending.ok:
        notes().print(say(ending, "move"), markup=False)
    for uid in ending.failed:
        notes().print(f"failed: {uid}", markup=False, highlight=False)
