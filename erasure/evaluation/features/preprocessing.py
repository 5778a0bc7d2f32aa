"""ImagePreprocessor: resize, crop and normalise images as a network's `preprocessor_config.json` records.

It is torch alone, in batches and on the network's device. Transformers' own processors need torchvision (which this
project leaves out) or take one image at a time through Pillow on the CPU. Ours differs from those by at most one of 256
levels, in few pixels, so features are not theirs bit for bit.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import DataError, ModelError
from erasure.core.files import read_json
from erasure.core.run_dir import fingerprint
from erasure.evaluation.features.networks import first_line
from erasure.formats.safetensors_io import hash_tensors

MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers for its filters
# Processors whose steps are resize, crop, rescale and normalise; those that interpolate linearly where nothing is
# recorded, as the others do by cubes; and those to which a bare number is the shorter side, not a square.
PROCESSORS = ("Beit", "Bit", "CLIP", "ConvNext", "DeiT", "MobileNetV1", "MobileNetV2", "Siglip", "ViT")
LINEAR = ("MobileNetV1", "MobileNetV2", "ViT")
SHORTEST = ("Bit", "CLIP", "ConvNext", "MobileNetV1", "MobileNetV2")
WARPED = 384  # ConvNext crops nothing from this size on


@dataclass(frozen=True)
class ImagePreprocessor:
    """The steps before a network, in order: resize, crop the centre, scale, normalise.

    `shortest` is the shorter side after resizing, or `size` is (height, width); without either, nothing is resized.
    """

    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read `preprocessor_config.json`, or the `image_processor` of `processor_config.json`.

        Raises ModelError when neither exists, or when it describes other steps than these.
        """
        path, config = folder / "preprocessor_config.json", None
        if not path.is_file() and (folder / "processor_config.json").is_file():
            path = folder / "processor_config.json"
            config = read_json(path, ModelError).get("image_processor")
        config = read_json(path, ModelError) if config is None else config
        try:
            return cls._from(config)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(
                f"{path} does not say how to prepare an image for the network: {first_line(error)}"
            ) from error

    @classmethod
    def _from(cls, config: dict[str, Any]) -> Self:
        kind = _kind(config)
        mode = MODES.get(config.get("resample", 2 if kind in LINEAR else 3))
        if mode is None:
            raise ValueError(f"resample {config['resample']} is none of {', '.join(map(str, MODES))}")
        resized = config.get("do_resize", True)
        shortest, size = _resize(kind, config) if resized else (None, None)
        cropped = config.get("do_center_crop", config.get("crop_size") is not None)
        crop = _pair(config["crop_size"]) if cropped else None
        if kind == "ConvNext" and shortest is not None:
            shortest, size, crop = _convnext(shortest, config.get("crop_pct"))
        scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
        normal = config if config.get("do_normalize", True) else {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
        mean, std = (tuple(map(float, normal[key])) for key in ("image_mean", "image_std"))
        return cls(shortest, size, crop, mode, scale, mean, std)

    def __call__(self, images: np.ndarray, device: torch.device | None = None) -> Tensor:
        """Prepare uint8 images (n, h, w, 3), or grey (n, h, w, 1), for the network: float32 (n, 3, height, width).

        Raises DataError for anything else, and for images that are smaller than the crop.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
            raise DataError(f"expected uint8 images (n, h, w, 3), got {images.dtype} of shape {images.shape}")
        pixels = torch.from_numpy(images).to(device or "cpu").permute(0, 3, 1, 2).float()
        pixels = self._cropped(self._resized(pixels.expand(-1, 3, -1, -1)))
        mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (self.mean, self.std))
        return (pixels * self.scale - mean) / std

    def _resized(self, pixels: Tensor) -> Tensor:
        """Resize across, then down, each rounded to whole values as Pillow does: in one go, bicubic overshoots."""
        height, width = pixels.shape[-2:]
        target = self.size or (height, width)
        if self.shortest is not None:
            short = min(height, width)
            target = (self.shortest * height // short, self.shortest * width // short)
        smooth = self.mode != "nearest-exact"
        for size in ((height, target[1]), target):
            if tuple(pixels.shape[-2:]) != size:
                pixels = nn.functional.interpolate(pixels, size=size, mode=self.mode, antialias=smooth)
                pixels = (pixels + 0.5).floor().clamp(0, 255)
        return pixels

    def _cropped(self, pixels: Tensor) -> Tensor:
        if self.crop is None:
            return pixels
        (height, width), (tall, wide) = self.crop, pixels.shape[-2:]
        if tall < height or wide < width:
            raise DataError(f"the network takes {width} x {height} pixels, these images have {wide} x {tall}")
        top, left = (tall - height) // 2, (wide - width) // 2
        return pixels[..., top : top + height, left : left + width]


def _kind(config: dict[str, Any]) -> str:
    """The processor's name without its ending; empty where the file names none."""
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
    if kind and kind not in PROCESSORS:
        raise ValueError(f"{named} is none of the known processors ({', '.join(PROCESSORS)})")
    return kind


def _resize(kind: str, config: dict[str, Any]) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side or the (height, width) that images are brought to."""
    size = config["size"]
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), None
    if isinstance(size, int) and kind in SHORTEST:
        return size, None
    return None, _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)


def _convnext(side: int, crop_pct: float | None) -> tuple[int | None, tuple[int, int] | None, tuple[int, int] | None]:
    """Small ones see the share `crop_pct` of the image, large ones all of it, squeezed to a square."""
    square = (side, side)
    return (None, square, None) if side >= WARPED else (int(side / (crop_pct or 224 / 256)), None, square)


def hash_of(network: nn.Module, preprocessor: ImagePreprocessor) -> str:
    """SHA-256 of a network's tensors and of how images are prepared for it."""
    return fingerprint({"weights": hash_tensors(network.state_dict()), "reading": asdict(preprocessor)})
