"""``dgis send``: C-STORE of files, folders and DICOMDIR media to any AE, in the transfer syntax they are stored in."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from dgis.cli.output import Format, console, format_option, notes, print_json, size, table
from dgis.cli.peers import Interrupt, Remote, exit_code, progress_bar, remote, target_options
from dgis.dimse.outgoing import Outgoing
from dgis.dimse.scu import StoreSender, outcome
from dgis.dimse.status import meaning
from dgis.medium import NotAnInstance, find_files, open_instance
from dgis.part10 import Part10Error

_EXAMPLES = """\b
Examples:
  dgis send DGIS --home grid /archive/phantoms
  dgis send ORTHANC@192.0.2.7:4242 /media/cdrom/DICOMDIR
  dgis send PACS@192.0.2.7:104 study/*.dcm --aet CT1 --format json"""


@dataclass(slots=True)
class _Tally:
    sent: list[Outgoing] = field(default_factory=list)
    size: int = 0
    warnings: list[tuple[Path, str]] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)


@click.command("send", epilog=_EXAMPLES)
@target_options
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@format_option
def command(
    *,
    target: str,
    paths: tuple[Path, ...],
    aet: str,
    timeout: float,
    tls: bool,
    home: Path,
    config: Path | None,
    fmt: Format,
) -> None:
    """Send every DICOM file of PATHS (files, folders, a DICOMDIR) to TARGET, byte for byte.

    TARGET is an AE title of the AE table, the node's own, or AET@HOST:PORT. Each file that was not stored is named
    with the reason. Ctrl-C stops. Exit code 3: some files were not stored.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    tally = _Tally()
    started = time.monotonic()
    with Interrupt() as interrupt, progress_bar() as bar:
        items = _read(list(find_files(paths)), bar, tally, interrupt)
        if items:
            _send(there, items, bar, tally, interrupt)
    if not items and not tally.failures:
        raise click.ClickException("there are no files below the given paths")
    _report(fmt, there, tally, time.monotonic() - started)
    whole = not tally.failures and not interrupt.asked
    sys.exit(exit_code(ok=whole, some=bool(tally.sent)))


def _read(files: list[Path], bar: Progress, tally: _Tally, stop: Callable[[], bool]) -> list[Outgoing]:
    """What each file holds; those that are no instance are failures."""
    task = bar.add_task("reading", total=len(files))
    items = []
    for path in files:
        if stop():
            break
        try:
            found = open_instance(path)
            length = path.stat().st_size - found.data_set_offset
        except (NotAnInstance, Part10Error) as error:
            tally.failures.append((path, str(error)))
        except OSError as error:
            tally.failures.append((path, error.strerror or "it cannot be read"))
        else:
            items.append(
                Outgoing(
                    found.sop_class_uid, found.instance_uid, found.transfer_syntax, path, found.data_set_offset, length
                )
            )
        bar.advance(task)
    bar.remove_task(task)
    return items


def _send(there: Remote, items: list[Outgoing], bar: Progress, tally: _Tally, stop: Callable[[], bool]) -> None:
    kinds = [(item.sop_class, item.transfer_syntax) for item in items]
    sender = StoreSender(there.ae, there.peer, kinds, originator=None, cancelled=stop)
    task = bar.add_task("sending", total=len(items))
    try:
        for item in items:
            if stop():
                tally.failures.append((item.path, "not sent: interrupted"))
                continue
            _send_one(sender, item, tally)
            bar.advance(task)
    finally:
        sender.close()


def _send_one(sender: StoreSender, item: Outgoing, tally: _Tally) -> None:
    try:
        answer = sender.send(item)
    except OSError as error:
        tally.failures.append((item.path, error.strerror or str(error)))
        return
    how = outcome(answer)
    if how == "failed":
        tally.failures.append((item.path, _reason(answer, sender.reason)))
        return
    tally.sent.append(item)
    tally.size += item.length
    if how == "warning":
        tally.warnings.append((item.path, _reason(answer, sender.reason)))


def _reason(answer: int | None, remark: str) -> str:
    if answer is None:
        return remark or "not delivered"
    text = f"{answer:04X}: {meaning(answer, 'store')}"
    return f"{text} ({remark})" if remark else text


def _report(fmt: Format, there: Remote, tally: _Tally, seconds: float) -> None:
    if fmt == "json":
        print_json(
            {
                "sent": len(tally.sent),
                "bytes": tally.size,
                "seconds": round(seconds, 3),
                "warnings": _pairs(tally.warnings),
                "failures": _pairs(tally.failures),
            }
        )
        return
    for title, pairs in (("Stored with a warning", tally.warnings), ("Not stored", tally.failures)):
        if pairs:
            notes().print(table(title, ("File", "Reason"), [[str(path), reason] for path, reason in pairs]))
    rate = len(tally.sent) / seconds if seconds > 0 else 0.0
    console().print(
        f"{len(tally.sent)} stored at {there.where} ({size(tally.size)}, {rate:.0f}/s), {len(tally.failures)} not",
        markup=False,
        highlight=False,
    )


def _pairs(pairs: list[tuple[Path, str]]) -> list[dict[str, Any]]:
    return [{"path": str(path), "reason": reason} for path, reason in pairs]
