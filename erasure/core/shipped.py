"""Files that ship with the project: checkpoints, prompt presets and benchmark plans."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

CHECKOUT = {"checkpoints": "checkpoints", "prompts": "prompts", "plans": "benchmarks/plans"}


def shipped(kind: Literal["checkpoints", "prompts", "plans"]) -> Path:
    """The folder of one kind: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "shipped" / kind
    return inside if inside.is_dir() else package.parent / CHECKOUT[kind]
