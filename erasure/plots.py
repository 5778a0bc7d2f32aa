"""Plots as SVG text or PNG files, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasure.run import atomic_path

INK, ACCENT, MUTED = "#1f2933", "#c2410c", "#64748b"
COLOURS = (ACCENT, INK, "#0f766e", "#7c3aed", "#ca8a04", MUTED)


def curve(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Any:
    """A figure of named lines of (x, y) points."""
    figure, axes = _figure(6.4, 2.8)
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, color=colour, linewidth=1.4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def bars(values: Mapping[str, float], x_label: str, reference: float | None = None) -> Any:
    """A figure of horizontal bars, top to bottom, with a dashed line at `reference`."""
    figure, axes = _figure(6.4, 0.9 + 0.24 * len(values))
    axes.barh(list(values), list(values.values()), color=ACCENT, height=0.7)
    axes.invert_yaxis()
    if reference is not None:
        axes.axvline(reference, color=INK, linestyle="--", linewidth=1)
    axes.set_xlabel(x_label)
    return figure


def intervals(values: Mapping[str, tuple[float, Sequence[float] | None]], x_label: str) -> Any:
    """A figure of values with their intervals, one line each, top to bottom."""
    figure, axes = _figure(6.4, 0.9 + 0.3 * len(values))
    for row, (value, interval) in enumerate(values.values()):
        if interval is not None:
            axes.plot(interval, [row, row], color=MUTED, linewidth=2, solid_capstyle="butt")
        axes.plot([value], [row], "o", color=ACCENT, markersize=5)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    return figure


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Means over consecutive windows, each at the last x of its window."""
    found = []
    for start in range(0, len(points), max(1, window)):
        part = points[start : start + max(1, window)]
        found.append((part[-1][0], sum(y for _, y in part) / len(part)))
    return found


def svg(figure: Any) -> str:
    """The figure as one `<svg>` element, with the same text on every run."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "erasure"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_png(figure: Any, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes
