"""Selective Amnesia: its Fisher matrix by brute force, its loss by hand, and what holds the weights."""

import time

import numpy as np
import pytest
import torch

from erasure.core.errors import NotApplicableError, OptionError
from erasure.core.rng import derive_seed
from erasure.data import Batch, Batches
from erasure.data.task import Task
from erasure.methods.base import Job, StepBatches
from erasure.methods.finetuning import selective_amnesia
from erasure.methods.finetuning.selective_amnesia import SelectiveAmnesia, _Consolidation
from erasure.saliency.mask import Mask
from erasure.training.curvature import WeightSpace, diagonal_fisher
from erasure.training.loop import Step
from tests.conftest import about, state_of, tiny

SMALL = {"fisher_samples": 5, "num_replay_images": 16, "batch_size": 8, "steps": 3}


def job_of(kind, **changes):
    dataset, task = about(kind)
    return Job(task, dataset.of_classes(task.forget), dataset.of_classes(task.retain), **changes)


def draws_of(job, own=None, size=8):
    batches = [Batches(dataset, size, 0) for dataset in (job.forget, job.retain)]
    return StepBatches(Step(0, torch.Generator().manual_seed(0)), *batches, own)


@pytest.mark.parametrize("kind", ["ddpm", "sd1"])
def test_the_fisher_matrix_is_the_mean_squared_gradient_of_single_samples(kind):
    model, job = tiny(kind), job_of(kind)
    before = state_of(model)
    mask = Mask.random(Mask({n: p.detach() for n, p in model.network.named_parameters()}), 0.5, 0)
    found = diagonal_fisher(model, WeightSpace(model.network, mask), job.retain, 3, 4)
    rows = np.sort(np.random.default_rng(derive_seed(3, "fisher")).permutation(len(job.retain))[:4])
    batch = Batch(job.retain.samples(rows), torch.from_numpy(job.retain.labels[rows]))
    generator = torch.Generator().manual_seed(derive_seed(derive_seed(3, "fisher"), "curvature", 0))
    examples, expected = model.examples(batch, generator), 0
    for i in range(4):
        grads = torch.autograd.grad(model.per_sample_loss(examples.part(i, 4))[0], list(model.network.parameters()))
        expected = (
            expected
            + torch.cat(
                [g[mask.tensors[n]] for g, (n, _) in zip(grads, model.network.named_parameters(), strict=True)]
            ).square()
        )
    torch.testing.assert_close(found, expected / 4, rtol=1e-3, atol=1e-9)
    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.network.parameters())


def test_the_loss_is_its_formula():
    model, job = tiny("ddpm"), job_of("ddpm")
    method = SelectiveAmnesia(**SMALL, gamma=0.7, penalty=3.0)
    held = _Consolidation(method, model, job)
    weights = diagonal_fisher(model, WeightSpace(model.network), job.retain, 0, 5)
    start = torch.nn.utils.parameters_to_vector(model.network.parameters()).detach()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.01)
        found = method.loss(model, model, job.task, draws_of(job, held))
        again = draws_of(job)
        labels = again.forget_labels(job.task, 8)
        noise = torch.rand((8, *model.image_shape), generator=again.generator) * 2 - 1
        shown = model.examples(Batch(noise, labels), again.generator)
        kept = model.examples(again.retain_batch, again.generator, condition_drop=True)
        moved = torch.nn.utils.parameters_to_vector(model.network.parameters()) - start
        distance = (weights * moved.square()).sum() / 2 * noise[0].numel()
        expected = model.per_sample_loss(shown).mean() + 0.7 * model.per_sample_loss(kept).mean() + 3.0 * distance
    assert set(labels.tolist()) == {3}
    assert float(found["distance"]) == pytest.approx(float(distance), rel=1e-4)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_penalty_is_that_of_losses_that_are_sums():
    """With S = d M, the paper's objective in S is d times ours in M: its F is d^2 times ours."""
    model, job = tiny("ddpm"), job_of("ddpm")
    held = _Consolidation(SelectiveAmnesia(**SMALL), model, job)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.01)
    size = int(np.prod(model.sample_shape))
    squares = sum(float((size**2 * f * 0.01**2).sum()) for f in held.fisher)
    assert float(held.distance().detach()) * size == pytest.approx(squares / 2 / size, rel=1e-2)


def test_a_large_penalty_holds_the_weights_that_matter():
    moved = []
    for penalty in (0.0, 1e4):
        model, job = tiny("ddpm"), job_of("ddpm")
        held = _Consolidation(SelectiveAmnesia(**SMALL), model, job)
        options = {**SMALL, "steps": 20, "learning_rate": 1e-3, "penalty": penalty, "replay": "data", "clip_norm": 0.0}
        SelectiveAmnesia(**options).erase(model, job)
        moved.append(float(held.distance().detach()))
    assert 0 < moved[1] < 0.2 * moved[0]


def test_what_is_made_before_the_loop_is_the_originals_and_counts(monkeypatch):
    model, job, seen = tiny("ddpm"), job_of("ddpm"), []
    original = model.hash

    def slow(made):
        def wrapped(*inputs):
            seen.append((model.hash, model.network.training))
            time.sleep(0.5)
            return made(*inputs)

        return wrapped

    monkeypatch.setattr(selective_amnesia, "diagonal_fisher", slow(diagonal_fisher))
    monkeypatch.setattr(SelectiveAmnesia, "_replayed", slow(SelectiveAmnesia._replayed))
    outcome = SelectiveAmnesia(**SMALL).erase(model, job)
    assert seen == [(original, False)] * 2
    assert outcome.seconds - sum(record["seconds"] for record in outcome.records) >= 1


def test_text_models_learn_the_anchors_images_under_the_concept():
    model, job = tiny("sd1"), job_of("sd1")
    method = SelectiveAmnesia(**SMALL)
    shown = method._surrogates(model, job.task, draws_of(job, _Consolidation(method, model, job)))
    known = {
        tuple(sample.flatten().tolist()): int(label)
        for sample, label in zip(job.retain.samples(np.arange(len(job.retain))), job.retain.labels, strict=True)
    }
    anchors = [known[tuple(sample.flatten().tolist())] for sample in shown.images]
    assert anchors == [{0: 2, 1: 3}[label] for label in shown.labels.tolist()]
    assert set(anchors) == {2, 3}


def test_what_has_no_images_of_its_anchor_is_told_and_takes_all(monkeypatch):
    told = []
    monkeypatch.setattr(selective_amnesia, "log_user", told.append)
    model = tiny("sd1")
    job = job_of("sd1")
    few = Job(job.task, job.forget, job.retain.of_classes((3, 4)))
    held = _Consolidation(SelectiveAmnesia(**SMALL), model, few)
    assert len(held.places[0]) == len(few.retain) > len(held.places[1])
    assert len(told) == 1 and "no retain image shows the anchor of 'a cat'" in told[0]


def test_replayed_images_are_the_originals_and_of_what_is_kept():
    model, job = tiny("ddpm"), job_of("ddpm")
    method = SelectiveAmnesia(**SMALL)
    first, second = (method._replayed(model, job) for _ in range(2))
    assert len(first) == 16 and set(first.labels.tolist()) <= set(job.task.retain)
    assert np.array_equal(first.images, second.images)
    other = SelectiveAmnesia(**{**SMALL, "batch_size": 5})._replayed(model, job)
    assert np.abs(other.images.astype(int) - first.images).max() <= 1  # whatever batch each is made in


@pytest.mark.parametrize("kind", ["classifier", "ddpm-unconditional"])
def test_what_cannot_be_asked_is_refused(kind):
    with pytest.raises(NotApplicableError, match="is not one"):
        SelectiveAmnesia().check_model(tiny(kind))


def test_other_refusals():
    names = ("a", "b")
    for bad in ({"gamma": -1.0}, {"penalty": float("nan")}, {"fisher_samples": 0}, {"surrogate": "anchor"}):
        with pytest.raises(OptionError):
            SelectiveAmnesia(**bad).check(Task(names, (0,)))
    with pytest.raises(NotApplicableError, match="single samples"):
        SelectiveAmnesia().check(Task(names, (), samples=True))
    for bad in ({"surrogate": "noise"}, {"replay": "generated"}):
        with pytest.raises(NotApplicableError):
            SelectiveAmnesia(**bad).check_model(tiny("sd1"))
