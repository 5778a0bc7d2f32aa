"""What an erasure moved: which part of the model, how many of its weights, how far, and what it is now."""

from __future__ import annotations

from typing import Any

from erasure.methods._base import Method
from erasure.models import Model


def moved(method: Method, model: Model, original: Model) -> dict[str, Any]:
    """`moves` (what of it), `hash` (of the network), `changed_weights`, `total_weights` and `relative_change`.

    The counts are those of the part that the method moves, and `relative_change` is the norm of the change relative to
    the weights'. Where that part is not the network, `part_hash` and `base_part_hash` are its hashes after and before.
    """
    after, before = method.part_of(model), method.part_of(original)
    found = {"moves": method.moves, "hash": model.hash}
    if after.network is not model.network:
        found |= {"part_hash": after.hash, "base_part_hash": before.hash}
    return {**found, **_change(after, before)}


def _change(after: Model, before: Model) -> dict[str, Any]:
    changed = total = 0
    distance = size = 0.0
    pairs = zip(after.network.parameters(), before.network.parameters(), strict=True)
    for now, then in ((one.detach().cpu(), other.detach().cpu()) for one, other in pairs):
        changed += int((now != then).sum())
        total += now.numel()
        distance += float((now - then).double().square().sum())
        size += float(then.double().square().sum())
    return {"changed_weights": changed, "total_weights": total, "relative_change": (distance / size) ** 0.5}
