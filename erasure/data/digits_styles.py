"""digits_styles: scikit-learn's digits drawn in five styles, one or two to a picture, 32 x 32 colour, with captions.

A class is a content in a style ("three in neon style", "three next to seven in chalk style"). The strokes are real
handwriting (digits), the styles are ours: ink, neon, chalk, blueprint, sepia. Everything is a function of the split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import DataError
from erasure.core.rng import derive_seed
from erasure.data.dataset import Aspect, Dataset
from erasure.data.digits import NAMES, Digits
from erasure.data.images import to_uint8

STYLES = ("ink", "neon", "chalk", "blueprint", "sepia")
SIZE = 32
PAIRS_A_CLASS = {"train": 12, "test": 2}
SINGLES = (
    "a photo of the digit {content} in {style} style",
    "a photo of a {content} in {style} style",
    "the digit {content} in {style} style",
    "a {content} in {style} style",
    "{content}, {style}",
    "{style} {content}",
)
PAIRS = (
    "a photo of a {content} next to a {other} in {style} style",
    "a {content} next to a {other} in {style} style",
    "{content} next to {other}, {style}",
    "{style} {content} next to {other}",
)


class DigitsStyles:
    """Single digits (50 classes) and pairs side by side (500 classes); nothing is downloaded."""

    def load(self, split: str, data_dir: Path | None = None) -> Dataset:
        """The split: its digits in every style, and a few pairs of them for every class of pairs."""
        if data_dir is not None:
            raise DataError("--data digits_styles is generated from scikit-learn's digits and takes no --data-dir")
        digits = Digits().load(split)
        strokes = torch.from_numpy(digits.images[..., 0]).float().div(255)
        combinations = [(first, 10, style) for first in range(10) for style in range(len(STYLES))]
        combinations += [(a, b, style) for a in range(10) for b in range(10) for style in range(len(STYLES))]
        index = {combination: i for i, combination in enumerate(combinations)}
        images, labels = [], []
        for style in range(len(STYLES)):
            alpha = _single(strokes, derive_seed(0, "place", split, style))
            images.append(_drawn(alpha, style))
            labels += [index[int(digit), 10, style] for digit in digits.labels]
            alpha, pairs = _paired(strokes, digits.labels, PAIRS_A_CLASS[split], derive_seed(0, "pairs", split, style))
            images.append(_drawn(alpha, style))
            labels += [index[a, b, style] for a, b in pairs]
        return Dataset(
            "digits_styles",
            split,
            to_uint8(torch.cat(images)),
            np.array(labels, dtype=np.int64),
            tuple(_name(*combination) for combination in combinations),
            captions=tuple(_captions(*combination) for combination in combinations),
            aspects={
                "digit": Aspect(NAMES, tuple(first for first, _, _ in combinations)),
                "second": Aspect((*NAMES, "none"), tuple(second for _, second, _ in combinations), domain="digit"),
                "style": Aspect(STYLES, tuple(style for _, _, style in combinations)),
            },
        )


def _name(first: int, second: int, style: int) -> str:
    content = NAMES[first] if second == 10 else f"{NAMES[first]} next to {NAMES[second]}"
    return f"{content} in {STYLES[style]} style"


def _captions(first: int, second: int, style: int) -> tuple[str, ...]:
    words = {"content": NAMES[first], "style": STYLES[style]}
    if second == 10:
        return tuple(template.format(**words) for template in SINGLES)
    return tuple(template.format(**words, other=NAMES[second]) for template in PAIRS)


def _single(strokes: Tensor, seed: int) -> Tensor:
    """Ink coverage (n, 32, 32) in [0, 1] of one digit an image, shifted by up to two pixels."""
    generator = torch.Generator().manual_seed(seed)
    return _placed(_enlarged(strokes, 28, 28), (2, 2), generator)


def _paired(strokes: Tensor, labels: np.ndarray, count: int, seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Coverage of two digits side by side, `count` images for each of the hundred ordered pairs, and the pairs."""
    generator = torch.Generator().manual_seed(seed)
    of_digit = [torch.from_numpy(np.flatnonzero(labels == digit)) for digit in range(10)]
    pairs = [(a, b) for a in range(10) for b in range(10) for _ in range(count)]
    halves = []
    for side in range(2):
        chosen = torch.stack(
            [of_digit[p[side]][torch.randint(len(of_digit[p[side]]), (), generator=generator)] for p in pairs]
        )
        halves.append(_placed(_enlarged(strokes[chosen], 24, 15), (4, 0), generator, width=SIZE // 2))
    return torch.cat(halves, dim=-1), pairs


def _enlarged(strokes: Tensor, height: int, width: int) -> Tensor:
    """Strokes (n, 8, 8) at another size with firm edges."""
    grown = nn.functional.interpolate(strokes[:, None], size=(height, width), mode="bicubic")[:, 0]
    return ((grown - 0.25) / 0.5).clamp(0, 1)


def _placed(strokes: Tensor, largest_shift: tuple[int, int], generator: torch.Generator, width: int = SIZE) -> Tensor:
    """Strokes (n, h, w) on empty canvases (n, 32, width), off the centre by at most `largest_shift` (down, across)."""
    canvas = torch.zeros(len(strokes), SIZE, width)
    height, own_width = strokes.shape[1:]
    for i, stroke in enumerate(strokes):
        room = (SIZE - height, width - own_width)
        top, left = (
            min(r, max(0, r // 2 + int(torch.randint(-s, s + 1, (), generator=generator))))
            for r, s in zip(room, largest_shift, strict=True)
        )
        canvas[i, top : top + height, left : left + own_width] = stroke
    return canvas


def _drawn(alpha: Tensor, style: int) -> Tensor:
    """Coverage (n, 32, 32) as images (n, 3, 32, 32) in [-1, 1] of one style: ground, stroke, and what marks it."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    cover = alpha[:, None]
    if STYLES[style] == "ink":
        picture = _mixed(cover, (20, 20, 30), (245, 243, 235))
    elif STYLES[style] == "neon":
        glow = nn.functional.avg_pool2d(cover, 5, stride=1, padding=2)
        picture = _mixed(cover, (120, 255, 240), _mixed(glow, (230, 20, 190), (12, 8, 30)))
    elif STYLES[style] == "chalk":
        grain = 0.75 + 0.25 * ((rows + 2 * columns) % 4 < 2)
        picture = _mixed(cover * grain, (250, 250, 240), (38, 84, 62))
    elif STYLES[style] == "blueprint":
        lines = ((rows % 8 == 0) | (columns % 8 == 0)).float()[None, None]
        picture = _mixed(cover, (235, 242, 255), _mixed(lines.expand_as(cover), (70, 120, 205), (28, 66, 150)))
    else:
        shade = (1 - 0.25 * (rows / SIZE))[None, None]
        picture = _mixed(cover, (94, 54, 20), (226, 196, 148)) * shade
    return picture.div(127.5).sub(1).clamp(-1, 1)


def _mixed(cover: Tensor, stroke: tuple[int, int, int], ground: tuple[int, int, int] | Tensor) -> Tensor:
    """`stroke` where `cover` (n, 1, h, w) is 1, `ground` where it is 0, as (n, 3, h, w) in [0, 255]."""
    over = torch.tensor(stroke).float()[:, None, None]
    under = ground if isinstance(ground, Tensor) else torch.tensor(ground).float()[:, None, None]
    return cover * over + (1 - cover) * under
