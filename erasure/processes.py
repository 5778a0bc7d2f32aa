"""Several processes under `accelerate launch`: which device, what the main one knows, and waiting for each other."""

from __future__ import annotations

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


def wait() -> None:
    """Go on when every process is here."""
    PartialState().wait_for_everyone()
