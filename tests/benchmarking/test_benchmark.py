import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from erasure.benchmarking import table
from erasure.benchmarking.cells import Cell
from erasure.benchmarking.plan import AGAIN, ORIGINAL, RETRAIN
from erasure.benchmarking.plan_file import read_plan
from erasure.benchmarking.result import BenchmarkResult
from erasure.benchmarking.run import benchmark, run_plan
from erasure.core.errors import OptionError
from erasure.core.shipped import shipped
from erasure.evaluation.metrics.avg_gap import average_gap

PLAN = """
family = "classifier"
data = "digits"
limit = 60
seeds = [0, 1]
tuned_on = [5]

[train]
arch = "resnet-digits"
steps = 3
batch_size = 16
warmup_steps = 0

[scenarios.class]
forget = "class:3"
methods.tuned = {steps = 3}
published.retrain = {ua = 5.24, ra = 100, ta = 94.26, mia = 12.88}
published.tuned = {avg_gap = 1.15}

[scenarios.random]
title = "random 20 %"
forget = "random:0.2"

[methods.tuned]
method = "finetune"
steps = 2
epochs = 0.0
batch_size = 8

[methods.salun]
epochs = 0.0
steps = 2
batch_size = 8
"""


@pytest.fixture(autouse=True)
def _no_pages_of_single_runs(monkeypatch):
    """They are tested elsewhere, and drawing their curves would take most of the time here."""
    monkeypatch.setattr("erasure.erasing.erase.write_report", lambda *_: None)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_a_benchmark_from_end_to_end_makes_nothing_twice(plan, tmp_path, cli, monkeypatch):
    out = tmp_path / "bench"
    result = cli("benchmark", plan, "--out", out, "--scenarios", "class", "--json").json
    assert [scenario["title"] for scenario in result["scenarios"]] == ["class"]
    rows = {row["name"]: row for row in result["scenarios"][0]["rows"]}
    assert list(rows) == [ORIGINAL, RETRAIN, AGAIN, "tuned", "salun"]
    assert rows["salun"]["mask"] == "saliency" and rows["tuned"]["options"]["steps"] == 3
    for row in rows.values():
        assert len(row["scores"]["ua"]["values"]) == 2
        assert set(row["scores"]) >= {"ua", "ra", "ta", "mia", "loss_auc"}
    own, theirs = rows["tuned"]["scores"], rows[RETRAIN]["scores"]
    gaps = [
        average_gap(*({name: scores[name]["values"][i] for name in ("ua", "ra", "ta", "mia")} for scores in pair))
        for pair in [(own, theirs)]
        for i in range(2)
    ]
    assert own["avg_gap"]["values"] == pytest.approx(gaps) and "avg_gap" not in theirs
    assert own["speed"]["values"][0] == pytest.approx(theirs["seconds"]["values"][0] / own["seconds"]["values"][0])
    assert json.loads((out / "result.json").read_text())["scenarios"] == result["scenarios"]
    page = (out / "report.html").read_text()
    assert "tuned (paper)" in page and "<script" not in page and "--r0:" in page

    def never(*_, **__):
        raise AssertionError("made twice")

    monkeypatch.setattr("erasure.methods.base.minimize", never)
    monkeypatch.setattr("erasure.training.recipes.minimize", never)
    monkeypatch.setattr("erasure.benchmarking.cells.Column._scores", never)
    out = out.rename(tmp_path / "moved")
    again = benchmark(plan, out, scenarios=["class"])
    assert again.scenarios == result["scenarios"]
    assert BenchmarkResult.read(out) == again and again.to_dict()["scenarios"] == result["scenarios"]
    text = cli("benchmark", plan, "--out", out, "--methods", "salun", "--scenarios", "class").out
    assert "tuned (paper)" not in text and "salun" in text and "Retrain / RTE" in text
    with pytest.raises(AssertionError, match="made twice"):  # other options are another cell
        plan.write_text(PLAN.replace("{steps = 3}", "{steps = 4}"))
        benchmark(plan, out, scenarios=["class"])


def test_a_method_that_has_no_numbers_is_said_and_ends_nothing(plan, tmp_path):
    plan.write_text(PLAN.replace('method = "finetune"', 'method = "finetune"\nlearning_rate = 1e30'))
    result = benchmark(plan, tmp_path / "bench", scenarios=["class"], num_seeds=1)
    rows = {row["name"]: row for row in result.scenarios[0]["rows"]}
    assert rows["tuned"]["scores"] == {} and "diverged" in rows["tuned"]["failed"]["0"]
    assert rows["salun"]["scores"]
    assert any("tuned has no numbers for seed 0" in note for note in result.notes)


def test_many_models_share_a_forget_set(plan, tmp_path):
    shrunk = read_plan(plan).only(["tuned"], ["random"], 1)
    result = run_plan(shrunk, tmp_path / "bench", num_models=4)
    rows = {row["name"]: row["scores"] for row in result.scenarios[0]["rows"]}
    assert rows["tuned"]["u_lira"]["n"] == 12 and 0 <= rows["tuned"]["u_lira"]["mean"] <= 100
    assert rows[AGAIN]["klom_test"]["mean"] >= 0 and "u_lira" not in rows[RETRAIN]
    forgotten = {
        json.loads(path.read_text())["settings"]["forget"]
        for path in (tmp_path / "bench" / "random").glob("seed-*/tuned-*/run.json")
    }
    assert forgotten == {"random:0.2@0"}
    assert any("from 4 models" in note for note in result.notes)
    assert "U-LiRA" in table.as_text(result)


def test_the_gap_and_its_interval_by_hand():
    assert average_gap({"ua": 3, "ra": 99, "ta": 93, "mia": 14}, {"ua": 5, "ra": 100, "ta": 94, "mia": 12}) == 1.5
    plan = read_plan("digits")
    scores = [
        dict(zip(("ua", "ra", "ta", "mia"), values, strict=True)) for values in ((1, 100, 90, 20), (3, 98, 94, 24))
    ]

    def cell(row, seed, values):
        metrics = {name: {"value": value} for name, value in values.items()}
        return Cell("class", row, seed, {"metrics": metrics, "seconds": 2.0, "mask_seconds": 0.5}, shipped("plans"))

    cells = [cell(RETRAIN, 0, scores[0]), cell(RETRAIN, 1, scores[0])]
    cells += [cell("salun", 0, scores[0]), cell("salun", 1, scores[1])]
    row = table.tabled(plan, plan.scenarios[0], cells)["rows"][1]
    assert row["scores"]["avg_gap"]["values"] == [0, 3] and row["scores"]["avg_gap"]["mean"] == 1.5
    assert row["scores"]["avg_gap"]["interval"] == pytest.approx([1.5 - 12.706 * 1.5, 1.5 + 12.706 * 1.5], abs=1e-2)
    assert row["scores"]["speed"]["values"] == [1, 1] and row["scores"]["mask_seconds"]["mean"] == 0.5
    assert table.score([2.0])["interval"] is None


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("plans").glob("*.toml")))
def test_plans_that_ship_are_tuned_on_other_seeds_than_they_report(name):
    plan = read_plan(name)
    assert (plan.tuned_on or name != "digits") and not set(plan.seeds) & set(plan.tuned_on)
    needed = {"finetune", "gradient_ascent", "salun"} | ({"random_label"} if plan.family == "classifier" else set())
    assert {row.method for row in plan.rows} >= needed
    assert not set(plan.only(num_seeds=16).seeds) & set(plan.tuned_on) and len(plan.only(num_seeds=16).seeds) == 16


def test_the_paper_s_recipe_runs_for_a_few_steps(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                picture.save(tmp_path / "data" / split / label / f"{i}.png")
    plan = read_plan("cifar10-resnet18").only(["salun"], ["random-10"], 1).shortened(1)
    plan = replace(plan, data=str(tmp_path / "data"), data_dir=None)
    result = run_plan(plan, tmp_path / "bench")
    text = table.as_text(result)
    assert "salun (paper)" in text and "1.15" in text and "14.39" in text and "numbers mean nothing" in text
    assert len(result.scenarios[0]["rows"][-1]["scores"]["ua"]["values"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('family = "classifier"', 'family = "ddpm"', "family 'ddpm' is unknown"),
        ("tuned_on", "tunedon", "did you mean 'tuned_on'"),
        ("[methods.salun]", "[methods.salum]", "unknown method 'salum'"),
        ("steps = 2\nepochs", "stepps = 2\nepochs", "did you mean 'steps'"),
        ("methods.tuned = {", "methods.other = {", "no entry 'other'"),
        ('forget = "random:0.2"', "", "names nothing to forget"),
        ("published.tuned", "published.tuner", "no entry 'tuner'"),
        ("[methods.salun]", "[methods.retrain]", "every table has the original and Retrain"),
        ("[methods.salun]", '[methods.original]\nmethod = "salun"', "every table has the original and Retrain"),
        ("seeds = [0, 1]", "seeds = [", "not a readable plan"),
        ("seeds = [0, 1]", "seeds = []", "names no seeds"),
        ("[scenarios.class]", '[scenarios."../x"]', "must be letters"),
    ],
)
def test_a_wrong_plan_is_refused(plan, tmp_path, refused, old, new, message):
    assert old in PLAN
    plan.write_text(PLAN.replace(old, new, 1))
    assert message in refused("benchmark", plan, "--out", tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_wrong_flags_are_refused(plan, tmp_path, refused):
    out = tmp_path / "bench"
    assert "no method 'salum' (did you mean 'salun'?)" in refused("benchmark", plan, "--out", out, "--methods", "salum")
    assert "--seeds 0" in refused("benchmark", plan, "--out", out, "--seeds", 0)
    assert "--models 2" in refused("benchmark", plan, "--out", out, "--models", 2)
    assert "--steps 0" in refused("benchmark", plan, "--out", out, "--steps", 0)
    assert "no plan 'digit' (did you mean 'digits'?)" in refused("benchmark", "digit", "--out", out)
    with pytest.raises(OptionError, match="no scenario"):
        benchmark(plan, out, scenarios=["other"])
