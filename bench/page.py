"""Put the latest results into docs/speed.md: ``python -m bench.page`` (``make bench`` runs it at its end).

The page's prose is written by hand; what stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` comes from
bench/results/NAME.json alone. A test compares the page with what this module makes of the JSON.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import bars
from bench.report import RESULTS, draw_all, load
from bench.summaries import SUMMARIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "speed.md"
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw every plot and write the page anew; with ``--check`` only say whether it is as the results are."""
    arguments = sys.argv[1:] if argv is None else argv
    text = PAGE.read_text()
    made = render(text, RESULTS)
    if "--check" in arguments:
        return int(made != text)
    for name, summary in SUMMARIES.items():
        document = _document(name, RESULTS)
        if document is not None and summary.plots is not None:
            draw_all(summary.plots, document["samples"], RESULTS)
    PAGE.write_text(render(text, RESULTS))
    return 0


def render(text: str, results: Path) -> str:
    """The page with every block filled from ``results``."""
    return _BLOCK.sub(lambda found: f"{found[1]}{block(found[2], results)}\n{found[3]}", text)


def block(name: str, results: Path) -> str:
    """What stands in one block, ends without an empty line."""
    if name == "bars":
        return bars.table(collected(results)).markdown()
    if name == "machine":
        return machine(results)
    document = _document(name, results)
    if document is None:
        return "Not measured yet.\n"
    parts = [table.markdown() for table in SUMMARIES[name].tables(document["samples"])]
    parts += [f"- not measured: {one['cell']}: {one['reason']}" for one in document.get("failures", ())]
    parts += [
        f"![{picture.removesuffix('.png').replace('_', ' ')}](../bench/results/{picture})"
        for picture in SUMMARIES[name].pictures
        if (results / picture).exists()
    ]
    return "\n\n".join(parts) + "\n"


def machine(results: Path) -> str:
    """The machine and the versions of each run that noted them; the load before it shows whether it was quiet."""
    lines = []
    for name in SUMMARIES:
        facts = (_document(name, results) or {}).get("machine")
        if facts:
            peers = ", ".join(f"{peer} {version}" for peer, version in facts["peers"].items())
            lines.append(
                f"- {name}: {facts['measured']}, commit {facts['commit']}, {facts['cores']} cores, "
                f"{facts['processor']}, {facts['memory_gib']:.0f} GiB, Linux {facts['kernel']}, "
                f"Python {facts['python']}, {peers}; "
                f"load before {facts['load_before'][0]}"
            )
    return "\n".join(lines) or "Not measured yet."


def collected(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of every measurement that there is."""
    found = {name: _document(name, results) for name in SUMMARIES}
    return {name: document["samples"] for name, document in found.items() if document is not None}


def _document(name: str, results: Path) -> dict[str, Any] | None:
    path = results / f"{name}.json"
    return load(path) if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
