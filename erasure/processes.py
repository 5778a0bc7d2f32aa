"""Several processes under `accelerate launch`: which device, what the main one knows, and a folder they share."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def device() -> torch.device:
    """The device of this process."""
    return PartialState().device


def agreed(value: T) -> T:
    """The main process's `value`, in every process."""
    if PartialState().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder that all processes see, gone when all of them are done with it."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(agreed(own))
        PartialState().wait_for_everyone()
