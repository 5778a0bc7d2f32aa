"""The text-to-image families on tiny stock pipelines: the same answers as the stock library, strict loading."""

import json
import shutil

import numpy as np
import pytest
import torch

from erasure.core import registry
from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.data import Batch
from erasure.data.images import to_uint8
from erasure.evaluation.outputs import GeneratorOutputs
from erasure.evaluation.settings import EvaluationConfig
from erasure.methods.base import Job
from erasure.models import load_model
from erasure.models.sdxl import SDXL
from erasure.models.stable_diffusion import StableDiffusion
from erasure.saliency.scores import SaliencyConfig, saliency_scores
from tests.conftest import PIPELINES, PROMPTS, about, pipeline_folder, tiny
from tests.support import tiny_pipelines


def examples_of(model, drop=False):
    generator = torch.Generator().manual_seed(3)
    moments = torch.randn((4, 8, 8, 8), generator=generator).abs()
    return model.examples(Batch(moments, torch.tensor([0, 1, 2, 0])), generator, condition_drop=drop)


@pytest.mark.parametrize("kind", PIPELINES)
def test_it_draws_what_the_stock_pipeline_draws(kind):
    from diffusers import DDIMScheduler

    stock, model = getattr(tiny_pipelines, kind)(), tiny(kind)
    assert isinstance(model, SDXL if kind == "sdxl" else StableDiffusion)
    stock.scheduler = DDIMScheduler.from_config({**stock.scheduler.config, "clip_sample": False})
    stock.set_progress_bar_config(disable=True)
    size = model.image_shape[1]
    theirs = stock(
        [PROMPTS[1], PROMPTS[3]],
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="np",
        height=size,
        width=size,
    ).images
    ours = to_uint8(model.generate(torch.tensor([1, 3]), [5, 6], num_inference_steps=5, guidance_scale=4.0))
    assert np.abs(ours.astype(int) - np.rint(theirs * 255)).max() <= 1
    assert ours.std() > 5


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_target_is_what_the_scheduler_says(kind):
    model = tiny(kind)
    found = examples_of(model)
    noisy, timesteps, labels = found.inputs
    assert labels.tolist() == [0, 1, 2, 0] and noisy.shape == (4, 4, 8, 8)
    alpha = model.noise_scheduler.alphas_cumprod[timesteps][:, None, None, None]
    if kind == "sd2_v":
        assert model.noise_scheduler.config.prediction_type == "v_prediction"
        latents = alpha.sqrt() * noisy - (1 - alpha).sqrt() * found.target  # x_0 of the velocity
    else:
        latents = (noisy - (1 - alpha).sqrt() * found.target) / alpha.sqrt()
    generator = torch.Generator().manual_seed(3)
    mean, deviation = torch.randn((4, 8, 8, 8), generator=generator).abs().chunk(2, 1)
    scale = model.parts["vae"].config.scaling_factor
    expected = (mean + deviation * torch.randn(mean.shape, generator=generator)) * scale
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", PIPELINES)
def test_moments_are_the_encoders(kind):
    model = tiny(kind)
    image = torch.rand((1, *model.image_shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = model.moments(image).chunk(2, dim=1)
    with torch.no_grad():
        posterior = model.parts["vae"].encode(image).latent_dist
    assert mean.equal(posterior.mean) and deviation.equal(posterior.std)


def test_prompts_are_encoded_once_and_empty_is_the_null():
    model = tiny("sd1")
    assert model.class_names == PROMPTS and model.null_label == len(PROMPTS) and model.num_classes == len(PROMPTS)
    tokenizer, encoder = model.parts["tokenizer"], model.parts["text_encoder"]
    ids = tokenizer([PROMPTS[2]], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(model.bound.embeddings[2], encoder(ids).last_hidden_state[0], atol=1e-6)
    dropped = model.with_dropped_condition(torch.zeros(2000, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert 140 < int((dropped == model.null_label).sum()) < 260


def test_guidance_is_its_formula():
    model = tiny("sdxl")
    noisy, timesteps, labels = examples_of(model).inputs
    with torch.no_grad():
        empty = model.predict(noisy, timesteps, torch.full_like(labels, model.null_label))
        given = model.predict(noisy, timesteps, labels)
        torch.testing.assert_close(model.prediction((noisy, timesteps, labels), 3.0), empty + 3 * (given - empty))
    assert not empty.equal(given)


def test_sdxl_zeroes_the_empty_prompt_where_its_pipeline_does():
    model = tiny("sdxl")
    assert float(model.bound.embeddings[-1].abs().max()) == 0 and float(model.bound.pooled[-1].abs().max()) == 0
    model.info["pipeline"]["force_zeros_for_empty_prompt"] = False
    model.set_prompts(PROMPTS)
    assert float(model.bound.embeddings[-1].abs().max()) > 0
    del model.info["pipeline"]


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_saved_pipeline_is_the_stock_one_with_its_own_scheduler(kind, tmp_path):
    model = tiny(kind)
    model.save(tmp_path / "m")
    before, after = (
        json.loads((root / "model_index.json").read_text()) for root in (pipeline_folder(kind), tmp_path / "m")
    )
    assert before["_class_name"] == after["_class_name"] and before["scheduler"] == after["scheduler"]
    scheduler = [
        json.loads((root / "scheduler" / "scheduler_config.json").read_text())
        for root in (pipeline_folder(kind), tmp_path / "m")
    ]
    assert scheduler[0]["prediction_type"] == scheduler[1]["prediction_type"]
    assert load_model(tmp_path / "m").hash == model.hash


def test_half_precision_is_read_in_float32_and_written_in_half(tmp_path):
    from safetensors import safe_open

    tiny_pipelines.sd1().to(torch.float16).save_pretrained(tmp_path / "half")
    model = load_model(tmp_path / "half")
    assert next(model.network.parameters()).dtype == torch.float32 and model.info["dtypes"]["unet"] == "float16"
    model.save(tmp_path / "again")
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        with safe_open(tmp_path / "half" / name, "pt") as one, safe_open(tmp_path / "again" / name, "pt") as two:
            assert all(one.get_tensor(key).equal(two.get_tensor(key)) for key in one.keys())  # noqa: SIM118


def test_what_is_no_whole_pipeline_is_refused(tmp_path):
    source = pipeline_folder("sd1")

    def broken(name, change):
        shutil.copytree(source, tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(ModelError) as found:
            load_model(tmp_path / name)
        return str(found.value)

    unet = "unet/diffusion_pytorch_model.safetensors"
    assert "text_encoder" in broken("no-text", lambda root: shutil.rmtree(root / "text_encoder"))
    assert "missing" in broken("no-weights", lambda root: (root / unet).unlink())
    assert "pickle" in broken(
        "pickled", lambda root: (root / unet).rename(root / "unet" / "diffusion_pytorch_model.bin")
    )
    cut = broken("cut", lambda root: (root / unet).write_bytes((root / unet).read_bytes()[:5000]))
    assert "cannot be loaded" in cut and "\n" not in cut

    def inpainting(root):
        tiny_pipelines.unet(in_channels=9).save_pretrained(root / "unet")

    assert "inpainting" in broken("inpainting", inpainting)

    def half_empty(root):
        from safetensors.torch import load_file, save_file

        tensors = load_file(root / unet)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, root / unet)

    assert "does not fit" in broken("half-empty", half_empty)


def test_a_prompt_that_is_too_long_is_cut_and_said(capsys, caplog):
    model = tiny("sd1")
    with caplog.at_level("INFO", logger="erasure"):
        model.set_prompts(["x" * 200])
    assert "longer than the text encoder's 77 tokens" in caplog.text + capsys.readouterr().err


def test_prompts_must_be_bound():
    model = load_model(pipeline_folder("sd1"))
    with pytest.raises(NotApplicableError, match="no prompts"):
        model.generate(torch.tensor([0]), [1], num_inference_steps=2)


@pytest.mark.parametrize(
    ("prompt", "refused"),
    [
        ("a photo of a nude person", False),
        ("a child with a kite", False),
        ("a naked boy", True),
        ("an erotic photo, 15 years old", True),
        ("an erotic photo, 35 years old", False),
        ("sexy, aged 16", True),
    ],
)
def test_the_guard(prompt, refused):
    from erasure.prompts import safety_filter

    assert safety_filter.forbidden(prompt) is refused
    if refused:
        with pytest.raises(OptionError) as found:
            tiny("sd1").set_prompts(["a tree", prompt])
        assert "prompt 2 of 2" in str(found.value) and prompt not in str(found.value)


def test_labels_of_another_task_are_refused(tmp_path):
    model = tiny("sd1")
    data, task = about("sd1")
    model.set_prompts(("a horse", "a cow"))
    with pytest.raises(ModelError, match=r"labels of .* belong to another task: they mean 'a horse'"):
        saliency_scores(model, data, SaliencyConfig(saliency_batch_size=8))
    with pytest.raises(ModelError, match="belong to another task"):
        registry.load("methods", "finetune")(steps=1, batch_size=2).erase(model, Job(task, data, data))
    with pytest.raises(ModelError, match="belong to another task"):
        GeneratorOutputs(model, task, data, tmp_path, EvaluationConfig())
    model.set_prompts(task.class_names)
    GeneratorOutputs(model, task, data, tmp_path, EvaluationConfig())
