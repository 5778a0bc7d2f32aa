"""words: forget a concept that is named in prompts, in a text-to-image model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from erasure.core import config
from erasure.core.distributed import device, shared_folder
from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.logging import log_user, log_warning
from erasure.core.run_dir import cache_folder, fingerprint
from erasure.data import Dataset, load_dataset, placed
from erasure.data.images import find_images
from erasure.erasing.targets.base import ForgetTarget, Probe, TargetSpec, shipped_classifier
from erasure.erasing.targets.generated_images import (
    TrainingImageOptions,
    text_task,
    text_training_images,
    warn_without_effect,
)
from erasure.evaluation.classifiers import ImageLabeler, open_labeler
from erasure.evaluation.outputs import GeneratorOutputs, ModelOutputs
from erasure.evaluation.prompt_outputs import PromptOutputs
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import Model
from erasure.models.info import ModelInfo
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.concept import Concept
from erasure.sampling.draw import DRAWING, SamplingOptions
from erasure.training.latent_cache import Latents

FEW = 20  # images of a probe during training, of forget prompts and of retain prompts


class ConceptTarget(ForgetTarget):
    """A concept in prompts, for a text-to-image model."""

    def __init__(self, model: StableDiffusion, concept: Concept, spec: TargetSpec, seed: int) -> None:
        gone = {(domain, value) for domain, value in model.info.get("erased_values", ())}
        kept = tuple(row for row in concept.retain if not gone & set(row.shows))
        if not kept:
            raise OptionError("every prompt to retain shows what was erased from this model before: give --retain")
        self.concept = replace(concept, retain=kept)
        self.task = text_task(self.concept)
        self._model, self._spec, self._seed = model, spec, seed
        self._labelers: dict[str | None, ImageLabeler | None] = {}
        card = model.info.get("erase", {}).get("training_images", {})
        self._training_images: TrainingImageOptions = config.build(
            TrainingImageOptions, "the training images", card, spec.training_images
        )
        self._training_images.check()

    @property
    def settings(self) -> dict[str, Any]:
        """The concept whole, and where its images come from."""
        training_images = asdict(self._training_images)
        for key in ("forget_images", "retain_images"):
            training_images[key] = str(Path(training_images[key]).resolve()) if training_images[key] else None
        return {
            "forget": self.concept.name,
            "concept": self.concept.as_json(),
            "training_images": training_images,
            "images_hash": self._images_hash,
            "parts_hash": self._model.parts_hash,
            "training_images_seed": self._seed,
            "data": placed(self._spec.data),
            "data_dir": str(Path(self._spec.data_dir).resolve()) if self._spec.data_dir else None,
            "image_size": self._spec.image_size,
        }

    @cached_property
    def _images_hash(self) -> dict[str, str | None]:
        """SHA-256 of the files in the folders of images that were given."""
        return {name: _hash_of(getattr(self._training_images, name)) for name in ("forget_images", "retain_images")}

    @cached_property
    def dataset(self) -> Dataset:
        """Encoded images of all prompts, given or drawn by the model as it was."""
        return Latents.joined([self.forget_data, self.retain_data])

    @cached_property
    def forget_data(self) -> Latents:
        """Those of the prompts to forget; generated when first asked for."""
        return text_training_images(self._bound, self.concept, self._training_images, self._seed, "forget")

    @cached_property
    def retain_data(self) -> Latents:
        """Those of the prompts to retain."""
        return text_training_images(self._bound, self.concept, self._training_images, self._seed, "retain")

    @cached_property
    def _bound(self) -> StableDiffusion:
        """The model as it was, bound to the prompts; warn about prompts that do not change its prediction."""
        if self._model.class_names != self.task.class_names:
            self.prepare(self._model)
        warn_without_effect(self._model, self.concept, self.task)
        return self._model

    def prepare(self, model: Model) -> None:
        """Bind the prompts."""
        assert isinstance(model, StableDiffusion)
        model.set_prompts(self.task.class_names)

    @cached_property
    def reference(self) -> Dataset:
        """Real images for distances: those named by --data, or what the model records; empty without any."""
        spec = self._spec.data or self._model.info.get("data")
        if spec is None:
            return Dataset.nothing()
        return load_dataset(spec, "train", self._spec.data_dir, self._spec.image_size)

    def outputs(
        self, model: Model, evaluation: EvaluationConfig, folder: Path | None, original: ModelOutputs | None = None
    ) -> ModelOutputs:
        """Images of the concept's prompts, and what a labeler sees in them."""
        assert isinstance(model, StableDiffusion)
        if model.prompt_embeddings is None:
            self.prepare(model)
        settings = {**model.sampling, **model.info.get("sampling", {}), **evaluation.samples.overrides()}
        if folder is None:
            key = {"version": DRAWING, "model": model.hash, "parts": model.parts_hash, "prompts": self.task.class_names}
            folder = cache_folder() / "samples" / fingerprint({**key, "seed": evaluation.sample_seed, **settings})[:32]
        assert original is None or isinstance(original, GeneratorOutputs)
        return PromptOutputs(
            model,
            self.concept,
            self.task,
            self.reference,
            folder,
            evaluation,
            labeler=self.labeler(evaluation),
            original=original,
        )

    def labeler(self, evaluation: EvaluationConfig) -> ImageLabeler | None:
        """The classifier that labels images, loaded once: the one given, or the one that ships for the model's data.

        None without either, or when no prompt says what it shows.
        """
        if evaluation.classifier not in self._labelers:
            self._labelers[evaluation.classifier] = self._opened(evaluation.classifier)
        return self._labelers[evaluation.classifier]

    def _opened(self, classifier: str | None) -> ImageLabeler | None:
        shown = [pair for row in (*self.concept.forget, *self.concept.retain) for pair in row.shows]
        given = classifier or shipped_classifier(self._model.info.get("data"))
        if given is None:
            return None
        if not shown:
            if classifier:
                log_warning(
                    f"--classifier {given} is not used: the prompts do not say what they show (the column `shows`)"
                )
            return None
        return open_labeler(given, shown, device())

    def probe(self, model: Model, evaluation: EvaluationConfig) -> Probe:
        """UA and IRA over some 20 images each, in ten denoising steps."""
        labeler = self.labeler(evaluation)
        if labeler is None:
            raise NotApplicableError(
                "--probe-every needs a classifier: give --classifier, and prompts that say what they show"
            )
        single = [row for row in self.concept.retain if len({domain for domain, _ in row.shows}) == len(row.shows)]
        count = max(1, FEW // len(self.concept.forget))
        rows = (*self.concept.forget, *(single or self.concept.retain)[:: max(1, len(single) * count // FEW)])
        samples = SamplingOptions(num_images=count, num_inference_steps=10, sample_batch_size=64)
        quick = EvaluationConfig(samples=samples, sample_seed=1)

        def probe(moving: Model) -> Mapping[str, float]:
            assert isinstance(moving, StableDiffusion)
            with shared_folder() as folder:
                seen = PromptOutputs(
                    moving,
                    self.concept,
                    self.task,
                    self.reference,
                    folder,
                    quick,
                    rows=rows,
                    labeler=labeler,
                )
                return {
                    "ua": 100 - 100 * float(seen.correct("forget").mean()),
                    "ra": 100 * float(seen.correct("retain").mean()),
                }

        return probe

    def check_labeler(self, evaluation: EvaluationConfig) -> None:
        """Open the classifier early; without one, say that forgetting will not be measured."""
        if self.labeler(evaluation) is None:
            log_user(
                "note: no classifier labels the images, so forgetting is shown in pictures but not measured: give "
                "--classifier (a model, or clip:ID) and prompts that say what they show (a CSV with the column `shows`)"
            )

    def mark(self, info: ModelInfo) -> None:
        """A later erasure does not retain prompts that show these values."""
        gone = {(domain, value) for domain, value in info.get("erased_values", ())}
        info["erased_values"] = sorted(map(list, gone | self.concept.erased))
        info["erased_concepts"] = [*info.get("erased_concepts", ()), self.concept.name]


def _hash_of(folder: str | None) -> str | None:
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in find_images(Path(folder)):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()
