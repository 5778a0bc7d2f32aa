"""What the image preprocessor does by itself: stock processors read alike, and what a hash and scores follow."""

import json

import numpy as np
import pytest
import torch
import transformers

from erasure.core.errors import DataError, ModelError
from erasure.evaluation.features.clip import clip_image_features, clip_scores, clip_text_features, load_clip
from erasure.evaluation.features.networks import BATCH_SIZE, load_network
from erasure.evaluation.features.preprocessing import LINEAR, PROCESSORS, ImagePreprocessor
from tests.support.tiny_pipelines import text_config, tokenizer


def noise(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def stock_processor(kind):
    """The library's own processor on Pillow, which rounds after each pass as the published networks were fed."""
    found = getattr(transformers, f"{kind}ImageProcessorPil", None)
    if found is None:
        pytest.skip("this version of transformers has no processors on Pillow")
    return found


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize(("height", "width"), [(120, 184), (260, 301)])
def test_files_that_stock_processors_write_are_read_alike(tmp_path, kind, height, width):
    stock = stock_processor(kind)()
    stock.save_pretrained(tmp_path)
    images = noise(1, height, width)
    expected, seen = stock(images[0], return_tensors="pt")["pixel_values"], ImagePreprocessor.of(tmp_path)(images)
    assert seen.shape == expected.shape and seen.dtype == torch.float32
    levels = (seen - expected).abs() * torch.tensor(stock.image_std)[:, None, None] * 255
    assert levels.max() < 1.001 and levels.mean() < 0.02  # Pillow rounds a few pixels to the other side


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_file_without_its_filter_means_the_one_of_its_processor(tmp_path, kind):
    stock = stock_processor(kind)()
    stock.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "resample"}))
    assert ImagePreprocessor.of(tmp_path).mode == ("bilinear" if kind in LINEAR else "bicubic")
    assert config["resample"] == (2 if kind in LINEAR else 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text = text_config(16, "quick_gelu", 12).to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        network = transformers.CLIPModel(config).eval()
        for part in (network.visual_projection, network.text_projection):
            torch.nn.init.normal_(part.weight, std=0.5)
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    stock_processor("CLIP")(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_the_hash_is_of_the_weights_and_of_how_images_are_read(folder, tmp_path):
    one, same = load_clip(str(folder)), load_clip(str(folder))
    assert one.hash == same.hash
    same.network.logit_scale.data += 1
    assert one.hash != same.hash
    stock_processor("CLIP")(size={"shortest_edge": 40}, crop_size=32).save_pretrained(tmp_path)
    object.__setattr__(one, "preprocessor", ImagePreprocessor.of(tmp_path))
    assert one.hash != load_clip(str(folder)).hash


def test_a_score_depends_on_its_own_image_and_prompt_alone(folder):
    model, images = load_clip(str(folder)), noise(BATCH_SIZE + 3, 40, 48)
    prompts = [("a cat", "two dogs", "a church by night")[i % 3] for i in range(len(images))]
    scores = clip_scores(model, images, prompts)
    assert scores.shape == (len(images),) and scores.dtype == np.float64 and len(set(scores.round(6))) > 3
    last = slice(BATCH_SIZE - 2, None)
    assert clip_scores(model, images[last], prompts[last]) == pytest.approx(scores[last], abs=1e-3)
    turned = clip_scores(model, images[::-1].copy(), prompts[::-1])
    assert turned[::-1] == pytest.approx(scores, abs=1e-3)
    assert clip_image_features(model, images).shape == clip_text_features(model, prompts).shape == (len(images), 12)
    with pytest.raises(DataError, match="2 images and 1 prompts"):
        clip_scores(model, images[:2], prompts[:1])


def test_words_beyond_the_window_are_cut(folder):
    model = load_clip(str(folder))
    long, longer, short = clip_text_features(model, ["x" * 300, "x" * 400, "x" * 60])
    assert torch.equal(long, longer) and not torch.equal(long, short)


def test_a_reading_or_a_network_that_is_damaged(folder, tmp_path):
    config = json.loads((folder / "preprocessor_config.json").read_text())
    for wrong, message in (({"image_mean": None}, "NoneType"), ({"rescale_factor": "x"}, "could not convert")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ModelError, match=f"does not say how to prepare an image for the network: .*{message}"):
            ImagePreprocessor.of(tmp_path)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_network(transformers.CLIPModel, tmp_path)
