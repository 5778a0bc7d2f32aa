"""Several processes of `accelerate launch` or `torchrun`: their devices, what the main one knows, a shared folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")


def world() -> PartialState:
    """The processes that work together: those of `accelerate launch` on accelerators, those of `torchrun` on CPUs."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def device() -> torch.device:
    """The device of this process."""
    return world().device


def agreed(value: T) -> T:
    """The main process's `value`, in every process."""
    if world().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder that all processes see, gone when all of them are done with it."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(agreed(own))
        world().wait_for_everyone()
