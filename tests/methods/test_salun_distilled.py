"""salun_distilled: at the original nothing is kept from moving, and what is kept is the original's answer."""

import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.data import Batches
from erasure.methods.base import StepBatches
from erasure.training.loop import Step
from tests.conftest import about, tiny


def losses(kind, model, frozen, **options):
    dataset, task = about(kind)
    forget, retain = (Batches(dataset.of_classes(part), 8, 0) for part in (task.forget, task.retain))
    draws = StepBatches(Step(0, torch.Generator().manual_seed(0)), forget, retain)
    rule = "anchor" if task.anchors else "next"
    return registry.load("methods", "salun_distilled")(relabel=rule, **options).loss(model, frozen, task, draws)


@pytest.mark.parametrize("kind", ["ddpm", "sd1"])
def test_the_retain_loss_is_zero_at_the_original_and_the_change_of_its_answers_elsewhere(kind):
    model = tiny(kind)
    model.network.eval()
    frozen = model.frozen()
    assert losses(kind, model, frozen)["retain"].item() < 1e-9  # a batch of both rounds otherwise
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05)
    found = losses(kind, model, frozen)
    dataset, task = about(kind)
    assert found["retain"] > 0
    assert found["loss"].item() == pytest.approx((found["forget"] + 3 * found["retain"]).item())
    batch = Batches(dataset.of_classes(task.retain), 8, 0).at(0)
    examples = model.examples(batch, torch.Generator().manual_seed(1))
    method = registry.load("methods", "salun_distilled")()
    kept = method.retain_targets(examples, frozen)
    assert kept.target.equal(frozen.prediction(examples.inputs)) and kept.inputs == examples.inputs
    assert not kept.target.requires_grad


def test_a_classifier_is_refused():
    method = registry.load("methods", "salun_distilled")()
    with pytest.raises(NotApplicableError, match="a classifier's labels have none: use salun"):
        method.check_model(tiny("classifier"))
