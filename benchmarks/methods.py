"""Every method's step against its own bare floor: on the shipped Stable Diffusion, or the DDPM for what it alone takes.

The floor is what a step of the method cannot do without: each call of a network that it makes, on inputs that lie
ready, and a backward pass behind each call that had one. No drawing of noise, no attention maps, no factors beside the
weights, no optimiser, no record. The calls are those of the method's own steps, caught once; floor and method then take
turns, and each figure is the median over rounds. What a method does before its first step is counted on no side.

A backward pass of the floor reaches every weight that may move, and begins at the network's answer. The attack of
advunlearn needs only its inputs' gradient, and a loss on attention maps begins earlier: there the floor is too high,
and the ratio a little too good.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import sd_networks
from benchmarks.sd_networks import PROMPTS, TASK
from erasure.core import config, registry
from erasure.methods.base import Job
from erasure.models import load_family
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.latent_cache import Latents
from erasure.training.loop import _Loop

STEPS, ROUNDS, BATCH = 6, 5, 8
COMMON = {"steps": STEPS, "learning_rate": 1e-5, "batch_size": BATCH}
SHORT = {"sampling_steps": 3}
METHODS: dict[str, dict[str, Any]] = {
    "salun": {"relabel": "anchor"},
    "salun_distilled": {"relabel": "anchor"},
    "salun_soft": {"relabel": "anchor"},
    "finetune": {},
    "gradient_ascent": {},
    "l1_sparse": {},
    "esd": SHORT,
    "lora_esd": SHORT,
    "concept_ablation": {"num_anchor_images": BATCH},
    "erasediff": {"inner_steps": 0},
    "selective_amnesia": {"fisher_samples": BATCH},
    "forget_me_not": {},
    "advunlearn": {**SHORT, "retain_prompts": 3, "warmup": 0, "attack_steps": 1},
    "mace": {},
}


class Call(NamedTuple):
    """A pass through a network: its inputs, whether a backward pass followed, and which of its weights it reached."""

    module: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    backward: bool
    reached: tuple[str, ...]


def measure(names: tuple[str, ...] = tuple(METHODS), steps: int = STEPS, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds a step and the ratio to its floor, for each method of `names`."""
    model = load_family("digits-sd", StableDiffusion).set_prompts(PROMPTS)
    latents = Latents.of(model, sd_networks.images(model.image_shape[1], 2 * BATCH))
    job = Job(TASK, latents.of_classes((0,)), latents.of_classes((2,)))
    found = {}
    for name in names:
        method: Any = config.build(registry.load("methods", name), name, METHODS[name], {**COMMON, "steps": steps})
        ours, floor = compared(model.clone(), lambda moved, method=method: method.erase(moved, job), rounds)
        found[f"{name}, seconds a step"] = ours
        found[f"{name}, ours / bare floor"] = ours / floor
    return found


def compared(model: StableDiffusion, erase: Callable[[Any], Any], rounds: int) -> tuple[float, float]:
    """Median seconds a step of `erase`, and of the calls that its steps made."""
    with caught(model) as calls:
        records = erase(model).records
    replay(calls)
    pairs = []
    for _ in range(rounds):
        ours = sum(float(record["seconds"]) for record in erase(model).records)
        began = time.perf_counter()
        replay(calls)
        pairs.append((ours / len(records), (time.perf_counter() - began) / len(records)))
    ours, floor = (statistics.median(side) for side in zip(*pairs, strict=True))
    return ours, floor


@contextmanager
def caught(model: StableDiffusion) -> Iterator[list[Call]]:
    """The calls of the UNet, of its copies and of the text encoder that optimiser steps make inside the block."""
    kinds = (type(model.network), type(model.parts["text_encoder"]))
    calls: list[Call] = []
    inside, real = [False], _Loop.step

    def step(loop: _Loop, *given: Any) -> Any:
        inside[0] = True
        try:
            return real(loop, *given)
        finally:
            inside[0] = False

    def keep(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if inside[0] and isinstance(module, kinds):
            reached = tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)
            held = tuple(map(ready, arguments)), {name: ready(value) for name, value in named.items()}
            calls.append(Call(module, *held, first(output).requires_grad, reached))

    _Loop.step = step  # type: ignore[method-assign]
    hook = nn.modules.module.register_module_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
        _Loop.step = real  # type: ignore[method-assign]


def replay(calls: list[Call]) -> None:
    """Make them again; where no weight of the network itself was reached, the backward pass ends at its inputs."""
    for module, arguments, named, backward, reached in calls:
        with torch.set_grad_enabled(backward):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in reached)
            if backward and not any(parameter.requires_grad for parameter in module.parameters()):
                arguments, named = with_gradient(arguments, named)
            output = first(module(*arguments, **named))
        if backward:
            output.float().square().mean().backward()
            module.zero_grad(set_to_none=True)
        module.requires_grad_(True)


def with_gradient(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inputs, every tensor of floats with a gradient of its own."""

    def own(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.clone().requires_grad_() if floats else value

    return tuple(map(own, arguments)), {name: own(value) for name, value in named.items()}


def ready(value: Any) -> Any:
    """An input without what it was made by."""
    return value.detach() if isinstance(value, Tensor) else value


def first(output: Any) -> Tensor:
    """The tensor that a network answers with, alone or before others."""
    return output if isinstance(output, Tensor) else output[0]
