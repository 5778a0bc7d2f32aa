"""Concept ablation: its loss, whose images it learns from, and what it moves."""

from dataclasses import replace

import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batches
from erasure.data.task import Task
from erasure.methods.base import Job, StepBatches
from erasure.models import load_model
from erasure.training.loop import Step
from tests.conftest import CATS, PROMPTS, about, state_of, tiny
from tests.support import tiny_flow

TEXT = {"relabel": "anchor", "keys_and_values": True}


def method(**options):
    small = {"steps": 2, "learning_rate": 1e-3, "num_anchor_images": 3, "anchor_inference_steps": 2}
    return registry.load("methods", "concept_ablation")(**{**small, **options})


def draws(kind, task, part=0, parts=1, size=6):
    dataset = about(kind)[0]
    anchors = task.anchors or task.retain
    return StepBatches(
        Step(0, torch.Generator().manual_seed(0), part, parts),
        Batches(dataset.of_classes(task.forget), size, 0),
        Batches(dataset.of_classes(anchors), size, 0),
    )


def job(kind, task=None, **changes):
    dataset, own = about(kind)
    task = task or own
    return Job(task, dataset.of_classes(task.forget), dataset.of_classes(task.retain), **changes)


@pytest.mark.parametrize("teacher", ["current", "original"])
def test_the_loss_is_its_formula(teacher):
    """|e(x_t, c) - e(x_t, a)|^2 + alpha |e(x_t, a) - noise|^2 on images of the anchors, each under its own concept."""
    student, original = tiny("sd1"), tiny("sd1", seed=5)
    answering = student if teacher == "current" else original
    losses = method(alpha=0.3, teacher=teacher, **TEXT).loss(student, answering, CATS, draws("sd1", CATS))
    again = draws("sd1", CATS)
    batch = again.retain_batch
    assert set(batch.labels.tolist()) == {2, 3}
    torch.rand(6, generator=again.generator, dtype=torch.float64)  # which concept, of the one there is for each anchor
    examples = student.examples(batch, again.generator)
    noisy, timesteps, anchors = examples.inputs
    with torch.no_grad():
        target = answering.predict(noisy, timesteps, anchors)
        forget = (student.predict(noisy, timesteps, anchors - 2) - target).square().mean()
        retain = (student.predict(noisy, timesteps, anchors) - examples.target).square().mean()
    assert losses["forget"].item() == pytest.approx(float(forget), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(float(forget + 0.3 * retain), rel=1e-4)
    noise = method(variant="noise", **TEXT).loss(student, student, CATS, draws("sd1", CATS))
    with torch.no_grad():
        expected = (student.predict(noisy, timesteps, anchors - 2) - examples.target).square().mean()
    assert noise["forget"].item() == pytest.approx(float(expected), rel=1e-4)


def test_a_concept_that_is_its_own_anchor_has_no_loss():
    same = Task(PROMPTS, (2, 3), anchors=(2, 3))
    model = tiny("sd1")
    losses = method(alpha=0.0, **TEXT).loss(model, model, same, draws("sd1", same))
    assert losses["loss"].item() == pytest.approx(0.0, abs=1e-12)
    assert float(method(alpha=0.0, **TEXT).loss(model, model, CATS, draws("sd1", CATS))["loss"]) > 1e-6


@pytest.mark.parametrize("kind", ["sd1", "ddpm"])
def test_parts_of_a_batch_are_the_whole(kind):
    task, options = about(kind)[1], TEXT if kind == "sd1" else {}
    model = tiny(kind)
    whole = method(**options).loss(model, model, task, draws(kind, task))["loss"]
    parts = [method(**options).loss(model, model, task, draws(kind, task, part, 2))["loss"] for part in range(2)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-4)


def test_keys_and_values_alone_move_and_weight_decay_moves_nothing_else():
    model = tiny("sd1")
    before = state_of(model)
    method(**TEXT).erase(model, job("sd1"))
    moved = [key for key, tensor in state_of(model).items() if not tensor.equal(before[key])]
    assert moved and all(key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for key in moved)
    sd3 = load_model(tiny_flow.folder("sd3")).set_prompts(PROMPTS)
    names = [name for name, _ in sd3.network.named_parameters() if method(**TEXT).trains(name)]
    assert names and all("add_k_proj" in name or "add_v_proj" in name for name in names)


def test_anchors_without_images_are_drawn_by_the_original():
    empty = replace(CATS, anchors=(5, 2))  # the empty prompt, and "a dog"
    model = tiny("sd1")
    found = method(**TEXT)._images(model, job("sd1", empty))
    assert sorted(set(found.labels.tolist())) == [2, 5]
    assert int((found.labels == 5).sum()) == 3 and found.moments.shape[1:] == (8, 8, 8)
    again = method(**TEXT)._images(model, job("sd1", empty))
    assert again.moments.equal(found.moments) and found.moments[-3:].std() > 0
    before = model.hash
    method(**TEXT).erase(model, job("sd1", empty))
    assert model.hash != before
    kept = method(**TEXT)._images(model, job("sd1"))
    assert set(kept.labels.tolist()) == {2, 3}


def test_which_concept_an_image_of_an_anchor_stands_for():
    task = Task(tuple("abcd"), (1, 2))
    pairs = method().pairs(task)
    assert sorted(pairs) == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert method(relabel="next").pairs(task) == [(1, 3), (2, 3)]
    drawn = method()._concepts(torch.tensor([0, 3] * 300), task, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2} and 200 < int((drawn == 1).sum()) < 400
    shared = Task(PROMPTS, (0, 1), anchors=(2, 3))
    assert method(**TEXT)._concepts(torch.tensor([3, 2, 2]), shared, torch.Generator()).tolist() == [1, 0, 0]


def test_what_is_refused():
    for kind in ("ddpm-unconditional", "classifier"):
        with pytest.raises(NotApplicableError, match="takes no anchor as its condition"):
            method().check_model(tiny(kind))
    with pytest.raises(NotApplicableError, match="`keys_and_values=False`"):
        method(keys_and_values=True).check_model(tiny("ddpm"))
    with pytest.raises(OptionError, match="needs anchors"):
        method(relabel="anchor").check(about("ddpm")[1])
    with pytest.raises(OptionError, match="not single samples"):
        method().check(Task(("a", "b"), (), samples=True))
    with pytest.raises(OptionError, match="`num_anchor_images`"):
        method(num_anchor_images=0).check(CATS)
