"""The closed forms at the size of Stable Diffusion 1: seconds and peak memory, for one concept and for a hundred.

Keys and values have the shapes of the real ones, read off a network without weights, and random values; prompts go
through the real tokenizer to random embeddings, equal where beginnings are equal. Each run has a process of its own;
peak memory leaves out what libraries, matrices and embeddings take before the method starts.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mask import _peak as peak_bytes
from benchmarks.sd_networks import CONFIGS, TOKENS, text_width
from erasure.core import registry
from erasure.data import Dataset
from erasure.data.task import Task
from erasure.formats.clip_tokenizer import clip_tokenizer
from erasure.methods.base import Job
from erasure.models.prompt_encoding import PromptEmbeddings, token_ids
from erasure.models.stable_diffusion import StableDiffusion

KEPT = 1000  # prompts
CONCEPTS = (1, 100)
# The heavier of a method's settings: every token from the subject on.
RUNS: dict[str, dict[str, Any]] = {"uce": {"tokens": "rest"}, "rece": {}, "speed": {"tokens": "rest"}}
NORM = 28.0  # of an embedding, about that of CLIP's


class Reader(StableDiffusion):
    """What of Stable Diffusion 1 reads a prompt: a tokenizer, embeddings, and the keys and values."""

    def __init__(self, prompts: list[str], width: int) -> None:
        self.network, self.parts = readers(width), {"tokenizer": clip_tokenizer()}
        ids = token_ids(self.parts["tokenizer"], [*prompts, ""])
        self.prompt_embeddings = PromptEmbeddings((*prompts, ""), encoded(ids, text_width(width)))


def measure() -> dict[str, float]:
    """Seconds and gigabytes of each method."""
    found = {}
    for name in RUNS:
        for concepts in CONCEPTS:
            command = [sys.executable, "-m", "benchmarks.closed_forms", name, str(concepts), str(KEPT)]
            value = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            what = f"{name}, {concepts} of {concepts + KEPT} prompts"
            found[f"{what}, seconds (goal: at most 60)"] = value["seconds"]
            found[f"{what}, peak GB (goal: at most 4)"] = value["peak"] / 1e9
    return found


def alone(name: str, concepts: int, kept: int, width: int = 320) -> dict[str, float]:
    """Seconds and bytes of one method, which forgets `concepts` prompts and keeps as many anchors, and `kept` more."""
    model, task = problem(concepts, kept, width)
    method = registry.load("methods", name)(**RUNS[name])
    before = peak_bytes()
    began = time.perf_counter()
    outcome = method.erase(model, Job(task, Dataset.nothing(), Dataset.nothing()))
    seconds = time.perf_counter() - began
    if not 0 <= outcome.records[0]["loss"] < 1:
        raise SystemExit(f"{name} came no nearer to the anchors: {outcome.records[0]}")
    return {"seconds": seconds, "peak": peak_bytes() - before}


def problem(concepts: int, kept: int, width: int) -> tuple[Reader, Task]:
    """Prompts of words drawn from the tokenizer's vocabulary."""
    words = sorted(
        w.removesuffix("</w>") for w in clip_tokenizer().get_vocab() if w.endswith("</w>") and w[:-4].isalpha()
    )
    drawn = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    subjects = [words[i] for i in drawn[: 2 * concepts]]
    others = [" ".join(words[drawn[(7 * i + j) % len(drawn)]] for j in range(6)) for i in range(kept)]
    prompts = [f"a photo of {target} in a garden" for target in subjects] + [f"a picture of {text}" for text in others]
    task = Task(tuple(prompts), tuple(range(concepts)), anchors=tuple(range(concepts, 2 * concepts)), title="drawn")
    return Reader(prompts, width), task


def readers(width: int) -> nn.Module:
    """Random keys and values of Stable Diffusion 1's cross-attention by name; a `width` of 320 channels is the real."""
    from diffusers import UNet2DConditionModel

    config = json.loads((CONFIGS / "unet" / "config.json").read_text(encoding="utf-8"))
    config |= {"block_out_channels": [width, 2 * width, 4 * width, 4 * width], "norm_num_groups": math.gcd(32, width)}
    config["cross_attention_dim"] = text_width(width)
    with torch.device("meta"):
        whole: Any = UNet2DConditionModel.from_config(config)
    generator, network = torch.Generator().manual_seed(0), nn.Module()
    for name, parameter in whole.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            values = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            _place(network, name, nn.Parameter(values))
    return network


def encoded(ids: Tensor, width: int) -> Tensor:
    """Embeddings (n, tokens, width) of token ids (n, tokens): each of its own token, place, and all before it."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn((int(ids.max()) + 1, width), generator=generator)
    places = torch.randn((TOKENS, width), generator=generator)
    found = torch.empty((*ids.shape, width))
    for row, tokens in zip(found, ids, strict=True):
        own = table[tokens] + places
        torch.add(own, own.cumsum(0) / torch.arange(1, TOKENS + 1)[:, None] ** 0.5, out=row)
        row.mul_(NORM / row.norm(dim=1, keepdim=True))
    return found


def _place(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register `parameter` under a dotted name."""
    *folders, last = name.split(".")
    for folder in folders:
        if folder not in dict(module.named_children()):
            module.add_module(folder, nn.Module())
        module = module.get_submodule(folder)
    module.register_parameter(last, parameter)


if __name__ == "__main__":
    print(json.dumps(alone(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
