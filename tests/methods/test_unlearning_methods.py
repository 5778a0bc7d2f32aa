"""What the approximate unlearning methods compute, and what holds for each of them on small networks."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from erasure.core import registry
from erasure.core.errors import DivergedError, NotApplicableError, OptionError, RunError
from erasure.data import Batch, Batches, load_dataset
from erasure.data.task import Task
from erasure.methods.base import GradientMethod, Job, StepBatches
from erasure.methods.relabeling.salun_soft import shrunk
from erasure.methods.second_order.base import View
from erasure.methods.second_order.puma import reweighted
from erasure.models import classifier_nets as networks
from erasure.models.classifier import Classifier
from erasure.saliency.mask import Mask
from erasure.training.loop import Step
from tests.conftest import about, state_of, tiny
from tests.models.test_classifier_nets import SMALL
from tests.support.exact import flat, gradients_of, part, regression, trained

DECAY = 0.1
METHODS = ("boundary_expand", "boundary_shrink", "influence", "l1_sparse", "puma", "salun_soft")
ONE_STEP = ("influence", "puma")
OTHERS = ("finetune", "gradient_ascent", "random_label", "salun")  # tested on more than classifiers elsewhere
NETWORKS = ("resnet-digits", "softmax-digits", "vgg16", "swin_t")


def method(name, **options):
    kind = registry.load("methods", name)
    small = {"steps": 3, "batch_size": 8, "checkpoint_every": 1, "learning_rate": 1e-2}
    if not issubclass(kind, GradientMethod):
        small = {"steps": 3, "batch_size": 64, "samples": 20, "damping": 10.0, "tolerance": 0.0}
    if name == "puma":
        small["criteria"] = "all"
    return kind(**{**small, **options})


def network(arch):
    digits = load_dataset("digits")
    info = {"channels": 1, "image_size": 8, "class_names": list(digits.class_names)}
    narrow = {**networks.ARCHITECTURES[arch], **SMALL.get(arch, {})}
    with patch.dict(networks.ARCHITECTURES, {arch: narrow}):
        return Classifier.new(arch, info, 0)


def job(**changes):
    dataset, task = about("classifier")
    few = dataset.first(60)
    return Job(task, few.of_classes(task.forget), few.of_classes(task.retain), **changes)


def half(model):
    return Mask.random(Mask({n: p.detach() for n, p in model.network.named_parameters()}), 0.5, 0)


def draws(forget, retain, index=0, size=8):
    step = Step(index, torch.Generator().manual_seed(0), steps=20)
    return StepBatches(step, Batches(forget, size, 0), Batches(retain, size, 0))


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("name", (*METHODS, *OTHERS))
def test_outside_the_mask_every_bit_is_kept_and_seeds_reproduce(name, arch):
    hashes = []
    for seed in (0, 0, 1):
        model = network(arch)
        before, mask = state_of(model), half(model)
        outcome = method(name).erase(model, job(mask=mask, seed=seed))
        assert 0 < len(outcome.records) <= 3 and outcome.seconds > 0
        assert not model.network.training and all(p.requires_grad for p in model.network.parameters())
        moved = 0
        for tensor_name, parameter in model.network.named_parameters():
            same = parameter.detach().view(torch.int32) == before[tensor_name].view(torch.int32)
            assert same[~mask.tensors[tensor_name]].all(), tensor_name
            moved += int((~same).sum())
        assert moved > 0
        hashes.append(model.hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_equals_uninterrupted(name, masked, tmp_path):
    def run(folder, dies=None):
        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            return {}

        model = network("resnet-digits")
        folder.mkdir(exist_ok=True)
        given = job(folder=folder, fingerprint="f", on_step=on_step, mask=half(model) if masked else None)
        records = method(name).erase(model, given).records
        return model.hash, [r["step"] for r in records]

    whole = run(tmp_path / "whole")
    assert whole[1] == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies=2)
    assert (tmp_path / "killed" / "checkpoint.safetensors").is_file()
    assert run(tmp_path / "killed") == whole
    if name in ONE_STEP:
        with pytest.raises(RunError, match="other settings"):
            method(name).erase(network("resnet-digits"), job(folder=tmp_path / "killed", fingerprint="g"))


@pytest.mark.parametrize("name", METHODS)
def test_zero_steps_change_nothing(name):
    model = network("resnet-digits")
    method(name, steps=0).erase(model, job())
    assert model.hash == network("resnet-digits").hash


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("boundary")])
@pytest.mark.parametrize("kind", ["ddpm", "sd1"])
def test_they_run_on_diffusion_models(name, kind):
    model, (dataset, task) = tiny(kind), about(kind)
    few = dataset.first(16) if kind == "ddpm" else dataset
    options = {"samples": 4, "curvature": "woodfisher"} if name in ONE_STEP else {}
    given = Job(task, few.of_classes(task.forget), few.of_classes(task.retain))
    assert len(method(name, steps=2, **options).erase(model, given).records) == 2
    assert model.hash != tiny(kind).hash


@pytest.mark.parametrize("name", ["boundary_expand", "boundary_shrink"])
def test_boundaries_are_between_classes(name):
    with pytest.raises(NotApplicableError, match="ddpm"):
        method(name).check_model(tiny("ddpm"))


def removal(count):
    """A regression at its minimum, the job to forget its first `count` samples, and the minimum without them."""
    digits = part(load_dataset("digits"), np.arange(200))
    forget, retain = part(digits, np.arange(count)), part(digits, np.arange(count, 200))
    names = load_dataset("digits").class_names
    given = Job(Task(names, (0,)), forget, retain)
    return trained(regression(), digits, DECAY), given, trained(regression(), retain, DECAY)


EXACTLY = {"curvature": "hessian", "samples": 1000, "damping": DECAY, "steps": 3000, "tolerance": 1e-7}


def test_influence_is_the_newton_step_and_comes_close_to_retraining():
    model, given, retrained = removal(1)
    start = flat(model)
    gradients, hessian = gradients_of(model, given.retain)
    slope = gradients.mean(0) + DECAY * start
    newton = torch.linalg.solve(hessian + DECAY * torch.eye(650, dtype=torch.float64), -slope)
    method("influence", **EXACTLY).erase(model, given)
    moved, wanted = flat(model) - start, flat(retrained) - start
    torch.testing.assert_close(moved, newton, rtol=1e-4, atol=1e-8)
    assert float((moved - wanted).norm() / wanted.norm()) < 0.05


def test_puma_is_its_formula_with_the_exact_hessian():
    model, given, _ = removal(20)
    start = flat(model)
    forget, _ = gradients_of(model, given.forget)
    retain, hessian = gradients_of(model, given.retain)
    inverse = torch.linalg.inv(hessian + DECAY * torch.eye(650, dtype=torch.float64))
    means = [retain[torch.from_numpy(given.retain.labels) == label].mean(0) for label in range(10)]
    rows = torch.stack([retain @ (inverse @ mean) for mean in means])
    totals = torch.stack([(forget @ (inverse @ mean)).sum() for mean in means])
    harmed = totals > 0
    assert 0 < int(harmed.sum()) < 10
    rows, totals = rows[harmed], totals[harmed]
    weights = rows.T @ torch.linalg.solve(rows @ rows.T + 0.1 * torch.eye(len(rows), dtype=torch.float64), totals)
    expected = inverse @ (forget.sum(0) - (weights[:, None] * retain).sum(0)) / 200
    method("puma", criteria="classes", omega=0.1, step_length="2", **EXACTLY).erase(model, given)
    torch.testing.assert_close(flat(model) - start, 2 * expected, rtol=1e-4, atol=1e-8)


def test_puma_keeps_what_removal_would_harm():
    """To first order the criteria stay; without reweighting they rise."""
    changes = {}
    for omega in (1e-9, 1e9):
        model, given, _ = removal(20)
        puma = method("puma", validation="digits", criteria="all", omega=omega, step_length="0.1", **EXACTLY)
        test = View(puma, model, given).losses(load_dataset("digits", "test"), "criterion")
        before = float(test.values().mean())
        puma.erase(model, given)
        changes[omega] = float(test.values().mean()) - before
    assert changes[1e9] > 0 and abs(changes[1e-9]) < 0.2 * changes[1e9]


def test_reweighting_leaves_criteria_alone_that_removal_improves():
    rows = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert reweighted(rows, torch.tensor([-1.0, 0.0]), 0.1).tolist() == [0, 0]
    one = reweighted(rows, torch.tensor([2.0, -1.0]), 0.5)
    assert one.tolist() == pytest.approx([2 / 5.5, 4 / 5.5])


def test_the_longest_step_that_the_retain_loss_allows():
    def length(eta, max_rise):
        model, given, _ = removal(20)
        outcome = method("influence", step_length=eta, max_rise=max_rise, **{**EXACTLY, "tolerance": 1e-3}).erase(
            model, given
        )
        return outcome.records[-1]["step_length"]

    assert length("0.5", 0.0) == 0.5
    assert length("1,0.5,1000", 0.1) == 1
    assert length("500,1000", 0.0) == 500
    for bad in ("", "a", "0", "1,-2", "inf"):
        with pytest.raises(OptionError, match="`step_length`"):
            method("influence", step_length=bad).check(Task(("a", "b"), (0,)))


def test_a_curvature_that_is_not_positive_ends_the_solve():
    model = network("resnet-digits")
    negative = replace(method("puma", steps=50), curvature="hessian", damping=1e-9)
    before = model.hash
    try:
        outcome = negative.erase(model, job())
        assert len(outcome.records) < 50 and model.hash != before
    except DivergedError as error:
        assert "`damping`" in str(error) and error.step == 0 and model.hash == before


def test_the_l1_penalty_fades_by_epochs():
    sparse = registry.load("methods", "l1_sparse")
    by_epochs = sparse(gamma=1e-3, epochs=4.0, steps=20)
    assert [by_epochs.penalty(step, 20) for step in (0, 4, 5, 10, 19)] == pytest.approx(
        [1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4]
    )
    assert sparse(gamma=1.0, steps=10).penalty(3, 10) == pytest.approx(0.7)
    model, given = network("softmax-digits"), job()
    losses = replace(by_epochs, batch_size=8).loss(model, model, given.task, draws(given.forget, given.retain, 5))
    norm = sum(float(p.detach().abs().sum()) for p in model.network.parameters())
    assert float(losses["loss"].detach()) == pytest.approx(float(losses["retain"].detach()) + 7.5e-4 * norm, rel=1e-5)


def test_soft_threshold_holds_the_smallest_changes():
    change = torch.tensor([0.5, -0.1, 0.3, -0.4, 0.2])
    held, threshold = shrunk(change, 2)
    torch.testing.assert_close(held, torch.tensor([0.3, 0.0, 0.1, -0.2, 0.0]))
    assert threshold == pytest.approx(0.2)
    assert shrunk(change, 0)[0] is change


@pytest.mark.parametrize("masked", [False, True])
def test_salun_soft_holds_k_weights_after_every_step(masked):
    model = regression()
    start, counts = flat(model), []
    mask = half(model) if masked else None
    size = 325 if masked else 650

    def on_step(done):
        counts.append(int((flat(model) == start).sum()) - (650 - size))
        return {}

    given = job(mask=mask, on_step=on_step)
    noise = np.random.default_rng(0)  # a pixel that is always empty would tie the changes of ten weights
    for dataset in (given.forget, given.retain):
        object.__setattr__(dataset, "images", noise.integers(0, 256, dataset.images.shape, dtype=np.uint8))
    outcome = method("salun_soft", optimizer="sgd", steps=4, held=0.8).erase(model, given)
    expected = [int(0.8 * size * (4 - done) / 4) for done in (1, 2, 3, 4)]
    assert [record["held"] for record in outcome.records] == counts == expected


def test_boundary_shrink_takes_the_class_across_one_step():
    digits = load_dataset("digits")
    model = network("softmax-digits")
    model.network.requires_grad_(False)
    batch = Batches(digits, 32, 0).at(0)
    shrink = method("boundary_shrink", bound=0.4)
    found = shrink.nearest(model, batch, torch.Generator())
    weight, bias = model.network.classifier.weight, model.network.classifier.bias
    chances = (batch.images.flatten(1) @ weight.T + bias).softmax(1)
    slope = (chances - torch.nn.functional.one_hot(batch.labels, 10)) @ weight
    moved = (batch.images.flatten(1) + 0.8 * slope.sign()).clamp(-1, 1)
    assert found.equal((moved @ weight.T + bias).argmax(1))
    same = Batch(batch.images, found)
    assert not found.equal(batch.labels) and same.labels is found


def test_boundary_shrink_skips_samples_without_a_nearer_class():
    model, given = network("softmax-digits"), job()
    with torch.no_grad():
        model.network.classifier.weight.zero_()
        model.network.classifier.bias.copy_(100.0 * torch.nn.functional.one_hot(torch.tensor(3), 10))
    losses = method("boundary_shrink").loss(model, model.frozen(), given.task, draws(given.forget, given.retain))
    assert losses["wrong"].item() == 0 and losses["loss"].item() == 0
    with pytest.raises(OptionError, match="`share_teacher`"):
        method("boundary_shrink", share_teacher=True).check(given.task)


def test_boundary_expand_trains_one_class_more_and_drops_it():
    model, given, seen = network("resnet-digits"), job(), []
    shapes = {name: tensor.shape for name, tensor in state_of(model).items()}
    wide = registry.load("methods", "boundary_expand")
    expand = method("boundary_expand", steps=30, learning_rate=0.05)
    images = load_dataset("digits").samples(np.arange(16))
    layer = model.head

    def on_step(done):
        model.network.eval()
        with torch.no_grad():
            seen.append(model.network(images).logits)
        model.network.train()
        return {}

    expand.erase(model, replace(given, on_step=on_step))
    assert isinstance(expand, wide) and model.head is layer
    assert {name: tensor.shape for name, tensor in state_of(model).items()} == shapes
    with torch.no_grad():
        logits = model.network(images).logits
    assert seen[-1].shape == (16, 11) and logits.shape == (16, 10)
    assert logits.equal(seen[-1][:, :10])
    forget = given.forget.samples(np.arange(len(given.forget)))
    assert seen[-1][:, 10].mean() > seen[0][:, 10].mean() and len(forget)
