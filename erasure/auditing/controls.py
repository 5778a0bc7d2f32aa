"""Controls of an audit: images in which a detector must detect its concept, and images in which it must not.

The rate of a detector that detects nothing, or detects its concept in noise, means nothing: a failed control makes an
audit inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from erasure.auditing.criteria import DetectorFacts
from erasure.auditing.detectors.base import Detector
from erasure.auditing.result import Control, Rate
from erasure.core.logging import log_warning
from erasure.core.rng import derive_seed
from erasure.data.images import image_paths, read_image

SIDE = 320
NOISE, GREYS = 4, (0, 64, 128, 255)


def run_controls(
    detectors: Mapping[str, Detector], facts: Mapping[str, DetectorFacts], shown: Path | None, clean: Path | None
) -> list[Control]:
    """The controls of each detector that need no model, on the folders `shown` and `clean` or on built-in images.

    Warns about those that failed. Raises DataError for a folder without images, or with one that cannot be read.
    """
    found: list[Control] = []
    for name, detector in detectors.items():
        tested = name, detector, facts[name].core, facts[name].threshold
        positive = positive_control(*tested, shown)
        found += [*([] if positive is None else [positive]), negative_control(*tested, clean)]
    for control in found:
        if not control.passed:
            log_warning(f"the {control.name} control failed ({control.what}): the audit will be inconclusive")
    return found


def with_base(controls: Sequence[Control], base: Rate | None, main: str) -> list[Control]:
    """The controls, and for the `main` detector that the prompts produce the concept in the base.

    Without a base, a detector that has no positive control of its own fails it.
    """
    if base is not None:
        what = "the base model's images of the same prompts"
        return [*controls, Control("positive", what, base.n, base.count, base.count > 0, main)]
    if any(control.name == "positive" and control.detector == main for control in controls):
        return list(controls)
    what = "none available: give --positive-control, a folder of images that show the concept, or --base"
    return [*controls, Control("positive", what, 0, 0, False, main)]


def positive_control(
    name: str, detector: Detector, classes: Sequence[str], threshold: float, folder: Path | None
) -> Control | None:
    """The positive control: every image of `folder` must be flagged for `classes`.

    Without a folder, a real photograph of a person must be flagged for the detector's `control` classes; None for a
    detector that has none. It is not run, and so not passed, where scikit-image, which contains the photograph, is
    missing.
    """
    if folder is not None:
        images, what = images_of(folder), f"the images of {folder.name}"
        flagged = _num_flagged(detector, images, classes, threshold)
        return Control("positive", what, len(images), flagged, flagged == len(images), name)
    if not detector.control:
        return None
    photograph, what = _photograph(), "a real photograph of a face"
    if photograph is None:
        why = "not run: pip install 'erasure[controls]', or give --positive-control"
        return Control("positive", f"{what} ({why})", 0, 0, False, name)
    flagged = _num_flagged(detector, [photograph], detector.control, threshold)
    return Control("positive", what, 1, flagged, flagged == 1, name)


def negative_control(
    name: str, detector: Detector, classes: Sequence[str], threshold: float, folder: Path | None
) -> Control:
    """The negative control: no image of `folder`, or of plain noise and flat colours, may be flagged for `classes`.

    A classifier without a label for "none of these" must choose one on noise: it fails when all images are flagged.
    """
    if folder is not None:
        images, what = images_of(folder), f"the images of {folder.name}"
    else:
        images, what = _noise_and_greys(), "plain noise and flat images"
    flagged = _num_flagged(detector, images, classes, threshold)
    if folder is None and detector.closed:
        what += " (it must choose among its labels: fails if all are flagged)"
        return Control("negative", what, len(images), flagged, flagged < len(images), name)
    return Control("negative", what, len(images), flagged, flagged == 0, name)


def images_of(folder: Path) -> list[np.ndarray]:
    """The images of a folder, uint8 (h, w, 3); raises DataError when it has none, or one cannot be read."""
    return [read_image(path, str(path), channels=3) for path in image_paths(folder)]


def _num_flagged(detector: Detector, images: Sequence[np.ndarray], classes: Sequence[str], threshold: float) -> int:
    columns = [detector.classes.index(one) for one in classes]
    return sum(bool((found.scores[columns] >= threshold).any()) for found in detector.detect(images))


def _noise_and_greys() -> list[np.ndarray]:
    generator = np.random.default_rng(derive_seed(0, "negative control"))
    images = [generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(NOISE)]
    return [*images, *(np.full((SIDE, SIDE, 3), grey, np.uint8) for grey in GREYS)]


def _photograph() -> np.ndarray | None:
    """A photograph in the public domain that scikit-image contains: Eileen Collins, uint8 (512, 512, 3)."""
    try:
        from skimage.data import astronaut
    except ImportError:
        return None
    return np.asarray(astronaut())
