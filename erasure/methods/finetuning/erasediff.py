"""erasediff: first-order bilevel erasure, keep what is retained and move toward a substitute (Wu et al., 2025).

min L_r(theta) where L_f(theta) <= min_phi L_f(phi); https://arxiv.org/abs/2401.05779. On forget images L_f trains
towards a substitute: the prediction under another label, ||e(x_t, c) - sg e(x_t, c_sub)||^2, or, on class-conditional
networks, uniform noise. A step takes K inner steps on L_f from theta, which give L_f*, puts theta back, and descends
L_r + lambda (L_f - sg L_f*), with lambda fixed at 0.1, or max(0, eta - <g_r, g_f> / |g_f|^2) (`--weighting adaptive`,
the rule of BOME, Liu et al., 2022).

L_f* has no gradient: in a first-order method it changes what is reported (`gap`, how far L_f is from what K steps
reach) and no weight at all. `--inner-steps 0` leaves it out and gives the same bits in less time. Inner steps are taken
on the whole batch, in every process and with --accumulate too, so that all parts report the same L_f*.

The official code runs passes over the data where we run single steps, keeps Adam's moments of the inner steps for the
outer ones (ours are plain gradient steps without state), and takes the substitute from the network in training
(`--teacher current`); our default is the original, as in salun. Losses are means over pixels, not sums, on both sides.
A classifier's substitute is another label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batch
from erasure.data.task import Task
from erasure.methods.base import (
    CLASSIFIER,
    FLUX,
    STABLE_DIFFUSION,
    GradientMethod,
    Job,
    Options,
    StepBatches,
    TrainingSetup,
)
from erasure.methods.relabeling.base import other_labels
from erasure.models import DiffusionModel, Examples, Model
from erasure.training.curvature import WeightSpace, dot

NOISE = "noise"
TEXT: Options = {**STABLE_DIFFUSION, "substitute": "anchor"}


@dataclass(frozen=True, kw_only=True)
class EraseDiff(GradientMethod):
    """Descent on the retain loss and the excess of the forget loss."""

    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[Mapping[str, Options]] = {
        "ddpm": {"epochs": 8.0, "epochs_of": "forget"},  # the official code's four epochs of two outer passes
        **dict.fromkeys(("stable_diffusion", "sdxl", "sd3"), TEXT),
        "flux": {**TEXT, **FLUX},
        "classifier": {**CLASSIFIER, "learning_rate": 0.01, "substitute": "random"},
    }

    penalty: Annotated[float, "weight lambda of the forget loss"] = 0.1
    weighting: Annotated[
        Literal["fixed", "adaptive"], "adaptive: lambda follows from both gradients and --fall-rate"
    ] = "fixed"
    fall_rate: Annotated[float, "how fast the forget loss must fall with adaptive weighting"] = 0.1
    inner_steps: Annotated[int, "steps K on the forget loss that find its reported minimum; they are undone"] = 2
    substitute: Annotated[
        str,
        "target on forget images: noise (uniform), or the prediction under a label: random, next, anchor or a class",
    ] = NOISE
    teacher: Annotated[Literal["original", "current"], "who predicts the target under the other label"] = "original"

    def check(self, task: Task) -> None:
        """Also raise OptionError for a weight or count outside its range, or another label that is not kept."""
        super().check(task)
        if not 0 <= self.penalty < float("inf") or not 0 <= self.fall_rate < float("inf") or self.inner_steps < 0:
            raise OptionError("--penalty, --fall-rate and --inner-steps must be at least 0")
        if self.substitute != NOISE:
            other_labels(
                self.substitute, torch.tensor(task.forget, dtype=torch.int64), task, torch.Generator(), "--substitute"
            )

    def check_model(self, model: Model) -> None:
        """Also raise NotApplicableError for noise as the substitute of a classifier."""
        super().check_model(model)
        if self.substitute == NOISE and not isinstance(model, DiffusionModel):
            raise NotApplicableError("--substitute noise: a classifier predicts no noise: give random, next or a class")

    @contextmanager
    def prepared(self, model: Model, job: Job) -> Iterator[TrainingSetup]:
        """Make the inner steps, on the trainable weights."""
        space = WeightSpace(model.network, job.mask, self.trains)
        yield TrainingSetup(job, _InnerSteps(model, space, self.inner_steps, self.learning_rate))

    def loss(self, model: Model, original: Model, task: Task, batches: StepBatches) -> dict[str, Tensor]:
        """Return the retain loss plus lambda times the gap, from one joint forward pass.

        Inner steps see the whole batch in every process, so the examples are made whole before our part is taken.
        """
        inner: _InnerSteps = batches.state
        retain = model.examples(batches.retain_batch, batches.generator, condition_drop=True)
        forget = self._with_substitute(model, original, task, batches)
        penalty, record = self.penalty, {}
        if self.weighting == "adaptive":
            penalty = inner.penalty(batches.step.index, forget, retain, self.fall_rate)
            record = {"penalty": torch.tensor(penalty, device=model.device)}
        least = inner.least(batches.step.index, forget)
        forget_loss, retain_loss = batches.losses(model, batches.own(forget), batches.own(retain))
        gap = forget_loss - least
        return {"loss": retain_loss + penalty * gap, "forget": forget_loss, "retain": retain_loss, "gap": gap, **record}

    def _with_substitute(self, model: Model, original: Model, task: Task, batches: StepBatches) -> Examples:
        """The whole forget batch with the substitute as target."""
        if self.substitute == NOISE:
            assert isinstance(model, DiffusionModel)
            return _uniform(model, batches.forget_batch, batches.generator)
        examples = model.examples(batches.forget_batch, batches.generator)
        count = len(batches.forget_batch.labels)
        images = batches.retain_batch.images[torch.arange(count) % len(batches.retain_batch.images)]
        labels = other_labels(self.substitute, batches.forget_batch.labels, task, batches.generator)
        return model.relabeled(examples, Batch(images, labels), original if self.teacher == "original" else model)


def _uniform(model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Examples:
    """Samples noised with noise that is uniform in [0, 1), which is also their target, as in the official code."""
    examples = model.examples(batch, generator)
    samples = model.encoded(batch.images, generator)
    noise, timesteps = torch.rand(samples.shape, generator=generator), examples.inputs[1].cpu()
    noisy = model.add_noise(samples, noise, timesteps).to(model.device)
    target = model.target(samples, noise, timesteps).to(model.device)
    return examples._replace(inputs=(noisy, *examples.inputs[1:]), target=target)


class _InnerSteps:
    """Gradient steps on the forget loss that are undone: weights, buffers and random generators are restored."""

    def __init__(self, model: Model, space: WeightSpace, steps: int, learning_rate: float) -> None:
        self.model, self.space, self.steps, self.learning_rate = model, space, steps, learning_rate
        self._known: dict[str, tuple[int, float]] = {}  # the parts of one batch need the same values

    def least(self, index: int, forget: Examples) -> float:
        """L_f*, the loss on the `forget` examples of step `index` after the inner steps; 0 without any."""
        if not self.steps:
            return 0.0
        if self._known.get("least", (-1, 0.0))[0] != index:
            with self._restored():
                for _ in range(self.steps):
                    self.space.write(self.space.values() - self.learning_rate * self._gradient(forget))
                with torch.no_grad():
                    found = float(self.model.per_sample_loss(forget).mean())
            self._known["least"] = (index, found)
        return self._known["least"][1]

    def penalty(self, index: int, forget: Examples, retain: Examples, eta: float) -> float:
        """max(0, eta - <g_r, g_f> / |g_f|^2) of the gradients in step `index`; 0 where g_f is 0."""
        if self._known.get("penalty", (-1, 0.0))[0] != index:
            with self._restored():
                first, second = self._gradient(forget), self._gradient(retain)
            size = dot(first, first)
            self._known["penalty"] = (index, max(0.0, eta - dot(first, second) / size) if size else 0.0)
        return self._known["penalty"][1]

    def _gradient(self, examples: Examples) -> Tensor:
        """The gradient of the mean loss by the trainable weights, (size,)."""
        loss = self.model.per_sample_loss(examples).mean()
        return self.space.vector(torch.autograd.grad(loss, self.space.parameters, materialize_grads=True))

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Restore weights, buffers and random generators bit for bit, however the block is left."""
        device, network = self.model.device, self.model.network
        kept, buffers = self.space.values(), [(buffer, buffer.clone()) for buffer in network.buffers()]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                yield
            finally:
                self.space.write(kept)
                for buffer, value in buffers:
                    buffer.copy_(value)
