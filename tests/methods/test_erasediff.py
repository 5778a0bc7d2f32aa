"""EraseDiff: its inner steps leave no trace, and its loss is its formula."""

import pytest
import torch

from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batches
from erasure.methods.base import StepBatches
from erasure.methods.finetuning.erasediff import EraseDiff, _InnerSteps
from erasure.methods.finetuning.finetune import Finetune
from erasure.saliency.mask import Mask
from erasure.training.curvature import WeightSpace
from erasure.training.loop import Step
from tests.conftest import about, state_of, tiny

RATE = 0.05


def batches_of(kind, own=None, size=8, part=0, parts=1, index=0):
    dataset, task = about(kind)
    step = Step(index, torch.Generator().manual_seed(0), part, parts)
    batches = [Batches(dataset.of_classes(group), size, 0) for group in (task.forget, task.retain)]
    return task, StepBatches(step, *batches, own)


def examples_of(kind, model):
    _, batches = batches_of(kind)
    return model.examples(batches.forget_batch, batches.generator)


def half(model):
    return Mask.random(Mask({n: p.detach() for n, p in model.network.named_parameters()}), 0.5, 0)


@pytest.mark.parametrize("kind", ["ddpm", "classifier", "sd1"])
def test_inner_steps_leave_no_trace(kind):
    model = tiny(kind)
    model.network.train()
    examples, before = examples_of(kind, model), state_of(model)
    inner = _InnerSteps(model, WeightSpace(model.network), 2, RATE)
    torch.manual_seed(3)
    chance = torch.get_rng_state()
    first = inner.least(0, examples)
    inner.penalty(0, examples, examples, 0.1)
    assert torch.get_rng_state().equal(chance)
    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.network.parameters())
    assert first < float(model.per_sample_loss(examples).mean().detach())  # they do descend


def test_inner_steps_are_gradient_descent_on_the_free_weights():
    model, twin = tiny("ddpm"), tiny("ddpm")
    examples, mask = examples_of("ddpm", model), half(model)
    space = WeightSpace(model.network, mask, lambda name: "conv_in" not in name)
    found = _InnerSteps(model, space, 2, RATE).least(0, examples)
    for _ in range(2):
        twin.network.zero_grad()
        twin.per_sample_loss(examples).mean().backward()
        with torch.no_grad():
            for name, parameter in twin.network.named_parameters():
                free = mask.tensors[name] & ("conv_in" not in name)
                parameter.sub_(torch.where(free, RATE * parameter.grad, 0.0))
    assert found == pytest.approx(float(twin.per_sample_loss(examples).mean().detach()), rel=1e-5)


def test_they_are_put_back_when_something_breaks():
    model = tiny("ddpm")
    before, inner = model.hash, _InnerSteps(model, WeightSpace(model.network), 1, RATE)
    examples = examples_of("ddpm", model)
    with pytest.raises(RuntimeError):
        inner.least(0, examples._replace(target=examples.target[..., :3]))
    assert model.hash == before


@pytest.mark.parametrize("options", [{}, {"substitute": "next"}, {"substitute": "next", "teacher": "current"}])
def test_the_loss_is_its_formula(options):
    model, teacher = tiny("ddpm"), tiny("ddpm", seed=5)
    task, batches = batches_of("ddpm", _InnerSteps(model, WeightSpace(model.network), 2, RATE))
    method = EraseDiff(penalty=0.3, **options)
    found = method.loss(model, teacher, task, batches)
    again = batches_of("ddpm")[1]
    retain = model.examples(again.retain_batch, again.generator, condition_drop=True)
    forget = model.examples(again.forget_batch, again.generator)
    noisy, timesteps, labels = forget.inputs
    if options:
        source = teacher if method.teacher == "original" else model
        target = source.predict(noisy, timesteps, torch.full_like(labels, 4)).detach()
    else:
        target = torch.rand(noisy.shape, generator=again.generator)
        noisy = model.add_noise(again.forget_batch.images, target, timesteps)
    first = (model.predict(noisy, timesteps, labels) - target).square().mean()
    best = _InnerSteps(model, WeightSpace(model.network), 2, RATE).least(
        0, forget._replace(inputs=(noisy, timesteps, labels), target=target)
    )
    assert float(found["forget"]) == pytest.approx(float(first), rel=1e-5)
    assert float(found["gap"]) == pytest.approx(float(first) - best, rel=1e-4)
    expected = model.per_sample_loss(retain).mean() + 0.3 * (first - best)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-5)


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.network.parameters()))])


def test_without_a_penalty_it_is_fine_tuning_and_the_goal_moves_nothing():
    model = tiny("ddpm")
    found = []
    for method in (EraseDiff(penalty=0.0), Finetune(), EraseDiff(), EraseDiff(inner_steps=0)):
        steps = method.inner_steps if isinstance(method, EraseDiff) else 0
        task, batches = batches_of("ddpm", _InnerSteps(model, WeightSpace(model.network), steps, RATE))
        found.append(gradient(method.loss(model, model, task, batches)["loss"], model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert found[2].equal(found[3]) and not found[2].equal(found[0])


def test_the_adaptive_weight_is_that_of_both_gradients():
    model = tiny("ddpm")
    task, batches = batches_of("ddpm", _InnerSteps(model, WeightSpace(model.network), 0, RATE))
    method = EraseDiff(weighting="adaptive", fall_rate=2.0, substitute="next", inner_steps=0)
    told = method.loss(model, model, task, batches)
    again = batches_of("ddpm")[1]
    retain = model.examples(again.retain_batch, again.generator, condition_drop=True)
    forget = method._with_substitute(model, model, task, again)
    first, second = (gradient(model.per_sample_loss(part).mean(), model).double() for part in (forget, retain))
    expected = max(0.0, 2.0 - float(first @ second / (first @ first)))
    assert expected > 0
    assert float(told["penalty"]) == pytest.approx(expected, rel=1e-4)


def test_parts_of_a_batch_share_one_goal():
    model = tiny("ddpm")
    inner = _InnerSteps(model, WeightSpace(model.network), 2, RATE)
    method, losses = EraseDiff(substitute="next"), []
    for part in range(2):
        task, batches = batches_of("ddpm", inner, part=part, parts=2)
        losses.append(method.loss(model, model, task, batches))
    task, batches = batches_of("ddpm", inner, index=0)
    whole = method.loss(model, model, task, batches)
    assert float(losses[0]["loss"] + losses[1]["loss"]) / 2 == pytest.approx(float(whole["loss"]), rel=1e-5)
    task, batches = batches_of("ddpm", inner, index=1)
    other = method.loss(model, model, task, batches)
    assert inner._known["least"] == (1, pytest.approx(float(other["forget"] - other["gap"]), rel=1e-5))


def test_refusals():
    task = about("ddpm")[1]
    for bad in ({"penalty": -1.0}, {"inner_steps": -1}, {"substitute": "3"}, {"substitute": "anchor"}):
        with pytest.raises(OptionError):
            EraseDiff(**bad).check(task)
    with pytest.raises(NotApplicableError, match="predicts no noise"):
        EraseDiff().check_model(tiny("classifier"))
    EraseDiff(substitute="random").check_model(tiny("classifier"))
