"""random_label: SalUn's loss without a mask (Golatkar et al., 2020; the RL row of Fan et al., 2024).

The loss is the one of `salun` and so are the defaults; `--mask` still takes any mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from erasure.methods._relabel import Relabelling


@dataclass(frozen=True, kw_only=True)
class RandomLabel(Relabelling):
    """Random-label unlearning."""

    defaults_of: ClassVar[dict[str, dict[str, Any]]] = {
        "classifier": {
            "optimizer": "sgd",
            "learning_rate": 0.013,
            "weight_decay": 5e-4,
            "epochs": 10.0,
            "batch_size": 256,
            "clip_norm": 0.0,
        }
    }
