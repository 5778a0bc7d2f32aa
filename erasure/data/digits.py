"""digits: 1,797 real handwritten digits, 8 x 8 grey, from scikit-learn (Alpaydin and Kaynak, 1998).

Split once and for all: in each class every fifth image is for testing (1,442 train, 355 test).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erasure.core.errors import DataError
from erasure.data.dataset import Dataset

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits:
    """scikit-learn's digits; nothing is downloaded."""

    def load(self, split: str, data_dir: Path | None = None) -> Dataset:
        """The split; the 17 grey levels 0 to 16 become 0 to 255."""
        if data_dir is not None:
            raise DataError("--data digits comes with scikit-learn and takes no --data-dir")
        from sklearn.datasets import load_digits

        raw = load_digits()
        labels = raw.target.astype(np.int64)
        for_test = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            for_test[np.flatnonzero(labels == label)[4::5]] = True
        kept = for_test if split == "test" else ~for_test
        images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., None]
        return Dataset("digits", split, images[kept], labels[kept], NAMES, flips=False, crop_padding=1)
