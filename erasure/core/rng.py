"""One integer seed for each purpose, derived from the run's seed: no generator state has to be saved to resume."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed in [0, 2^63) for `purpose` (say "noise", step); different purposes give independent streams."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
