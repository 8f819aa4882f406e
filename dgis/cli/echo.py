"""``dgis echo``: C-ECHO to any AE."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from dgis.cli.output import EXIT_FAILED, EXIT_OK, EXIT_PARTLY, Format, console, format_option, print_json
from dgis.cli.peers import remote, target_options
from dgis.dimse.echo import EchoAnswer, echo_peer

_EXAMPLES = """\b
Examples:
  dgis echo ORTHANC@192.0.2.7:4242
  dgis echo VIEWER --home grid --count 5 --format json"""


@click.command("echo", epilog=_EXAMPLES)
@target_options
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 1000), help="How often, once a second.")
@format_option
def command(
    *, target: str, aet: str, timeout: float, tls: bool, home: Path, config: Path | None, count: int, fmt: Format
) -> None:
    """Associate with TARGET, send a C-ECHO, release; say in words what is wrong when it does not work.

    TARGET is an AE title of the AE table, the node's own, or AET@HOST:PORT. Exit code 3: only some answered.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    answers: list[EchoAnswer] = []
    for number in range(count):
        if number:
            time.sleep(1.0)
        answer = echo_peer(there.ae, there.peer)
        answers.append(answer)
        if fmt == "text":
            console().print(f"{there.where}: {answer.detail}", markup=False)
    good = sum(answer.ok for answer in answers)
    if fmt == "json":
        print_json(
            {
                "title": there.peer.title,
                "host": there.peer.host,
                "port": there.peer.port,
                "ok": good == count,
                "answers": [{"ok": a.ok, "detail": a.detail, "seconds": a.seconds} for a in answers],
            }
        )
    sys.exit(EXIT_OK if good == count else EXIT_PARTLY if good else EXIT_FAILED)
