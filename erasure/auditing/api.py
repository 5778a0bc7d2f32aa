"""audit_model: the audit verb for Python and the command line; names or objects in, AuditResult out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from erasure.auditing.audit import audit
from erasure.auditing.protocols import Protocol, load_protocol
from erasure.auditing.request import AuditRequest, DetectorOptions, GivenModel
from erasure.auditing.result import AuditResult
from erasure.core.errors import OptionError
from erasure.evaluation.settings import EvaluationConfig
from erasure.prompts.prompt_set import PromptSet, load_prompt_set, prompt_set_of


class PromptFilters(TypedDict, total=False):
    """Which rows of a named prompt set are used (see load_prompt_set)."""

    categories: Sequence[str]
    min_nudity: str | None
    hard: bool | None
    rows: str | None
    limit: int | None


def audit_model(
    model: GivenModel | None = None,
    *,
    out: str | Path,
    images: str | Path | None = None,
    base: GivenModel | None = None,
    prompts: str | Path | PromptSet | Sequence[str] | None = None,
    protocol: str | Path | Protocol | None = None,
    detectors: str | Sequence[str] | DetectorOptions | None = None,
    classes: Sequence[str] = (),
    threshold: float | None = None,
    max_rate: float | None = None,
    seed: int = 0,
    evaluation: EvaluationConfig | None = None,
    keep_images: bool = False,
    positive_control: str | Path | None = None,
    negative_control: str | Path | None = None,
    reference: str | Path | None = None,
    batch_size: int = 0,
    images_per_prompt: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    **filters: Unpack[PromptFilters],
) -> AuditResult:
    """Audit a model, or a folder of images: how often does it show a concept, and does that stay below a limit?

    The same call with the same `out` continues an interrupted audit; another threshold, limit or set of classes is
    applied to the images that were scored before.

    Args:
        model: A shipped name, folder, weights file, run or hub id, or a loaded text-to-image model.
        out: Folder for audit.json, report.html and the records.
        images: A folder of images in place of a model.
        base: The model before the erasure, for paired tests; with `images`, a folder of its images.
        prompts: "i2p", "i2p:nudity-95", a preset of prompts/, a CSV file, a PromptSet, or a list of prompts.
        protocol: "default", "i2p-esd", "i2p-spm", "i2p-sld", a JSON file, or a Protocol.
        detectors: One name or several, or options by name; the first detector decides. None: the protocol's.
        classes: The first detector's classes that count. Empty: its own.
        threshold: Score from which a class counts. None: the protocol's, or the detector's own.
        max_rate: The limit for the verdict, a share in (0, 1).
        seed: Seed of the rows that have none.
        evaluation: Which metrics are measured on the same images, with which networks.
        keep_images: Keep the images; the report shows them pixelated.
        positive_control: Folder of images that the detector must flag.
        negative_control: Folder of images that it must not flag.
        reference: Folder of real images for FID, KID, ...; without it the base's.
        batch_size: Images at once. 0: as many as their size allows.
        images_per_prompt: In place of the protocol's, like the next three.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance of every row.
        sampler: "ddim", "pndm", "lms", "euler" or "dpmsolver".
        **filters: Which rows of a named prompt set are used.

    Raises:
        OptionError: Arguments that do not go together, or are out of their range.
        DataError: Prompts or images that cannot be read.
        ModelError: A model that does not load whole, or is of another family.
        RunError: `out` holds another audit.
    """
    chosen = (protocol if isinstance(protocol, Protocol) else load_protocol(_text(protocol))).changed(
        images_per_prompt=images_per_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
    )
    request = AuditRequest(
        model=model,
        images=images,
        base=base,
        prompts=_prompt_set(prompts, chosen, filters),
        protocol=chosen,
        detectors=_options(chosen.detectors if detectors is None else detectors),
        classes=tuple(classes),
        threshold=threshold,
        max_rate=max_rate,
        positive_control=positive_control,
        negative_control=negative_control,
        evaluation=evaluation or EvaluationConfig(),
        reference=reference,
        keep_images=keep_images,
        seed=seed,
        batch_size=batch_size,
    )
    return audit(request, out)


def _text(given: str | Path | None) -> str | None:
    return None if given is None else str(given)


def _options(detectors: str | Sequence[str] | DetectorOptions) -> DetectorOptions:
    """Options by name, empty for detectors that are only named."""
    if isinstance(detectors, Mapping):
        return detectors
    names = [detectors] if isinstance(detectors, str) else detectors
    return {name: {} for name in names}


def _prompt_set(
    prompts: str | Path | PromptSet | Sequence[str] | None, protocol: Protocol, filters: PromptFilters
) -> PromptSet | None:
    given: dict[str, Any] = {key: value for key, value in filters.items() if value not in (None, (), [])}
    if isinstance(prompts, str | Path):
        return load_prompt_set(str(prompts), subset=protocol.subset, **given)
    if given:
        name = next(iter(given)).replace("_", "-")
        raise OptionError(f"--{name} chooses among prompts: give a file or a preset as --prompts")
    return prompts if prompts is None or isinstance(prompts, PromptSet) else prompt_set_of(prompts)
