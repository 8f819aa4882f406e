"""What all measurements share: options, a run that survives a failing cell, medians, tables, JSON, plots.

A measurement is made of cells: one server, one case, one round. A cell either gives a sample or a failure with its
reason; a failure never ends the run. ``NAME.json`` holds the samples of all rounds (never only medians), the failures,
and facts of the machine, so that tables and plots can be made anew from it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from bench import machine

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
PARTLY = 3
"""Exit code: some cells failed, the others were measured."""

Row = Mapping[str, Any]
"""A sample as JSON has it."""


class NotMeasured(Exception):
    """This cell cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    rounds: int = ROUNDS
    quick: bool = False
    results: Path = RESULTS

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None) -> Options:
        """Read ``--rounds N --quick --out DIR``; ``--quick`` alone means one round, results in a new folder."""
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return cls.of(parser.parse_args(argv))

    @classmethod
    def of(cls, found: argparse.Namespace) -> Options:
        """Fill in what the command line leaves open."""
        rounds = found.rounds or (1 if found.quick else ROUNDS)
        return cls(rounds, found.quick, found.out or (quick_results() if found.quick else RESULTS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every measurement takes."""
    parser.add_argument("--rounds", type=int, default=0, help=f"rounds of every cell (default {ROUNDS}; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="few images, one round: to try the suite, not to compare")
    parser.add_argument("--out", type=Path, help="where JSON and plots go (default bench/results; quick: a new folder)")


def quick_results() -> Path:
    """A folder for figures that nobody should take for a result."""
    return Path(tempfile.mkdtemp(prefix="dgis-bench-quick-"))


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that gave no figure."""

    cell: str
    reason: str


@dataclass(slots=True)
class Run:
    """One measurement under way."""

    name: str
    options: Options
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Any] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def begin(cls, name: str, options: Options) -> Run:
        """Note the machine as it is before anything runs; from now on SIGTERM ends the run by way of its clean-up."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return cls(name, options, machine.facts())

    def cell(self, label: str, measure: Callable[[], Any]) -> bool:
        """Measure one cell; False when it failed. Says so on stderr either way, one line a cell."""
        try:
            sample = measure()
        except NotMeasured as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  whatever a peer did: the other cells go on
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            traceback.print_exc()
        else:
            self.samples.append(sample)
            self._say(f"{label}: {brief(asdict(sample))}")
            return True
        self.failures.append(Failure(label, reason))
        self._say(f"{label}: NOT MEASURED: {reason}")
        return False

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def document(self) -> dict[str, Any]:
        """What NAME.json holds."""
        return {
            "measurement": self.name,
            "rounds": self.options.rounds,
            "quick": self.options.quick,
            "machine": self.facts,
            "failures": [asdict(one) for one in self.failures],
            "samples": [asdict(one) for one in self.samples],
        }

    def finish(self, show: Callable[[Sequence[Row]], Sequence[Table]], draw: Drawer | None = None) -> int:
        """Write JSON and plots, print the tables; the exit code (0, PARTLY, or 1 when there is no sample at all)."""
        document = self.document()
        write(self.options.results / f"{self.name}.json", document)
        samples = document["samples"]
        for table in show(samples) if samples else ():
            table.print()
        if draw is not None and samples:
            draw_all(draw, samples, self.options.results)
        for failure in self.failures:
            print(f"not measured: {failure.cell}: {failure.reason}")
        print(f"results: {self.options.results / (self.name + '.json')}")
        return (PARTLY if self.samples else 1) if self.failures else 0


Drawer = Callable[[Sequence[Row], Path], None]
"""Draw the plots of a measurement into a folder."""


def draw_all(draw: Drawer, samples: Sequence[Row], folder: Path) -> None:
    """Draw, or say why not: a figure without its picture is still a figure."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plots: matplotlib is not installed (the extra 'bench'; make bench installs it)")
        return
    draw(samples, folder)


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".json.tmp")
    staged.write_text(json.dumps(document, indent=1) + "\n")
    staged.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read NAME.json; a bare list of samples (as the older measurements write) counts as a document of samples."""
    document = json.loads(path.read_text())
    return document if isinstance(document, dict) else {"samples": document}


# --- figures ---------------------------------------------------------------------------------------------------------


def median(samples: Iterable[Row], value: Callable[[Row], float | None]) -> float | None:
    """The median over those samples that have the value; None when none has."""
    found = [number for number in map(value, samples) if number is not None]
    return statistics.median(found) if found else None


def ratio(ours: float | None, theirs: float | None) -> str:
    """``1.52x``; empty when one is missing."""
    return f"{ours / theirs:.2f}x" if ours and theirs else ""


def number(value: float | None, places: int = 0) -> str:
    """A figure for a table; empty when there is none."""
    return "" if value is None else f"{value:.{places}f}"


def brief(sample: Row) -> str:
    """The plain numbers of a sample, for the line that says that a cell is done."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in sample.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    )


def total(by_process: Mapping[str, float]) -> float:
    """All processes together."""
    return sum(by_process.values())


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be printed and put into a page; the first ``words`` columns are text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def print(self) -> None:
        """Print it with rich, as wide as it needs."""
        table = RichTable(title=self.title, title_justify="left")
        for position, column in enumerate(self.columns):
            words = position < self.words or column.endswith("process")
            table.add_column(column, justify="left" if words else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        Console(width=sum(widths) + 3 * len(widths) + 1).print(table)

    def markdown(self) -> str:
        """The same as a Markdown table below its title."""
        rule = ("---",) * self.words + ("---:",) * (len(self.columns) - self.words)
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, rule, *self.rows)]
        return "\n".join((f"**{self.title}**", "", *lines))
