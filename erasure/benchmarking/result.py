"""Results of a benchmark and of a search: result.json and search.json, each with one writer and one reader.

The tables inside are plain values under typed names, because the same functions print them from published files.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Self, TypedDict

from erasure.core.errors import RunError
from erasure.core.files import read_json, write_json
from erasure.core.run_dir import Trained

Options = dict[str, Any]  # of a method, by name; also a whole plan, section by section


class CellResult(Trained, total=False):
    """What is recorded of one row of one scenario under one seed; `failed` says why it has no numbers.

    `metrics` are Scores as `to_dict` writes them, `took` is in seconds, `strip` a picture beside the cell.
    """

    metrics: dict[str, dict[str, Any]]
    not_measured: dict[str, str]
    mask: str
    took: float
    failed: str
    strip: str
    shown: dict[str, list[str]]


class SeedScore(TypedDict):
    """A mean over seeds, its 95 % interval (None for one seed), and the value of each seed.

    U-LiRA and KLoM are means over `n` samples instead, with the 95th percentile `p95`.
    """

    mean: float
    interval: list[float] | None
    values: NotRequired[list[float]]
    p95: NotRequired[float]
    n: NotRequired[int]


class TableRow(TypedDict):
    """One row of a scenario's table; `published` is what a paper reports, `failed` why a seed has no numbers.

    Rows of diffusion models have a `strip` of images, what it shows, and `n` labeled images for each metric. Rows of a
    search have the `row` of the plan whose `candidate` they are, and whether it was `chosen`.
    """

    name: str
    method: str
    mask: str
    options: Options
    scores: dict[str, SeedScore]
    published: dict[str, float]
    failed: dict[str, str]
    strip: NotRequired[str | None]
    shown: NotRequired[dict[str, list[str]] | None]
    n: NotRequired[dict[str, int]]
    row: NotRequired[str]
    candidate: NotRequired[Options]
    chosen: NotRequired[bool]


class Table(TypedDict):
    """One scenario's rows; `took` is in seconds."""

    name: str
    title: str
    forget: str
    took: float
    rows: list[TableRow]


class _Result:
    """A result that is one JSON file of the folder it was made in."""

    FILE: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dict(vars(self))

    def write(self, folder: Path) -> None:
        """Write the file into `folder`."""
        write_json(folder / self.FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote; raises RunError for another file."""
        path = folder / cls.FILE
        values, names = read_json(path), {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if set(values) != names:
            raise RunError(f"{path} is not a result of this version: expected {', '.join(sorted(names))}")
        return cls(**values)


@dataclass(frozen=True)
class BenchmarkResult(_Result):
    """The tables of a benchmark, one for each scenario, what a reader must know of them, and what ran where."""

    FILE = "result.json"

    family: str
    data: str
    models: list[str]
    seeds: list[int]
    tuned_on: list[int]
    scenarios: list[Table]
    notes: list[str]
    facts: dict[str, str]
    plan: Options
    report: str
    seconds: float


@dataclass(frozen=True)
class SearchResult(_Result):
    """Every candidate of a search in tables, the rule that chose among them, and the chosen options as TOML."""

    FILE = "search.json"

    family: str
    seeds: list[int]
    rule: str
    scenarios: list[Table]
    toml: str
    seconds: float
