"""One SalUn step on the shipped DDPM, against the bare compute it cannot do without and against the official algorithm.

The floor is one forward of the teacher without graph and one joint forward and backward of forget and retain, on inputs
that lie ready: no drawing, no optimiser, no mask, no record. All rounds alternate, so that a slow moment of the machine
falls on all of them; each figure is the median over rounds.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.official import OfficialSalUn, StepDraws
from erasure.core import config, registry
from erasure.data import Batch, Batches, load_dataset
from erasure.data.task import Task
from erasure.methods.base import Job
from erasure.models import Examples, load_model
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, build_mask

STEPS, ROUNDS, SIZE = 12, 9, 64


def measure() -> dict[str, float]:
    """Seconds a step and the ratios."""
    model = load_model("digits-ddpm")
    dataset = load_dataset("digits")
    task = Task.of_classes("3", dataset.class_names)
    forget, retain = dataset.of_classes(task.forget), dataset.of_classes(task.retain)
    mask = build_mask("saliency", model, forget, SaliencyConfig(), 0)
    contenders = {
        "floor": _floor(model.clone(), forget, retain),
        "ours": _ours(model.clone(), Job(task, forget, retain, mask)),
        "official": _official(model.clone(), forget, retain, mask),
    }
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - began) / STEPS)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)] for name in ("floor", "official")
    }
    return {
        **{f"{name}, seconds a step (batch {SIZE} + {SIZE})": value for name, value in median.items()},
        "ours / bare floor (goal: at most 1.10)": statistics.median(ratios["floor"]),
        "ours / official algorithm (goal: at most 0.9)": statistics.median(ratios["official"]),
        "official algorithm / bare floor": median["official"] / median["floor"],
    }


def _ours(model, job) -> Callable[[], object]:
    kind = registry.load("methods", "salun")
    method = config.build(kind, "salun", {"steps": STEPS, "batch_size": SIZE, "learning_rate": 1e-5})
    return lambda: method.erase(model, job)


def _examples(model, forget, retain) -> tuple[Examples, Examples]:
    generator = torch.Generator().manual_seed(0)
    return tuple(model.examples(Batches(part, SIZE, 0).at(0), generator) for part in (forget, retain))  # type: ignore[return-value]


def _floor(model, forget, retain) -> Callable[[], object]:
    teacher = model.frozen()
    first, second = _examples(model, forget, retain)
    joint = Examples.joined(first, second)
    other = Batch(first.target, (first.inputs[2] + 1) % 10)
    model.network.train()

    def run() -> None:
        for _ in range(STEPS):
            with torch.no_grad():
                teacher.predict(first.inputs[0], first.inputs[1], other.labels)
            model.predict(*joint.inputs).square().mean().backward()
            for parameter in model.network.parameters():
                parameter.grad = None

    return run


def _official(model, forget, retain, mask: Mask) -> Callable[[], object]:
    loop = OfficialSalUn(copy.deepcopy(model.network).train(), mask.tensors, learning_rate=1e-5)
    batches = [Batches(part, SIZE, 0) for part in (forget, retain)]

    def run() -> None:
        for index in range(STEPS):
            generator = torch.Generator().manual_seed(index)
            forgotten = model.examples(batches[0].at(index), generator, condition_drop=True)
            kept = model.examples(batches[1].at(index), generator, condition_drop=True)
            pseudo = model.with_dropped_condition((batches[0].at(index).labels + 1) % 10, generator)
            loop.step(StepDraws(*forgotten.inputs, pseudo, kept.inputs[0], kept.target, kept.inputs[1], kept.inputs[2]))

    return run
