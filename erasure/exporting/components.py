"""The tensors of a model or a file, by component: as they are written, and the base's under the same names.

Nothing is kept in memory: a tensor is read, cast or reshaped when it is looked up, so that a model larger than memory
can be compared and hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erasure.core.errors import ModelError
from erasure.core.files import parse_object
from erasure.formats import single_file
from erasure.formats.clip_tokenizer import config_of
from erasure.formats.delta import as_bits
from erasure.formats.ldm_layout import COMPONENTS, TEXT_MODEL, original_tensors
from erasure.formats.safetensors_io import hash_tensors, read_pickled_state, reason
from erasure.formats.safetensors_stream import cast, dtype_of, is_pickle, read_header
from erasure.models import DiffusionModel, Model, resolve
from erasure.models.components import read_component
from erasure.models.info import read_info
from erasure.models.loading import HUB_COPIES, HUB_FILES
from erasure.models.stable_diffusion import StableDiffusion

PARTS = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
}


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when they are looked up."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class TensorChange(NamedTuple):
    """How a tensor differs from the base's: by how much, relative to the base's norm, and in how many weights.

    `relative` is None where the base has nothing but zeros.
    """

    relative: float | None
    weights: int


class Facts(TypedDict):
    """What a provenance says of tensors: each `changed` one with its TensorChange, and SHA-256 of groups of them."""

    changed: dict[str, list[Any]]
    sha256: dict[str, str]


@dataclass(frozen=True)
class TensorDiff:
    """Tensors as they are written in a `format` (`after`), and the base's of the same names and dtypes (`before`)."""

    format: str
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    @property
    def changed(self) -> dict[str, list[Any]]:
        """The tensors that differ in a bit, each with its TensorChange as a list."""
        found = ((name, change(self.before[name], self.after[name])) for name in self.after)
        return {name: list(difference) for name, difference in found if difference is not None}

    def facts(self) -> Facts:
        """What changed, and hashes of each component and of all that did not change."""
        changed = self.changed
        groups = dict.fromkeys(component_of(self.format, name) for name in self.after)
        return {"changed": changed, "sha256": hashes(self.format, self.after, changed, ("unchanged", *groups))}


def change(before: Tensor, after: Tensor) -> TensorChange | None:
    """The difference of two tensors of one shape and dtype, None when no bit differs."""
    count = int((as_bits(before) != as_bits(after)).sum())
    if not count:
        return None
    old = before.detach().cpu().double()
    size = float(old.norm())
    distance = float((after.detach().cpu().double() - old).norm())
    return TensorChange(float(f"{distance / size:.6g}") if size else None, count)


def hashes(
    format: str, tensors: Mapping[str, Tensor], changed: Mapping[str, object], groups: tuple[str, ...]
) -> dict[str, str]:
    """SHA-256 of groups of tensors: "unchanged", "all", or a component's name."""
    found = {}
    for group in groups:
        names = [name for name in tensors if group == "all" or _in_group(format, name, changed, group)]
        found[group] = hash_tensors(LazyTensors({name: partial(tensors.__getitem__, name) for name in names}))
    return found


def _in_group(format: str, name: str, changed: Mapping[str, object], group: str) -> bool:
    return name not in changed if group == "unchanged" else component_of(format, name) == group


def component_of(format: str, name: str) -> str:
    """The component that a tensor of a file belongs to; "other" for none."""
    if format == "single-file":
        return next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "other")
    return name.rpartition("/")[0] or "network" if format == "diffusers" else "network"


def raw_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file as they are in it, in its order; no code of a pickle runs."""
    if is_pickle(path):
        return read_pickled_state(path)
    entries, _ = read_header(path)
    try:
        handle: Any = safe_open(path, framework="pt").__enter__()  # the tensors keep the file mapped
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({reason(path, error)})") from error
    return LazyTensors({name: partial(handle.get_tensor, name) for name in entries})


def folder_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a model folder as `<component>/<name>`, raw."""
    found: dict[str, Callable[[], Tensor]] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        prefix = path.parent.relative_to(folder).as_posix()
        tensors = raw_tensors(path)
        found |= {_place(prefix, name): partial(tensors.__getitem__, name) for name in tensors}
    if not found:
        raise ModelError(f"{folder} holds no safetensors: expected a model folder")
    return LazyTensors(found)


def states_of(model: Model) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of each component, float32, by the name of its folder ("." where the network has none)."""
    states: dict[str, Mapping[str, Tensor]] = {
        model.network_part if isinstance(model, DiffusionModel) else ".": model.network.state_dict()
    }
    if isinstance(model, StableDiffusion):
        states |= {name: _once(model.parts[name].state_dict()) for name in ("vae", *model.encoders)}
    return states


def _once(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without second names of one tensor (T5's vocabulary has two), which files leave out."""
    first: dict[int, str] = {}
    return {name: tensor for name, tensor in state.items() if first.setdefault(tensor.data_ptr(), name) == name}


@dataclass(frozen=True)
class Original:
    """The model that a cleaned one was made from: its tensors by component as in `states_of`, and their formats.

    From `original` they are read when they are looked up, in the dtypes of the files.
    """

    states: Mapping[str, Mapping[str, Tensor]]
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, model: Model) -> Original:
        """The same of a model in memory."""
        return cls(states_of(model), model.info.get("dtypes", {}))

    @property
    def network(self) -> Mapping[str, Tensor]:
        """The network's tensors, float32, each made when it is looked up."""
        return as_written(next(iter(self.states.values())), lambda _: torch.float32)

    @property
    def hash(self) -> str:
        """The hash that the loaded model would have."""
        return hash_tensors(self.network)


def original(place: str, like: Model) -> Original | None:
    """The original of `like` at `place`, left in its files; None where they do not have its tensors.

    Raises ModelError when there is nothing at `place`, or a single file of another kind.
    """
    if not isinstance(like, StableDiffusion):
        return None
    path = _on_disk(resolve(place))
    if path.is_file():
        file = single_file.read(path)
        return Original(file.components, file.dtypes)
    found, dtypes = {}, {}
    for part, state in states_of(like).items():
        files = _weights_of(path / part)
        tensors = _matched(files, state) if files else None
        if tensors is not None:
            found[part], dtype = tensors, dtype_of(files[0])
        elif part != like.network_part and files:  # names of an older version, which the library knows to turn
            module, dtype = read_component(path, part)
            found[part] = module.state_dict()
        else:
            return None
        dtypes[part] = str(dtype).removeprefix("torch.")
    return Original(found, {**dtypes, **read_info(path).get("dtypes", {})})


def _on_disk(source: str) -> Path:
    """The file or folder itself; of a hub id, where its files are kept."""
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        how: dict[str, Any] = {"allow_patterns": list(HUB_FILES), "ignore_patterns": list(HUB_COPIES)}
        return Path(snapshot_download(source, local_files_only=True, **how))
    except Exception:  # the hub's client raises a dozen kinds; loading the model says what is wrong
        return Path(source)


def _weights_of(folder: Path) -> list[Path]:
    """The weights of a component: its plain files, or where there are none those of a variant such as fp16."""
    paths = sorted(folder.glob("*.safetensors"))
    return [path for path in paths if "." not in path.stem] or paths


def _matched(files: list[Path], state: Mapping[str, Tensor]) -> LazyTensors | None:
    """The files' tensors under the names of `state`; None unless each is there once, in its shape."""
    found: dict[str, Callable[[], Tensor]] = {}
    for path in files:
        tensors = raw_tensors(path)
        makers = {name.removeprefix(TEXT_MODEL): partial(tensors.__getitem__, name) for name in tensors}
        if found.keys() & makers.keys():
            return None
        found |= makers
    named = {name: found.get(name.removeprefix(TEXT_MODEL)) for name in state}
    made = {name: maker for name, maker in named.items() if maker is not None and maker().shape == state[name].shape}
    return LazyTensors(made) if len(made) == len(state) else None


def in_folder(model: Model | Original) -> LazyTensors:
    """A model's tensors under the names of `folder_tensors`."""
    states = model.states if isinstance(model, Original) else states_of(model)
    return LazyTensors({_place(part, name): partial(s.__getitem__, name) for part, s in states.items() for name in s})


def _place(part: str, name: str) -> str:
    """transformers writes some text encoders' names with `text_model.` and others without: here they have none."""
    if part == ".":
        return name
    return f"{part}/{name.removeprefix(TEXT_MODEL) if part.startswith('text_encoder') else name}"


def in_one_file(
    states: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Tensor]:
    """A model's tensors, given by component, in the original layout."""
    kind = single_file.kind_of_configs(configs)
    tensors: dict[str, Tensor] = {}
    for part in COMPONENTS[kind]:
        tensors |= original_tensors(kind, part, states[part], configs[part])
    if kind == "sdxl" and configs["scheduler"].get("prediction_type") == "v_prediction":
        tensors["v_pred"] = torch.empty(0)
    return tensors


def configs_of(model: StableDiffusion) -> dict[str, dict[str, Any]]:
    """The configuration of every component, as `single_file.write` wants it, without the paths it was read from."""
    found: dict[str, dict[str, Any]] = {"unet": dict(model.network.config), "vae": dict(model.parts["vae"].config)}
    found |= {name: parse_object(model.parts[name].config.to_json_string(), name) for name in model.encoders}
    found |= {name: config_of(model.parts[name]) for name in model.tokenizers}
    found["scheduler"] = dict(model.parts["scheduler_config"])
    return {
        name: {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
        for name, config in found.items()
    }


def as_written(tensors: Mapping[str, Tensor], dtype_of: Callable[[str], torch.dtype | None]) -> LazyTensors:
    """The tensors with each floating one in the format that `dtype_of` its name gives; None leaves it as it is.

    Asking for one raises ModelError when a number is too large for its format.
    """

    def made(name: str) -> Tensor:
        tensor, dtype = tensors[name], dtype_of(name)
        return cast(name, tensor, dtype) if dtype and tensor.is_floating_point() else tensor

    return LazyTensors({name: partial(made, name) for name in tensors})
