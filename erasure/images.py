"""The one place where images change form: uint8 on disk and for metrics, float in [-1, 1] inside.

Arrays are (n, height, width, channels) uint8; tensors are (n, channels, height, width) float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from erasure.errors import DataError
from erasure.run import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, c) to float32 (n, c, h, w) in [-1, 1]; 0 becomes -1 and 255 becomes 1."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"expected uint8 images (n, h, w, c), got {images.dtype} of shape {images.shape}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """Float (n, c, h, w) in [-1, 1] to uint8 (n, h, w, c); refuses anything outside that range, NaN included."""
    if not images.is_floating_point() or images.ndim != 4:
        raise DataError(f"expected float images (n, c, h, w), got {images.dtype} of shape {tuple(images.shape)}")
    if images.numel() and not bool((images.abs() <= 1.001).all()):
        raise DataError(f"images must lie in [-1, 1], these reach {images.abs().max().item():.3g}")
    scaled = images.detach().float().cpu().clamp(-1, 1).add(1.0).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def read_image(source: object, name: str, channels: int | None = None) -> np.ndarray:
    """Decode one image from a path or binary stream to uint8 (h, w, c); `name` stands in the error.

    `channels` 1 or 3 converts to grey or colour; None keeps a grey image grey and makes everything else colour.
    """
    try:
        with Image.open(source) as picture:  # type: ignore[arg-type]
            mode = {1: "L", 3: "RGB"}[channels] if channels else ("L" if picture.mode == "L" else "RGB")
            array = np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} is not a readable image ({error}): repair or remove it") from error
    return array[..., None] if array.ndim == 2 else array


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one uint8 image (h, w, c) as PNG, atomically."""
    with atomic_path(path) as temporary:
        as_picture(image).save(temporary, format="PNG")


def as_picture(image: np.ndarray) -> Image.Image:
    """One uint8 image (h, w, c) as a Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(rows: Sequence[np.ndarray], scale: int = 1, gap: int = 2) -> np.ndarray:
    """One picture of `rows`, each (n, h, w, c) uint8, pixels enlarged `scale` times, on white."""
    height, width, channels = rows[0].shape[1:]
    columns = max(len(row) for row in rows)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    canvas = np.full((len(rows) * cell_h + gap, columns * cell_w + gap, channels), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = gap + i * cell_h, gap + j * cell_w
            canvas[top : top + height * scale, left : left + width * scale] = enlarged
    return canvas
