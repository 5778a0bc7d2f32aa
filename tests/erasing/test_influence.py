"""Ranking training samples: the score against closed forms, the curve, and the command."""

import csv

import numpy as np
import pytest
import torch

from erasure.data import load_dataset
from erasure.data.forget_sets import mislabelled
from erasure.erasing.influence import InfluenceConfig, found_curve, influence, scores_of, summary
from erasure.erasing.targets import TargetSpec
from erasure.training.recipes import ClassifierRecipe
from erasure.training.train import train
from tests.support.exact import gradients_of, part, regression, trained

SMALL = InfluenceConfig(curvature="hessian", damping=0.1, steps=2000, tolerance=1e-6)


def test_scores_equal_the_closed_forms_and_leave_one_out():
    digits, test = part(load_dataset("digits"), np.arange(150)), load_dataset("digits", "test")
    wrong, known = mislabelled(digits, 0.1, 0)
    model = trained(regression(), wrong, 0.1)
    scores = scores_of(model, wrong, test, SMALL, 0)
    gradients, hessian = gradients_of(model, wrong)
    slope = gradients_of(model, test)[0].mean(0)
    inverse = torch.linalg.inv(hessian + 0.1 * torch.eye(650, dtype=torch.float64))
    np.testing.assert_allclose(scores["influence"], -(gradients @ (inverse @ slope)).numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores["self_influence"], gradients.square().sum(1).numpy(), rtol=1e-6)
    images = wrong.samples(np.arange(150)).flatten(1).double()
    logits = model.network.classifier(images)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(wrong.labels), reduction="none")
    np.testing.assert_allclose(scores["loss"], loss.detach().numpy(), rtol=1e-6)
    assert summary(found_curve(scores["influence"], np.isin(np.arange(150), known)), 15).area > 0.8

    def held_out_loss(fitted):
        with torch.no_grad():
            logits = fitted.network.classifier(test.samples(np.arange(len(test))).flatten(1).double())
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(test.labels)))

    first = int(scores["influence"].argmax())
    without = trained(regression(), part(wrong, np.delete(np.arange(150), first)), 0.1)
    assert 150 * (held_out_loss(model) - held_out_loss(without)) == pytest.approx(scores["influence"][first], rel=0.15)


def test_the_curve_of_what_is_found():
    known = np.array([True, False, True, False])
    assert found_curve(np.array([4.0, 3.0, 2.0, 1.0]), known).tolist() == [0, 0.5, 0.5, 1, 1]
    best = summary(found_curve(np.array([1.0, 0.0, 1.0, 0.0]), known), 2)
    worst = summary(found_curve(np.array([0.0, 1.0, 0.0, 1.0]), known), 2)
    assert (best.first, worst.first) == (1, 0)
    assert best.area == 0.75 and worst.area == 0.25


@pytest.fixture(scope="module")
def confused(tmp_path_factory):
    """A softmax regression that was trained with a tenth of its labels wrong."""
    folder = tmp_path_factory.mktemp("confused") / "model"
    recipe = ClassifierRecipe(arch="softmax-digits", steps=60, batch_size=64, warmup_steps=2, mislabel=0.1)
    train(recipe, "digits", folder, seed=3)
    return folder


def test_the_command_ranks_and_judges(confused, cli, tmp_path):
    flags = ("--samples", 200, "--steps", 10, "--top", 2, "--curvature", "hessian", "--damping", 0.1)
    found = cli("influence", "--model", confused, "--out", tmp_path / "a", *flags, "--json").json
    rows = list(csv.DictReader((tmp_path / "a" / "ranking.csv").open()))
    assert found["samples"] == len(rows) == 1442 and found["known"] == 144
    assert [row["id"] for row in found["top"]] == [int(row["id"]) for row in rows[:2]]
    assert sorted(int(row["id"]) for row in rows) == list(range(1442))
    values = [float(row["influence"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert set(found["found"]) == {"influence", "loss", "self_influence", "random"}
    assert found["found"]["random"]["area"] == pytest.approx(0.5)
    assert min(found["found"][name]["area"] for name in ("influence", "loss", "self_influence")) > 0.75
    svg = (tmp_path / "a" / "found.svg").read_text()
    assert svg.startswith("<svg")
    again = cli("influence", "--model", confused, "--out", tmp_path / "a", *flags)
    assert again.code == 0 and "144 samples known" in again.out
    other = cli("influence", "--model", confused, "--out", tmp_path / "b", *flags, "--known", "ids:5,17", "--json").json
    assert other["known"] == 2 and other["top"] == found["top"]


def test_a_model_without_wrong_labels_is_ranked_only(cli, tmp_path, classifier_folder):
    found = cli(
        "influence", "--model", classifier_folder, "--data", "digits", "--out", tmp_path / "a", "--samples", 20,
        "--steps", 2, "--json",
    ).json  # fmt: skip
    assert found["known"] is None and "found" not in found and not (tmp_path / "a" / "found.svg").exists()


def test_what_makes_no_sense_is_refused(refused, confused, ddpm_folder, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "expected a classifier" in refused("influence", "--model", ddpm_folder, *out)
    assert "--top" in refused("influence", "--model", confused, *out, "--top", 0)
    assert "--damping" in refused("influence", "--model", confused, *out, "--damping", 0)
    assert "do not exist" in refused("influence", "--model", confused, *out, "--known", "ids:99999")


def test_the_same_request_gives_the_same_ranking(confused, tmp_path):
    few = InfluenceConfig(samples=50, steps=3, damping=1.0)
    first, again = (influence(str(confused), TargetSpec(), tmp_path / name, few, 1) for name in "ab")
    assert first.top == again.top
