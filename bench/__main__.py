"""``python -m bench [NAME ...]``: run the measurements; each prints a table and writes bench/results/NAME.json."""

from __future__ import annotations

import importlib
import sys

NAMES = ("main_job", "find", "catalog_queries", "channels")


def run(names: list[str]) -> int:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no such measurement: {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
