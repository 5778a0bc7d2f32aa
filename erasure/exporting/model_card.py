"""The card that lies beside an exported file: what was erased, from what, how, the numbers, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasure.core.model_card import bullets, model_card, table
from erasure.core.provenance import LoraReport, MeasuredValue, Provenance

LISTED = 20  # prompts that a card shows

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

Anyone who has the base can leave the LoRA out: it hides the concept and does not remove it from a model.""",
    "safetensors": """The tensors of the network under the stock library's names:
`network.load_state_dict(safetensors.torch.load_file("{name}"))`.""",
}


def card(provenance: Provenance, name: str) -> str:
    """The card as Markdown; `name` is what the file or folder is called."""
    found = provenance
    base = found["base"]
    checked = [f"`erasure verify {name} --base {base}` proves which weights changed, and that no other did."]
    if found.get("applied_to"):
        checked.append(f"The change was made for `{found['delta']['base']}`: here it was added, and never measured.")
    loading = LOADING.get(found["format"], "").format(
        name=name,
        base=base,
        stem=name.rpartition(".")[0],
        dtype=found["dtype"],
        pipeline=PIPELINES.get(found["family"], "DiffusionPipeline"),
    )
    about = f"`{found['forget']}` was erased from `{base}` (SHA-256 of its network {found['base_hash'][:16]})."
    sections = {
        "How it was made": [_method(found)],
        "What was measured": _measured(found.get("metrics") or {}),
        "What can be checked": checked,
        "How to load it": [loading],
    }
    return model_card(name, [about], sections)


def _method(found: Provenance) -> str:
    mask = found["mask"]
    density = found.get("mask_density")
    if density is not None:
        mask += f", density {density:.3g}"
    lines = [
        f"method: {found['method']}, seed {found['seed']}, {found['tool']}",
        f"weights that may change: {mask}",
        f"changed: {found['changed_weights']:,} of {found['total_weights']:,} weights of the "
        f"{found.get('moves', 'network')}",
        f"number format: {found['dtype']}",
        *(_low_rank(found["lora"]) if found.get("lora") else ()),
    ]
    return "\n".join([bullets(lines), *_prompts(found.get("concept"))])


def _prompts(concept: Mapping[str, Any] | None) -> list[str]:
    if not concept:
        return []
    rows = [f'  - "{row["text"]}" becomes "{row["anchor"]}"' for row in concept["forget"][:LISTED]]
    more = len(concept["forget"]) - len(rows)
    return ["- prompts:", *rows, *([f"  - and {more} more"] if more else [])]


def _low_rank(lora: LoraReport) -> list[str]:
    left = lora["left_out"]
    return [
        f"rank {lora['rank']}: the change of {lora['layers']} layers, {100 * lora['relative_error']:.3g} % of it "
        f"missing (worst layer {lora['worst']['layer']}, {100 * lora['worst']['relative_error']:.3g} %)",
        f"left out: {left['tensors']} norms and biases ({left['weights']:,} weights), "
        f"{100 * left['share_of_change']:.3g} % of the change",
    ]


def _measured(metrics: Mapping[str, MeasuredValue]) -> list[str]:
    """A table with intervals and what they allow to say: counts under a protocol, never that a concept is gone."""
    if not metrics:
        return ["Nothing: no claim is made about what this model still generates. `erasure evaluate` measures it."]
    rows = []
    for name, score in metrics.items():
        interval = score["interval"]
        span = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else "none"
        rows.append([name, f"{score['value']:.4g} {score['unit'] or ''}", span, str(score["n"])])
    header = {"metric": "---", "value": "--:", "95 % interval": ":-:", "n": "--:"}
    return [table(header, rows), *_claim(metrics.get("ua"))]


def _claim(ua: MeasuredValue | None) -> list[str]:
    if not ua or not ua["n"]:
        return []
    trials = ua["n"]
    seen = round(trials * (1 - ua["value"] / 100))
    count = "No occurrence" if not seen else f"{seen} occurrence{'s' if seen > 1 else ''}"
    bound = f" (95 % interval up to {100 - ua['interval'][0]:.3g} %)" if ua["interval"] else ""
    return [
        f"{count} in {trials} trials under this protocol{bound}. This says nothing about other prompts, about attacks, "
        "or about what the weights still contain."
    ]
