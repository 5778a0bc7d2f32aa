"""Several processes of `accelerate launch` or `torchrun`: who is the main one, their devices, a shared folder.

The only reader of RANK, WORLD_SIZE and their companions. Processes work together when all of RENDEZVOUS is set and
WORLD_SIZE is at least 2. An incomplete set, such as a RANK that another program left behind, means a single process.
Torch is imported when a device or a group of processes is first asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

T = TypeVar("T")

# What `accelerate launch` and `torchrun` set in each process, and what `torch.distributed` needs to connect them.
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What accelerate also reads, for processes of MPI.
_OTHER_LAUNCHERS = (
    *("LOCAL_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    *(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
)


def num_processes() -> int:
    """How many processes work together; 1 unless a launcher started several."""
    return _rank_and_size()[1]


def is_main() -> bool:
    """Whether this process is the one that writes: the first of those that a launcher started, or the only one."""
    return _rank_and_size()[0] == 0


def world() -> PartialState:
    """The processes that work together: those of `accelerate launch` on accelerators, those of `torchrun` on CPUs."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if num_processes() > 1:
        return PartialState(cpu=cpu)
    with _no_launcher():
        return PartialState(cpu=cpu)


def device() -> torch.device:
    """The device of this process."""
    return world().device


def agreed(value: T) -> T:
    """The main process's `value`, in every process."""
    if world().num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder that all processes see; it is removed when all of them are done with it."""
    import tempfile

    with tempfile.TemporaryDirectory() as own:
        yield Path(agreed(own))
        world().wait_for_everyone()


def _rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes that work together; (0, 1) for a single process."""
    try:
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    except (KeyError, ValueError):
        return 0, 1
    complete = all(os.environ.get(name) for name in RENDEZVOUS)
    return (rank, size) if complete and 0 <= rank < size else (0, 1)


@contextlib.contextmanager
def _no_launcher() -> Iterator[None]:
    """Hide what a launcher left in the environment, so that accelerate does not wait for processes that do not exist.

    Of a WORLD_SIZE above 1 the user is warned: several processes were probably meant.
    """
    left = {name: os.environ.pop(name) for name in (*RENDEZVOUS, *_OTHER_LAUNCHERS) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(left)
    missing = ", ".join(name for name in RENDEZVOUS if not left.get(name))
    if missing and left.get("WORLD_SIZE", "1") != "1":
        _warn(
            f"WORLD_SIZE is {left['WORLD_SIZE']}, but these are not set: {missing}; this is run as a single "
            "process (`accelerate launch -m erasure` starts several)"
        )


@functools.cache
def _warn(text: str) -> None:
    """Warn once; not with core/logging, which asks this module who the main process is."""
    import logging

    logging.getLogger("erasure").warning(text)
