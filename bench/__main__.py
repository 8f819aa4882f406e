"""``python -m bench [NAME ...] [--rounds N] [--quick] [--out DIR]``: run measurements, each in a process of its own.

Each prints tables and writes NAME.json and plots. One that fails or takes longer than it may does not keep the others
from running: the exit code is 0 when all is measured, 3 when a part is missing, 1 when nothing was measured. Further
options of a single measurement are those of its module: ``python -m bench.NAME --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import PARTLY, Options, add_arguments

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 60.0
"""What a measurement that took too long has to stop its servers."""
TOO_LONG = -1


@dataclass(frozen=True, slots=True)
class Measurement:
    """A module, the minutes that it may take, and its options beside ``--rounds``, ``--quick`` and ``--out``."""

    name: str
    minutes: float
    options: frozenset[str] = frozenset({"rounds", "quick", "out"})
    on_request: bool = False
    """Not part of a run without names: measured for a page of its own."""

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
    Measurement("lane", 10, frozenset()),
    Measurement("idle", 5, frozenset()),
    Measurement("find", 20, frozenset()),
    Measurement("growth", 15, frozenset()),
    Measurement("catalog_queries", 15, frozenset(), on_request=True),
    Measurement("channels", 10, frozenset(), on_request=True),
    Measurement("revocation", 5, on_request=True),
    Measurement("policy", 10, on_request=True),
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
    if options.quick and (left := [one.name for one in wanted if "out" not in one.options]):
        print(f"not run quickly, since they would overwrite their results: {', '.join(left)}")
        wanted = [one for one in wanted if one.name not in left]
    codes = {one.name: again(one, options) for one in wanted}
    for name, (code, seconds) in codes.items():
        print(f"{name}: {_ended(code)} in {seconds / 60:.1f} minutes")
    print(f"results: {options.results}")
    return verdict([code for code, _ in codes.values()])


def again(one: Measurement, options: Options) -> tuple[int, float]:
    """Run one measurement, and once more when it ended with no figure at all."""
    code, seconds = run(one, options)
    return run(one, options) if code not in (0, PARTLY, TOO_LONG) else (code, seconds)


def run(one: Measurement, options: Options) -> tuple[int, float]:
    """Run one measurement; its exit code, or TOO_LONG, and seconds."""
    started = time.monotonic()
    print(f"== {one.name}", flush=True)
    process = subprocess.Popen(one.command(options), cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(one.minutes * 60)
    except subprocess.TimeoutExpired:
        code = TOO_LONG
    finally:
        _end(process)
    return code, time.monotonic() - started


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop what still runs of a measurement: itself in order, with its servers; for good what is left after that."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def verdict(codes: Sequence[int]) -> int:
    """0: all measured; 3: in part; 1: nothing."""
    if not any(codes):
        return 0
    return 1 if all(code not in (0, PARTLY) for code in codes) else PARTLY


def _ended(code: int) -> str:
    return {0: "measured", PARTLY: "measured in part", TOO_LONG: "took too long"}.get(code, f"failed ({code})")


if __name__ == "__main__":
    sys.exit(main())
