"""``python -m bench [NAME ...] [--rounds N] [--quick] [--out DIR]``: run measurements, each in a process of its own.

Each prints tables and writes NAME.json and plots. One that fails or takes longer than it may does not keep the others
from running: the exit code is 0 when all is measured, 3 when a part is missing, 1 when nothing was measured. Further
options of a single measurement are those of its module: ``python -m bench.NAME --help``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import PARTLY, Options, add_arguments

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 60.0
"""What a measurement that took too long has to stop its servers."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A module, the minutes that it may take, and its options beside ``--rounds``, ``--quick`` and ``--out``."""

    name: str
    minutes: float
    options: frozenset[str] = frozenset({"rounds", "quick", "out"})
    on_request: bool = False
    """Not part of a run without names: measured for a page of its own."""
    quick: dict[str, str] = field(default_factory=dict)
    """Environment that makes it short, where it has no ``--quick``."""

    def command(self, options: Options) -> list[str]:
        """How to run it."""
        given = {"rounds": ["--rounds", str(options.rounds)], "out": ["--out", str(options.results)]}
        given["quick"] = ["--quick"] if options.quick else []
        return [sys.executable, "-m", f"bench.{self.name}", *(w for o in sorted(self.options) for w in given[o])]


MEASUREMENTS = (
    Measurement("store", 25),
    Measurement("ingest", 10),
    Measurement("mixed", 10),
    Measurement("retrieve", 10),
    Measurement("find", 20, frozenset(), quick={"DGIS_BENCH_STUDIES": "1000"}),
    Measurement("lane", 10, frozenset()),
    Measurement("idle", 5, frozenset()),
    Measurement("growth", 15, frozenset()),
    Measurement("catalog_queries", 15, frozenset(), on_request=True),
    Measurement("channels", 10, frozenset(), on_request=True),
)
NAMES = tuple(one.name for one in MEASUREMENTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was named, or all; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    add_arguments(parser)
    found = parser.parse_args(argv)
    unknown = [name for name in found.names if name not in NAMES]
    if unknown:
        print(f"no such measurement: {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    options = Options.of(found)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by the way that stops the servers
    wanted = [one for one in MEASUREMENTS if one.name in found.names or (not found.names and not one.on_request)]
    codes = {one.name: run(one, options) for one in wanted}
    for name, (code, seconds) in codes.items():
        print(f"{name}: {_ended(code)} in {seconds / 60:.1f} minutes")
    print(f"results: {options.results}")
    return verdict([code for code, _ in codes.values()])


def run(one: Measurement, options: Options) -> tuple[int, float]:
    """Run one measurement; its exit code (-1: it took too long) and seconds."""
    environment = os.environ | (one.quick if options.quick else {})
    started = time.monotonic()
    print(f"== {one.name}", flush=True)
    if options.quick and "out" not in one.options:
        print("has no --out: not run quickly, so as not to overwrite its results")
        return 0, 0.0
    process = subprocess.Popen(one.command(options), cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(one.minutes * 60)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        _end(process)
    return code, time.monotonic() - started


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop what still runs of a measurement: first as Ctrl-C would, then for good, children and all."""
    for sign, patience in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        if process.poll() is not None and sign is signal.SIGINT:
            continue
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def verdict(codes: Sequence[int]) -> int:
    """0: all measured; 3: in part; 1: nothing."""
    if not any(codes):
        return 0
    return 1 if all(code not in (0, PARTLY) for code in codes) else PARTLY


def _ended(code: int) -> str:
    return {0: "measured", PARTLY: "measured in part", -1: "took too long"}.get(code, f"failed ({code})")


if __name__ == "__main__":
    sys.exit(main())
