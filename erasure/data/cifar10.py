"""cifar10: 60,000 photographs in ten classes, 32 x 32 colour (Krizhevsky, 2009).

Read from `--data-dir`, which may be (or hold) any of these forms:
- `cifar10-train.tar.gz` and `cifar10-test.tar.gz` (or .tar, .zip) with members `<split>/<class>/NNNN.<image>`;
- the official *binary* version, `cifar-10-binary.tar.gz`, or its unpacked folder `cifar-10-batches-bin`;
- a folder `<split>/<class>/NNNN.<image>`.
The counts are checked (5,000 and 1,000 a class): a truncated or different archive is refused.
"""

from __future__ import annotations

from erasure.data.cifar import PIXELS, Cifar

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + PIXELS


class Cifar10(Cifar):
    """CIFAR-10 from any of its forms on disk."""

    name = "cifar10"
    title = "CIFAR-10"
    names = NAMES
    binary = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}  # noqa: RUF012
    binary_folder = "cifar-10-batches-bin"
    pickled = ("cifar-10-python", "cifar-10-batches-py")
