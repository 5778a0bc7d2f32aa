import numpy as np
import pytest

from erasure.data.images import write_png

SMALL = ("--num-images", 3, "--num-inference-steps", 2)


@pytest.fixture
def run(cli, ddpm_folder, tmp_path):
    arguments = ("--model", ddpm_folder, "--forget", 3, "--steps", 2, "--batch-size", 8, *SMALL)
    cli("erase", *arguments, "--out", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_measured_as_it_was(run, cli, refused):
    result = cli("evaluate", run, "--json").json
    assert result["method"] == "salun" and result["seconds"] > 0 and result["original"]["seconds"] == 0
    again = cli("evaluate", run, "--metrics", "ua,ra", *SMALL, "--json").json
    assert again["metrics"]["ua"] == result["metrics"]["ua"] and set(again["metrics"]) == {"ua", "ra"}
    same = cli("evaluate", run, "--metrics", "ua", "--json").json
    assert same["metrics"]["ua"] == result["metrics"]["ua"]  # what is not said anew stays the run's own
    assert "brings its own" in refused("evaluate", run, "--forget", 4)
    other = cli("evaluate", run, "--metrics", "ua", "--num-images", 4, "--num-inference-steps", 3, "--json").json
    assert other["metrics"]["ua"]["n"] == 4
    assert len(list((run / "samples" / "three").iterdir())) == 3  # other settings do not touch the run's own samples


def test_a_model_is_measured_by_itself(ddpm_folder, cli, refused):
    result = cli("evaluate", ddpm_folder, *SMALL, "--json").json
    assert result["ua"] is None and result["ra"] is not None and "give --forget" in result["not_measured"]["ua"]
    told = cli("evaluate", ddpm_folder, "--forget", "three", *SMALL, "--json").json
    assert told["ua"] is not None and told["original"]["ua"] == told["ua"]
    assert "--forget" in refused("evaluate", ddpm_folder, "--metrics", "ua", *SMALL)
    text = cli("evaluate", ddpm_folder, "--forget", "three", *SMALL).out
    assert "UA" in text and "[" in text


def test_the_table_is_aligned_and_tells_what_was_not_measured(run, cli):
    out = cli("evaluate", run).out.splitlines()
    assert out[1].startswith("---") and out[2].startswith("original") and out[3].startswith("salun")
    assert len({len(line.rstrip()) for line in out[1:4]}) == 1


def test_data_that_does_not_fit_the_model_is_refused(ddpm_folder, refused, tmp_path):
    from tests.data.test_dataset import _tree, _write

    folder = _write("folder", tmp_path / "images", _tree())
    assert "give the data it was trained on" in refused("evaluate", ddpm_folder, "--data", folder, *SMALL)


def test_comparing_runs(run, cli, refused, ddpm_folder, tmp_path):
    other = ("--model", ddpm_folder, "--forget", 3, "--method", "finetune", "--steps", 2, "--batch-size", 8, *SMALL)
    cli("erase", *other, "--out", tmp_path / "ft")
    result = cli("compare", run, tmp_path / "ft", "--html", tmp_path / "c.html", "--json").json
    assert [row["name"] for row in result["rows"]] == ["original", "salun (run)", "finetune (ft)"]
    page = (tmp_path / "c.html").read_text()
    assert "finetune (ft)" in page and page.count("<svg") >= 4
    assert "finetune (ft)" in cli("compare", run, tmp_path / "ft").out
    assert "does not exist" in refused("compare", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{", '{"verb": "erase"}', '{"verb": "erase", "status": "done", "settings": 3}']
)
def test_a_run_json_that_is_none_is_refused_by_every_verb(refused, ddpm_folder, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    refused("evaluate", tmp_path)
    refused("compare", tmp_path)
    refused("export", tmp_path, "--format", "delta", "--out", tmp_path / "d")
    refused("erase", "--config", tmp_path / "run.json", "--out", tmp_path / "r")
    refused("erase", "--model", ddpm_folder, "--forget", 3, "--out", tmp_path)
    assert (tmp_path / "run.json").read_text() == content


def test_avg_gap_is_measured_against_a_retrained_model(classifier_folder, ddpm_folder, cli, refused, tmp_path):
    base = ("--model", classifier_folder, "--forget", "random:0.1", "--steps", 2)
    cli("erase", *base, "--batch-size", 8, "--out", tmp_path / "run")
    cli("erase", *base, "--method", "retrain", "--out", tmp_path / "retrained")
    named = cli("evaluate", tmp_path / "run", "--metrics", "avg_gap", "--retrained", tmp_path / "retrained", "--json")
    both = [cli("evaluate", tmp_path / name, "--json").json["metrics"] for name in ("run", "retrained")]
    gaps = {name: abs(both[0][name]["value"] - both[1][name]["value"]) for name in ("ua", "ra", "ta", "mia")}
    score = named.json["metrics"]["avg_gap"]
    assert score["details"]["gaps"] == gaps and score["value"] == sum(gaps.values()) / 4 and score["interval"] is None
    beside = cli("evaluate", tmp_path / "retrained", "--retrained", tmp_path / "retrained", "--json").json
    assert beside["metrics"]["avg_gap"]["value"] == 0 < beside["original"]["metrics"]["avg_gap"]["value"]
    assert "give --retrained" in refused("evaluate", tmp_path / "run", "--metrics", "avg_gap")
    assert "for classifiers" in refused("evaluate", ddpm_folder, "--retrained", tmp_path / "retrained", *SMALL)
    assert "expected a classifier" in refused("evaluate", tmp_path / "run", "--retrained", ddpm_folder)


def test_data_that_changed_since_is_refused(cli, refused, tmp_path):
    data, generator = tmp_path / "data", np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, base in (("dark", 0), ("light", 160)):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                image = generator.integers(base, base + 90, (8, 8, 1), dtype=np.uint8)
                write_png(data / split / name / f"{i:02d}.png", image)
    trained = ("--arch", "softmax-digits", "--steps", 5, "--batch-size", 8, "--out", tmp_path / "c")
    assert (found := cli("train", "classifier", "--data", data, *trained)).code == 0, found.err
    erased = ("--forget", "ids:1,2", "--method", "finetune", "--steps", 2, "--batch-size", 8)
    assert cli("erase", "--model", tmp_path / "c", *erased, "--out", tmp_path / "run").code == 0
    assert cli("evaluate", tmp_path / "run").code == 0
    (data / "train" / "dark" / "00.png").unlink()  # every later id now means another sample
    assert "the data of" in refused("evaluate", tmp_path / "run")
