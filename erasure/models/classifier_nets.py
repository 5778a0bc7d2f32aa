"""The networks of classifiers, by name: ResNet and Swin from transformers, VGG with batch norm and softmax regression.

    resnet18, resnet34      3 x 3 stem that keeps the resolution, as for CIFAR (He et al., 2016)
    resnet-small, -digits   the same with fewer and narrower stages
    resnet-mini             that for digits, which halves the resolution at once: for photographs on a CPU
    vgg16                   13 convolutions with bias and batch norm, one linear layer (Simonyan and Zisserman, 2015)
    swin_t                  patches of 2 x 2 pixels and windows of 4 x 4 patches at 32 x 32 (Liu et al., 2021)
    softmax-digits          one linear layer on the pixels: no hidden layer, no batch norm, an exact Hessian

All of them answer with `.logits`; `pooled` are the features that their `last_layer` turns into logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from erasure.core.errors import ModelError, suggestion
from erasure.core.files import read_json, write_json
from erasure.formats.safetensors_io import check_finite, read_tensors, write_tensors
from erasure.models.base import fill

RESNET: dict[str, Any] = {"model_type": "resnet", "layer_type": "basic", "downsample_in_first_stage": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet-digits": {**RESNET, "embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]},
    "resnet-small": {**RESNET, "embedding_size": 24, "hidden_sizes": [24, 48, 96, 96], "depths": [1, 1, 1, 1]},
    "resnet-mini": {
        **RESNET,
        **{"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "downsample_in_first_stage": True},
    },
    "resnet18": {**RESNET, "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "resnet34": {**RESNET, "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [3, 4, 6, 3]},
    "vgg16": {"model_type": "vgg", "hidden_sizes": [64, 128, 256, 512, 512], "depths": [2, 2, 3, 3, 3]},
    "swin_t": {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "softmax-digits": {"model_type": "softmax"},
}
# Tensors of Swin as its published files name them, beside what newer versions of the library call them.
SWIN_FILES = (
    (".attention.self.query.", ".attention.q_proj."),
    (".attention.self.key.", ".attention.k_proj."),
    (".attention.self.value.", ".attention.v_proj."),
    (".attention.self.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)


class Answer(NamedTuple):
    """What a network says: logits (b, classes)."""

    logits: Tensor


class VGG(nn.Module):
    """Blocks of 3 x 3 convolutions with batch norm, each followed by a 2 x 2 maximum while there is more than a pixel.

    What is left of the image is averaged, so that 32 x 32 pixels end as one and other sizes are taken too.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        channels, blocks = config["num_channels"], []
        for width, depth in zip(config["hidden_sizes"], config["depths"], strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(channels, len(config["id2label"]))

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features (b, d)."""
        for block in self.blocks:
            pixels = block(pixels)
            if min(pixels.shape[-2:]) > 1:
                pixels = nn.functional.max_pool2d(pixels, 2)
        return pixels.mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Answer:
        """Logits of images (b, c, h, w)."""
        return Answer(self.classifier(self.features(pixels)))


class Softmax(nn.Module):
    """Softmax regression: its features are the pixels."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.classifier = nn.Linear(config["num_channels"] * config["image_size"] ** 2, len(config["id2label"]))

    def features(self, pixels: Tensor) -> Tensor:
        """The pixels in a row, (b, c h w)."""
        return pixels.flatten(1)

    def forward(self, pixels: Tensor) -> Answer:
        """Logits of images (b, c, h, w)."""
        return Answer(self.classifier(self.features(pixels)))


OWN: dict[str, Any] = {"vgg": VGG, "softmax": Softmax}
KINDS = ("resnet", "swin", *OWN)


def config_of(arch: str, channels: int, image_size: int, names: list[str]) -> dict[str, Any]:
    """The config.json of a named architecture; raises ModelError for a name that is none."""
    if arch not in ARCHITECTURES:
        raise ModelError(f"unknown --arch {arch!r}{suggestion(arch, ARCHITECTURES)}")
    config = {**ARCHITECTURES[arch], "num_channels": channels, "id2label": dict(enumerate(names))}
    if config["model_type"] == "resnet":
        return config | {"stem": "3x3", "label2id": {name: i for i, name in enumerate(names)}}
    config["image_size"] = image_size
    if config["model_type"] == "swin":  # stages of 16, 8, 4 and 2 patches a side at 32 and at 64 pixels, 56 to 7 at 224
        config |= {"patch_size": 2 if image_size < 64 else 4, "window_size": 4 if image_size < 224 else 7}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    return config


def build(config: Mapping[str, Any], seed: int | None = None) -> Any:
    """The network of a config.json, in evaluation mode, with random weights drawn from `seed`.

    Raises ModelError for a kind of network that is not known, or a configuration that describes none.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelError(f"config.json says {kind!r}: expected {', '.join(KINDS)}")
    try:
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            return (OWN[kind](config) if kind in OWN else _stock(kind, config)).eval()
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json describes no {kind} network: {error}") from error


def _stock(kind: str, config: Mapping[str, Any]) -> Any:
    """A network of transformers; with `stem` 3x3, a ResNet whose first layer keeps the resolution."""
    import transformers

    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    if kind == "swin":
        return _padded(transformers.SwinForImageClassification(transformers.SwinConfig(**values)))
    described: Any = transformers.ResNetConfig  # it keeps keywords of its own, such as our `stem`
    network: Any = transformers.ResNetForImageClassification(described(**values))
    if values.get("stem") == "3x3":
        embedder, own = network.resnet.embedder, network.config
        convolution = nn.Conv2d(own.num_channels, own.embedding_size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        embedder.embedder.convolution = convolution
        embedder.pooler = nn.Identity()
    return network


def _padded(network: Any) -> Any:
    """A Swin whose stages with fewer patches a side than a window are padded to one, as in torchvision's.

    The stock layer shrinks the window instead, which then no longer fits its own table of positions, and fails.
    """
    for layer in network.modules():
        if type(layer).__name__ == "SwinLayer" and min(layer.input_resolution) < layer.window_size:
            layer.shift_size, layer.set_shift_and_window_size = 0, _as_it_is
    return network


def _as_it_is(input_resolution: tuple[int, int]) -> None:
    """Leave window and shift alone."""


def settings_of(network: Any) -> dict[str, Any]:
    """The configuration that `build` makes the same network from."""
    return dict(network.config) if isinstance(network.config, dict) else network.config.to_dict()


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes, in order, as a config.json has them."""
    named = {int(i): str(name) for i, name in config.get("id2label", {}).items()}
    return [named.get(i, str(i)) for i in range(len(named))]


def pooled(network: Any, pixels: Tensor) -> Tensor:
    """Features (b, d) before the last layer."""
    if type(network) in OWN.values():
        return network.features(pixels)
    return network.base_model(pixels).pooler_output.flatten(1)


def last_layer(network: Any) -> nn.Linear:
    """The last layer, from pooled features to logits."""
    last = network.classifier
    return last if isinstance(last, nn.Linear) else last[-1]


def load_network(folder: Path) -> Any:
    """The network in a folder; raises ModelError when its weights are missing, damaged, another's or not finite."""
    network = build(read_json(folder / "config.json", ModelError))
    weights = folder / "model.safetensors"
    if settings_of(network).get("model_type") != "swin":
        fill(network, weights)
        return network
    own = network.state_dict()
    names = {_in_file(name): name for name in own}
    tensors = {
        names.get(name, name): tensor
        for name, tensor in read_tensors(weights)[0].items()
        if not name.endswith(".relative_position_index")  # old files hold it, though it is no weight
    }
    wrong = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise ModelError(f"{weights} does not fit its config.json: {len(wrong)} tensors differ, first {wrong[0]!r}")
    network.load_state_dict(tensors)
    check_finite(network, weights)
    return network


def save_network(network: Any, folder: Path, on_disk: nn.Module) -> None:
    """Write config.json and model.safetensors; `on_disk` is the network in the number format of its file."""
    if isinstance(network.config, dict):
        write_json(folder / "config.json", {**network.config, "architectures": [type(network).__name__]})
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
    swin = settings_of(network)["model_type"] == "swin"
    tensors = {_in_file(name) if swin else name: tensor for name, tensor in on_disk.state_dict().items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})


def _in_file(name: str) -> str:
    """The name that a tensor of Swin has in published files."""
    for theirs, ours in SWIN_FILES:
        if ours in name:
            return name.replace(ours, theirs)
    return name
