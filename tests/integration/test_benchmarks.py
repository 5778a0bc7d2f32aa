"""The benchmarks run and compare like with like; no time is asserted."""

import json
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import audit as audit_benchmark
from benchmarks import detectors as detector_benchmark
from benchmarks import gpu, gpu_sd, gpu_tables, ideas, methods, publish, sd_networks, stable_diffusion, step
from benchmarks import mask as mask_benchmark
from benchmarks.official import official_mask
from benchmarks.official_sd import Encoders, Images, OfficialSalUn
from erasure.benchmarking.plan_file import read_plan
from erasure.benchmarking.result import BenchmarkResult
from erasure.core import registry
from erasure.core.rng import derive_seed
from erasure.data import Batches
from erasure.data.images import read_image, write_png
from erasure.methods.relabeling.salun import SalUn
from erasure.models.diffusion import drawn_timesteps
from erasure.saliency.mask import Mask
from erasure.training.latent_cache import Latents
from tests.conftest import CIFAR10, ROOT, state_of, tiny
from tests.methods.test_cross_attention import job_of


def test_both_masks_select_the_same_weights():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(50, 7, generator=generator) for name in "ab"}
    ours, theirs = Mask.top(scores, 0.3).tensors, official_mask(scores, 0.3)
    assert all(ours[name].equal(theirs[name].bool()) for name in scores)


def test_the_step_benchmark_measures_all_three(monkeypatch):
    monkeypatch.setattr(step, "STEPS", 1)
    monkeypatch.setattr(step, "ROUNDS", 1)
    monkeypatch.setattr(step, "SIZE", 4)
    found = step.measure()
    assert sum("seconds a step" in name for name in found) == 3 and all(value > 0 for value in found.values())


def test_the_mask_benchmark_checks_what_it_times(monkeypatch):
    monkeypatch.setattr(mask_benchmark, "WEIGHTS", 4000)
    assert mask_benchmark._alone("ours")["seconds"] > 0 and mask_benchmark._alone("official")["peak"] >= 0


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 archives are not beside the checkout")
def test_the_gpu_script_runs_at_toy_size_and_goes_on_where_it_stopped(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--toy",
        "--minutes",
        "0.05",
        "--parts",
        "ddpm",
        "--data-dir",
        str(CIFAR10),
        "--out",
        str(tmp_path),
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr
    stages = [json.loads(line) for line in first.stdout.splitlines()]
    assert [next(iter(stage)) for stage in stages] == ["device", "correct", "plan", "classifier", "ddpm", "judged"]
    assert stages[1]["correct"]["mask_holds_bit_for_bit"] is True
    assert len(list((tmp_path / "ddpm" / "model" / "unet").glob("*.safetensors"))) > 1
    (tmp_path / "judged.json").unlink()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0 and "ddpm:" not in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["judged"]["ra"]["n"] == 40


def test_what_is_published_has_no_folder_and_six_digits(tmp_path):
    row = {
        "name": "salun",
        "method": "salun",
        "mask": "/somewhere/per layer.safetensors",
        "published": {},
        "failed": {},
        "options": {"steps": 3},
    }
    row |= {"scores": {"ua": {"mean": 1 / 3, "interval": None, "values": [1 / 3]}}, "strip": "digit/seed-0/a.png"}
    scenario = {"name": "digit", "title": "a digit", "forget": "5", "rows": [row]}
    about = {"family": "diffusion", "data": "", "models": ["digits-sd"], "seeds": [0], "tuned_on": [7], "notes": []}
    facts = {"threads": "1", "command": "erasure"}
    result = BenchmarkResult(
        **about, scenarios=[scenario], seconds=12.3456789, facts=facts, report="somewhere/report.html", plan={}
    )
    result.write(tmp_path)
    found = publish.published(BenchmarkResult.read(tmp_path))
    (kept,) = found["scenarios"][0]["rows"]
    assert kept["scores"]["ua"]["mean"] == 0.333333 and kept["mask"] == "per layer"
    assert found["models"] == ["digits-sd"] and found["seconds"] == 12.3457 and found["threads"] == "1"
    assert "somewhere" not in str(found) and "a.png" not in str(found) and "steps" not in str(found)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 archives are not beside the checkout")
@pytest.mark.timeout(400)
def test_the_tables_of_the_gpu_script_run_at_toy_size_and_end_with_the_minutes(tmp_path, capfd):
    assert gpu_tables.run(tmp_path, str(CIFAR10), True, time.monotonic()) == {"resnet18": False, "ddpm-classes": False}
    assert "the minutes are over" in capfd.readouterr().err
    found = gpu_tables.run(tmp_path, str(CIFAR10), True, time.monotonic() + 300)
    assert found == {"resnet18": True, "ddpm-classes": False}  # without a trained DDPM
    assert "retrain (paper)" in capfd.readouterr().out


@pytest.fixture
def small():
    """A tiny Stable Diffusion that drops no condition, with images, their latents and a mask."""
    model = tiny("sd1").set_prompts(sd_networks.PROMPTS)
    model.info["condition_drop"] = 0.0
    images = sd_networks.images(model.image_shape[1], 6)
    return model, images, Latents.of(model, images), sd_networks.random_mask(model.network)


def official_draws(model, batch, prompt, generator):
    """What ours draws for a batch, in its order."""
    noise = [torch.randn((len(batch.images), *model.sample_shape), generator=generator) for _ in range(2)]
    timesteps = drawn_timesteps(len(batch.images), model.num_train_timesteps, generator)
    return Images(batch.images, [prompt] * len(batch.images), *noise, timesteps)


@pytest.mark.parametrize(("optimizer", "rate", "within"), [("sgd", 3.0, 1e-3), ("adam", 1e-3, 1e-2)])
def test_ours_takes_the_steps_of_the_official_algorithm(small, optimizer, rate, within):
    model, images, latents, mask = small
    other, before = model.clone(), state_of(model)
    encoders = Encoders(*(model.parts[name] for name in ("vae", "text_encoder", "tokenizer")))
    loop = OfficialSalUn(
        other.network.train(), model.noise_scheduler.alphas_cumprod, mask.tensors, encoders, rate, alpha=0.5
    )
    if optimizer == "sgd":
        loop.optimizer = torch.optim.SGD(other.network.parameters(), lr=rate, momentum=0.9)
    forget, retain = (
        Batches(images.of_classes((label,)), 4, derive_seed(0, name)) for label, name in ((0, "forget"), (2, "retain"))
    )
    theirs = []
    for index in range(3):
        generator = torch.Generator().manual_seed(derive_seed(0, "draws", index))
        first = official_draws(model, forget.at(index), sd_networks.PROMPTS[0], generator)
        second = Images(first.images, [sd_networks.PROMPTS[1]] * 4, first.encoding_noise, first.noise, first.timesteps)
        kept = official_draws(model, retain.at(index), sd_networks.PROMPTS[2], generator)
        theirs.append(loop.step(first, second, kept))
    method = registry.load("methods", "salun")(
        teacher="current",
        relabel="anchor",
        alpha=0.5,
        clip_norm=0.0,
        optimizer=optimizer,
        learning_rate=rate,
        batch_size=4,
        steps=3,
    )
    outcome = method.erase(model, stable_diffusion.job_of(latents, mask))
    assert [record["loss"] for record in outcome.records] == pytest.approx(theirs, abs=1e-4)
    found, wanted = state_of(model), state_of(other)
    moved = sum(float((wanted[name] - before[name]).square().sum()) for name in wanted) ** 0.5
    apart = sum(float((wanted[name] - found[name]).square().sum()) for name in wanted) ** 0.5
    assert moved > 0.1 and apart < within * moved
    assert all(wanted[name][~mask.tensors[name]].equal(before[name][~mask.tensors[name]]) for name in mask.tensors)


def test_the_step_of_stable_diffusion_is_measured_on_every_side(small):
    found = stable_diffusion.compared(small[0], batch=2, steps=1, rounds=1)
    assert sum("seconds a step" in name for name in found) == 4 and all(value > 0 for value in found.values())
    alone = found["ours, seconds a step (batch 2 + 2)"] / found["official, seconds a step (batch 2 + 2)"]
    assert found["ours / official algorithm (goal: at most 0.6)"] == pytest.approx(alone)


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own_or_computed(monkeypatch):
    found = stable_diffusion.memory(32, 8)
    ratio = found["ours, peak GB"] / found["official, peak GB"]
    assert found["peak memory, ours / official (goal: at most 0.5)"] == pytest.approx(ratio)
    assert found["weights of the UNet, millions"] == pytest.approx(8.625252) and isinstance(found["malloc"], str)
    first = found["ours, peak GB of the first step alone"]
    assert found["ours, GB beside weights, gradients, optimiser, teacher, masks"] < first <= found["ours, peak GB"]

    def child(side, width, size):
        assert side == "ours", "the machine cannot hold the other"
        return {"weights": 1e9, "peak": 12e9, "first": 11e9, "held": 11e9}

    monkeypatch.setattr(stable_diffusion, "_child", child)
    monkeypatch.setattr(stable_diffusion, "available_bytes", lambda: 25.5e9)
    computed = stable_diffusion.memory()
    assert computed["official, computed, peak GB"] == 25.0
    assert computed["peak memory, ours / official, computed (goal: at most 0.5)"] == 12 / 25


def test_random_weights_are_those_of_a_published_file_and_the_mask_takes_half():
    network = sd_networks.unet(32, 8)
    assert all(p.half().float().equal(p) for p in network.parameters())
    kernel = network.mid_block.resnets[0].conv1.weight.detach().flatten(1)
    assert float(kernel.std()) == pytest.approx(kernel.shape[1] ** -0.5, rel=0.05) and not kernel[0].equal(kernel[1])
    assert sd_networks.random_mask(network).density == pytest.approx(0.5, abs=0.01)


def test_results_of_the_same_machine_are_kept(monkeypatch, tmp_path, capsys):
    out = tmp_path / "results.json"
    for name, found in (("one", {"seconds": 0.25}), ("two", {"malloc": "as it is"})):
        monkeypatch.setattr(command, "ALL", {name: lambda found=found: found})
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(out)])
        assert command.main() == 0
    kept = json.loads(out.read_text())
    assert kept["one"] == {"seconds": 0.25} and kept["two"] == {"malloc": "as it is"}
    assert "as it is" in capsys.readouterr().out
    out.write_text(json.dumps({**kept, "machine": "another"}))
    command.main()
    assert "one" not in json.loads(out.read_text())


@pytest.mark.slow
def test_the_gpu_script_measures_stable_diffusion_at_toy_size_and_resumes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--toy", "--parts", "sd", "--minutes", "5", "--out", str(tmp_path)])
    assert gpu.main() == 0
    stages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [next(iter(stage)) for stage in stages] == ["device", "correct_sd", "sd"]
    found = stages[-1]["sd"]
    names = [name for name, _ in gpu_sd.measurements(gpu_sd.TOY)]
    assert set(found) == {*names, "ratios", "not run"} and found["not run"] == []
    assert all(found[name]["seconds"] > 0 for name in names if name.startswith(("ours", "floor", "official")))
    assert (
        found["mask, batch 2 + 2"]["official_bytes_in_memory"] == 8 * found["mask, batch 2 + 2"]["ours_bytes_in_memory"]
    )
    ratio = found["ours default, batch 2 + 2"]["seconds"] / found["official float32, batch 2 + 2"]["seconds"]
    assert found["ratios"]["default, batch 2 + 2: seconds, ours / official"] == ratio
    assert 0.3 < found["ratios"]["batch 2 + 2: operations, floor / official"] < 1
    path = tmp_path / "sd.json"
    lost = names[3]
    path.write_text(json.dumps({name: value for name, value in found.items() if name != lost}))
    stopped = gpu_sd.run(path, gpu_sd.TOY, time.monotonic() - 1, "cpu")
    assert stopped["not run"] == [lost] and stopped[names[0]] == found[names[0]]
    utilisation = gpu_sd.ratios(found, gpu_sd.TOY, "NVIDIA H200")["low, batch 2 + 2: utilisation"]
    bare, low = (found[f"{name}, batch 2 + 2"] for name in ("floor float32", "ours low"))
    assert utilisation == pytest.approx(bare["operations"] / low["seconds"] / 989e12)


def test_a_network_that_does_not_fit_is_said_so():
    def too_big(model):
        raise torch.OutOfMemoryError

    assert gpu_sd._guarded(too_big, tiny("sd1")) == {"out_of_memory": True}


def test_the_audit_benchmarks_compare_the_same_work(monkeypatch):
    monkeypatch.setattr(audit_benchmark, "ROUNDS", 1)
    found = audit_benchmark.full_size(toy=True)
    assert len(found) == 3 and all(value > 0 for value in found.values())
    monkeypatch.setattr(audit_benchmark, "FEW", 3)
    assert audit_benchmark._peak(audit_benchmark.FEW) > 100
    monkeypatch.setattr(detector_benchmark, "IMAGES", 2)
    monkeypatch.setattr(detector_benchmark, "ROUNDS", 1)
    assert all(value > 0 for value in detector_benchmark.measure().values())


def test_a_method_is_measured_against_the_calls_that_its_steps_make(monkeypatch):
    names = ("salun", "esd", "lora_esd", "advunlearn", "mace")
    monkeypatch.setattr(methods, "load_family", lambda name, family: tiny("sd1"))
    found = methods.measure(names, steps=2, rounds=1)
    assert list(found) == [f"{name}, {what}" for name in names for what in ("seconds a step", "ours / bare floor")]
    assert all(value > 0 for value in found.values())
    compared = {row.method for row in read_plan("digits-sd").rows}
    assert set(methods.METHODS) == {name for name in compared if hasattr(registry.load("methods", name), "steps")} - {
        "influence"  # one step, whose length is found by trying
    }


def test_the_calls_of_steps_are_caught_and_made_again():
    model, job = tiny("sd1"), job_of()
    with methods.caught(model) as calls:
        SalUn(steps=2, batch_size=3, relabel="anchor").erase(model, job)
    assert [call.backward for call in calls] == [False, True] * 2
    assert [len(call.arguments[0]) for call in calls] == [3, 6] * 2
    before = state_of(model)
    methods.replay(calls)
    after = model.network.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_ideas_are_tried_on_what_options_are_tuned_on(tmp_path):
    scores = {"a": torch.tensor([4.0, 3.0, 2.0, 1.0]), "b": torch.tensor([0.4, 0.3, 0.2, 0.1])}
    mask = ideas.per_layer(scores, 0.5, {})
    assert mask.tensors["a"].tolist() == mask.tensors["b"].tolist() == [True, True, False, False]
    kept = {"a": torch.tensor([7.0, 0.0, 0.0, 0.0]), "b": torch.zeros(4)}
    found = ideas.discounted(scores, kept)  # the mean of what is kept is 7 / 8
    torch.testing.assert_close(found["a"], torch.tensor([4 / (7 + 7 / 8), 3 / (7 / 8), 2 / (7 / 8), 1 / (7 / 8)]))
    plan = tomllib.loads((ROOT / "benchmarks" / "plans" / "digits-sd.toml").read_text())
    (name, scenario), *_ = plan["tuning"].items()
    path = tmp_path / "plan.toml"
    path.write_text(ideas.as_plan(plan, name, scenario, 7, {"per layer": tmp_path / "m.safetensors"}))
    rows = read_plan(path).rows
    assert [row.name for row in rows] == [f"{loss}-{kind}" for loss in ideas.LOSSES for kind in ("per-layer",)]
    assert rows[0].options["steps"] == plan["methods"]["salun"]["steps"]
    assert rows[1].saliency == plan["methods"]["salun_distilled"]["saliency"]


def test_the_strips_of_a_benchmark_become_one_picture(tmp_path):
    rows = [
        {"name": name, "strip": strip} for name, strip in (("original", "a.png"), ("lost", None), ("ours", "b.png"))
    ]
    write_png(tmp_path / "a.png", np.full((32, 320, 3), 255, np.uint8))
    write_png(tmp_path / "b.png", np.zeros((32, 320, 3), np.uint8))
    publish.picture({"rows": rows}, tmp_path, tmp_path / "all.jpg")
    seen = read_image(tmp_path / "all.jpg", "picture").mean(-1)
    assert seen.shape == (64, 520) and (seen[34:, 202:] < 16).all() and (seen[:30, 202:] > 240).all()
    assert (seen[:, :200] < 128).any()  # the names
    publish.picture({"rows": [{"name": "classifier"}]}, tmp_path, tmp_path / "none.jpg")
    assert not (tmp_path / "none.jpg").exists()
