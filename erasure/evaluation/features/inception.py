"""The Inception network of the FID (Szegedy et al., 2016; weights of Heusel et al., 2017), without torchvision.

Tensor names are those of the file `pt_inception-2015-12-05`, which the user gives (`--inception PATH`, safetensors or
.pth) or which an earlier program left in the cache of torch.hub. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

from erasure.core.errors import ModelError, NotApplicableError
from erasure.formats.safetensors_io import read_pickled_tensors, read_tensors

FILE = "pt_inception-2015-12-05-6726825d.pth"
DIMENSIONS = 2048


class Unit(nn.Module):
    """Convolution without bias, batch norm (eps 0.001), ReLU."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, width, h', w')."""
        return relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    """3 x 3 mean that leaves the padding out of its count, as TensorFlow's does."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """35 x 35: 1 x 1, 5 x 5, double 3 x 3 and pooled branches."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Unit(channels, 48, 1), Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(channels, 64, 1), Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, 224 + pooled, h, w)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))], 1
        )


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(channels, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(channels, 64, 1), Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, channels + 480, h / 2, w / 2)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17: 7 x 7 convolutions as pairs of 1 x 7 and 7 x 1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        across: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        down: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Unit(channels, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Unit(channels, width, 1),
            Unit(width, width, **across),
            Unit(width, 192, **down),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Unit(channels, width, 1), Unit(width, width, **down)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Unit(width, width, **across), Unit(width, width, **down)
        self.branch7x7dbl_5 = Unit(width, 192, **across)
        self.branch_pool = Unit(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, 768, h, w)."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Unit(channels, 192, 1), Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Unit(channels, 192, 1), Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Unit(192, 192, (7, 1), padding=(3, 0)), Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, channels + 512, h / 2, w / 2)."""
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), large, max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8 with split 3 x 3 branches; the FID network's last block pools by the largest value."""

    def __init__(self, channels: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.branch1x1 = Unit(channels, 320, 1)
        self.branch3x3_1 = Unit(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _crossed()
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(channels, 448, 1), Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _crossed()
        self.branch_pool = Unit(channels, 192, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, 2048, h, w)."""
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
        ]
        return torch.cat([self.branch1x1(x), *parts, self.branch_pool(self.pool(x))], 1)


def _crossed() -> tuple[Unit, Unit]:
    return Unit(384, 384, (1, 3), padding=(0, 1)), Unit(384, 384, (3, 1), padding=(1, 0))


class FIDInception(nn.Module):
    """Images (n, 3, h, w) in [-1, 1] to pooled features (n, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Unit(3, 32, 3, stride=2), Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Unit(64, 80, 1), Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            BlockC(768, width) for width in (128, 160, 160, 192)
        )
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, _average), BlockE(2048, _largest)
        self.fc = nn.Linear(DIMENSIONS, 1008)

    def forward(self, images: Tensor) -> Tensor:
        """Resize to 299 x 299 (bicubic, antialiased, in float) and embed."""
        x = interpolate(images.float(), size=(299, 299), mode="bicubic", antialias=True, align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def inception_file(path: str | None) -> Path:
    """Where the weights lie; raises NotApplicableError when nowhere."""
    cached = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints" / FILE
    source = Path(path) if path else cached
    if not source.is_file():
        missing = f"--inception {path} does not exist" if path else f"they need the Inception weights {FILE}"
        raise NotApplicableError(f"fid and kid cannot be measured: {missing}; give their path with --inception")
    return source


def load_inception(path: str | None) -> FIDInception:
    """The network with the weights at `path`, or with those in torch.hub's cache.

    Raises NotApplicableError when there are none, ModelError when the file is another network's.
    """
    source = inception_file(path)
    tensors = read_tensors(source)[0] if source.suffix == ".safetensors" else read_pickled_tensors(source)
    network = FIDInception()
    expected = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    missing = sorted(
        name for name in expected if name not in tensors or tensors[name].shape != network.state_dict()[name].shape
    )
    if missing:
        raise ModelError(
            f"{source} is not {FILE}: {len(missing)} tensors are missing or of another shape, first {missing[0]!r}"
        )
    network.load_state_dict({name: tensors[name] for name in expected}, strict=False)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def inception_features(network: FIDInception, images: Tensor, batch_size: int = 32) -> np.ndarray:
    """Features (n, 2048) of images (n, c, h, w) in [-1, 1]; grey images are repeated to three channels."""
    colour = images if images.shape[1] == 3 else images.repeat(1, 3, 1, 1)
    place = next(network.parameters()).device
    return torch.cat([network(part.to(place)).cpu() for part in colour.split(batch_size)]).double().numpy()
