"""Invariants over every method and every family, then what each method's mathematics says."""

import functools
from dataclasses import asdict, fields

import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batch, Batches
from erasure.data.task import Task
from erasure.methods.base import GradientMethod, Job, StepBatches
from erasure.methods.relabeling.base import other_labels
from erasure.methods.second_order.base import OneStep
from erasure.models import load_model
from erasure.saliency.mask import Mask
from erasure.training.loop import Step
from tests.conftest import KINDS, PIPELINES, about, state_of, tiny

METHODS = registry.names("methods")
GRADIENT = [name for name in METHODS if issubclass(registry.load("methods", name), GradientMethod)]
ONE_STEP = [name for name in METHODS if issubclass(registry.load("methods", name), OneStep)]
SMALL = {  # what a method needs to run on a tiny model in no time
    "esd": {"batch_size": 4, "sampling_steps": 2},
    "lora_esd": {"batch_size": 4, "sampling_steps": 2},
    "puma": {"criteria": "all", "damping": 1000.0},
    "advunlearn": {"batch_size": 2, "retain_prompts": 1, "sampling_steps": 2, "warmup": 1, "attack_steps": 1},
    "selective_amnesia": {"fisher_samples": 6, "num_replay_images": 16},
    "mace": {"batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 1},
}
EVERYWHERE = ("salun", "random_label", "finetune", "uce", "esd", "mace", "sld")  # tested on every kind of model
MASKED = [name for name in GRADIENT if not registry.load("methods", name).no_mask]


@functools.cache
def example(kind):
    return tiny(kind)


def suits(name, kind):
    """Whether a method does anything on a family; of the slow ones, on one of each sort."""
    if name in ONE_STEP and kind not in ("classifier", "ddpm"):
        return False
    if kind in ("sd2_v", "ddpm-unconditional", "sdxl") and name not in EVERYWHERE:
        return False  # other kinds of families that are there
    if name == "retrain" and kind in PIPELINES:
        return False
    try:
        method(name).check(about(kind)[1])
        method(name).check_model(example(kind))
    except NotApplicableError:
        return False
    return True


def method(name, **options):
    kind = registry.load("methods", name)
    small = {"steps": 3}
    if name in GRADIENT:
        small |= {"batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 1}
    if name in ONE_STEP:
        small |= {"samples": 8, "batch_size": 16, "damping": 10.0, "tolerance": 0.0}
    small |= SMALL.get(name, {})
    has = {entry.name for entry in fields(kind)}
    return kind(**{key: value for key, value in {**small, **options}.items() if key in has})


def hash_of(model):
    """Of all that a method may move."""
    return model.hash, getattr(model, "parts_hash", None)


PAIRS = [(name, kind) for name in METHODS for kind in KINDS if suits(name, kind)]
STEPPED = [pair for pair in PAIRS if "steps" in {entry.name for entry in fields(registry.load("methods", pair[0]))}]
MOVING = [pair for pair in PAIRS if registry.load("methods", pair[0]).moves != "nothing"]
OPTIMISERS = [("adam", 0.0), ("adamw", 0.1), ("sgd", 0.1)]


def data_of(name, kind):
    dataset, task = about(kind)
    return (dataset.first(60) if name in ONE_STEP and kind not in PIPELINES else dataset), task


def job(dataset, task, **changes):
    return Job(task, dataset.of_classes(task.forget), dataset.of_classes(task.retain), **changes)


def random_mask(model, density=0.5):
    return Mask.random(Mask({n: p.detach() for n, p in model.network.named_parameters()}), density, 0)


@pytest.mark.parametrize(("name", "kind"), MOVING)
def test_it_moves_the_weights_and_the_same_seed_gives_the_same_bits(name, kind):
    hashes = []
    for seed in (0, 0, 1):
        model = tiny(kind)
        outcome = method(name).erase(model, job(*data_of(name, kind), seed=seed))
        if (name, kind) in STEPPED:
            assert (1 if name in ONE_STEP else 3) <= len(outcome.records) <= 3
        assert outcome.seconds > 0
        assert not model.network.training
        assert all(p.requires_grad and p.grad is None for p in model.network.parameters())
        hashes.append(hash_of(model))
    assert hashes[0] == hashes[1]
    assert (hashes[1] != hashes[2]) == ((name, kind) in STEPPED)  # a closed form draws nothing
    assert hash_of(tiny(kind)) not in hashes


@pytest.mark.parametrize(
    ("name", "kind", "optimizer", "decay"),
    [(*pair, *OPTIMISERS[0]) for pair in PAIRS if pair[0] in MASKED]
    + [("salun", kind, *settings) for kind in KINDS for settings in OPTIMISERS[1:]],  # the loop is one for all methods
)
def test_outside_the_mask_every_bit_is_kept(name, kind, optimizer, decay):
    model, chosen = tiny(kind), method(name, optimizer=optimizer, weight_decay=decay)
    part = chosen.part_of(model)
    before, mask = state_of(part), random_mask(part)
    chosen.erase(model, job(*about(kind), mask=mask))
    moved = 0
    for tensor_name, parameter in part.network.named_parameters():
        same = parameter.detach().view(torch.int32) == before[tensor_name].view(torch.int32)
        assert same[~mask.tensors[tensor_name]].all(), tensor_name
        moved += int((~same).sum())
    assert moved > 0


@pytest.mark.parametrize(("name", "kind"), STEPPED)
def test_killed_and_resumed_equals_uninterrupted(name, kind, tmp_path):
    def run(folder, dies=None):
        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            return {}

        model = tiny(kind)
        mask = random_mask(method(name).part_of(model)) if name in MASKED else None
        model.info.get("recipe", {})["checkpoint_every"] = 1
        folder.mkdir(exist_ok=True)
        method(name).erase(model, job(*data_of(name, kind), folder=folder, fingerprint="f", on_step=on_step, mask=mask))
        return hash_of(model)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies=2)
    assert (tmp_path / "killed" / "checkpoint.safetensors").is_file()
    assert run(tmp_path / "killed") == whole


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_saved_and_loaded_predicts_the_same(name, kind, tmp_path):
    model = tiny(kind)
    dataset, task = data_of(name, kind)
    method(name).erase(model, job(dataset, task))
    model.save(tmp_path / "m")
    again = load_model(tmp_path / "m")
    if kind in PIPELINES:
        again.set_prompts(task.class_names)
    batch = Batches(dataset, 8, 0).at(0)
    with torch.no_grad():
        answers = [m.prediction(m.examples(batch, torch.Generator().manual_seed(0)).inputs) for m in (model, again)]
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize(("name", "kind"), [pair for pair in STEPPED if pair[0] != "retrain"])
def test_zero_steps_change_nothing(name, kind):
    model = tiny(kind)
    method(name, steps=0).erase(model, job(*data_of(name, kind)))
    assert hash_of(model) == hash_of(tiny(kind))


@pytest.mark.parametrize("name", [name for name in MASKED if (name, "ddpm") in PAIRS])
def test_accumulated_parts_equal_the_whole_batch(name, digits, task):
    states = []
    for accumulate in (1, 4):
        model = tiny("ddpm")
        method(name, accumulate=accumulate, optimizer="sgd").erase(model, job(digits, task))
        states.append(state_of(model))
    for tensor_name in states[0]:
        torch.testing.assert_close(states[0][tensor_name], states[1][tensor_name], rtol=1e-4, atol=1e-6)


def draws_of(digits, task, size=8, index=0):
    step = Step(index, torch.Generator().manual_seed(0))
    parts = [Batches(digits.of_classes(classes), size, 0) for classes in (task.forget, task.retain)]
    return StepBatches(step, *parts)


def test_salun_is_its_formula(digits, task):
    """L = mean |e(x_t, c) - e_0(x_t, c')|^2 + alpha mean |e(x_t', c_r) - noise|^2, written out by hand."""
    student, teacher = tiny("ddpm"), tiny("ddpm", seed=9)
    losses = method("salun", alpha=0.3, relabel="five").loss(student, teacher, task, draws_of(digits, task))
    again = draws_of(digits, task)
    forget = student.examples(again.forget_batch, again.generator)
    retain = student.examples(again.retain_batch, again.generator, condition_drop=True)
    with torch.no_grad():
        target = teacher.network(*forget.inputs[:2], class_labels=torch.full((8,), 5)).sample
        first = (student.network(*forget.inputs[:2], class_labels=torch.full((8,), 3)).sample - target).square().mean()
        second = (
            (student.network(*retain.inputs[:2], class_labels=retain.inputs[2]).sample - retain.target).square().mean()
        )
    assert float(losses["forget"]) == pytest.approx(float(first), rel=1e-5)
    assert float(losses["retain"]) == pytest.approx(float(second), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(first + 0.3 * second), rel=1e-5)


def test_salun_on_a_classifier_is_cross_entropy_with_the_other_label(classifier, digits, task):
    draws = draws_of(digits, task)
    losses = method("salun", alpha=0.0, relabel="7").loss(classifier, classifier.frozen(), task, draws)
    logits = classifier.network(draws.forget_batch.images).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.full((8,), 7))
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_other_label():
    task = Task(tuple("abcd"), (1, 2))
    labels = torch.tensor([1, 2] * 500)
    generator = torch.Generator().manual_seed(0)
    drawn = other_labels("random", labels, task, generator)
    assert set(drawn.tolist()) == {0, 3} and 400 < int((drawn == 0).sum()) < 600
    assert other_labels("next", torch.tensor([1, 2]), task, generator).tolist() == [3, 3]
    assert other_labels("next", torch.tensor([3]), Task(tuple("abcd"), (3,)), generator).tolist() == [0]
    assert other_labels("a", torch.tensor([1, 2]), task, generator).tolist() == [0, 0]
    with pytest.raises(OptionError):
        other_labels("z", labels, task, generator)
    with pytest.raises(OptionError, match="`relabel` b is itself to be erased"):
        other_labels("b", labels, task, generator)
    with pytest.raises(OptionError, match="`substitute` d is itself already erased"):
        other_labels("d", labels, Task(tuple("abcd"), (1, 2), (3,)), generator, "--substitute")


def test_gradient_ascent_and_finetune_are_their_formulas(ddpm, digits, task):
    with torch.no_grad():
        ascent = method("gradient_ascent", alpha=0.5).loss(ddpm, ddpm, task, draws_of(digits, task))
        alone = method("gradient_ascent").loss(ddpm, ddpm, task, draws_of(digits, task))
        draws = draws_of(digits, task)
        forget = ddpm.per_sample_loss(ddpm.examples(draws.forget_batch, draws.generator)).mean()
        retain = ddpm.per_sample_loss(ddpm.examples(draws.retain_batch, draws.generator, condition_drop=True)).mean()
        assert float(ascent["loss"]) == pytest.approx(float(0.5 * retain - forget), rel=1e-5)
        assert float(alone["loss"]) == pytest.approx(-float(forget), rel=1e-5)
        tuned = method("finetune").loss(ddpm, ddpm, task, draws_of(digits, task))
        draws = draws_of(digits, task)
        assert float(tuned["loss"]) == pytest.approx(float(ddpm.loss(draws.retain_batch, draws.generator)), rel=1e-5)


def test_retrain_never_sees_what_it_forgets(digits, task):
    """Two forget sets with other pixels give the same retrained weights."""
    models = []
    for shift in (0, 100):
        model = tiny("classifier")
        changed = job(digits, task)
        object.__setattr__(changed.forget, "images", changed.forget.images + shift)
        method("retrain").erase(model, changed)
        models.append(model.hash)
    assert models[0] == models[1]
    del model.info["recipe"]
    with pytest.raises(NotApplicableError, match="records no training recipe"):
        method("retrain").erase(model, job(digits, task))


def test_frozen_statistics_stay(classifier, digits, task):
    before = state_of(classifier)
    method("salun", freeze_statistics=True).erase(classifier, job(digits, task))
    after = classifier.network.state_dict()
    assert all(after[name].equal(before[name]) for name in before if "running" in name)
    method("salun").erase(classifier, job(digits, task))
    assert not all(after[name].equal(before[name]) for name in before if "running_mean" in name)


def test_epochs_become_steps(digits):
    assert method("salun", epochs=2.0, batch_size=100).training_config(1442).steps == 29
    assert method("salun", steps=7).training_config(1442).steps == 7
    for bad in ({"batch_size": 0}, {"batch_size": 8, "accumulate": 3}):
        with pytest.raises(OptionError):
            method("salun", **bad).erase(tiny("ddpm"), job(digits, Task.of_classes("3", digits.class_names)))


@pytest.mark.parametrize("name", METHODS)
def test_options_are_plain_data_and_presets_name_fields(name):
    kind = registry.load("methods", name)
    fields = set(asdict(kind()))
    for values in [*kind.presets.values(), *kind.defaults_of.values()]:
        assert set(values) - {"saliency"} <= fields


def test_losses_of_the_base_class_are_the_methods_parts(ddpm, digits):
    batch = Batches(digits, 6, 0).at(0)
    anchor = Batch(batch.images, torch.zeros(6, dtype=torch.int64))
    teacher = tiny("ddpm", seed=4)
    with torch.no_grad():
        value = ddpm.relabeled_loss(batch, anchor, teacher, torch.Generator().manual_seed(1))
        examples = ddpm.examples(batch, torch.Generator().manual_seed(1))
        expected = (
            (ddpm.predict(*examples.inputs) - teacher.predict(*examples.inputs[:2], anchor.labels)).square().mean()
        )
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
