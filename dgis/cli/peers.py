"""What the SCU commands share: which AE is meant, who we are, Ctrl-C as C-CANCEL, and how an ending is said."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydicom.dataset import Dataset
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dgis.cli.nodes import node_options, node_table, read_node
from dgis.cli.output import EXIT_FAILED, EXIT_OK, EXIT_PARTLY, notes
from dgis.dimse.ask import Key, KeyMistake, identifier
from dgis.dimse.command import Counts
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.query_scu import Ending
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.status import CANCELLED, meaning

if TYPE_CHECKING:
    from dgis.dimse.secure import TlsCaller

F = TypeVar("F", bound=Callable[..., Any])
LEVELS = ("patient", "study", "series", "image")
_ADDRESS = re.compile(r"(?P<title>[^@\\]{1,16})@(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:@\s]+):(?P<port>\d{1,5})\Z")
_DEFAULT_TITLE = "DGIS"


@dataclass(frozen=True, slots=True)
class Remote:
    """The AE to talk to, and our own as which we talk."""

    peer: PeerAddress
    ae: GridAE

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.peer.title} at {self.peer.host}:{self.peer.port}"


def target_options(function: F) -> F:
    """TARGET and the options about it: --aet, --timeout, --home, --config."""
    aet = click.option("--aet", default="", metavar="TITLE", help="Our calling AE title (default: the node's).")
    timeout = click.option(
        "--timeout", default=60.0, show_default=True, type=click.FloatRange(1, 86400), help="Seconds without an answer."
    )
    tls = click.option(
        "--tls", is_flag=True, help="Over DICOM TLS, with the node's certificate (AE table entries know)."
    )
    return click.argument("target")(aet(timeout(tls(node_options(function)))))


def key_options(function: F) -> F:
    """-k, --level and --model."""
    keys = click.option(
        "-k",
        "--key",
        "keys",
        multiple=True,
        metavar="KEYWORD[=VALUE]",
        callback=_keys,
        help="A key to match or to return; also as 0010,0020=VALUE or Sequence.Keyword=VALUE. Repeatable.",
    )
    model = click.option(
        "--model",
        type=click.Choice(["study", "patient"]),
        default="study",
        show_default=True,
        help="Information model.",
    )
    return keys(model(function))


def _keys(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[Key, ...]:
    try:
        return tuple(Key.parse(value) for value in values)
    except KeyMistake as error:
        raise click.BadParameter(str(error)) from None


def remote(target: str, *, home: Path, config: Path | None, aet: str, timeout: float, tls: bool = False) -> Remote:
    """Resolve TARGET: AET@HOST:PORT, a title of the AE table, or the node's own title. Raises UsageError."""
    found = _ADDRESS.match(target)
    if found and 0 < int(found["port"]) < 65536:
        peer = PeerAddress(found["title"].strip(), found["host"].strip("[]"), int(found["port"]))
    elif "@" in target:
        raise click.UsageError(f"{target!r} is not AET@HOST:PORT, for example ORTHANC@192.0.2.7:4242")
    else:
        peer = _from_table(target.strip(), home, config, tls=tls)
    if tls:
        peer = replace(peer, tls=True)
    timeouts = Timeouts(connect=min(5.0, timeout), acse=min(20.0, timeout), dimse=timeout, send=timeout)
    caller = _tls_caller(home, config) if peer.tls else None
    return Remote(peer, GridAE(aet.strip() or _own_title(home, config), timeouts=timeouts, tls=caller))


def _tls_caller(home: Path, config: Path | None) -> TlsCaller:
    from dgis.dimse.secure import TlsCaller
    from dgis.node import dimse_identity

    return TlsCaller(dimse_identity(read_node(home, config)))


def _from_table(title: str, home: Path, config: Path | None, *, tls: bool) -> PeerAddress:
    peer = node_table(home, config).destination(title)
    if peer is not None:
        return peer
    node = read_node(home, config)
    if title not in (node.dgis.aet, *node.dimse.also_called):
        raise click.UsageError(
            f"{title} is not in the AE table, or without host and port (dgis ae list); or write {title}@HOST:PORT"
        )
    listener = node.dimse_tls if tls else node.dimse
    if listener is None:
        raise click.UsageError(f"{title} has no DICOM TLS port: node.toml has no [dimse_tls]")
    return PeerAddress(title, {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host), listener.port)


def _own_title(home: Path, config: Path | None) -> str:
    try:
        return read_node(home, config).dgis.aet
    except click.UsageError:
        return _DEFAULT_TITLE


class Interrupt:
    """Ctrl-C or SIGTERM once: `asked`, so that a C-CANCEL is sent. A second one ends the command at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def progress_bar() -> Progress:
    """A bar on standard error, where that is a terminal."""
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def total_of(counts: Counts) -> tuple[int, int]:
    """(done, total) of a retrieve as its counts say."""
    done = counts.completed + counts.failed + counts.warning
    return done, done + (counts.remaining or 0)


def say(ending: Ending, service: str) -> str:
    """Describe a final response in a sentence."""
    text = f"status {ending.status:04X}: {meaning(ending.status, service)}"
    return f"{text} ({ending.comment})" if ending.comment else text


def ending_json(ending: Ending, service: str) -> dict[str, Any]:
    """The final response for scripts."""
    counts = ending.counts
    return {
        "status": f"{ending.status:04X}",
        "meaning": meaning(ending.status, service),
        "comment": ending.comment,
        "cancelled": ending.status == CANCELLED,
        **(
            {"completed": counts.completed, "failed": counts.failed, "warning": counts.warning}
            if counts is not None
            else {}
        ),
        **({"failed_instances": list(ending.failed)} if ending.failed else {}),
    }


def exit_code(*, ok: bool, some: bool) -> int:
    """0 for all, 3 for some, 1 for nothing."""
    return EXIT_OK if ok else EXIT_PARTLY if some else EXIT_FAILED


_UNIQUE_KEYS = (("image", 0x00080018), ("series", 0x0020000E), ("study", 0x0020000D), ("patient", 0x00100020))


def level_of(keys: tuple[Key, ...], level: str | None) -> str:
    """The level of a retrieve: the one named, else that of the deepest unique key. Raises UsageError."""
    named = {key.path[-1] for key in keys if key.value and len(key.path) == 1}
    found = level or next((name for name, tag in _UNIQUE_KEYS if tag in named), None)
    if found is None:
        raise click.UsageError("say what to retrieve, for example -k StudyInstanceUID=1.2.3")
    return found


def retrieve_identifier(keys: tuple[Key, ...], level: str | None) -> Dataset:
    """The identifier of a C-MOVE or C-GET. Raises UsageError."""
    try:
        return identifier(level_of(keys, level).upper(), keys)
    except KeyMistake as error:
        raise click.UsageError(str(error)) from None


def retrieved(ending: Ending | None) -> bool:
    """Whether a retrieve brought at least one instance."""
    return ending is not None and ending.counts is not None and ending.counts.completed + ending.counts.warning > 0


def nothing_found(ending: Ending) -> bool:
    """Whether a retrieve succeeded because there was nothing to send."""
    return ending.ok and ending.counts is not None and not retrieved(ending)
