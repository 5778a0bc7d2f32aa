"""The Python API: the verbs of the command line, with objects in place of names, and typed results.

    import erasure as er

    model = er.load("my-model.safetensors")
    target = er.Concept.from_words("church", anchor="a building")
    run = er.erase(model, target, method=er.methods.SalUn(alpha=0.5), out="run")
    run.export("cleaned.safetensors", format="single-file")

A model is a shipped name, a folder, a single file, a run, a hub id, a stock diffusers pipeline, or what `load`
returned; no verb changes an object that it was given. A target is a Concept, Classes or Samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasure.auditing.api import audit_model
from erasure.auditing.compare import AuditComparison
from erasure.auditing.compare import compare as compare_folders
from erasure.auditing.result import AuditResult
from erasure.core.config import build
from erasure.core.distributed import device
from erasure.core.errors import NotApplicableError, OptionError, RunError
from erasure.core.run_dir import RunRecord
from erasure.data.images import read_image
from erasure.erasing.erase import EraseRequest
from erasure.erasing.erase import erase as carry_out
from erasure.erasing.evaluate import evaluate as evaluate_model
from erasure.erasing.record import read_erase_record
from erasure.erasing.result import EraseResult, EvaluationResult
from erasure.erasing.targets import TargetSpec, target_of
from erasure.evaluation.measure import Measurements
from erasure.evaluation.metrics.base import Score
from erasure.evaluation.settings import EvaluationConfig
from erasure.exporting.export import ExportResult
from erasure.exporting.export import export as export_run
from erasure.exporting.verify import VerifyResult
from erasure.exporting.verify import verify as verify_file
from erasure.methods.base import Method
from erasure.models import Model, load_model
from erasure.models.loading import load_pipeline
from erasure.prompts.concept import Concept
from erasure.prompts.prompt_set import PromptSet
from erasure.prompts.prompt_table import prompt_rows
from erasure.reports.compare_runs import RunComparison
from erasure.reports.notebook import image_html, scores_html
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, build_mask
from erasure.sampling.draw import SamplingOptions
from erasure.sampling.generate import GenerateResult, generate_prompts
from erasure.sampling.generate import generate as generate_classes

if TYPE_CHECKING:
    from PIL.Image import Image

Options = Mapping[str, Any]


class Classes:
    """Classes of the data set that a model was trained on, by index or name.

    Args:
        classes: What to forget, such as 3 or "cat".
        data: The data set, where the model does not record it.
        data_dir: Where a named data set lies on disk.
        image_size: Resize images to this size.
    """

    def __init__(
        self,
        *classes: int | str,
        data: str | None = None,
        data_dir: str | Path | None = None,
        image_size: int | None = None,
    ) -> None:
        if not classes:
            raise OptionError("Classes names no class: give at least one, such as Classes(3)")
        forget = "class:" + ",".join(map(str, classes))
        self.spec = TargetSpec(forget, data, None if data_dir is None else str(data_dir), image_size)

    def __repr__(self) -> str:
        return f"Classes({self.spec.forget})"


class Samples:
    """Single training samples of a classifier: ids, or a forget set such as "random:0.1" or "mislabelled"."""

    def __init__(
        self,
        samples: Sequence[int] | str,
        *,
        data: str | None = None,
        data_dir: str | Path | None = None,
        image_size: int | None = None,
    ) -> None:
        forget = samples if isinstance(samples, str) else "ids:" + ",".join(map(str, samples))
        self.spec = TargetSpec(forget, data, None if data_dir is None else str(data_dir), image_size)

    def __repr__(self) -> str:
        return f"Samples({self.spec.forget})"


Target = Concept | Classes | Samples | TargetSpec
GivenModel = str | Path | Model | Any  # or a Run, or a stock diffusers pipeline


class RunImages:
    """The images of a run: those of the cleaned model, and pairs with the original from the same seeds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def paths(self) -> list[Path]:
        """PNG files of the cleaned model, in order of their names; empty for a classifier."""
        return sorted((self._folder / "samples").rglob("*.png"))

    def compare(self) -> Image:
        """One picture: the original's images on the left, the cleaned model's on the right, the same seeds."""
        from PIL.Image import fromarray

        path = self._folder / "before-after.png"
        if not path.is_file():
            raise NotApplicableError(
                f"{self._folder} has no pair of images: it is a classifier's, or was not evaluated"
            )
        return fromarray(read_image(path, str(path), 3))


class Run:
    """A finished erasure in its folder; `erase` returns it, and `Run(folder)` opens an earlier one.

    Raises RunError when the folder holds no finished erasure.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.record: RunRecord = read_erase_record(self.folder / "run.json")
        if self.record["status"] != "done":
            raise RunError(f"{folder} is not a finished erasure: run its command again to finish it")
        self.result = EraseResult.from_dict(self.record["result"])
        self.images = RunImages(self.folder)

    @cached_property
    def model(self) -> Model:
        """The cleaned model."""
        return load_model(self.folder).to(device())

    @property
    def metrics(self) -> Mapping[str, Score]:
        """Metrics of the cleaned model by name, each with `value`, `unit`, `n` and `interval`."""
        return self.result.metrics

    @property
    def original(self) -> Measurements | None:
        """The same metrics of the original; None for a run that was not evaluated."""
        return self.result.original

    @property
    def report(self) -> Path:
        """The report as one HTML file."""
        return self.folder / "report.html"

    def export(
        self,
        out: str | Path,
        *,
        format: str = "single-file",
        dtype: str | None = None,
        rank: int = 8,
        lora_keys: str = "kohya",
        base: str | Path | Model | None = None,
    ) -> ExportResult:
        """Write the cleaned model for other tools.

        Args:
            out: File or folder to write.
            format: "diffusers", "single-file", "safetensors", "unet", "delta" or "lora".
            dtype: "float16", "bfloat16" or "float32"; None: what the base came in.
            rank: Rank of a LoRA.
            lora_keys: Key names of a LoRA, "kohya" or "peft".
            base: Where the original is now, if it moved.
        """
        return export_run(str(self.folder), format, out, dtype=dtype, rank=rank, lora_keys=lora_keys, base=base)

    def to_dict(self) -> dict[str, Any]:
        """What `erasure erase --json` prints."""
        return self.result.to_dict()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {self.result.method} forgets {self.result.forget})"

    def _repr_html_(self) -> str:
        result = self.result.to_dict()
        rows = [{"name": self.result.method, **result}]
        if "original" in result:
            rows.insert(0, {"name": "original", **result["original"]})
        pairs = self.folder / "before-after.png"
        shown = image_html(pairs, "original left, cleaned right, the same seeds") if pairs.is_file() else ""
        return scores_html(rows) + shown


def load(given: GivenModel) -> Model:
    """The model that `given` means.

    Raises ModelError when it is missing, damaged, or of no known family.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, Run):
        return given.model
    if isinstance(given, str | Path):
        return load_model(given).to(device())
    if hasattr(given, "save_pretrained"):
        return load_pipeline(given).to(device())
    raise OptionError(f"cannot load a {type(given).__name__}: give a name, a path, a run or a diffusers pipeline")


def saliency_mask(model: GivenModel, target: Target, *, kind: str = "saliency", seed: int = 0, **scoring: Any) -> Mask:
    """The weights that are salient for what is to be forgotten (Fan et al., 2024, eq. 4).

    Args:
        model: See the module.
        target: What is to be forgotten.
        kind: "saliency", "random" (as many, drawn uniformly) or "inverted" (the least salient).
        seed: Seed of the noise that scores are measured under.
        scoring: Fields of SaliencyConfig, such as density=0.5.

    Returns a Mask: `tensors[name]` is boolean and has the shape of the weight of that name.
    """
    settings: SaliencyConfig = build(SaliencyConfig, "the saliency", scoring)
    settings.check()
    loaded = load(model).clone()
    made = target_of(loaded, _spec(target), seed)
    made.need_forget()
    return build_mask(kind, loaded, made.forget_data, settings, seed, concept=made.task.concept)


def erase(
    model: GivenModel,
    target: Target,
    *,
    out: str | Path,
    method: str | Method = "salun",
    mask: str | Path | Mask | None = None,
    preset: str | None = None,
    seed: int = 0,
    options: Options | None = None,
    saliency: Options | None = None,
    training_images: Options | None = None,
    evaluation: Options | None = None,
    evaluate: bool = True,
    probe_every: int = 0,
    report: bool = True,
) -> Run:
    """Erase `target` from a model into the run folder `out`; the same call continues a killed run, with the same bits.

    Args:
        model: See the module; it stays as it is.
        target: What is to be forgotten.
        out: Folder of the run: the cleaned model, the record, the report.
        method: A method's name, or an instance such as `erasure.methods.SalUn(alpha=0.5)`. Fields that were not given
            follow the family, the model's card and the preset.
        mask: "saliency", "none", "random", "inverted", a file, or a Mask; None: what the method does by default.
        preset: A named set of options of the method.
        seed: Seed of everything that is drawn.
        options: Options of a method that is given by name.
        saliency: Fields of SaliencyConfig.
        training_images: Fields of TrainingImageOptions, for a concept.
        evaluation: Fields of EvaluationConfig and SamplingOptions, such as metrics=("ua", "ira") or num_images=4.
        evaluate: Whether the result is measured.
        probe_every: Steps between measurements of UA and RA on few images; 0: none.
        report: Whether report.html is written.

    Raises:
        ErasureError: OptionError, NotApplicableError and so on, before anything is written; DivergedError afterwards.
    """
    spec = _spec(target, training_images)
    request = EraseRequest(
        model=_named_or_loaded(model),
        target=spec,
        method=method,
        mask=str(mask) if isinstance(mask, Path) else mask,
        preset=preset,
        seed=seed,
        options=options or {},
        saliency=saliency or {},
        evaluation=EvaluationConfig().replaced(evaluation or {}),
        evaluate=evaluate,
        probe_every=probe_every,
    )
    carry_out(request, out, report=report)
    return Run(out)


def evaluate(
    model: GivenModel, target: Target | None = None, *, metrics: Sequence[str] = (), **evaluation: Any
) -> EvaluationResult:
    """Measure a run (beside its original, from the same seeds), or a model.

    Args:
        model: A run, or a model (see the module).
        target: What a model should have forgotten; a run brings its own.
        metrics: Names, such as "ua"; none: those that apply without further files.
        evaluation: Other fields of EvaluationConfig and of SamplingOptions.
    """
    overrides = {**evaluation, **({"metrics": tuple(metrics)} if metrics else {})}
    given = str(model.folder) if isinstance(model, Run) else _named_or_loaded(model)
    return evaluate_model(given, None if target is None else _spec(target), overrides)


def audit(
    model: GivenModel | None = None,
    *,
    out: str | Path,
    base: GivenModel | None = None,
    prompts: str | Path | PromptSet | Sequence[str] | None = None,
    max_rate: float | None = None,
    **more: Any,
) -> AuditResult:
    """How often a model still shows a concept, with intervals and a verdict; see `erasure.auditing.api.audit_model`.

    Args:
        model: See the module; None: `images` is a folder of images in its place.
        out: Folder for audit.json, report.html and the records.
        base: The model before the erasure, for paired tests.
        prompts: "i2p", a preset of prompts/, a CSV file, a PromptSet, or a list of prompts.
        max_rate: The limit for the verdict, a share such as 0.01.
        more: Other arguments of audit_model, such as detectors, classes, protocol and limit.
    """
    return audit_model(
        None if model is None else _named_or_loaded(model),
        base=None if base is None else _named_or_loaded(base),
        prompts=prompts,
        max_rate=max_rate,
        out=out,
        **more,
    )


def generate(
    model: Run | str | Path,
    *,
    out: str | Path,
    prompts: Sequence[str] | None = None,
    classes: Sequence[int | str] | None = None,
    compare: Run | str | Path | None = None,
    seed: int = 0,
    **sampling: Any,
) -> GenerateResult:
    """Write images of prompts or of classes into the folder `out`; an interrupted call continues.

    Args:
        model: A run, or a model by its name or path; of a loaded model, `model.pipeline()` draws.
        out: The folder.
        prompts: What a text-to-image model is asked for.
        classes: What a class-conditional model is asked for, by index or name; None: every class.
        compare: Another text-to-image model that generates from the same seeds.
        seed: Seed of the first noise.
        sampling: Fields of SamplingOptions, such as num_images=4.
    """
    settings: SamplingOptions = build(SamplingOptions, "sampling", sampling)
    name = _name(model)
    if prompts is None:
        chosen = None if classes is None else ",".join(map(str, classes))
        return generate_classes(name, chosen, out, settings, seed)
    rows = prompt_rows(list(prompts), None)
    return generate_prompts(name, rows, out, settings, seed, None if compare is None else _name(compare))


def export(run: Run | str | Path, out: str | Path, *, format: str = "single-file", **more: Any) -> ExportResult:
    """Write the cleaned model of a run for other tools; see `Run.export`."""
    return (run if isinstance(run, Run) else Run(run)).export(out, format=format, **more)


def verify(file: str | Path, base: GivenModel | None = None) -> VerifyResult:
    """Check what a file says of itself and, with a `base`, that nothing but the recorded change differs from it.

    Raises ModelError naming the first tensor that is not as recorded.
    """
    return verify_file(file, None if base is None else _named_or_loaded(base))


def compare(*folders: Run | str | Path, html: str | Path | None = None) -> RunComparison | AuditComparison:
    """Runs with runs, or audits with audits, side by side; `html` also writes a page."""
    return compare_folders([str(one.folder) if isinstance(one, Run) else str(one) for one in folders], html)


def _spec(target: Target | str, training_images: Options | None = None) -> TargetSpec:
    if isinstance(target, TargetSpec):
        return target
    if isinstance(target, Classes | Samples):
        return target.spec
    if isinstance(target, Concept):
        return TargetSpec(concept=target, training_images=training_images or {})
    raise OptionError(
        f"a {type(target).__name__} is no target: give a Concept, Classes or Samples, "
        'such as erasure.Concept.from_words("church")'
    )


def _name(model: Run | str | Path) -> str:
    return str(model.folder) if isinstance(model, Run) else str(model)


def _named_or_loaded(model: GivenModel) -> str | Model:
    """A name or path as text, anything else as a loaded model; a run is its folder."""
    if isinstance(model, Run):
        return str(model.folder)
    return str(model) if isinstance(model, str | Path) else load(model)
