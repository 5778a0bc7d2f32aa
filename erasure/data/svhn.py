"""svhn: 99,289 house numbers cut into digits, 32 x 32 colour (Netzer et al., 2011), "format 2".

Read from `--data-dir`, which may be (or hold) either form:
- the official files `train_32x32.mat` and `test_32x32.mat`, which are MATLAB files of arrays and run no code;
- a folder `<split>/<digit>/NNNN.<image>`, or an archive of it, digits by figure ("7") or by name ("seven").
The official label 10 is the digit 0. Counts are checked: a truncated or different file is refused. On the hub it is
`ufldl-stanford/svhn`. Images are not mirrored: a mirrored digit is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from erasure.core.errors import DataError
from erasure.data.containers import members
from erasure.data.dataset import Dataset
from erasure.data.digits import NAMES

COUNTS = {"train": 73257, "test": 26032}
EXPECTED = "expected train_32x32.mat and test_32x32.mat, or train/<digit>/ and test/<digit>/ folders"
SHAPE = (32, 32, 3)


class SVHN:
    """Street View House Numbers, cropped digits."""

    def load(self, split: str, data_dir: Path | None = None) -> Dataset:
        """The split, its count checked; raises DataError for a wrong or damaged file."""
        if data_dir is None:
            raise DataError(f"--data svhn needs --data-dir with the files: {EXPECTED}")
        matrix = data_dir if data_dir.suffix == ".mat" else data_dir / f"{split}_32x32.mat"
        if matrix.is_file():
            if not matrix.name.startswith(split):
                raise DataError(f"--data-dir {data_dir} is one split: give the folder that holds train and test")
            images, labels = _from_matrix(matrix)
        else:
            matrix = data_dir
            images, labels = _from_images(data_dir, split)
        if len(labels) != COUNTS[split]:
            raise DataError(
                f"{matrix} is not SVHN's {split} split: expected {COUNTS[split]:,} digits, found {len(labels):,}"
            )
        return Dataset("svhn", split, images, labels, NAMES, flips=False, crop_padding=4)


def _from_matrix(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`X` (32, 32, 3, n) and `y` (n, 1) of a MATLAB file, as images (n, 32, 32, 3) and labels (n,)."""
    from scipy.io import loadmat

    try:
        held: dict[str, Any] = loadmat(str(path), variable_names=["X", "y"])
    except NotImplementedError as error:
        raise DataError(f"{path} is a MATLAB file of version 7.3, which is SVHN's format 1: {EXPECTED}") from error
    except Exception as error:  # the reader raises whatever it stumbles over
        raise DataError(f"{path} is damaged or no MATLAB file: {str(error) or type(error).__name__}") from error
    if not {"X", "y"} <= set(held):
        raise DataError(f"{path} lacks the arrays X and y: {EXPECTED}")
    images, labels = held["X"], np.asarray(held["y"]).reshape(-1)
    if images.dtype != np.uint8 or images.shape != (*SHAPE, len(labels)):
        raise DataError(
            f"{path} is damaged: X is {images.dtype} of shape {images.shape} for {len(labels)} labels, expected uint8 "
            f"of shape {(*SHAPE, len(labels))}"
        )
    if not np.isin(labels, range(1, 11)).all():
        raise DataError(f"{path} is damaged: its labels must be 1 to 10")
    return images.transpose(3, 0, 1, 2).copy(), labels.astype(np.int64) % 10


def _from_images(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    found = sorted(members(source, split, channels=3), key=lambda item: item[0])
    digits = {name: i for i, pair in enumerate(zip(NAMES, "0123456789", strict=True)) for name in pair}
    for name, digit, picture in found:
        if digit not in digits or picture.shape != SHAPE:
            raise DataError(f"{name} is no digit of SVHN: expected 32 x 32 pixels in a folder 0 to 9, under {split}/")
    if not found:
        raise DataError(f"{source} holds no SVHN {split} split: {EXPECTED}")
    labels = [digits[digit] for _, digit, _ in found]
    return np.stack([picture for *_, picture in found]), np.array(labels, dtype=np.int64)
