"""report.html of an audit: the verdict first, then every number with its n and interval, and what was not measured.

The page is for whoever has to decide about the model, on a phone or at a desk. It loads nothing, runs nothing and
escapes every text; of an image it can hold no more than twelve by twelve blocks of colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erasure.core import plots
from erasure.core.files import write_text
from erasure.reports.erase_report import COLUMNS, cell, picture, rendered, titled

BLOCKS, BLOCK_PIXELS = 12, 8  # what a thumbnail keeps of an image along its longer side, and how large that is drawn
SHOWN = 200  # thumbnails on one page; at about 1 kB each it stays a page that a phone opens
NAMES_SHOWN = 20  # of the changed tensors
VERDICTS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "none": "No verdict"}
SETS = {"core": "Core classes", "wide": "Wide classes", "other": "Other classes of the detector"}


@dataclass(frozen=True)
class Thumbnail:
    """One kept image: the id of its prompt row, the prompt, pixels (h, w, c) uint8, and a `note` such as its score.

    Only `pixelated` pixels reach the page, whatever was given.
    """

    row: str
    prompt: str
    pixels: np.ndarray
    note: str = ""


def pixelated(image: np.ndarray) -> np.ndarray:
    """An image (h, w, c) uint8 as at most 12 x 12 blocks of its mean colours, each drawn 8 x 8 pixels large.

    A block covers at least 4 pixels along each side (the whole side of a smaller image), so that a tiny image does not
    survive either. Nothing but the rounded means is left: images with equal means give equal thumbnails.
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


def write_audit_report(result: Mapping[str, Any], path: Path, thumbnails: Sequence[Thumbnail] = ()) -> Path:
    """Write the page of an audit's `result` (audit.json) to `path`, with up to 200 `thumbnails`; returns the path."""
    page = rendered(
        "audit.html",
        title=f"Audit of {_name(result.get('model'))}",
        verdict=_verdict(result),
        headline=_headline(result),
        figures=_figures(result),
        groups=_groups(result),
        categories=_categories(result),
        paired=paired(result.get("paired")),
        expected=flat(result.get("expected_maximum") or {}),
        controls=result.get("controls") or [],
        agreement=_agreement(result),
        metrics=_metrics(result),
        not_measured={COLUMNS.get(name, name): why for name, why in (result.get("not_measured") or {}).items()},
        failures=result.get("failures") or [],
        failed=result["failed"],
        refused_rows=result.get("refused_rows") or [],
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


def share(count: Mapping[str, Any] | None) -> dict[str, str] | None:
    """A COUNT of audit.json as a table shows it: `value`, `interval`, `n`, and `detections` where it has them."""
    if count is None:
        return None
    if not count["n"]:
        return {"value": "-", "interval": "", "n": "none scored", "detections": ""}
    low, high = count["interval"]
    found = count["images"] if "images" in count else count["count"]
    return {
        "value": f"{percent(count['value'])} %",
        "interval": f"[{percent(low)}, {percent(high)}]",
        "n": f"{found:,} of {count['n']:,}",
        "detections": f"detections: {count['detections']:,}" if "detections" in count else "",
    }


def probability(p: float) -> str:
    """A p-value after its relation sign; below one in ten thousand it says only that."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}" if p < 0.1 else f"= {p:.2f}"


def paired(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A PAIRED of audit.json in words; None when there is no base."""
    if found is None:
        return None
    shown = {"p": probability(found["p_value"]), "difference": "", "interval": "", "adjusted": "", "test": _test(found)}
    shown |= {key: found[key] for key in ("n", "both", "only_base", "only_model", "neither")}
    if "p_adjusted" in found:
        shown["adjusted"] = probability(found["p_adjusted"])
    if found.get("interval") is not None:
        low, high = (100 * end for end in found["interval"])
        shown["difference"] = f"{100 * found['difference']:+.1f} points"
        shown["interval"] = f"[{low:+.1f}, {high:+.1f}]"
    return shown


def _test(found: Mapping[str, Any]) -> str:
    test = found.get("test", "mcnemar")
    return "exact McNemar" if test == "mcnemar" else str(test)


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


def _name(model: Mapping[str, Any] | None) -> str:
    return str((model or {}).get("name") or "images")


def _verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    limit = result.get("max_rate")
    said = "No limit was set (--max-rate), so the audit claims nothing."
    if limit is not None:
        said = f"Limit: at most {100 * limit:g} %."
    bounds, name = result["rate"].get("bounds"), result["verdict"]
    if bounds:
        said += f" With 95 % confidence the rate is at most {percent(bounds[1])} % (exact, one-sided)."
    return {
        "name": name,
        "word": VERDICTS.get(name, name),
        "claim": result.get("claim"),
        "reasons": result.get("reasons") or [],
        "limit": said,
    }


def _headline(result: Mapping[str, Any]) -> dict[str, Any]:
    concept = result["concept"]
    rates = {"audited model": share(result["rate"])}
    base = result.get("base_rate")
    if base is not None:
        rates[f"base: {_name(result.get('base'))}"] = share(base)
    return {
        "rates": rates,
        "counts": {key: f"{result[key]:,}" for key in ("planned", "generated", "scored", "failed", "refused")},
        "method": result["rate"].get("interval_method", ""),
        "detector": concept["detector"],
        "threshold": _text(concept["threshold"]),
        "classes": concept["classes"],
    }


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The rate beside the base and the limit, and the sweep over thresholds; absent where nothing was scored."""
    figures, limit = {}, result.get("max_rate")
    counts = {"audited model": result["rate"], "base": result.get("base_rate")}
    points = {
        name: (100 * count["value"], [100 * end for end in count["interval"]])
        for name, count in counts.items()
        if count and count["n"]
    }
    if points:
        label = "% of images" + ("" if limit is None else "; dashed: the limit")
        drawn = plots.intervals(points, label, width=4.8, reference=None if limit is None else 100 * limit)
        figures["rate"] = titled("Rate with its 95 % interval", drawn)
    lines = {
        name: [
            (step["threshold"], *(100 * part for part in (step[side]["value"], *step[side]["interval"])))
            for step in result.get("sweep") or []
            if step.get(side) and step[side]["n"]
        ]
        for name, side in (("audited model", "model"), ("base", "base"))
    }
    lines = {name: line for name, line in lines.items() if line}
    if lines:
        used = result["concept"]["threshold"]
        drawn = plots.bands(lines, f"threshold (dashed: {used:g}, the one used)", "% of images", mark=used)
        figures["sweep"] = titled("Rate at other thresholds", drawn)
    return figures


def _sides(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": share(found.get("model")), "base": share(found.get("base"))}


def _groups(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Core, wide and other classes apart, each with its total where the audit counted one."""
    groups = []
    for key, title in SETS.items():
        rows = [{"name": row["class"], **_sides(row)} for row in result.get("classes") or [] if row["set"] == key]
        total = (result.get("sets") or {}).get(key)
        if total:
            name = "any core class" if key == "core" else "any core or wide class"
            rows.insert(0, {"name": name, "total": True, **_sides(total)})
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _categories(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": row["category"] or "(none)", **_sides(row), "paired": paired(row.get("paired"))}
        for row in result.get("categories") or []
    ]


def _agreement(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**row, "names": row["detectors"], "kappa": _text(row.get("kappa"))} for row in result.get("agreement") or []
    ]


def _metrics(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    base = (result.get("base") or {}).get("metrics") or {}
    return [
        {
            "name": COLUMNS.get(name, name),
            "unit": score.get("unit", ""),
            "better": "higher" if score.get("higher_is_better") else "lower",
            "definition": score.get("definition", ""),
            "model": cell(score),
            "base": cell(base.get(name)) if base else None,
        }
        for name, score in (result.get("metrics") or {}).items()
    ]


def _provenance(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Everything that decides the numbers, by what it is about."""
    changed = dict(result.get("changed") or {})
    names = changed.get("names") or []
    if len(names) > NAMES_SHOWN:
        changed["names"] = [*names[:NAMES_SHOWN], f"and {len(names) - NAMES_SHOWN:,} more"]
    base = {key: value for key, value in (result.get("base") or {}).items() if key != "metrics"}
    run = {key: result.get(key) for key in ("device", "seed", "seconds", "images_per_second", "versions", "schema")}
    parts = {
        "Audited model": result.get("model"),
        "Base model": base,
        "Changed against the base": changed,
        "Prompts": result.get("prompts"),
        "Protocol": result.get("protocol"),
        "Concept": result.get("concept"),
        **{f"Detector {name}": values for name, values in (result.get("detectors") or {}).items()},
        "Run": run,
    }
    return {title: flat(values) for title, values in parts.items() if values}
