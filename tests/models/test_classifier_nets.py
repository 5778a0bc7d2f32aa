"""Classifier architectures: their sizes, what they say of images, and their files."""

import json

import pytest
import torch
from safetensors.torch import load_file

from erasure.core.errors import ModelError
from erasure.data import Batches, load_dataset
from erasure.erasing.targets import TargetSpec
from erasure.models import classifier_nets as networks
from erasure.models import load_family, load_model
from erasure.models.classifier import Classifier

COLOUR = {"channels": 3, "image_size": 32, "class_names": [f"c{i}" for i in range(10)]}
SMALL = {
    "resnet18": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "vgg16": {"hidden_sizes": [8, 12], "depths": [1, 2]},
    "swin_t": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
    "softmax-digits": {},
}


@pytest.fixture(params=SMALL)
def small(request, monkeypatch):
    """A narrow network of each kind on 10 classes."""
    arch = {**networks.ARCHITECTURES[request.param], **SMALL[request.param]}
    monkeypatch.setitem(networks.ARCHITECTURES, request.param, arch)
    return Classifier.new(request.param, COLOUR, 1)


# With a 3 x 3 stem and projections without bias; VGG-16 with biases beside its batch norm and one layer 512 -> 10;
# Swin-T has 28,288,354 for 1000 classes with patches of 4 x 4 and windows of 7 x 7.
@pytest.mark.parametrize(
    ("arch", "count"),
    [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("vgg16", 14_728_266), ("swin_t", 27_507_028)],
)
def test_the_weights_are_as_many_as_published(arch, count):
    with torch.device("meta"):
        network = networks.build(networks.config_of(arch, 3, 32, COLOUR["class_names"]))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_swin_at_224_pixels_is_the_published_one():
    with torch.device("meta"):
        network = networks.build(networks.config_of("swin_t", 3, 224, [str(i) for i in range(1000)]))
    assert sum(parameter.numel() for parameter in network.parameters()) == 28_288_354


def test_logits_are_the_head_on_pooled_features(small):
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits, features = small.describe(images, batch_size=3)
    with torch.no_grad():
        assert logits.allclose(small.network(small.prepared(images)).logits, atol=1e-5)
        assert logits.allclose(small.head(features), atol=1e-5)
    assert logits.shape == (7, 10) and features.shape == (7, small.head.in_features) and logits.std() > 0


def test_a_saved_network_says_the_same(small, tmp_path):
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    small.save(tmp_path / "m")
    loaded = load_family(tmp_path / "m", Classifier)
    assert loaded.hash == small.hash and loaded.describe(images)[0].equal(small.describe(images)[0])
    assert loaded.class_names == small.class_names and loaded.fresh(1).hash == small.hash != loaded.fresh(2).hash
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(tmp_path / "m")


def test_files_of_another_network_are_refused(small, tmp_path):
    small.save(tmp_path / "m")
    wider = Classifier.new("softmax-digits", COLOUR | {"image_size": 8, "class_names": ["a", "b"]}, 0)
    wider.save(tmp_path / "other")
    (tmp_path / "m" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"does not fit its config.json: \d+ tensors differ"):
        load_model(tmp_path / "m")


def test_a_card_with_other_classes_than_the_network_is_refused(small, tmp_path):
    small.info["class_names"] = ["a", "b"]
    small.save(tmp_path / "m")
    with pytest.raises(ModelError, match="names 2 classes, the network knows 10"):
        load_model(tmp_path / "m")


def test_swin_is_written_and_read_as_the_library_does(monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(networks.ARCHITECTURES, "swin_t", networks.ARCHITECTURES["swin_t"] | SMALL["swin_t"])
    model, images = Classifier.new("swin_t", COLOUR, 1), torch.rand(2, 3, 32, 32)
    model.save(tmp_path / "ours")
    stock = transformers.SwinForImageClassification.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert stock(images).logits.equal(model.network(images).logits)
    stock.save_pretrained(tmp_path / "stock")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "ours"))
    assert set(theirs) == set(ours) and all(theirs[name].equal(ours[name]) for name in ours)
    (tmp_path / "stock" / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
    loaded = load_family(tmp_path / "stock", Classifier)
    assert loaded.hash == model.hash and loaded.info["image_size"] == 32 and loaded.class_names[3] == "c3"


def test_softmax_regression_is_a_linear_function_of_the_pixels():
    digits = load_dataset("digits")
    info = {"channels": 1, "image_size": 8, "class_names": list(digits.class_names)}
    model, images = Classifier.new("softmax-digits", info, 0), Batches(digits, 5, 0).at(0).images
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 650
    expected = images.flatten(1) @ model.head.weight.T + model.head.bias
    assert model.describe(images)[0].allclose(expected, atol=1e-6)


@pytest.mark.parametrize("size", [8, 20, 64])
def test_every_kind_takes_other_sizes_and_one_channel(small, size):
    info = COLOUR | {"channels": 1, "image_size": size}
    model = Classifier.new(small.info["arch"], info, 0)
    assert model.describe(torch.rand(2, 1, size, size))[0].shape == (2, 10)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "vgg"}, "describes no vgg network"), ({"model_type": "bert"}, "says 'bert': expected resnet")],
)
def test_a_configuration_that_describes_no_network(config, message):
    with pytest.raises(ModelError, match=message):
        networks.build(config)


def test_every_kind_trains_and_forgets_within_a_mask(small, monkeypatch, tmp_path):
    from erasure.erasing.erase import EraseRequest, erase
    from erasure.saliency.mask import Mask
    from erasure.training.recipes import ClassifierRecipe
    from erasure.training.train import train

    recipe = ClassifierRecipe(arch=small.info["arch"], steps=2, batch_size=8, warmup_steps=1)
    train(recipe, "digits", tmp_path / "c", limit=60)
    few = {"epochs": 0.0, "steps": 2, "batch_size": 8}
    request = EraseRequest(str(tmp_path / "c"), TargetSpec(forget="random:0.2"), "salun", options=few, evaluate=False)
    first, again = (erase(request, tmp_path / name).trained["hash"] for name in ("a", "b"))
    assert first == again
    before, after, mask = (
        load_model(tmp_path / "c"),
        load_model(tmp_path / "a"),
        Mask.load(tmp_path / "a/mask.safetensors"),
    )
    moved = dict(after.network.named_parameters())
    for name, parameter in before.network.named_parameters():
        assert parameter[~mask.tensors[name]].equal(moved[name][~mask.tensors[name]])
    assert before.hash != after.hash == first
