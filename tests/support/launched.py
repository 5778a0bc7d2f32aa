"""Every method that changes a tiny Stable Diffusion, for a moment, in one process or in several together.

torchrun --nproc-per-node 2 -m tests.support.launched FOLDER PIPELINE
"""

import sys
from dataclasses import fields
from pathlib import Path

from erasure.core import config, registry
from erasure.core.distributed import is_main, world
from erasure.formats.safetensors_io import write_tensors
from erasure.models import load_model
from tests.conftest import PROMPTS
from tests.methods.test_cross_attention import job_of

METHODS = {
    "salun": {"relabel": "anchor"},
    "salun_distilled": {"relabel": "anchor"},
    "salun_soft": {"relabel": "anchor"},
    "l1_sparse": {},
    "esd": {"sampling_steps": 3},
    "lora_esd": {"sampling_steps": 3, "weight_decay": 0.0},
    "concept_ablation": {"num_anchor_images": 4, "anchor_inference_steps": 1},
    "erasediff": {"inner_steps": 1},
    "selective_amnesia": {"fisher_samples": 4},
    "forget_me_not": {},
    "advunlearn": {"sampling_steps": 3, "retain_prompts": 2, "warmup": 1, "attack_steps": 1},
    "mace": {},
    "influence": {"samples": 4, "steps": 1},
    "uce": {},
    "rece": {},
    "speed": {},
}
COMMON = {"steps": 2, "batch_size": 4, "optimizer": "sgd", "learning_rate": 1e-2}


def method_of(name):
    """The method with few steps of plain gradient descent, where it takes any."""
    kind = registry.load("methods", name)
    known = {field.name for field in fields(kind)}
    return config.build(kind, name, {key: value for key, value in COMMON.items() if key in known}, METHODS[name])


def run(out, pipeline):
    """Write the weights that each method leaves of the tiny `pipeline`, as `out`/METHOD.safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        method, model = method_of(name), load_model(pipeline).set_prompts(PROMPTS)
        method.erase(model, job_of())
        if is_main():
            write_tensors(out / f"{name}.safetensors", method.part_of(model).network.state_dict())


if __name__ == "__main__":
    sys.stdout.write(f"{world().num_processes} processes\n")
    run(*map(Path, sys.argv[1:]))
