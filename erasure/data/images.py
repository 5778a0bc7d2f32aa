"""Images: what counts as an image file, and uint8 on disk and for metrics to and from float in [-1, 1] inside.

Arrays are (n, height, width, channels) uint8; tensors are (n, channels, height, width) float32.

An image file has one of the usual endings, or begins like an image whatever its ending. Hidden files and files in
hidden folders are none, such as macOS's `._a.png` and `.ipynb_checkpoints/a.png`. Everything that reads a folder of
images goes by this one rule and says how many files it skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erasure.core.errors import DataError
from erasure.core.files import atomic_path
from erasure.core.logging import log_user_once

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEAD = 16  # bytes that show whether a file is an image
BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x0a", b"\0\0\0\x0cJXL ")
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # of ISO media files that are images
MACOS = "__MACOSX"  # a folder of hidden files in the archives that macOS makes
SHOWN = 3  # names of skipped files that a note has


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


def is_hidden(name: str) -> bool:
    """Whether a file, named by its path below the folder that is read, is hidden or lies in a hidden folder."""
    return any(part.startswith(".") or part == MACOS for part in PurePosixPath(name).parts)


def named_as_image(name: str) -> bool:
    """Whether a file is an image by its name alone."""
    return not is_hidden(name) and PurePosixPath(name).suffix.lower() in SUFFIXES


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is an image; `head` returns its first HEAD bytes, and is called when the name does not say it."""
    return named_as_image(name) or (not is_hidden(name) and _begins_like_image(head()))


def _begins_like_image(head: bytes) -> bool:
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    return head.startswith(BEGINNINGS) or (head[4:8] == b"ftyp" and head[8:12] in BRANDS)


def log_skipped(source: object, skipped: Sequence[str]) -> None:
    """Say how many files of `source` are no images, and the first of them."""
    if skipped:
        more = ", ..." if len(skipped) > SHOWN else ""
        files = "file that is no image" if len(skipped) == 1 else "files that are no images"
        log_user_once(f"{source}: skipped {len(skipped)} {files}: {', '.join(skipped[:SHOWN])}{more}")


def find_images(folder: Path) -> list[Path]:
    """Find every image file below a folder, through links too, in the order of their paths; none in what is no folder.

    A note says how many other files there are.
    """
    found: list[Path] = []
    skipped: list[str] = []
    for path in sorted(files_below(folder)):
        name = path.relative_to(folder).as_posix()
        if is_image(name, partial(_head, path)):
            found.append(path)
        else:
            skipped.append(name)
    log_skipped(folder, skipped)
    return found


def image_paths(folder: Path) -> list[Path]:
    """Find every image file below a folder as `find_images` does; raises DataError when there is none."""
    found = find_images(folder)
    if not found:
        raise DataError(f"{folder} is not a folder with images: expected files of {', '.join(SUFFIXES)} in it")
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, through links to folders too, each folder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if os.path.realpath(Path(root) / name) not in seen]
        yield from (Path(root) / name for name in names)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:  # a broken link
        return b""


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one uint8 image (h, w, c) as PNG, atomically."""
    with atomic_path(path) as temporary:
        as_picture(image).save(temporary, format="PNG")


def as_picture(image: np.ndarray) -> Image.Image:
    """One uint8 image (h, w, c) as a Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(rows: Sequence[np.ndarray], scale: int = 1, gap: int = 2) -> np.ndarray:
    """One image of `rows`, each (n, h, w, c) uint8, pixels enlarged `scale` times, on white."""
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
