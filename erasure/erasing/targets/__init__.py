"""Forget targets: classes or samples of a data set, or a concept in prompts.

A target has a task, the samples that a method trains on, the outputs that metrics read, and the settings from which
`recorded_target` makes it again.
"""

from __future__ import annotations

from typing import Any

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.logging import log_user
from erasure.data.forget_sets import by_sample
from erasure.data.task import CLASS
from erasure.erasing.record import EraseSettings
from erasure.erasing.targets.base import ForgetTarget, TargetSpec
from erasure.erasing.targets.classes import ClassTarget
from erasure.erasing.targets.concept import ConceptTarget
from erasure.erasing.targets.samples import SampleTarget
from erasure.models import Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts import safety_filter
from erasure.prompts.concept import Concept, load_concept

__all__ = ["ForgetTarget", "TargetSpec", "recorded_target", "target_of"]


def target_of(model: Model, spec: TargetSpec, seed: int = 0) -> ForgetTarget:
    """The target of a spec, as the model's family understands it; raises OptionError for a spec that names none."""
    if not isinstance(model, StableDiffusion):
        return _of_data(model, spec, seed)
    if by_sample(spec.forget):
        raise NotApplicableError(
            f"--forget {spec.forget} names single samples, as only a classifier can be asked to forget: give words"
        )
    if bool(spec.concept) == bool(spec.forget):
        raise OptionError("give --forget WORDS or --concept NAME (one of them): what the model is to forget")
    if spec.concept and (spec.anchor or spec.retain):
        raise OptionError("--concept brings its own anchors and prompts to retain: leave --anchor and --retain out")
    if spec.concept:
        concept = spec.concept if isinstance(spec.concept, Concept) else load_concept(spec.concept)
    else:
        assert spec.forget is not None
        concept = Concept.from_words(spec.forget.removeprefix(CLASS), spec.anchor, spec.retain)
    safety_filter.check(concept.table())
    for line in concept.described():
        log_user(line)
    return ConceptTarget(model, concept, spec, seed)


def recorded_target(model: Model, settings: EraseSettings) -> ForgetTarget:
    """The target of a run.json; raises OptionError when its samples are no longer the same."""
    where: dict[str, Any] = {
        "data": settings["data"],
        "data_dir": settings["data_dir"],
        "image_size": settings["image_size"],
    }
    if "concept" not in settings:
        target = _of_data(model, TargetSpec(forget=settings["forget"], **where), settings.get("seed", 0))
        if target.settings.get("forget_ids") != settings.get("forget_ids"):
            raise OptionError(
                f"--forget {settings['forget']} no longer names the samples of the run: they have changed"
            )
        return target
    if not isinstance(model, StableDiffusion):
        raise OptionError(f"the run erases a concept in words, {model.source} is a {model.family} model")
    spec = TargetSpec(training_images=settings["training_images"], **where)
    return ConceptTarget(model, Concept.from_json(settings["concept"]), spec, settings["training_images_seed"])


def _of_data(model: Model, spec: TargetSpec, seed: int) -> ForgetTarget:
    """Single samples, or classes."""
    return SampleTarget(model, spec, seed) if by_sample(spec.forget) else ClassTarget(model, spec)
