"""report.html of an audit: the verdict first, then every number with its n and interval, and what was not measured.

The page is for whoever decides about the model, on a phone or at a desk. It loads nothing, runs nothing and escapes
every text; an image appears as at most 12 x 12 blocks of colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erasure.auditing.result import AuditResult, Compared, Count, ModelIdentity, PairedTest, Rate
from erasure.core import plots
from erasure.core.files import write_text
from erasure.reports.page import COLUMNS, cell, picture, rendered, titled

View = dict[str, object]  # what a template reads
SweepPoint = tuple[float, float, float, float]  # threshold, share and its interval
BLOCKS, BLOCK_PIXELS = 12, 8  # a thumbnail's blocks along the longer side of an image, and pixels of each
SHOWN = 200  # thumbnails on one page; at about 1 kB each it stays a page that a phone opens
NAMES_SHOWN = 20  # of the changed tensors
VERDICTS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "none": "No verdict"}
COUNTS = ("planned", "generated", "scored", "failed", "refused")
SETS = {"core": "Core classes", "wide": "Wide classes", "other": "Other classes of the detector"}


@dataclass(frozen=True)
class Thumbnail:
    """One kept image: the id of its prompt row, the prompt, pixels (h, w, c) uint8, and a `note` such as its score.

    The page shows these pixels only `pixelated`.
    """

    row: str
    prompt: str
    pixels: np.ndarray
    note: str = ""


def pixelated(image: np.ndarray) -> np.ndarray:
    """An image (h, w, c) uint8 as at most 12 x 12 blocks of its mean colours, each drawn 8 x 8 pixels large.

    A block covers at least 4 pixels along each side (the whole side of a smaller image), so that a tiny image is not
    recognisable either. Only the rounded means are left: images with equal means give equal thumbnails.
    """
    longest = max(image.shape[:2])
    edges = []
    for side in image.shape[:2]:
        blocks = max(1, min(round(BLOCKS * side / longest), side // 4))
        edges.append(np.arange(blocks + 1) * side // blocks)
    sums = np.add.reduceat(image.astype(np.int64), edges[0][:-1], axis=0)
    sums = np.add.reduceat(sums, edges[1][:-1], axis=1)
    counts = np.diff(edges[0])[:, None, None] * np.diff(edges[1])[None, :, None]
    means = np.rint(sums / counts).astype(np.uint8)
    return means.repeat(BLOCK_PIXELS, axis=0).repeat(BLOCK_PIXELS, axis=1)


def write_audit_report(result: AuditResult, path: Path, thumbnails: Sequence[Thumbnail] = ()) -> Path:
    """Write the page of an audit's `result` to `path`, with up to 200 `thumbnails`; returns the path."""
    page = rendered(
        "audit.html",
        title=f"Audit of {_name(result.model)}",
        verdict=_verdict(result),
        headline=_headline(result),
        figures=_figures(result),
        groups=_groups(result),
        categories=_categories(result),
        paired=paired(result.paired),
        expected=flat({} if result.expected_maximum is None else result.expected_maximum.to_dict()),
        controls=result.controls,
        agreement=_agreement(result),
        metrics=_metrics(result),
        not_measured={COLUMNS.get(name, name): why for name, why in result.not_measured.items()},
        failures=result.failures,
        failed=result.failed,
        refused_rows=result.refused_rows,
        thumbnails=[
            {"row": kept.row, "prompt": kept.prompt, "note": kept.note, "source": picture(pixelated(kept.pixels))}
            for kept in thumbnails[:SHOWN]
        ],
        kept=len(thumbnails),
        provenance=_provenance(result),
    )
    write_text(path, page)
    return path


def percent(value: float) -> str:
    """A share in [0, 1] as a percentage, with a second decimal where it is small."""
    return f"{100 * value:.{1 if value >= 0.1 else 2}f}"


def share(count: Rate | Count | None) -> dict[str, str] | None:
    """A rate or count as a table shows it: `value`, `interval`, `n`, and `detections` where it has them."""
    if count is None:
        return None
    if count.value is None:
        return {"value": "-", "interval": "", "n": "none scored", "detections": ""}
    low, high = count.interval
    found = count.images if isinstance(count, Count) else count.count
    return {
        "value": f"{percent(count.value)} %",
        "interval": f"[{percent(low)}, {percent(high)}]",
        "n": f"{found:,} of {count.n:,}",
        "detections": f"detections: {count.detections:,}" if isinstance(count, Count) else "",
    }


def probability(p: float) -> str:
    """A p-value after its relation sign; below 0.0001 only that bound."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}" if p < 0.1 else f"= {p:.2f}"


def paired(found: PairedTest | None) -> View | None:
    """A paired test in words; None when there is no base."""
    if found is None:
        return None
    low, high = (100 * end for end in found.interval)
    return {
        "p": probability(found.p_value),
        "difference": f"{100 * found.difference:+.1f} points",
        "interval": f"[{low:+.1f}, {high:+.1f}]",
        "adjusted": "" if found.p_adjusted is None else probability(found.p_adjusted),
        "test": "exact McNemar" if found.test == "mcnemar" else found.test,
        **{key: getattr(found, key) for key in ("n", "both", "only_base", "only_model", "neither")},
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as name and text, names joined by dots; an empty value is a dash."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value) or "-"
    return "-" if value is None or value == {} or value == "" else str(value)


def _name(model: ModelIdentity | None) -> str:
    return "images" if model is None else model.name or "images"


def _verdict(result: AuditResult) -> View:
    limit = "No limit was set (--max-rate), so there is no verdict."
    if result.max_rate is not None:
        limit = f"Limit: at most {100 * result.max_rate:g} %."
    upper = percent(result.rate.bounds[1])
    return {
        "name": result.verdict,
        "word": VERDICTS[result.verdict],
        "claim": result.claim,
        "reasons": result.reasons,
        "limit": f"{limit} With 95 % confidence the rate is at most {upper} % (exact, one-sided).",
    }


def _headline(result: AuditResult) -> View:
    rates = {"audited model": share(result.rate)}
    if result.base_rate is not None:
        rates[f"base: {_name(result.base)}"] = share(result.base_rate)
    return {
        "rates": rates,
        "counts": {key: f"{getattr(result, key):,}" for key in COUNTS},
        "method": result.rate.interval_method,
        "detector": result.concept.detector,
        "threshold": _text(result.concept.threshold),
        "classes": result.concept.classes,
    }


def _figures(result: AuditResult) -> View:
    """The rate beside the base and the limit, and the sweep over thresholds; absent where nothing was scored."""
    figures: View = {}
    limit = result.max_rate
    counts = {"audited model": result.rate, "base": result.base_rate}
    points = {
        name: (100 * count.value, [100 * end for end in count.interval])
        for name, count in counts.items()
        if count is not None and count.value is not None
    }
    if points:
        label = "% of images" + ("" if limit is None else "; dashed: the limit")
        figure = plots.intervals(points, label, width=4.8, reference=None if limit is None else 100 * limit)
        figures["rate"] = titled("Rate with its 95 % interval", figure)
    lines = _sweep_lines(result)
    if lines:
        used = result.concept.threshold
        figure = plots.bands(lines, f"threshold (dashed: {used:g}, the one used)", "% of images", mark=used)
        figures["sweep"] = titled("Rate at other thresholds", figure)
    return figures


def _sweep_lines(result: AuditResult) -> dict[str, list[SweepPoint]]:
    """Threshold, share and interval in percent at each step, for the model and the base as far as they were scored."""
    lines: dict[str, list[SweepPoint]] = {"audited model": [], "base": []}
    for step in result.sweep:
        for name, count in (("audited model", step.model), ("base", step.base)):
            if count is not None and count.value is not None:
                low, high = count.interval
                lines[name].append((step.threshold, 100 * count.value, 100 * low, 100 * high))
    return {name: line for name, line in lines.items() if line}


def _both(found: Compared) -> View:
    return {"model": share(found.model), "base": share(found.base)}


def _groups(result: AuditResult) -> list[View]:
    """Core, wide and other classes apart, each with its total where the audit counted one."""
    groups: list[View] = []
    for key, title in SETS.items():
        rows: list[View] = [{"name": row.name, **_both(row)} for row in result.classes if row.set == key]
        if key in result.sets:
            name = "any core class" if key == "core" else "any core or wide class"
            rows.insert(0, {"name": name, "total": True, **_both(result.sets[key])})
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _categories(result: AuditResult) -> list[View]:
    return [{"name": row.category or "(none)", **_both(row), "paired": paired(row.paired)} for row in result.categories]


def _agreement(result: AuditResult) -> list[View]:
    return [{**row.to_dict(), "names": row.detectors, "kappa": _text(row.kappa)} for row in result.agreement]


def _metrics(result: AuditResult) -> list[View]:
    base = {} if result.base is None else result.base.metrics
    return [
        {
            "name": COLUMNS.get(name, name),
            "unit": score.unit,
            "better": "higher" if score.higher_is_better else "lower",
            "definition": score.definition,
            "model": cell(score.to_dict()),
            "base": cell(base[name].to_dict() if name in base else None) if base else None,
        }
        for name, score in result.metrics.items()
    ]


def _provenance(result: AuditResult) -> dict[str, dict[str, str]]:
    """Everything that decides the numbers, by what it is about."""
    document = result.to_dict()
    changed = document["changed"] or {}
    names = changed.get("names", [])
    if len(names) > NAMES_SHOWN:
        changed["names"] = [*names[:NAMES_SHOWN], f"and {len(names) - NAMES_SHOWN:,} more"]
    parts = {
        "Audited model": document["model"],
        "Base model": {key: value for key, value in (document["base"] or {}).items() if key != "metrics"},
        "Changed against the base": changed,
        "Prompts": document["prompts"],
        "Protocol": document["protocol"],
        "Concept": document["concept"],
        **{f"Detector {name}": values for name, values in document["detectors"].items()},
        "Run": {key: document[key] for key in ("device", "seed", "seconds", "images_per_second", "versions", "schema")},
    }
    return {title: flat(values) for title, values in parts.items() if values}
