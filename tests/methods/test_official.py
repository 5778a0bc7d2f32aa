"""`--preset official` against a straightforward implementation of the official algorithm, step for step."""

import copy

import torch

from benchmarks.official import OfficialSalUn, StepDraws, official_mask
from erasure.core import config, registry
from erasure.core.rng import derive_seed
from erasure.data import Batches
from erasure.methods.base import Job
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, saliency_scores
from tests.conftest import tiny

STEPS, SIZE, SEED = 5, 16, 2


def _draws(model, forget, retain, index):
    """The same draws as the run's, as plain tensors."""
    generator = torch.Generator().manual_seed(derive_seed(SEED, "draws", index))
    forgotten = model.examples(forget.at(index), generator, condition_drop=True)
    pseudo = model.with_dropped_condition((forget.at(index).labels + 1) % 10, generator)
    kept = model.examples(retain.at(index), generator, condition_drop=True)
    return StepDraws(*forgotten.inputs, pseudo, kept.inputs[0], kept.target, kept.inputs[1], kept.inputs[2])


def test_the_official_preset_follows_the_official_code(digits, task):
    kind = registry.load("methods", "salun")
    preset = {key: value for key, value in kind.presets["official"].items() if key != "saliency"}
    method = config.build(kind, "salun", preset, {"steps": STEPS, "batch_size": SIZE, "learning_rate": 1e-3})
    model = tiny("ddpm")
    forget, retain = digits.of_classes(task.forget), digits.of_classes(task.retain)
    scores = saliency_scores(model, forget, SaliencyConfig(**kind.presets["official"]["saliency"]), seed=SEED)
    mask = Mask.top(scores, 0.5)
    theirs = official_mask(scores, 0.5)
    assert all(mask.tensors[name].equal(theirs[name].bool()) for name in theirs)

    reference = OfficialSalUn(copy.deepcopy(model.network).train(), theirs, learning_rate=1e-3, alpha=1e-3)
    batches = [Batches(part, SIZE, derive_seed(SEED, name)) for part, name in ((forget, "forget"), (retain, "retain"))]
    losses = [reference.step(_draws(model, *batches, index)) for index in range(STEPS)]
    outcome = method.erase(model, Job(task, forget, retain, mask, SEED))
    for record, loss in zip(outcome.records, losses, strict=True):
        assert abs(record["loss"] - loss) < 1e-4 * abs(loss)
    for (name, ours), official in zip(model.network.named_parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(ours, official, rtol=1e-3, atol=2e-5, msg=name)
