"""Plots in one look: a server has the same colour everywhere, ratios stand above our bars."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = {
    "dgis": "#1f5fa8",
    "dgis, clients as installed": "#7fb0e0",
    "Orthanc, NODELAY": "#d9822b",
    "Orthanc, as installed": "#f2c894",
    "DCMTK storescp": "#6b6b6b",
    "DCMTK storescp +B": "#6b6b6b",
    "DCMTK dcmqrscp": "#a8a8a8",
}
MORE = ("#1f5fa8", "#4d8fd1", "#9cc4ea", "#2a8c82", "#8c5aa8", "#c05a5a")
"""For series that are no server: variants of ours, then others."""
WIDTH = 0.84


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars: for each group (label) one value for each series; None where nothing was measured."""

    title: str
    unit: str
    values: Mapping[str, Mapping[str, float | None]]
    above: Mapping[tuple[str, str], str] | None = None
    """(group, series) -> text above that bar, instead of its value."""
    log: bool = False
    bar: float | None = None
    """A bound to draw across."""


def save_bars(path: Path, heading: str, panels: Sequence[Bars], *, columns: int = 2) -> None:
    """Draw one panel for each `Bars` with one legend for all, to ``path`` (PNG)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    width = columns * max(_inches(panel) for panel in panels)
    figure = Figure(figsize=(max(7.0, width), 0.9 + lines * 3.3), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    series = list(dict.fromkeys(name for panel in panels for group in panel.values.values() for name in group))
    for position, panel in enumerate(panels):
        _panel(axes[position // columns][position % columns], panel, series)
    for empty in range(len(panels), lines * columns):
        axes[empty // columns][empty % columns].set_visible(False)
    _finish(figure, heading, [(name, colour(name, series)) for name in series], path)


def _inches(panel: Bars) -> float:
    """Room for every bar's text and every group's label."""
    bars = sum(len(group) for group in panel.values.values())
    return max(4.2, 1.4 + 0.42 * bars, 0.6 + 1.2 * len(panel.values))


def colour(name: str, series: Sequence[str]) -> str:
    """The server's own colour, or the next free one of `MORE`."""
    if name in COLOURS:
        return COLOURS[name]
    unknown = [one for one in series if one not in COLOURS]
    return MORE[unknown.index(name) % len(MORE)]


def _panel(axis: Any, panel: Bars, series: Sequence[str]) -> None:
    for position, (group, values) in enumerate(panel.values.items()):
        shown = [name for name in series if name in values]
        step = WIDTH / max(1, len(shown))
        for number, name in enumerate(shown):
            value = values[name]
            if value is None:
                continue
            at = position + (number - (len(shown) - 1) / 2) * step
            axis.bar(at, value, step * 0.94, color=colour(name, series))
            text = (panel.above or {}).get((group, name), _short(value))
            axis.annotate(text, (at, value), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7,
                          rotation=90 if step < 0.12 else 0)  # fmt: skip
    axis.set_xticks(range(len(panel.values)), [textwrap.fill(label, 16) for label in panel.values], fontsize=8)
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_ylabel(panel.unit, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    if panel.bar is not None:
        axis.axhline(panel.bar, color="#b03030", linewidth=1, linestyle="--")
    if panel.log:
        axis.set_yscale("log")
    axis.margins(y=0.2)
    clear(axis)


def clear(axis: Any) -> None:
    """No frame, a light grid behind."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _finish(figure: Any, heading: str, entries: Sequence[tuple[str, str]], path: Path) -> None:
    from matplotlib.patches import Patch

    figure.suptitle(heading, fontsize=11, x=0.01, ha="left")
    handles = [Patch(color=shade, label=name) for name, shade in entries]
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.0)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
