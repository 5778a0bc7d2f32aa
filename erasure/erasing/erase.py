"""erase: mask, method, cleaned weights, evaluation and report of one erasure, in one resumable run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch

from erasure.core import registry
from erasure.core.config import build
from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import DivergedError, NotApplicableError, OptionError, suggestion
from erasure.core.files import require_disk_space
from erasure.core.phases import Phases
from erasure.core.run_dir import Diverged, RunDir, Trained
from erasure.data import Dataset
from erasure.erasing.make_mask import MASKS, SCORED, check_mask, read_mask
from erasure.erasing.record import EraseSettings, read_erase_record, settings_of
from erasure.erasing.result import EraseResult
from erasure.erasing.targets import ForgetTarget, TargetSpec, recorded_target, target_of
from erasure.evaluation.measure import measured
from erasure.evaluation.outputs import ModelOutputs
from erasure.evaluation.settings import EvaluationConfig
from erasure.formats.safetensors_io import hash_tensors
from erasure.methods.base import Job, Method
from erasure.models import DiffusionModel, Model, load_model, located
from erasure.models.info import forget_advice
from erasure.models.loading import load_unchanged
from erasure.reports.erase_report import write_report
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, build_mask
from erasure.training.memory import measured_peak

GIVEN_MASK = "given-mask.safetensors"  # in the run folder, of a mask that was given as an object


@dataclass(frozen=True)
class EraseRequest:
    """What is asked of an erasure; what is left empty follows the method, the model or its data.

    `model` is a name or path as the command line takes it, or a loaded model, which is left as it is. `method` is a
    name, or an instance whose fields were given on purpose. `mask` is one of MASKS, a file, or a mask.
    """

    model: str | Model
    target: TargetSpec = field(default_factory=TargetSpec)
    method: str | Method = "salun"
    mask: str | Mask | None = None
    preset: str | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    saliency: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evaluate: bool = True
    probe_every: int = 0

    @property
    def method_name(self) -> str:
        """The method as a plug-in's name, or as `package.module:Class`."""
        return self.method if isinstance(self.method, str) else registry.name_of("methods", type(self.method))


@dataclass
class _Erasure:
    """A request with everything loaded and decided. `model` is moved in place; `original` is what it was."""

    model: Model
    target: ForgetTarget
    method: Method
    scoring: SaliencyConfig
    evaluation: EvaluationConfig
    phases: Phases
    original: Model | None = None
    given_mask: Mask | None = None

    def twin(self) -> Model | None:
        """The original for later, taken before the first step; None where memory is short and it is loaded again."""
        if getattr(self.method, "memory", "") == "low":
            return None
        twin = self.model.clone() if self.method.moves == "text encoder" else self.model.frozen()
        twin.network.eval().requires_grad_(False)
        twin.keep_hashes()
        return twin


def erase(request: EraseRequest, out: str | Path, *, report: bool = True) -> EraseResult:
    """Carry out `request` in the folder `out`.

    The folder gets run.json, log.jsonl, mask.safetensors, model/ (a folder that the stock library loads), samples/ and
    report.html (unless `report` says no). The same request on the same folder continues a killed run, with the same
    bits, or returns its result.

    Raises:
        OptionError: for an unknown name or a value outside its range, before anything is written.
        NotApplicableError: for a method, mask or metric that has no meaning for the model.
        DivergedError: when training left the finite numbers; the folder says at which step.
    """
    request.evaluation.check()
    if request.probe_every < 0:
        raise OptionError(f"--probe-every {request.probe_every} must be at least 0")
    phases = Phases()
    with phases("load the model"):
        model = _model_of(request, Path(out))
    with phases("check what is asked"):
        target = target_of(model, request.target, request.seed)
        method, scoring = _resolved(request, model)
        target.need_forget()
        method.check(target.task)
        method.check_model(model)
        if request.probe_every:
            target.probe(model, request.evaluation)
        if request.evaluate and isinstance(model, DiffusionModel):
            target.check_labeler(request.evaluation)
        settings = _settings(request, model, target, method, scoring, Path(out))
    evaluation = EvaluationConfig.from_json(settings["evaluation"])
    erasure = _Erasure(model, target, method, scoring, evaluation, phases)
    erasure.given_mask = request.mask if isinstance(request.mask, Mask) else None
    return _carried_out(settings, out, erasure, report)


def repeat(config: str | Path, out: str | Path) -> EraseResult:
    """Repeat the erasure of a run.json in another folder; raises OptionError when its model or images have changed."""
    settings = settings_of(read_erase_record(Path(config)))
    phases = Phases()
    with phases("load the model"):
        model = load_unchanged(settings["model"], settings["model_hash"], str(config)).to(device())
        model.keep_hashes()
    with phases("check what is asked"):
        target = recorded_target(model, settings)
        target.check_unchanged(settings, f"the run of {config}")
        method = build(registry.load("methods", settings["method"]), settings["method"], settings["options"])
        if settings["mask_hash"] != _hash_of(settings["mask"], method.part_of(model)):
            raise OptionError(f"{settings['mask']} is no longer the mask of {config}: it has changed")
    scoring = build(SaliencyConfig, "saliency", settings["saliency"])
    evaluation = EvaluationConfig.from_json(settings["evaluation"])
    return _carried_out(settings, out, _Erasure(model, target, method, scoring, evaluation, phases))


def _model_of(request: EraseRequest, out: Path) -> Model:
    """The model that will be moved: loaded by its name, or a copy of the one that was given."""
    if isinstance(request.model, str):
        model = load_model(request.model).to(device())
    else:
        model = request.model.clone()
        # A model of no folder is saved with the run: later comparisons need the original.
        model.source = model.source or _own_original(out)
    model.keep_hashes()
    return model


def _own_original(out: Path) -> str:
    """Where a run keeps an original that was given as an object and is in no folder."""
    return str((out / "original").resolve())


def _resolved(request: EraseRequest, model: Model) -> tuple[Method, SaliencyConfig]:
    """The method and the scoring with every option decided: paper, family, model card, preset, then what was given."""
    name = request.method_name
    kind = registry.load("methods", name) if isinstance(request.method, str) else type(request.method)
    given = request.options if isinstance(request.method, str) else {**request.method.given, **request.options}
    card = dict(model.info.get("erase", {}).get(name, {}))
    preset: dict[str, Any] = {}
    if request.preset:
        if request.preset not in kind.presets:
            raise OptionError(f"{name} has no preset {request.preset!r}{suggestion(request.preset, kind.presets)}")
        preset = dict(kind.presets[request.preset])
    family = dict(kind.defaults_of.get(model.family, {}))
    scores = [*(layer.pop("saliency", {}) for layer in (family, card, preset)), request.saliency]
    layers = [family, card, preset, given]
    # Steps that are asked for replace epochs that are only a default.
    layers = [{"epochs": 0.0, **layer} if "steps" in layer and _has_epochs(kind) else layer for layer in layers]
    scoring = build(SaliencyConfig, "the saliency", *scores)
    scoring.check()
    return build(kind, f"method {name}", *layers), scoring


def _has_epochs(kind: Any) -> bool:
    return any(field.name == "epochs" for field in fields(kind))


def _settings(
    request: EraseRequest, model: Model, target: ForgetTarget, method: Method, scoring: SaliencyConfig, out: Path
) -> EraseSettings:
    mask = request.mask or method.default_mask
    if mask != "none" and method.no_mask:
        raise NotApplicableError(f"--mask {mask} has no meaning for {request.method_name}: {method.no_mask}")
    part = method.part_of(model)
    if isinstance(mask, Mask):
        check_mask(mask, "the given mask", part)
        place: str = str((out / GIVEN_MASK).resolve())
        mask_hash: str | None = hash_tensors(mask.tensors)
    else:
        place, mask_hash = mask if mask in MASKS else str(Path(mask).resolve()), _hash_of(mask, part)
    found: dict[str, Any] = {
        "model": model.source if model.source == _own_original(out) else located(model.source),
        "model_hash": model.hash,
        **target.settings,
        "method": request.method_name,
        "options": asdict(method),
        "mask": place,
        "mask_hash": mask_hash,
        "saliency": asdict(scoring),
        "seed": request.seed,
        "evaluate": request.evaluate,
        "evaluation": request.evaluation.located().as_json(),
        "probe_every": request.probe_every,
    }
    return cast(EraseSettings, found)


def _hash_of(mask: str, part: Model) -> str | None:
    """The hash of a mask that is a file, None of one that is made."""
    return None if mask in MASKS else hash_tensors(read_mask(mask, part).tensors)


def _carried_out(settings: EraseSettings, out: str | Path, erasure: _Erasure, report: bool = True) -> EraseResult:
    with RunDir(out, "erase", settings) as run:
        run.document = agreed(run.document)
        if run.done:
            return EraseResult.from_dict(run.result)
        phases = erasure.phases
        _save_given(run, settings, erasure)
        if "trained" in run.document:
            erasure.original = erasure.model
            with phases("load the cleaned model"):
                erasure.model = erasure.original.load(str(run.folder / "model")).to(erasure.original.device)
                erasure.target.prepare(erasure.model)
        else:
            _train(run, settings, erasure)
        before = after = None
        if settings["evaluate"]:
            before, after = _outputs(run, settings, erasure)
        result = _result(run, settings, erasure, before, after)
        if is_main():
            if report:
                with phases("report"):
                    write_report(run, result.to_dict(), before, after)
            run.finish(result.to_dict())
            (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return result


def _save_given(run: RunDir, settings: EraseSettings, erasure: _Erasure) -> None:
    """Save what was given as an object and is in no file: the original model, and a mask."""
    if not is_main():
        return
    own = _own_original(run.folder)
    if settings["model"] == own and not Path(own).is_dir():
        erasure.model.save(Path(own))
    mask = run.folder / GIVEN_MASK
    if erasure.given_mask is not None and not mask.is_file():
        erasure.given_mask.save(mask)


def _outputs(run: RunDir, settings: EraseSettings, erasure: _Erasure) -> tuple[ModelOutputs, ModelOutputs]:
    """Outputs of the original and of the cleaned model, from the same seeds."""
    target, model = erasure.target, erasure.model
    with erasure.phases("load the original"):
        original = erasure.original or _reloaded(settings, model)
        original.network.to(model.device)
    before = target.outputs(original, erasure.evaluation, None)
    return before, target.outputs(model, erasure.evaluation, run.folder / "samples", before)


def _reloaded(settings: EraseSettings, model: Model) -> Model:
    """The model that a run began from, loaded anew; raises OptionError when it is no longer that."""
    original = load_unchanged(settings["model"], settings["model_hash"], "this run").to(model.device)
    original.keep_hashes()
    return original


def _result(
    run: RunDir,
    settings: EraseSettings,
    erasure: _Erasure,
    before: ModelOutputs | None,
    after: ModelOutputs | None,
) -> EraseResult:
    phases, metrics = erasure.phases, erasure.evaluation.metrics
    scores = original = None
    if before is not None and after is not None:
        with phases("measure the cleaned model"):
            scores = measured(after, metrics)
        with phases("measure the original"):
            original = measured(before, metrics)
    return EraseResult(
        str(run.folder),
        settings["method"],
        settings["mask"],
        erasure.target.task.concept,
        run.document["trained"],
        scores,
        original,
        phases.seconds,
    )


def _train(run: RunDir, settings: EraseSettings, erasure: _Erasure) -> None:
    """Mask and method; leaves model/ and what is known of it as `trained` in run.json."""
    model, target, method, phases = erasure.model, erasure.target, erasure.method, erasure.phases
    size = 4 * sum(parameter.numel() for parameter in model.network.parameters())
    # The cleaned model, a checkpoint (network and two moments), and the same once more while it is replaced.
    require_disk_space(run.folder, 5 * size, "this run", "give --out on another disk")
    reads = {*method.reads, *(("forget",) if settings["mask"] in SCORED else ())}
    with phases("training images"):
        target.prepare(model)
        forget = target.forget_data if "forget" in reads else Dataset.nothing()
        retain = target.retain_data if "retain" in reads else Dataset.nothing()
    run.update(device=str(model.device), threads=torch.get_num_threads())
    with phases("mask"):
        mask = _mask(run, settings, erasure, forget)
    on_step = _probing(settings["probe_every"], erasure)
    job = Job(target.task, forget, retain, mask, settings["seed"], run.folder, run.fingerprint, on_step)
    try:
        with phases("train"), measured_peak() as peak:
            erasure.original = erasure.twin()
            _begin_change(model, target)
            outcome = method.erase(model, job)
    except DivergedError as error:
        raise _diverged(run, model, error) from error
    model.info["erased"] = {
        "model_hash": settings["model_hash"],
        "forget": settings["forget"],
        "method": settings["method"],
        "mask": Path(settings["mask"]).name,
        "seed": settings["seed"],
    }
    with phases("save"):
        model.keep_hashes()
        if is_main():
            model.save(run.folder / "model")
        erasure.original = erasure.original or _reloaded(settings, model)
        change = weight_change(method, model, erasure.original)
    mask_seconds = run.document.get("mask_seconds", 0.0)
    run.document.pop("diverged", None)  # of an earlier attempt
    spent = {"seconds": outcome.seconds + mask_seconds, "mask_seconds": mask_seconds, "steps": len(outcome.records)}
    run.update(status="running", trained=cast(Trained, {**spent, **peak, **change}))


def _begin_change(model: Model, target: ForgetTarget) -> None:
    """From here on the model is another: its hashes, its format on disk, and what it says of its past."""
    model.weights_change()
    forget_advice(model.info)  # a rounded copy would move frozen weights
    if "dtypes" in model.info:  # one format for all parts, or the stock pipeline could not draw from the folder
        model.info["dtypes"] = dict.fromkeys(model.info["dtypes"], "float32")
    target.mark(model.info)


def _diverged(run: RunDir, model: Model, error: DivergedError) -> DivergedError:
    """Keep the last good weights, and say where they are."""
    if error.step and is_main():
        model.save(run.folder / "model")
    run.update(status="diverged", diverged=Diverged(step=error.step, reason=str(error)))
    kept = f"{run.folder / 'model'} holds them" if error.step else "the original is unchanged and nothing was saved"
    return DivergedError(f"{error} ({kept})", error.step)


def _mask(run: RunDir, settings: EraseSettings, erasure: _Erasure, forget: Dataset) -> Mask | None:
    """The run's mask, made once and kept as mask.safetensors; its seconds go to run.json."""
    kind, path = settings["mask"], run.folder / "mask.safetensors"
    if kind == "none":
        return None
    part = erasure.method.part_of(erasure.model)
    if path.is_file():
        mask = Mask.load(path)
        mask.check(part.network)
        return mask
    began = time.perf_counter()
    partial = run.folder / ".saliency"
    if kind in MASKS:
        how = (forget, erasure.scoring, settings["seed"], partial, run.fingerprint, erasure.target.task.concept)
        mask = build_mask(kind, part, *how, low_memory=getattr(erasure.method, "memory", "") == "low")
    else:
        mask = read_mask(kind, part)
    run.update(mask_seconds=time.perf_counter() - began, mask_density=mask.density)
    if is_main():
        mask.save(path)
        partial.unlink(missing_ok=True)
        mask = Mask.load(path)  # a bit a weight from here on, not a byte
    return mask


def _probing(every: int, erasure: _Erasure) -> Callable[[int], Mapping[str, Any]] | None:
    """UA and RA over few samples, every so many steps."""
    if not every:
        return None
    probe = erasure.target.probe(erasure.model, erasure.evaluation)
    return lambda done: probe(erasure.model) if done % every == 0 else {}


def weight_change(method: Method, model: Model, original: Model) -> dict[str, Any]:
    """`moves` (what of it), `hash` (of the network), `changed_weights`, `total_weights` and `relative_change`.

    The counts are those of the part that the method moves, and `relative_change` is the norm of the change relative to
    the weights'. Where that part is not the network, `part_hash` and `base_part_hash` are its hashes after and before.
    """
    after, before = method.part_of(model), method.part_of(original)
    found = {"moves": method.moves, "hash": model.hash}
    if after.network is not model.network:
        found |= {"part_hash": after.hash, "base_part_hash": before.hash}
    return {**found, **_change(after, before)}


def _change(after: Model, before: Model) -> dict[str, Any]:
    changed = total = 0
    distance = size = 0.0
    pairs = zip(after.network.parameters(), before.network.parameters(), strict=True)
    for now, then in ((one.detach().cpu(), other.detach().cpu()) for one, other in pairs):
        changed += int((now != then).sum())
        total += now.numel()
        distance += float((now - then).double().square().sum())
        size += float(then.double().square().sum())
    return {"changed_weights": changed, "total_weights": total, "relative_change": (distance / size) ** 0.5}
