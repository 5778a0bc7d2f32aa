"""What requests to forget cost the exact methods: samples retrained, against one model retrained without the samples.

Counted from the plans of the digits, nothing is trained: a stage's states are named by the ids that they are made from,
so what a request retrains is what it leaves without a name. Requests come one after the other; each figure is the mean
over them. Skewed: nine of ten requests fall on a tenth of the samples, which the plan was told of in advance or not.
Expected for single requests drawn evenly: (1/S)(2/3 + 1/(3R)), where S is the shards of SISA or the classes of ARCANE;
for a sample that is sorted into the last slice, one stage of a unit: (1/S) 2/(R + 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from erasure.data import Dataset, load_dataset
from erasure.exact.arcane import Arcane
from erasure.exact.plan import DataSpec, ExactPlan
from erasure.exact.sisa import Sisa

UNITS, SLICES, REQUESTS, SEED = 10, 5, 300, 0


def measure() -> dict[str, float]:
    """The ratios, each beside what it is expected to be."""
    dataset = load_dataset("digits")
    generator = np.random.default_rng(SEED)
    marked = np.sort(generator.choice(len(dataset), len(dataset) // 10, replace=False)).tolist()
    plain, told = (_plans(dataset, likely) for likely in ((), marked))
    evenly = generator.permutation(len(dataset))[:REQUESTS].tolist()
    skewed = _skewed(generator, len(dataset), marked)
    even, last = (2 / 3 + 1 / (3 * SLICES)) / UNITS, 2 / (SLICES + 1) / UNITS
    found: dict[str, float] = {}
    for name in ("SISA", "ARCANE"):
        single, told_of = _singly(evenly), 0.9 * last + 0.1 * even
        found |= {
            f"{name}, single requests / naive (goal: expected {even:.3g})": cost(plain[name], single),
            f"{name}, skewed requests / naive (goal: expected {even:.3g})": cost(plain[name], _singly(skewed)),
            f"{name}, skewed, told in advance / naive (goal: about {told_of:.3g})": cost(told[name], _singly(skewed)),
            f"{name}, 20 ids a request / naive": cost(
                plain[name], [evenly[i : i + 20] for i in range(0, REQUESTS, 20)]
            ),
            f"{name}, a whole class / naive": cost(plain[name], [np.flatnonzero(dataset.labels == 3).tolist()]),
        }
    return found


def cost(plan: ExactPlan, requests: Sequence[Sequence[int]]) -> float:
    """Samples retrained, as a share of naive retraining; mean over the requests, which add up."""
    return float(np.mean(list(_costs(plan, requests))))


def _costs(plan: ExactPlan, requests: Sequence[Sequence[int]]) -> Iterator[float]:
    deleted: set[int] = set()
    names = {stage.name for stage in plan.stages(deleted)}
    for ids in requests:
        deleted |= set(ids)
        stages = plan.stages(deleted)
        yield plan.samples([stage for stage in stages if stage.name not in names]) / plan.naive_samples(deleted)
        names = {stage.name for stage in stages}


def _plans(dataset: Dataset, likely: Sequence[int]) -> dict[str, ExactPlan]:
    source = DataSpec("digits", None, None)
    sisa, arcane = Sisa(arch="resnet-digits", shards=UNITS, slices=SLICES), Arcane(slices=SLICES)
    return {
        "SISA": ExactPlan.draw("sisa", sisa, dataset, source, SEED, likely),
        "ARCANE": ExactPlan.draw("arcane", arcane, dataset, source, SEED, likely),
    }


def _singly(ids: Sequence[int]) -> list[list[int]]:
    return [[sample] for sample in ids]


def _skewed(generator: np.random.Generator, count: int, marked: Sequence[int]) -> list[int]:
    """Ids, each once, nine of ten of which are `marked`, as far as those go."""
    others = np.setdiff1d(np.arange(count), marked)
    many = generator.permutation(marked)
    few = generator.permutation(others)[: len(many) // 9]
    return generator.permutation(np.concatenate([many, few])).tolist()
