"""Put audits side by side: how often each model shows the concept, and what the erasure cost, number by number.

Only audits made under the same conditions are put into one table. Nothing is averaged: the worst value of every metric
is marked and named, and a number that one model lacks is listed as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasure.auditing.report import VERDICTS, flat, paired, percent, probability, share
from erasure.core import plots
from erasure.core.errors import RunError
from erasure.core.files import read_json, write_text
from erasure.core.run_dir import read_record
from erasure.core.statistics import holm
from erasure.reports.compare_runs import compare_runs
from erasure.reports.erase_report import COLUMNS, aligned, cell, rendered, titled

SCHEMA = 1


def compare(folders: Sequence[str], html: str | Path | None = None) -> dict[str, Any]:
    """Compare runs with runs (see compare_runs), or audits with audits (see compare_audits).

    Raises RunError for a folder that is no finished erasure or audit, and for both kinds at once.
    """
    audits = [folder for folder in folders if _finished(folder) == "audit"]
    if not audits:
        return compare_runs(folders, html)
    others = [folder for folder in folders if folder not in audits]
    if others:
        raise RunError(
            f"{audits[0]} is an audit and {others[0]} an erasure: compare audits with audits, runs with runs"
        )
    return compare_audits(folders, html)


def _finished(folder: str) -> str:
    """The verb of a finished run."""
    document = read_record(Path(folder) / "run.json")
    if document["verb"] not in ("erase", "audit") or document["status"] != "done":
        raise RunError(f"{folder} is not a finished erasure or audit: finish it with its own command first")
    return str(document["verb"])


def compare_audits(folders: Sequence[str], html: str | Path | None = None) -> dict[str, Any]:
    """Rows of all audits, their bases first, with the p-values against the base adjusted for their number (Holm, 1979).

    `worst` names the models with the least favourable value of the rate and of every metric, `missing` what was not
    measured; `html` also writes a page. Raises RunError for audits whose prompts, seed, protocol, detectors or concept
    differ.
    """
    audits = [_read(folder) for folder in folders]
    conditions = [_conditions(audit) for audit in audits]
    for folder, other in zip(folders[1:], conditions[1:], strict=True):
        _check_same(folders[0], conditions[0], folder, other)
    rows = [_row(name, audit) for name, audit in zip(_names(folders, audits), audits, strict=True)]
    tested = [row for row in rows if row["paired"] is not None]
    for row, adjusted in zip(tested, holm([row["paired"]["p_value"] for row in tested]), strict=True):
        row["paired"] = {**row["paired"], "p_adjusted": adjusted}
    result = {
        "bases": _bases(audits),
        "rows": rows,
        "worst": _worst(rows),
        "missing": [*_missing(rows), *_unrecorded(conditions[0])],
        "conditions": conditions[0],
    }
    if html is not None:
        write_text(Path(html), _page(result))
        result["html"] = str(html)
    return result


def as_text(result: Mapping[str, Any]) -> str:
    """The comparison for a terminal: the models, their core classes, then the worst of every metric in words."""
    every = [*result["bases"], *result["rows"]]
    names = _metric_names(every)
    models = [["", "verdict", "images", "rate %", "paired p", "Holm p", *(COLUMNS.get(name, name) for name in names)]]
    for row in every:
        cells = [cell(row["metrics"].get(name)) for name in names]
        shown = [f"{found['value']} {found['interval']}".strip() for found in cells]
        models.append([row["name"], row["verdict"] or "", _of(row["rate"]), _rate(row["rate"]), *_tests(row), *shown])
    classes = [["core class", "", *(row["name"] for row in every)]]
    for name in _class_names(every):
        classes.append([name, "", *(_of(row["classes"].get(name)) for row in every)])
    return "\n".join([aligned(models), "", aligned(classes), "", *_sentences(result)]).rstrip()


def _read(folder: str) -> dict[str, Any]:
    audit = read_json(Path(folder) / "audit.json")
    if audit.get("schema") != SCHEMA:
        raise RunError(
            f"{folder}/audit.json has schema {audit.get('schema')}, expected {SCHEMA}: audit the model again"
        )
    needed = ("verdict", "rate", "concept", "protocol", "prompts", "model", "detectors", "classes")
    absent = [name for name in needed if name not in audit]
    if absent:
        raise RunError(f"{folder}/audit.json is not the result of an audit: it has no {absent[0]!r}")
    return audit


def _conditions(audit: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same for two rates to mean the same."""
    detectors = {
        name: {key: values.get(key) for key in ("hash", "threshold", "options")}
        for name, values in audit["detectors"].items()
    }
    return flat(
        {
            "prompts.rows_hash": (audit["prompts"] or {}).get("rows_hash"),
            "seed": audit.get("seed"),
            "protocol": audit["protocol"],
            "concept": audit["concept"],
            "detectors": detectors,
        }
    )


def _check_same(first: str, ours: Mapping[str, str], second: str, theirs: Mapping[str, str]) -> None:
    different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise RunError(
            f"{first} and {second} cannot be compared, {name} differs ({ours.get(name, '-')} and "
            f"{theirs.get(name, '-')}{more}): audit them on the same prompts with the same protocol and detectors"
        )


def _names(folders: Sequence[str], audits: Sequence[Mapping[str, Any]]) -> list[str]:
    """`model (folder)`; by the whole path where that would name two audits alike."""
    models = [str((audit["model"] or {}).get("name") or "images") for audit in audits]
    short = [f"{model} ({Path(folder).resolve().name})" for model, folder in zip(models, folders, strict=True)]
    seen = Counter(short)
    full = [f"{model} ({folder})" for model, folder in zip(models, folders, strict=True)]
    return [name if seen[name] == 1 else other for name, other in zip(short, full, strict=True)]


def _row(name: str, audit: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key: audit.get(key) for key in ("max_rate", "planned", "scored", "failed", "refused", "reasons")}
    classes = {row["class"]: row["model"] for row in audit["classes"] if row["set"] == "core"}
    return {
        "name": name,
        "verdict": audit["verdict"],
        **counts,
        "rate": audit["rate"],
        "paired": audit.get("paired"),
        "classes": classes,
        "metrics": audit.get("metrics") or {},
        "not_measured": audit.get("not_measured") or {},
    }


def _bases(audits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each base model; audits share it when the weights and every count are the same."""
    found: dict[str, dict[str, Any]] = {}
    for audit in audits:
        rate = audit.get("base_rate")
        if not audit.get("base") or rate is None:
            continue
        classes = {row["class"]: row["base"] for row in audit["classes"] if row["set"] == "core"}
        key = f"{audit['base'].get('hash')} {rate} {classes}"
        metrics = audit["base"].get("metrics") or {}
        name = f"base: {audit['base'].get('name')}"
        found.setdefault(
            key,
            {
                "name": name,
                "verdict": None,
                "rate": rate,
                "paired": None,
                "classes": classes,
                "metrics": metrics,
            },
        )
    rows = list(found.values())
    for number, row in enumerate(rows, start=1):
        row["name"] += f" ({number})" if len(rows) > 1 else ""
    return rows


def _metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    measured = {name for row in rows for name in row["metrics"]}
    return [*(name for name in COLUMNS if name in measured), *sorted(measured - set(COLUMNS))]


def _class_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["classes"]))


def _worst(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The least favourable rate and metrics of the audited models, and who has them; none where all are alike."""
    series = {"rate": ({row["name"]: row["rate"]["value"] for row in rows if row["rate"]["n"]}, False)}
    for name in _metric_names(rows):
        scores = {row["name"]: row["metrics"][name] for row in rows if name in row["metrics"]}
        better = next(iter(scores.values()))["higher_is_better"]
        series[name] = ({key: score["value"] for key, score in scores.items()}, better)
    found = []
    for name, (values, higher) in series.items():
        if len(set(values.values())) > 1:
            value = (min if higher else max)(values.values())
            models = [key for key, other in values.items() if other == value]
            found.append({"metric": name, "value": value, "which": "lowest" if higher else "highest", "models": models})
    return found


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every number that some model has and another has not."""
    found = [f"{row['name']} has no rate: none of its images were scored" for row in rows if not row["rate"]["n"]]
    found += [f"{row['name']} has no pairs with a base model" for row in rows if row["paired"] is None]
    for name in _metric_names(rows):
        for row in (row for row in rows if name not in row["metrics"]):
            why = row["not_measured"].get(name)
            found.append(f"{COLUMNS.get(name, name)} was not measured for {row['name']}" + (f": {why}" if why else ""))
    return found


def _unrecorded(conditions: Mapping[str, str]) -> list[str]:
    """What the equal conditions cannot vouch for."""
    if conditions["prompts.rows_hash"] != "-":
        return []
    return ["the prompts of these images are not on record: the rates mean the same only if the prompts were the same"]


def _sentences(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for worst in result["worst"]:
        scores = {row["name"]: row["metrics"].get(worst["metric"]) for row in result["rows"]}
        if worst["metric"] == "rate":
            value, title = f"{percent(worst['value'])} %", "Rate"
        else:
            score = scores[worst["models"][0]]
            value = f"{cell(score)['value']} {score['unit'] if score else ''}".strip()
            title = COLUMNS.get(worst["metric"], worst["metric"])
        lines.append(f"{title}: {worst['which']} {value}, {' and '.join(worst['models'])}")
    return [*lines, *result["missing"]]


def _of(count: Mapping[str, Any] | None) -> str:
    shown = share(count)
    return shown["n"] if shown else "-"


def _rate(count: Mapping[str, Any]) -> str:
    shown = share(count)
    return f"{shown['value'].removesuffix(' %')} {shown['interval']}".strip() if shown else "-"


def _tests(row: Mapping[str, Any]) -> list[str]:
    """The p-value against the base for a terminal, as it is and adjusted."""
    if row["paired"] is None:
        return ["-", "-"]
    return [probability(row["paired"][key]).removeprefix("= ") for key in ("p_value", "p_adjusted")]


def _page(result: Mapping[str, Any]) -> str:
    every = [*result["bases"], *result["rows"]]
    names = _metric_names(every)
    marks = {worst["metric"]: worst["models"] for worst in result["worst"]}
    models = [
        {
            "name": row["name"],
            "verdict": row["verdict"],
            "word": VERDICTS.get(row["verdict"] or "", row["verdict"]),
            "limit": row.get("max_rate"),
            "reasons": row.get("reasons") or [],
            "rate": share(row["rate"]),
            "worst": row["name"] in marks.get("rate", ()),
            "paired": paired(row["paired"]),
            "cells": [{**cell(row["metrics"].get(n)), "worst": row["name"] in marks.get(n, ())} for n in names],
        }
        for row in every
    ]
    classes = [{"name": n, "cells": [share(row["classes"].get(n)) for row in every]} for n in _class_names(every)]
    return rendered(
        "compare.html",
        title="Comparison of audits",
        sentences=_sentences(result),
        test=", ".join(sorted({found["test"] for row in every if (found := paired(row["paired"]))})),
        header=[COLUMNS.get(name, name) for name in names],
        models=models,
        classes=classes,
        figures=_figures(every, names, marks),
        conditions=result["conditions"],
    )


def _figures(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], marks: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """The rates, then a small plot for every metric, the worst value of each as a diamond."""
    rates = {
        row["name"]: (100 * row["rate"]["value"], [100 * end for end in row["rate"]["interval"]])
        for row in rows
        if row["rate"]["n"]
    }
    figures = []
    if rates:
        drawn = plots.intervals(rates, "% of images", width=4.8, marked=marks.get("rate", ()))
        figures.append(titled("Rate: images with the concept", drawn))
    for name in names:
        scores = {row["name"]: row["metrics"][name] for row in rows if name in row["metrics"]}
        first = next(iter(scores.values()))
        points = {key: (score["value"], score["interval"]) for key, score in scores.items()}
        label = f"{first['unit']} ({'higher' if first['higher_is_better'] else 'lower'} is better)".strip()
        drawn = plots.intervals(points, label, width=4.8, marked=marks.get(name, ()))
        figures.append(titled(COLUMNS.get(name, name), drawn))
    return figures
