"""Stable Diffusion at full size on a GPU: seconds and memory of a SalUn step, of its mask, and images a second.

    python -m benchmarks.gpu --parts sd --minutes 15 --out gpu
    python -m benchmarks.gpu --parts sd --minutes 1 --out toy --toy                                    (any machine)

SD 1.4's structure with random weights at 512 x 512. Beside each figure of ours: the official algorithm on the same
network, encoders included, and the bare floor (a teacher's pass and a joint pass forward and back on ready inputs).
Each measurement begins with an empty cache and leaves out its first steps; medians. All are kept in one file, written
after each of them, and those that are in it are not made again; what the minutes did not allow is named in it.
"""

from __future__ import annotations

import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import sd_networks
from benchmarks.official import official_mask
from benchmarks.stable_diffusion import floor, job_of, official, ours, timed
from erasure.core.distributed import device
from erasure.core.files import read_json, write_json
from erasure.models.stable_diffusion import StableDiffusion
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, saliency_scores

# Dense bf16 operations a second that the maker states, by a part of the card's name.
BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "bf16": {"precision": "bf16"},
    "low": {"memory": "low"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "shared teacher": {"share_teacher": True},
    "lean optimiser": {"lean_optimizer": True},
    "compiled bf16": {"precision": "bf16", "compile": True},
}
Found = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The network, and how much of everything is measured."""

    width: int = 320
    size: int = 64
    batches: tuple[int, ...] = (8, 1)
    warmup: int = 3
    steps: int = 12
    num_inference_steps: int = 50
    compiled: bool = True


TOY = Plan(width=16, size=8, batches=(2,), warmup=1, steps=1, num_inference_steps=1, compiled=False)


def run(path: Path, plan: Plan, deadline: float, card: str) -> Found:
    """Make the measurements that `path` lacks until `deadline` (of time.monotonic); all that were made, and ratios."""
    found: Found = read_json(path) if path.is_file() else {}
    kept = {name: value for name, value in found.items() if name not in ("ratios", "not run")}
    base = functools.cache(lambda: sd_networks.whole(plan.width, plan.size))
    left = [(name, measure) for name, measure in measurements(plan) if name not in kept]
    while left and time.monotonic() < deadline:
        name, measure = left.pop(0)
        kept[name] = _guarded(measure, base().clone())
        write_json(path, kept)
    found = {**kept, "ratios": ratios(kept, plan, card), "not run": [name for name, _ in left]}
    write_json(path, found)
    return found


def measurements(plan: Plan) -> Iterator[tuple[str, Callable[[StableDiffusion], Found]]]:
    """Names, and what to call with a network of one's own; the most wanted first."""
    for batch in plan.batches:
        about = f"batch {batch} + {batch}"
        for precision in ("float32", "bf16"):
            yield f"floor {precision}, {about}", functools.partial(_floor, plan, batch, precision)
            yield f"official {precision}, {about}", functools.partial(_official, plan, batch, precision)
        for name, options in options_at(batch).items():
            if plan.compiled or "compile" not in options:
                yield f"ours {name}, {about}", functools.partial(_ours, plan, batch, options)
        if batch == plan.batches[0]:
            yield f"mask, {about}", functools.partial(_mask, plan, batch)
        for precision in ("float32", "bf16"):
            yield f"sampling {precision}, {batch} at once", functools.partial(_sampling, plan, batch, precision)


def options_at(batch: int) -> dict[str, dict[str, Any]]:
    """OPTIONS, and with more than one image of each kind: in as many parts, alone and beside all others."""
    if batch == 1:
        return OPTIONS
    parts = {"accumulate": batch}
    return {**OPTIONS, "accumulate": parts, "low and accumulate": {"memory": "low", **parts}}


def ratios(found: Found, plan: Plan, card: str) -> dict[str, float]:
    """Ours against the official algorithm and the floor; model-FLOP utilisation where the card's peak is known.

    The floor is that of ours' own precision, the official algorithm is float32, as published, unless it says bf16.
    Utilisation counts the operations of one step without recomputation, against the card's dense bf16 peak.
    """
    peak = next((value for name, value in BF16_PEAK.items() if name in card), None)
    result: dict[str, float] = {}
    for batch in plan.batches:
        about = f"batch {batch} + {batch}"
        fewest, published = (
            found.get(f"{name} float32, {about}", {}).get("operations") for name in ("floor", "official")
        )
        if fewest and published:
            result[f"{about}: operations, floor / official"] = fewest / published
        for name, options in options_at(batch).items():
            result |= _beside(found, name, options, about)
            seconds = found.get(f"ours {name}, {about}", {}).get("seconds")
            if peak and seconds and fewest:
                result[f"{name}, {about}: utilisation"] = fewest / seconds / peak
    return result


def _beside(found: Found, name: str, options: Mapping[str, Any], about: str) -> dict[str, float]:
    """Seconds and peak memory of ours, as ratios to the official algorithm's and the floor's."""
    precision = "bf16" if options.get("precision") == "bf16" or "memory" in options else "float32"
    others = {"official": "official float32", "official bf16": "official bf16", "floor": f"floor {precision}"}
    mine = found.get(f"ours {name}, {about}", {})
    result: dict[str, float] = {}
    for other, measured in others.items():
        theirs = found.get(f"{measured}, {about}", {})
        for key in ("seconds", "peak_gb"):
            if mine.get(key) and theirs.get(key):
                result[f"{name}, {about}: {key}, ours / {other}"] = mine[key] / theirs[key]
    return result


def _guarded(measure: Callable[[StableDiffusion], Found], model: StableDiffusion) -> Found:
    """What `measure` finds of a model on the device, whose memory it has to itself; or that this does not suffice."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _forget_peak()
    try:
        return measure(model.to(device()))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}


def _step(plan: Plan, run: Callable[[], list[float]]) -> Found:
    seconds = run()
    return {"seconds": statistics.median(seconds[plan.warmup :]), "all_seconds": seconds, "peak_gb": _peak_gb()}


def _operations(run: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _floor(plan: Plan, batch: int, precision: str, model: StableDiffusion) -> Found:
    latents = sd_networks.latents(plan.size, batch)
    found = _step(plan, floor(model, latents, batch, plan.warmup + plan.steps, precision))
    return found if precision == "bf16" else {**found, "operations": _operations(floor(model, latents, batch, 1))}


def _official(plan: Plan, batch: int, precision: str, model: StableDiffusion) -> Found:
    images, mask = sd_networks.images(8 * plan.size, batch), sd_networks.random_mask(model.network)
    found = _step(plan, official(model, images, mask, batch, plan.warmup + plan.steps, precision))
    model.network.zero_grad()
    return (
        found if precision == "bf16" else {**found, "operations": _operations(official(model, images, mask, batch, 1))}
    )


def _ours(plan: Plan, batch: int, options: dict[str, Any], model: StableDiffusion) -> Found:
    job = job_of(sd_networks.latents(plan.size, batch), sd_networks.random_mask(model.network))
    return _step(plan, ours(model, job, {"batch_size": batch, "steps": plan.warmup + plan.steps, **options}))


def _mask(plan: Plan, batch: int, model: StableDiffusion) -> Found:
    """Scores from four batches, then the selection: ours, and the official one from the same scores."""
    forget = sd_networks.latents(plan.size, 4 * batch).of_classes((0,))
    scoring = SaliencyConfig(saliency_batch_size=batch)
    saliency_scores(model, forget, scoring)
    scores: dict[str, torch.Tensor] = {}
    found: Found = {"scores_seconds": timed(lambda: scores.update(saliency_scores(model, forget, scoring)))}
    found |= {"scores_peak_gb": _peak_gb(), "images": len(forget)}
    contenders = {"ours": lambda: Mask.top(scores, 0.5).tensors, "official": lambda: official_mask(scores, 0.5)}
    for name, select in contenders.items():
        made: dict[str, torch.Tensor] = {}
        seconds = []
        for _ in range(3):
            made.clear()
            _forget_peak()
            seconds.append(timed(lambda made=made, select=select: made.update(select())))
        found |= {f"{name}_seconds": statistics.median(seconds), f"{name}_peak_gb": _peak_gb()}
        found[f"{name}_bytes_in_memory"] = sum(tensor.nbytes for tensor in made.values())
    with tempfile.TemporaryDirectory() as scratch:
        Mask.top(scores, 0.5).save(Path(scratch) / "mask.safetensors")
        found["bytes_on_disk"] = (Path(scratch) / "mask.safetensors").stat().st_size
    return found


def _sampling(plan: Plan, batch: int, precision: str, model: StableDiffusion) -> Found:
    """Images a second, guided, the autoencoder's work included."""
    labels = torch.zeros(batch, dtype=torch.int64)

    def draw() -> None:
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            model.generate(labels, list(range(batch)), num_inference_steps=plan.num_inference_steps)

    draw()
    seconds = statistics.median(timed(draw) for _ in range(3))
    return {"images_per_second": batch / seconds, "peak_gb": _peak_gb()}


def _peak_gb() -> float | None:
    """The most that tensors took on the GPU, autoencoder and text encoder included; None where there is none."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
