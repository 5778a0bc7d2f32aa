import pytest
import torch

from erasure.core.errors import DivergedError, NotApplicableError, OptionError, RunError
from erasure.core.rng import derive_seed
from erasure.data import Batch
from erasure.data.images import to_float
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, build_mask, saliency_scores
from tests.conftest import tiny


@pytest.fixture
def forget(digits, task):
    return digits.of_classes(task.forget).first(40)


def _gradients(model, forget, settings, index):
    """One batch's gradient of the mean loss, the plain way."""
    chosen = slice(index * settings.saliency_batch_size, (index + 1) * settings.saliency_batch_size)
    batch = Batch(to_float(forget.images[chosen]), torch.from_numpy(forget.labels[chosen]))
    generator = torch.Generator().manual_seed(derive_seed(3, "saliency", index))
    examples = model.examples(batch, generator)
    loss = model.per_sample_loss(examples, settings.guidance_scale).mean()
    found = torch.autograd.grad(loss, list(model.network.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.network.parameters(), strict=True)]


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-unconditional", "classifier"])
@pytest.mark.parametrize("rule", ["sum_abs", "abs_sum", "square_sum"])
def test_scores_equal_the_formula(kind, rule, forget):
    model = tiny(kind)
    settings = SaliencyConfig(score=rule, saliency_batch_size=20)
    scores = saliency_scores(model, forget, settings, seed=3)
    batches = [[g / 2 for g in _gradients(model, forget, settings, i)] for i in range(2)]
    for name, first, second in zip(scores, *batches, strict=True):
        expected = {
            "sum_abs": (first + second).abs(),
            "abs_sum": first.abs() + second.abs(),
            "square_sum": first**2 + second**2,
        }[rule]
        torch.testing.assert_close(scores[name], expected, rtol=1e-4, atol=1e-7)


def test_clipping_follows_the_official_code(ddpm, forget):
    settings = SaliencyConfig(clip_saliency=0.01, guidance_scale=3.0, saliency_batch_size=20)
    scores = saliency_scores(ddpm, forget, settings, seed=3)
    total = None
    for i in range(2):
        gradients = _gradients(ddpm, forget, settings, i)
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        clipped = [g * min(1.0, 0.01 / (float(norm) + 1e-6)) for g in gradients]
        total = clipped if total is None else [a + b for a, b in zip(total, clipped, strict=True)]
    for score, expected in zip(scores.values(), total, strict=True):
        torch.testing.assert_close(score, expected.abs(), rtol=1e-3, atol=1e-7)


def test_the_model_is_left_as_it_was(ddpm, forget):
    before = {name: p.clone() for name, p in ddpm.network.named_parameters()}
    ddpm.network.train()
    saliency_scores(ddpm, forget, SaliencyConfig())
    assert ddpm.network.training
    assert all(p.grad is None and p.requires_grad and p.equal(before[n]) for n, p in ddpm.network.named_parameters())


def test_a_killed_pass_ends_with_the_same_bits(ddpm, forget, tmp_path, monkeypatch):
    settings = SaliencyConfig(saliency_batch_size=8)
    whole = saliency_scores(ddpm, forget, settings, seed=1)
    errors, calls = ddpm.per_sample_loss, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return errors(*arguments)

    monkeypatch.setattr(ddpm, "per_sample_loss", dies)
    keep = {"partial": tmp_path / "p", "fingerprint": "x", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        saliency_scores(ddpm, forget, settings, seed=1, **keep)
    with pytest.raises(RunError, match="other settings"):
        saliency_scores(ddpm, forget, settings, seed=1, **{**keep, "fingerprint": "y"})
    resumed = saliency_scores(ddpm, forget, settings, seed=1, **keep)
    assert len(calls) < 4 + 5  # it did not begin anew
    assert all(resumed[name].equal(whole[name]) for name in whole)


def test_bad_settings_and_damage_are_refused(ddpm, classifier, forget):
    for bad in ({"density": 0.0}, {"score": "max"}, {"saliency_batch_size": 0}):
        with pytest.raises(OptionError):
            saliency_scores(ddpm, forget, SaliencyConfig(**bad))
    with pytest.raises(NotApplicableError, match="no guidance"):
        saliency_scores(classifier, forget, SaliencyConfig(guidance_scale=3.0))
    with pytest.raises(NotApplicableError, match="no null class"):
        saliency_scores(tiny("ddpm-unconditional"), forget, SaliencyConfig(guidance_scale=3.0))
    next(ddpm.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="forget loss is nan"):
        saliency_scores(ddpm, forget, SaliencyConfig())


def test_controls_have_the_density_of_what_they_control(ddpm, forget):
    settings = SaliencyConfig(density=0.5)
    salient, random, inverted = (build_mask(k, ddpm, forget, settings, 0) for k in ("saliency", "random", "inverted"))
    assert salient.selected == random.selected == round(0.5 * salient.total)
    assert (salient & inverted).selected == 0
    assert (salient | inverted).selected == salient.total
    assert isinstance(random, Mask) and (salient & random).density == pytest.approx(0.25, abs=0.02)
