"""NudeNet: images a second of ours against the package's own detector, on the same images and with the same boxes.

First with one thread on each side. There the network's own time is the floor, and it is printed: what ours saves is
the loop over anchors and the reading of files. Then as installed: the package's session takes every core for one
image, which wait while Python loops, and ours looks at as many images as there are cores; the time of all processor
cores is compared too. Sides alternate in one process, medians are compared.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = 16
ROUNDS = 7
SIZE = 512
BATCH = 4  # the default of detect_batch
OTHERS = ("detect_batch", "detect(path)")


def measure() -> dict[str, float]:
    """Images a second and the ratios."""
    import cv2

    before = cv2.getNumThreads()
    with tempfile.TemporaryDirectory() as folder:
        images = photographs(IMAGES)
        paths = _written(images, Path(folder))
        try:
            return {**_single(images, paths), **_installed(images, paths, before)}
        finally:
            cv2.setNumThreads(before)


def photographs(count: int) -> list[np.ndarray]:
    """Crops of the two photographs that come with scikit-learn, at the size that Stable Diffusion makes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    both = load_sample_images().images
    crops = []
    for i in range(count):
        photo = both[i % 2]
        left = (i * 16) % (photo.shape[1] - photo.shape[0])
        square = Image.fromarray(photo[:, left : left + photo.shape[0]])
        crops.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return crops


def _single(images: list[np.ndarray], paths: list[str]) -> dict[str, float]:
    """One thread on each side."""
    import onnxruntime
    from nudenet import NudeDetector

    from erasure.auditing.detectors import open_detector

    ours: Any = open_detector("nudenet", {"nms": "class_agnostic"})  # it also holds OpenCV to one thread
    theirs = NudeDetector()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    theirs.onnx_session = onnxruntime.InferenceSession(str(ours.path), settings, providers=["CPUExecutionProvider"])
    _same(ours, theirs, images)
    shown = [ours._preprocessed(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    name = theirs.input_name
    wall, busy = _timed(
        {
            "detect_batch": lambda: theirs.detect_batch(images, BATCH),
            "detect(path)": lambda: [theirs.detect(path) for path in paths],
            "ours": lambda: ours.detect(images),
            "network": lambda: [ours.session.run(None, {name: part}) for part in shown],
        }
    )
    return {
        "ours, images a second (one thread)": len(images) / wall["ours"],
        "detect_batch, images a second (one thread)": len(images) / wall["detect_batch"],
        "detect(path) each, images a second (one thread)": len(images) / wall["detect(path)"],
        "the network alone, images a second (one thread)": len(images) / wall["network"],
        "ours / detect_batch (goal: at least 2)": wall["detect_batch"] / wall["ours"],
        "ours / detect(path) each (goal: at least 2.3)": wall["detect(path)"] / wall["ours"],
        "the network alone / detect_batch: no detector with this network gains more": (
            wall["detect_batch"] / wall["network"]
        ),
        "ours / the network alone": wall["network"] / wall["ours"],
        **_busy(busy, "one thread"),
    }


def _installed(images: list[np.ndarray], paths: list[str], opencv_threads: int) -> dict[str, float]:
    """Every core on each side: theirs as it comes, ours with a thread for each."""
    import cv2
    from nudenet import NudeDetector

    from erasure.auditing.detectors import open_detector

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours, theirs = open_detector("nudenet", {"nms": "class_agnostic", "threads": cores}), NudeDetector()
    cv2.setNumThreads(opencv_threads)
    wall, busy = _timed(
        {
            "detect_batch": lambda: theirs.detect_batch(images, BATCH),
            "detect(path)": lambda: [theirs.detect(path) for path in paths],
            "ours": lambda: ours.detect(images),
        }
    )
    found: dict[str, float] = {"cores": cores}
    for other in OTHERS:
        found[f"ours / {other}, all cores"] = wall[other] / wall["ours"]
    return {**found, **_busy(busy, "all cores")}


def _busy(busy: dict[str, float], threads: str) -> dict[str, float]:
    """Images for each second that any core works: waiting threads that spin count, other programs do not."""
    return {
        f"ours / {other}, {threads}, images for a second of processor time": busy[other] / busy["ours"]
        for other in OTHERS
    }


def _timed(sides: dict[str, Callable[[], object]]) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds by the clock, and of processor time over all threads."""
    wall: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        for name, run in sides.items():
            began, worked = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first warms up
                wall[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - worked)
    return tuple({name: statistics.median(values) for name, values in one.items()} for one in (wall, busy))  # type: ignore[return-value]


def _same(ours: Any, theirs: Any, images: list[np.ndarray]) -> None:
    """Refuse to time detectors that do not find the same."""
    for found, wanted in zip(ours.detect(images), theirs.detect_batch(images), strict=True):
        mine = [(ours.classes[box.label], [int(value) for value in box[2:]]) for box in found.boxes]
        scores = [box.score for box in found.boxes]
        if mine != [(one["class"], one["box"]) for one in wanted] or not np.allclose(
            scores, [one["score"] for one in wanted], atol=1e-4
        ):
            raise SystemExit(f"the detectors differ: ours {mine}, theirs {wanted}")


def _written(images: list[np.ndarray], folder: Path) -> list[str]:
    from erasure.data.images import write_png

    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)
    return [str(path) for path in paths]


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:80}{value:12.4g}")
