"""Steering as a method: it writes an instruction to the model's `info`, and no weight changes.

Everything that generates with the model here follows it: generate, evaluate, audit, benchmark. The saved folder still
loads in the stock library, which ignores the instruction: this is a reference that erasing from the weights must beat,
not an erasure.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data.task import Task
from erasure.methods.base import Job, Method
from erasure.models import DiffusionModel, Model
from erasure.models.flux import Flux
from erasure.models.guidance import KEY, Steering
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True)
class Steered(Method):
    """A method that changes how a model samples, not its weights.

    A text-to-image model is steered away from one text, the names of the concepts joined by commas as in the paper of
    SLD; a class-conditional one from every class to forget.
    """

    moves: ClassVar[Literal["network", "text encoder", "nothing"]] = "nothing"
    no_mask: ClassVar[str] = "it changes no weight"
    reads: ClassVar[tuple[str, ...]] = ()

    text: Annotated[str, "text to steer a text-to-image model away from (default: the names of what is erased)"] = ""

    @abstractmethod
    def steering(self, about: dict[str, Any]) -> Steering:
        """Return the instruction; `about` is its text or its labels."""

    def check(self, task: Task) -> None:
        """Raise OptionError for single samples."""
        if task.samples:
            raise OptionError("steering works on classes and prompts, not single samples: name classes with --forget")

    def check_model(self, model: Model) -> None:
        """Raise NotApplicableError for a model that has no condition or guidance, or is steered already."""
        name = model.source or "this model"
        if not isinstance(model, DiffusionModel):
            raise NotApplicableError(f"{name} is a {model.family}: only models that generate images can be steered")
        if not model.conditional:
            raise NotApplicableError(f"{name} is unconditional, so there is no concept to steer it away from")
        if isinstance(model, Flux):
            raise NotApplicableError(
                f"{name} was distilled to need no empty prompt, so it has no guidance to steer by: erase from its "
                "weights"
            )
        if self.text and not isinstance(model, StableDiffusion):
            raise NotApplicableError(f"--text is for text-to-image models: {name} knows classes, leave it out")
        if not isinstance(model, StableDiffusion) and model.null_label is None:
            raise NotApplicableError(f"{name} has no null class, and guidance needs one")
        if KEY in model.info:
            raise NotApplicableError(f"{name} is steered already: take the model that it was made from")

    def erase(self, model: Model, job: Job) -> TrainingResult:
        """Write the instruction, and encode the prompts again with it."""
        self.check(job.task)
        self.check_model(model)
        began = time.perf_counter()
        if isinstance(model, StableDiffusion):
            model.info[KEY] = self.steering({"text": self.text or named(job.task.concept)}).as_json()
            model.set_prompts(job.task.class_names)
        else:
            model.info[KEY] = self.steering({"labels": job.task.forget}).as_json()
        return TrainingResult([], time.perf_counter() - began)


def named(title: str) -> str:
    """The concepts of a task's title as words: without the folder of a preset, with spaces for hyphens."""
    parts = [part.rpartition("/")[2].replace("-", " ").replace("_", " ").strip() for part in title.split(",")]
    return ", ".join(part for part in parts if part)
