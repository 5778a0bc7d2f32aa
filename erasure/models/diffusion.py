"""What every diffusion model shares: noising, the questions it is trained with, guidance, DDIM sampling.

A label says what is asked for: a class of a class-conditional network, a prompt of a text-to-image one.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from erasure.core.errors import ModelError, NotApplicableError, OptionError, suggestion
from erasure.data import Batch
from erasure.models.base import Examples, Model
from erasure.models.guidance import KEY, guided
from erasure.models.info import ModelInfo

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
}
# What belongs to the model; the rest of a scheduler's configuration belongs to the sampler.
_SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("rescale_betas_zero_snr", "set_alpha_to_one", "steps_offset", "skip_prk_steps"),
)


Answer = Callable[[tuple[Tensor, ...], float], Tensor]  # of what a network receives, under a guidance scale


class SamplingPlan(NamedTuple):
    """From noise to a sample: `timesteps` (n,), the deviation of the noise at the start, and what each step does.

    `step(index, sample, labels)` is `sample` (b, c, h, w) after the step from `timesteps[index]`.
    """

    timesteps: Tensor
    deviation: float
    step: Callable[[int, Tensor, Tensor], Tensor]


class DiffusionModel(Model):
    """A Model that predicts the noise (or velocity) in a noised sample."""

    network: Any
    network_part: ClassVar[str] = "unet"  # the folder of a pipeline that holds the network
    sampling: ClassVar[dict[str, Any]]

    def __init__(self, network: Any, noise_scheduler: Any, info: ModelInfo, source: str = "") -> None:
        super().__init__(network, info, source)
        self.noise_scheduler = noise_scheduler

    @property
    @abstractmethod
    def conditional(self) -> bool:
        """Whether its prediction depends on a label or a prompt."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes (or bound prompts) it can be asked for, the null one left out; 0 when unconditional."""

    @property
    @abstractmethod
    def null_label(self) -> int | None:
        """The label that stands for "nothing in particular", None when there is none."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network denoises: pixels, or latents."""

    @property
    def steered_labels(self) -> tuple[int, ...]:
        """The labels of what its `info` says to steer away from, none without; `predict` knows them as any others."""
        return tuple(self.info.get(KEY, {}).get("labels", ()))

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The network's prediction for `noisy` (b, c, h, w) at `timesteps` (b,) under `labels` (b,)."""

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """Images in [-1, 1] of denoised samples (b, c, h, w)."""

    def encoded(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """What a batch holds, as the samples that are noised; here the same."""
        return inputs

    def name_of(self, label: int) -> str:
        """A name for what `label` asks for, fit for a file."""
        return self.class_names[label] if self.class_names else f"class-{label}"

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels."""
        return int(self.noise_scheduler.config.num_train_timesteps)

    def training_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` timesteps that it is trained at, evenly spread."""
        return drawn_timesteps(count, self.num_train_timesteps, generator)

    def add_noise(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of `samples` (b, c, h, w) at integer `timesteps` (b,) in [0, T); DDPM eq. 4 (Ho et al., 2020)."""
        return self.noise_scheduler.add_noise(samples, noise, timesteps)

    def target(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect network predicts: the noise or, by its scheduler, the velocity (Salimans and Ho, 2022)."""
        kind = self.noise_scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(samples, noise, timesteps)
        raise ModelError(f"prediction type {kind!r} is not supported: expected epsilon or v_prediction")

    def examples(self, batch: Batch, generator: torch.Generator, *, condition_drop: bool = False) -> Examples:
        """Noised samples at antithetic timesteps, the noise as target; `condition_drop` nulls a share of the labels."""
        count = len(batch.images)
        samples = self.encoded(batch.images, generator)
        noise = torch.randn(samples.shape, generator=generator)
        timesteps = self.training_timesteps(count, generator)
        labels = self.with_dropped_condition(batch.labels, generator) if condition_drop else batch.labels
        noisy = self.add_noise(samples, noise, timesteps)
        target = self.target(samples, noise, timesteps)
        inputs = (noisy, timesteps, labels) if self.conditional else (noisy, timesteps)
        return Examples(
            tuple(value.to(self.device) for value in inputs),
            target.to(self.device),
            torch.ones(count, device=self.device),
        )

    def with_dropped_condition(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """`labels` with the model's share (0.1 unless its erasure.json says otherwise) replaced by the null label."""
        if self.null_label is None:
            return labels
        dropped = torch.rand(len(labels), generator=generator) < self.info.get("condition_drop", 0.1)
        return torch.where(dropped, self.null_label, labels)

    def prediction(self, inputs: tuple[Tensor, ...], guidance_scale: float = 1.0) -> Tensor:
        """The prediction; with a guidance scale g other than 1, e(0) + g (e(c) - e(0))."""
        noisy, timesteps, *rest = inputs
        labels = rest[0] if rest else None
        if guidance_scale == 1.0:
            return self.predict(noisy, timesteps, labels)
        unguided = self.predict(noisy, timesteps, self._null_like(labels))
        return unguided + guidance_scale * (self.predict(noisy, timesteps, labels) - unguided)

    def _null_like(self, labels: Tensor | None) -> Tensor:
        if labels is None or self.null_label is None:
            raise NotApplicableError(f"{self.source or 'this model'} has no null class: its guidance scale must be 1")
        return torch.full_like(labels, self.null_label)

    def criterion(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error over everything but the batch, (b,)."""
        return (prediction.float() - target).square().flatten(1).mean(1)

    def relabeled(self, examples: Examples, anchor: Batch, teacher: Model) -> Examples:
        """The same noised samples; the target is what `teacher` predicts under the anchor's labels."""
        noisy, timesteps, _ = examples.inputs
        with torch.no_grad():
            target = teacher.prediction((noisy, timesteps, anchor.labels.to(noisy.device)))
        return examples._replace(target=target.float())

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(channels, height, width) of what is denoised for images of `size` (height, width); None: the model's own."""
        if size is not None and size != self.image_shape[1:]:
            raise NotApplicableError(f"{self.source or 'this model'} draws one size, {self.image_shape[1:]}")
        return self.sample_shape

    def sampling_plan(
        self, chosen: dict[str, Any], shape: tuple[int, int, int], answer: Answer, drawn: Callable[[], Tensor]
    ) -> SamplingPlan:
        """How samples of `shape` come about under `chosen` settings by what `answer`, such as its own, predicts.

        `drawn()` is noise for a whole batch, for samplers that add some.
        """
        if not 1 <= chosen["num_inference_steps"] <= self.num_train_timesteps:
            raise OptionError(
                f"--num-inference-steps {chosen['num_inference_steps']} is outside 1 to {self.num_train_timesteps}"
            )
        scheduler = sampler(chosen["sampler"], self.noise_scheduler)
        scheduler.set_timesteps(chosen["num_inference_steps"])

        def step(index: int, sample: Tensor, labels: Tensor) -> Tensor:
            timestep = scheduler.timesteps[index]
            scaled = scheduler.scale_model_input(sample, timestep)
            inputs = (scaled, timestep.expand(len(sample)).to(self.device), labels)
            prediction = answer(inputs if self.conditional else inputs[:2], chosen["guidance_scale"])
            own: dict[str, Any] = {}
            if chosen["sampler"] == "ddim":
                own = {"eta": chosen["eta"], "variance_noise": drawn() if chosen["eta"] > 0 else None}
            return scheduler.step(prediction, timestep, sample, **own).prev_sample

        return SamplingPlan(scheduler.timesteps, scheduler.init_noise_sigma, step)

    @torch.no_grad()
    def generate(self, labels: Tensor, seeds: list[int], **settings: Any) -> Tensor:
        """Images (b, c, h, w) in [-1, 1], drawn in evaluation mode by DDIM (Song et al., 2021) or another sampler.

        `sampler`, `num_inference_steps`, `eta` (0 deterministic, 1 ancestral; DDIM's alone) and `guidance_scale`
        default to the model's own, `size` (height, width) too. Each image draws from its own CPU generator, so it does
        not depend on the batch it is made in. Raises NotApplicableError for what the family does not have.
        """
        chosen = {"sampler": "ddim", "size": None, **self.sampling, **self.info.get("sampling", {}), **settings}
        shape = self.shape_of(chosen["size"])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def drawn() -> Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

        way = self.sampling_plan(chosen, shape, guided(self), drawn)
        sample, on_device = drawn() * way.deviation, labels.to(self.device)
        with self._evaluating():
            for index in range(len(way.timesteps)):
                sample = way.step(index, sample, on_device)
        return self.decode(sample).clamp(-1, 1).cpu()

    @torch.no_grad()
    def partly_sampled(
        self, noise: Tensor, labels: Tensor, stops: Tensor, *, num_inference_steps: int, guidance_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Samples (b, c, h, w) on the way from `noise` to images of `labels` (b,), and the timesteps (b,) they are at.

        Each has taken `stops` (b,), in [0, num_inference_steps), of the steps that `generate` takes without fresh
        noise: DDIM's with eta 0, of a flow Euler's. In evaluation mode, without graph and unsteered.
        """
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": 0.0}
        shape = (noise.shape[1], noise.shape[2], noise.shape[3])
        way = self.sampling_plan(
            {"sampler": "ddim", **self.sampling, **settings}, shape, self.prediction, lambda: noise
        )
        sample, on_device = noise.to(self.device) * way.deviation, labels.to(self.device)
        with self._evaluating():
            for index in range(int(stops.max())):
                going = (stops > index).to(self.device)
                sample[going] = way.step(index, sample[going], on_device[going])
        return sample, way.timesteps[stops].to(self.device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The network in evaluation mode until the block is left."""
        was_training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(was_training)


def drawn_timesteps(count: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps in antithetic pairs t, T-1-t, so that every batch covers early and late noise alike."""
    half = torch.randint(0, num_train_timesteps, (count // 2 + 1,), generator=generator)
    return torch.cat([half, num_train_timesteps - 1 - half])[:count]


def sampler(name: str, noise_scheduler: Any) -> Any:
    """The sampler `name` of SAMPLERS for a model that was trained with `noise_scheduler`.

    DDIM follows the model's whole configuration; the others its noise schedule, with their own defaults beside.
    """
    import diffusers

    if name not in SAMPLERS:
        raise OptionError(f"unknown --sampler {name!r}{suggestion(name, SAMPLERS)}")
    kind: Any = getattr(diffusers, SAMPLERS[name])
    if name == "ddim":
        return kind.from_config(noise_scheduler.config)
    known = inspect.signature(kind.__init__).parameters
    config = {key: noise_scheduler.config[key] for key in _SCHEDULE if key in known and key in noise_scheduler.config}
    return kind(**{"skip_prk_steps": True, **config} if name == "pndm" else config)
