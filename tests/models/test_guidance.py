"""Steering: the same images as the stock library's, the formula step by step, and nothing that changes."""

import copy
import json

import numpy as np
import pytest
import torch

from erasure.core import registry
from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.methods.base import Job
from erasure.methods.guidance.inference_time import named
from erasure.models import load_model
from erasure.models.guidance import Steering
from tests.conftest import CATS, PIPELINES, PROMPTS, pipeline_folder, tiny
from tests.support import tiny_flow, tiny_pipelines

STEPS = {"num_inference_steps": 6, "guidance_scale": 4.0}
STRONG = {"scale": 2000.0, "threshold": 0.025, "momentum": 0.5, "decay": 0.7, "warmup": 2}


def erased(name, model, task=CATS, **options):
    registry.load("methods", name)(**options).erase(model, Job(task, Dataset.nothing(), Dataset.nothing()))
    return model


def drawn(model, labels=(1, 3), seeds=(5, 6), **settings):
    return model.generate(torch.tensor(labels), list(seeds), **{**STEPS, **settings})


def stock_images(stock, model, **settings):
    from diffusers import DDIMScheduler

    stock.scheduler = DDIMScheduler.from_config({**stock.scheduler.config, "clip_sample": False})
    stock.set_progress_bar_config(disable=True)
    size = model.image_shape[1]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    how = {**STEPS, "generator": generators, "output_type": "np", "height": size, "width": size, **settings}
    return torch.from_numpy(stock([PROMPTS[1], PROMPTS[3]], **how).images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_negative_prompt_is_the_stock_pipelines(kind):
    model = tiny(kind)
    plain = drawn(model)
    steered = drawn(erased("negative_prompt", model, text="a house"))
    stock = stock_images(getattr(tiny_pipelines, kind)(), model, negative_prompt=["a house"] * 2)
    torch.testing.assert_close(steered, stock, rtol=0, atol=1e-5)
    assert float((steered - plain).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_sld_is_the_stock_pipelines(kind):
    from diffusers import StableDiffusionPipelineSafe

    model = erased("sld", tiny(kind), text="a house", **STRONG)
    parts = getattr(tiny_pipelines, kind)().components
    parts = {name: part for name, part in parts.items() if name != "image_encoder"}
    stock = StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    stock.safety_concept = "a house"
    numbers = {"sld_guidance_scale": 2000, "sld_warmup_steps": 2, "sld_threshold": 0.025}
    theirs = stock_images(stock, model, **numbers, sld_momentum_scale=0.5, sld_mom_beta=0.7)
    torch.testing.assert_close(drawn(model), theirs, rtol=0, atol=1e-5)
    for other in ({"warmup": 3}, {"momentum": 0.4}, {"decay": 0.1}, {"threshold": 0.0}, {"scale": 1.0}):
        info = {**model.info["steering"], **other}
        model.info["steering"] = info
        assert float((drawn(model) - theirs).abs().max()) > 1e-4, other


def test_sld_of_two_classes_is_its_formula_step_by_step(monkeypatch):
    """The answers of six steps, by hand: warm-up, scale, threshold and a momentum for each class."""
    model = tiny("ddpm")
    task = Task(model.class_names, (3, 8))
    erased("sld", model, task, **STRONG)
    seen, asked = [], model.predict

    def spied(noisy, timesteps, labels):
        seen.append((labels.tolist(), asked(noisy, timesteps, labels)))
        return seen[-1][1]

    monkeypatch.setattr(model, "predict", spied)
    from erasure.models.guidance import guided

    answer, nu = guided(model), {3: 0.0, 8: 0.0}
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        noisy = torch.randn((2, *model.sample_shape), generator=generator)
        seen.clear()
        found = answer((noisy, torch.tensor([900, 900]), torch.tensor([1, 2])), 1.5)
        by = {labels[0]: value for labels, value in seen}
        assert sorted(by) == [1, 3, 8, model.null_label]
        towards = by[1] - by[model.null_label]
        for label in (3, 8):
            distance = by[1] - by[label]
            scale = np.minimum(1, 2000 * distance.abs().detach().numpy()) * (distance < 0.025).numpy()
            gamma = torch.from_numpy(scale) * (by[label] - by[model.null_label]) + 0.5 * nu[label]
            nu[label] = 0.7 * nu[label] + 0.3 * gamma
            if step >= 2:
                towards = towards - gamma
        torch.testing.assert_close(found, by[model.null_label] + 1.5 * towards)


@pytest.mark.parametrize(("name", "kind"), [("negative_prompt", "sd1"), ("sld", "sdxl"), ("sld", "ddpm")])
def test_no_weight_changes_and_what_is_saved_is_obeyed(name, kind, tmp_path):
    task = CATS if kind in PIPELINES else Task(tiny(kind).class_names, (3,))
    model = tiny(kind)
    plain, before = drawn(model), model.hash
    flags = [p.requires_grad for p in model.network.parameters()]
    erased(name, model, task, **({} if name == "negative_prompt" else {"warmup": 0, "threshold": 1.0}))
    steered = drawn(model)
    assert model.hash == before and flags == [p.requires_grad for p in model.network.parameters()]
    assert drawn(model).equal(steered) and not steered.equal(plain)
    model.save(tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.hash == before
    if kind in PIPELINES:
        assert model.parts_hash == again.parts_hash != tiny(kind).parts_hash
        again.set_prompts(PROMPTS)
    assert drawn(again).equal(steered)
    del again.info["steering"]
    if kind in PIPELINES:
        again.set_prompts(PROMPTS)
    assert drawn(again).equal(plain)


def test_a_flow_with_guidance_is_steered():
    model = load_model(tiny_flow.folder("sd3")).set_prompts(PROMPTS)
    plain = drawn(model)
    steered = drawn(erased("negative_prompt", model, text="a house"))
    assert not steered.equal(plain)
    model.prompt_embeddings = copy.copy(model.bound)
    embeddings, pooled = model.bound.embeddings.clone(), model.bound.pooled.clone()
    embeddings[-2], pooled[-2] = embeddings[-1], pooled[-1]  # the text in the place of the empty prompt
    model.prompt_embeddings = type(model.bound)(model.bound.prompts, embeddings, pooled)
    del model.info["steering"]
    torch.testing.assert_close(drawn(model), steered)


def test_the_text_is_the_names_of_what_is_forgotten():
    assert named("digits/seven") == "seven"
    assert named("van-gogh,imagenette/garbage-truck, Monet") == "van gogh, garbage truck, Monet"
    assert erased("sld", tiny("sd1")).info["steering"]["text"] == "cat"
    assert erased("negative_prompt", tiny("sd1"), text="two cats").info["steering"] == {
        "kind": "negative_prompt",
        "text": "two cats",
    }
    medium, kind = Steering("sld", "cat", **registry.load("methods", "sld").presets["medium"]), "sld"
    assert registry.load("methods", kind)().steering({"text": "cat"}) == medium
    assert Steering.of({"steering": medium.as_json()}) == medium


@pytest.mark.parametrize("name", ["negative_prompt", "sld"])
def test_what_cannot_be_steered_is_refused(name):
    method = registry.load("methods", name)()
    with pytest.raises(NotApplicableError, match="only models that generate images"):
        method.check_model(tiny("classifier"))
    with pytest.raises(NotApplicableError, match="is unconditional"):
        method.check_model(tiny("ddpm-unconditional"))
    with pytest.raises(NotApplicableError, match="distilled"):
        method.check_model(load_model(tiny_flow.folder("flux")))
    with pytest.raises(NotApplicableError, match="steered already"):
        method.check_model(erased("sld", tiny("sd1")))
    with pytest.raises(NotApplicableError, match="`text` is for text-to-image"):
        type(method)(text="three").check_model(tiny("ddpm"))
    with pytest.raises(OptionError, match="single samples"):
        method.check(Task(PROMPTS, (), samples=True))
    nameless = tiny("ddpm")
    del nameless.info["null_label"]
    with pytest.raises(NotApplicableError, match="no null class"):
        method.check_model(nameless)


def test_bad_numbers_and_no_guidance_are_refused():
    sld = registry.load("methods", "sld")
    for bad in ({"scale": 0.0}, {"momentum": 1.0}, {"decay": -0.1}, {"warmup": -1}, {"threshold": float("nan")}):
        with pytest.raises(OptionError):
            sld(**bad).check(CATS)
    with pytest.raises(NotApplicableError, match=r"guidance scale 1.*`method` sld"):
        registry.load("methods", "negative_prompt")().check_model(tiny("ddpm"))
    sld().check_model(tiny("ddpm"))


@pytest.mark.parametrize(
    "written",
    [
        "sld",
        {"kind": "other", "text": "a"},
        {"kind": "sld"},
        {"kind": "sld", "text": "a", "scale": "much"},
        {"kind": "negative_prompt", "text": "a", "labels": [1]},
        {"kind": "negative_prompt", "labels": ["x"]},
        {"kind": "negative_prompt", "text": "a", "more": 1},
    ],
)
def test_a_damaged_instruction_is_refused(written):
    model = tiny("sd1")
    model.info["steering"] = written
    with pytest.raises(ModelError, match="makes no sense"):
        model.set_prompts(PROMPTS)


def test_a_run_is_obeyed_by_every_verb_and_not_exported(cli, refused, tmp_path):
    base, run = pipeline_folder("sd1"), tmp_path / "run"
    asked = ("--forget", "cat", "--no-evaluate", "--out", run)
    masked = cli("erase", "--model", base, "--method", "sld", "--mask", "random", *asked)
    assert masked.code == 1 and "--mask random has no meaning for sld: it changes no weight" in masked.err
    found = cli("erase", "--model", base, "--method", "sld", "--preset", "max", *asked, "--json").json
    assert found["changed_weights"] == 0 and found["moves"] == "nothing" and found["steps"] == 0
    assert json.loads((run / "model" / "erasure.json").read_text())["steering"]["scale"] == 5000.0
    images = []
    for number, model in enumerate((base, run)):
        out = tmp_path / str(number)
        how = ("--num-images", 1, "--num-inference-steps", 4)
        assert cli("generate", "--model", model, "--prompt", "a cat", *how, "--out", out).code == 0
        images.append((out / "grid.png").read_bytes())
    assert images[0] != images[1]
    line = refused("export", run, "--format", "diffusers", "--out", tmp_path / "x")
    assert "changed no weight (sld)" in line and "StableDiffusionPipelineSafe" in line and "'cat'" in line
