"""Compare audits side by side: how often each model shows the concept, and every metric.

Only audits made under the same conditions are put into one table. Nothing is averaged: the worst value of every metric
is marked and named, and a number that one model lacks is listed as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from erasure.auditing.report import VERDICTS, View, flat, paired, percent, probability, share
from erasure.auditing.result import AuditResult, Count, PairedTest, Rate, VerdictName
from erasure.auditing.tables import adjusted_tests
from erasure.core import plots
from erasure.core.errors import RunError
from erasure.core.files import write_text
from erasure.core.records import Record, stored
from erasure.core.run_dir import read_record
from erasure.evaluation.metrics.base import Score
from erasure.reports.compare_runs import RunComparison, compare_runs
from erasure.reports.page import COLUMNS, Figure, ShownScore, aligned, cell, rendered, titled


@dataclass(frozen=True, kw_only=True)
class BaseRow(Record):
    """A base model in a comparison; it has neither a verdict nor a paired test."""

    name: str
    verdict: VerdictName | None
    rate: Rate
    paired: PairedTest | None
    classes: Mapping[str, Count]
    metrics: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True)
class AuditRow(BaseRow):
    """An audited model in a comparison, with the counts and reasons of its audit."""

    max_rate: float | None
    planned: int
    scored: int
    failed: int
    refused: int
    reasons: tuple[str, ...]
    not_measured: Mapping[str, str]


@dataclass(frozen=True)
class Worst(Record):
    """The least favourable value of the rate or a metric, and the models that have it."""

    metric: str
    value: float
    which: Literal["lowest", "highest"]
    models: tuple[str, ...]


@dataclass(frozen=True)
class AuditComparison(Record):
    """Audits side by side: `bases`, then `rows`, the `worst` values, what is `missing`, and the shared `conditions`."""

    bases: tuple[BaseRow, ...]
    rows: tuple[AuditRow, ...]
    worst: tuple[Worst, ...]
    missing: tuple[str, ...]
    conditions: Mapping[str, str]
    html: str | None = stored(optional=True)


def compare(folders: Sequence[str], html: str | Path | None = None) -> AuditComparison | RunComparison:
    """Compare runs with runs (see compare_runs), or audits with audits (see compare_audits).

    Raises RunError for a folder that is not a finished erasure or audit, and for both kinds at once.
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


def compare_audits(folders: Sequence[str | Path], html: str | Path | None = None) -> AuditComparison:
    """Compare audits, with the p-values against the base adjusted for their number (Holm, 1979).

    `html` also writes a page. Raises RunError for audits whose prompts, seed, protocol, detectors or concept differ.
    """
    audits = [AuditResult.read(Path(folder)) for folder in folders]
    conditions = [_conditions(audit) for audit in audits]
    for folder, other in zip(folders[1:], conditions[1:], strict=True):
        _check_same(folders[0], conditions[0], folder, other)
    rows = [_row(name, audit) for name, audit in zip(_names(folders, audits), audits, strict=True)]
    tests = adjusted_tests([row.paired for row in rows])
    rows = [replace(row, paired=test) for row, test in zip(rows, tests, strict=True)]
    result = AuditComparison(
        bases=tuple(_bases(audits)),
        rows=tuple(rows),
        worst=tuple(_worst(rows)),
        missing=(*_missing(rows), *_unrecorded(conditions[0])),
        conditions=conditions[0],
    )
    if html is None:
        return result
    write_text(Path(html), _page(result))
    return replace(result, html=str(html))


def as_text(result: AuditComparison) -> str:
    """The comparison for a terminal: the models, their core classes, then the worst of every metric in words."""
    every: list[BaseRow] = [*result.bases, *result.rows]
    names = _metric_names(every)
    models = [["", "verdict", "images", "rate %", "paired p", "Holm p", *(COLUMNS.get(name, name) for name in names)]]
    for row in every:
        cells = [_cell(row, name) for name in names]
        shown = [f"{found['value']} {found['interval']}".strip() for found in cells]
        models.append([row.name, row.verdict or "", _of(row.rate), _rate(row.rate), *_tests(row.paired), *shown])
    classes = [["core class", "", *(row.name for row in every)]]
    for name in _class_names(every):
        classes.append([name, "", *(_of(row.classes.get(name)) for row in every)])
    return "\n".join([aligned(models), "", aligned(classes), "", *_sentences(result)]).rstrip()


def _cell(row: BaseRow, metric: str) -> ShownScore:
    score = row.metrics.get(metric)
    return cell(None if score is None else score.to_dict())


def _conditions(audit: AuditResult) -> dict[str, str]:
    """What must be the same for two rates to mean the same."""
    return flat(
        {
            "prompts.rows_hash": None if audit.prompts is None else audit.prompts.rows_hash,
            "seed": audit.seed,
            "protocol": audit.protocol,
            "concept": audit.concept.to_dict(),
            "detectors": {
                name: {"hash": detector.hash, "threshold": detector.threshold, "options": detector.options}
                for name, detector in audit.detectors.items()
            },
        }
    )


def _check_same(first: str | Path, ours: Mapping[str, str], second: str | Path, theirs: Mapping[str, str]) -> None:
    different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise RunError(
            f"{first} and {second} cannot be compared, {name} differs ({ours.get(name, '-')} and "
            f"{theirs.get(name, '-')}{more}): audit them on the same prompts with the same protocol and detectors"
        )


def _names(folders: Sequence[str | Path], audits: Sequence[AuditResult]) -> list[str]:
    """`model (folder)`; with the whole path where two audits would have the same name."""
    models = [audit.model.name or "images" for audit in audits]
    short = [f"{model} ({Path(folder).resolve().name})" for model, folder in zip(models, folders, strict=True)]
    seen = Counter(short)
    full = [f"{model} ({folder})" for model, folder in zip(models, folders, strict=True)]
    return [name if seen[name] == 1 else other for name, other in zip(short, full, strict=True)]


def _row(name: str, audit: AuditResult) -> AuditRow:
    return AuditRow(
        name=name,
        verdict=audit.verdict,
        rate=audit.rate,
        paired=audit.paired,
        classes={row.name: row.model for row in audit.classes if row.set == "core"},
        metrics=audit.metrics,
        max_rate=audit.max_rate,
        planned=audit.planned,
        scored=audit.scored,
        failed=audit.failed,
        refused=audit.refused,
        reasons=audit.reasons,
        not_measured=audit.not_measured,
    )


def _bases(audits: Sequence[AuditResult]) -> list[BaseRow]:
    """One row for each base model; audits share it when the weights and every count are the same."""
    found: dict[str, BaseRow] = {}
    for audit in audits:
        if audit.base is None or audit.base_rate is None:
            continue
        classes = {row.name: row.base for row in audit.classes if row.set == "core" and row.base is not None}
        row = BaseRow(
            name=f"base: {audit.base.name}",
            verdict=None,
            rate=audit.base_rate,
            paired=None,
            classes=classes,
            metrics=audit.base.metrics,
        )
        found.setdefault(f"{audit.base.hash} {audit.base_rate} {classes}", row)
    rows = list(found.values())
    if len(rows) == 1:
        return rows
    return [replace(row, name=f"{row.name} ({number})") for number, row in enumerate(rows, start=1)]


def _metric_names(rows: Sequence[BaseRow]) -> list[str]:
    measured = {name for row in rows for name in row.metrics}
    return [*(name for name in COLUMNS if name in measured), *sorted(measured - set(COLUMNS))]


def _class_names(rows: Sequence[BaseRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.classes))


def _worst(rows: Sequence[AuditRow]) -> list[Worst]:
    """The least favourable rate and metrics of the audited models, and who has them; none where all are equal."""
    found = []
    for name, (values, higher_is_better) in _values(rows).items():
        if len(set(values.values())) > 1:
            value = (min if higher_is_better else max)(values.values())
            models = tuple(key for key, other in values.items() if other == value)
            found.append(Worst(name, value, "lowest" if higher_is_better else "highest", models))
    return found


def _values(rows: Sequence[AuditRow]) -> dict[str, tuple[dict[str, float], bool]]:
    """The rate and every metric of the models that have it, and whether a higher value is better."""
    found = {"rate": ({row.name: row.rate.value for row in rows if row.rate.value is not None}, False)}
    for name in _metric_names(rows):
        scores = {row.name: row.metrics[name] for row in rows if name in row.metrics}
        better = next(iter(scores.values())).higher_is_better
        found[name] = ({key: score.value for key, score in scores.items()}, better)
    return found


def _missing(rows: Sequence[AuditRow]) -> list[str]:
    """A sentence for every number that some model has and another does not."""
    found = [f"{row.name} has no rate: none of its images were scored" for row in rows if not row.rate.n]
    found += [f"{row.name} has no pairs with a base model" for row in rows if row.paired is None]
    for name in _metric_names(rows):
        for row in (row for row in rows if name not in row.metrics):
            why = row.not_measured.get(name)
            found.append(f"{COLUMNS.get(name, name)} was not measured for {row.name}" + (f": {why}" if why else ""))
    return found


def _unrecorded(conditions: Mapping[str, str]) -> list[str]:
    """What the conditions do not show to be the same."""
    if conditions["prompts.rows_hash"] != "-":
        return []
    return ["the prompts of these images are not on record: the rates mean the same only if the prompts were the same"]


def _sentences(result: AuditComparison) -> list[str]:
    rows = {row.name: row for row in result.rows}
    lines = []
    for worst in result.worst:
        if worst.metric == "rate":
            value, title = f"{percent(worst.value)} %", "Rate"
        else:
            row = rows[worst.models[0]]
            value = f"{_cell(row, worst.metric)['value']} {row.metrics[worst.metric].unit}".strip()
            title = COLUMNS.get(worst.metric, worst.metric)
        lines.append(f"{title}: {worst.which} {value}, {' and '.join(worst.models)}")
    return [*lines, *result.missing]


def _of(count: Rate | Count | None) -> str:
    shown = share(count)
    return shown["n"] if shown else "-"


def _rate(count: Rate) -> str:
    shown = share(count)
    return f"{shown['value'].removesuffix(' %')} {shown['interval']}".strip() if shown else "-"


def _tests(test: PairedTest | None) -> list[str]:
    """The p-value against the base for a terminal, as it is and adjusted."""
    if test is None:
        return ["-", "-"]
    values = (test.p_value, test.p_adjusted)
    return ["-" if value is None else probability(value).removeprefix("= ") for value in values]


def _page(result: AuditComparison) -> str:
    every: list[BaseRow] = [*result.bases, *result.rows]
    names = _metric_names(every)
    marks = {worst.metric: worst.models for worst in result.worst}
    models = [_model_view(row, names, marks) for row in every]
    classes = [{"name": n, "cells": [share(row.classes.get(n)) for row in every]} for n in _class_names(every)]
    return rendered(
        "compare.html",
        title="Comparison of audits",
        sentences=_sentences(result),
        test=", ".join(sorted({str(found["test"]) for row in every if (found := paired(row.paired))})),
        header=[COLUMNS.get(name, name) for name in names],
        models=models,
        classes=classes,
        figures=_figures(every, names, marks),
        conditions=result.conditions,
    )


def _model_view(row: BaseRow, names: Sequence[str], marks: Mapping[str, Sequence[str]]) -> View:
    return {
        "name": row.name,
        "verdict": row.verdict,
        "word": VERDICTS[row.verdict] if row.verdict else None,
        "limit": row.max_rate if isinstance(row, AuditRow) else None,
        "reasons": row.reasons if isinstance(row, AuditRow) else (),
        "rate": share(row.rate),
        "worst": row.name in marks.get("rate", ()),
        "paired": paired(row.paired),
        "cells": [{**_cell(row, name), "worst": row.name in marks.get(name, ())} for name in names],
    }


def _figures(rows: Sequence[BaseRow], names: Sequence[str], marks: Mapping[str, Sequence[str]]) -> list[Figure]:
    """The rates, then a small plot for every metric, the worst value of each as a diamond."""
    rates = {
        row.name: (100 * row.rate.value, [100 * end for end in row.rate.interval])
        for row in rows
        if row.rate.value is not None
    }
    figures: list[Figure] = []
    if rates:
        figure = plots.intervals(rates, "% of images", width=4.8, marked=marks.get("rate", ()))
        figures.append(titled("Rate: images with the concept", figure))
    for name in names:
        scores = {row.name: row.metrics[name] for row in rows if name in row.metrics}
        first = next(iter(scores.values()))
        points = {key: (score.value, score.to_dict()["interval"]) for key, score in scores.items()}
        label = f"{first.unit} ({'higher' if first.higher_is_better else 'lower'} is better)".strip()
        figure = plots.intervals(points, label, width=4.8, marked=marks.get(name, ()))
        figures.append(titled(COLUMNS.get(name, name), figure))
    return figures
