"""The card that lies beside an exported file: what was erased, from what, how, the numbers, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PIPELINES = {
    "sdxl": "StableDiffusionXLPipeline",
    "stable_diffusion": "StableDiffusionPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "ddpm": "DDPMPipeline",
    "classifier": "transformers.ResNetForImageClassification",
}
LOADING = {
    "diffusers": """`{pipeline}.from_pretrained("{name}", torch_dtype=torch.{dtype})`

ComfyUI and A1111 want Stable Diffusion in one file: `erasure export RUN --format single-file`.""",
    "single-file": """diffusers: `{pipeline}.from_single_file("{name}", torch_dtype=torch.{dtype})`

ComfyUI: put it into `models/checkpoints/` and choose it in *Load Checkpoint*.

A1111: put it into `models/Stable-diffusion/` and choose it at the top left.""",
    "unet": """diffusers: load the base pipeline, then
`pipeline.unet.load_state_dict(safetensors.torch.load_file("{name}"))`.

ComfyUI: put it into `models/diffusion_models/` and choose it in *Load Diffusion Model*, beside the text encoder and VAE
of `{base}`.

A1111 wants a whole checkpoint: `erasure export RUN --format single-file`.""",
    "delta": """`erasure export --apply {name} --to {base} --out cleaned` gives the cleaned model bit for bit.

On another fine-tune of the same architecture it adds the same change; audit the result again.""",
    "lora": """diffusers: `pipeline.load_lora_weights("{name}")` on a pipeline of `{base}`.

ComfyUI: put it into `models/loras/` and load it with *Load LoRA*, strength 1.

A1111: put it into `models/Lora/` and add `<lora:{stem}:1>` to the prompt.

Who has the base can leave the LoRA out: it hides the concept, it does not remove it from a model that is handed on.""",
    "safetensors": """The tensors of the network under the stock library's names:
`network.load_state_dict(safetensors.torch.load_file("{name}"))`.""",
}


def card(provenance: Mapping[str, Any], name: str) -> str:
    """The card as Markdown; `name` is what the file or folder is called."""
    found = provenance
    about = [
        f"# {name}",
        f"`{found['forget']}` was erased from `{found['base']}` (SHA-256 of its network {found['base_hash'][:16]}).",
        "## How",
        _how(found),
        "## What was measured",
        *_measured(found.get("metrics") or {}),
        "## What can be checked",
        f"`erasure verify {name} --base {found['base']}` proves which weights changed, and that no other did.",
    ]
    if found.get("applied_to"):
        about.append(f"The change was made for `{found['delta']['base']}`: here it was added, and never measured.")
    text = LOADING.get(found["format"], "")
    loading = text.format(
        name=name,
        base=found["base"],
        stem=name.rpartition(".")[0],
        dtype=found["dtype"],
        pipeline=PIPELINES.get(found["family"], "DiffusionPipeline"),
    )
    return "\n\n".join([*about, "## How to load it", loading]) + "\n"


def _how(found: Mapping[str, Any]) -> str:
    mask = found["mask"]
    if found.get("mask_density") is not None:
        mask += f", density {found['mask_density']:.3g}"
    lines = [
        f"- method: {found['method']}, seed {found['seed']}, {found['tool']}",
        f"- weights that may move: {mask}",
        f"- changed: {found['changed_weights']:,} of {found['total_weights']:,} weights of the "
        f"{found.get('moves', 'network')}",
        f"- number format: {found['dtype']}",
    ]
    concept = found.get("concept")
    if concept:
        rows = [f'  - "{row["text"]}" is answered as "{row["anchor"]}"' for row in concept["forget"][:20]]
        more = len(concept["forget"]) - len(rows)
        lines += ["- prompts:", *rows, *([f"  - and {more} more"] if more else [])]
    if found.get("lora"):
        lines += _low_rank(found["lora"])
    return "\n".join(lines)


def _low_rank(lora: Mapping[str, Any]) -> list[str]:
    left = lora["left_out"]
    return [
        f"- rank {lora['rank']}: the change of {lora['layers']} layers, {100 * lora['relative_error']:.3g} % of it "
        f"missing (worst layer {lora['worst']['layer']}, {100 * lora['worst']['relative_error']:.3g} %)",
        f"- left out: {left['tensors']} norms and biases ({left['weights']:,} weights), "
        f"{100 * left['share_of_change']:.3g} % of the change",
    ]


def _measured(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table with intervals, and what may be said of it: counts under a protocol, never that a concept is gone."""
    if not metrics:
        return ["Nothing: no claim is made about what this model still draws. `erasure evaluate` measures it."]
    rows = ["| metric | value | 95 % interval | n |", "|---|--:|:-:|--:|"]
    for name, score in metrics.items():
        low, high = score["interval"] or ("", "")
        span = f"{low:.4g} to {high:.4g}" if score["interval"] else "none"
        rows.append(f"| {name} | {score['value']:.4g} {score['unit'] or ''} | {span} | {score['n']} |")
    return ["\n".join(rows), *_claim(metrics.get("ua"))]


def _claim(ua: Mapping[str, Any] | None) -> list[str]:
    if not ua or not ua["n"]:
        return []
    trials = ua["n"]
    seen = round(trials * (1 - ua["value"] / 100))
    count = "No occurrence" if not seen else f"{seen} occurrence{'s' if seen > 1 else ''}"
    bound = f" (95 % interval up to {100 - ua['interval'][0]:.3g} %)" if ua["interval"] else ""
    return [
        f"{count} in {trials} trials under this protocol{bound}. This says nothing of other prompts, of attacks, or of "
        "what the weights still hold."
    ]
