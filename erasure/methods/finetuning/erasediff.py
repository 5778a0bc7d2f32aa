"""erasediff: first-order bilevel erasure, keep what is retained and move toward a substitute (Wu et al., 2025).

min L_r(theta) where L_f(theta) <= min_phi L_f(phi); https://arxiv.org/abs/2401.05779. L_f asks for a substitute on the
forget images: the answer under another label, ||e(x_t, c) - sg e(x_t, c_sub)||^2, or, on class-conditional networks,
uniform noise. A step takes K inner steps on L_f from theta, which give L_f*, puts theta back, and descends
L_r + lambda (L_f - sg L_f*), with lambda fixed at 0.1, or max(0, eta - <g_r, g_f> / |g_f|^2) (`--weighting adaptive`,
the rule of BOME, Liu et al., 2022).

L_f* has no gradient: in a first-order method it changes what is reported (`gap`, how far L_f is from what K steps
reach) and no weight at all. `--inner-steps 0` leaves it out, and gives the same bits sooner. The steps are taken on the
whole batch, in every process and with --accumulate too, so that all parts report the same goal.

The official code runs passes over the data where we run single steps, keeps Adam's moments of the inner steps for the
outer ones (ours are plain gradient steps that nothing outlives), and asks the moving network for the substitute
(`--teacher current`); ours by default is the original, as in salun. Losses are means over pixels, not sums: both sides
scale alike. A classifier's substitute is another label.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batch
from erasure.data.task import Task
from erasure.methods.base import CLASSIFIER, DISTILLED, LATENT, GradientMethod, Job, StepBatches
from erasure.methods.relabeling.base import other_labels
from erasure.models import DiffusionModel, Examples, Model
from erasure.training.curvature import WeightSpace, dot

NOISE = "noise"
TEXT: dict[str, Any] = {**LATENT, "substitute": "anchor"}


@dataclass(frozen=True, kw_only=True)
class EraseDiff(GradientMethod):
    """Descent on the retain loss and the excess of the forget loss."""

    needs_original: ClassVar[bool] = True
    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "ddpm": {"epochs": 8.0, "epochs_of": "forget"},  # the official code's four epochs of two outer passes
        **dict.fromkeys(("stable_diffusion", "sdxl", "sd3"), TEXT),
        "flux": {**TEXT, **DISTILLED},
        "classifier": {**CLASSIFIER, "learning_rate": 0.01, "substitute": "random"},
    }

    penalty: Annotated[float, "weight lambda of the forget loss"] = 0.1
    weighting: Annotated[
        Literal["fixed", "adaptive"], "adaptive: lambda follows from both gradients and --fall-rate"
    ] = "fixed"
    fall_rate: Annotated[float, "how fast the forget loss must fall with adaptive weighting"] = 0.1
    inner_steps: Annotated[
        int, "steps K on the forget loss that its reported goal is found by; no weight keeps them"
    ] = 2
    substitute: Annotated[
        str, "what is asked for instead: noise (uniform), or the answer under the label random, next, anchor or a class"
    ] = NOISE
    teacher: Annotated[Literal["original", "current"], "whose answer under the other label is the target"] = "original"

    def check(self, task: Task) -> None:
        """Also: weights and counts are in range, and the other label is one that is kept."""
        super().check(task)
        if not 0 <= self.penalty < float("inf") or not 0 <= self.fall_rate < float("inf") or self.inner_steps < 0:
            raise OptionError("--penalty, --fall-rate and --inner-steps must be at least 0")
        if self.substitute != NOISE:
            other_labels(
                self.substitute, torch.tensor(task.forget, dtype=torch.int64), task, torch.Generator(), "--substitute"
            )

    def check_model(self, model: Model) -> None:
        """Also: noise is something that the model can be asked for."""
        super().check_model(model)
        if self.substitute == NOISE and not isinstance(model, DiffusionModel):
            raise NotApplicableError("--substitute noise: a classifier draws nothing; give random, next or a class")

    @contextmanager
    def running(self, model: Model, job: Job) -> Iterator[_InnerSteps]:
        """Inner steps on the weights that may move."""
        space = WeightSpace(model.network, job.mask, self.trains)
        yield _InnerSteps(model, space, self.inner_steps, self.learning_rate)

    def loss(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> dict[str, Tensor]:
        """One joint forward for forget and retain; every process takes the inner steps on the whole batch."""
        inner: _InnerSteps = draws.own
        part, parts = draws.step.part, draws.step.parts
        kept = model.examples(draws.retain, draws.generator, condition_drop=True)
        gone = self._substituted(model, frozen, task, draws)
        weight, told = self.penalty, {}
        if self.weighting == "adaptive":
            weight = inner.weight(draws.step.index, gone, kept, self.fall_rate)
            told = {"penalty": torch.tensor(weight, device=model.device)}
        best = inner.best(draws.step.index, gone)
        forget, retain = gone.part(part, parts), kept.part(part, parts)
        errors = model.per_sample_loss(Examples.joined(forget, retain))
        forget_loss, retain_loss = errors[: len(forget.weight)].mean(), errors[len(forget.weight) :].mean()
        gap = forget_loss - best
        return {"loss": retain_loss + weight * gap, "forget": forget_loss, "retain": retain_loss, "gap": gap, **told}

    def _substituted(self, model: Model, frozen: Model, task: Task, draws: StepBatches) -> Examples:
        """The whole forget batch with the substitute as target."""
        if self.substitute == NOISE:
            assert isinstance(model, DiffusionModel)
            return _uniform(model, draws.forget, draws.generator)
        examples = model.examples(draws.forget, draws.generator)
        count = len(draws.forget.labels)
        images = draws.retain.images[torch.arange(count) % len(draws.retain.images)]
        labels = other_labels(self.substitute, draws.forget.labels, task, draws.generator)
        return model.relabeled(examples, Batch(images, labels), frozen if self.teacher == "original" else model)


def _uniform(model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Examples:
    """Samples noised with noise that is uniform in [0, 1), which is also what is asked for, as in the official code."""
    examples = model.examples(batch, generator)
    samples = model.encoded(batch.images, generator)
    noise, timesteps = torch.rand(samples.shape, generator=generator), examples.inputs[1].cpu()
    noisy = model.add_noise(samples, noise, timesteps).to(model.device)
    target = model.target(samples, noise, timesteps).to(model.device)
    return examples._replace(inputs=(noisy, *examples.inputs[1:]), target=target)


class _InnerSteps:
    """Gradient steps on the forget loss that leave no trace, neither in weights and statistics nor in chance."""

    def __init__(self, model: Model, space: WeightSpace, steps: int, learning_rate: float) -> None:
        self.model, self.space, self.steps, self.learning_rate = model, space, steps, learning_rate
        self._known: dict[str, tuple[int, float]] = {}  # the parts of one batch ask the same

    def best(self, index: int, forget: Examples) -> float:
        """L_f*, the loss on the `forget` examples of step `index` after the inner steps; 0 without any."""
        if not self.steps:
            return 0.0
        if self._known.get("best", (-1, 0.0))[0] != index:
            with self._borrowed():
                for _ in range(self.steps):
                    self.space.write(self.space.values() - self.learning_rate * self._gradient(forget))
                with torch.no_grad():
                    found = float(self.model.per_sample_loss(forget).mean())
            self._known["best"] = (index, found)
        return self._known["best"][1]

    def weight(self, index: int, forget: Examples, retain: Examples, eta: float) -> float:
        """max(0, eta - <g_r, g_f> / |g_f|^2) of the gradients in step `index`; 0 where g_f is 0."""
        if self._known.get("weight", (-1, 0.0))[0] != index:
            with self._borrowed():
                first, second = self._gradient(forget), self._gradient(retain)
            size = dot(first, first)
            self._known["weight"] = (index, max(0.0, eta - dot(first, second) / size) if size else 0.0)
        return self._known["weight"][1]

    def _gradient(self, examples: Examples) -> Tensor:
        """Of the mean loss, by the free weights, (size,)."""
        loss = self.model.per_sample_loss(examples).mean()
        return self.space.vector(torch.autograd.grad(loss, self.space.parameters, materialize_grads=True))

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """Weights, buffers and generators come back bit for bit, however the block is left."""
        device, network = self.model.device, self.model.network
        kept, buffers = self.space.values(), [(buffer, buffer.clone()) for buffer in network.buffers()]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                yield
            finally:
                self.space.write(kept)
                for buffer, value in buffers:
                    buffer.copy_(value)
