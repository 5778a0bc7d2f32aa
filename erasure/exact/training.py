"""Training of one stage: a pure function of the plan, the ids and their samples, which ends in a saved state.

It has its own loop: a stage begins and ends with the optimiser's state, which `training.loop` does not expose, and
needs no log of steps, no checkpoint within a stage, no mask, and no second process.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from erasure.core.distributed import device
from erasure.core.errors import DivergedError, RunError
from erasure.core.rng import derive_seed
from erasure.data import Batches, Dataset
from erasure.exact.plan import ExactPlan, Stage, subset
from erasure.formats.safetensors_io import hash_tensors, read_tensors
from erasure.training.checkpoint import load_state, save_state
from erasure.training.optimizers import new_optimizer

SUFFIX = ".safetensors"


def train_stage(plan: ExactPlan, stage: Stage, dataset: Dataset, folder: Path) -> str:
    """Train `stage` from its parent's state, or from random weights, and save its state in `folder`; returns its hash.

    Raises DivergedError when the loss is no longer finite.
    """
    method, place = plan.method, device()
    seed = derive_seed(plan.seed, "stage", stage.unit, stage.number)
    with pinned(method.threads, place):
        learner = method.learner(plan.info, derive_seed(plan.seed, "weights", stage.unit))
        network = learner.network.to(place).train()
        parameters = list(network.parameters())
        optimizer = new_optimizer(
            method.optimizer, parameters, method.learning_rate, method.weight_decay, method.momentum
        )
        if stage.parent is not None:
            load_state(folder / (stage.parent + SUFFIX), network, optimizer, [], plan.hash)
        batches = Batches(
            subset(dataset, stage.ids), method.batch_size, derive_seed(seed, "batches"), crop=method.crops
        )
        torch.manual_seed(derive_seed(seed, "network"))
        for step in range(method.steps(len(stage.ids))):
            generator = torch.Generator().manual_seed(derive_seed(seed, "draws", step))
            optimizer.zero_grad()
            loss = learner.loss(batches.at(step), generator)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, method.clip_norm or math.inf)
            if not math.isfinite(loss.item() + norm.item()):
                raise DivergedError(
                    f"{stage.name} diverged at step {step}: fit again with a lower --learning-rate",
                    0,
                )
            optimizer.step()
    path = folder / (stage.name + SUFFIX)
    save_state(path, network, optimizer, [], {}, stage.number, plan.hash)
    return state_hash(path)


@contextlib.contextmanager
def pinned(threads: int, place: torch.device) -> Iterator[None]:
    """Set the number of threads, deterministic kernels and a separate random state; restore all of them afterwards.

    Raises RunError when this number of threads cannot be set.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if place.type == "cuda":  # cuBLAS is deterministic only with a workspace of fixed size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    try:
        if torch.get_num_threads() != threads:
            raise RunError(f"the plan was fitted with {threads} threads, which cannot be set here")
        torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(before)


def state_hash(path: Path) -> str:
    """SHA-256 of all tensors of a state: weights, buffers, optimiser."""
    return hash_tensors(read_tensors(path)[0])


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors of a state, by their own names."""
    return {name.removeprefix("network/"): value for name, value in state.items() if name.startswith("network/")}
