"""SD3 and FLUX on tiny stock pipelines: the stock library's images, flow matching by hand, erasure from end to end."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from erasure.core import registry
from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.data import Batch
from erasure.data.task import Task
from erasure.methods.base import Job
from erasure.models import load_model
from erasure.saliency.mask import Mask
from erasure.training.latent_cache import Latents
from tests.conftest import state_of
from tests.support.tiny_flow import BY_KIND, WINDOW, folder

PROMPTS = ("a cat", "a photo of a cat", "a dog", "a tree")
FAMILIES = ("sd3", "flux")
SMALL = (
    *("--steps", 2, "--batch-size", 2, "--num-forget-images", 2, "--num-retain-images", 2, "--saliency-batch-size", 2),
    *("--training-image-inference-steps", 2, "--num-images", 1, "--num-inference-steps", 2, "--learning-rate", 1e-3),
)


def tiny(kind):
    return load_model(folder(kind)).set_prompts(PROMPTS)


def examples_of(model, count=4):
    generator = torch.Generator().manual_seed(3)
    moments = torch.randn((count, 8, 8, 8), generator=generator).abs()
    return model.examples(Batch(moments, torch.arange(count) % 3), generator)


@pytest.mark.parametrize("kind", BY_KIND)
def test_it_draws_what_the_stock_pipeline_draws(kind):
    stock, model = BY_KIND[kind](), tiny(kind)
    guidance = 1.0 if kind == "flux-schnell" else 4.0
    theirs = stock(
        [PROMPTS[1], PROMPTS[3]],
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="pt",
        height=32,
        width=48,
        max_sequence_length=WINDOW,
    ).images
    settings = {"num_inference_steps": 4, "guidance_scale": guidance}
    ours = model.generate(torch.tensor([1, 3]), [5, 6], size=(32, 48), **settings)
    torch.testing.assert_close(ours, theirs * 2 - 1, rtol=0, atol=1e-4)
    assert float((ours[0] - ours[1]).abs().max()) > 0.1
    other = model.generate(torch.tensor([0, 3]), [5, 6], size=(32, 48), **settings)
    assert not other[0].equal(ours[0]) and torch.allclose(other[1], ours[1], atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_noise_lies_on_a_line_and_the_target_is_its_slope(kind):
    model = tiny(kind)
    found = examples_of(model)
    noisy, timesteps, labels = found.inputs
    generator = torch.Generator().manual_seed(3)
    mean, deviation = torch.randn((4, 8, 8, 8), generator=generator).abs().chunk(2, 1)
    config = model.parts["vae"].config
    drawn = mean + deviation * torch.randn(mean.shape, generator=generator)
    latents = (drawn - config.shift_factor) * config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    sigmas = (timesteps / 1000)[:, None, None, None]
    torch.testing.assert_close(noisy, (1 - sigmas) * latents + sigmas * noise)
    torch.testing.assert_close(found.target, noise - latents)
    assert labels.tolist() == [0, 1, 2, 0] and model.sample_shape == (4, 8, 8)
    assert model.decode(latents).equal(
        model.parts["vae"].decode(latents / config.scaling_factor + config.shift_factor).sample
    )


@pytest.mark.parametrize(
    ("kind", "shift"), [("sd3", math.log(3)), ("flux", 0.5 - 0.65 * 240 / 3840), ("flux-schnell", 0)]
)
def test_training_timesteps_are_logit_normal_and_shifted(kind, shift):
    """The logit of a shifted sigma is that of the sigma plus the logarithm of the shift: a normal around it."""
    logits = (tiny(kind).training_timesteps(20_000, torch.Generator().manual_seed(0)) / 1000).double().logit()
    assert float(logits.mean()) == pytest.approx(shift, abs=1e-4)  # exact but for rounding: the draws come in pairs
    assert float(logits.std()) == pytest.approx(1, abs=0.02)


def test_guidance_is_told_where_it_can_be_and_else_its_formula():
    for kind, told in (("sd3", False), ("flux-schnell", False), ("flux", True)):
        model = tiny(kind)
        noisy, timesteps, labels = inputs = examples_of(model).inputs
        with torch.no_grad():
            empty = model.predict(noisy, timesteps, torch.full_like(labels, model.null_label))
            given = model.predict(noisy, timesteps, labels)
            torch.testing.assert_close(model.prediction(inputs), given)
            guided, formula = model.prediction(inputs, 3.0), empty + 3 * (given - empty)
        assert torch.allclose(guided, formula, atol=1e-6) is not told, kind
        assert not guided.equal(given) and not empty.equal(given)


@pytest.mark.parametrize("kind", BY_KIND)
def test_saved_and_loaded_is_the_same_to_the_bit_and_stock(kind, tmp_path):
    from diffusers import DiffusionPipeline

    model = tiny(kind)
    model.save(tmp_path / "m")
    again = load_model(tmp_path / "m").set_prompts(PROMPTS)
    assert (again.family, again.hash, again.parts_hash) == (model.family, model.hash, model.parts_hash)
    assert again.bound.embeddings.equal(model.bound.embeddings) and again.bound.pooled.equal(model.bound.pooled)
    inputs = examples_of(model).inputs
    with torch.no_grad():
        assert again.prediction(inputs).equal(model.prediction(inputs))
    assert model.fresh(1).hash != model.hash
    missing = {"text_encoder_3": None, "tokenizer_3": None} if "without" in kind else {}
    stock = DiffusionPipeline.from_pretrained(tmp_path / "m", **missing)
    assert (
        type(stock).__name__ == model.pipeline_class and stock.transformer.state_dict().keys() == state_of(model).keys()
    )


def test_t5_reads_its_window_and_zeros_stand_for_it():
    with_t5, without = tiny("sd3").bound.embeddings, tiny("sd3-without-t5").bound.embeddings
    assert with_t5.shape == without.shape == (len(PROMPTS) + 1, 77 + WINDOW, 32)
    assert float(without[:, 77:].abs().max()) == 0 < float(with_t5[:, 77:].abs().min())
    assert float(without[:, :77, 24:].abs().max()) == 0  # the two CLIPs are 8 and 16 wide
    for key, window in (("flux", 512), ("flux-schnell", 256)):
        model = load_model(folder(key))
        del model.info["max_sequence_length"]
        assert model.window == window


def test_a_prompt_that_t5_must_cut_is_said(capsys, caplog):
    with caplog.at_level("INFO", logger="erasure"):
        load_model(folder("flux")).set_prompts(["a kite above fields"])
    assert f"longer than the text encoder's {WINDOW} tokens" in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["finetune", "gradient_ascent", "random_label", "salun"])
def test_every_gradient_method_moves_the_mask_and_nothing_else(name, kind):
    model, original = tiny(kind), tiny(kind)
    moments = torch.randn((8, 8, 8, 8), generator=torch.Generator().manual_seed(0)).abs()
    data = Latents("noise", "train", np.empty((8, 0, 0, 0), np.uint8), np.arange(8) % 4, PROMPTS, moments=moments)
    task = Task(PROMPTS, (0, 1), anchors=(2, 3), title="cat")
    mask = Mask.random(Mask({n: p.detach() for n, p in model.network.named_parameters()}), 0.5, 0)
    method = registry.load("methods", name)
    recipe = {k: v for k, v in method.defaults_of[kind].items() if k != "saliency"}
    recipe |= {"epochs": 0.0, "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "memory": "low"}
    job = Job(task, data.of_classes((0, 1)), data.of_classes((2, 3)), mask=mask)
    outcome = method(**recipe).erase(model, job)
    assert len(outcome.records) == 2 and model.parts_hash == original.parts_hash
    before, moved = state_of(original), 0
    for key, weight in model.network.named_parameters():
        same = weight.detach().view(torch.int32) == before[key].view(torch.int32)
        assert same[~mask.tensors[key]].all(), key
        moved += int((~same).sum())
    assert moved > 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_concept_is_erased_exported_and_verified(kind, cli, tmp_path):
    run, base = tmp_path / "run", folder(kind)
    request = ("--forget", "cat", "--anchor", "dog", "--retain", "a tree", *SMALL)
    result = cli("erase", "--model", base, *request, "--out", run, "--json").json
    before, after = load_model(base), load_model(run)
    assert result["steps"] == 2 and after.hash == result["hash"] != before.hash
    assert after.family == kind and after.parts_hash == before.parts_hash
    mask, old = Mask.load(run / "mask.safetensors"), dict(before.network.named_parameters())
    assert mask.density == pytest.approx(0.5, abs=1e-3)
    for name, weight in after.network.named_parameters():
        assert weight[~mask.tensors[name]].equal(old[name][~mask.tensors[name]]), name
    for form, out in (("diffusers", "folder"), ("delta", "d.safetensors"), ("safetensors", "n.safetensors")):
        assert cli("export", run, "--format", form, "--out", tmp_path / out).code == 0
        assert cli("verify", tmp_path / out, "--base", base, "--json").json["verified"]
    assert load_model(tmp_path / "folder").hash == after.hash
    applied = ("export", "--apply", tmp_path / "d.safetensors", "--to", base, "--out", tmp_path / "again")
    assert cli(*applied).code == 0 and load_model(tmp_path / "again").hash == after.hash
    for form in ("single-file", "lora", "unet"):
        refusal = cli("export", run, "--format", form, "--out", tmp_path / "x.safetensors")
        assert refusal.code == 1 and f"--format {form} is for Stable Diffusion 1, 2 and XL" in refusal.err
    drawn = ("--prompt", "a cat", "--num-images", 1, "--num-inference-steps", 2, "--out", tmp_path / "drawn", "--json")
    assert cli("generate", "--model", run, *drawn).json["images"] == 1


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_flows_do_not_have_is_refused(kind):
    model, task = tiny(kind), Task(PROMPTS, (0,), anchors=(2,), title="cat")
    label = torch.tensor([0])
    with pytest.raises(NotApplicableError, match=r"`eta` 0\.5"):
        model.generate(label, [1], num_inference_steps=2, eta=0.5)
    with pytest.raises(NotApplicableError, match="`sampler` ddim"):
        model.generate(label, [1], num_inference_steps=2, sampler="ddim")
    with pytest.raises(OptionError, match="multiples of 8"):
        model.generate(label, [1], num_inference_steps=2, size=(36, 32))
    with pytest.raises(OptionError, match="outside 1 to 1000"):
        model.generate(label, [1], num_inference_steps=0)
    for weights in ("attn1", "attn2", "not-attn2"):
        method = registry.load("methods", "finetune")(weights=weights)
        method.check(task)
        with pytest.raises(NotApplicableError, match="it has no cross-attention"):
            method.check_model(model)
    if kind == "sd3":
        with pytest.raises(OptionError, match="no positions beyond"):
            model.shape_of((64, 128))


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_no_whole_pipeline_is_refused(tmp_path):
    from tests.support import tiny_pipelines

    def refused(name, kind, change):
        shutil.copytree(folder(kind), tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(ModelError) as found:
            load_model(tmp_path / name)
        assert "\n" not in str(found.value)
        return str(found.value)

    def small_clip(root):
        from transformers import CLIPTextModel

        CLIPTextModel(tiny_pipelines.text_config(8, "quick_gelu", 8)).save_pretrained(root / "text_encoder")

    def wide_vae(root):
        tiny_pipelines.vae(latent_channels=8).save_pretrained(root / "vae")

    def no_words(root):
        (root / "tokenizer_3" / "tokenizer.json").unlink()

    assert "lacks transformer/" in refused("a", "flux", lambda root: shutil.rmtree(root / "transformer"))
    assert "lacks text_encoder_3/" in refused("b", "sd3", lambda root: shutil.rmtree(root / "text_encoder_3"))
    assert "reads pooled text 16 wide" in refused("c", "flux", small_clip)
    assert "reads latents 4 wide" in refused("d", "sd3", wide_vae)
    assert "neither tokenizer.json nor spiece.model" in refused("e", "sd3", no_words)
    schedule = "scheduler/scheduler_config.json"
    named = refused("f", "sd3", lambda root: _edit(root / schedule, _class_name="DDIMScheduler"))
    assert "its scheduler is a DDIMScheduler: expected FlowMatchEulerDiscreteScheduler" in named
