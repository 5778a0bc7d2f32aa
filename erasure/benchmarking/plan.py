"""BenchmarkPlan: scenarios, rows and seeds, as plain data; a TOML file holds it (see plan_file.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from erasure.core import registry
from erasure.core.errors import OptionError, suggestion

CLASSIFIER, DIFFUSION = "classifier", "diffusion"
ORIGINAL, RETRAIN, AGAIN = "original", "retrain", "retrain again"  # rows that no plan has to name


@dataclass(frozen=True)
class Scenario:
    """What is forgotten, from which original, which options differ, and what was published about it."""

    name: str
    forget: str = ""
    concept: str = ""
    anchor: str | None = None
    retain: str | None = None
    title: str = ""
    model: str = ""
    training_images: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """What is forgotten, as it was given."""
        return self.concept or self.forget

    def forget_under(self, seed: int) -> str:
        """The forget set with the seed that draws it, where one is drawn from the data alone."""
        return f"{self.forget}@{seed}" if self.forget.startswith("random:") and "@" not in self.forget else self.forget


@dataclass(frozen=True)
class Row:
    """A method with its options; several rows may name one method.

    `base` is what the plan calls it, where that was made into several rows. `search` are the candidates to choose its
    options from, by name.
    """

    name: str
    method: str
    mask: str | None = None
    preset: str | None = None
    saliency: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    search: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as part of a file's."""
        return (self.base or self.name).replace(" ", "-")

    def options_in(self, scenario: Scenario) -> dict[str, Any]:
        """Its options with those that differ in a scenario."""
        return {**self.options, **scenario.methods.get(self.base, {}), **scenario.methods.get(self.name, {})}


@dataclass(frozen=True)
class BenchmarkPlan:
    """A whole benchmark; `steps` is set where every training was shortened to so many steps.

    `evaluation` has fields of EvaluationConfig and of SamplingOptions, and two counts. `num_forgotten` is the least
    number of images of all prompts to forget together, where `num_images` of each would be fewer; it does not apply to
    classes. `num_unseen` is a number of captions of the model's data that show what is erased in other words, or beside
    other things, and that no method was given: they make the column UA unseen.
    """

    family: str
    scenarios: tuple[Scenario, ...]
    rows: tuple[Row, ...]
    data: str = ""
    model: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    training_images: Mapping[str, Any] = field(default_factory=dict)
    tuning: tuple[Scenario, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    tuned_on: tuple[int, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    image_size: int | None = None
    limit: int | None = None
    steps: int | None = None

    def only(
        self, methods: Sequence[str] = (), scenarios: Sequence[str] = (), num_seeds: int | None = None
    ) -> BenchmarkPlan:
        """The plan with only the named rows and scenarios and the first seeds; more seeds than it has are counted on.

        Raises OptionError for a name that it does not have.
        """
        rows = _chosen("method", self.rows, methods, of_base=True)
        seeds = self.seeds
        if num_seeds is not None:
            if num_seeds < 1:
                raise OptionError(f"--seeds {num_seeds} must be at least 1")
            free = (seed for seed in range(1 << 31) if seed not in {*seeds, *self.tuned_on})
            seeds = (*seeds[:num_seeds], *(next(free) for _ in range(num_seeds - len(seeds))))
        return replace(self, rows=rows, scenarios=_chosen("scenario", self.scenarios, scenarios), seeds=seeds)

    def shortened(self, steps: int) -> BenchmarkPlan:
        """The plan with so many optimiser steps in every training and method, to show that all of it runs."""
        if steps < 1:
            raise OptionError(f"--steps {steps} must be at least 1")
        rows = tuple(
            replace(
                row,
                options={**row.options, **_in_steps(row.method, steps)},
                search={
                    name: {**values, **{key: steps for key in values if key == "steps"}}
                    for name, values in row.search.items()
                },
            )
            for row in self.rows
        )
        scenarios = tuple(
            replace(
                scenario,
                methods={
                    **scenario.methods,
                    **{
                        row.name: {**scenario.methods.get(row.name, {}), **_in_steps(row.method, steps)}
                        for row in self.rows
                    },
                },
            )
            for scenario in self.scenarios
        )
        train = {**self.train, "steps": steps, "warmup_steps": 0} if self.family == CLASSIFIER else {}
        return replace(self, rows=rows, scenarios=scenarios, train=train, steps=steps)


def _in_steps(method: str, steps: int) -> dict[str, Any]:
    has = {entry.name for entry in fields(registry.load("methods", method))}
    return {key: value for key, value in (("steps", steps), ("epochs", 0.0)) if key in has}


def _chosen(kind: str, entries: Any, names: Sequence[str], of_base: bool = False) -> Any:
    """The entries of these names; with `of_base` a name may also be the `base` of several entries."""
    called = [{entry.name, entry.base} - {""} if of_base else {entry.name} for entry in entries]
    for name in names:
        if not any(name in own for own in called):
            raise OptionError(f"the plan has no {kind} {name!r}{suggestion(name, set().union(*called))}")
    return tuple(entry for entry, own in zip(entries, called, strict=True) if not names or own & set(names))
