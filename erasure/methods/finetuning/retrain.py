"""retrain: train from new random weights on the retain set, the exact standard (Cao and Yang, 2015).

The recipe is the one that the model's `erasure.json` records; only the number of steps can be changed. A mask has no
meaning, as no original weight is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.rng import derive_seed
from erasure.data.task import Task
from erasure.methods.base import Job, Method
from erasure.models import Model
from erasure.training.loop import TrainingResult
from erasure.training.recipes import fit, recipe_of


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """The original recipe on the retain set."""

    no_mask: ClassVar[str] = "it keeps no original weight"

    steps: Annotated[int, "optimiser steps; 0: as many as the model's own recipe"] = 0

    def check(self, task: Task) -> None:
        """Raise OptionError for a negative number of steps."""
        if self.steps < 0:
            raise OptionError(f"--steps {self.steps} must be at least 0")

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model that does not record how it was trained."""
        if recipe_of(model.info) is None:
            raise NotApplicableError(
                f"{model.source} records no training recipe (erasure.json) that can be repeated without some classes, "
                "so it cannot be retrained"
            )

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Train new random weights on the retain set, in place of the original ones."""
        self.check_model(model)
        recipe = recipe_of(model.info)
        assert recipe is not None
        if self.steps:
            recipe = replace(recipe, steps=self.steps)
        model.network.load_state_dict(model.fresh(derive_seed(job.seed, "weights")).network.state_dict())
        return fit(
            model, recipe, job.retain, job.seed, folder=job.folder, fingerprint=job.fingerprint, on_step=job.on_step
        )
