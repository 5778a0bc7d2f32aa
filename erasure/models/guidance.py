"""Steering: what a model draws is led away from a concept, and no weight changes.

A model's `info` says under "steering" of which kind, away from what, and how; whoever draws with the model obeys, and
other libraries, which do not read our erasure.json, draw unsteered. `negative_prompt` puts the concept in the place of
the empty prompt (Ho and Salimans, 2022). `sld` is safe latent diffusion (Schramowski et al., 2023,
https://arxiv.org/abs/2211.05105): with g the guidance scale and S the concept, step by step,

    mu = min(1, s_S |e(c) - e(S)|) where e(c) - e(S) < lambda, else 0        (eq. 5 and 6, elementwise)
    gamma = mu (e(S) - e(0)) + s_m nu                                        (eq. 4 and 7)
    nu <- beta_m nu + (1 - beta_m) gamma                                     (eq. 8)
    answer = e(0) + g (e(c) - e(0) - gamma), without gamma in the first delta steps (eq. 3)

mu is at most 1, as in the authors' code. The momentum nu grows during the first steps too. Several classes have a gamma
each, and all are taken off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor

from erasure.core.errors import ModelError
from erasure.models.info import SteeringInfo

KEY: Final = "steering"  # in a model's info
Kind = Literal["negative_prompt", "sld"]
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Steering:
    """Away from `text`, or from the classes `labels`; the numbers are those of `sld`, under the names of its flags."""

    kind: Kind
    text: str = ""
    labels: tuple[int, ...] = ()
    scale: float = 0.0
    threshold: float = 0.0
    momentum: float = 0.0
    decay: float = 0.0
    warmup: int = 0

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Steering | None:
        """What a model's `info` says, None when it says nothing; raises ModelError when it makes no sense."""
        if KEY not in info:
            return None
        try:
            found = cls(**{**info[KEY], "labels": tuple(int(label) for label in info[KEY].get("labels", ()))})
            numbers = [float(found.scale), float(found.threshold), float(found.momentum), float(found.decay)]
            sound = found.kind in get_args(Kind) and all(map(math.isfinite, numbers)) and int(found.warmup) >= 0
            sound = sound and isinstance(found.text, str) and bool(found.text.strip()) != bool(found.labels)
        except (TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise ModelError(f"erasure.json: its {KEY!r} makes no sense: expected what `erasure erase` wrote")
        return found

    def as_json(self) -> SteeringInfo:
        """Plain values for a model's `info`."""
        every = {**asdict(self), "labels": list(self.labels)}
        wanted = ("kind", "labels" if self.labels else "text")
        return cast(SteeringInfo, every if self.kind == "sld" else {key: every[key] for key in wanted})

    def advice(self) -> str:
        """How another tool is told the same, since there are no weights to give it."""
        if self.labels:
            return "no other tool draws classes so: use `erasure generate` on the run"
        if self.kind == "negative_prompt":
            return f"give your tool the negative prompt {self.text!r}"
        numbers = f"sld_guidance_scale {self.scale:g}, sld_warmup_steps {self.warmup}, sld_threshold {self.threshold:g}"
        return (
            f"in diffusers draw with StableDiffusionPipelineSafe, safety_concept {self.text!r}, {numbers}, "
            f"sld_momentum_scale {self.momentum:g}, sld_mom_beta {self.decay:g}"
        )


def guided(model: Any) -> Callable[[Inputs, float], Tensor]:
    """What answers step by step for one batch of images: `model.answer`, or its steered counterpart, which remembers.

    It takes what the network receives and the guidance scale, as `DiffusionModel.answer` does.
    """
    steering = Steering.of(model.info)
    if steering is None:
        return model.prediction
    if steering.kind == "negative_prompt":
        return lambda inputs, scale: _negative(model, inputs, scale)
    return _Safe(model, steering).prediction


def _under(model: Any, inputs: Inputs, label: int) -> Tensor:
    noisy, timesteps, labels = inputs
    return model.predict(noisy, timesteps, torch.full_like(labels, label))


def _negative(model: Any, inputs: Inputs, guidance_scale: float) -> Tensor:
    """e(S) + g (e(c) - e(S)), with the mean over several classes S."""
    asked = model.predict(*inputs)
    if guidance_scale == 1.0:
        return asked
    away = torch.stack([_under(model, inputs, label) for label in model.steered_labels]).mean(0)
    return away + guidance_scale * (asked - away)


class _Safe:
    """Safe latent diffusion: the step that it is in, and the momentum of each concept."""

    def __init__(self, model: Any, steering: Steering) -> None:
        self._model, self._steering = model, steering
        self._step = 0
        self._momenta: list[Tensor | float] = [0.0] * len(model.steered_labels)

    def prediction(self, inputs: Inputs, guidance_scale: float) -> Tensor:
        """The steered answer of the next step."""
        asked = self._model.predict(*inputs)
        empty = _under(self._model, inputs, self._model.null_label)
        towards = asked - empty
        for i, label in enumerate(self._model.steered_labels):
            away = _under(self._model, inputs, label)
            safety = self._scale(asked - away) * (away - empty) + self._steering.momentum * self._momenta[i]
            decay = self._steering.decay
            self._momenta[i] = decay * self._momenta[i] + (1 - decay) * safety
            if self._step >= self._steering.warmup:
                towards = towards - safety
        self._step += 1
        return empty + guidance_scale * towards

    def _scale(self, distance: Tensor) -> Tensor:
        close = (self._steering.scale * distance.abs()).clamp(max=1.0)
        return torch.where(distance >= self._steering.threshold, torch.zeros_like(close), close)
