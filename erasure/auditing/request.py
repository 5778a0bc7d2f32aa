"""The sides of an audit: the model in question, and the base it is compared with; each drawn, or read from a folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.auditing.protocols import Protocol, load_protocol
from erasure.auditing.scoring import Drawn, ImageSource, Read
from erasure.auditing.verdict import check_limit
from erasure.core.errors import DataError, ModelError, OptionError
from erasure.core.logging import log_user
from erasure.core.provenance import name_of
from erasure.evaluation.settings import EvaluationConfig
from erasure.exporting.components import change, in_folder
from erasure.models import load_family, located
from erasure.models.prompt_encoding import never_told
from erasure.models.stable_diffusion import StableDiffusion
from erasure.prompts.prompt_set import PromptSet
from erasure.prompts.prompt_table import PromptRow
from erasure.prompts.safety_filter import refuse

NAMED = 200  # changed tensors that are listed


@dataclass(frozen=True)
class AuditRequest:
    """What is audited, on what, by whom, and against which limit.

    Either a `model` with `prompts`, or a folder of `images`; `base` is of the same kind. The first detector decides,
    the others are compared with it. `classes` and `threshold` replace that detector's own.
    """

    model: str | None = None
    images: str | None = None
    base: str | None = None
    prompts: PromptSet | None = None
    protocol: Protocol = field(default_factory=lambda: load_protocol(None))
    detectors: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"nudenet": {}})
    classes: tuple[str, ...] = ()
    threshold: float | None = None
    max_rate: float | None = None
    positive_control: str | None = None
    negative_control: str | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    reference: str | None = None
    keep_images: bool = False
    seed: int = 0
    batch_size: int = 0

    def check(self) -> None:
        """Raise OptionError for what does not go together."""
        if (self.model is None) == (self.images is None):
            raise OptionError("give a MODEL with --prompts, or --images and a folder: one of the two")
        if self.model is not None and self.prompts is None:
            raise OptionError("--prompts is missing: give i2p, a preset of prompts/ (nudity, ...) or a CSV file")
        if self.images is not None and self.prompts is not None:
            raise OptionError("--prompts are for a MODEL: the images of --images exist already")
        check_limit(self.max_rate)
        if not self.detectors:
            raise OptionError("--detector names none: see `erasure list detectors`")
        self.evaluation.check()

    @property
    def measures(self) -> bool:
        """Whether anything but detectors looks at the images."""
        named = (self.evaluation.clip, self.evaluation.inception, self.evaluation.dinov2, self.evaluation.classifier)
        return bool(self.evaluation.metrics) or any(named)


@dataclass(frozen=True)
class AuditedModel:
    """Where the images come from, the rows they belong to, what identifies it, and the model if there is one."""

    source: ImageSource
    rows: Sequence[PromptRow]
    settings: Mapping[str, Any]
    model: StableDiffusion | None = None


def sides_of(request: AuditRequest) -> tuple[dict[str, AuditedModel], list[str]]:
    """The sides "model" and, if asked for, "base", and the ids of the rows that the guard refused.

    Raises DataError when it refused all, ModelError for a model that does not load whole.
    """
    if request.images is not None:
        return _read_sides(request.images, request.base), []
    assert request.prompts is not None
    prompts = request.prompts
    rows, refused = refuse(prompts.rows)
    if not rows:
        raise DataError(f"the guard refused all {len(refused)} prompts: none is left to draw")
    if refused:
        log_user(
            f"refused to draw {len(refused)} of {len(prompts.rows)} prompts (the guard): {', '.join(refused[:10])}"
        )
    never_told([row.prompt for row in rows])  # prompts of an audit stand in no log, whoever encodes them
    given = {"model": request.model, "base": request.base}
    models = {name: load_family(where, StableDiffusion) for name, where in given.items() if where is not None}
    usual = models["base"].info.get("sampling", {}) if "base" in models else {}
    found = {}
    for name, model in models.items():
        where = str(given[name])
        model.info.pop("max_sequence_length", None)
        _check_windows(model, where)
        settings = {
            "name": name_of(where),
            "path": located(where),
            "family": model.family,
            "hash": model.hash,
            "parts_hash": model.parts_hash,
            "size": list(model.image_shape[1:]),
        }
        source = Drawn(model, rows, request.protocol, request.seed, request.batch_size, usual)
        found[name] = AuditedModel(source, rows, {**settings, "usual": source.usual}, model)
    return found, refused


def _check_windows(model: StableDiffusion, where: str) -> None:
    """Raise ModelError for a tokenizer that cuts prompts before its text encoder would."""
    for tokenizer, encoder in zip(model.tokenizers, model.encoders, strict=False):
        reads = getattr(model.parts[encoder].config, "max_position_embeddings", None)
        cuts = model.parts[tokenizer].model_max_length
        if reads is not None and cuts < reads:
            raise ModelError(
                f"{where}: its {tokenizer} cuts prompts after {cuts} tokens, its {encoder} reads {reads}: "
                "what lies behind them would not be audited; repair its tokenizer_config.json"
            )


def _read_sides(given: str, base: str | None) -> dict[str, AuditedModel]:
    """Two folders of images; images of the same name are pairs."""
    found = {}
    for name, where in (("model", given), ("base", base)):
        if where is None:
            continue
        source = Read(Path(where))
        listing = "\n".join(f"{trial.row} {_digest(source.folder / trial.row)}" for trial in source.trials)
        settings = {
            "name": name_of(where),
            "path": str(Path(where).resolve()),
            "hash": hashlib.sha256(listing.encode()).hexdigest(),
        }
        found[name] = AuditedModel(source, [PromptRow(id=trial.row, prompt="") for trial in source.trials], settings)
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pairs(sides: Mapping[str, AuditedModel]) -> bool:
    """Whether the base's images are pairs of the model's: images of one size from the same seeds, or the same names."""
    if "base" not in sides:
        return False
    model, base = sides["model"], sides["base"]
    if model.model is not None and base.model is not None:
        return model.settings["size"] == base.settings["size"] and (model.model.sample_shape == base.model.sample_shape)
    return True


def changes(sides: Mapping[str, AuditedModel]) -> dict[str, Any] | None:
    """Which tensors differ from the base's, those that changed most first, and by how much.

    `relative_change` is the norm of all differences over the norm of the base's weights. None without a base, or when
    the two are not of one architecture.
    """
    models = [side.model for side in sides.values()]
    if len(models) < 2 or models[0] is None or models[1] is None:
        return None
    after, before = in_folder(models[0]), in_folder(models[1])
    if {name: tensor.shape for name, tensor in after.items()} != {name: t.shape for name, t in before.items()}:
        return None
    sizes = {name: float(before[name].double().norm()) for name in before}
    found = {name: difference for name in after if (difference := change(before[name], after[name])) is not None}
    relative = {name: float(share or 0.0) for name, (share, _) in found.items()}
    moved = math.hypot(*(relative[name] * sizes[name] for name in found))
    return {
        "tensors": len(found),
        "of": len(after),
        "weights": sum(int(count) for _, count in found.values()),
        "relative_change": moved / (math.hypot(*sizes.values()) or 1.0),
        "names": sorted(found, key=lambda name: -relative[name])[:NAMED],
    }
