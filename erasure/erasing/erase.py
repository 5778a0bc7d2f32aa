"""Erase classes, samples or a concept: mask, method, cleaned weights, evidence, report, in one resumable run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from erasure.core import registry
from erasure.core.config import build
from erasure.core.distributed import agreed, device, is_main
from erasure.core.errors import DivergedError, NotApplicableError, OptionError, suggestion
from erasure.core.files import require_disk_space
from erasure.core.run_dir import RunDir, read_record
from erasure.data import Dataset
from erasure.erasing.make_mask import MASKS, SCORED, read_mask
from erasure.erasing.targets import ForgetTarget, TargetSpec, recorded_target, target_of
from erasure.evaluation.measure import measured
from erasure.evaluation.settings import EvaluationConfig
from erasure.formats.safetensors_io import hash_tensors
from erasure.methods.base import Job, Method
from erasure.models import DiffusionModel, Model, load_model, located
from erasure.models.info import forget_advice
from erasure.reports.erase_report import write_report
from erasure.saliency.mask import Mask
from erasure.saliency.scores import SaliencyConfig, build_mask
from erasure.training.memory import measured_peak


@dataclass(frozen=True)
class EraseRequest:
    """What is asked of an erasure; what is left empty follows the method, the model or its data."""

    model: str
    forget: str | None = None
    method: str = "salun"
    mask: str | None = None
    preset: str | None = None
    wanted: TargetSpec = field(default_factory=TargetSpec)
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    saliency: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evaluate: bool = True
    probe_every: int = 0


@dataclass(frozen=True)
class _Prepared:
    """A request with everything loaded and decided; `model` is moved in place."""

    model: Model
    target: ForgetTarget
    method: Method
    scoring: SaliencyConfig
    evaluation: EvaluationConfig


def erase(request: EraseRequest, out: str | Path, *, report: bool = True) -> dict[str, Any]:
    """Carry out `request` in the folder `out`; returns `ua`, `ra`, `seconds`, all metrics, and the same of `original`.

    The folder gets run.json, log.jsonl, mask.safetensors, model/ (a folder that the stock library loads), samples/ and
    report.html (unless `report` says no). The same request on the same folder continues a killed run, with the same
    bits, or returns its result.
    """
    request.evaluation.check()
    if request.probe_every < 0:
        raise OptionError(f"--probe-every {request.probe_every} must be at least 0")
    model = load_model(request.model).to(device())
    wanted = replace(request.wanted, forget=request.forget)
    target = target_of(model, wanted, request.seed)
    method, scoring = _resolved(request, model)
    target.need_forget()
    method.check(target.task)
    method.check_model(model)
    if request.probe_every:
        target.probe(model, request.evaluation)
    if request.evaluate and isinstance(model, DiffusionModel):
        target.check_labeler(request.evaluation)
    settings = _settings(request, model, target, method, scoring)
    evaluation = EvaluationConfig.from_json(settings["evaluation"])
    return _carried_out(settings, out, _Prepared(model, target, method, scoring, evaluation), report)


def repeat(config: str | Path, out: str | Path) -> dict[str, Any]:
    """Repeat the erasure of a run.json in another folder; raises OptionError when the model has changed."""
    document = read_record(Path(config))
    if document["verb"] != "erase":
        raise OptionError(f"--config {config} is not the run.json of an erasure")
    settings = document["settings"]
    model = load_model(settings["model"]).to(device())
    if model.hash != settings["model_hash"]:
        raise OptionError(f"{settings['model']} is no longer the model of {config}: its weights have changed")
    target = recorded_target(model, settings)
    if any(target.settings.get(key) != settings.get(key) for key in ("data_hash", "images_hash", "parts_hash")):
        raise OptionError(f"the images of {config} are no longer the same: they have changed since")
    method = build(registry.load("methods", settings["method"]), settings["method"], settings["options"])
    if settings["mask_hash"] != _hash_of(settings["mask"], method.part_of(model)):
        raise OptionError(f"{settings['mask']} is no longer the mask of {config}: it has changed")
    scoring = build(SaliencyConfig, "saliency", settings["saliency"])
    evaluation = EvaluationConfig.from_json(settings["evaluation"])
    return _carried_out(settings, out, _Prepared(model, target, method, scoring, evaluation))


def _resolved(request: EraseRequest, model: Model) -> tuple[Method, SaliencyConfig]:
    """The method and the scoring with every option decided: paper, family, model card, preset, then flags."""
    kind = registry.load("methods", request.method)
    card = dict(model.info.get("erase", {}).get(request.method, {}))
    preset: dict[str, Any] = {}
    if request.preset:
        if request.preset not in kind.presets:
            raise OptionError(
                f"{request.method} has no preset {request.preset!r}{suggestion(request.preset, kind.presets)}"
            )
        preset = dict(kind.presets[request.preset])
    family = dict(kind.defaults_of.get(model.family, {}))
    scores = [*(layer.pop("saliency", {}) for layer in (family, card, preset)), request.saliency]
    layers = [family, card, preset, request.options]
    # Steps that are asked for replace epochs that are only a default.
    layers = [{"epochs": 0.0, **layer} if "steps" in layer and _has_epochs(kind) else layer for layer in layers]
    scoring = build(SaliencyConfig, "the saliency", *scores)
    scoring.check()
    return build(kind, f"method {request.method}", *layers), scoring


def _has_epochs(kind: Any) -> bool:
    return any(field.name == "epochs" for field in fields(kind))


def _settings(
    request: EraseRequest, model: Model, target: ForgetTarget, method: Method, scoring: SaliencyConfig
) -> dict[str, Any]:
    mask = request.mask or method.default_mask
    if mask != "none" and method.no_mask:
        raise NotApplicableError(f"--mask {mask} has no meaning for {request.method}: {method.no_mask}")
    return {
        "model": located(request.model),
        "model_hash": model.hash,
        **target.settings,
        "method": request.method,
        "options": asdict(method),
        "mask": mask if mask in MASKS else str(Path(mask).resolve()),
        "mask_hash": _hash_of(mask, method.part_of(model)),
        "saliency": asdict(scoring),
        "seed": request.seed,
        "evaluate": request.evaluate,
        "evaluation": request.evaluation.located().as_json(),
        "probe_every": request.probe_every,
    }


def _hash_of(mask: str, part: Model) -> str | None:
    """The hash of a mask that is a file, None of one that is made."""
    return None if mask in MASKS else hash_tensors(read_mask(mask, part).tensors)


def _carried_out(settings: dict[str, Any], out: str | Path, plan: _Prepared, report: bool = True) -> dict[str, Any]:
    with RunDir(out, "erase", settings) as run:
        run.document = agreed(run.document)
        if run.done:
            return run.result
        model, target = plan.model, plan.target
        if "trained" in run.document:
            model = plan.model.load(str(run.folder / "model")).to(plan.model.device)
            target.prepare(model)
        else:
            _train(run, plan)
        result: dict[str, Any] = {
            "run": str(run.folder),
            "method": settings["method"],
            "mask": settings["mask"],
            "forget": target.task.concept,
            "ua": None,
            "ra": None,
            **run.document["trained"],
        }
        before = after = None
        if settings["evaluate"]:
            original = original_of(settings, model.device)
            before = target.outputs(original, plan.evaluation, None)
            after = target.outputs(model, plan.evaluation, run.folder / "samples", before)
            result |= measured(after, plan.evaluation.metrics).to_dict()
            result["original"] = {"seconds": 0.0, **measured(before, plan.evaluation.metrics).to_dict()}
        if is_main():
            if report:
                write_report(run, result, before, after)
            run.finish(result)
            (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return result


def _train(run: RunDir, plan: _Prepared) -> None:
    """Mask and method; leaves model/ and what is known of it as `trained` in run.json."""
    settings, model, target = run.settings, plan.model, plan.target
    held = 4 * sum(parameter.numel() for parameter in model.network.parameters())
    # The cleaned model, a checkpoint (network and two moments), and the same once more while it is replaced.
    require_disk_space(run.folder, 5 * held, "this run", "give --out on another disk")
    reads = {*plan.method.reads, *(("forget",) if settings["mask"] in SCORED else ())}
    target.prepare(model)
    forget = target.forget_data if "forget" in reads else Dataset.nothing()
    retain = target.retain_data if "retain" in reads else Dataset.nothing()
    run.update(device=str(model.device), threads=torch.get_num_threads())
    mask = _mask(run, plan, forget)
    on_step = _probing(settings["probe_every"], plan)
    forget_advice(model.info)  # a rounded copy would move frozen weights
    if "dtypes" in model.info:  # one format for all parts, or the stock pipeline could not draw from the folder
        model.info["dtypes"] = dict.fromkeys(model.info["dtypes"], "float32")
    target.mark(model.info)
    job = Job(target.task, forget, retain, mask, settings["seed"], run.folder, run.fingerprint, on_step)
    try:
        with measured_peak() as peak:
            outcome = plan.method.erase(model, job)
    except DivergedError as error:
        if error.step and is_main():
            model.save(run.folder / "model")
        run.update(status="diverged", diverged={"step": error.step, "reason": str(error)})
        kept = f"{run.folder / 'model'} holds them" if error.step else "the original is unchanged and nothing was saved"
        raise DivergedError(f"{error} ({kept})", error.step) from error
    model.info["erased"] = {
        "model_hash": settings["model_hash"],
        "forget": settings["forget"],
        "method": settings["method"],
        "mask": settings["mask"],
        "seed": settings["seed"],
    }
    if is_main():
        model.save(run.folder / "model")
    mask_seconds = run.document.get("mask_seconds", 0.0)
    run.document.pop("diverged", None)  # of an earlier attempt
    run.update(
        status="running",
        trained={
            "seconds": outcome.seconds + mask_seconds,
            "mask_seconds": mask_seconds,
            "steps": len(outcome.records),
            **peak,
            **weight_change(plan.method, model, original_of(settings, torch.device("cpu"))),
        },
    )


def original_of(settings: Mapping[str, Any], on: torch.device) -> Model:
    """The model that a run began from, loaded anew; raises OptionError when it is no longer that."""
    model = load_model(settings["model"]).to(on)
    if model.hash != settings["model_hash"]:
        raise OptionError(f"{settings['model']} is no longer the model of this run: its weights have changed")
    return model


def _mask(run: RunDir, plan: _Prepared, forget: Dataset) -> Mask | None:
    """The run's mask, made once and kept as mask.safetensors; its seconds go to run.json."""
    kind, path = run.settings["mask"], run.folder / "mask.safetensors"
    if kind == "none":
        return None
    part = plan.method.part_of(plan.model)
    if path.is_file():
        mask = Mask.load(path)
        mask.check(part.network)
        return mask
    began = time.perf_counter()
    partial = run.folder / ".saliency"
    if kind in MASKS:
        how = (forget, plan.scoring, run.settings["seed"], partial, run.fingerprint, plan.target.task.concept)
        mask = build_mask(kind, part, *how, low_memory=getattr(plan.method, "memory", "") == "low")
    else:
        mask = read_mask(kind, part)
    run.update(mask_seconds=time.perf_counter() - began, mask_density=mask.density)
    if is_main():
        mask.save(path)
        partial.unlink(missing_ok=True)
        mask = Mask.load(path)  # a bit a weight from here on, not a byte
    return mask


def _probing(every: int, plan: _Prepared) -> Callable[[int], Mapping[str, Any]] | None:
    """A look at UA and RA every so many steps."""
    if not every:
        return None
    probe = plan.target.probe(plan.model, plan.evaluation)
    return lambda done: probe(plan.model) if done % every == 0 else {}


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
