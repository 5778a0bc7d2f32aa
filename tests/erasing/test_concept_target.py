"""A concept in words, erased from tiny text-to-image models through the command line."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from erasure.core.run_dir import cache_folder, read_log
from erasure.data.images import read_image, write_png
from erasure.models import load_model
from erasure.saliency.mask import Mask
from tests.conftest import PIPELINES, pipeline_folder, process

SMALL = (
    *("--steps", 3, "--batch-size", 2, "--num-forget-images", 4, "--num-retain-images", 4, "--saliency-batch-size", 2),
    *("--training-image-inference-steps", 2, "--num-images", 1, "--num-inference-steps", 2, "--learning-rate", 1e-3),
)
CAT = ("--forget", "cat", "--anchor", "dog", "--retain", "a tree,a house")


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_concept_is_erased_from_every_family(kind, cli, tmp_path):
    folder = pipeline_folder(kind)
    outcome = cli("erase", "--model", folder, *CAT, *SMALL, "--out", tmp_path / "run", "--json")
    result = outcome.json
    assert "'a photo of a cat' becomes 'a photo of a dog'" in outcome.err
    assert (
        result["forget"] == "cat" and result["steps"] == 3 and 0 < result["changed_weights"] < result["total_weights"]
    )
    before, after = load_model(folder), load_model(tmp_path / "run")
    assert after.family == before.family and after.hash != before.hash and after.parts_hash == before.parts_hash
    mask = Mask.load(tmp_path / "run" / "mask.safetensors")
    old = dict(before.network.named_parameters())
    for name, weight in after.network.named_parameters():
        assert weight[~mask.tensors[name]].equal(old[name][~mask.tensors[name]]), name
    assert after.info["erased_concepts"] == ["cat"]
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "before-after.png").is_file()
    again = cli("erase", "--model", folder, *CAT, *SMALL, "--out", tmp_path / "run", "--json").json
    assert again == result
    repeated = cli("erase", "--config", tmp_path / "run" / "run.json", "--out", tmp_path / "twice", "--json").json
    assert repeated["hash"] == result["hash"]


def test_images_and_encodings_are_made_once(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    folder = pipeline_folder("sd1")
    first = cli("erase", "--model", folder, *CAT, *SMALL, "--no-evaluate", "--out", tmp_path / "a")
    assert first.code == 0 and "generating 4 of 4 images to forget" in first.err
    files = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*") if path.is_file()}
    assert len([path for path in files if path.suffix == ".png"]) == 8
    second = cli("erase", "--model", folder, *CAT, *SMALL, "--mask", "none", "--no-evaluate", "--out", tmp_path / "b")
    assert second.code == 0 and "drawing" not in second.err
    assert {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*") if path.is_file()} == files
    for damaged in cache_folder().rglob("*.safetensors"):
        damaged.write_bytes(b"cut")
    third = cli(
        "erase", "--model", folder, *CAT, *SMALL, "--mask", "none", "--no-evaluate", "--out", tmp_path / "c", "--json"
    )
    assert third.json["hash"] == json.loads((tmp_path / "b" / "run.json").read_text())["result"]["hash"]


@pytest.mark.parametrize(
    ("flags", "read", "left"),
    [
        (("concept_ablation", "--num-anchor-images", 2, "--anchor-inference-steps", 1), "retain", "forget"),
        (("forget_me_not",), "forget", "retain"),
        (("forget_me_not", "--mask", "saliency"), "forget", "retain"),
        (("concept_ablation", "--num-anchor-images", 2, "--mask", "saliency"), "forget", "nothing"),
    ],
)
def test_only_images_that_somebody_reads_are_drawn(flags, read, left, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    small = SMALL if "--mask" in flags else tuple(SMALL[:8]) + SMALL[10:]
    small = ("--method", *flags, *small, "--no-evaluate")
    outcome = cli("erase", "--model", pipeline_folder("sd1"), *CAT, *small, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert f"images to {read}" in outcome.err and f"images to {left}" not in outcome.err


def pictures(place):
    return len(list((place / "cache" / "generated").rglob("*.png")))


MOMENTS = {
    "drawing": lambda place: 1 <= pictures(place) < 8,
    "encoding": lambda place: (place / "cache" / "latents").is_dir(),
    "training": lambda place: len(read_log(place / "run" / "log.jsonl")) >= 5,
    "measuring": lambda place: (place / "run" / "samples").is_dir(),
}


LONG = (
    *("erase", "--model", pipeline_folder("sd1"), *CAT, *SMALL, "--checkpoint-every", 1, "--steps", 30),
    *("--training-image-batch-size", 1, "--training-image-inference-steps", 5),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_command_that_is_killed_at_every_stage_ends_with_the_same_bits(cli, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def started(place):
        return process(*LONG, "--out", place / "run", ERASURE_CACHE=str(place / "cache"))

    for moment, reached in MOMENTS.items():
        child = started(killed)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None and not reached(killed):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        _, err = child.communicate()
        assert child.returncode == -signal.SIGKILL, (moment, err)
    child = started(killed)
    _, err = child.communicate(timeout=240)
    assert child.returncode == 0, err
    monkeypatch.setenv("ERASURE_CACHE", str(whole / "cache"))
    assert cli(*LONG, "--out", whole / "run").code == 0
    assert load_model(killed / "run").hash == load_model(whole / "run").hash
    assert not list(tmp_path.rglob(".*.tmp"))


def test_the_users_own_images(cli, tmp_path):
    generator = np.random.default_rng(0)
    for role in ("forget", "retain"):
        for i in range(3):
            write_png(tmp_path / role / f"{i}.png", generator.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    given = ("--forget-images", tmp_path / "forget", "--retain-images", tmp_path / "retain")
    command = ("erase", "--model", pipeline_folder("sd1"), *CAT, *SMALL, "--no-evaluate")
    outcome = cli(*command, *given, "--out", tmp_path / "run")
    assert outcome.code == 0 and "drawing" not in outcome.err
    (tmp_path / "empty").mkdir()
    assert "holds no images" in last(cli, *command, "--forget-images", tmp_path / "empty", "--out", tmp_path / "x")


def last(cli, *arguments):
    """A command that must fail: exit 1, and its last line."""
    outcome = cli(*arguments)
    assert outcome.code == 1, (outcome.out, outcome.err)
    return outcome.err.strip().splitlines()[-1]


def test_bad_requests_are_one_line(cli, tmp_path, ddpm_folder):
    folder, out = pipeline_folder("sd1"), tmp_path / "run"
    command = ("erase", "--model", folder, "--out", out)
    assert "give --forget WORDS or --concept NAME" in last(cli, *command)
    assert "give --forget WORDS or --concept NAME" in last(cli, *command, "--forget", "a", "--concept", "nudity")
    assert "names nothing to forget" in last(cli, *command, "--forget", " , ")
    assert "is the concept itself" in last(cli, *command, "--forget", "cat", "--anchor", "cat")
    assert "did you mean" in last(cli, *command, "--concept", "nuditty")
    assert "brings its own anchors" in last(cli, *command, "--concept", "nudity", "--anchor", "a")
    assert "text-to-image" in last(cli, "erase", "--model", ddpm_folder, "--concept", "nudity", "--out", out)
    assert "--probe-every needs a classifier" in last(cli, *command, *CAT, *SMALL, "--probe-every", 1)
    assert "minors" in last(cli, *command, "--forget", "a nude child")
    assert "recipe" in last(
        cli,
        *command,
        *CAT,
        "--method",
        "retrain",
        "--num-forget-images",
        1,
        "--num-retain-images",
        1,
        "--training-image-inference-steps",
        1,
    )


def test_a_concept_without_effect_is_a_warning(cli, tmp_path):
    copy = tmp_path / "deaf"
    shutil.copytree(pipeline_folder("sd1"), copy)
    from safetensors.torch import load_file, save_file

    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: t * 0 if "attn2.to_v" in name else t for name, t in tensors.items()}, path)
    outcome = cli("erase", "--model", copy, *CAT, *SMALL, "--no-evaluate", "--out", tmp_path / "run")
    assert outcome.code == 0 and "warning: 'a photo of a cat' has no effect" in outcome.err


@pytest.mark.parametrize(("full", "said"), [("cache", "drawing 8 images takes up to"), ("run", "this run takes up to")])
def test_a_full_disk_is_said_before_drawing(full, said, cli, tmp_path, monkeypatch):
    import collections

    from erasure.core import files

    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(100 if full == path.name else 1 << 50))
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    line = last(cli, "erase", "--model", pipeline_folder("sd1"), *CAT, *SMALL, "--out", tmp_path / "run")
    assert said in line and "0.0 GB are free" in line
    assert not list((tmp_path / "cache").rglob("*.png")) and not (tmp_path / "run" / "run.json").exists()


def test_a_second_erasure_leaves_the_first_alone(tmp_path):
    from erasure.erasing.targets import TargetSpec, target_of

    model = load_model(pipeline_folder("sd1"))
    model.info["erased_values"] = [["digit", "three"]]
    kept = target_of(model, TargetSpec(concept="digits/neon")).concept.retain
    assert kept and not any(("digit", "three") in row.shows for row in kept)


def test_mask_and_evaluate_take_words(cli, tmp_path):
    folder = pipeline_folder("sd1")
    some = ("--num-forget-images", 4, "--num-retain-images", 4, "--training-image-inference-steps", 2)
    made = cli(
        "mask",
        "--model",
        folder,
        *CAT,
        *some,
        "--saliency-batch-size",
        2,
        "--out",
        tmp_path / "m.safetensors",
        "--json",
    ).json
    assert made["density"] == pytest.approx(0.5, abs=1e-4)
    run = cli("erase", "--model", folder, *CAT, *SMALL, "--mask", tmp_path / "m.safetensors", "--out", tmp_path / "run")
    assert run.code == 0, run.err
    found = cli("evaluate", tmp_path / "run", "--num-images", 1, "--json").json
    assert found["forget"] == "cat" and "not_measured" in found


def test_generate_draws_prompts(cli, tmp_path):
    folder = pipeline_folder("sd1")
    (tmp_path / "p.csv").write_text('prompt,seed,guidance\n"a cat, sitting",7,3.5\na dog,8,\n')
    quick = ("--num-inference-steps", 2, "--num-images", 2)
    drawn = cli(
        "generate",
        "--model",
        folder,
        "--prompts",
        tmp_path / "p.csv",
        "--prompt",
        "a tree",
        *quick,
        "--out",
        tmp_path / "a",
        "--json",
    ).json
    assert drawn["images"] == 6 and drawn["prompts"] == ["a tree", "a cat, sitting", "a dog"]
    alone = cli(
        "generate", "--model", folder, "--prompt", "a dog", "--seed", 3, *quick, "--out", tmp_path / "b", "--json"
    ).json
    assert alone["images"] == 2
    picture = read_image(tmp_path / "a" / "grid.png", "grid")
    assert picture.shape[0] > picture.shape[1]
    both = cli(
        "generate",
        "--model",
        folder,
        "--compare",
        pipeline_folder("sd2_v"),
        "--prompt",
        "a dog",
        *quick,
        "--out",
        tmp_path / "c",
        "--json",
    ).json
    assert both["images"] == 4 and (tmp_path / "c" / "compared").is_dir()


def test_generate_refuses_what_it_cannot_draw(cli, tmp_path, ddpm_folder):
    folder, out = pipeline_folder("sd1"), tmp_path / "x"
    (tmp_path / "bad.csv").write_text("text\na cat\n")
    (tmp_path / "number.csv").write_text("prompt,seed\na cat,many\n")
    assert "give --prompt TEXT" in last(cli, "generate", "--model", folder, "--out", out)
    assert "no column 'prompt'" in last(
        cli, "generate", "--model", folder, "--prompts", tmp_path / "bad.csv", "--out", out
    )
    assert "line 2: seed" in last(
        cli, "generate", "--model", folder, "--prompts", tmp_path / "number.csv", "--out", out
    )
    assert "not a readable" in last(
        cli, "generate", "--model", folder, "--prompts", tmp_path / "none.txt", "--out", out
    )
    assert "takes no prompts" in last(cli, "generate", "--model", ddpm_folder, "--prompt", "a", "--out", out)
