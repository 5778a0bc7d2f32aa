"""Plots as SVG text or PNG files, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erasure.core.files import atomic_path

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


def bands(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]], x_label: str, y_label: str, mark: float
) -> Any:
    """A figure of named lines of (x, y, low, high) points, each in its interval as a band; a dashed line at `mark`."""
    figure, axes = _figure(4.8, 2.8)
    for i, (name, points) in enumerate(series.items()):
        x, y, low, high = zip(*points, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, y, label=name, color=colour, linewidth=1.4, marker="o", markersize=3)
    axes.axvline(mark, color=MUTED, linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def intervals(
    values: Mapping[str, tuple[float, Sequence[float] | None]],
    x_label: str,
    *,
    width: float = 6.4,
    reference: float | None = None,
    marked: Collection[str] | None = None,
) -> Any:
    """A figure of values with their intervals, one line each, top to bottom, and a dashed line at `reference`.

    With `marked` only those names stand out, as diamonds; without it all are drawn alike.
    """
    figure, axes = _figure(width, 0.9 + 0.3 * len(values))
    for row, (name, (value, interval)) in enumerate(values.items()):
        stands_out = marked is not None and name in marked
        if interval is not None:
            axes.plot(interval, [row, row], color=MUTED, linewidth=2, solid_capstyle="butt")
        colour = ACCENT if stands_out or marked is None else INK
        axes.plot([value], [row], "D" if stands_out else "o", color=colour, markersize=6 if stands_out else 5)
    if reference is not None:
        axes.axvline(reference, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    return figure


def pictures(named: Mapping[str, np.ndarray], names_width: int = 200) -> Any:
    """A figure of images uint8 (h, w, c), all of one size, below each other with their names before them.

    At 80 dots an inch every pixel is one dot; `names_width` are the pixels that names take.
    """
    from matplotlib.figure import Figure

    height, width = next(iter(named.values())).shape[:2]
    figure = Figure(figsize=((names_width + width) / 80, len(named) * height / 80))
    left = names_width / (names_width + width)
    axes = figure.add_axes((left, 0, 1 - left, 1))
    rows = np.concatenate(list(named.values()))
    axes.imshow(rows, cmap="gray", vmin=0, vmax=255, interpolation="none", aspect="auto")
    axes.set_yticks([(i + 0.5) * height for i in range(len(named))], list(named), fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
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


def write_jpeg(figure: Any, path: Path) -> None:
    """Write a figure of pictures as JPEG, atomically: a fifth of the bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="jpeg", dpi=80, pil_kwargs={"quality": 85})


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes
