"""random_label: SalUn's loss without a mask (Golatkar et al., 2020; the RL row of Fan et al., 2024).

Loss and defaults are those of `salun`; `--mask` takes any mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from erasure.methods.relabeling.base import Relabeling


@dataclass(frozen=True, kw_only=True)
class RandomLabel(Relabeling):
    """Random-label unlearning."""
