"""``dgis get``: C-GET; instances come as Part 10 files, byte-exact."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pydicom.dataset import Dataset

from dgis.cli.output import Format, console, format_option, notes, print_json, size
from dgis.cli.peers import (
    LEVELS,
    Interrupt,
    Remote,
    ending_json,
    exit_code,
    key_options,
    nothing_found,
    progress_bar,
    remote,
    retrieve_identifier,
    say,
    target_options,
    total_of,
)
from dgis.dimse.ask import Key, KeyMistake, Model, identifier
from dgis.dimse.get_scu import FolderUser, Received, storage_proposals
from dgis.dimse.query_scu import Ending, PeerRefused, PeerSilent, Row, open_asking

Kinds = list[tuple[str, str | None]]
_BELOW_STUDY = (0x0020000E, 0x00080018)
_ENOUGH = 20_000  # instances looked at to learn which kinds there are
_EXAMPLES = """\b
Examples:
  dgis get DGIS --home grid --out study -k StudyInstanceUID=1.2.3
  dgis get PACS@192.0.2.7:104 --out ct -k StudyInstanceUID=1.2.3 --sop-class CTImageStorage
  dgis get DGIS --out one -k SOPInstanceUID=1.2.3.4.5 --level image --format json"""


@click.command("get", epilog=_EXAMPLES)
@target_options
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the files.")
@click.option("--level", type=click.Choice(LEVELS), help="Query/Retrieve Level (default: of the deepest UID given).")
@key_options
@click.option(
    "--sop-class",
    "sop_classes",
    multiple=True,
    metavar="UID|KEYWORD",
    help="Take these storage SOP classes (default: ask TARGET which there are). Repeatable.",
)
@format_option
def command(
    *,
    target: str,
    aet: str,
    timeout: float,
    tls: bool,
    home: Path,
    config: Path | None,
    out: Path,
    level: str | None,
    keys: tuple[Key, ...],
    model: Model,
    sop_classes: tuple[str, ...],
    fmt: Format,
) -> None:
    """Fetch studies, series or images from TARGET into files below --out, on the association that asks.

    TARGET is an AE title of the AE table, the node's own, or AET@HOST:PORT. Files are written as they arrive, with the
    data set exactly as it was sent; a file of the same name is replaced. Ctrl-C cancels and keeps what came. Exit code
    3: some instances did not come.
    """
    there = remote(target, home=home, config=config, aet=aet, timeout=timeout, tls=tls)
    wanted = retrieve_identifier(keys, level)
    out.mkdir(parents=True, exist_ok=True)
    kinds: Kinds = [(_class_uid(name), None) for name in sop_classes]
    kinds = kinds or list(_inventory(there, model, keys))
    got = _receive(there, model, wanted, kinds, out)
    _report(fmt, out, got)
    complete = got.ending is not None and got.ending.ok and not got.received.failures
    sys.exit(exit_code(ok=complete, some=bool(got.received.files)))


@dataclass(frozen=True, slots=True)
class _Got:
    """What came, and how it ended: a final response, or why there is none."""

    received: Received
    ending: Ending | None
    problem: str


def _receive(there: Remote, model: Model, wanted: Dataset, kinds: Kinds, out: Path) -> _Got:
    with Interrupt() as interrupt, progress_bar() as bar:
        task = bar.add_task("receiving", total=None)

        def told(received: Received) -> None:
            bar.update(task, completed=len(received.files) + len(received.failures))

        user = FolderUser(out, told=told)
        problem = ""
        with open_asking(
            there.ae, there.peer, model=model, service="get", storage=storage_proposals(kinds), user=user
        ) as asking:
            try:
                for counts, _ in asking.run(wanted, stop=interrupt):
                    if counts is not None:
                        bar.update(task, total=total_of(counts)[1])
            except PeerSilent as error:
                problem = str(error)
        return _Got(user.received, asking.ending, problem)


def _class_uid(name: str) -> str:
    from pydicom._uid_dict import UID_dictionary

    for uid, entry in UID_dictionary.items():
        if entry[4] == name:
            return uid
    if not name.replace(".", "").isdigit():
        raise click.UsageError(f"{name} is no SOP class: write a keyword like CTImageStorage, or a UID")
    return name


def _inventory(there: Remote, model: Model, keys: tuple[Key, ...]) -> Iterator[tuple[str, str | None]]:
    """What SOP classes, and if the peer says so in which transfer syntaxes, the wanted studies consist of.

    Asked by C-FIND at IMAGE level, and where the peer does not answer that, by SOP Classes in Study. Nothing when it
    says neither: then the usual classes are proposed.
    """
    own = tuple(key for key in keys if key.value)
    if not own:  # a query for everything that an archive has is not asked by the way
        return
    for level, columns in (
        ("IMAGE", ("SOPClassUID", "AvailableTransferSyntaxUID")),
        ("STUDY", ("SOPClassesInStudy", "")),
    ):
        found: dict[tuple[str, str | None], None] = {}
        asked = (*own, *(Key.parse(word) for word in ("SOPInstanceUID", *columns) if word))
        for row in _rows(there, model, level, asked):
            syntaxes: list[str | None] = [*_texts(row.get(columns[1]))] or [None]
            found |= {(uid, syntax): None for uid in _texts(row.get(columns[0])) for syntax in syntaxes}
        if found:
            yield from found
            return


def _rows(there: Remote, model: Model, level: str, keys: tuple[Key, ...]) -> Iterator[Row]:
    kept = {key.path: key for key in keys if level == "IMAGE" or key.path[0] not in _BELOW_STUDY}
    try:
        with open_asking(there.ae, there.peer, model=model, service="find") as asking:
            seen: list[None] = []
            for _, row in asking.run(identifier(level, kept.values()), stop=lambda: len(seen) >= _ENOUGH):
                seen.append(None)
                yield row or {}
    except (PeerRefused, PeerSilent, KeyMistake):
        return


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else [str(value)] if value else []


def _report(fmt: Format, out: Path, got: _Got) -> None:
    received, ending, problem = got.received, got.ending, got.problem
    refused = [{"instance": uid, "reason": reason} for uid, reason in received.failures]
    if fmt == "json":
        last = ending_json(ending, "get") if ending is not None else {"status": None, "comment": problem}
        files = [str(path) for path in received.files]
        print_json({"files": files, "bytes": received.size, "not_written": refused, **last})
        return
    if ending is not None and nothing_found(ending):
        notes().print("nothing matches: no instance came")
    else:
        console().print(f"{len(received.files)} files in {out} ({size(received.size)})", markup=False)
    if ending is None:
        notes().print(f"incomplete: {problem}", markup=False)
    elif not ending.ok:
        notes().print(say(ending, "get"), markup=False)
        for uid in ending.failed:
            notes().print(f"failed: {uid}", markup=False, highlight=False)
    for entry in refused:
        notes().print(f"not written: {entry['instance']}: {entry['reason']}", markup=False, highlight=False)
