"""The only training loop: `minimize` runs the steps, with processes, precision, mask, checkpoints and records.

Every random number comes from a generator that is seeded by the run's seed and the step, so a killed run that continues
from its last checkpoint ends with the same bits as one that was never interrupted, at whatever step it was killed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from erasure.core.distributed import num_processes, world
from erasure.core.errors import DivergedError, OptionError
from erasure.core.logging import progress
from erasure.core.rng import derive_seed
from erasure.core.run_dir import Log, read_log
from erasure.data import Batch
from erasure.models import Examples
from erasure.saliency.mask import Mask
from erasure.training.checkpoint import load_state, save_state
from erasure.training.masked_parameters import MaskedParameters
from erasure.training.optimizers import Optimizer, new_optimizer

Divisible = TypeVar("Divisible", Tensor, Batch, Examples)
OnStep = Callable[[int], Mapping[str, Any]]
Precision = Literal["float32", "bf16"]
Projection = Callable[[int], Mapping[str, float]]
Record = dict[str, Any]  # a step's line of log.jsonl: its number, losses, seconds, and additions of `on_step`
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained; the names are those of the command line's flags."""

    steps: int
    learning_rate: float
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip_norm: float = 1.0
    clip_before_mask: bool = False
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    ema_decay: float = 0.0
    precision: Precision = "float32"
    accumulate: int = 1
    lean_optimizer: bool = False
    compile: bool = False
    checkpoint_every: int = 50
    loss_limit: float = 1e4

    def check(self, batch_size: int) -> None:
        """Raise OptionError for a value outside its range."""
        if self.steps < 0 or self.accumulate < 1 or self.checkpoint_every < 1:
            raise OptionError("--steps must be at least 0, --accumulate and --checkpoint-every at least 1")
        parts = self.accumulate * num_processes()
        if batch_size < 1 or batch_size % parts:
            raise OptionError(
                f"--batch-size {batch_size} must be a positive multiple of {parts} (--accumulate times processes)"
            )
        if not (0 < self.learning_rate < math.inf and min(self.weight_decay, self.clip_norm) >= 0):
            raise OptionError("--learning-rate must be above 0, --weight-decay and --clip-norm at least 0")
        if not (0 <= self.momentum < 1 and 0 <= self.ema_decay < 1):
            raise OptionError("--momentum and --ema-decay must lie in [0, 1)")

    @property
    def in_backward(self) -> bool:
        """Whether each tensor moves within the backward pass: the optimiser is lean and nothing needs all gradients."""
        whole = self.clip_norm or self.clip_before_mask or self.accumulate > 1
        return self.lean_optimizer and not whole and num_processes() == 1

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then constant or half a cosine down to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Step:
    """A step as a loss sees it.

    `index` is its number of `steps`, `generator` a random generator on the CPU that is seeded by the step. A batch is
    computed in `parts`, over processes and accumulation; ours is number `part`.
    """

    index: int
    generator: torch.Generator
    part: int = 0
    parts: int = 1
    steps: int = 1

    def own(self, values: Divisible) -> Divisible:
        """Our part of a batch, of examples or of a tensor (b, ...): every `parts`-th sample from `part` on."""
        if isinstance(values, Examples):
            return values.part(self.part, self.parts)
        if isinstance(values, Batch):
            return Batch(*(value[self.part :: self.parts] for value in values))
        return values[self.part :: self.parts]


Loss = Callable[[Step], Mapping[str, Tensor]]
Buffers = Mapping[str, Tensor] | None  # those of a checkpoint; None: no checkpoint is due


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training: a record for each step, the seconds of all steps, and the averaged weights, if any."""

    records: list[Record]
    seconds: float
    ema: dict[str, Tensor] | None = None


def minimize(
    network: nn.Module,
    loss: Loss,
    settings: TrainingConfig,
    *,
    seed: int,
    mask: Mask | None = None,
    trains: Callable[[str], bool] = lambda name: True,
    folder: Path | None = None,
    fingerprint: str = "",
    description: str = "train",
    project: Projection | None = None,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Minimise `loss(step)["loss"]` over the trainable weights of `network`.

    Args:
        network: The module to train, in place.
        loss: Returns named scalars of a step, among them `loss`; the others are recorded.
        settings: Number of steps, optimiser, precision and the like.
        seed: Seed of all random numbers.
        mask: Trainable weights by position; others are frozen. None: all.
        trains: Trainable tensors by name.
        folder: Where each step is recorded in log.jsonl, and the state kept in checkpoint.safetensors.
        fingerprint: Identifies the run; a call with the same one continues from the checkpoint in `folder`.
        description: The name of the progress bar.
        project: Called with the number of finished steps after each step; may change trainable weights (a projection or
            proximal operator) and returns additions to the record. Its seconds count.
        on_step: Called after that; returns additions to the record. Its seconds do not count.

    Raises:
        DivergedError: The loss passed `loss_limit`, or its gradient is not finite. A checkpoint is written only after
            the loss of its weights was finite, and the network then has the weights of the last checkpoint, whose step
            the error names; step 0 means that there was none, and that the weights must be loaded again.
    """
    loop = _Loop(network, settings, seed, mask, trains, folder, fingerprint)
    device = loop.state.device
    # Steps seed the global generator (for dropout); the caller's is put back.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), loop:
        for index in loop.steps(description):
            began = time.perf_counter()
            record = loop.step(index, loss)
            if project is not None:
                record.update(loop.projected(project, index + 1))
            record["seconds"] = time.perf_counter() - began
            if on_step is not None:
                record.update(on_step(index + 1))
            loop.record(record)
    return TrainingResult(loop.records, sum(record["seconds"] for record in loop.records), loop.averaged())


class _Loop:
    def __init__(
        self,
        network: nn.Module,
        settings: TrainingConfig,
        seed: int,
        mask: Mask | None,
        trains: Callable[[str], bool],
        folder: Path | None,
        fingerprint: str,
    ) -> None:
        settings.check(settings.accumulate * num_processes())
        self.network, self.settings, self.seed = network, settings, seed
        self.state = world()
        lean = settings.lean_optimizer
        self.masked = MaskedParameters(network, mask, trains, clip_before_mask=settings.clip_before_mask, lean=lean)
        self.optimizer = new_optimizer(
            settings.optimizer,
            self.masked.parameters,
            settings.learning_rate,
            settings.weight_decay,
            settings.momentum,
        )
        self.ema = [p.detach().clone() for p in network.parameters()] if settings.ema_decay else []
        self.path = folder / "checkpoint.safetensors" if folder else None
        self.fingerprint = fingerprint
        self.start = self._resume()
        self.records: list[Record] = []
        self.log: Log | None = None
        if folder is not None:
            self.records = [r for r in read_log(folder / "log.jsonl") if r.get("step", -1) < self.start]
            self.log = Log(folder / "log.jsonl", self.records) if self.state.is_main_process else None

    def __enter__(self) -> _Loop:
        if self.settings.compile:
            self.network.compile()
        return self

    def __exit__(self, *_: object) -> None:
        self.network._compiled_call_impl = None
        self.masked.release()
        if self.log is not None:
            self.log.close()

    def steps(self, description: str) -> Iterator[int]:
        """The steps that are left, with a bar on a terminal."""
        bar = progress(total=self.settings.steps, initial=self.start, desc=description, unit="step")
        with bar:
            for index in range(self.start, self.settings.steps):
                yield index
                bar.set_postfix_str(f"loss {self.records[-1]['loss']:.4f}", refresh=False)
                bar.update()

    def step(self, index: int, loss: Loss) -> Record:
        """One optimiser step; returns its record."""
        settings = self.settings
        torch.manual_seed(derive_seed(self.seed, "network", index))
        due = index > self.start and index % settings.checkpoint_every == 0
        # The forward pass moves running statistics, so a checkpoint of this step takes them from before it.
        buffers = {name: value.clone() for name, value in self._kept_buffers()} if due else None
        rate = settings.learning_rate_at(index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        move = self._move_in_backward if settings.in_backward else self._move
        values, norm = move(index, loss, buffers)
        if self.ema:
            decay = min(settings.ema_decay, (1 + index) / (10 + index))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.network.parameters()], 1 - decay)
        return {"step": index, **values, "grad_norm": norm, "learning_rate": rate}

    def projected(self, project: Projection, done: int) -> Mapping[str, float]:
        """Let `project` change the network's weights, and take them over; its additions to the record."""
        added = project(done)
        self.masked.read_network()
        return added

    def _move(self, index: int, loss: Loss, buffers: Buffers) -> tuple[dict[str, float], float]:
        """Gradients, then a checkpoint if it is due, then the step of the weights; the losses, the gradient's norm."""
        losses = self._gradients(index, loss)
        norm = self.masked.clip(self.settings.clip_norm or math.inf)
        values = {name: value.item() for name, value in losses.items()}
        self._check_finite(index, values["loss"], norm)
        self._save(index, buffers)
        self.masked.step(self.optimizer)
        return values, norm

    def _move_in_backward(self, index: int, loss: Loss, buffers: Buffers) -> tuple[dict[str, float], float]:
        """The same bits; the checkpoint comes before the first gradient, as each weight moves once it has its own."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "draws", index))
        with self._autocast():
            losses = loss(Step(index, generator, steps=self.settings.steps))
        values = {name: value.item() for name, value in losses.items()}
        self._check_finite(index, values["loss"])
        self._save(index, buffers)
        norm = self.masked.step_in_backward(self.optimizer, losses["loss"])
        self._check_finite(index, values["loss"], norm)
        return values, norm

    def _kept_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers that belong to the network's state; others are made anew with it."""
        kept = self.network.state_dict().keys()
        return ((name, buffer) for name, buffer in self.network.named_buffers() if name in kept)

    def _gradients(self, index: int, loss: Loss) -> dict[str, Tensor]:
        """Accumulate gradients over our parts of the batch; the mean of each named loss over all of them."""
        accumulate, processes = self.settings.accumulate, self.state.num_processes
        sums: dict[str, Tensor] = {}
        for micro in range(accumulate):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "draws", index))
            part = micro * processes + self.state.process_index
            with self._autocast():
                losses = loss(Step(index, generator, part, accumulate * processes, self.settings.steps))
            (losses["loss"] / accumulate).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / accumulate
        if processes > 1:
            sums = {name: reduce(value, "mean") for name, value in sums.items()}
            self.masked.average_gradients()
        return sums

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bf16"  # no cache: a pass without graph would fill it for the one with
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)

    def record(self, record: Record) -> None:
        """Keep and write the step's record."""
        self.records.append(record)
        if self.log is not None:
            self.log.write(record)

    def _check_finite(self, index: int, value: float, norm: float = 0.0) -> None:
        """If the loss or the gradient's norm is not: back to the last checkpoint, whose loss is, and raise."""
        if abs(value) <= self.settings.loss_limit and math.isfinite(norm):
            return
        good = self._resume()
        also = ", or use --precision float32" if self.settings.precision == "bf16" else ""
        raise DivergedError(
            f"training diverged at step {index} (loss {value:.4g}); the last good weights are those of step {good}: "
            f"lower --learning-rate, or stop earlier with --steps{also}",
            good,
        )

    def averaged(self) -> dict[str, Tensor] | None:
        """The exponential moving average of the parameters by name, if one was kept."""
        if not self.ema:
            return None
        return dict(zip((name for name, _ in self.network.named_parameters()), self.ema, strict=True))

    def _save(self, step: int, buffers: Buffers) -> None:
        if buffers is not None and self.path is not None and self.state.is_main_process:
            save_state(self.path, self.network, self.optimizer, self.ema, buffers, step, self.fingerprint)

    def _resume(self) -> int:
        if self.path is None or not self.path.is_file():
            return 0
        step = load_state(self.path, self.network, self.optimizer, self.ema, self.fingerprint)
        self.masked.read_network()
        return step
