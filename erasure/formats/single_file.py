"""Single-file checkpoints of Stable Diffusion 1, 2 and XL, in and out, without a network: .safetensors and .ckpt.

A file is recognised by its tensors; its configuration comes from the published models (configs/) unless the file has
its own, and its tensors get the names the stock classes load. Written files have the original layout, which every other
program reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erasure.core.errors import ModelError
from erasure.core.files import parse_object, read_json
from erasure.formats.clip_tokenizer import config_of, tokenizer_from
from erasure.formats.ldm_detect import TITLES, kind_of, predicts_velocity, velocity_hint
from erasure.formats.ldm_layout import COMPONENTS, diffusers_tensors, original_tensors, prefix_of, slots
from erasure.formats.safetensors_io import read_pickled_state, reason
from erasure.formats.safetensors_stream import is_pickle, read_header, write_ordered, write_patched

CONFIGS = Path(__file__).parent / "configs"
EMBEDDED = "erasure.configs"  # metadata: the configuration of every component, in JSON
AVERAGED = "model_ema."  # a training file's second copy of the UNet: what was erased from the first is still in it
OTHERS = ("scheduler", "tokenizer", "tokenizer_2")
FLAT_CLIP = "cond_stage_model.transformer.embeddings.token_embedding.weight"  # some SD 1 files leave text_model out


@dataclass(frozen=True)
class SingleFile:
    """What a file holds: `kind` (sd1, sd2, sdxl), each component's tensors and configuration, and its number format.

    `components` has the names the stock classes load, with tensors that stay on disk until used. `velocity` says
    whether the UNet predicts velocity, None when the file does not say: see `settled`. `averaged` says that the file
    has a second, averaged copy of the UNet.
    """

    path: Path
    kind: str
    components: dict[str, dict[str, Tensor]]
    configs: dict[str, dict[str, Any]]
    dtype: torch.dtype
    metadata: dict[str, str]
    velocity: bool | None
    averaged: bool

    @property
    def dtypes(self) -> dict[str, str]:
        """The number format of each component."""
        formats = {name: _common_dtype(state) for name, state in self.components.items()}
        return {name: str(dtype).removeprefix("torch.") for name, dtype in formats.items()}

    def tokenizer(self, name: str = "tokenizer") -> Any:
        """The CLIPTokenizer of that name (tokenizer or tokenizer_2)."""
        return tokenizer_from(self.configs[name])


def read(path: Path) -> SingleFile:
    """Read a single-file checkpoint.

    Raises ModelError when it is missing, damaged, a pickle with code in it, anything but a full Stable Diffusion model,
    or when its shapes are not those of its kind.
    """
    tensors, metadata = _opened(path)
    shapes = tensors.shapes
    kind = kind_of(shapes, str(path))
    velocity = velocity_hint(shapes, metadata)
    own = _embedded(metadata, kind, path)
    if "scheduler" in own:
        velocity = own["scheduler"].get("prediction_type") == "v_prediction"
    configs = {**shipped_configs(kind, velocity, zero_snr="ztsnr" in shapes), **own}
    components = {name: _component(kind, name, tensors, configs[name], path) for name in COMPONENTS[kind]}
    return SingleFile(
        path=path,
        kind=kind,
        components=components,
        configs=configs,
        dtype=_common_dtype(components["unet"]),
        metadata=metadata,
        velocity=False if velocity is None and kind != "sd2" else velocity,
        averaged=any(name.startswith(AVERAGED) for name in shapes),
    )


def settled(file: SingleFile, unet: Any) -> SingleFile:
    """The same file with its noise schedule decided by what its UNet does, where the file does not say itself."""
    if file.velocity is not None:
        return file
    velocity = predicts_velocity(unet)
    own = _embedded(file.metadata, file.kind, file.path)
    return replace(file, velocity=velocity, configs={**shipped_configs(file.kind, velocity), **own})


def shipped_configs(kind: str, velocity: bool | None = False, zero_snr: bool = False) -> dict[str, dict[str, Any]]:
    """The published model's configuration by component, scheduler and tokenizers included; each call a fresh copy."""
    folder = CONFIGS / ("sd2-v" if kind == "sd2" and velocity else kind)
    found = {"model_index": read_json(folder / "model_index.json", ModelError)}
    for name in (*COMPONENTS[kind], *OTHERS):
        for path in sorted((folder / name).glob("*config.json")):
            found[name] = read_json(path, ModelError)
    if velocity:
        found["scheduler"]["prediction_type"] = "v_prediction"
    if zero_snr and kind == "sdxl":
        found["scheduler"]["rescale_betas_zero_snr"] = True
    return found


def folder_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a stock pipeline folder, ready for `write`: components, scheduler, tokenizers."""
    from transformers import CLIPTokenizer

    found = {}
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (folder / name).is_dir():
            found[name] = read_json(folder / name / "config.json", ModelError)
    found["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json", ModelError)
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).is_dir():
            found[name] = config_of(CLIPTokenizer.from_pretrained(folder / name, local_files_only=True))
    return found


def write(
    out: Path,
    components: Mapping[str, Mapping[str, Tensor]],
    configs: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write whole components as one safetensors file in the original layout, atomically.

    The file carries `configs`, so that `read` gives them back, and says for other programs what its UNet predicts.
    Raises ModelError when a component is missing or incomplete.
    """
    kind = kind_of_configs(configs)
    tensors: dict[str, Tensor] = {}
    for name in COMPONENTS[kind]:
        if name not in components:
            raise ModelError(f"{out}: a single file of {TITLES[kind]} needs its {name}")
        found = original_tensors(kind, name, components[name], configs[name])
        absent = {slot.original for slot in slots(kind, name, configs[name])} - set(found)
        if absent:
            raise ModelError(f"{out}: the {name} is incomplete, it has no {sorted(absent)[0]!r}")
        tensors |= found
    velocity = configs["scheduler"].get("prediction_type") == "v_prediction"
    if velocity and kind == "sdxl":
        tensors["v_pred"] = torch.empty(0)  # where programs for SDXL look
    write_ordered(out, tensors, {**own_metadata(configs), **metadata}, dtype)


def own_metadata(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a written file says: its configurations, and for other programs what its UNet predicts."""
    velocity = configs["scheduler"].get("prediction_type") == "v_prediction"
    return {
        "format": "pt",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        EMBEDDED: json.dumps({name: dict(config) for name, config in configs.items()}, sort_keys=True),
    }


def patch(
    template: Path,
    out: Path,
    changed: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Copy a single file with the given tensors of its components (by component, stock names) replaced, atomically.

    Everything else stays byte for byte, except that an averaged copy of the UNet is left out when the UNet changed.
    Raises ModelError as `read` and `write_patched` do.
    """
    tensors, carried = _opened(template)
    kind = kind_of(tensors.shapes, str(template))
    configs = {**shipped_configs(kind), **_embedded(carried, kind, template)}
    replaced = {}
    for component, state in changed.items():
        for name, tensor in original_tensors(kind, component, state, configs[component]).items():
            shape = tensors.shapes.get(name, tensor.shape)
            same = tensor.numel() == torch.Size(shape).numel() and name.startswith(prefix_of(kind, "vae"))
            replaced[tensors.stored(name)] = tensor.reshape(shape) if same else tensor
    write_patched(template, out, replaced, metadata, dtype, drop=(AVERAGED,) if changed.get("unet") else ())


def kind_of_configs(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The kind a set of configurations makes: two text encoders are SDXL, OpenAI's quick_gelu is 1, gelu is 2."""
    if "text_encoder_2" in configs:
        return "sdxl"
    return "sd1" if configs["text_encoder"].get("hidden_act", "quick_gelu") == "quick_gelu" else "sd2"


def empty(component: str, config: Mapping[str, Any]) -> Any:
    """The component's network on the meta device, shapes without numbers; raises ModelError for a config of another."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    try:
        with torch.device("meta"):
            if component in ("unet", "vae"):
                network: Any = UNet2DConditionModel if component == "unet" else AutoencoderKL
                return network.from_config(dict(config))
            text: Any = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
            return text(CLIPTextConfig(**config))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ModelError(f"the {component} configuration makes no network: {str(error).splitlines()[0]}") from error


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file under their usual original names, each fetched when it is looked up."""

    def __init__(self, source: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        short = FLAT_CLIP in shapes
        self._source = source
        self._names = {_usual(name) if short else name: name for name in shapes}
        self.shapes = {name: shapes[stored] for name, stored in self._names.items()}

    def stored(self, name: str) -> str:
        return self._names.get(name, name)

    def __getitem__(self, name: str) -> Tensor:
        stored = self._names[name]
        return self._source[stored] if isinstance(self._source, dict) else self._source.get_tensor(stored)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _usual(name: str) -> str:
    start = prefix_of("sd1", "text_encoder")
    return f"{start}text_model.{name.removeprefix(start)}" if name.startswith(start) else name


def _opened(path: Path) -> tuple[_Tensors, dict[str, str]]:
    if is_pickle(path):
        state = read_pickled_state(path)
        return _Tensors(state, {name: tuple(tensor.shape) for name, tensor in state.items()}), {}
    entries, metadata = read_header(path)
    try:
        handle = safe_open(path, framework="pt").__enter__()  # the tensors keep the file mapped
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({reason(path, error)})") from error
    return _Tensors(handle, {name: entry.shape for name, entry in entries.items()}), metadata


def _embedded(metadata: Mapping[str, str], kind: str, path: Path) -> dict[str, dict[str, Any]]:
    """The configurations a file carries, by component; none for most files."""
    found = parse_object(metadata.get(EMBEDDED, "{}"), f"{path}: its metadata {EMBEDDED!r}", ModelError)
    if not all(isinstance(config, dict) for config in found.values()):
        raise ModelError(f"{path}: its metadata {EMBEDDED!r} is no JSON object of configurations")
    return {name: config for name, config in found.items() if name in (*COMPONENTS[kind], *OTHERS)}


def _component(kind: str, name: str, tensors: _Tensors, config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The component's tensors, checked against what its configuration makes."""
    known = [slot.original for slot in slots(kind, name, config)]
    wrong = [original for original in known if original not in tensors]
    if name == "unet" and not wrong:  # whatever else a file holds, its UNet has no tensor that is not used
        start, names = prefix_of(kind, name), set(known)
        wrong = [original for original in tensors if original.startswith(start) and original not in names]
    if not wrong:
        found = diffusers_tensors(kind, name, tensors, config)
        own = {key: tuple(tensor.shape) for key, tensor in empty(name, config).state_dict().items()}
        wrong = sorted({*own} ^ {*found}) or [key for key in own if own[key] != tuple(found[key].shape)]
    if wrong:
        raise ModelError(f"{path}: its shapes are not those of {TITLES[kind]} (the {name}, first {wrong[0]!r})")
    return found


def _common_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]
