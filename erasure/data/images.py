"""The one place where images change form: uint8 on disk and for metrics, float in [-1, 1] inside.

Arrays are (n, height, width, channels) uint8; tensors are (n, channels, height, width) float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erasure.core.errors import DataError
from erasure.core.files import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BESIDE = (".csv", ".html", ".json", ".jsonl", ".md", ".toml", ".txt", ".xml", ".yaml", ".yml")


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

    `channels` 1 or 3 converts to grey or colour; None keeps a grey image grey and makes everything else colour. Raises
    DataError for what is no image, is damaged, or has several frames.
    """
    try:
        with Image.open(source) as picture:  # type: ignore[arg-type]
            if getattr(picture, "n_frames", 1) > 1:
                raise DataError(f"{name} has several frames: split it into single images")
            mode = {1: "L", 3: "RGB"}[channels] if channels else ("L" if picture.mode == "L" else "RGB")
            array = np.asarray(picture.convert(mode))
    except DataError:
        raise
    except Exception as error:  # decoders raise a dozen kinds for a damaged or enormous file
        raise DataError(f"{name} is not a readable image ({error}): repair or remove it") from error
    return array[..., None] if array.ndim == 2 else array


def image_paths(folder: Path, *, every: bool = False) -> list[Path]:
    """The image files of a folder, subfolders and links too, in order; raises DataError when there are none.

    With `every`, also files of other kinds, but for hidden ones and tables and texts that come beside images: who must
    not overlook an image cannot go by the endings that are known here.
    """
    files = (Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names)
    shown = sorted(path for path in files if not path.name.startswith("."))
    known = [path for path in shown if path.suffix.lower() in SUFFIXES]
    found = [path for path in shown if path.suffix.lower() not in BESIDE] if every else known
    if not known:
        raise DataError(f"{folder} is not a folder with images: expected files of {', '.join(SUFFIXES)} in it")
    return found


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
