"""A step within the backward pass ends with the bits of a step after it, and holds the gradient of one tensor."""

import math

import pytest
import torch
from torch import nn

from benchmarks import sd_networks, stable_diffusion
from erasure.core import registry
from erasure.core.errors import DivergedError
from erasure.formats.safetensors_io import read_tensors
from erasure.methods.base import Job
from erasure.training import masked_parameters
from erasure.training.latent_cache import Latents
from erasure.training.loop import TrainingConfig, minimize
from erasure.training.masked_parameters import MaskedParameters
from erasure.training.memory import count, estimate
from tests.conftest import tiny
from tests.training.test_loop import every_other, half, network, regression, settings
from tests.training.test_memory import bitsandbytes, live_bytes  # noqa: F401
from tests.training.test_shared_teacher import random_mask


def fused(**changes):
    return settings(clip_norm=0.0, lean_optimizer=True, **changes)


@pytest.fixture
def in_one_go(monkeypatch):
    """A switch: the same settings with all gradients first."""
    return lambda: monkeypatch.setattr(TrainingConfig, "in_backward", False)


def same(one, other):
    return all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adamw8bit"])
def test_it_changes_no_bit(optimizer, masked, in_one_go, bitsandbytes):  # noqa: F811
    chosen = fused(optimizer=optimizer, weight_decay=0.1, ema_decay=0.9, schedule="cosine", warmup_steps=3)
    ends = []
    for _ in range(2):
        net = network()
        outcome = minimize(net, regression(net), chosen, seed=3, mask=half(net) if masked else None)
        ends.append((net, outcome))
        in_one_go()
    (one, first), (two, second) = ends
    assert same(one, two) and not same(one, network())
    assert all(first.ema[name].equal(second.ema[name]) for name in first.ema)
    assert [{**record, "seconds": 0} for record in first.records] == [{**r, "seconds": 0} for r in second.records]


@pytest.mark.parametrize("options", [{}, {"precision": "float32", "optimizer": "sgd", "weights": "attn2"}])
def test_the_unet_with_recomputed_activations_and_a_shared_teacher(options, in_one_go, task):
    """As --memory low has it: a block is recomputed while later ones have moved, the time embedding moves last."""
    hashes = []
    for _ in range(2):
        model = tiny("sd1").set_prompts(sd_networks.PROMPTS)
        latents = Latents.of(model, sd_networks.images(model.image_shape[1], 2))
        job = stable_diffusion.job_of(latents, random_mask(model))
        recipe = {"relabel": "anchor", "alpha": 0.5, "clip_norm": 0.0, "learning_rate": 1e-2, "memory": "low"}
        chosen = registry.load("methods", "salun")(**recipe, steps=2, batch_size=2, **options)
        records = chosen.erase(model, job).records
        hashes.append((model.hash, [record["grad_norm"] for record in records]))
        in_one_go()
    assert hashes[0] == hashes[1] and hashes[0][0] != tiny("sd1").hash


class Twice(nn.Module):
    """The same layer at both ends."""

    def __init__(self):
        super().__init__()
        self.shared, self.between = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(torch.tanh(self.between(torch.tanh(self.shared(x)))))


@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_used_four_times_moves_once(masked, in_one_go):
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        net = Twice()

        def loss(step, net=net):
            forget, retain = torch.randn(2, 8, 4, generator=step.generator)
            return {"loss": net(forget).square().mean() + (net(retain) - retain).square().mean()}

        minimize(net, loss, fused(optimizer="sgd"), seed=0, mask=every_other(net) if masked else None)
        ends.append(net)
        in_one_go()
    assert same(*ends)


def test_a_weight_that_is_still_needed_is_not_read_after_it_moved():
    net = nn.Module()
    net.a, net.w = nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((3,), 2.0))
    free = MaskedParameters(net, lean=True)
    optimizer = torch.optim.SGD(free.parameters, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        free.step_in_backward(optimizer, ((net.a * net.w.detach()) * net.w).sum())
    assert optimizer.param_groups[0]["params"] == free.parameters
    net.w.grad = None
    (net.a * net.w).sum().backward()
    assert net.w.grad is not None, "the hooks are gone"


@pytest.mark.parametrize(("kind", "at", "good"), [("loss", 8, 4), ("gradient", 7, 4), ("gradient", 8, 8)])
def test_divergence_goes_back_to_the_last_good_weights(kind, at, good, tmp_path):
    """A checkpoint that is due is written when its loss is known and before a weight moves."""
    net = network()

    def loss(step):
        value = regression(net)(step)["loss"]
        if step.index == at:
            value = value * math.inf if kind == "loss" else value + (net[0].weight * 0).sqrt().sum()
        return {"loss": value}

    with pytest.raises(DivergedError, match=rf"diverged at step {at} .* those of step {good}:"):
        minimize(net, loss, fused(), seed=0, mask=half(net), folder=tmp_path)
    saved, _ = read_tensors(tmp_path / "checkpoint.safetensors")
    reference = network()
    minimize(reference, regression(reference), fused(steps=good), seed=0, mask=half(reference))
    assert same(net, reference) and all(p.equal(saved[f"network/{n}"]) for n, p in net.named_parameters())


@pytest.mark.parametrize("dies_at", [4, 5, 9])
def test_killed_and_resumed_equals_uninterrupted(dies_at, tmp_path):
    def run(folder, dies=None):
        net = network()
        folder.mkdir(exist_ok=True)

        def loss(step):
            value = regression(net)(step)["loss"]
            if step.index == dies:  # in the middle of the backward pass, when the later layer has moved
                net[0].weight.register_hook(killed)
            return {"loss": value}

        minimize(net, loss, fused(), seed=5, mask=half(net), folder=folder)
        return net

    def killed(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies_at)
    assert same(run(tmp_path / "whole"), run(tmp_path / "killed"))


def test_only_where_nothing_needs_all_gradients(monkeypatch):
    assert fused().in_backward
    for change in ({"clip_norm": 1.0}, {"lean_optimizer": False}, {"accumulate": 2}, {"clip_before_mask": True}):
        assert not settings(**{"clip_norm": 0.0, "lean_optimizer": True, **change}).in_backward
    monkeypatch.setattr("erasure.training.loop.num_processes", lambda: 2)
    assert not settings(clip_norm=0.0, lean_optimizer=True).in_backward


@pytest.mark.filterwarnings("ignore")
def test_one_gradient_is_held_and_the_estimate_says_so(digits, task, monkeypatch):
    model = tiny("ddpm")
    mask = random_mask(model, 0.3)
    job = Job(task, digits.of_classes(task.forget), digits.of_classes(task.retain), mask)
    _, known = live_bytes(set())
    known -= {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
    teachers, gradients, held = [], [], []
    step_with_values, norm = masked_parameters._SplitTensor.step_with_values, torch.linalg.vector_norm

    def counting(split, optimizer):
        others = [p.grad for p in model.network.parameters() if p.grad is not None]
        gradients.append([4 * tensor.numel() for tensor in (*others, split.compact.grad)])
        step_with_values(split, optimizer)

    def at_the_end(*arguments):
        held.append(live_bytes(known)[0])
        return norm(*arguments)

    monkeypatch.setattr(masked_parameters._SplitTensor, "step_with_values", counting)
    monkeypatch.setattr(torch.linalg, "vector_norm", at_the_end)
    salun = registry.load("methods", "salun")
    original = salun._original
    monkeypatch.setattr(salun, "_original", lambda *a: teachers.append(original(*a)) or teachers[-1])
    options = {"memory": "low", "precision": "float32", "clip_norm": 0.0, "steps": 2, "batch_size": 2}
    salun(**options).erase(model, job)
    parts = estimate(*count(model.network, mask), lean=True, in_backward=True, teacher_bytes=teachers[0][1])
    assert all(len(found) == 1 for found in gradients) and parts["gradients"] == max(g for (g,) in gradients)
    assert sum(parts.values()) - parts["gradients"] == pytest.approx(held[1], rel=0.02)
    assert parts["gradients"] < 0.3 * estimate(*count(model.network, mask))["gradients"]
