"""The model in question and the base it is compared with: each generates images, or is a folder of them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from erasure.auditing.image_sources import FolderImages, GeneratedImages, ImageSource
from erasure.auditing.request import AuditRequest, GivenModel
from erasure.auditing.result import ModelIdentity, WeightChanges
from erasure.core.errors import DataError, ErasureError, ModelError
from erasure.core.logging import log_user
from erasure.core.provenance import name_of
from erasure.core.records import Facts
from erasure.exporting.components import change, in_folder
from erasure.models import Model, load_family, located
from erasure.models.prompt_encoding import never_told
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.prompt_set import PromptSet
from erasure.prompts.prompt_table import PromptRow
from erasure.prompts.safety_filter import refuse

NAMED = 200  # changed tensors that are listed
Role = Literal["model", "base"]


@dataclass(frozen=True)
class AuditedModel:
    """Where images come from, the rows they belong to, what identifies it, and the model unless it is a folder."""

    source: ImageSource
    rows: Sequence[PromptRow]
    identity: ModelIdentity
    model: StableDiffusion | None = None


@dataclass(frozen=True)
class Comparison:
    """The audited model, the base if there is one, and the ids of the rows that the safety filter refused."""

    model: AuditedModel
    base: AuditedModel | None
    refused: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[Role, AuditedModel]]:
        """Both by their role."""
        yield "model", self.model
        if self.base is not None:
            yield "base", self.base

    @property
    def is_paired(self) -> bool:
        """Whether the base's images are pairs of the model's: of one size from the same seeds, or of the same names."""
        if self.base is None:
            return False
        ours, theirs = self.model.model, self.base.model
        if ours is None or theirs is None:
            return True
        return self.model.identity.size == self.base.identity.size and ours.sample_shape == theirs.sample_shape

    def changes(self) -> WeightChanges | None:
        """Which tensors differ from the base's, those that changed most first.

        None without a base, for folders of images, and when the two are not of one architecture.
        """
        if self.base is None or self.model.model is None or self.base.model is None:
            return None
        return weight_changes(in_folder(self.base.model), in_folder(self.model.model))


def weight_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> WeightChanges | None:
    """Which of the tensors `after` differ from those `before`; None when names or shapes differ."""
    if _shapes(before) != _shapes(after):
        return None
    norms = {name: float(before[name].double().norm()) for name in before}
    found = {name: difference for name in after if (difference := change(before[name], after[name])) is not None}
    relative = {name: float(share or 0.0) for name, (share, _) in found.items()}
    distance = math.hypot(*(relative[name] * norms[name] for name in found))
    return WeightChanges(
        tensors=len(found),
        of=len(after),
        weights=sum(int(count) for _, count in found.values()),
        relative_change=distance / (math.hypot(*norms.values()) or 1.0),
        names=tuple(sorted(found, key=lambda name: -relative[name])[:NAMED]),
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def compared_models(request: AuditRequest) -> Comparison:
    """Load the audited model and, if asked for, the base.

    Raises DataError when the safety filter refused all prompts, ModelError for a model that cannot be audited.
    """
    if request.images is not None:
        base = None if request.base is None else _of_folder(Path(str(request.base)))
        return Comparison(_of_folder(Path(request.images)), base)
    assert request.prompts is not None
    assert request.model is not None
    rows, refused = _allowed(request.prompts)
    model = _loaded(request.model)
    if request.base is None:
        return Comparison(_generating(request, request.model, model, rows, {}), None, refused)
    base_model = _loaded(request.base)
    usual = base_model.info.get("sampling", {})
    return Comparison(
        _generating(request, request.model, model, rows, usual),
        _generating(request, request.base, base_model, rows, usual),
        refused,
    )


def _generating(
    request: AuditRequest, given: GivenModel, model: StableDiffusion, rows: Sequence[PromptRow], usual: Facts
) -> AuditedModel:
    """A model that generates images; `usual` are sampling settings that neither protocol nor row determine."""
    source = GeneratedImages(model, rows, request.protocol, request.seed, request.batch_size, usual)
    return AuditedModel(source, rows, _identity(given, model, source), model)


def _allowed(prompts: PromptSet) -> tuple[list[PromptRow], tuple[str, ...]]:
    """The rows that the safety filter allows, and the ids of the others; raises DataError when it allows none."""
    rows, refused = refuse(prompts.rows)
    if not rows:
        raise DataError(f"the safety filter refused all {len(refused)} prompts: none is left")
    if refused:
        log_user(
            f"the safety filter refused {len(refused)} of {len(prompts.rows)} prompts, rows {', '.join(refused[:10])}"
        )
    never_told([row.prompt for row in rows])  # prompts of an audit must not appear in a log, whoever encodes them
    return rows, tuple(refused)


def _loaded(given: GivenModel) -> StableDiffusion:
    """The model that is named, or a copy of the one that was given, which shares its weights.

    Prompts are read as far as the text encoder can: a checkpoint must not choose to read less of them. Raises
    ModelError for another family, and for a tokenizer that cuts prompts earlier than the encoder would.
    """
    if isinstance(given, Model):
        if not isinstance(given, StableDiffusion):
            raise ModelError(f"{name_in_public(given)} is a {given.family} model: expected a stablediffusion")
        model = copy.copy(given)
        model.info = copy.deepcopy(given.info)
    else:
        model = load_family(given, StableDiffusion)
    model.info.pop("max_sequence_length", None)
    _check_windows(model, name_in_public(given))
    return model


def name_in_public(given: GivenModel) -> str:
    """What a model is called on record: the name that was given, or of a loaded one the name of its source."""
    if not isinstance(given, Model):
        return name_of(str(given))
    source = Path(given.source)
    if source.name == "model" and (source.parent / "run.json").is_file():
        source = source.parent
    return name_of(str(source)) if given.source else f"{given.family} in memory"


def _identity(given: GivenModel, model: StableDiffusion, source: GeneratedImages) -> ModelIdentity:
    return ModelIdentity(
        name=name_in_public(given),
        path=_place(given),
        family=model.family,
        hash=model.hash,
        parts_hash=model.parts_hash,
        size=tuple(model.image_shape[1:]),
        usual=source.usual,
    )


def _place(given: GivenModel) -> str:
    """An absolute path or a hub id; of a loaded model its source, as it is when it no longer exists."""
    if not isinstance(given, Model):
        return located(given)
    try:
        return located(given.source)
    except ErasureError:
        return given.source


def _check_windows(model: StableDiffusion, where: str) -> None:
    """Raise ModelError for a tokenizer that cuts prompts before its text encoder would."""
    for tokenizer, encoder in zip(model.tokenizers, model.encoders, strict=False):
        reads = getattr(model.parts[encoder].config, "max_position_embeddings", None)
        cuts = model.parts[tokenizer].model_max_length
        if reads is not None and cuts < reads:
            raise ModelError(
                f"{where}: its {tokenizer} cuts prompts after {cuts} tokens, its {encoder} reads {reads}: the rest "
                "of a prompt would not be audited; repair its tokenizer_config.json"
            )


def _of_folder(folder: Path) -> AuditedModel:
    """A folder of images; images of the same name in another folder are their pairs."""
    source = FolderImages(folder)
    listing = "\n".join(f"{planned.row} {_digest(folder / planned.row)}" for planned in source.planned)
    identity = ModelIdentity(
        name=name_of(str(folder)),
        path=str(folder.resolve()),
        hash=hashlib.sha256(listing.encode()).hexdigest(),
    )
    return AuditedModel(source, [PromptRow(id=planned.row, prompt="") for planned in source.planned], identity)


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def device_of(model: StableDiffusion) -> torch.device:
    """Where the weights of the model's network are."""
    return next(model.network.parameters()).device
