"""``dgis import``: file studies from disk or a medium through the same ingest path as C-STORE."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgis.cli.nodes import node_options, read_node
from dgis.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PARTLY,
    Format,
    console,
    format_option,
    notes,
    print_json,
    size,
    table,
)
from dgis.config import NodeConfig
from dgis.errors import BadDataSet, SpoolError
from dgis.ingest import Ingest
from dgis.medium import FileInstance, NotAnInstance, find_files, open_instance
from dgis.metrics import make_metrics
from dgis.node import make_ingest
from dgis.part10 import Part10Error
from dgis.record import Arrival

CHUNK = 1 << 20


@dataclass(slots=True)
class _Tally:
    filed: int = 0
    filed_bytes: int = 0
    refused: list[tuple[Path, str]] = field(default_factory=list)
    stopped: str = ""


@click.command("import", epilog="Example: dgis import --home grid /media/cdrom/DICOMDIR /archive/2019")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@node_options
@click.option("--ae", "title", default="IMPORT", show_default=True, help="AE title recorded as the source.")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait until all is in the catalog.")
@format_option
def command(*, paths: tuple[Path, ...], home: Path, config: Path | None, title: str, wait: float, fmt: Format) -> None:
    """File every DICOM file of PATHS (files, folders, a DICOMDIR) into the grid.

    Runs on the DGIS's machine: files go into its spool, safe as soon as they are counted, and its worker catalogs and
    copies them. Exit code 3 when some files were refused or not yet catalogued; each refused one is named with the
    reason.
    """
    node = read_node(home, config)
    tally = _Tally()
    files = list(find_files(paths, lambda path, why: tally.refused.append((path, why))))
    if not files and not tally.refused:
        raise click.ClickException("there are no files below the given paths")
    session = uuid.uuid4().hex
    ingest = make_ingest(node, make_metrics(None))
    with _progress() as bar:
        task = bar.add_task("filing", total=len(files))
        for path in files:
            if not _file_one(ingest, path, Source(title, node, session), tally):
                break
            bar.advance(task)
        bar.update(task, description="cataloguing")
        settled = ingest.settle(session, timeout=wait)
    _report(tally, settled=settled, fmt=fmt)
    well = settled and not tally.refused and not tally.stopped
    sys.exit(EXIT_OK if well else EXIT_PARTLY if tally.filed else EXIT_FAILED)


@dataclass(frozen=True, slots=True)
class Source:
    """Who files, and where: what a C-STORE's association would say."""

    title: str
    node: NodeConfig
    session: str

    def arrival(self, instance: FileInstance) -> Arrival:
        """The arrival of one file, as if it had come by C-STORE."""
        return Arrival(
            sop_class_uid=instance.sop_class_uid,
            instance_uid=instance.instance_uid,
            transfer_syntax=instance.transfer_syntax,
            calling_ae=self.title,
            called_ae=self.node.dgis.aet,
            issuer=self.node.dgis.default_issuer,
            acting_for=f"ae:{self.title}@{self.node.dgis.site}",
            association_id=self.session,
        )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=notes(), transient=True)


def _file_one(ingest: Ingest, path: Path, source: Source, tally: _Tally) -> bool:
    """File one; what is wrong with one file never stops the others, a full spool does (then False)."""
    try:
        instance = open_instance(path)
        tally.filed_bytes += _stream(ingest, instance, source)
        tally.filed += 1
    except (NotAnInstance, BadDataSet, Part10Error) as error:
        tally.refused.append((path, str(error)))
    except SpoolError as error:
        tally.stopped = f"stopped at {path}: {error}; make room and run the same import again"
        return False
    except OSError as error:
        tally.refused.append((path, error.strerror or "it cannot be read"))
    return True


def _stream(ingest: Ingest, instance: FileInstance, source: Source) -> int:
    receiving = ingest.begin(source.arrival(instance))
    try:
        with instance.path.open("rb") as stream:
            stream.seek(instance.data_set_offset)
            while chunk := stream.read(CHUNK):
                receiving.write(chunk)
        return receiving.commit().record.size
    except BaseException:
        receiving.abort()
        raise


def _report(tally: _Tally, *, settled: bool, fmt: Format) -> None:
    if fmt == "json":
        refused = [{"path": str(path), "reason": reason} for path, reason in tally.refused]
        print_json(
            {
                "filed": tally.filed,
                "bytes": tally.filed_bytes,
                "catalogued": settled,
                "refused": refused,
                "stopped": tally.stopped,
            }
        )
        return
    if tally.refused:
        console().print(table("Refused", ("File", "Reason"), [[str(path), reason] for path, reason in tally.refused]))
    state = (
        "all in the catalog" if settled else "not all in the catalog yet: they are safe in the spool, see dgis status"
    )
    console().print(f"{tally.filed} instances filed ({size(tally.filed_bytes)}), {len(tally.refused)} refused; {state}")
    if tally.stopped:
        notes().print(tally.stopped, style="red")
