"""Closed forms against the problems they solve: gradients vanish, what is kept stays, the published formulas agree."""

import logging
from dataclasses import replace

import pytest
import torch

from benchmarks import closed_forms as benchmark
from erasure.core import registry
from erasure.core.errors import DivergedError, NotApplicableError, OptionError
from erasure.core.run_dir import read_log
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.methods.base import Job
from erasure.methods.cross_attention.closed_form import WORST, solved, squares
from erasure.methods.cross_attention.keys import Keys, keys_of, last_subject
from erasure.methods.cross_attention.rece import RECE
from erasure.methods.cross_attention.speed import SPEED, centers_of, least_direction
from erasure.methods.cross_attention.uce import UCE
from erasure.models import load_model
from tests.conftest import CATS, PROMPTS, about, state_of, tiny
from tests.support.tiny_flow import folder as flow_folder

WIDTH = 12
UNIT = torch.eye(WIDTH, dtype=torch.float64)
NAMES = ("uce", "rece", "speed")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_keys(concepts=3, kept=6, width=WIDTH):
    forget, anchor, empty, retain, null = (
        drawn(n, width, seed=i) for i, n in enumerate((concepts, concepts, concepts, kept, 8))
    )
    return Keys(forget=forget, anchor=anchor, empty=empty, retain=retain, null=null, prompts=4)


MATRICES = [drawn(rows, WIDTH, seed=20 + rows) for rows in (5, 12, 20)]


def gradient(objective, at):
    """The gradient of `objective` at the matrix `at`, relative to that at zero."""
    norms = []
    for point in (at, torch.zeros_like(at)):
        point = point.clone().requires_grad_()
        norms.append(torch.autograd.grad(objective(point), point)[0].norm())
    return float(norms[0] / norms[1])


def least_squares(method, matrix, inputs, targets, keys, preserve):
    """The objective that UCE minimises, written out."""
    return lambda w: (
        method.erase_scale * (inputs @ w.T - targets @ matrix.T).square().sum()
        + preserve * (keys.retain @ (w - matrix).T).square().sum()
        + method.ridge * (w - matrix).square().sum()
    )


@pytest.mark.parametrize(
    ("options", "preserve"),
    [({}, 1.0), ({"ridge": 0.1, "preserve_scale": None}, 0.25), ({"erase_scale": 3.0, "preserve_scale": 0.5}, 0.5)],
)
def test_uce_is_the_minimum_of_its_objective(options, preserve):
    keys, method = some_keys(), UCE(**options)
    [(edit, record)] = method.edits(MATRICES, keys)
    left = way = 0.0
    for matrix in MATRICES:
        edited = edit(matrix)
        assert gradient(least_squares(method, matrix, keys.forget, keys.anchor, keys, preserve), edited) < 1e-8
        left += (keys.forget @ edited.T - keys.anchor @ matrix.T).square().sum()
        way += ((keys.forget - keys.anchor) @ matrix.T).square().sum()
    assert record["loss"] == pytest.approx(float(left / way), rel=1e-8)
    # the formula as it is published
    pairs = zip(keys.forget, keys.anchor, strict=True)
    first = method.ridge * matrix + sum(method.erase_scale * torch.outer(matrix @ a, c) for c, a in pairs)
    first += sum(preserve * torch.outer(matrix @ c, c) for c in keys.retain)
    second = method.ridge * UNIT + method.erase_scale * keys.forget.T @ keys.forget
    second += preserve * keys.retain.T @ keys.retain
    torch.testing.assert_close(edited, first @ torch.linalg.inv(second), rtol=1e-9, atol=1e-9)


def test_several_concepts_are_moved_and_what_is_kept_stays():
    keys = some_keys()  # fewer keys than the width, so that both are possible at once
    [(edit, record)] = UCE(ridge=1e-9).edits(MATRICES, keys)
    for matrix in MATRICES:
        torch.testing.assert_close(edit(matrix) @ keys.forget.T, matrix @ keys.anchor.T, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(edit(matrix) @ keys.retain.T, matrix @ keys.retain.T, rtol=1e-6, atol=1e-6)
    assert record["loss"] < 1e-12 and record["retain"] < 1e-12
    crowded = some_keys(kept=40)  # more than the width: the weight decides
    changes = [next(UCE(preserve_scale=scale).edits(MATRICES, crowded))[1] for scale in (0.1, 1.0, 1e6)]
    assert changes[0]["retain"] > changes[1]["retain"] > changes[2]["retain"] < 1e-8
    assert changes[0]["loss"] < changes[1]["loss"] < changes[2]["loss"]


@pytest.mark.parametrize("toward", ["empty", "anchor"])
def test_rece_finds_the_reviving_embedding_and_edits_it(toward):
    keys, method = some_keys(kept=20), RECE(rounds=2, alpha=0.1, toward=toward)
    edits = list(method.edits(MATRICES, keys))
    assert (
        len(edits) == 3
        and edits[0][1]["loss"] == next(UCE(ridge=0.1, preserve_scale=0.1).edits(MATRICES, keys))[1]["loss"]
    )
    before, total = [edits[0][0](matrix) for matrix in MATRICES], edits[0][0](UNIT)
    for edit, record in edits[1:]:
        found = method.reviving(keys.forget, total, squares(MATRICES))

        def revival(embeddings, moved=before):
            sides = zip(MATRICES, moved, strict=True)
            return sum((embeddings @ w.T - keys.forget @ w0.T).square().sum() for w0, w in sides) + 0.1 * (
                embeddings.square().sum()
            )

        assert gradient(revival, found) < 1e-8
        assert revival(found) < revival(keys.forget)
        missed = revival(found) - 0.1 * found.square().sum()
        whole = sum((keys.forget @ w0.T).square().sum() for w0 in MATRICES)
        assert record["revived"] == pytest.approx(float(1 - missed / whole))
        targets = keys.empty if toward == "empty" else keys.anchor
        for w0, w in zip(MATRICES, before, strict=True):
            assert gradient(least_squares(method, w, found, targets, keys, 0.1), edit(w0)) < 1e-8
        before, total = [edit(matrix) for matrix in MATRICES], edit(UNIT)


@pytest.mark.parametrize("equality", [0.0, 0.3])
def test_speed_is_the_minimum_within_the_null_space_and_the_published_formula(equality):
    keys, method = some_keys(kept=6), SPEED(equality=equality, ridge=0.7)
    held = torch.cat([keys.null[:1], centers_of(keys.null[1:], 3)])
    kept = method.kept(squares(MATRICES), keys)
    for matrix in MATRICES:
        basis = method.null_space(matrix, kept)
        change = method.change(matrix, keys, basis, held)
        assert basis.shape[1] >= 5 and change.norm() > 0.1
        projector = basis @ basis.T
        torch.testing.assert_close(change @ projector, change)

        # without --equality only directions that the held keys do not see are free
        free = basis if equality else basis @ torch.linalg.svd(basis.T @ held.T)[0][:, 4:]

        def objective(inside, matrix=matrix, free=free):
            moved = inside @ free.T
            value = ((matrix + moved) @ keys.forget.T - matrix @ keys.anchor.T).square().sum()
            value = value + 0.7 * moved.square().sum()
            return value + (moved @ held.T).square().sum() / equality if equality else value

        assert gradient(objective, change @ free) < 1e-8
        if not equality:
            assert (change @ held.T).abs().max() < 1e-10
        concept, cross = keys.forget.T @ keys.forget, keys.anchor.T @ keys.forget
        m = torch.linalg.inv(concept @ projector + 0.7 * UNIT)
        inner = torch.linalg.inv(held @ projector @ m @ held.T + equality * torch.eye(4))
        q = UNIT - m @ held.T @ inner @ held @ projector
        torch.testing.assert_close(change, matrix @ (cross - concept) @ projector @ q @ m, rtol=1e-8, atol=1e-8)


def test_speed_leaves_what_is_kept_exactly_and_tells_when_nothing_is_free(caplog):
    keys = some_keys(kept=4)
    options = {"filter": False, "augment": 0, "threshold": 1e-9}
    [(edit, record)] = SPEED(**options).edits(MATRICES, keys)
    for matrix in MATRICES:
        assert ((edit(matrix) - matrix) @ keys.retain.T).abs().max() < 1e-10
    assert record["free"] == WIDTH - 4 and record["retain"] < 1e-20 and 0 < record["loss"] < 1
    with caplog.at_level(logging.INFO, logger="erasure"):
        for edit, _ in SPEED(**options).edits(MATRICES, some_keys(kept=40)):
            assert edit(MATRICES[0]).equal(MATRICES[0])
    assert "no direction to move in" in caplog.text


def test_speed_filters_by_what_an_edit_would_move_and_adds_noise_as_its_expectation():
    keys, method = some_keys(kept=30), SPEED()
    matrix = MATRICES[1]
    way = (keys.anchor - keys.forget).T @ keys.forget
    free = matrix @ way @ torch.linalg.inv(UNIT + keys.forget.T @ keys.forget)
    moved = (keys.retain @ free.T).norm(dim=1)
    mine = keys.retain[moved >= moved.mean()]
    kept = method.kept(squares([matrix]), keys)
    torch.testing.assert_close(kept, mine.T @ mine / len(mine))
    least = torch.linalg.svd(matrix).Vh[-1]
    noisy = torch.cat([mine.repeat(20_000, 1) + drawn(20_000 * len(mine), 1) * least])
    expected = kept * 1 / 11 + noisy.T @ noisy / len(noisy) * 10 / 11
    torch.testing.assert_close(kept + 10 / 11 * torch.outer(least, least), expected, rtol=0.02, atol=0.02)
    wide = drawn(5, WIDTH)
    for one in (matrix, wide, drawn(30, WIDTH)):
        assert abs(least_direction(one) @ torch.linalg.svd(one, full_matrices=False).Vh[-1]) > 1 - 1e-8


def test_centres():
    points = torch.cat([drawn(5, 3, seed=i) * 0.01 + 10 * torch.eye(3)[i] for i in range(3)])
    expected = torch.stack([part.mean(0) for part in points.split(5)])
    found = centers_of(points, 3)
    assert torch.cdist(found, expected).amin(1).max() < 1e-12 and torch.cdist(expected, found).amin(1).max() < 1e-12
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [6.0, 6.0]], dtype=torch.float64)
    crowd = torch.cat([corners, corners[1:3].repeat(30, 1) * 0.99])
    assert torch.isfinite(centers_of(crowd, 4)).all()
    assert len(centers_of(points, 0)) == 0 and len(centers_of(points[:1].repeat(9, 1), 3)) == 1


@pytest.mark.parametrize(
    ("forget", "anchor", "expected"),
    [
        ("a seven in ink", "a eight in ink", (1, 1)),
        ("a church of stone here", "a barn here", (3, 1)),  # what differs need not be as long
        ("a photo of a church", "", (4, 0)),  # the empty prompt: its first end token
        ("a red car", "a car", (1, 1)),  # left out: what follows stands in its place
        ("a car in red", "a car", (3, 2)),
        ("a person", "a person with clothes", (1, 3)),  # only more words: both are the subject whole
        ("a red red car", "a red car", (2, 2)),
    ],
)
def test_the_last_token_of_the_subject(forget, anchor, expected):
    assert last_subject(forget.split(), anchor.split()) == expected


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl"])
def test_keys_of_bound_prompts(kind):
    """The tiny tokenizer spells: `a cat` is a, c, a, t between the start and the end."""
    model = tiny(kind)
    prompts, window = model.bound.embeddings, model.bound.embeddings.shape[1]
    task = Task(PROMPTS, (0,), anchors=(2,))
    last, rest = (keys_of(model, task, tokens) for tokens in ("last", "rest"))
    assert last.forget.equal(prompts[:1, 4].double()) and last.anchor.equal(prompts[2:3, 4].double())
    assert last.empty.equal(prompts[-1:, 4].double())
    assert rest.forget.equal(prompts[0, 4:].double()) and rest.anchor.equal(prompts[2, 4:].double())
    # start and `a` are shared by all; behind them a, p, h, o ... are each a key of its own
    others = sum(len(name.replace(" ", "")) - 1 for name in PROMPTS[1:])
    assert len(last.retain) == 2 + others + 1 and last.prompts == 5
    assert len(rest.retain) == 2 + 4 * (window - 2) + (window - 1)
    assert last.gram.allclose(last.retain.double().T @ last.retain.double())
    assert last.null.shape == (window, prompts.shape[2])


def test_a_key_that_is_forgotten_is_not_kept_besides():
    model = tiny("sd1").set_prompts(("a cat", "a cat here", "a dog"))
    keys = keys_of(model, Task(("a cat", "a cat here", "a dog"), (0,), anchors=(2,)), "last")
    assert not (keys.retain - model.bound.embeddings[0, 4]).norm(dim=1).lt(1e-5).any()
    assert len(keys.retain) == 1 + 3 + 4 + 3 + 1  # start; a, c, a; h, e, r, e; d, o, g; the empty prompt's end


@pytest.mark.parametrize(
    ("prompts", "forget", "anchors", "says"),
    [
        (("a cat", "A  CAT", "a dog"), (0,), (2,), "takes? one out|take one out"),
        (("a cat", "a dog"), (0,), (0,), "to be kept"),
        (("a cat", "a dog", ""), (2,), (1,), "no word of it"),
    ],
)
def test_prompts_that_contradict_each_other_are_refused(prompts, forget, anchors, says):
    model = tiny("sd1").set_prompts(prompts)
    before = state_of(model)
    task = Task(prompts, forget, anchors=anchors)
    with pytest.raises(OptionError, match=says):
        UCE().erase(model, Job(task, Dataset.nothing(), Dataset.nothing()))
    assert all(tensor.equal(before[name]) for name, tensor in state_of(model).items())


def erased(name, kind, prompts=PROMPTS, task=CATS, folder=None, **options):
    model = tiny(kind).set_prompts(prompts)
    method = registry.load("methods", name)(**options)
    return model, method.erase(model, Job(task, Dataset.nothing(), Dataset.nothing(), folder=folder))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_only_keys_and_values_of_cross_attention_move_and_it_is_recorded(name, kind, tmp_path):
    before = state_of(tiny(kind))
    model, outcome = erased(name, kind, folder=tmp_path)
    moved = {part for part, tensor in state_of(model).items() if not tensor.equal(before[part])}
    parts = ("attn2.to_v.weight",) if name == "speed" else ("attn2.to_k.weight", "attn2.to_v.weight")
    assert moved == {part for part in before if part.endswith(parts)}
    assert read_log(tmp_path / "log.jsonl") == outcome.records
    assert len(outcome.records) == (4 if name == "rece" else 1)
    assert 0 <= outcome.records[0]["loss"] < 1 and outcome.seconds < 5


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_prompts_does_not_matter(name):
    order = (3, 1, 4, 0, 2)
    prompts = tuple(PROMPTS[i] for i in order)
    task = Task(prompts, tuple(map(order.index, (1, 0))), anchors=tuple(map(order.index, (3, 2))))
    one, other = state_of(erased(name, "sd1")[0]), state_of(erased(name, "sd1", prompts, task)[0])
    for part in one:
        torch.testing.assert_close(one[part], other[part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_other_networks_and_masks_are_refused(name):
    method = registry.load("methods", name)()
    assert method.no_mask and not method.reads
    for kind in ("ddpm", "classifier"):
        model, task = tiny(kind), about(kind)[1]
        method.check(task)
        with pytest.raises(NotApplicableError, match="has no cross-attention"):
            method.check_model(model)
    for kind in ("sd3", "flux"):
        with pytest.raises(NotApplicableError, match="share every attention"):
            method.check_model(load_model(flow_folder(kind)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uce", {"ridge": -1.0}),
        ("uce", {"ridge": float("nan")}),
        ("uce", {"erase_scale": 0.0}),
        ("uce", {"preserve_scale": float("inf")}),
        ("rece", {"alpha": -0.1}),
        ("rece", {"rounds": -1}),
        ("speed", {"threshold": 0.0}),
        ("speed", {"ridge": 0.0}),
        ("speed", {"equality": -1.0}),
        ("speed", {"centers": -1}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        registry.load("methods", name)(**options).check(CATS)


def test_a_system_without_inverse_is_told_and_one_that_is_not_finite_raised(caplog):
    thin = drawn(2, WIDTH)
    with caplog.at_level(logging.INFO, logger="erasure"):
        solution, condition = solved(thin.T @ thin, thin.T)
    assert condition > WORST and "condition number" in caplog.text and torch.isfinite(solution).all()
    assert (thin.T @ thin @ solution - thin.T).norm() < 1e-6
    keys = replace(some_keys(), forget=torch.full((3, WIDTH), float("nan"), dtype=torch.float64))
    with pytest.raises(DivergedError, match="not finite"):
        next(UCE().edits(MATRICES, keys))


def test_the_benchmark_runs_at_toy_size():
    shapes = {name: tuple(matrix.shape) for name, matrix in benchmark.readers(320).named_parameters()}
    assert len(shapes) == 32 and {columns for _, columns in shapes.values()} == {768}
    assert sorted(rows for rows, _ in shapes.values()) == [320] * 10 + [640] * 10 + [1280] * 12
    for name in NAMES:
        found = benchmark.alone(name, 1, 3, width=20)
        assert found["seconds"] > 0 and found["peak"] >= 0
