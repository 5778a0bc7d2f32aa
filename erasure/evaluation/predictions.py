"""Predictions of a classifier on labelled images, and the numbers that membership attacks read from them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from erasure.core.errors import DataError, ModelError, NotApplicableError
from erasure.data import Dataset, load_dataset
from erasure.data.images import to_float
from erasure.models.classifier import Classifier


class Predictions(NamedTuple):
    """Logits (n, classes) float64 and the correct labels (n,)."""

    logits: np.ndarray
    labels: np.ndarray

    def of(self, chosen: np.ndarray) -> Predictions:
        """The predictions on the chosen samples."""
        return Predictions(self.logits[chosen], self.labels[chosen])

    @property
    def correct(self) -> np.ndarray:
        """Whether the largest logit is the label's, (n,) booleans."""
        return self.logits.argmax(1) == self.labels

    @property
    def losses(self) -> np.ndarray:
        """Cross-entropy of each prediction, (n,) in nats."""
        return np.logaddexp.reduce(self.logits, axis=1) - self._of_label

    @property
    def confidences(self) -> np.ndarray:
        """The probability given to the label, (n,) in [0, 1]."""
        return np.exp(-self.losses)

    @property
    def margins(self) -> np.ndarray:
        """log p / (1 - p) of the label's probability p, (n,): its logit less the log-sum-exp of the others."""
        others = self.logits.copy()
        others[np.arange(len(others)), self.labels] = -np.inf
        return self._of_label - np.logaddexp.reduce(others, axis=1)

    @property
    def _of_label(self) -> np.ndarray:
        return self.logits[np.arange(len(self.labels)), self.labels]


def finite(logits: np.ndarray) -> np.ndarray:
    """The same logits; raises ModelError when one is not a number."""
    if not np.isfinite(logits).all():
        raise ModelError("the classifier predicts numbers that are not finite: its weights are damaged")
    return logits


def need_one_label(model: Classifier) -> None:
    """Raise NotApplicableError for a classifier that labels several aspects of an image."""
    if model.aspects:
        raise NotApplicableError("it needs one right class an image: this classifier labels several aspects")


def on_test_split(
    model: Classifier, load: Callable[[], Dataset] | None, class_names: tuple[str, ...], without: Collection[int]
) -> Predictions:
    """Predict the test split that `load` returns, less the classes in `without`, in evaluation mode.

    Without `load` it is the test split of the data that the model records. Raises NotApplicableError when there is no
    test split, or when it has other classes.
    """
    test = load() if load else _recorded_test_split(model)
    if test.class_names != class_names:
        raise NotApplicableError(f"the test split of {test.name} has other classes than the data that is forgotten")
    test = test.of_classes(set(range(len(class_names))) - set(without))
    return Predictions(finite(model.describe(to_float(test.images))[0].double().numpy()), test.labels)


def _recorded_test_split(model: Classifier) -> Dataset:
    noted = model.info.get("recipe") or {}
    spec = noted.get("data") or model.info.get("data")
    if spec is None:
        raise NotApplicableError("the model does not record what it was trained on, so there is no test split")
    try:
        return load_dataset(spec, "test", noted.get("data_dir"), noted.get("image_size"))
    except DataError as error:
        raise NotApplicableError(f"there is no test split: {error}") from error
