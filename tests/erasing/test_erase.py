"""The main path through the command line, and what it refuses."""

import json
import re
from collections import Counter

import pytest
import torch

from erasure.core import registry
from erasure.core.files import read_json
from erasure.formats.safetensors_io import read_tensors
from erasure.models import Model, load_model, shipped_folder
from erasure.models.classifier import Classifier
from erasure.models.ddpm import DDPM
from erasure.saliency.mask import Mask
from tests.conftest import tiny

SMALL = ("--steps", 3, "--batch-size", 8, "--num-images", 3, "--num-inference-steps", 2)


@pytest.fixture
def erase(cli, ddpm_folder, tmp_path):
    def run(*arguments, out="run", forget="3", model=None):
        return cli(
            "erase",
            "--model",
            model or ddpm_folder,
            "--forget",
            forget,
            "--out",
            tmp_path / out,
            *SMALL,
            *arguments,
            "--json",
        )

    return run


def test_an_erasure_loads_and_hashes_once_and_tells_its_phases(erase, tmp_path, monkeypatch):
    calls = Counter()
    for family in (DDPM, Classifier):
        load = family.load.__func__
        counted = lambda cls, folder, load=load: (calls.update([cls.family]), load(cls, folder))[1]  # noqa: E731
        monkeypatch.setattr(family, "load", classmethod(counted))
    network_hash = Model._network_hash
    monkeypatch.setattr(
        Model, "_network_hash", lambda self: (calls.update([f"{self.family} hash"]), network_hash(self))[1]
    )
    result = erase().json
    assert calls["ddpm"] == 1 and calls["classifier"] == 1
    assert calls["ddpm hash"] == 2  # before and after
    assert {"load the model", "mask", "train", "measure the original"} <= set(result["phases"])
    assert all(seconds >= 0 for seconds in result["phases"].values())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "load the model" in page


def test_an_erasure_leaves_a_whole_run(erase, ddpm_folder, tmp_path):
    result = erase().json
    run = tmp_path / "run"
    for name in (
        "run.json",
        "log.jsonl",
        "mask.safetensors",
        "model/unet/config.json",
        "report.html",
        "before-after.png",
    ):
        assert (run / name).is_file(), name
    assert not (run / "checkpoint.safetensors").exists()
    for row in (result, result["original"]):
        assert 0 <= row["ua"] <= 100 and 0 <= row["ra"] <= 100 and row["seconds"] >= 0
        assert row["metrics"]["ua"]["n"] == 3 and row["metrics"]["ra"]["n"] == 27
    assert result["seconds"] > result["mask_seconds"] > 0
    document = read_json(run / "run.json")
    assert document["status"] == "done" and document["settings"]["options"]["steps"] == 3
    before, after, mask = load_model(ddpm_folder), load_model(run), Mask.load(run / "mask.safetensors")
    assert mask.density == pytest.approx(0.5, abs=1e-4)
    changed = 0
    for name, parameter in after.network.named_parameters():
        original = dict(before.network.named_parameters())[name]
        assert parameter[~mask.tensors[name]].equal(original[~mask.tensors[name]])
        changed += int((parameter != original).sum())
    assert changed == result["changed_weights"] > 0


def test_the_same_command_returns_the_result_and_other_settings_are_refused(erase, refused, ddpm_folder, tmp_path):
    first = erase().json
    age = (tmp_path / "run" / "model" / "unet" / "config.json").stat().st_mtime_ns
    assert erase().json == first
    assert (tmp_path / "run" / "model" / "unet" / "config.json").stat().st_mtime_ns == age
    line = refused("erase", "--model", ddpm_folder, "--forget", 3, "--out", tmp_path / "run", *SMALL, "--alpha", 0.5)
    assert "options.alpha: 1.0 there, 0.5 now" in line


def test_a_config_repeats_a_run_bit_for_bit(erase, cli, tmp_path):
    first = erase("--mask", "random", "--seed", 4).json
    again = cli("erase", "--config", tmp_path / "run" / "run.json", "--out", tmp_path / "run2", "--json").json
    assert again["hash"] == first["hash"] and again["metrics"] == first["metrics"]
    files = [tmp_path / name / "model" / "unet" / "diffusion_pytorch_model.safetensors" for name in ("run", "run2")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("mask", ["none", "random", "inverted"])
def test_controls_are_first_class(erase, mask, tmp_path):
    result = erase("--mask", mask).json
    assert result["mask"] == mask
    share = result["changed_weights"] / result["total_weights"]
    assert share > 0.9 if mask == "none" else share <= 0.5001
    assert (tmp_path / "run" / "mask.safetensors").exists() == (mask != "none")


def test_a_mask_file_made_by_the_mask_verb_gives_the_same_weights(erase, cli, ddpm_folder, tmp_path):
    made = cli("mask", "--model", ddpm_folder, "--forget", "three", "--out", tmp_path / "m.safetensors", "--json").json
    assert (
        made["density"] == pytest.approx(0.5, abs=1e-4)
        and sum(b["weights"] for b in made["blocks"].values()) == made["weights"]
    )
    again = cli("mask", "--model", ddpm_folder, "--forget", "3", "--out", tmp_path / "m.safetensors", "--json").json
    assert again == made
    from_file = erase("--mask", tmp_path / "m.safetensors").json
    assert from_file["hash"] == erase(out="other").json["hash"]


def test_several_classes_and_every_family(erase, classifier_folder, tmp_path):
    assert erase(forget="3,five").json["metrics"]["ua"]["n"] == 6
    result = erase("--epochs", 0, model=classifier_folder, out="c").json
    assert result["metrics"]["ua"]["n"] == 147 and {"ta", "mia"} <= set(result["metrics"])
    tiny("ddpm-unconditional").save(tmp_path / "u")
    free = erase(model=tmp_path / "u", out="f").json
    assert free["ua"] is None and "forget_share" in free["metrics"]


def test_options_come_from_paper_card_preset_and_flags_in_this_order(cli, ddpm, tmp_path):
    ddpm.save(tmp_path / "m")
    (tmp_path / "m" / "erase.json").write_text(json.dumps({"salun": {"steps": 2, "alpha": 7.0, "batch_size": 4}}))
    common = ("--model", tmp_path / "m", "--forget", 3, "--no-evaluate", "--json")
    cli("erase", *common, "--out", tmp_path / "a", "--preset", "official", "--batch-size", 8)
    settings = read_json(tmp_path / "a" / "run.json")["settings"]
    chosen = settings["options"]
    assert (chosen["steps"], chosen["alpha"], chosen["batch_size"], chosen["relabel"]) == (2, 1e-3, 8, "next")
    assert settings["saliency"]["guidance_scale"] == 3.0 and settings["saliency"]["clip_saliency"] == 1.0


@pytest.mark.parametrize("method", ["salun", "gradient_ascent"])
def test_the_help_has_the_defaults_of_each_family_and_shipped_model(cli, method):
    kind = registry.load("methods", method)
    text = " ".join(cli("erase", "--method", method, "--help").out.split())
    told = text.partition("The defaults below are those of ddpm. Others have their own:")[2]
    cards = {f"the model {n}": read_json(shipped_folder() / n / "erase.json") for n in ("digits-ddpm", "digits-sd")}
    values = {**kind.defaults_of, **{name: card[method] for name, card in cards.items() if method in card}}
    assert {"classifier", "stable_diffusion", "sdxl", "the model digits-ddpm"} <= set(values)
    for owner, options in values.items():
        own = re.search(rf"{owner}[^:-]*: (--.*?)(?= [^ ]+: --|the model| --steps INT)", told)[1]
        for name, value in options.items():
            if name != "saliency":
                assert f"--{name.replace('_', '-')} {value}" in own, (owner, name)
        scale = options.get("saliency", {}).get("guidance_scale")
        assert scale is None or f"--saliency-guidance-scale {scale}" in own
    assert "Others have their own" not in cli("erase", "--method", "retrain", "--help").out


def test_steps_that_are_asked_for_replace_default_epochs(cli, classifier_folder, tmp_path):
    common = ("erase", "--model", classifier_folder, "--forget", 3, "--batch-size", 8, "--no-evaluate", "--json")
    assert cli(*common, "--steps", 2, "--out", tmp_path / "a").json["steps"] == 2
    assert cli(*common, "--steps", 2, "--epochs", 0.01, "--out", tmp_path / "b").json["steps"] == 2  # 0.01 x 1442 / 8
    assert cli(*common, "--epochs", 0.02, "--out", tmp_path / "c").json["steps"] == 4


def test_a_mask_of_other_weights_is_refused(refused, cli, ddpm_folder, ddpm, tmp_path):
    cli("mask", "--model", ddpm_folder, "--forget", 3, "--out", tmp_path / "m.safetensors")
    next(ddpm.network.parameters()).data.mul_(2)
    ddpm.save(tmp_path / "other")
    line = refused(
        "erase",
        "--model",
        tmp_path / "other",
        "--forget",
        3,
        "--mask",
        tmp_path / "m.safetensors",
        "--out",
        tmp_path / "r",
    )
    assert "was made for other weights" in line


def test_divergence_is_said_and_leaves_the_last_good_weights(cli, refused, ddpm_folder, tmp_path):
    common = ("--model", ddpm_folder, "--forget", 3, "--method", "gradient_ascent", "--batch-size", 8, "--no-evaluate")
    line = refused(
        "erase", *common, "--steps", 40, "--learning-rate", 1.0, "--checkpoint-every", 1, "--out", tmp_path / "a"
    )
    assert "diverged at step" in line and "last good weights" in line
    document = read_json(tmp_path / "a" / "run.json")
    good = int(line.partition("those of step ")[2].partition(":")[0])
    assert document["status"] == "diverged" and document["diverged"]["step"] == good > 0
    assert document["diverged"]["reason"] in line
    line = refused("export", tmp_path / "a", "--format", "delta", "--out", tmp_path / "d")
    assert f"is not a finished erasure, and is not exported: {document['diverged']['reason']}" in line
    draw = ("--classes", 0, "--num-images", 1, "--num-inference-steps", 1, "--out")
    told = cli("generate", "--model", tmp_path / "a", *draw, tmp_path / "drawn").err
    assert told.count("\n") == 1 and f"is no finished run: it holds the weights of step {good}, because" in told
    assert document["diverged"]["reason"] in told
    assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "a").network.parameters())
    line = refused("erase", *common, "--steps", 40, "--learning-rate", 1e9, "--out", tmp_path / "b")
    assert "the original is unchanged and nothing was saved" in line


def test_probes_are_recorded_along_the_steps(erase, tmp_path):
    erase("--probe-every", 2)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [("ua" in record, "ra" in record) for record in records] == [(False, False), (True, True), (False, False)]


def test_an_erased_model_can_be_erased_again(erase, tmp_path):
    erase()
    second = erase(model=tmp_path / "run", forget="5", out="second").json
    twice = load_model(tmp_path / "second")
    assert twice.info["erased"]["forget"] == "5" and twice.erased_classes == (3, 5)
    assert second["metrics"]["ra"]["n"] == 24  # the class that was erased before is not retained again
    assert second["metrics"]["ua"]["n"] == 3


# Bad input: one clear line, exit 1, nothing written.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--forget", "11"), "class 11 is out of range: this data has classes 0 to 9"),
        (("--forget", "thre"), "did you mean 'three'"),
        (("--forget", ","), "names no class"),
        (("--forget", "0,1,2,3,4,5,6,7,8,9"), "at least one must be left"),
        (("--method", "salum"), "unknown method 'salum' (did you mean 'salun'?)"),
        (("--metrics", "ua,fdi"), "unknown metric 'fdi' (did you mean 'fid'?)"),
        (("--metrics", "fid"), "--inception"),
        (("--alpah", "1"), "has no option --alpah (did you mean '--alpha'?)"),
        (("--density", "0"), "--density 0.0 is outside (0, 1]"),
        (("--density", "1.5"), "--density 1.5 is outside (0, 1]"),
        (("--preset", "offical"), "did you mean 'official'"),
        (("--mask", "salience"), "did you mean 'saliency'"),
        (("--mask", "nowhere.safetensors"), "does not exist"),
        (("--method", "retrain", "--mask", "saliency"), "keeps no original weight"),
        (("--method", "retrain", "--alpha", "1"), "erase --method retrain has no option --alpha"),
        (("--method", "retrain", "--steps", "-1"), "--steps -1"),
        (("--num-images", "-1"), "must be at least 0"),
        (("--probe-every", "-1"), "--probe-every -1"),
        (("--clip-norm", "-1"), "--clip-norm at least 0"),
        (("--learning-rate", "0"), "--learning-rate must be above 0"),
        (("--eta", "2"), "--eta 2.0 is outside [0, 1]"),
        (("--image-size", "16"), "takes no --image-size"),
        (("--relabel", "3"), "itself to be erased"),
        (("--relabel", "elephant"), "unknown class 'elephant'"),
        (("--data", "digitz"), "did you mean 'digits'"),
        (("--classifier", "nowhere"), "does not exist"),
        (("--model", "nowhere"), "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_writes_no_model(refused, ddpm_folder, tmp_path, arguments, message):
    base = {
        "--model": ddpm_folder,
        "--forget": "3",
        "--num-images": 2,
        "--num-inference-steps": 1,
        "--steps": 1,
        "--batch-size": 4,
    }
    if "retrain" in arguments:
        base.pop("--batch-size")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    line = refused("erase", *[part for item in {**base, **given}.items() for part in item], "--out", tmp_path / "run")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_damaged_and_foreign_masks_are_refused(refused, cli, ddpm_folder, classifier_folder, tmp_path):
    path = tmp_path / "m.safetensors"
    cli("mask", "--model", classifier_folder, "--forget", 3, "--out", path)
    base = ("erase", "--model", ddpm_folder, "--forget", 3, "--steps", 1, "--out", tmp_path / "run", "--mask", path)
    assert "was made for another network" in refused(*base)
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated or damaged" in refused(*base)
    assert not (tmp_path / "run").exists()


def test_an_output_folder_with_other_things_is_refused(refused, ddpm_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    line = refused("erase", "--model", ddpm_folder, "--forget", 3, "--out", tmp_path)
    assert "not empty and holds no run" in line
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert "cannot write" in refused(
        "erase", "--model", ddpm_folder, "--forget", 3, "--out", tmp_path / "thesis.txt" / "run"
    )


def test_a_changed_original_is_noticed(erase, refused, ddpm, tmp_path):
    ddpm.save(tmp_path / "m")
    erase(model=tmp_path / "m")
    next(ddpm.network.parameters()).data.add_(1)
    ddpm.save(tmp_path / "m")
    assert "no longer the model" in refused("evaluate", tmp_path / "run")
    assert "no longer the model" in refused("export", tmp_path / "run", "--format", "delta", "--out", tmp_path / "d")
    assert "no longer the model" in refused(
        "erase", "--config", tmp_path / "run" / "run.json", "--out", tmp_path / "r2"
    )


def test_the_checkpoint_of_a_finished_run_is_gone_and_its_mask_is_its_own(erase, tmp_path):
    erase("--checkpoint-every", 1)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    _, header = read_tensors(tmp_path / "run" / "mask.safetensors")
    assert json.loads(header["provenance"])["concept"] == "three"
