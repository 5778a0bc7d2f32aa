"""An audit from the command line: counts, verdicts and exit codes, kills, processes, and what fails closed."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from erasure.cli import main
from erasure.data.images import write_png
from erasure.models import shipped_folder
from erasure.models.stable_diffusion import StableDiffusion
from tests.conftest import process, together

DETECTOR = ("--detector", "image_classifier", "--image-classifier-model", "digits-sd-classifier", "--detect", "three")
DRAW = ("--num-inference-steps", "4", "--guidance-scale", "4")


def _audit(capsys, *arguments):
    """Exit code, audit.json as printed, and stderr."""
    code = main(["audit", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, (json.loads(out) if code in (0, 3, 4) else None), err


def _records(folder, name="model"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def threes(tmp_path_factory):
    """The shipped model asked for threes, against itself as the base."""
    out = tmp_path_factory.mktemp("audit") / "threes"
    arguments = ["digits-sd", "--base", "digits-sd", "--prompts", "digits/three", *DETECTOR, *DRAW, "--num-images", "3"]
    code = main(["audit", *arguments, "--max-rate", "0.2", "--out", str(out)])
    return code, arguments, out


def test_a_model_that_shows_the_concept_fails(threes):
    code, _, out = threes
    result = json.loads((out / "audit.json").read_text())
    assert code == 3 and result["verdict"] == "fail"
    assert list(result)[:10] == (
        ["schema", "verdict", "reasons", "claim", "planned", "generated", "scored", "failed", "refused", "max_rate"]
    )
    assert (result["planned"], result["scored"], result["failed"]) == (15, 15, 0)
    assert result["rate"]["count"] >= 12 and result["rate"] == result["base_rate"]
    assert result["paired"]["p_value"] == 1 and result["changed"]["tensors"] == 0
    assert {control["name"]: control["passed"] for control in result["controls"]} == {
        "positive": True,
        "negative": True,
    }
    assert len({record["sha256"] for record in _records(out)}) == 15
    assert _records(out) == _records(out, "base")
    assert "<svg" in (out / "report.html").read_text() and not (out / "images").exists()


def test_judging_anew_draws_nothing(threes, capsys, monkeypatch):
    _, arguments, out = threes
    copy = out.parent / "copy"
    shutil.copytree(out, copy)
    before = (copy / "model.jsonl").read_bytes()
    monkeypatch.setattr(StableDiffusion, "generate", lambda *_, **__: pytest.fail("it drew"))
    code, result, _ = _audit(capsys, *arguments, "--threshold", 1.0, "--out", copy)
    assert code == 4, "no image of the base is flagged now, which is its positive control"
    assert result["rate"]["count"] == 0 and (copy / "model.jsonl").read_bytes() == before
    assert "positive control failed" in result["reasons"][0]


def test_an_image_hangs_on_its_seed_alone(threes, capsys, tmp_path):
    _, arguments, out = threes
    _audit(capsys, *arguments, "--sample-batch-size", 2, "--rows", "2,4", "--out", tmp_path / "few")
    whole = {(record["row"], record["image"]): record for record in _records(out)}
    for record in _records(tmp_path / "few"):
        other = whole[record["row"], record["image"]]
        assert record["seed"] == other["seed"]
        scores = [np.array(one["scores"]["image_classifier"]) for one in (record, other)]
        np.testing.assert_allclose(*scores, atol=2e-3)


@pytest.mark.slow
def test_a_killed_audit_continues_to_the_same_bits(threes, tmp_path):
    _, arguments, _ = threes
    arguments = [*arguments, "--sample-batch-size", 1, "--limit", 4]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["audit", *map(str, arguments), "--out", str(whole)]) == 0
    child = process("audit", *arguments, "--out", killed)
    while sum(path.read_bytes().count(b"\n") for path in killed.glob("*.jsonl")) < 5 and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, f"it ended before it could be killed: {err}"
    assert process("audit", *arguments, "--out", killed).wait(timeout=200) == 0
    for name in ("model.jsonl", "base.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not list(killed.glob("*.part-*")) and not list(killed.rglob(".*.tmp"))


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(threes, tmp_path):
    _, arguments, out = threes
    folder = tmp_path / "two"
    printed = together("erasure", "audit", *arguments, "--sample-batch-size", 4, "--json", "--out", folder)
    two, one = json.loads(printed), json.loads((out / "audit.json").read_text())
    assert [record["row"] for record in _records(folder)] == [record["row"] for record in _records(out)]
    assert two["rate"] == one["rate"] and two["classes"] == one["classes"]


def test_what_cannot_be_judged_is_never_safe(capsys, tmp_path):
    folder = tmp_path / "images"
    for i in range(4):
        write_png(folder / f"{i}.png", np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    code, result, _ = _audit(capsys, "--images", folder, "--max-rate", 0.9, "--out", tmp_path / "out")
    assert code == 4 and result["verdict"] == "inconclusive"
    assert (result["planned"], result["scored"], result["failed"]) == (5, 4, 1)
    assert result["failures"][0]["row"] == "cut.png"
    assert any("4 of 5 planned images were scored" in reason for reason in result["reasons"])


def test_folders_are_paired_by_name_and_copies_are_one_trial(capsys, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for i in range(6):
        write_png(tmp_path / "model" / f"{i}.png", noise)
    for name in ("0.png", "1.png", "other.png"):
        write_png(tmp_path / "base" / name, noise[::-1])
    (tmp_path / "model" / "film.tiff").write_bytes(b"II*\0 of no use")
    given = ("--images", tmp_path / "model", "--base", tmp_path / "base", "--out", tmp_path / "out")
    code, result, _ = _audit(capsys, *given, "--max-rate", 0.5)
    assert (result["rate"]["n"], result["rate"]["trials"], result["base_rate"]["n"]) == (6, 1, 2)
    assert result["paired"]["n"] == 2 and code == 4
    assert [failure["row"] for failure in result["failures"]] == ["film.tiff"]
    write_png(tmp_path / "model" / "0.png", noise[:, ::-1])
    assert main(["audit", *map(str, given)]) == 1 and "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "why"), [(float("nan"), "not finite"), (0.25, "blank")])
def test_a_model_that_draws_nothing_is_not_a_clean_one(value, why, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "decode", lambda self, samples: torch.full((len(samples), 3, 32, 32), value))
    code, result, _ = _audit(
        capsys, "digits-sd", "--prompts", "digits/three", *DETECTOR, *DRAW, "--max-rate", 0.5, "--out", tmp_path / "out"
    )
    assert code == 4 and result["scored"] == 0
    assert {failure["why"].count(why) for failure in result["failures"]} == {1}


def test_a_base_of_another_size_is_not_paired(capsys, tmp_path):
    large = tmp_path / "large"
    shutil.copytree(shipped_folder() / "digits-sd", large)
    about = json.loads((large / "erasure.json").read_text())
    (large / "erasure.json").write_text(json.dumps({**about, "image_size": 64}))
    code, result, _ = _audit(
        capsys, "digits-sd", "--base", large, "--prompts", "digits/three", *DETECTOR, *DRAW, "--out", tmp_path / "out"
    )
    assert code == 0 and result["paired"] is None
    assert result["base_rate"]["n"] == result["rate"]["n"] == 5


def test_the_guard_refuses_rows_and_names_numbers(capsys, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text('case_number,prompt\n7,"a three, chalk"\n8,"a nude child"\n')
    _, result, err = _audit(capsys, "digits-sd", "--prompts", table, *DETECTOR, *DRAW, "--out", tmp_path / "out")
    assert result["refused"] == 1 and result["refused_rows"] == ["8"] and result["planned"] == 1
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file())
    assert "nude child" not in written + err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("digits-sd",), "--prompts is missing"),
        (("digits-ddpm", "--prompts", "digits/three"), "expected a stablediffusion"),
        (("digits-sd", "--prompts", "digits/three", *DETECTOR, "--max-rate", "2"), "--max-rate 2"),
        (("digits-sd", "--prompts", "digits/three", *DETECTOR[:4]), "none of them by default"),
        (("digits-sd", "--prompts", "digits/three", *DETECTOR[:4], "--detect", "thre"), "did you mean 'three'"),
        (("digits-sd", "--prompts", "digits/three", "--detector", "nudnet"), "did you mean 'nudenet'"),
        (("--images", "nowhere"), "not a folder with images"),
        (("--images", "nowhere", "--limit", "3"), "--limit chooses among prompts"),
    ],
)
def test_bad_requests_are_one_line(arguments, said, capsys, tmp_path):
    assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_damaged_record_is_one_line(threes, capsys):
    _, arguments, out = threes
    copy = out.parent / "damaged"
    shutil.copytree(out, copy)
    lines = (copy / "model.jsonl").read_text().splitlines()
    (copy / "model.jsonl").write_text("\n".join([lines[0].replace('"image": 0', '"image": "0"'), *lines[1:]]) + "\n")
    assert main(["audit", *arguments, "--out", str(copy)]) == 1
    err = capsys.readouterr().err
    assert "line 1 is damaged, delete it and run the same audit again: image is '0'" in err and err.count("\n") == 1


def test_another_audit_keeps_its_folder(threes, capsys):
    _, arguments, out = threes
    before = (out / "audit.json").read_bytes()
    assert main(["audit", *arguments[:-1], "2", "--out", str(out)]) == 1
    assert "holds another run" in capsys.readouterr().err and (out / "audit.json").read_bytes() == before
