"""Read and check the TOML file of a benchmark.

family = "classifier"            # whose methods are compared: classifier, or diffusion
data = "digits"                  # classifier: and data_dir, image_size, limit as for `erasure train`
model = "digits-sd"              # diffusion: what is erased from; data, data_dir, image_size as for `erasure erase`
seeds = [0, 1, 2]                # reported
tuned_on = [7]                   # the seeds on which the options below were chosen

[train]                          # classifier: options of `erasure train classifier`
[evaluation]                     # diffusion: metrics, classifier, num_images, ..., num_unseen (see plan.py)
[training_images]                # diffusion: num_forget_images, ...
[scenarios.NAME]                 # forget = "random:0.1"; train.OPTION for another original
                                 # diffusion: concept, or forget with anchor and retain; model, training_images.OPTION
[scenarios.NAME.methods.ROW]     # options that differ here
[scenarios.NAME.published.ROW]   # what a paper reports: ua, ra, ta, mia, avg_gap, seconds, ira, cra, composition
[tuning.NAME]                    # as a scenario, on other things: options are searched on it for the scenario NAME
[methods.ROW]                    # method (default: the row's name), mask, preset, saliency, and its options
                                 # masks = ["saliency", "none"] makes a row for each
[methods.ROW.search]             # lists of option values: all their combinations are candidates
[methods.ROW.search.NAME]        # or candidates by name, each some options
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from erasure.benchmarking.plan import CLASSIFIER, DIFFUSION, ORIGINAL, RETRAIN, BenchmarkPlan, Row, Scenario
from erasure.core import registry
from erasure.core.errors import OptionError, suggestion
from erasure.core.shipped import shipped

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # a row or a scenario becomes part of a folder's name
PUBLISHED = ("ua", "ra", "ta", "mia", "avg_gap", "seconds", "ira", "cra", "composition")
SHARED = ("family", "data", "data_dir", "image_size", "seeds", "tuned_on", "scenarios", "tuning", "methods")
OF_PLAN = {CLASSIFIER: ("train", "limit"), DIFFUSION: ("model", "evaluation", "training_images")}
OF_SCENARIO = {CLASSIFIER: ("train",), DIFFUSION: ("concept", "anchor", "retain", "model", "training_images")}
NEEDED = {CLASSIFIER: ("data", "scenarios", "methods"), DIFFUSION: ("scenarios", "methods")}
EXAMPLE = {CLASSIFIER: 'forget = "random:0.1"', DIFFUSION: 'concept = "digits/five"'}
WITH_MASK = {"none": "without mask"}  # and any other "with such a mask"


def read_plan(given: str | Path) -> BenchmarkPlan:
    """The plan of a TOML file, or of one that ships by its name ("digits").

    Raises OptionError for a file that is missing or broken, and for anything in it that a plan does not have.
    """
    path = _located(str(given))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path} is not a readable plan: {error}") from error
    family = document.get("family")
    if not family:
        raise OptionError(f"{path} gives no family: see `erasure benchmark --help`")
    if family not in OF_PLAN:
        raise OptionError(f"{path}: a benchmark of family {family!r} is unknown: expected {' or '.join(OF_PLAN)}")
    _only_known(document, {*SHARED, *OF_PLAN[family]}, str(path))
    for needed in NEEDED[family]:
        if not document.get(needed):
            raise OptionError(f"{path} gives no {needed}: see `erasure benchmark --help`")
    rows = tuple(
        row for name, values in document.pop("methods").items() for row in _rows(name, dict(values), family, path)
    )
    scenarios, tuning = (
        tuple(_scenario(f"{kind}.{name}", values, rows, document, path) for name, values in found.items())
        for kind, found in (("scenarios", document.pop("scenarios")), ("tuning", document.pop("tuning", {})))
    )
    for one in tuning if len(tuning) > 1 else ():
        if one.name not in {scenario.name for scenario in scenarios}:
            raise OptionError(f"{path}: [tuning.{one.name}] needs the name of the scenario whose options it decides")
    lists: dict[str, Any] = {key: tuple(document.pop(key)) for key in ("seeds", "tuned_on") if key in document}
    if lists.get("seeds") == ():
        raise OptionError(f"{path} names no seeds")
    return BenchmarkPlan(rows=rows, scenarios=scenarios, tuning=tuning, **lists, **document)


def _located(given: str) -> Path:
    known = {path.stem: path for path in sorted(shipped("plans").glob("*.toml"))}
    if Path(given).is_file():
        return Path(given)
    if given in known:
        return known[given]
    raise OptionError(f"no plan {given!r}{suggestion(given, known)}: give a TOML file, or {', '.join(known)}")


def _rows(name: str, values: dict[str, Any], family: str, path: Path) -> list[Row]:
    """One row, or one for each of `masks`."""
    owner = f"{path}: [methods.{name}]"
    _need_name(name, "method", path)
    method = values.pop("method", name)
    if name == ORIGINAL or (family == CLASSIFIER and RETRAIN in (name, method)):
        raise OptionError(f"{owner}: every table has the original and Retrain: leave this row out")
    kind = registry.load("methods", method)
    known = [entry.name for entry in fields(kind)]
    masks = values.pop("masks", [])
    if masks and "mask" in values:
        raise OptionError(f"{owner} gives mask and masks: give one of them")
    how = {key: values.pop(key) for key in ("mask", "preset", "saliency") if key in values}
    search = _candidates(values.pop("search", {}), known, f"{owner} search")
    _only_known(values, known, owner)
    row = Row(name, method, options=values, search=search, **how)
    return [
        replace(row, name=f"{name} {WITH_MASK.get(mask, f'with {mask} mask')}", mask=mask, base=name) for mask in masks
    ] or [row]


def _candidates(given: Mapping[str, Any], known: Sequence[str], owner: str) -> dict[str, dict[str, Any]]:
    """The candidates of a search by name: those that are named, or all combinations of the values in lists."""
    named = {key: dict(value) for key, value in given.items() if isinstance(value, dict)}
    for options in named.values():
        _only_known(options, known, owner)
    lists = {key: value for key, value in given.items() if key not in named}
    _only_known(lists, known, owner)
    for key, value in lists.items():
        if named or not isinstance(value, list) or not value:
            raise OptionError(f"{owner}: {key} must be a list of values, or every entry a table of options")
    grid = (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())) if lists else ()
    return named or {", ".join(f"{key} {value}" for key, value in options.items()): options for options in grid}


def _scenario(
    place: str, values: Mapping[str, Any], rows: Sequence[Row], document: Mapping[str, Any], path: Path
) -> Scenario:
    kind, _, name = place.partition(".")
    _need_name(name, "scenario", path)
    owner, family = f"{path}: [{place}]", document["family"]
    _only_known(
        values,
        {"title", "forget", *OF_SCENARIO[family]} | ({"methods", "published"} if kind == "scenarios" else set()),
        owner,
    )
    if not values.get("forget") and not values.get("concept"):
        raise OptionError(f"{owner} names nothing to forget, such as {EXAMPLE[family]}")
    if family == DIFFUSION and not (values.get("model") or document.get("model")):
        raise OptionError(f'{owner} has no model, and the plan names none, such as model = "digits-sd"')
    kinds = {key: registry.load("methods", row.method) for row in rows for key in (row.base, row.name) if key}
    _only_known(values.get("methods", {}), kinds, f"{owner} methods")
    for row, options in values.get("methods", {}).items():
        _only_known(options, [entry.name for entry in fields(kinds[row])], f"{owner} methods.{row}")
    _only_known(values.get("published", {}), {*(row.name for row in rows), RETRAIN}, f"{owner} published")
    for row, numbers in values.get("published", {}).items():
        _only_known(numbers, PUBLISHED, f"{owner} published.{row}")
    return Scenario(name, **{"title": name, **values})


def _need_name(name: str, what: str, path: Path) -> None:
    if not NAME.fullmatch(name):
        raise OptionError(f"{path}: {what} {name!r} must be letters, digits, dots, hyphens and underscores")


def _only_known(given: Any, known: Any, owner: str) -> None:
    for name in given:
        if name not in known:
            raise OptionError(f"{owner} has no entry {name!r}{suggestion(name, sorted(known))}")
