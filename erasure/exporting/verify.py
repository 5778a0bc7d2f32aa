"""Verify a file: what it says of itself, whether its tensors are those that were written, and what differs from a base.

A recorded hash shows damage; only the comparison with the base proves what changed, since the author of a
file also writes its hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from erasure.core.errors import ModelError
from erasure.core.provenance import Provenance, read_provenance, read_sidecar
from erasure.exporting.components import (
    TensorChange,
    as_written,
    change,
    component_of,
    configs_of,
    folder_tensors,
    hashes,
    in_folder,
    in_one_file,
    raw_tensors,
    states_of,
)
from erasure.exporting.writers import FORMATS
from erasure.formats.delta import DELTA, VALUES_ONLY, applied
from erasure.formats.safetensors_io import hash_tensors
from erasure.formats.safetensors_stream import is_pickle, read_header
from erasure.formats.single_file import AVERAGED
from erasure.models import Model, load_model, resolve
from erasure.models.stable_diffusion import StableDiffusion
from erasure.saliency.mask import FORMAT as MASK
from erasure.saliency.mask import Mask

CLOSE = 1e-4  # a relative change is recorded with six digits
SHAPE = "another shape"


@dataclass(frozen=True)
class Differences:
    """How a file without provenance differs from a base: by tensor a TensorChange as a list, or "another shape"."""

    differences: dict[str, list[Any] | str]
    only_in_file: list[str]
    only_in_base: list[str]
    note: str


@dataclass(frozen=True)
class VerifyResult:
    """What a file is, what was `checked` in words, and whether that verifies it.

    `provenance` is what the file says of itself (a mask: how it was made), `compared` how a file that says nothing
    differs from the base.
    """

    file: str
    format: str
    verified: bool
    checked: tuple[str, ...]
    provenance: Mapping[str, Any] | None
    compared: Differences | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {key: value for key, value in asdict(self).items() if key != "compared"}
        return {**found, "checked": list(self.checked), **(asdict(self.compared) if self.compared else {})}


@dataclass(frozen=True)
class _File:
    """A file on disk: its format, its tensors as they are, its header, and its provenance if it has one."""

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    provenance: Provenance | None

    def result(self, verified: bool, checked: list[str], compared: Differences | None = None) -> VerifyResult:
        """The result for this file."""
        return VerifyResult(str(self.path), self.format, verified, tuple(checked), self.provenance, compared)


@dataclass(frozen=True)
class _Base:
    """The model a file is compared with, where it is, and what errors call it."""

    model: Model
    place: str
    name: str

    @classmethod
    def of(cls, given: str | Path | Model) -> _Base:
        if isinstance(given, Model):
            return cls(given, given.source, given.source or "the base")
        try:
            return cls(load_model(given), resolve(given), str(given))
        except ModelError as error:
            raise ModelError(error.message.replace("--model", "--base", 1)) from error


def verify(file: str | Path, base: str | Path | Model | None = None) -> VerifyResult:
    """Check an exported file or folder, or a mask.

    With a `base`, every tensor outside the recorded change must be the base's bit for bit, and the change as recorded;
    for a file without provenance the differences from the base are listed instead, and it is not verified. Raises
    ModelError naming the first tensor that is not as recorded.
    """
    found = _opened(Path(file))
    against = None if base is None else _Base.of(base)
    if found.format == "mask":
        return _mask(found, against)
    if found.provenance is None:
        if against is None:
            raise ModelError(f"{file} carries no provenance of an erasure: give --base to see what differs from it")
        return found.result(False, [], _compared(found, *_sides(found, against)))
    try:
        checked = _against(found, found.provenance, against) if against is not None else []
        checked.append(_check_hashes(found, found.provenance))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file}: its provenance is damaged ({type(error).__name__}: {error})") from error
    return found.result(True, checked)


def _opened(path: Path) -> _File:
    if path.is_dir():
        folder = path / "model" if (path / "run.json").is_file() else path
        return _File(path, "diffusers", folder_tensors(folder), {}, read_sidecar(folder))
    header = {} if is_pickle(path) else read_header(path)[1]
    provenance = read_provenance(header, path)
    tensors = raw_tensors(path)
    format = str(provenance.get("format")) if provenance else ""
    return _File(path, format if format in FORMATS else _format_of(tensors, header), tensors, header, provenance)


def _format_of(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """The format of a file that does not say it."""
    ours = {DELTA: "delta", VALUES_ONLY: "delta", MASK: "mask"}.get(header.get("format", ""))
    if ours:
        return ours
    if any("lora" in name for name in tensors):
        return "lora"
    return "single-file" if any(name.startswith("model.diffusion_model.") for name in tensors) else "unet"


def _sides(found: _File, base: _Base) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The base's tensors and the file's, under the same names and in the file's dtypes."""
    if found.format == "single-file":
        before = _in_single_file(found, base)
    elif found.format == "diffusers":
        before = in_folder(base.model)
    elif found.format in ("unet", "safetensors"):
        before = base.model.network.state_dict()
    else:
        raise ModelError(f"{found.path} is a {found.format} without provenance: it cannot be compared with a base")
    after = found.tensors
    return as_written(before, lambda name: after[name].dtype if name in after else None), after


def _in_single_file(found: _File, base: _Base) -> Mapping[str, Tensor]:
    """The base's tensors in the original layout."""
    if Path(base.place).is_file():
        return raw_tensors(Path(base.place))
    if isinstance(base.model, StableDiffusion) and base.model.one_file:
        return in_one_file(states_of(base.model), configs_of(base.model))
    raise ModelError(f"{found.path} is a Stable Diffusion model: --base {base.name} is a {base.model.family} model")


def _compared(found: _File, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Differences:
    """Every difference between two sets of tensors."""
    differences: dict[str, list[Any] | str] = {}
    for name in (name for name in after if name in before):
        if before[name].shape != after[name].shape:
            differences[name] = SHAPE
        elif difference := change(before[name], after[name]):
            differences[name] = list(difference)
    return Differences(
        differences,
        [name for name in after if name not in before],
        [name for name in before if name not in after],
        f"{found.path} carries no provenance: nothing is claimed, and nothing was verified",
    )


def _against(found: _File, provenance: Provenance, base: _Base) -> list[str]:
    """Compare a file with its base, in words; raises ModelError for the first tensor that is not as recorded."""
    own, recorded = base.model.hash, provenance["base_hash"]
    if own != recorded:
        raise ModelError(
            f"--base {base.name} is not the model that {found.path} was made from (hash {own[:12]}, expected "
            f"{recorded[:12]})"
        )
    if found.format == "delta":
        return [_check_delta(found, provenance, base.model)]
    if found.format == "lora":
        return [_check_lora(found, provenance, base.model)]
    before, after = _sides(found, base)
    changed = provenance["changed"]
    _check_names(found, before, after, changed)
    for name in after:
        _check_change(found.path, name, change(before[name], after[name]), changed.get(name), base.name)
    parts = ", ".join(dict.fromkeys(component_of(found.format, name) for name in changed))
    recorded_parts = f"{len(changed)} changed as recorded{f', of the {parts}' if parts else ''}"
    return [f"{len(after) - len(changed)} tensors are those of {base.name} bit for bit, {recorded_parts}"]


def _check_names(
    found: _File, before: Mapping[str, Tensor], after: Mapping[str, Tensor], changed: Mapping[str, object]
) -> None:
    """The file has the base's tensors in their shapes, but for an averaged copy, which is left out when it is stale."""
    for name in [*after, *changed]:
        if name not in before or name not in after:
            raise ModelError(f"{found.path}: tensor {name!r} is not in {'the base' if name in after else 'the file'}")
        if before[name].shape != after[name].shape:
            raise ModelError(f"{found.path}: tensor {name!r} has another shape than in the base")
    missing = [name for name in before if name not in after and not name.startswith(AVERAGED)]
    if missing:
        raise ModelError(f"{found.path}: tensor {missing[0]!r} of the base is missing")


def _check_change(path: Path, name: str, found: TensorChange | None, recorded: list[Any] | None, base: str) -> None:
    """A tensor's difference from the base is the recorded one."""
    if recorded is None:
        if found is not None:
            raise ModelError(
                f"{path}: tensor {name!r} differs from {base} in {found.weights:,} weights, and no change of it is "
                "recorded"
            )
        return
    relative, count = found or TensorChange(0.0, 0)
    if count != recorded[1] or not _close(relative, recorded[0]):
        raise ModelError(
            f"{path}: tensor {name!r} is not as recorded: {count:,} weights differ from {base} where {recorded[1]:,} "
            f"are recorded (relative change {relative}, recorded {recorded[0]})"
        )


def _close(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and abs(one - other) <= CLOSE * abs(other))


def _check_delta(found: _File, provenance: Provenance, model: Model) -> str:
    """Applied to its base, a delta gives the model that it says, and changes what it says."""
    before = model.network.state_dict()
    after = applied(before, found.tensors)
    changed = provenance["changed"]
    for name in after:
        _check_change(found.path, name, change(before[name], after[name]), changed.get(name), "the base")
    if hash_tensors(after) != found.header["hash"]:
        raise ModelError(f"{found.path}: applied to its base it does not give the model it was made for")
    return f"applied to its base it gives the cleaned model bit for bit, {len(changed)} tensors changed as recorded"


def _check_lora(found: _File, provenance: Provenance, model: Model) -> str:
    """A LoRA fits the layers of its base that it says; what it adds is an approximation, and is not compared."""
    layers = provenance["lora"]["layers"]
    downs = [name for name in found.tensors if name.endswith(("lora_down.weight", "lora_A.weight"))]
    if len(downs) != layers:
        raise ModelError(f"{found.path} has {len(downs)} layers, {layers} are recorded")
    shapes = {tuple(tensor.shape) for name, tensor in model.network.state_dict().items() if name.endswith(".weight")}
    for name in downs:
        up = name.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
        shape = (len(found.tensors[up]), *found.tensors[name].shape[1:])
        if shape not in shapes:
            raise ModelError(f"{found.path}: tensor {name!r} fits no layer of the base")
    return f"its {layers} layers fit the base; a LoRA approximates, so its weights are not compared"


def _check_hashes(found: _File, provenance: Provenance) -> str:
    """Compute every recorded hash again."""
    recorded = provenance["sha256"]
    again = hashes(found.format, found.tensors, provenance["changed"], tuple(recorded))
    for group, expected in recorded.items():
        if again[group] != expected:
            which = {"unchanged": "the tensors that did not change", "all": "its tensors"}.get(group, f"the {group}")
            raise ModelError(f"{found.path}: {which} are not what was written (SHA-256 differs): the file was altered")
    return f"{len(recorded)} recorded hashes hold"


def _mask(found: _File, base: _Base | None) -> VerifyResult:
    """A mask fits its model and was made for its weights."""
    mask = Mask.load(found.path)
    checked = [f"{mask.selected:,} of {mask.total:,} weights may change (density {mask.density:.6g})"]
    if base is not None:
        mask.check(base.model.network)
        if mask.provenance.get("model_hash") != base.model.hash:
            raise ModelError(f"{found.path} was made for other weights than those of --base {base.name}")
        checked.append(f"it was made for the weights of {base.name}")
    return VerifyResult(str(found.path), found.format, base is not None, tuple(checked), mask.provenance)
