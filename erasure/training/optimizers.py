"""Optimisers by name.

Each keeps its state by parameter, allocates it at the parameter's first step, and updates every parameter by itself:
the result for one tensor does not depend on when the others are updated.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from erasure.core.errors import OptionError

Optimizer = Literal["adam", "adamw", "sgd", "adamw8bit"]


def new_optimizer(
    kind: str, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """An optimiser of `parameters`, in one group; `momentum` is that of sgd.

    Raises OptionError for a name it does not know, and for adamw8bit (Dettmers et al., 2022) without its library.
    """
    common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if kind == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise OptionError(
                "--optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose adam, adamw or sgd"
            ) from error
        return AdamW8bit(parameters, **common)
    common["fused"] = parameters[0].device.type in ("cpu", "cuda")
    if kind == "sgd":
        return torch.optim.SGD(parameters, momentum=momentum, **common)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if kind not in kinds:
        raise OptionError(f"unknown --optimizer {kind!r}: expected adam, adamw, sgd or adamw8bit")
    return kinds[kind](parameters, **common)
