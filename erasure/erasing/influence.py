"""influence: rank the training samples of a classifier by influence on the test loss, by loss, and by self-influence.

The influence of sample i is psi_i = s . g_i with s = A^-1 grad L(test): what its removal adds to n times the loss on
the test split (Koh and Liang, 2017). Samples that the model would be better without come first, as in PUMA's search for
wrong labels (Wu et al., 2022). Beside it stand the plain loss, the squared norm of the gradient (self-influence with
the last checkpoint, Pruthi et al., 2020), and chance.

Where it is known which samples are wrong, each order is judged by the share of them found in what was inspected.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from erasure.core import plots
from erasure.core.distributed import device
from erasure.core.errors import DivergedError, OptionError
from erasure.core.files import write_text
from erasure.core.records import Record, stored
from erasure.core.rng import derive_seed
from erasure.core.run_dir import RunDir
from erasure.data import Dataset
from erasure.erasing.targets import TargetSpec, target_of
from erasure.erasing.targets.classes import ClassTarget
from erasure.models import load_family, located
from erasure.models.classifier import Classifier
from erasure.training.curvature import Curvature, SampleLosses, WeightSpace, damped, solve

ORDERS = {"influence": "influence on the test loss", "loss": "plain loss", "self_influence": "self-influence"}
TITLES = {**ORDERS, "random": "random"}
SHOWN = 200  # points of a curve


@dataclass(frozen=True)
class InfluenceConfig:
    """How influence is computed."""

    curvature: Annotated[Curvature, "empirical Fisher (woodfisher), or Hessian"] = "woodfisher"
    samples: Annotated[int, "training samples that the curvature is measured on"] = 1000
    damping: Annotated[float, "added to the diagonal of the curvature"] = 1.0
    steps: Annotated[int, "iterations of conjugate gradients, at most"] = 100
    tolerance: Annotated[float, "relative residual at which they end"] = 1e-4
    batch_size: Annotated[int, "samples a forward pass"] = 256
    top: Annotated[int, "samples that the result lists; the file has all"] = 20

    def check(self) -> None:
        """Raise OptionError for a value outside its range."""
        if min(self.samples, self.steps, self.batch_size, self.top) < 1:
            raise OptionError("--samples, --steps, --batch-size and --top must be at least 1")
        if not (self.damping > 0 and self.tolerance >= 0):
            raise OptionError("--damping must be above 0 and --tolerance at least 0")


@dataclass(frozen=True)
class Suspect(Record):
    """A training sample with its label and how suspicious it is by each of ORDERS."""

    id: int
    label: str
    influence: float
    loss: float
    self_influence: float


@dataclass(frozen=True)
class Found(Record):
    """The area under a curve of `found_curve`, and the share found once as many were inspected as are known."""

    area: float
    first: float


@dataclass(frozen=True)
class InfluenceResult(Record):
    """The run's folder, how many samples were ranked, the first of them, and what each order found of `known` ones."""

    run: str
    samples: int
    top: tuple[Suspect, ...]
    known: int | None
    found: Mapping[str, Found] | None = stored(optional=True)


def influence(
    model: str, spec: TargetSpec, out: str | Path, settings: InfluenceConfig, seed: int = 0
) -> InfluenceResult:
    """Rank the training samples of a classifier, the most suspicious first.

    `spec.forget` names the samples that are known to be wrong; without it, those that the model's recipe made wrong.
    The folder gets run.json, ranking.csv (every sample, the most suspicious first) and, with known samples, found.svg.
    Raises DivergedError when the curvature is not positive.
    """
    settings.check()
    loaded = load_family(model, Classifier).to(device())
    if spec.forget is None and (loaded.info.get("recipe") or {}).get("mislabel"):
        spec = TargetSpec(forget="mislabelled", data=spec.data, data_dir=spec.data_dir, image_size=spec.image_size)
    target = target_of(loaded, spec, seed)
    assert isinstance(target, ClassTarget)
    asked = {**target.settings, "influence": asdict(settings), "seed": seed}
    with RunDir(out, "influence", {"model": located(model), "model_hash": loaded.hash, **asked}) as run:
        if run.done:
            return InfluenceResult.from_dict(run.result, str(run.folder))
        scores = scores_of(loaded, target.dataset, target.test_data, settings, seed)
        order = np.argsort(-scores["influence"], kind="stable")
        write_text(run.folder / "ranking.csv", _table(order, scores, target.dataset))
        known: int | None = None
        found: dict[str, Found] | None = None
        if spec.forget is not None:
            known = int(target.forgotten.sum())
            curves = {name: found_curve(values, target.forgotten) for name, values in scores.items()}
            curves["random"] = np.linspace(0, 1, len(order) + 1)
            found = {name: summary(curve, known) for name, curve in curves.items()}
            write_text(run.folder / "found.svg", plots.svg(_figure(curves)))
        top = tuple(_row(int(i), scores, target.dataset) for i in order[: settings.top])
        result = InfluenceResult(str(run.folder), len(order), top, known, found)
        run.finish(result.to_dict())
        return result


def scores_of(
    model: Classifier, dataset: Dataset, test: Dataset, settings: InfluenceConfig, seed: int
) -> dict[str, np.ndarray]:
    """How suspicious each sample of `dataset` is, (n,), by each of ORDERS: the higher, the more."""
    space = WeightSpace(model.network)
    chosen = np.sort(
        np.random.default_rng(derive_seed(seed, "curvature")).permutation(len(dataset))[: settings.samples]
    )
    train, held, measured = (
        SampleLosses(model, space, data, derive_seed(seed, "influence"), chosen=rows, batch_size=settings.batch_size)
        for data, rows in ((dataset, None), (test, None), (dataset, chosen))
    )
    slope, product = held.gradient(), damped(settings.curvature, measured, settings.damping)
    direction = solve(product, slope, settings.steps, settings.tolerance)
    if not bool(torch.isfinite(direction).all()) or (bool(slope.any()) and not bool(direction.any())):
        raise DivergedError(
            f"the curvature ({settings.curvature}, damping {settings.damping:g}) is not positive where the test loss "
            "falls: raise --damping, or use --curvature woodfisher",
            0,
        )
    norms = torch.cat([rows.square().sum(1) for rows in train.gradients()])
    found = {"influence": -train.products(direction), "loss": train.values(), "self_influence": norms}
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def found_curve(scores: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of the `known` samples (n,) found after inspecting 0, 1, ..., n, highest score first, (n + 1,)."""
    order = np.argsort(-scores, kind="stable")
    return np.concatenate([[0.0], np.cumsum(known[order]) / known.sum()])


def summary(curve: np.ndarray, known: int) -> Found:
    """The area under a curve of `found_curve`, and the share found once as many were inspected as are `known`."""
    return Found(float(np.trapezoid(curve, dx=1 / (len(curve) - 1))), float(curve[known]))


def _figure(curves: dict[str, np.ndarray]) -> Any:
    """Inspected against found, every order beside chance."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name, curve in curves.items():
        shown = np.unique(np.linspace(0, len(curve) - 1, SHOWN).astype(int))
        series[TITLES[name]] = [(float(i / (len(curve) - 1)), float(curve[i])) for i in shown]
    return plots.curve(series, "inspected share of the samples", "found share of the wrong ones")


def _row(i: int, scores: dict[str, np.ndarray], dataset: Dataset) -> Suspect:
    label = dataset.class_names[int(dataset.labels[i])]
    return Suspect(i, label, **{name: float(values[i]) for name, values in scores.items()})


def _table(order: np.ndarray, scores: dict[str, np.ndarray], dataset: Dataset) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "label", *ORDERS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(int(i), scores, dataset).to_dict() for i in order)
    return text.getvalue()
