"""Subject: what an erasure is about, made from what was asked. Classes or samples of a data set, or a concept in words.

Each gives a task, the samples a method trains on, evidence for the metrics, and the settings that make them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.logging import log_user
from erasure.data.forget_sets import by_sample
from erasure.data.task import CLASS
from erasure.erasing.targets.base import ForgetTarget, TargetSpec
from erasure.erasing.targets.classes import ClassTarget
from erasure.erasing.targets.concept import ConceptTarget
from erasure.erasing.targets.samples import SampleTarget
from erasure.models import Model
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts import safety_filter
from erasure.prompts.concept import Concept, from_words, load_concept

__all__ = ["Subject", "Wanted", "recorded", "subject_of"]


def target_of(model: Model, wanted: TargetSpec, seed: int = 0) -> ForgetTarget:
    """The subject that was asked for, as the model's family understands it."""
    if not isinstance(model, StableDiffusion):
        return _of_data(model, wanted, seed)
    if by_sample(wanted.forget):
        raise NotApplicableError(
            f"--forget {wanted.forget} names single samples, as only a classifier can be asked to forget: give words"
        )
    if bool(wanted.concept) == bool(wanted.forget):
        raise OptionError("give --forget WORDS or --concept NAME (one of them): what the model is to forget")
    if wanted.concept and (wanted.anchor or wanted.retain):
        raise OptionError("--concept brings its own anchors and prompts to retain: leave --anchor and --retain out")
    if wanted.concept:
        concept = load_concept(wanted.concept)
    else:
        assert wanted.forget is not None
        concept = from_words(wanted.forget.removeprefix(CLASS), wanted.anchor, wanted.retain)
    safety_filter.check(concept.table())
    for line in concept.described():
        log_user(line)
    return ConceptTarget(model, concept, wanted, seed)


def recorded_target(model: Model, settings: Mapping[str, Any]) -> ForgetTarget:
    """The subject of a run.json."""
    where = {key: settings[key] for key in ("data", "data_dir", "image_size")}
    if "concept" not in settings:
        target = _of_data(model, TargetSpec(forget=settings["forget"], **where), settings.get("seed", 0))
        if target.settings.get("forget_ids") != settings.get("forget_ids"):
            raise OptionError(
                f"--forget {settings['forget']} no longer names the samples of the run: they have changed"
            )
        return target
    if not isinstance(model, StableDiffusion):
        raise OptionError(f"the run erases a concept in words, {model.source} is a {model.family} model")
    wanted = TargetSpec(training_images=settings["training_images"], **where)
    return ConceptTarget(model, Concept.from_json(settings["concept"]), wanted, settings["training_images_seed"])


def _of_data(model: Model, wanted: TargetSpec, seed: int) -> ForgetTarget:
    """Single samples, or classes."""
    return SampleTarget(model, wanted, seed) if by_sample(wanted.forget) else ClassTarget(model, wanted)
