"""DINOv2's features: images are read as its own processor reads them, and the class token is taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from erasure.core.errors import DataError, ModelError
from erasure.evaluation.features.dinov2 import dinov2_features, load_dinov2
from erasure.evaluation.features.preprocessing import ImagePreprocessor
from tests.evaluation.test_classifiers import noise, saved, seeded

# What the published folders record.
PUBLISHED = {
    **{"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}, "resample": 3},
    **{"do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True},
    **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 0.00392156862745098},
    "image_processor_type": "BitImageProcessor",
}


def written(folder, seed_of=seeded):
    """A tiny DINOv2 from the real class, with the published reading."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    network = seed_of(transformers.Dinov2Model, transformers.Dinov2Config(**shape))
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    return network


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    written(folder)
    return folder


def stock(folder, images):
    """The pixels that the stock processor shows the network."""
    processor = transformers.BitImageProcessorPil.from_pretrained(folder)
    return processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(("height", "width"), [(300, 410), (64, 64), (257, 256)])
def test_images_are_read_as_the_stock_processor_reads_them(dinov2_folder, height, width):
    images = noise(2, height, width)
    seen, expected = ImagePreprocessor.of(dinov2_folder)(images), stock(dinov2_folder, images)
    assert seen.shape == expected.shape == (2, 3, 224, 224)
    levels = (seen - expected).abs() * torch.tensor(PUBLISHED["image_std"])[:, None, None] * 255
    assert levels.max() < 1.001 and levels.mean() < 0.02


def test_features_are_the_class_token_after_the_layer_norm(dinov2_folder):
    model, images = load_dinov2(str(dinov2_folder)), noise(3)
    network = transformers.Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        expected = network(stock(dinov2_folder, images)).pooler_output.double().numpy()
    found = dinov2_features(model, images)
    assert found.shape == (3, 16) and found.dtype == np.float64
    assert found == pytest.approx(expected, abs=0.02) and np.abs(found[0] - found[1]).max() > 0.05
    many = dinov2_features(model, noise(40))
    assert many[35:] == pytest.approx(dinov2_features(model, noise(40)[35:]), abs=1e-4)
    with pytest.raises(DataError, match="expected uint8"):
        dinov2_features(model, images[:0])


def test_another_network_is_refused(tmp_path, dinov2_folder):
    saved(tmp_path / "resnet", "resnet")
    with pytest.raises(ModelError, match=r"not a DINOv2: its config\.json says 'resnet'"):
        load_dinov2(str(tmp_path / "resnet"))
    with pytest.raises(ModelError, match="does not exist"):
        load_dinov2(str(tmp_path / "nowhere"))
    written(tmp_path / "other", lambda kind, config: kind(config))
    assert load_dinov2(str(tmp_path / "other")).hash != load_dinov2(str(dinov2_folder)).hash
