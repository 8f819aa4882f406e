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

from dgis.cli.commit import REASONS, ask_for_commitment, waiting_for_report
from dgis.cli.output import Format, console, format_option, notes, print_json, size, table
from dgis.cli.peers import Interrupt, Remote, exit_code, progress_bar, remote, target_options
from dgis.dimse.commit_scu import Waiting
from dgis.dimse.commit_wire import Reference
from dgis.dimse.outgoing import Outgoing
from dgis.dimse.scu import StoreSender, outcome
from dgis.dimse.status import meaning
from dgis.medium import NotAnInstance, find_files, open_instance
from dgis.part10 import Part10Error

_EXAMPLES = """\b
Examples:
  dgis send DGIS --home grid /archive/phantoms
  dgis send ORTHANC@192.0.2.7:4242 /media/cdrom/DICOMDIR
  dgis send PACS@192.0.2.7:104 study/*.dcm --aet CT1 --format json
  dgis send DGIS --home grid /archive/phantoms --commit --wait 600"""


@dataclass(slots=True)
class _Tally:
    sent: list[Outgoing] = field(default_factory=list)
    size: int = 0
    warnings: list[tuple[Path, str]] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)
    committed: int | None = None  # None: not asked
    uncommitted: list[tuple[str, str]] = field(default_factory=list)

    def instances(self) -> list[Reference]:
        """What was stored: (SOP class, SOP instance), each once."""
        return list(dict.fromkeys((item.sop_class, item.instance) for item in self.sent))


@click.command("send", epilog=_EXAMPLES)
@target_options
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--commit", is_flag=True, help="Then ask TARGET for storage commitment of what it stored.")
@click.option("--listen", type=click.IntRange(1, 65535), help="Take its report on this port (default: the node's).")
@click.option(
    "--wait", default=300.0, show_default=True, type=click.FloatRange(1, 86400), help="Seconds for the report."
)
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
    commit: bool,
    listen: int | None,
    wait: float,
    fmt: Format,
) -> None:
    """Send every DICOM file of PATHS (files, folders, a DICOMDIR) to TARGET, byte for byte.

    TARGET is an AE title of the AE table, the node's own, or AET@HOST:PORT. Each file that was not stored is named
    with the reason. Ctrl-C stops. Exit code 3: some files were not stored, or with --commit not committed.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    tally = _Tally()
    started = time.monotonic()
    with Interrupt() as interrupt, progress_bar() as bar:
        files = list(find_files(paths, lambda path, why: tally.failures.append((path, why))))
        items = _read(files, bar, tally, interrupt)
        if items:
            _send(there, items, bar, tally, interrupt)
    if not items and not tally.failures:
        raise click.ClickException("there are no files below the given paths")
    seconds = time.monotonic() - started
    if commit and tally.sent and not interrupt.asked:
        with waiting_for_report(home, config, listen, wait) as waiting:
            _commit(there, tally, waiting)
    _report(fmt, there, tally, seconds)
    whole = not tally.failures and not interrupt.asked and tally.committed in (None, len(tally.instances()))
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


def _commit(there: Remote, tally: _Tally, waiting: Waiting) -> None:
    """Ask for storage commitment; what is not committed, or not reported, is named."""
    try:
        tally.committed, failed = ask_for_commitment(there, tally.instances(), waiting)
    except click.ClickException as error:
        tally.committed = 0
        tally.uncommitted = [("all", error.message)]
    else:
        tally.uncommitted = [(uid, f"{why:04X} {REASONS.get(why, '')}".strip()) for _, uid, why in failed]


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
                **({} if tally.committed is None else _commitment(tally)),
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
    if tally.committed is not None:
        if tally.uncommitted:
            notes().print(table("Not committed", ("Instance", "Reason"), [[*pair] for pair in tally.uncommitted]))
        console().print(f"{tally.committed} committed", highlight=False)


def _commitment(tally: _Tally) -> dict[str, Any]:
    return {
        "committed": tally.committed,
        "not_committed": [{"instance": uid, "reason": reason} for uid, reason in tally.uncommitted],
    }


def _pairs(pairs: list[tuple[Path, str]]) -> list[dict[str, Any]]:
    return [{"path": str(path), "reason": reason} for path, reason in pairs]
