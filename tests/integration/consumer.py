"""A program that uses the public API; `mypy --strict` must accept it (see test_api.py). It is not run."""

from pathlib import Path

import torch

import erasure as er


def erased(model: str, out: Path) -> er.Run:
    """Erase a church, and measure."""
    pipe = er.load(model)
    target = er.Concept.from_words("church", anchor="a building")
    mask: er.Mask = er.saliency_mask(pipe, target, density=0.5)
    salient: torch.Tensor = mask.tensors["conv_in.weight"]
    assert salient.dtype == torch.bool
    return er.erase(pipe, target, method=er.methods.SalUn(alpha=0.5), mask=mask, out=out, seed=0)


def share(run: er.Run) -> tuple[float, tuple[float, float]]:
    """UA and its interval."""
    score = run.metrics["ua"]
    return score.value, score.interval


def accepted(run: er.Run, base: str) -> bool:
    """Audit, export and verify."""
    found = er.audit(run.model, base=base, prompts="i2p", max_rate=0.01, out="audit")
    run.export("cleaned.safetensors", format="single-file")
    er.verify("cleaned.safetensors", base=base)
    return found.verdict == "pass"


def forgets() -> list[er.Classes | er.Samples]:
    """Targets that are no words."""
    return [er.Classes(3), er.Classes("cat", "dog", data="cifar10"), er.Samples([5, 17])]


VERSION: str = er.__version__
