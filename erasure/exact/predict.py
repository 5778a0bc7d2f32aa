"""Predict: the classes of images by the live states of an exact service."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from erasure.core.distributed import device
from erasure.core.errors import DataError, ModelError, RunError
from erasure.data.dataset import stacked
from erasure.data.images import image_paths, read_image, to_float
from erasure.exact.results import Prediction, PredictResult
from erasure.exact.service import Service, opened
from erasure.exact.training import weights_of
from erasure.formats.safetensors_io import hash_tensors, read_tensors


def predict(folder: str | Path, images: str | Path) -> PredictResult:
    """The class of each image in `images`, a file or a folder, with its score, by the live states alone.

    A request that was interrupted is completed first, so that forgotten samples have no influence. A score is a
    probability or a share of votes (sisa), or minus a squared error (arcane). Raises RunError while another process
    works on a request, DataError for images that are missing or cannot be read.
    """
    service = _settled(Path(folder))
    info, source = service.plan.info, Path(images)
    if not source.exists():
        raise DataError(f"--images {source} does not exist: expected an image or a folder of images")
    paths = [source] if source.is_file() else image_paths(source)
    arrays = [read_image(path, str(path), info.channels) for path in paths]
    found = scores(service, to_float(stacked(arrays, [str(path) for path in paths], info.image_size)))
    best = found.max(1)
    return PredictResult(
        tuple(
            Prediction(image=str(path), label=label, class_name=info.class_names[label], score=score)
            for path, label, score in zip(paths, best.indices.tolist(), best.values.tolist(), strict=True)
        )
    )


def _settled(folder: Path) -> Service:
    """The service without a pending request; if there is none, no lock is taken, so several processes may predict."""
    service = Service(folder)
    if service.pending is None:
        return service
    with opened(folder) as (completed, _):
        return completed


def scores(service: Service, images: Tensor) -> Tensor:
    """Scores (n, classes) of images (n, c, h, w) in [-1, 1] by all units that have samples left.

    Raises RunError when everything was forgotten, or a state is not the one that live.json names.
    """
    plan = service.plan
    stages = plan.last_stages(service.deleted)
    if not stages:
        raise RunError(f"every sample of {service.folder} was forgotten: no model is left to predict with")
    found = []
    for stage in stages:
        path = service.file(stage.name)
        learner = plan.method.learner(plan.info, 0)
        learner.network.load_state_dict(_checked(path, service.live.states.get(stage.name)))
        learner.network.to(device()).eval()
        found.append(learner.scores(images))
    units = [stage.unit_number for stage in stages]
    return plan.method.combined(units, found, len(plan.info.class_names))


def _checked(path: Path, expected: str | None) -> dict[str, Tensor]:
    """The network's tensors of a state; raises RunError when its hash is not the expected one."""
    try:
        tensors = read_tensors(path)[0]
    except ModelError as error:
        raise RunError(f"{error}; if a request has just replaced it, run the same command again") from error
    if hash_tensors(tensors) != expected:
        raise RunError(f"{path} is not what live.json says: `erasure exact verify` names what differs")
    return weights_of(tensors)


@torch.no_grad()
def test_accuracy(service: Service) -> float | None:
    """Accuracy of the live states on the test split, in percent; None when everything was forgotten."""
    if not service.plan.stages(service.deleted):
        return None
    test = service.plan.dataset("test")
    if tuple(test.class_names) != service.plan.info.class_names:
        raise DataError(f"{service.plan.source.data}: the test split has other classes than the train split")
    correct = scores(service, to_float(test.images)).argmax(1).numpy() == test.labels
    return 100.0 * float(correct.mean())
