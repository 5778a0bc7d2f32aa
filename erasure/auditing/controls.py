"""Controls of an audit: images on which a detector must fire, and images on which it must not.

A detector that is blind, or that sees its concept in noise, makes every rate worthless: a failed control makes an audit
inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erasure.auditing.detectors.base import Detector
from erasure.core.rng import derive_seed
from erasure.data.images import image_paths, read_image

SIDE = 320
NOISE, GREYS = 4, (0, 64, 128, 255)


def positive(
    detector: Detector, classes: Sequence[str], threshold: float, folder: Path | None
) -> dict[str, Any] | None:
    """The positive control: every image of `folder` must be flagged for `classes`.

    Without a folder, a real photograph of a person must be flagged for the detector's `control` classes; None for a
    detector that has none of those. Not run, and so not passed, where scikit-image, which brings it, is missing.
    """
    if folder is not None:
        images = images_of(folder)
        return _control(detector, "positive", f"the images of {folder.name}", images, classes, threshold, wanted=True)
    if not detector.control:
        return None
    photograph = _photograph()
    what = "a real photograph of a face"
    if photograph is None:
        why = "not run: pip install 'erasure[controls]', or give --positive-control"
        return {"name": "positive", "what": f"{what} ({why})", "images": 0, "flagged": 0, "passed": False}
    return _control(detector, "positive", what, [photograph], detector.control, threshold, wanted=True)


def negative(detector: Detector, classes: Sequence[str], threshold: float, folder: Path | None) -> dict[str, Any]:
    """The negative control: no image of `folder`, or of plain noise and flat colours, may be flagged for `classes`.

    A classifier that knows no "none of these" must answer something on noise: it fails when all of them are flagged.
    """
    if folder is not None:
        images = images_of(folder)
        return _control(detector, "negative", f"the images of {folder.name}", images, classes, threshold, wanted=False)
    generator = np.random.default_rng(derive_seed(0, "negative control"))
    images = [generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(NOISE)]
    images += [np.full((SIDE, SIDE, 3), grey, np.uint8) for grey in GREYS]
    found = _control(detector, "negative", "plain noise and flat images", images, classes, threshold, wanted=False)
    if detector.closed:
        found["passed"] = found["flagged"] < found["images"]
        found["what"] += " (it must choose among its labels: fails if all are flagged)"
    return found


def from_base(count: int, images: int) -> dict[str, Any]:
    """With a base, that the prompts bring out the concept in it: `count` of its images were flagged."""
    what = "the base model's images of the same prompts"
    return {"name": "positive", "what": what, "images": images, "flagged": count, "passed": count > 0}


def absent() -> dict[str, Any]:
    """The positive control of a detector that has none."""
    what = "none at hand: give --positive-control, a folder of images that show it, or --base"
    return {"name": "positive", "what": what, "images": 0, "flagged": 0, "passed": False}


def images_of(folder: Path) -> list[np.ndarray]:
    """The images of a folder, uint8 (h, w, 3); raises DataError when it has none, or one that cannot be read."""
    return [read_image(path, str(path), channels=3) for path in image_paths(folder)]


def _control(
    detector: Detector,
    name: str,
    what: str,
    images: Sequence[np.ndarray],
    classes: Sequence[str],
    threshold: float,
    *,
    wanted: bool,
) -> dict[str, Any]:
    columns = [detector.classes.index(one) for one in classes]
    flagged = sum(bool((found.scores[columns] >= threshold).any()) for found in detector.detect(images))
    passed = flagged == (len(images) if wanted else 0)
    return {"name": name, "what": what, "images": len(images), "flagged": flagged, "passed": passed}


def _photograph() -> np.ndarray | None:
    """A photograph in the public domain that scikit-image brings: Eileen Collins, uint8 (512, 512, 3)."""
    try:
        from skimage.data import astronaut
    except ImportError:
        return None
    return np.asarray(astronaut())
