"""classifier: an image classifier on transformers' ResNet or Swin, a VGG, or softmax regression (He et al., 2016).

Networks for small images keep their resolution in the first layer; `config.json` says so, and a folder of transformers
loads as its own class (see `erasure.models.classifier_nets`). Where the data names several aspects of an image (digit,
style), the logits are one block for each, and one more input channel says how far right a pixel is, because pooled
features could not tell left from right.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from erasure.core.errors import ModelError, NotApplicableError
from erasure.core.files import atomic_folder, read_json
from erasure.data import Aspect, Batch
from erasure.models.base import Examples, Model
from erasure.models.classifier_nets import (
    KINDS,
    build,
    config_of,
    labels_of,
    last_layer,
    load_network,
    pooled,
    save_network,
    settings_of,
)
from erasure.models.info import ModelInfo, read_info, write_info


class Classifier(Model):
    """A network from images (b, c, h, w) to logits (b, classes); its loss is cross-entropy."""

    family = "classifier"
    network: Any

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """A folder whose config.json names a ResNet, a Swin or a network of ours."""
        path = folder / "config.json"
        return path.is_file() and read_json(path, ModelError).get("model_type") in KINDS

    @classmethod
    def load(cls, folder: str) -> Self:
        """Load from a folder; weights must be safetensors, complete, finite, and know the classes of erasure.json."""
        root = Path(folder)
        network = load_network(root)
        info = read_info(root) or _stock_info(root, network)
        model = cls(network, info, folder)
        if model.head.out_features != model.num_logits:
            raise ModelError(
                f"{root / 'erasure.json'} names {model.num_logits} classes, the network knows {model.head.out_features}"
            )
        return model

    @classmethod
    def new(cls, arch: str, info: ModelInfo, seed: int) -> Self:
        """A network of a named architecture with random weights; `info` gives channels, image_size and class_names."""
        names = info["class_names"]
        if "aspects" in info:
            names = [f"{aspect}: {name}" for aspect, told in info["aspects"].items() for name in told["names"]]
        config = config_of(arch, info["channels"] + ("aspects" in info), info.get("image_size", 0), names)
        return cls(build(config, seed), {**info, "arch": arch})

    def fresh(self, seed: int) -> Self:
        """The same architecture with new random weights."""
        return type(self)(build(settings_of(self.network), seed), copy.copy(self.info))

    def save(self, folder: Path) -> None:
        """Write a folder, that of transformers where it has the network, with our erasure.json, atomically."""
        with atomic_folder(folder) as temporary:
            save_network(self.network, temporary, self.network_on_disk())
            write_info(temporary, self.info, self.family)

    @property
    def head(self) -> nn.Linear:
        """The last layer, from pooled features (b, d) to logits."""
        return last_layer(self.network)

    @property
    def num_logits(self) -> int:
        """How many answers it chooses among, over all aspects."""
        return sum(len(aspect.names) for aspect in self.aspects.values()) or len(self.class_names)

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

    def prediction(self, inputs: tuple[Tensor, ...], guidance_scale: float = 1.0) -> Tensor:
        """Logits (b, classes)."""
        if guidance_scale != 1.0:
            raise NotApplicableError("a classifier has no guidance: its guidance scale must be 1")
        return self.network(inputs[0]).logits

    def criterion(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, (b,), summed over aspects."""
        if self.aspects:
            blocks = enumerate(self.blocks(prediction.float()).values())
            return sum(
                (nn.functional.cross_entropy(part, target[:, i], reduction="none") for i, part in blocks),
                start=prediction.new_zeros(len(prediction)),
            )
        return nn.functional.cross_entropy(prediction.float(), target, reduction="none")

    def relabeled(self, examples: Examples, anchor: Batch, teacher: Model) -> Examples:
        """The same images with the anchor's labels."""
        return examples._replace(target=self._wanted(anchor.labels))

    @torch.no_grad()
    def describe(self, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and pooled features (n, d) of images in [-1, 1], in evaluation mode, on the CPU."""
        was_training = self.network.training
        self.network.eval()
        logits, features = [], []
        for part in images.split(batch_size):
            found = pooled(self.network, self.prepared(part.to(self.device)))
            features.append(found.cpu())
            logits.append(self.head(found).cpu())
        self.network.train(was_training)
        return torch.cat(logits), torch.cat(features)


def _stock_info(root: Path, network: Any) -> ModelInfo:
    """What a stock checkpoint says of itself in config.json and preprocessor_config.json."""
    path = root / "preprocessor_config.json"
    prepared = read_json(path, ModelError) if path.is_file() else {}
    size = prepared.get("crop_size") or prepared.get("size") or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    config = settings_of(network)
    info: ModelInfo = {"channels": config["num_channels"], "image_size": size, "class_names": labels_of(config)}
    if "image_mean" in prepared:
        info["image_mean"] = prepared["image_mean"]
    if "image_std" in prepared:
        info["image_std"] = prepared["image_std"]
    return info
