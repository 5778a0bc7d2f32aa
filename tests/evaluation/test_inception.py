import pytest
import torch

from erasure.core.errors import ModelError, NotApplicableError
from erasure.evaluation.features.inception import DIMENSIONS, FIDInception, inception_features, load_inception
from erasure.formats.safetensors_io import write_tensors


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FIDInception().eval()


def test_the_network_is_inception_v3_with_1008_classes(network):
    """torchvision documents 27,161,264 weights with the auxiliary head, which holds 3,326,696, and 1000 classes."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert weights == 27_161_264 - 3_326_696 + 8 * (DIMENSIONS + 1)


def test_tensor_names_are_those_of_the_published_file(network):
    names = set(network.state_dict())
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6c.branch7x7dbl_5.conv.weight": (192, 160, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }.items():
        assert name in names and tuple(network.state_dict()[name].shape) == shape


def test_features_have_2048_dimensions_and_see_grey_images(network):
    grey = torch.rand(2, 1, 8, 8) * 2 - 1
    features = inception_features(network, grey)
    assert features.shape == (2, DIMENSIONS)
    assert features == pytest.approx(inception_features(network, grey.repeat(1, 3, 1, 1)))


def test_weights_load_from_safetensors_and_pth(network, tmp_path, monkeypatch):
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    write_tensors(tmp_path / "i.safetensors", state)
    torch.save(state, tmp_path / "i.pth")
    image = torch.rand(1, 3, 32, 32)
    expected = inception_features(network, image)
    for name in ("i.safetensors", "i.pth"):
        assert inception_features(load_inception(str(tmp_path / name)), image) == pytest.approx(expected)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(NotApplicableError, match="`inception`"):
        load_inception(None)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch evil-ran",)


def test_a_foreign_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "evil.pth")
    with pytest.raises(ModelError, match="something other than tensors"):
        load_inception("evil.pth")
    assert not (tmp_path / "evil-ran").exists()
    write_tensors(tmp_path / "other.safetensors", {"w": torch.ones(1)})
    with pytest.raises(ModelError, match="tensors are missing"):
        load_inception("other.safetensors")
