"""Cross-attention maps by hand, and the methods that work on them: Forget-Me-Not and MACE."""

from dataclasses import replace

import pytest
import torch

from erasure.core.errors import DivergedError, NotApplicableError, OptionError
from erasure.data import Batch, Batches
from erasure.data.task import Task
from erasure.methods.base import Job
from erasure.methods.cross_attention.closed_form import matrices_of
from erasure.methods.cross_attention.forget_me_not import ForgetMeNot
from erasure.methods.cross_attention.keys import keys_of
from erasure.methods.cross_attention.mace import MACE, density, fused, refined
from erasure.methods.cross_attention.token_spans import Concepts, marked, subjects, target_of
from erasure.training.attention_maps import AttentionMaps, cross_attentions
from erasure.training.lora_layers import SeveralFactors
from tests.conftest import CATS, about, state_of, tiny

FORGET_ME_NOT = {"steps": 10, "batch_size": 8, "learning_rate": 1e-2}


def job_of(kind="sd1"):
    dataset, task = about(kind)
    return Job(task, dataset.of_classes(task.forget), dataset.of_classes(task.retain))


def examples_of(model, job, count=4):
    return model.examples(Batches(job.forget, count, 0).at(0), torch.Generator().manual_seed(0))


def hooks_of(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl"])
def test_maps_are_the_softmax_of_queries_and_keys(kind):
    model, job = tiny(kind), job_of(kind)
    examples, seen = examples_of(model, job), {}
    processors = dict(model.network.attn_processors)
    layers = cross_attentions(model.network)
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, inputs, given, name=name: seen.update({name: (inputs[0], given["encoder_hidden_states"])}),
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        plain = model.prediction(examples.inputs)
        with AttentionMaps(model.network) as maps:
            assert model.prediction(examples.inputs).equal(plain)
            found = dict(maps.items())
    for handle in handles:
        handle.remove()
    assert set(found) == set(layers) and found
    for name, layer in layers.items():
        hidden, text = seen[name]
        for head in range(layer.heads):
            width = layer.to_q.out_features // layer.heads
            rows = slice(head * width, (head + 1) * width)
            query, key = hidden @ layer.to_q.weight[rows].T, text @ layer.to_k.weight[rows].T
            expected = (query @ key.transpose(1, 2) / width**0.5).softmax(-1)
            torch.testing.assert_close(found[name][:, head], expected, rtol=1e-4, atol=1e-6)
    assert hooks_of(model.network) == 0 and model.network.attn_processors == processors
    assert not dict(maps.items())


def test_squares_and_means_are_sums_of_the_maps():
    model, job = tiny("sd1"), job_of()
    examples = examples_of(model, job)
    words = torch.zeros(4, 77, dtype=torch.bool)
    words[:, 2:4] = True
    region = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    with torch.no_grad(), AttentionMaps(model.network) as maps:
        model.prediction(examples.inputs)
        whole, part, mean = maps.squares(words), maps.squares(words, region), maps.mean(words, (8, 8))
        every = [m[..., 2:4] for _, m in maps.items()]
    expected = sum(m.square().mean(1).sum((1, 2)) for m in every)
    torch.testing.assert_close(whole, expected)
    full = [m for m in every if m.shape[2] == 64]
    assert full and all(m.shape[2] in (1, 4, 16, 64) for m in every)
    inside = 0
    for m in every:
        side = round(m.shape[2] ** 0.5)
        step = 8 // side  # the nearest place to the middle of each
        small = region[:, step // 2 :: step, step // 2 :: step].flatten(1)
        inside = inside + (m.square().sum(-1).mean(1) * small).sum(1)
    torch.testing.assert_close(part, inside)
    assert mean.shape == (4, 8, 8) and float(mean.max()) <= 1
    assert float(mean.sum()) == pytest.approx(
        sum(float(m.sum(-1).mean((1, 2)).sum()) * 64 for m in every) / len(every), rel=1e-4
    )


def test_the_words_of_a_concept_are_those_that_its_anchor_says_otherwise():
    assert target_of([1, 2, 3], [1, 5, 3]) == range(1, 2)
    assert target_of([1, 7, 8, 3], [1, 5, 3]) == range(1, 3)
    assert target_of([1, 2, 3], [1, 3]) == range(1, 2)  # left out
    assert target_of([1, 2, 2], [1, 2]) == range(2, 3)
    assert target_of([1, 2], [1, 5, 2]) == range(0, 2)  # only more words
    assert target_of([1, 2], []) == range(0, 2)
    with pytest.raises(OptionError, match="no word"):
        target_of([], [1])
    model = tiny("sd1")
    spans = subjects(model, CATS)
    tokens = [model.parts["tokenizer"].convert_ids_to_tokens(list(row)) for row in _ids(model)]
    assert "".join(tokens[0][i] for i in spans[0]).replace("</w>", "") == "cat"
    words = marked(spans, model)
    assert words.shape == model.bound.embeddings.shape[:2]
    assert words.sum(1).tolist() == [len(spans[0]), len(spans[1]), 0, 0, 0, 0]


def _ids(model):
    tokenizer = model.parts["tokenizer"]
    return tokenizer(list(model.bound.prompts), padding="max_length", max_length=77, return_tensors="pt").input_ids


def test_forget_me_not_lowers_the_concepts_attention_and_moves_cross_attention_alone():
    model, job = tiny("sd1"), job_of()
    before, words = state_of(model), marked(subjects(model, job.task), model)
    examples = examples_of(model, job, 8)

    def attention():
        with torch.no_grad(), AttentionMaps(model.network) as maps:
            model.prediction(examples.inputs)
            return float(maps.squares(words[examples.inputs[2]]).mean())

    first = attention()
    outcome = ForgetMeNot(**FORGET_ME_NOT).erase(model, job)
    assert attention() < 0.9 * first
    assert outcome.records[0]["loss"] > 0 and hooks_of(model.network) == 0
    moved = {name for name, value in model.network.state_dict().items() if not value.equal(before[name])}
    assert moved and all("attn2" in name.split(".") for name in moved)


def test_nothing_stays_behind_when_something_breaks():
    def on_step(done):
        raise KeyboardInterrupt

    model, job = tiny("sd1"), job_of()
    with pytest.raises(KeyboardInterrupt):
        ForgetMeNot(**FORGET_ME_NOT).erase(model, replace(job, on_step=on_step))
    assert hooks_of(model.network) == 0 and not model.network.training


def test_parts_and_recomputed_activations_give_the_same_steps():
    states = []
    for options in ({}, {"accumulate": 4}, {"gradient_checkpointing": True}):
        model = tiny("sd1")
        ForgetMeNot(**{**FORGET_ME_NOT, "steps": 2}, optimizer="sgd", **options).erase(model, job_of())
        states.append(state_of(model))
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [ForgetMeNot, MACE])
@pytest.mark.parametrize("kind", ["ddpm", "classifier"])
def test_models_without_cross_attention_are_refused(method, kind):
    with pytest.raises(NotApplicableError, match="no cross-attention"):
        method().check_model(tiny(kind))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(objective, at):
    at = at.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(at), at)
    return gradient.abs().max()


def test_the_refinement_solves_its_normal_equations():
    before, after, kept, weights = random(5, 8), random(5, 8, seed=1), random(6, 8, seed=2), random(3, 8, seed=3)
    found = weights @ refined(before, after, kept.T @ kept, 0.7, 0.2)

    def objective(matrix):
        return (
            (before @ matrix.T - after @ weights.T).square().sum()
            + 0.7 * (kept @ (matrix - weights).T).square().sum()
            + 0.2 * (matrix - weights).square().sum()
        )

    assert slope(objective, found) < 1e-8 < slope(objective, weights)


def test_the_fusion_solves_its_normal_equations():
    keys, changes = [random(4, 8, seed=i) for i in range(2)], random(2, 3, 8, seed=5)
    refinement, original, kept = random(3, 8, seed=6), random(3, 8, seed=7), random(6, 8, seed=8)
    grams = torch.stack([k.T @ k for k in keys])
    found = refinement + fused(refinement, changes, grams, original, kept.T @ kept, 0.7, 0.2)

    def objective(matrix):
        own = sum(
            (k @ (matrix - refinement - change).T).square().sum() for k, change in zip(keys, changes, strict=True)
        )
        others = 0.7 * (kept @ (matrix - original).T).square().sum()
        return own + others + 0.2 * (matrix - refinement).square().sum()

    assert slope(objective, found) < 1e-8 < slope(objective, refinement)
    alone = fused(refinement, changes[:1], torch.eye(8, dtype=torch.float64)[None], original, grams[0], 0.0, 0.0)
    torch.testing.assert_close(alone, changes[0])  # one concept over all keys, nothing kept: its own factors


def test_concepts_are_told_apart_by_their_words_and_keys_stand_behind_them():
    model = tiny("sd1")
    task = about("sd1")[1]
    concepts = Concepts.of(model, task)
    assert concepts.chosen[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]  # "cat", and "photo of a cat" for "tree"
    assert not concepts.chosen[2:].any()
    spans, given = subjects(model, task), model.bound.embeddings.double()
    before, after = concepts.pairs
    count = 77 - spans[0].stop
    assert before[:count].equal(given[0, spans[0].stop :]) and len(before) == len(after)
    for label in (0, 1):
        own = given[label, spans[label].start :]
        torch.testing.assert_close(concepts.grams[label], own.T @ own)


def test_prompts_that_differ_from_their_anchors_in_the_same_words_are_one_concept():
    prompts = ("a cat", "a cat on a chair", "a dog", "a dog on a chair", "a tree")
    model = tiny("sd1").set_prompts(prompts)
    concepts = Concepts.of(model, Task(prompts, (0, 1), anchors=(2, 3)))
    assert concepts.chosen.tolist() == [[1.0], [1.0], [0.0], [0.0], [0.0], [0.0]] and len(concepts.grams) == 1


def test_a_sample_sees_the_factors_of_its_own_concept():
    model, job = tiny("sd1"), job_of()
    examples = examples_of(model, job, 2)
    name, module = next((n, m) for n, m in model.network.named_modules() if n.endswith("attn2.to_k"))
    with torch.no_grad(), SeveralFactors({name: module}, 2, 1, torch.Generator().manual_seed(0)) as factors:
        plain = model.prediction(examples.inputs)
        module.low_rank_up.normal_(generator=torch.Generator().manual_seed(0))
        changes = factors.changes(name)
        assert model.prediction(examples.inputs).equal(plain)  # nobody sees any
        factors.chosen = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        given = model.bound.embeddings[examples.inputs[2]]
        expected = torch.stack([g @ (module.weight + c.float()).T for g, c in zip(given, changes, strict=True)])
        torch.testing.assert_close(module(given), expected, rtol=1e-4, atol=1e-5)
    assert changes.shape == (2, *module.weight.shape) and torch.linalg.matrix_rank(changes).tolist() == [1, 1]
    assert hooks_of(model.network) == 0 and not any("low_rank" in n for n, _ in model.network.named_parameters())


@pytest.mark.parametrize("region", ["attention", "all"])
def test_mace_moves_keys_and_values_toward_the_refinement_and_the_factors(region):
    model, job = tiny("sd1"), job_of()
    before = state_of(model)
    outcome = MACE(steps=6, batch_size=8, learning_rate=3e-2, region=region, focus=False).erase(model, job)
    losses = [record["loss"] for record in outcome.records]
    assert losses[-1] < losses[0]
    moved = {name for name, value in model.network.state_dict().items() if not value.equal(before[name])}
    assert moved == set(matrices_of(model.network))
    gram = keys_of(tiny("sd1"), job.task, "rest").gram
    for name in moved:
        change = (model.network.state_dict()[name] - before[name]).double()
        assert float(((change @ gram) * change).sum()) < 0.05 * float(
            ((before[name].double() @ gram) * before[name].double()).sum()
        )


def test_timesteps_are_drawn_where_the_paper_draws_them():
    found = density(1000)
    assert float(found[300]) == pytest.approx(1, abs=0.02) and float(found[200]) == pytest.approx(0.5, abs=0.01)
    assert float(found[100] / found[300]) < 0.01 and float(found[500] / found[300]) < 0.01
    model, job = tiny("sd1"), job_of()
    batch = Batch(job.forget.samples(torch.arange(4).numpy()), torch.zeros(4, dtype=torch.int64))
    examples = MACE()._noised(model, batch, torch.Generator().manual_seed(0))
    assert int(examples.inputs[1].min()) > 100 and int(examples.inputs[1].max()) < 500


def test_bad_options_of_mace():
    for bad in ({"rank": 0}, {"threshold": 1.0}, {"ridge": -1.0}, {"refine_scale": float("nan")}, {"steps": -1}):
        with pytest.raises(OptionError):
            MACE(**bad).check(CATS)


def test_mace_keeps_what_its_last_good_factors_said(monkeypatch):
    model, job = tiny("sd1"), job_of()
    real = MACE._trained

    def diverges(self, *given):
        real(self, *given)
        raise DivergedError("diverged at step 9", 6)

    whole = tiny("sd1")
    options = {"steps": 6, "batch_size": 8, "learning_rate": 3e-2, "region": "all"}
    MACE(**options).erase(whole, job)
    monkeypatch.setattr(MACE, "_trained", diverges)
    with pytest.raises(DivergedError, match="step 9"):
        MACE(**options).erase(model, job)
    assert all(value.equal(state_of(whole)[name]) for name, value in state_of(model).items())
