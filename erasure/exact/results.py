"""What fit, forget, predict and verify of an exact service return; `to_dict` is what `--json` prints."""

from __future__ import annotations

from dataclasses import dataclass

from erasure.core.records import Record, stored
from erasure.exact.plan import Environment


@dataclass(frozen=True)
class FitResult(Record):
    """Counts of a service whose states were all trained; `test_accuracy` in percent."""

    out: str
    method: str
    samples: int
    units: int
    states: int
    trained_samples: float
    log_head: str
    seconds: float
    test_accuracy: float | None


@dataclass(frozen=True)
class ForgetResult(Record):
    """What a request retrained, in states and in samples, beside retraining one model from nothing."""

    folder: str
    forgotten: tuple[int, ...]
    forgotten_in_all: int
    retrained_states: int
    live_states: int
    retrained_samples: float
    naive_samples: float
    share_of_naive: float
    removed_files: int
    log_head: str


@dataclass(frozen=True, kw_only=True)
class Prediction(Record):
    """The class of one image, as a number and by name, and its score."""

    image: str
    label: int
    class_name: str = stored(key="class")
    score: float


@dataclass(frozen=True)
class PredictResult(Record):
    """The predictions for images, in their order."""

    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class ExactVerifyResult(Record):
    """Whether the live states have the bits of training without the forgotten samples, and what is wrong if not.

    `differing` are states, `strangers` files of states/ that should not be there, `log` is "whole" or its fault.
    """

    folder: str
    exact: bool
    live_states: int
    forgotten: int
    differing: tuple[str, ...]
    strangers: tuple[str, ...]
    log: str
    log_head: str
    test_accuracy: float | None
    claim: str
    not_claimed: tuple[str, ...]
    environment: Environment
