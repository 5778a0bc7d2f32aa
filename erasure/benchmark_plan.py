"""What a benchmark does, as plain data read from a TOML file: no tensors, nothing run.

family = "classifier"            # whose methods are compared
data = "digits"                  # and data_dir, image_size, limit as for `erasure train`
seeds = [0, 1, 2]                # reported
tuned_on = [7]                   # the seeds on which the options below were chosen

[train]                          # options of `erasure train classifier`
[scenarios.NAME]                 # forget = "random:0.1"; train.OPTION for another original
[scenarios.NAME.methods.ROW]     # options that differ here
[scenarios.NAME.published.ROW]   # what a paper reports: ua, ra, ta, mia, avg_gap, seconds
[methods.ROW]                    # method (default: the row's name), mask, preset, saliency, and its options
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from erasure import registry
from erasure.errors import OptionError, suggestion

FAMILIES = ("classifier",)
ORIGINAL, RETRAIN, AGAIN = "original", "retrain", "retrain again"  # the rows of every table
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # a row or a scenario becomes part of a folder's name
PUBLISHED = ("ua", "ra", "ta", "mia", "avg_gap", "seconds")


@dataclass(frozen=True)
class Scenario:
    """What is forgotten, from which original, which options differ, and what was published about it."""

    name: str
    forget: str
    title: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def forget_under(self, seed: int) -> str:
        """The forget set with the seed that draws it, where one is drawn from the data alone."""
        return f"{self.forget}@{seed}" if self.forget.startswith("random:") and "@" not in self.forget else self.forget


@dataclass(frozen=True)
class Row:
    """A method with its options; several rows may name one method."""

    name: str
    method: str
    mask: str | None = None
    preset: str | None = None
    saliency: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as part of a file's."""
        return self.name.replace(" ", "-")

    def options_in(self, scenario: Scenario) -> dict[str, Any]:
        """Its options with those that differ in a scenario."""
        return {**self.options, **scenario.methods.get(self.name, {})}


@dataclass(frozen=True)
class Plan:
    """A whole benchmark; `steps` is what every training was cut to, None in a whole one."""

    family: str
    data: str
    scenarios: tuple[Scenario, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    tuned_on: tuple[int, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    image_size: int | None = None
    limit: int | None = None
    steps: int | None = None

    def only(self, methods: Sequence[str] = (), scenarios: Sequence[str] = (), num_seeds: int | None = None) -> Plan:
        """The plan with only the named rows and scenarios and the first seeds; seeds beyond its own count on.

        Raises OptionError for a name that it does not have.
        """
        rows = _chosen("method", self.rows, methods)
        seeds = self.seeds
        if num_seeds is not None:
            if num_seeds < 1:
                raise OptionError(f"--seeds {num_seeds} must be at least 1")
            free = (seed for seed in range(1 << 31) if seed not in {*seeds, *self.tuned_on})
            seeds = (*seeds[:num_seeds], *(next(free) for _ in range(num_seeds - len(seeds))))
        return replace(self, rows=rows, scenarios=_chosen("scenario", self.scenarios, scenarios), seeds=seeds)

    def shortened(self, steps: int) -> Plan:
        """The same with so many optimiser steps in every training and method, to show that all of it runs."""
        if steps < 1:
            raise OptionError(f"--steps {steps} must be at least 1")
        rows = tuple(replace(row, options={**row.options, **_in_steps(row.method, steps)}) for row in self.rows)
        scenarios = tuple(
            replace(
                scenario,
                methods={
                    row.name: {**scenario.methods.get(row.name, {}), **_in_steps(row.method, steps)}
                    for row in self.rows
                },
            )
            for scenario in self.scenarios
        )
        train = {**self.train, "steps": steps, "warmup_steps": 0}
        return replace(self, rows=rows, scenarios=scenarios, train=train, steps=steps)


def read_plan(given: str | Path) -> Plan:
    """The plan of a TOML file, or of one that ships by its name ("digits").

    Raises OptionError for a file that is missing or broken, and for anything in it that a plan does not have.
    """
    path = _located(str(given))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path} is not a readable plan: {error}") from error
    known = {entry.name for entry in fields(Plan)} - {"rows", "steps"} | {"methods"}
    _only_known(document, known, str(path))
    for needed in ("family", "data", "scenarios", "methods"):
        if not document.get(needed):
            raise OptionError(f"{path} gives no {needed}: see `erasure benchmark --help`")
    if document["family"] not in FAMILIES:
        raise OptionError(f"{path}: a benchmark of family {document['family']!r} is unknown: expected {FAMILIES[0]}")
    rows = tuple(_row(name, dict(values), path) for name, values in document.pop("methods").items())
    scenarios = tuple(_scenario(name, values, rows, path) for name, values in document.pop("scenarios").items())
    lists: dict[str, Any] = {key: tuple(document.pop(key)) for key in ("seeds", "tuned_on") if key in document}
    if lists.get("seeds") == ():
        raise OptionError(f"{path} names no seeds")
    return Plan(rows=rows, scenarios=scenarios, **lists, **document)


def shipped_plans() -> Path:
    """Where the plans that ship are: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "benchmarks"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "benchmarks"


def _located(given: str) -> Path:
    shipped = {path.stem: path for path in sorted(shipped_plans().glob("*.toml"))}
    if Path(given).is_file():
        return Path(given)
    if given in shipped:
        return shipped[given]
    raise OptionError(f"no plan {given!r}{suggestion(given, shipped)}: give a TOML file, or {', '.join(shipped)}")


def _row(name: str, values: dict[str, Any], path: Path) -> Row:
    _need_name(name, "method", path)
    method = values.pop("method", name)
    if RETRAIN in (name, method) or name == ORIGINAL:
        raise OptionError(f"{path}: [methods.{name}]: every table has the original and Retrain without being told")
    kind = registry.load("methods", method)
    how = {key: values.pop(key) for key in ("mask", "preset", "saliency") if key in values}
    _only_known(values, [entry.name for entry in fields(kind)], f"{path}: [methods.{name}]")
    return Row(name, method, options=values, **how)


def _scenario(name: str, values: Mapping[str, Any], rows: Sequence[Row], path: Path) -> Scenario:
    _need_name(name, "scenario", path)
    owner = f"{path}: [scenarios.{name}]"
    _only_known(values, {entry.name for entry in fields(Scenario)} - {"name"}, owner)
    if not values.get("forget"):
        raise OptionError(f'{owner} names nothing to forget, such as forget = "random:0.1"')
    kinds = {row.name: registry.load("methods", row.method) for row in rows}
    _only_known(values.get("methods", {}), kinds, f"{owner} methods")
    for row, options in values.get("methods", {}).items():
        _only_known(options, [entry.name for entry in fields(kinds[row])], f"{owner} methods.{row}")
    _only_known(values.get("published", {}), {*kinds, RETRAIN}, f"{owner} published")
    for row, numbers in values.get("published", {}).items():
        _only_known(numbers, PUBLISHED, f"{owner} published.{row}")
    return Scenario(name, **{"title": name, **values})


def _in_steps(method: str, steps: int) -> dict[str, Any]:
    has = {entry.name for entry in fields(registry.load("methods", method))}
    return {key: value for key, value in (("steps", steps), ("epochs", 0.0)) if key in has}


def _chosen(kind: str, entries: Any, names: Sequence[str]) -> Any:
    by_name = {entry.name: entry for entry in entries}
    for name in names:
        if name not in by_name:
            raise OptionError(f"the plan has no {kind} {name!r}{suggestion(name, by_name)}")
    return tuple(entry for entry in entries if not names or entry.name in names)


def _need_name(name: str, what: str, path: Path) -> None:
    if not NAME.fullmatch(name):
        raise OptionError(f"{path}: {what} {name!r} must be letters, digits, dots, hyphens and underscores")


def _only_known(given: Any, known: Any, owner: str) -> None:
    for name in given:
        if name not in known:
            raise OptionError(f"{owner} has no entry {name!r}{suggestion(name, sorted(known))}")
