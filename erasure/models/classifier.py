"""classifier: an image classifier (He et al., 2016) on transformers' ResNetForImageClassification.

Networks for small images have a 3 x 3 stem that keeps the resolution, as ResNets for CIFAR do; `config.json` says so
in `stem`, and a folder without it loads as the stock class. Where the data names several aspects of an image (digit,
style), the logits are one block for each, and one more input channel says how far right a pixel is, because pooled
features could not tell left from right.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from erasure.data import Aspect, Batch
from erasure.errors import ModelError, NotApplicableError, suggestion
from erasure.models._base import Examples, Model, fill, read_object
from erasure.run import atomic_folder, write_json
from erasure.weights import write_tensors

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet-digits": {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]},
    "resnet-small": {"embedding_size": 24, "hidden_sizes": [24, 48, 96, 96], "depths": [1, 1, 1, 1]},
    "resnet18": {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "resnet34": {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [3, 4, 6, 3]},
}


class Classifier(Model):
    """A network from images (b, c, h, w) to logits (b, classes); its loss is cross-entropy."""

    family = "classifier"
    network: Any

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """A transformers folder whose architecture is ResNetForImageClassification."""
        path = folder / "config.json"
        return path.is_file() and read_object(path).get("model_type") == "resnet"

    @classmethod
    def load(cls, folder: str) -> Self:
        """Load from a transformers folder; weights must be safetensors, complete and finite."""
        from transformers import ResNetConfig

        root = Path(folder)
        config = ResNetConfig(**read_object(root / "config.json"))
        network = _build(config)
        fill(network, root / "model.safetensors")
        info = cls.info_of(root) or _stock_info(root, config)
        return cls(network.eval(), info, folder)

    @classmethod
    def new(cls, arch: str, info: dict[str, Any], seed: int) -> Self:
        """A network of a named architecture with random weights; `info` gives channels, image_size and class_names."""
        from transformers import ResNetConfig

        if arch not in ARCHITECTURES:
            raise ModelError(f"unknown --arch {arch!r}{suggestion(arch, ARCHITECTURES)}")
        names = info["class_names"]
        if "aspects" in info:
            names = [f"{aspect}: {name}" for aspect, told in info["aspects"].items() for name in told["names"]]
        described: Any = ResNetConfig  # it keeps keywords of its own, such as our `stem`
        config = described(
            num_channels=info["channels"] + ("aspects" in info),
            layer_type="basic",
            downsample_in_first_stage=False,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            stem="3x3",
            **ARCHITECTURES[arch],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(_build(config).eval(), {**info, "arch": arch})

    def fresh(self, seed: int) -> Self:
        """The same architecture with new random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return type(self)(_build(self.network.config).eval(), dict(self.info))

    def save(self, folder: Path) -> None:
        """Write a transformers folder with our erasure.json beside it, atomically."""
        with atomic_folder(folder) as temporary:
            config = self.network.config
            config.architectures = ["ResNetForImageClassification"]
            config.save_pretrained(temporary)
            write_tensors(temporary / "model.safetensors", self.network_on_disk().state_dict(), {"format": "pt"})
            write_json(temporary / "erasure.json", {**self.info, "family": self.family})

    def examples(self, batch: Batch, generator: torch.Generator, *, condition_drop: bool = False) -> Examples:
        """The images, prepared, with their labels as target; nothing here is left to chance."""
        images = self.prepared(batch.images.to(self.device))
        return Examples((images,), self._wanted(batch.labels), torch.ones(len(images), device=self.device))

    def _wanted(self, labels: Tensor) -> Tensor:
        """The right answer for each label (b,): itself, or (b, aspects) one for each aspect."""
        if self.aspects:
            labels = torch.stack([torch.tensor(aspect.of_class)[labels.cpu()] for aspect in self.aspects.values()], 1)
        return labels.to(self.device)

    @cached_property
    def aspects(self) -> dict[str, Aspect]:
        """What it tells of an image besides its class, by name; empty for an ordinary classifier."""
        told = self.info.get("aspects", {})
        return {
            name: Aspect(tuple(value["names"]), tuple(value["of_class"]), value.get("domain", ""))
            for name, value in told.items()
        }

    def blocks(self, logits: Tensor) -> dict[str, Tensor]:
        """The logits (n, ...) of each aspect."""
        sizes = [len(aspect.names) for aspect in self.aspects.values()]
        return dict(zip(self.aspects, logits.split(sizes, dim=1), strict=True))

    def prepared(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] at the size and normalisation the network was trained with."""
        size = self.info["image_size"]
        if images.shape[1] != self.info["channels"]:
            raise NotApplicableError(
                f"{self.source or 'the classifier'} reads {self.info['channels']} channels, not {images.shape[1]}"
            )
        if images.shape[-1] != size:
            images = nn.functional.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        if self.aspects:
            ramp = torch.linspace(-1, 1, size, device=images.device).expand(len(images), 1, size, size)
            images = torch.cat([images, ramp], dim=1)
        if "image_mean" not in self.info:
            return images
        mean, std = (
            torch.tensor(self.info[key], device=images.device)[:, None, None] for key in ("image_mean", "image_std")
        )
        return ((images + 1) / 2 - mean) / std

    def answer(self, inputs: tuple[Tensor, ...], guidance_scale: float = 1.0) -> Tensor:
        """Logits (b, classes)."""
        if guidance_scale != 1.0:
            raise NotApplicableError("a classifier has no guidance: its guidance scale must be 1")
        return self.network(inputs[0]).logits

    def distance(self, answer: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, (b,), summed over aspects."""
        if self.aspects:
            blocks = enumerate(self.blocks(answer.float()).values())
            return sum(
                (nn.functional.cross_entropy(part, target[:, i], reduction="none") for i, part in blocks),
                start=answer.new_zeros(len(answer)),
            )
        return nn.functional.cross_entropy(answer.float(), target, reduction="none")

    def relabelled(self, examples: Examples, anchor: Batch, teacher: Model) -> Examples:
        """The same images with the anchor's labels."""
        return examples._replace(target=self._wanted(anchor.labels))

    @torch.no_grad()
    def describe(self, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and pooled features (n, d) of images in [-1, 1], in evaluation mode, on the CPU."""
        was_training = self.network.training
        self.network.eval()
        logits, features = [], []
        for part in images.split(batch_size):
            pooled = self.network.resnet(self.prepared(part.to(self.device))).pooler_output.flatten(1)
            features.append(pooled.cpu())
            logits.append(self.network.classifier(pooled[..., None, None]).cpu())
        self.network.train(was_training)
        return torch.cat(logits), torch.cat(features)


def _build(config: Any) -> Any:
    from transformers import ResNetForImageClassification

    network: Any = ResNetForImageClassification(config)
    if getattr(config, "stem", None) == "3x3":
        embedder = network.resnet.embedder
        convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        embedder.embedder.convolution = convolution
        embedder.pooler = nn.Identity()
    return network


def _stock_info(root: Path, config: Any) -> dict[str, Any]:
    """What a stock checkpoint says of itself in config.json and preprocessor_config.json."""
    path = root / "preprocessor_config.json"
    prepared = read_object(path) if path.is_file() else {}
    size = prepared.get("crop_size") or prepared.get("size") or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    names = [config.id2label[i] for i in range(len(config.id2label))]
    info = {"channels": config.num_channels, "image_size": size, "class_names": names}
    normalisation: dict[str, Any] = {key: prepared[key] for key in ("image_mean", "image_std") if key in prepared}
    return {**info, **normalisation}
