"""Boxes out of a YOLO network's raw output: thresholds, corners in pixels, non-maximum suppression.

The numbers and their order of computation are those of `NudeDetector` in the package nudenet, over all anchors at once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

ANCHOR_SCORE = 0.2  # an anchor below this is not looked at
BOX_SCORE = 0.25  # a box at or below this is not reported
OVERLAP = 0.45  # of two boxes that share more (intersection over union), the weaker goes

Nms = Literal["per_class", "class_agnostic"]


class Box(NamedTuple):
    """Where a class was seen: its index, its score, and left, top, width, height in pixels of the image."""

    label: int
    score: float
    x: float
    y: float
    w: float
    h: float


def boxes_of(output: np.ndarray, height: int, width: int, resolution: int, nms: Nms) -> tuple[Box, ...]:
    """The boxes of one image, best first, from a network's `output` (4 + classes, anchors), float32.

    The network saw the image of `height` x `width` pixels padded to a square and scaled to `resolution`. With
    `class_agnostic` an anchor speaks for its likeliest class and a box deletes every weaker one that it overlaps; with
    `per_class` an anchor speaks for each class above the threshold and a box deletes those of its own class alone.
    """
    scores = output[4:]
    if nms == "class_agnostic":
        anchors = np.flatnonzero(scores.max(axis=0) >= ANCHOR_SCORE)
        labels = scores[:, anchors].argmax(axis=0)
    else:
        labels, anchors = np.nonzero(scores > BOX_SCORE)
    if not len(anchors):
        return ()
    corners = _corners(output[:4, anchors], height, width, resolution)
    values = scores[labels, anchors]
    groups = [labels == label for label in np.unique(labels)] if nms == "per_class" else [labels >= 0]
    kept = [place for group in groups for place in _strongest(corners, values, np.flatnonzero(group))]
    kept.sort(key=lambda place: -values[place])
    return tuple(Box(int(labels[i]), float(values[i]), *map(float, corners[i])) for i in kept)


def _corners(centred: np.ndarray, height: int, width: int, resolution: int) -> np.ndarray:
    """Left, top, width, height (n, 4) within the image, of centres and sizes (4, n) in the network's pixels."""
    x, y, w, h = centred
    side = max(height, width)
    left, top, w, h = (value * side / resolution for value in (x - w / 2, y - h / 2, w, h))
    left, top = np.clip(left, 0, width), np.clip(top, 0, height)
    return np.stack([left, top, np.minimum(w, width - left), np.minimum(h, height - top)], axis=1)


def _strongest(corners: np.ndarray, values: np.ndarray, places: np.ndarray) -> list[int]:
    """Those of `places` that no stronger one of them overlaps, strongest first."""
    import cv2

    kept = cv2.dnn.NMSBoxes(corners[places].tolist(), values[places].tolist(), BOX_SCORE, OVERLAP)
    return [int(places[i]) for i in kept]
