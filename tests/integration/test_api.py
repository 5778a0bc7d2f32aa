"""The public API: the ten lines of the documentation, its types, and what notebooks show."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import erasure as er
from tests.conftest import pipeline_folder, state_of, tiny

ROOT = Path(__file__).parent.parent.parent
QUICK = {"num_images": 1, "num_inference_steps": 2}
FEW_IMAGES = {"num_forget_images": 4, "num_retain_images": 4, "training_image_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return er.load("digits-sd")


@pytest.fixture(scope="module")
def target():
    return er.Concept.preset("digits/three")


@pytest.fixture(scope="module")
def run(pipe, target, tmp_path_factory):
    before = state_of(pipe)
    mask = er.saliency_mask(pipe, target, density=0.5)
    found = er.erase(
        pipe,
        target,
        method=er.methods.SalUn(alpha=0.5, steps=2),
        mask=mask,
        out=tmp_path_factory.mktemp("api") / "run",
        seed=0,
        training_images=FEW_IMAGES,
        evaluation=QUICK,
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(pipe).items()), "the given model moved"
    return found, mask


def test_a_mask_has_the_shapes_of_the_weights(pipe, run):
    mask = run[1]
    for name, parameter in pipe.network.named_parameters():
        assert mask.tensors[name].shape == parameter.shape and mask.tensors[name].dtype == torch.bool
    assert mask.density == pytest.approx(0.5, abs=1e-6)


def test_a_run_has_a_model_metrics_and_pictures(pipe, run):
    found, mask = run
    assert type(found.model.pipeline()).__name__ == "StableDiffusionPipeline"
    score = found.metrics["ua"]
    assert score.interval[0] <= score.value <= score.interval[1]
    assert found.original is not None and set(found.original.metrics) == set(found.metrics) - {"paired_distance"}
    assert found.images.compare().size[0] > found.images.compare().size[1] / 2 and found.images.paths
    options = found.record["settings"]["options"]
    assert options["alpha"] == 0.5 and options["steps"] == 2 and options["epochs"] == 0
    card = pipe.info["erase"]["salun"]  # what was not given still follows the model's card
    assert all(options[key] == value for key, value in card.items() if key in options and key not in ("alpha", "steps"))
    moved = state_of(found.model)
    for name, tensor in state_of(pipe).items():
        if name in mask.tensors:
            assert torch.equal(tensor[~mask.tensors[name]], moved[name][~mask.tensors[name]]), name
    assert any(not torch.equal(tensor, moved[name]) for name, tensor in state_of(pipe).items())


def test_the_same_call_returns_the_finished_run(pipe, target, run):
    again = er.Run(run[0].folder)
    assert again.to_dict() == run[0].to_dict() and again.metrics["ua"] == run[0].metrics["ua"]


def test_verbs_take_runs_and_objects(pipe, run, tmp_path):
    found = run[0]
    scores = er.evaluate(found, metrics=["ua", "ira"])
    assert set(scores.metrics) == {"ua", "ira"} and scores.metrics["ua"].value == found.metrics["ua"].value
    audited = er.audit(
        found.model,
        base=pipe,
        prompts=["a photo of the digit three in neon style"],
        detectors={"image_classifier": {"model": "digits-sd-classifier"}},
        classes=("three",),
        num_inference_steps=2,
        max_rate=0.01,
        out=tmp_path / "audit",
    )
    assert audited.verdict in ("pass", "fail", "inconclusive")
    found.export(tmp_path / "cleaned.safetensors", format="single-file")
    assert er.verify(tmp_path / "cleaned.safetensors", base="digits-sd").to_dict()["verified"]
    assert [row["name"] for row in er.compare(found).to_dict()["rows"]] == ["original", "salun (run)"]


def test_images_of_prompts_and_of_classes(run, tmp_path):
    of_prompts = er.generate(
        run[0], out=tmp_path / "p", prompts=["a three in neon style"], num_images=2, num_inference_steps=2
    )
    assert of_prompts.images == 2 and of_prompts.prompts == ("a three in neon style",)
    of_classes = er.generate(
        "digits-ddpm", out=tmp_path / "c", classes=[3, "four"], num_images=1, num_inference_steps=2
    )
    assert of_classes.images == 2 and len(list((tmp_path / "c").rglob("0*.png"))) == 2


def test_a_notebook_shows_tables_and_pictures(run):
    page = run[0]._repr_html_()
    assert "<table>" in page and "UA" in page and "data:image/png" in page
    assert "<script>" not in page


def test_a_pipeline_in_memory_is_a_model(tmp_path):
    import diffusers

    stock = diffusers.StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))
    before = {name: tensor.clone() for name, tensor in stock.unet.state_dict().items()}
    target = er.Concept.from_words("cat", anchor="a dog", retain="a tree,a house")
    found = er.erase(
        stock,
        target,
        method=er.methods.SalUn(steps=1, batch_size=2),
        mask="random",
        out=tmp_path / "run",
        training_images=FEW_IMAGES,
        evaluate=False,
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in stock.unet.state_dict().items())
    base = er.load(found.record["settings"]["model"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.network.state_dict().items())
    assert found.metrics == {}
    found.export(tmp_path / "cleaned", format="diffusers")  # the original is found in the run's folder


def test_classes_and_samples(tmp_path):
    model = tiny("classifier")
    before = state_of(model)
    quick = {"method": "finetune", "options": {"steps": 2, "batch_size": 8}}
    by_class = er.erase(model, er.Classes(3), out=tmp_path / "class", **quick)
    assert by_class.record["settings"]["forget"] == "class:3" and by_class.metrics["ua"].n > 0
    by_id = er.erase(model, er.Samples(np.array([5, 17]).tolist()), out=tmp_path / "ids", **quick)
    assert by_id.record["settings"]["forget"] == "ids:5,17"
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    with pytest.raises(er.ErasureError, match="classifier"):
        by_id.images.compare()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda out: er.load(3), "cannot load a int"),
        (lambda out: er.load("nowhere.safetensors"), "does not exist"),
        (lambda out: er.erase("digits-ddpm", "three", out=out), "a str is no target"),
        (lambda out: er.erase("digits-ddpm", er.Classes(), out=out), "names no class"),
        (lambda out: er.erase("digits-ddpm", er.Classes(77), out=out), "out of range"),
        (lambda out: er.saliency_mask("digits-ddpm", er.Classes(3), density=2.0), "density. 2.0 is outside"),
        (lambda out: er.saliency_mask("digits-ddpm", er.Classes(3), densty=0.5), "did you mean 'density'"),
        (lambda out: er.Run(out), "does not exist"),
    ],
)
def test_errors_speak_of_arguments(call, says, tmp_path):
    with pytest.raises(er.ErasureError, match=says) as error:
        call(tmp_path / "run")
    assert "--" not in str(error.value) and not (tmp_path / "run").exists()


def test_the_static_names_are_those_that_are_given():
    tree = ast.parse((ROOT / "erasure" / "__init__.py").read_text(encoding="utf-8"))
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    static = {alias.asname for node in checking.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert static == set(er.__all__)
    for name in er.__all__:
        assert getattr(er, name).__doc__


@pytest.mark.slow
def test_a_strict_type_checker_accepts_a_program_that_uses_it():
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "tests/integration/consumer.py"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
