"""SampleTarget: single training samples of a classifier, by id (see `erasure.data.forget_sets`).

The retain set is the rest. What was erased from the model before, samples or classes, is on neither side.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data.forget_sets import LISTED, forget_ids, hash_of, parts_of, share_of
from erasure.data.task import Task
from erasure.erasing.targets.base import TargetSpec
from erasure.erasing.targets.classes import ClassTarget
from erasure.models import Model
from erasure.models.classifier import Classifier
from erasure.models.info import ModelInfo


class SampleTarget(ClassTarget):
    """Single samples of the data set that a classifier was trained on; `ids` (m,) says which."""

    def __init__(self, model: Model, spec: TargetSpec, seed: int) -> None:
        """`seed` draws a random share that names no seed of its own."""
        asked = spec.forget
        assert asked is not None
        if not isinstance(model, Classifier):
            raise NotApplicableError(
                f"--forget {asked} names single samples: a {model.family} model is asked for classes, not for one "
                "of its training images, so give classes, such as --forget class:3"
            )
        super().__init__(model, replace(spec, forget=None))
        kind, value = parts_of(asked)
        forget, seed = self._with_seed(model, asked, seed)
        self.ids = forget_ids(forget, self._dataset, seed)
        if kind == "ids":
            forget = _listed(self.ids) if LISTED.fullmatch(value) else f"ids:{Path(value).resolve()}"
        self._spec = replace(spec, forget=forget)
        title = forget.partition("@")[0] if kind != "ids" else f"{len(self.ids)} ids"
        self.task = Task(self.task.class_names, (), self.task.already_erased, title=title, samples=True)
        if not self.kept.any():
            raise OptionError(f"--forget {asked} leaves no sample to retain that was not erased before")

    def _with_seed(self, model: Model, asked: str, seed: int) -> tuple[str, int]:
        """The forget set that was asked for with its share and seed, and the seed that draws it."""
        kind, value = parts_of(asked)
        if kind == "mislabelled":
            recipe = model.info.get("recipe") or {}
            return _recorded_share(asked, recipe if self.source.same else {}, model), recipe.get("seed", 0)
        if kind == "random" and share_of(asked)[1] is None:
            return f"random:{value}@{seed}", seed
        return asked, seed

    @property
    def settings(self) -> dict[str, Any]:
        """The samples, by their spec and the hash of their ids, and where their data is."""
        return {**super().settings, "forget_ids": {"count": len(self.ids), "sha256": hash_of(self.ids)}}

    @property
    def forgotten(self) -> np.ndarray:
        """Which training samples are to be forgotten, (n,) booleans."""
        chosen = np.zeros(len(self._dataset), dtype=bool)
        chosen[self.ids] = True
        return chosen

    def mark(self, info: ModelInfo) -> None:
        """A later erasure does not retain these samples."""
        spec = self._spec.forget
        assert spec is not None
        if parts_of(spec)[0] == "ids":  # the file may go, the model stays
            spec = _listed(self.ids)
        info["erased_samples"] = [*info.get("erased_samples", ()), spec]


def _listed(ids: np.ndarray) -> str:
    return "ids:" + ",".join(map(str, ids))


def _recorded_share(spec: str, recipe: dict[str, Any], model: Model) -> str:
    """`mislabelled` with the share of the model's training; raises OptionError when that is none, or another."""
    share = recipe.get("mislabel")
    if not share:
        raise OptionError(
            f"--forget {spec}: {model.source} does not record that labels of this data were wrong in its training: "
            "train it with `erasure train classifier --mislabel 0.1`"
        )
    if parts_of(spec)[1] and share_of(spec)[0] != share:
        raise OptionError(f"--forget {spec}: {model.source} was trained with --mislabel {share:g}, so give that share")
    return f"mislabelled:{share!r}"
