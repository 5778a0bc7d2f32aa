"""SalUn on Stable Diffusion against the official algorithm: seconds a step, and the peak memory at full width.

    python -m benchmarks "sd step" "sd memory"
    python -m benchmarks.stable_diffusion --width 64 --json             (peak memory, both sides, a narrower network)
    python -m benchmarks.stable_diffusion --child ours --width 64 --json                  (one side, in this process)

Time: on the shipped digits-sd, and on SD 1's structure with every part at a quarter of its width, so that the encoders'
share of the work is the real one's (an encoding takes 1.4 to 1.5 times the operations of a pass through the UNet, at
any width). All rounds alternate; set-up, once a run, is counted on no side. Ours reads latents that were encoded once;
the last figure adds the encoding of every image a step reads, the most that a run of one epoch pays.

Memory: each side runs in a process of its own, so that its peak is its own: most bytes resident, libraries included,
over the second of two steps (the first finds no optimiser state). Autoencoder and text encoder are left out on both
sides, latents and embeddings lie ready; both recompute activations. If the machine cannot hold the official algorithm,
its need is computed: its weights, gradients, Adam state and mask, and what our side was seen to hold beside such.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import sd_networks
from benchmarks.mask import _peak as peak_bytes
from benchmarks.official_sd import Encoders, Images, OfficialSalUn
from benchmarks.official_sd import Latents as ReadyLatents
from benchmarks.sd_networks import PROMPTS, TASK
from erasure.core import config, registry
from erasure.data import Batch, Batches, Dataset
from erasure.methods.base import GradientMethod, Job
from erasure.models import Examples, load_family
from erasure.models.diffusion import drawn_timesteps
from erasure.models.stable_diffusion import StableDiffusion
from erasure.saliency.mask import Mask
from erasure.training.latent_cache import Latents
from erasure.training.memory import count, estimate

SHIPPED = {"batch": 8, "steps": 12, "rounds": 9}
QUARTER = {"batch": 4, "steps": 2, "rounds": 3}
QUARTER_WIDTH, FULL_WIDTH, SIZE = 80, 320, 32
LEFT_ALONE = 1e9  # bytes of the machine's memory that a measurement must not need
STEPS_OF_MEMORY = 2


def step(model: str = "digits-sd") -> dict[str, float]:
    """Seconds a step and the ratios, for the shipped model and for SD 1's proportions."""
    networks = {
        model: (load_family(model, StableDiffusion).set_prompts(PROMPTS), SHIPPED),
        "SD 1 at 1/4 width": (sd_networks.whole(QUARTER_WIDTH, SIZE), QUARTER),
    }
    return {
        f"{name}: {key}": value
        for name, (network, plan) in networks.items()
        for key, value in compared(network, **plan).items()
    }


def compared(model: StableDiffusion, batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Medians over alternating rounds of `steps` steps each: ours, the official algorithm, the bare floor, encoding."""
    images = sd_networks.images(model.image_shape[1], 2 * batch)
    latents, mask = Latents.of(model, images), sd_networks.random_mask(model.network)
    once = images.first(2 * batch)
    contenders: dict[str, Callable[[], list[float]]] = {
        "floor": floor(model.clone(), latents, batch, steps),
        "ours": ours(model.clone(), job_of(latents, mask), {"batch_size": batch, "steps": steps}),
        "official": official(model.clone(), images, mask, batch, steps),
        "encoding": lambda: [timed(lambda: Latents.of(model, once))],
    }
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(statistics.median(run()))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = {
        name: statistics.median(a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)) for name in seconds
    }
    return {
        **{f"{name}, seconds a step (batch {batch} + {batch})": value for name, value in median.items()},
        "ours / official algorithm (goal: at most 0.6)": ratio["official"],
        "ours / bare floor": ratio["floor"],
        "official algorithm / bare floor": median["official"] / median["floor"],
        "ours and one encoding of each image / official": (median["ours"] + median["encoding"]) / median["official"],
    }


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes, the work it leaves on the device included."""
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def job_of(latents: Latents, mask: Mask) -> Job:
    """What is forgotten and kept of the benchmark's training_images."""
    return Job(TASK, latents.of_classes((0,)), latents.of_classes((2,)), mask)


def ours(model: StableDiffusion, job: Job, given: Mapping[str, Any]) -> Callable[[], list[float]]:
    """A run of SalUn as the paper has it for Stable Diffusion, with `given` options beside; seconds of each step."""
    kind: type[GradientMethod] = registry.load("methods", "salun")
    recipe = {"relabel": "anchor", "learning_rate": 1e-5, "alpha": 0.5, "clip_norm": 0.0}
    method: GradientMethod = config.build(kind, "salun", recipe, given)
    return lambda: [float(record["seconds"]) for record in method.erase(model, job).records]


def floor(
    model: StableDiffusion, latents: Latents, batch: int, steps: int, precision: str = "float32"
) -> Callable[[], list[float]]:
    """One teacher's pass without graph and one joint pass forward and back a step, on inputs that lie ready."""
    teacher, generator = model.frozen(), torch.Generator().manual_seed(0)
    first, second = (
        model.examples(Batches(latents.of_classes((label,)), batch, 0).at(0), generator) for label in (0, 2)
    )
    joint, other = Examples.joined(first, second), torch.ones_like(first.inputs[2])
    model.network.train()

    def step() -> None:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                teacher.predict(first.inputs[0], first.inputs[1], other)
            loss = model.predict(*joint.inputs).float().square().mean()
        loss.backward()
        for parameter in model.network.parameters():
            parameter.grad = None

    return lambda: [timed(step) for _ in range(steps)]


def official(
    model: StableDiffusion, images: Dataset, mask: Mask, batch: int, steps: int, precision: str = "float32"
) -> Callable[[], list[float]]:
    """Steps of the official algorithm, from images and prompts, on the model's own network; seconds of each."""
    encoders = Encoders(*(model.parts[name] for name in ("vae", "text_encoder", "tokenizer")))
    loop = OfficialSalUn(model.network.train(), model.noise_scheduler.alphas_cumprod, mask.tensors, encoders)
    forget, retain = (Batches(images.of_classes((label,)), batch, 0) for label in (0, 2))

    def step(index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        first = _drawn(model, forget.at(index), PROMPTS[0], generator)
        again = torch.randn(first.noise.shape, generator=generator).to(model.device)
        second = replace(first, prompts=[PROMPTS[1]] * batch, encoding_noise=again)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loop.step(first, second, _drawn(model, retain.at(index), PROMPTS[2], generator))

    return lambda: [timed(functools.partial(step, index)) for index in range(steps)]


def _drawn(model: StableDiffusion, batch: Batch, prompt: str, generator: torch.Generator) -> Images:
    count = len(batch.images)
    noise = [torch.randn((count, *model.sample_shape), generator=generator) for _ in range(2)]
    timesteps = drawn_timesteps(count, model.num_train_timesteps, generator)
    images, encoding_noise, other, timesteps = (v.to(model.device) for v in (batch.images, *noise, timesteps))
    return Images(images, [prompt] * count, encoding_noise, other, timesteps)


def memory(width: int = FULL_WIDTH, size: int = SIZE) -> dict[str, float | str]:
    """Peak GB of both sides and their ratio, for SD 1's UNet at `width` on latents of `size`."""
    found = _child("ours", width, size)
    beside = found["peak"] - found["held"]
    computed = official_bytes(int(found["weights"])) + beside
    fits = computed + LEFT_ALONE < available_bytes()
    official = _child("official", width, size)["peak"] if fits else computed
    name = "official" if fits else "official, computed"
    return {
        "weights of the UNet, millions": found["weights"] / 1e6,
        "ours, peak GB": found["peak"] / 1e9,
        "ours, peak GB of the first step alone": found["first"] / 1e9,
        "ours, GB beside weights, gradients, optimiser, teacher, masks": beside / 1e9,
        f"{name}, peak GB": official / 1e9,
        f"peak memory, ours / {name} (goal: at most 0.5)": found["peak"] / official,
        "malloc": _malloc(),
    }


def official_bytes(num_weights: int) -> int:
    """What the official algorithm holds of a network: float32 weights, gradients, two Adam moments; an int64 mask."""
    return (4 + 4 + 8 + 8) * num_weights


def available_bytes() -> float:
    """Memory that can be had without swapping; unlimited where the kernel does not say."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return float("inf")
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    return 1024.0 * int(lines["MemAvailable"].split()[0])


def _malloc() -> str:
    chosen = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    return ", ".join(f"{name}={value}" for name, value in sorted(chosen.items())) or "as the system has it"


def _child(side: str, width: int, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.stable_diffusion", "--child", side, "--json"]
    command += ["--width", str(width), "--latents", str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def alone_ours(width: int, size: int) -> dict[str, float]:
    """Peak bytes of this process after SalUn with --memory low, and after its first step; what is `held` by plan."""
    model = sd_networks.denoiser(width, size)
    mask, peaks = sd_networks.random_mask(model.network), []
    counts = count(model.network, mask)
    # The original is kept in float16 (its values are such), with a bit a weight for where it belongs.
    teacher = 2 * counts.num_free + counts.num_split // 8
    parts = estimate(*counts, lean=True, in_backward=True, teacher_bytes=teacher)
    # No gradient is there at the peak, the teacher's pass: the student's float32 values are, in the originals' stead.
    swapped = 2 * counts.num_free - parts["gradients"]
    held = sum(parts.values()) + swapped + mask.total // 8

    def on_step(done: int) -> dict[str, Any]:
        peaks.append(peak_bytes())
        return {}

    job = replace(job_of(sd_networks.latents(size, 1), mask), on_step=on_step)
    ours(model, job, {"batch_size": 1, "steps": STEPS_OF_MEMORY, "memory": "low"})()
    return {"weights": counts.num_weights, "peak": peaks[-1], "first": peaks[0], "held": held}


def alone_official(width: int, size: int) -> dict[str, float]:
    """Peak bytes of this process after the official algorithm."""
    model = sd_networks.denoiser(width, size)
    model.network.train().enable_gradient_checkpointing()
    mask = sd_networks.half_mask(model.network, torch.int64)
    loop = OfficialSalUn(model.network, model.noise_scheduler.alphas_cumprod, mask)
    for index in range(STEPS_OF_MEMORY):
        loop.update(*ready_batches(model, 1, index))
    return {"weights": sum(p.numel() for p in model.network.parameters()), "peak": peak_bytes()}


def ready_batches(model: StableDiffusion, batch: int, seed: int) -> tuple[ReadyLatents, ReadyLatents, ReadyLatents]:
    """Latents to forget under their prompt and under the anchor, and to retain, on the model's device."""
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> tuple[Tensor, Tensor, Tensor]:
        latents, noise = (torch.randn((batch, *model.sample_shape), generator=generator) for _ in range(2))
        timesteps = drawn_timesteps(batch, model.num_train_timesteps, generator)
        return latents.to(model.device), noise.to(model.device), timesteps.to(model.device)

    def asked(label: int, latents: Tensor, noise: Tensor, timesteps: Tensor) -> ReadyLatents:
        return ReadyLatents(latents, model.bound.embeddings[[label] * batch], noise, timesteps)

    forget = drawn()
    return asked(0, *forget), asked(1, *forget), asked(2, *drawn())


def main() -> int:
    """Measure memory, of one side or of both; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stable_diffusion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--child", choices=("ours", "official"), help="one side alone, in this process")
    parser.add_argument("--width", type=int, default=FULL_WIDTH, help="channels at the top of the UNet (320: SD 1)")
    parser.add_argument("--latents", type=int, default=SIZE, help="size of the latents (32: images of 256 pixels)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args()
    runs: dict[str | None, Any] = {"ours": alone_ours, "official": alone_official, None: memory}
    found = runs[given.child](given.width, given.latents)
    print(json.dumps(found) if given.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
