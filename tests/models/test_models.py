import json
import shutil

import numpy as np
import pytest
import torch

from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.data import Batch, Batches
from erasure.formats.safetensors_io import hash_tensors, write_tensors
from erasure.models import load_family, load_model, resolve
from erasure.models.classifier import Classifier
from erasure.models.ddpm import DDPM
from erasure.models.diffusion import drawn_timesteps
from tests.conftest import RECIPES, state_of, tiny

KINDS = list(RECIPES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_predicts_the_same(kind, digits, tmp_path):
    model = tiny(kind)
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.hash == model.hash and loaded.class_names == digits.class_names
    batch = Batches(digits, 8, 0).at(0)
    with torch.no_grad():
        one, two = (m.prediction(m.examples(batch, generator()).inputs) for m in (model, loaded))
    assert one.equal(two)


def test_a_saved_ddpm_is_a_stock_pipeline(ddpm, tmp_path):
    from diffusers import DDPMPipeline

    ddpm.save(tmp_path / "m")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "m")
    assert hash_tensors(pipeline.unet.state_dict()) == ddpm.hash
    unconditional = tiny("ddpm-unconditional")
    unconditional.save(tmp_path / "u")
    drawn = DDPMPipeline.from_pretrained(tmp_path / "u")
    images = drawn(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 1)


def test_the_flat_layout_of_google_ddpm_cifar10_loads(ddpm, tmp_path):
    from diffusers import UNet2DModel

    ddpm.network.save_pretrained(tmp_path / "flat")
    ddpm.noise_scheduler.save_pretrained(tmp_path / "flat")
    (tmp_path / "flat" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    loaded = load_family(tmp_path / "flat", DDPM)
    assert isinstance(loaded.network, UNet2DModel) and loaded.hash == ddpm.hash
    assert loaded.null_label is None and loaded.class_names == ()


def test_half_precision_and_shards_load_in_float32(ddpm, tmp_path):
    ddpm.network.half().float()
    ddpm.info |= {"weights_dtype": "float16", "max_shard_size": "60KB"}
    ddpm.save(tmp_path / "m")
    assert len(list((tmp_path / "m" / "unet").glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path / "m")
    assert loaded.hash == ddpm.hash
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}


def test_a_small_image_classifier_keeps_its_resolution(classifier, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    images = torch.rand(2, 1, 8, 8)
    features = classifier.network.resnet.embedder(images)
    assert features.shape[-1] == 8
    stock = ResNetForImageClassification(
        ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2)
    )
    stock.save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 64}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )
    loaded = load_family(tmp_path / "stock", Classifier)
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert loaded.describe(picture)[0].allclose(stock.eval()(picture * 2).logits, atol=1e-5)
    assert loaded.describe(torch.rand(1, 3, 32, 32))[0].shape == (1, 2)
    with pytest.raises(NotApplicableError, match="reads 3 channels"):
        loaded.describe(torch.rand(1, 1, 64, 64))


def test_description_agrees_with_the_network(classifier, digits):
    images = Batches(digits, 30, 0).at(0).images
    logits, features = classifier.describe(images, batch_size=7)
    with torch.no_grad():
        assert logits.allclose(classifier.network(images).logits, atol=1e-5)
    assert features.shape == (30, 64)


def test_noising_and_targets_follow_the_paper(ddpm):
    samples, noise = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 999])
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[timesteps].reshape(-1, 1, 1, 1)
    assert ddpm.add_noise(samples, noise, timesteps).allclose(
        bars.sqrt() * samples + (1 - bars).sqrt() * noise, atol=1e-5
    )
    assert ddpm.target(samples, noise, timesteps) is noise
    ddpm.noise_scheduler.register_to_config(prediction_type="v_prediction")
    assert ddpm.target(samples, noise, timesteps).allclose(bars.sqrt() * noise - (1 - bars).sqrt() * samples, atol=1e-5)
    ddpm.noise_scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ModelError, match="prediction type"):
        ddpm.target(samples, noise, timesteps)


def test_timesteps_come_in_antithetic_pairs():
    drawn = drawn_timesteps(9, 1000, generator())
    assert len(drawn) == 9 and drawn.min() >= 0 and drawn.max() < 1000
    assert (drawn[:4] + drawn[5:] == 999).all()


def test_labels_are_dropped_at_the_models_rate(ddpm):
    labels = ddpm.with_dropped_condition(torch.zeros(20_000, dtype=torch.int64), generator())
    assert (labels == ddpm.null_label).float().mean() == pytest.approx(0.1, abs=0.01)
    batch = Batch(torch.zeros(64, 1, 8, 8), torch.full((64,), 3))
    assert (ddpm.examples(batch, generator()).inputs[2] == 3).all()


def test_guidance_mixes_the_two_predictions(ddpm, digits):
    inputs = ddpm.examples(Batches(digits, 4, 0).at(0), generator()).inputs
    with torch.no_grad():
        free = ddpm.predict(inputs[0], inputs[1], torch.full((4,), 10))
        told = ddpm.predict(*inputs)
        assert ddpm.prediction(inputs, 3.0).allclose(free + 3 * (told - free), atol=1e-6)
        assert ddpm.prediction(inputs).equal(told)


def test_relabelling_asks_the_teacher_and_builds_no_graph(ddpm, digits):
    batch = Batches(digits, 4, 0).at(0)
    examples = ddpm.examples(batch, generator())
    teacher = tiny("ddpm", seed=5)
    anchor = Batch(batch.images, torch.tensor([1, 1, 2, 2]))
    relabeled = ddpm.relabeled(examples, anchor, teacher)
    assert relabeled.inputs is examples.inputs and not relabeled.target.requires_grad
    with torch.no_grad():
        assert relabeled.target.equal(teacher.predict(*examples.inputs[:2], anchor.labels))


def test_without_labels_relabelling_leads_to_the_anchor_image(digits):
    model = tiny("ddpm-unconditional")
    forget, anchor = Batches(digits, 16, 0).at(0), Batches(digits, 16, 0).at(1)
    examples = model.examples(forget, generator())
    relabeled = model.relabeled(examples, anchor, model)
    noisy, timesteps = examples.inputs
    step = {int(t): i for i, t in enumerate(timesteps)}
    for t, i in step.items():
        reached = model.noise_scheduler.add_noise(
            anchor.images[i : i + 1], relabeled.target[i : i + 1], torch.tensor([t])
        )
        assert reached.allclose(noisy[i : i + 1], atol=1e-4)
    # The weight bounds each error by the distance in image space.
    error = (relabeled.target - examples.target).square().flatten(1).mean(1) * relabeled.weight
    assert (error <= (forget.images - anchor.images).square().flatten(1).mean(1) * 1.001).all()


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-unconditional"])
def test_an_image_depends_on_its_seed_alone(kind):
    model = tiny(kind)
    labels = torch.tensor([0, 1, 2, 3])
    together = model.generate(labels, [5, 6, 7, 8], num_inference_steps=3)
    alone = model.generate(labels[2:3], [7], num_inference_steps=3)
    assert together.shape == (4, 1, 8, 8) and together.abs().max() <= 1
    assert alone.allclose(together[2:3], atol=1e-5)
    assert model.generate(labels, [5, 6, 7, 8], num_inference_steps=3).equal(together)
    assert not model.generate(labels, [9, 6, 7, 8], num_inference_steps=3)[0].allclose(together[0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_twins_do_not_share_weights_and_fresh_ones_differ(kind):
    model = tiny(kind)
    frozen, clone, fresh = model.frozen(), model.clone(), model.fresh(1)
    before = state_of(model)
    next(model.network.parameters()).data.add_(1)
    assert all(t.equal(before[n]) for n, t in frozen.network.state_dict().items())
    assert clone.hash == frozen.hash != model.hash
    assert not any(p.requires_grad for p in frozen.network.parameters()) and not frozen.network.training
    assert fresh.hash not in (model.hash, clone.hash)
    assert fresh.hash == model.fresh(1).hash


# What a user can give instead of a model.


@pytest.fixture
def damaged(ddpm, tmp_path):
    ddpm.save(tmp_path / "m")
    return tmp_path / "m", tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"


def test_missing_and_foreign_folders_are_one_clear_error(tmp_path):
    for given, message in [
        (tmp_path / "nowhere", "does not exist"),
        ("digits-dppm", "did you mean 'digits-ddpm'"),
        ("someone/something", "cannot be read from the hub"),
    ]:
        with pytest.raises(ModelError, match=message):
            load_model(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is empty"):
        load_model(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ModelError, match="not a model of a known family"):
        load_model(tmp_path / "other")
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        load_model(tmp_path / "file.bin")


def test_damaged_weights_are_refused(damaged):
    folder, weights = damaged
    raw = weights.read_bytes()
    for cut in (len(raw) // 2, 4):
        weights.write_bytes(raw[:cut])
        with pytest.raises(ModelError, match="truncated or damaged"):
            load_model(folder)
    torch.save({"a": torch.ones(1)}, weights)
    with pytest.raises(ModelError, match="it is a pickle"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="it is missing"):
        load_model(folder)
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a pickle"):
        load_model(folder)


def test_weights_that_are_not_finite_or_do_not_fit_are_refused(damaged, ddpm):
    folder, weights = damaged
    state = state_of(ddpm)
    name = next(iter(state))
    write_tensors(weights, state | {name: torch.full_like(state[name], float("inf"))})
    with pytest.raises(ModelError, match="NaN or infinity"):
        load_model(folder)
    write_tensors(weights, {n: t for n, t in state.items() if n != name})
    with pytest.raises(ModelError, match="1 tensors differ"):
        load_model(folder)
    write_tensors(weights, state | {name: torch.ones(2)})
    with pytest.raises(ModelError, match=r"does not fit its config\.json"):
        load_model(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        load_model(folder)


def test_cards_with_the_wrong_types_are_refused(ddpm, tmp_path):
    for name, content, message in [
        ("erasure.json", "[]", "is not a JSON object"),
        ("erasure.json", '{"class_names": 5}', "must be a list of names"),
        ("erasure.json", '{"class_names": ["a", "b"]}', "names 2 classes, the network knows 11"),
        ("erase.json", '{"salun": 3}', "expected options by method"),
    ]:
        ddpm.save(tmp_path / "m")
        (tmp_path / "m" / name).write_text(content)
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "m")


def test_a_run_means_its_cleaned_model(ddpm, tmp_path):
    ddpm.save(tmp_path / "run" / "model")
    shutil.copy(tmp_path / "run" / "model" / "erasure.json", tmp_path / "run" / "run.json")
    assert resolve(tmp_path / "run") == str(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(ModelError, match="without a finished model"):
        resolve(tmp_path / "run")


def test_another_family_than_expected_is_refused(ddpm_folder):
    with pytest.raises(ModelError, match="is a ddpm model: expected a classifier"):
        load_family(ddpm_folder, Classifier)
    with pytest.raises((ModelError, OptionError), match="did you mean 'resnet18'"):
        Classifier.new("resnet19", {"channels": 1, "class_names": ["a", "b"]}, 0)


def test_the_hash_sees_one_bit(ddpm):
    before = ddpm.hash
    first = next(ddpm.network.parameters())
    first.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    assert ddpm.hash != before
    assert np.isfinite(first.detach().numpy()).all()
