"""The result of an audit, as audit.json holds it and `--json` prints it: verdict, counts, what was compared with what.

Shares are in [0, 1], intervals are 95 %. Differences are model minus base: below zero the model shows less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, Protocol

from erasure.core.errors import RunError
from erasure.core.files import read_json, write_json
from erasure.core.records import Facts, Record, stored
from erasure.evaluation.metrics.base import Score

SCHEMA = 1
VerdictName = Literal["pass", "fail", "inconclusive", "none"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Rate(Record):
    """How many of `n` scored images show the concept.

    `trials` is the number of independent trials that the images of `prompts` different prompts are worth, `bounds` are
    the exact one-sided bounds over these trials.
    """

    count: int
    n: int
    value: float | None
    interval: Interval
    interval_method: str
    prompts: int
    trials: float
    bounds: Interval


@dataclass(frozen=True)
class Count(Record):
    """In how many of `n` images some classes were detected, and how often."""

    images: int
    detections: int
    n: int
    value: float | None
    interval: Interval
    interval_method: str


class Compared(Protocol):
    """Counts of the audited model and of the base."""

    @property
    def model(self) -> Count:
        """The audited model's."""

    @property
    def base(self) -> Count | None:
        """The base's, None without a base."""


@dataclass(frozen=True)
class SetCount(Record):
    """Counts of a set of classes."""

    model: Count
    base: Count | None


@dataclass(frozen=True, kw_only=True)
class ClassCount(Record):
    """Counts of one class, which is in the core set, in the wider set alone, or in neither."""

    name: str = stored(key="class")
    set: Literal["core", "wide", "other"]
    model: Count
    base: Count | None


@dataclass(frozen=True)
class PairedTest(Record):
    """Both models on the same images: in how many the concept is in both, in one alone, in neither; test and interval.

    `p_adjusted` is adjusted for the number of categories, or of audits in a comparison (Holm).
    """

    n: int
    both: int
    only_base: int
    only_model: int
    neither: int
    p_value: float
    difference: float
    interval: Interval
    interval_method: str
    test: str
    p_adjusted: float | None = stored(optional=True)


@dataclass(frozen=True)
class CategoryCount(Record):
    """Counts of the concept in the images of one category of prompts."""

    category: str
    model: Count
    base: Count | None
    paired: PairedTest | None


@dataclass(frozen=True)
class SweepStep(Record):
    """Counts of the concept at another threshold."""

    threshold: float
    model: Count
    base: Count | None


@dataclass(frozen=True)
class Maximum(Record):
    """Mean and standard deviation of the largest share of a prompt's images, over draws of prompts."""

    value: float
    deviation: float
    prompts: int


@dataclass(frozen=True)
class ExpectedMaximum(Record):
    """The expected maximum `over` so many prompts, from so many `draws`."""

    over: int
    draws: int
    model: Maximum | None
    base: Maximum | None


@dataclass(frozen=True)
class Agreement(Record):
    """How far two detectors agree on the images that both scored (Cohen's kappa)."""

    detectors: tuple[str, str]
    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    kappa: float | None


@dataclass(frozen=True)
class Failure(Record):
    """An image that could not be generated, read or scored, and why."""

    row: str
    image: int
    why: str


@dataclass(frozen=True)
class Control(Record):
    """A control: `flagged` of so many `images` on which `detector` must, or must not, detect the concept."""

    name: Literal["positive", "negative"]
    what: str
    images: int
    flagged: int
    passed: bool
    detector: str


@dataclass(frozen=True)
class DetectedConcept(Record):
    """What counts as an occurrence: any of `classes` of the main `detector` with a score of at least `threshold`.

    An image also counts when one of the `others` flags it, by its own core classes and threshold. `wide` is the main
    detector's wider set, which is reported separately.
    """

    detector: str
    classes: tuple[str, ...]
    threshold: float
    others: tuple[str, ...] = ()
    wide: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PromptFacts(Record):
    """Which prompts were used: the set's name and number of rows, SHA-256 of file and rows, and the filters."""

    name: str
    rows: int
    file_hash: str
    rows_hash: str
    filters: Facts


@dataclass(frozen=True, kw_only=True)
class ModelIdentity(Record):
    """Which model, or folder of images, was audited; a folder has no family, parts, size and sampling settings."""

    name: str
    path: str
    family: str | None = stored(optional=True)
    hash: str
    parts_hash: str | None = stored(optional=True)
    size: tuple[int, ...] | None = stored(optional=True)
    usual: Facts | None = stored(optional=True)  # noqa: RUF009 (a dataclass field)


@dataclass(frozen=True, kw_only=True)
class BaseIdentity(ModelIdentity):
    """Which base it was compared with, and those metrics of its images that need no other model."""

    metrics: Mapping[str, Score]


@dataclass(frozen=True)
class WeightChanges(Record):
    """Which tensors differ from the base's: how many, how many weights in them, the names of those that changed most.

    `relative_change` is the norm of all differences over the norm of the base's weights.
    """

    tensors: int
    of: int
    weights: int
    relative_change: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class DetectorIdentity(Record):
    """Which detector it was: the hash of all that decides a score, its classes, its own threshold, its options."""

    hash: str
    classes: tuple[str, ...]
    core: tuple[str, ...]
    wide: tuple[str, ...] | None
    threshold: float
    options: Facts


@dataclass(frozen=True, kw_only=True)
class AuditCounts(Record):
    """Everything that is counted from the records of an audit (see AuditResult)."""

    planned: int
    generated: int
    scored: int
    failed: int
    refused: int
    rate: Rate
    base_rate: Rate | None
    sets: Mapping[str, SetCount]
    classes: tuple[ClassCount, ...]
    categories: tuple[CategoryCount, ...]
    paired: PairedTest | None
    sweep: tuple[SweepStep, ...]
    expected_maximum: ExpectedMaximum | None
    agreement: tuple[Agreement, ...]
    failures: tuple[Failure, ...]
    refused_rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AuditResult(Record):
    """Everything that an audit found.

    `verdict` is about the limit `max_rate`; `claim` is the sentence that may be said about the model. Of `planned`
    images, `scored` were judged by the main detector and `failed` were not; rows in `refused_rows` were not planned.
    """

    schema: int
    verdict: VerdictName
    reasons: tuple[str, ...]
    claim: str
    planned: int
    generated: int
    scored: int
    failed: int
    refused: int
    max_rate: float | None
    rate: Rate
    concept: DetectedConcept
    protocol: Facts | None
    prompts: PromptFacts | None
    model: ModelIdentity
    base: BaseIdentity | None
    detectors: Mapping[str, DetectorIdentity]
    seed: int
    changed: WeightChanges | None
    controls: tuple[Control, ...]
    base_rate: Rate | None
    sets: Mapping[str, SetCount]
    classes: tuple[ClassCount, ...]
    categories: tuple[CategoryCount, ...]
    paired: PairedTest | None
    sweep: tuple[SweepStep, ...]
    expected_maximum: ExpectedMaximum | None
    agreement: tuple[Agreement, ...]
    failures: tuple[Failure, ...]
    refused_rows: tuple[str, ...]
    metrics: Mapping[str, Score]
    not_measured: Mapping[str, str]
    device: str
    versions: Mapping[str, str]
    seconds: float
    images_per_second: float | None
    out: str

    @classmethod
    def read(cls, folder: Path) -> AuditResult:
        """The result in the folder of an audit; raises RunError when there is none, or one of another shape."""
        path = folder / "audit.json"
        document = read_json(path)
        if document.get("schema") != SCHEMA:
            raise RunError(
                f"{path} has schema {document.get('schema')}, expected {SCHEMA}: run the audit again into another --out"
            )
        return cls.from_dict(document, f"{path} is damaged, remove it and run the same audit again")

    def _repr_html_(self) -> str:
        """The verdict, its reasons and the claim, for a notebook."""
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in self.reasons)
        report = escape(str(Path(self.out) / "report.html"))
        return (
            f"<p><b>{escape(self.verdict)}</b>: {escape(self.claim)}</p>{f'<ul>{reasons}</ul>' if reasons else ''}"
            f"<p>{self.scored} of {self.planned} planned images were scored; the report is {report}</p>"
        )

    def write(self) -> None:
        """Write audit.json into the folder `out`, atomically."""
        write_json(Path(self.out) / "audit.json", self.to_dict())
