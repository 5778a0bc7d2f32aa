"""Benchmarks of diffusion models, at tiny size: an untrained DDPM on digits, judged by the classifier that ships."""

import base64
import json
import re
import tomllib

import pytest
from filelock import FileLock

from erasure.benchmarking import diffusion_cells
from erasure.benchmarking.page import Spot, front
from erasure.benchmarking.plan import ORIGINAL
from erasure.benchmarking.plan_file import read_plan
from erasure.benchmarking.result import SearchResult
from erasure.benchmarking.run import benchmark
from erasure.benchmarking.search import as_text, chosen, search
from erasure.core.errors import OptionError
from erasure.data.images import read_image
from erasure.models import load_model
from erasure.prompts.concept import load_concept
from tests.conftest import pipeline_folder, together
from tests.evaluation.test_classifiers import saved

PLAN = """
family = "diffusion"
model = "{model}"
seeds = [0, 1]
tuned_on = [5]

[evaluation]
num_images = 2
num_inference_steps = 2

[scenarios.three]
title = "the digit three"
forget = "3"
methods.salun = {{learning_rate = 1e-3}}
published.finetune = {{ua = 99.5}}

[scenarios.four]
forget = "4"

[tuning.three]
forget = "7"

[tuning.four]
forget = "8"

[methods.salun]
masks = ["saliency", "none"]
steps = 2
batch_size = 8
search = {{steps = [1, 2]}}

[methods.finetune]
steps = 2
batch_size = 8

[methods.finetune.search.slow]
learning_rate = 1e-5

[methods.finetune.search.fast]
learning_rate = 1e-3
"""
FAILING = """
[methods.boundary_shrink]
batch_size = 8

[methods.gradient_ascent]
learning_rate = 1e30
batch_size = 8
steps = 5
"""
UNSEEN = {"weak": 50.0, "robust": 100.0, "middling": 80.0}
SALUN = ("salun with saliency mask", "salun without mask")


@pytest.fixture
def plan(tmp_path, ddpm_folder):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(model=ddpm_folder))
    return path


@pytest.fixture
def made(monkeypatch):
    """What is erased, by method, as it happens."""
    calls, real = [], diffusion_cells.erase

    def counted(request, out, **more):
        calls.append(request.method)
        return real(request, out, **more)

    monkeypatch.setattr(diffusion_cells, "erase", counted)
    return calls


def test_a_table_from_end_to_end(plan, tmp_path, cli, made):
    plan.write_text(plan.read_text() + FAILING)
    out = tmp_path / "bench"
    outcome = cli("benchmark", plan, "--out", out, "--scenarios", "three", "--json")
    result = outcome.json
    rows = {row["name"]: row for row in result["scenarios"][0]["rows"]}
    assert list(rows) == [ORIGINAL, *SALUN, "finetune", "boundary_shrink", "gradient_ascent"]
    assert [rows[name]["mask"] for name in SALUN] == ["saliency", "none"]
    assert rows[SALUN[0]]["options"]["learning_rate"] == 1e-3 and "learning_rate" not in rows["finetune"]["options"]
    for name in (*SALUN, "finetune"):
        scores = rows[name]["scores"]
        assert set(scores) >= {"ua", "ra", "kept", "fd_classifier", "paired_distance", "seconds", "mask_seconds"}
        assert scores["kept"] == scores["ra"] and 0 < scores["changed"]["mean"] <= 100
        assert rows[name]["n"]["ua"] == 4 and rows[name]["n"]["ra"] == 36
    assert rows[SALUN[0]]["scores"]["changed"]["mean"] <= 51 and rows[SALUN[0]]["scores"]["mask_seconds"]["mean"] > 0
    assert "seconds" not in rows[ORIGINAL]["scores"]
    assert rows["boundary_shrink"]["scores"] == {} and "ddpm" in rows["boundary_shrink"]["failed"]["0"]
    assert "diverged" in rows["gradient_ascent"]["failed"]["1"]
    assert str(out) not in rows["gradient_ascent"]["failed"]["1"]  # those weights are gone
    assert any("boundary_shrink has no numbers for seeds 0, 1: " in note for note in result["notes"])
    assert not list(out.rglob("*.safetensors")) and len(list(out.rglob("run.json"))) == 8
    assert json.loads((out / "result.json").read_text()) == result

    text = cli("benchmark", plan, "--out", out, "--scenarios", "three").out
    page = (out / "report.html").read_text()
    for row in rows.values():
        for score in row["scores"].values():
            value = [f"{score['mean']:.{digits}f}" for digits in range(3)]
            assert any(shown in text for shown in value) and any(f">{shown}<" in page for shown in value)
    assert "99.5" in text and "finetune (paper)" in page
    assert "<script" not in page and "Forgetting against keeping" in page
    drawn = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    assert all(f"<!-- {name} -->" in drawn for name in (ORIGINAL, *SALUN, "finetune"))
    strips = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(strips) == 4 and len(set(strips)) >= 3
    assert base64.b64decode(strips[0]) == (out / rows[ORIGINAL]["strip"]).read_bytes()
    height, width, _ = read_image(out / rows["finetune"]["strip"], "strip").shape
    assert width > 10 * 32 and 32 < height < 64  # two threes, then nine other digits
    assert rows["finetune"]["shown"] == {
        "forget": ["three"],
        "retain": ["zero", "one", "two", "four", "five", "six", "seven", "eight", "nine"],
    }


def test_a_killed_benchmark_goes_on(plan, tmp_path, made, monkeypatch):
    out = tmp_path / "bench"
    real = diffusion_cells.Erasures._measured

    def killed(self, *given):
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(diffusion_cells.Erasures, "_measured", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark(plan, out, scenarios=["three"], num_seeds=1)
    assert len(list((out / "three" / "seed-0").glob("salun-*.json"))) == 1
    monkeypatch.setattr(diffusion_cells.Erasures, "_measured", real)
    result = benchmark(plan, out, scenarios=["three"], num_seeds=1)
    assert made == ["salun", "salun", "salun", "finetune"]
    out = out.rename(tmp_path / "moved")
    assert benchmark(plan, out, scenarios=["three"], num_seeds=1).scenarios == result.scenarios
    assert len(made) == 4
    plan.write_text(plan.read_text().replace("num_images = 2", "num_images = 3"))
    again = benchmark(plan, out, scenarios=["three"], methods=["finetune"], num_seeds=1)  # its weights were removed
    assert made[4:] == ["finetune"] and again.scenarios[0]["rows"][0]["n"]["ua"] == 3


def test_models_are_kept_where_they_are_wanted(plan, tmp_path, cli, made):
    out = tmp_path / "bench"
    command = ("benchmark", plan, "--scenarios", "four", "--methods", "finetune", "--seeds", 1, "--out", out)
    assert cli(*command, "--keep-models").code == 0
    (folder,) = out.rglob("model")
    assert load_model(folder.parent).info["erased_classes"] == [4]
    plan.write_text(plan.read_text().replace("num_images = 2", "num_images = 3"))
    before = (folder.parent / "run.json").read_bytes()
    assert cli(*command, "--keep-models").code == 0 and (folder.parent / "run.json").read_bytes() == before
    assert cli(*command).code == 0 and list(out.rglob("model"))  # whoever wanted them has them
    other = (*command[:-1], tmp_path / "other")
    assert cli(*other).code == 0 and not list((tmp_path / "other").rglob("model"))
    assert "its weights were removed" in cli(*other, "--keep-models").err


def test_two_commands_share_a_folder(plan, tmp_path, made, monkeypatch):
    out, said = tmp_path / "bench", []
    (out / "three" / "seed-0").mkdir(parents=True)
    other = FileLock(out / "three" / "seed-0" / ".lock")
    other.acquire()

    def log_user(line):
        said.append(line)
        other.release()

    monkeypatch.setattr("erasure.benchmarking.run.log_user", log_user)
    result = benchmark(plan, out, methods=["finetune"], scenarios=["three"])
    assert said == ["three, seed 0: another process works on it"] and len(made) == 2
    rows = result.scenarios[0]["rows"]
    assert all(len(row["scores"]["ua"]["values"]) == 2 for row in rows)
    assert sorted(out.rglob("run.json"))[0].stat().st_mtime_ns > sorted(out.rglob("run.json"))[1].stat().st_mtime_ns


def test_prompts_of_a_text_to_image_model(tmp_path, plan):
    saved(tmp_path / "net", "resnet", ("church", "tench", "parachute", "chain saw"))
    (tmp_path / "concept.csv").write_text(
        "role,prompt,anchor,shows\n"
        "forget,a church,a house,object=church\n"
        "forget,a photo of a church,a house,object=church\n"
        "retain,a tench,,object=tench\nretain,a parachute,,object=parachute\nretain,a chain saw,,object=chain saw\n"
    )
    plan.write_text(
        f"""
        family = "diffusion"
        model = "{pipeline_folder("sd1")}"
        seeds = [0]
        evaluation = {{num_images = 1, num_forgotten = 5, num_inference_steps = 2, classifier = "{tmp_path / "net"}"}}
        training_images = {{num_forget_images = 2, num_retain_images = 2, training_image_inference_steps = 1}}
        [scenarios.church]
        concept = "{tmp_path / "concept.csv"}"
        [methods.finetune]
        steps = 1
        batch_size = 2
        epochs = 0.0
        """
    )
    result = benchmark(plan, tmp_path / "bench", keep_models=True)
    original, row = result.scenarios[0]["rows"]
    assert row["n"]["ua"] == original["n"]["ua"] == 6 and row["n"]["ira"] == 3
    assert row["shown"]["forget"] == ["a church", "a photo of a church"]
    assert len(list((tmp_path / "bench").rglob("samples/*/*.png"))) == 2 * (6 + 3)
    assert row["scores"]["kept"]["mean"] == row["scores"]["ira"]["mean"]
    plan.write_text(re.sub(r', classifier = ".*?"', "", plan.read_text()))
    with pytest.raises(OptionError, match="there is no classifier to label"):
        benchmark(plan, tmp_path / "other")


@pytest.mark.slow
def test_prompts_that_no_method_was_given(tmp_path, plan, monkeypatch):
    plan.write_text(
        f"""
        family = "diffusion"
        model = "{pipeline_folder("sd1")}"
        data = "digits_styles"
        seeds = [0]
        evaluation = {{num_images = 1, num_unseen = 8, num_inference_steps = 1, classifier = "digits-sd-classifier"}}
        [scenarios.five]
        concept = "digits/five"
        [methods.negative_prompt]
        """
    )
    drawn, real = [], diffusion_cells.measured

    def measured(outputs, metrics):
        drawn.append(outputs)
        return real(outputs, metrics)

    monkeypatch.setattr(diffusion_cells, "measured", measured)
    result = benchmark(plan, tmp_path / "bench")
    seen = {role.text for role in (*load_concept("digits/five").forget, *load_concept("digits/five").retain)}
    before, unseen_before, _, unseen_after = drawn
    assert not {row.text for row in unseen_before.rows} & seen and len(unseen_before.rows) == 8
    assert unseen_before.rows == unseen_after.rows and unseen_before.samples.images.shape[0] == 8
    assert before.model.class_names == before.task.class_names  # bound again to what methods are given
    for row, own in zip(result.scenarios[0]["rows"], (unseen_before, unseen_after), strict=True):
        scores = row["scores"]
        assert scores["ua_unseen"]["mean"] == 100 * (1 - own.correct("forget").mean())
        assert scores["forgotten"]["mean"] == (scores["ua"]["mean"] + scores["ua_unseen"]["mean"]) / 2
    assert "'forgotten' is the mean of UA, UA unseen." in result.notes[1]
    plan.write_text(PLAN.format(model="digits-ddpm").replace("num_images = 2", "num_images = 2\nnum_unseen = 2"))
    with pytest.raises(OptionError, match="num_unseen needs prompts"):
        benchmark(plan, tmp_path / "other")


def row_of(name, **means):
    return {"name": name, "failed": {}, "scores": {key: {"mean": value} for key, value in means.items()}}


def test_the_rule_of_a_search():
    rows = [
        row_of("keeps", ua=90, kept=100, paired_distance=0),
        row_of("forgets", ua=100, kept=80, paired_distance=2),
        row_of("better", ua=95, kept=85, paired_distance=3),
        row_of("nearer", ua=96, kept=85, paired_distance=2),
    ]
    assert chosen("diffusion", rows)["name"] == "nearer"
    robust = [row_of(name, ua=96, ua_unseen=unseen, kept=90, paired_distance=2) for name, unseen in UNSEEN.items()]
    assert chosen("diffusion", robust)["name"] == "robust"
    less = row_of("sum", ua=94, forgotten=94, kept=97, paired_distance=9)
    assert chosen("diffusion", [row_of("keeps", ua=90, forgotten=90, kept=100), less])["name"] == "sum"
    assert chosen("diffusion", [{**rows[0], "failed": {"5": "diverged"}}]) is None
    assert chosen("classifier", [row_of("a", avg_gap=2), row_of("b", avg_gap=1), row_of("c", ua=9)])["name"] == "b"


def test_a_search_tries_all_candidates_on_what_is_not_reported(plan, tmp_path, cli, made):
    out = tmp_path / "search"
    result = cli("benchmark", plan, "--search", "--out", out, "--scenarios", "three", "--json").json
    assert made == ["salun", "salun", "finetune", "finetune"] and result["seeds"] == [5]
    (table,) = result["scenarios"]
    found = SearchResult.read(out)
    assert found.to_dict() == result
    assert table["forget"] == "7"
    assert [row["name"] for row in table["rows"]] == [
        *(ORIGINAL, "salun: steps 1", "salun: steps 2", "finetune: slow", "finetune: fast")
    ]
    assert {row["options"]["learning_rate"] for row in table["rows"][1:3]} == {1e-3}  # as the scenario three has it
    lines = tomllib.loads(result["toml"])["scenarios"]["three"]["methods"]
    for name, field in (("salun", "steps"), ("finetune", "learning_rate")):
        (best,) = (row for row in table["rows"] if row.get("row") == name and row["chosen"])
        assert lines[name] == {field: best["options"][field]} == best["candidate"]
        assert f"* {best['name']}" in as_text(found)
    assert "* original" not in as_text(found)
    again = search(plan, out, scenarios=["three"], methods=["salun"])
    assert len(made) == 4 and again.scenarios[0]["rows"][1] == table["rows"][1]
    assert json.loads((out / "search.json").read_text())["toml"] == again.toml


def test_a_search_needs_something_to_search(plan, tmp_path, refused):
    out = tmp_path / "search"
    assert "--search takes the seeds" in refused("benchmark", plan, "--search", "--seeds", 2, "--out", out)
    plan.write_text(PLAN.format(model="m").replace("tuned_on = [5]", ""))
    assert "names no seeds to search on" in refused("benchmark", plan, "--search", "--out", out)
    plan.write_text(re.sub(r"\[tuning\.\w+\]\nforget = ...\n", "", PLAN.format(model="m")))
    assert "names nothing to search on" in refused("benchmark", plan, "--search", "--out", out)
    plan.write_text(re.sub(r"search = .*\n|\[methods.finetune.search[^[]*", "", PLAN.format(model="m")))
    assert "has no candidates" in refused("benchmark", plan, "--search", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('family = "diffusion"', 'family = "difusion"', "expected classifier or diffusion"),
        ('family = "diffusion"', 'family = "diffusion"\nlimit = 5', "no entry 'limit'"),
        ('model = "{model}"', "", "the plan names none"),
        ('forget = "4"', 'forgot = "4"', "did you mean 'forget'"),
        ('forget = "4"', 'train.steps = 2\nforget = "4"', "no entry 'train'"),
        ("num_images = 2", "num_image = 2", "did you mean 'num_images'"),
        ("num_images = 2", "num_images = -2", "must be at least 0"),
        ("[tuning.four]", "[tuning.five]", "needs the name of the scenario"),
        ("[tuning.four]", "[tuning.four.methods.salun]", "no entry 'methods'"),
        ('masks = ["saliency", "none"]', 'masks = ["none"]\nmask = "none"', "gives mask and masks"),
        ("steps = [1, 2]", "stepps = [1, 2]", "did you mean 'steps'"),
        ("steps = [1, 2]", "steps = 1", "must be a list of values"),
        ("search.slow]\nlearning_rate", "search.slow]\nlearningrate", "did you mean 'learning_rate'"),
        ("methods.salun = ", '"methods"."salun with" = ', "no entry 'salun with'"),
        ("published.finetune = {{ua", "published.finetune = {{uaa", "did you mean 'ua'"),
        ("published.finetune", "published.salun", "no entry 'salun'"),
    ],
)
def test_a_wrong_plan_is_refused(plan, tmp_path, refused, old, new, message):
    assert old in PLAN
    plan.write_text(PLAN.replace(old, new, 1).format(model="m"))
    assert message in refused("benchmark", plan, "--out", tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_wrong_requests_are_refused(plan, tmp_path, refused):
    out = tmp_path / "bench"
    assert "--models compares" in refused("benchmark", plan, "--models", 4, "--out", out)
    assert "no method 'sal'" in refused("benchmark", plan, "--methods", "sal", "--out", out)
    plan.write_text(PLAN.format(model="digits-classifier"))
    assert "needs a generator" in refused("benchmark", plan, "--out", out)


def test_rows_are_named_by_their_masks(plan):
    rows = read_plan(plan).only(["salun"]).rows
    assert [row.name for row in rows] == [*SALUN] and {row.slug for row in rows} == {"salun"}
    assert [row.name for row in read_plan(plan).only([SALUN[1]]).rows] == [SALUN[1]]
    short = read_plan(plan).shortened(1)
    assert short.rows[0].options_in(short.scenarios[0]) == {
        "steps": 1,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "epochs": 0,
    }


@pytest.mark.parametrize("name", ["digits-ddpm", "digits-sd"])
def test_plans_that_ship_are_tuned_on_other_concepts_than_they_report(name):
    plan = read_plan(name)
    reported, tuned = ({one for each in part for one in each.what.split(",")} for part in (plan.scenarios, plan.tuning))
    assert reported and tuned and not reported & tuned and not set(plan.seeds) & set(plan.tuned_on)
    for one in (*reported, *tuned) if name == "digits-sd" else ():
        assert load_concept(one).erased


def test_the_front_is_what_nothing_beats():
    points = {"original": (0, 100), "good": (99, 97), "worse": (98, 97), "ruin": (100, 10), "same": (99, 97)}
    spots = {name: Spot(ua, None, kept, None) for name, (ua, kept) in points.items()}
    assert front(spots) == ["original", "good", "same", "ruin"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_equal_one(plan, tmp_path, cli):
    flags = ("--scenarios", "three", "--methods", "finetune", "--seeds", 1, "--json")
    printed = together("erasure", "benchmark", plan, "--out", tmp_path / "two", *flags)
    two = json.loads(printed)["scenarios"][0]["rows"]
    one = cli("benchmark", plan, "--out", tmp_path / "one", *flags).json["scenarios"][0]["rows"]
    assert [row["n"] for row in one] == [row["n"] for row in two]
    for name in ("ua", "ra", "paired_distance", "changed"):
        assert one[1]["scores"][name]["mean"] == pytest.approx(two[1]["scores"][name]["mean"], rel=0.05, abs=0.01)
    assert not list((tmp_path / "two").rglob("model")) and len(list((tmp_path / "two").rglob("run.json"))) == 1
