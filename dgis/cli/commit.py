"""``dgis commit``: storage commitment, what others asked of us and what we ask of others."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dgis.cli.nodes import node_options, read_node
from dgis.cli.output import Format, console, format_option, notes, print_json, print_rows, table
from dgis.cli.peers import Interrupt, Remote, exit_code, remote, target_options
from dgis.commit_answers import CommitAnswers
from dgis.commit_store import CommitmentStore
from dgis.commitment import Transaction
from dgis.dimse.commit_scu import MAX_REFERENCES, Waiting, request_commitment
from dgis.dimse.commit_wire import FailedReference, Reference
from dgis.dimse.query_scu import PeerRefused, PeerSilent
from dgis.medium import NotAnInstance, find_files, open_instance
from dgis.part10 import Part10Error

REASONS = {
    0x0110: "processing failure",
    0x0112: "no such instance",
    0x0119: "another SOP class",
    0x0122: "SOP class not supported",
    0x0131: "duplicate transaction",
    0x0213: "no resources",
}


@click.group("commit", epilog="Example: dgis commit list --home grid")
def command() -> None:
    """Storage commitment: transactions of our requesters, and asking another AE."""


@command.command("list")
@node_options
@format_option
def list_command(*, home: Path, config: Path | None, fmt: Format) -> None:
    """List the transactions: open ones first, then those closed within a week."""
    store = _store(home, config)
    rows = [_row(one) for one in (*store.open(), *store.closed())]
    print_rows(fmt, "Storage commitment", rows, empty="no transactions")


def _row(one: Transaction) -> dict[str, Any]:
    return {
        "id": one.number,
        "ae": one.ae,
        "state": one.state,
        "instances": len(one.references),
        "failed": len(one.failures),
        "age_seconds": round(one.age),
        "note": one.note,
    }


@command.command("retry", epilog="Example: dgis commit retry 3f2a9c01b7de --home grid")
@click.argument("number", metavar="ID")
@node_options
def retry_command(*, number: str, home: Path, config: Path | None) -> None:
    """Judge and report a given-up transaction again."""
    store = _store(home, config)
    key = _key(store, number)
    if not store.retry(key):
        raise click.ClickException(f"{number} is not given up; dgis commit list shows the states")
    console().print(f"{number} is judged and reported again")


@command.command("forget", epilog="Example: dgis commit forget 3f2a9c01b7de --home grid")
@click.argument("number", metavar="ID")
@node_options
def forget_command(*, number: str, home: Path, config: Path | None) -> None:
    """Remove a closed transaction from the list."""
    store = _store(home, config)
    if not store.forget(_key(store, number)):
        raise click.ClickException(f"{number} is still open")
    console().print(f"{number} removed")


def _store(home: Path, config: Path | None) -> CommitmentStore:
    return CommitmentStore(read_node(home, config).dgis.spool)


def _key(store: CommitmentStore, number: str) -> str:
    found = {one.key for one in (*store.open(), *store.closed()) if one.number == number}
    if len(found) != 1:
        raise click.ClickException(f"there is no transaction {number}; dgis commit list shows them")
    return found.pop()


@command.command("check", epilog="Example: dgis commit check PACS@192.0.2.7:104 /archive/study --listen 11115")
@target_options
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--listen", type=click.IntRange(1, 65535), help="Take the report on this port (default: the node's).")
@click.option(
    "--wait", default=300.0, show_default=True, type=click.FloatRange(1, 86400), help="Seconds for the report."
)
@format_option
def check_command(
    *,
    target: str,
    paths: tuple[Path, ...],
    aet: str,
    timeout: float,
    tls: bool,
    home: Path,
    config: Path | None,
    listen: int | None,
    wait: float,
    fmt: Format,
) -> None:
    """Ask TARGET to commit to the instances in PATHS (files, folders, a DICOMDIR); nothing is sent but their UIDs.

    TARGET reports on the association that asked, or to our AE title at the address it has for us: the node's receivers
    take it when that is the node's port, else --listen. Exit code 3: some are not committed; 1: none, or no report.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    references = _references(paths)
    if not references:
        raise click.ClickException("there are no instances below the given paths")
    with waiting_for_report(home, config, listen, wait) as waiting:
        committed, failed = ask_for_commitment(there, references, waiting)
    _say(fmt, there, committed, failed)
    sys.exit(exit_code(ok=not failed, some=committed > 0))


def ask_for_commitment(
    there: Remote, references: list[Reference], waiting: Waiting
) -> tuple[int, list[FailedReference]]:
    """Ask in transactions that every SCP takes; return how many are committed, and the rest. Raises ClickException."""
    committed, failed = 0, list[FailedReference]()
    for start in range(0, len(references), MAX_REFERENCES):
        try:
            told = request_commitment(there.ae, there.peer, references[start : start + MAX_REFERENCES], waiting=waiting)
        except (PeerRefused, PeerSilent) as error:
            raise click.ClickException(f"{there.where}: {error}") from None
        committed += len(told.committed)
        failed += told.failed
    return committed, failed


@contextlib.contextmanager
def waiting_for_report(home: Path, config: Path | None, port: int | None, seconds: float) -> Iterator[Waiting]:
    """Where reports may come: to this port, to the node's receivers, on the association that asks. Ctrl-C ends it."""
    with contextlib.ExitStack() as stack:
        listener = None
        if port is not None:
            try:
                listener = stack.enter_context(socket.create_server(("", port)))
            except OSError as error:
                raise click.ClickException(f"cannot listen on port {port}: {error.strerror}") from None
        answers = None
        with contextlib.suppress(click.UsageError):  # without a node only the association or --listen is left
            answers = CommitAnswers(read_node(home, config).dgis.spool)
        yield Waiting(seconds, listener, answers, stack.enter_context(Interrupt()))


def _left_out(path: Path, why: str) -> None:
    notes().print(f"{path}: left out: {why}", markup=False, highlight=False)


def _references(paths: tuple[Path, ...]) -> list[Reference]:
    found: dict[Reference, None] = {}
    for path in find_files(paths, _left_out):
        try:
            instance = open_instance(path)
        except (NotAnInstance, Part10Error, OSError) as error:
            _left_out(path, str(error))
            continue
        found[instance.sop_class_uid, instance.instance_uid] = None
    return list(found)


def _say(fmt: Format, there: Remote, committed: int, failed: list[FailedReference]) -> None:
    rows = [
        {"instance": instance, "sop_class": sop_class, "reason": f"{reason:04X}", "meaning": REASONS.get(reason, "")}
        for sop_class, instance, reason in failed
    ]
    if fmt == "json":
        print_json({"committed": committed, "failed": rows})
        return
    if rows:
        lines = [[row["instance"], f"{row['reason']} {row['meaning']}"] for row in rows]
        notes().print(table("Not committed", ("Instance", "Reason"), lines))
    console().print(f"{committed} committed by {there.where}, {len(failed)} not", markup=False, highlight=False)
