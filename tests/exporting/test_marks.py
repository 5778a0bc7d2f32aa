"""What was erased before is known of a model after every export, and after every import of one."""

import json
from dataclasses import replace

import pytest

from erasure.core.provenance import KEY
from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import TargetSpec
from erasure.formats.safetensors_stream import read_header
from erasure.models import load_model
from erasure.models.info import Marks
from tests.conftest import tiny
from tests.support.exported import OPTIONS, TRAINING_IMAGES, runs

NETWORK = ("diffusers", "safetensors", "delta")
EVERY = (*NETWORK, "single-file", "unet", "lora")
# kind of model, what is forgotten, the marks of earlier erasures, the marks that this erasure adds to
CASES = {
    "samples": ("classifier", "ids:5,17", {"erased_classes": [1], "erased_samples": ["ids:2"]}, "erased_samples"),
    "class": ("classifier", "3", {"erased_classes": [1], "erased_samples": ["ids:2"]}, "erased_classes"),
    "generated class": ("ddpm", "3", {"steering": {"kind": "negative_prompt", "labels": [4]}}, "erased_classes"),
    "concept": (
        "sd1",
        "cat",
        {"erased_concepts": ["dog"], "erased_values": [["object", "dog"]]},
        "erased_concepts",
    ),
    "concept of a steered model": (
        "sd1",
        "cat",
        {"steering": {"kind": "negative_prompt", "text": "a dog"}},
        "erased_concepts",
    ),
}


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    """A base with a past, a relative of it without one, the finished run, and the formats of its family."""
    kind, forget, past, added = CASES[request.param]
    root = tmp_path_factory.mktemp("marks")
    base = load_model(runs("sd1").tiny.folder) if kind == "sd1" else tiny(kind)
    for parameter in base.network.parameters():
        parameter.data.add_(0.01)
    base.save(root / "relative")
    for parameter in base.network.parameters():
        parameter.data.add_(0.01)
    base.info |= past
    base.save(root / "base")
    target = TargetSpec(training_images=TRAINING_IMAGES) if kind == "sd1" else TargetSpec()
    asked = EraseRequest(
        str(root / "base"), replace(target, forget=forget), mask="random", options=OPTIONS, evaluate=False
    )
    erase(asked, root / "run")
    return root, past, added, EVERY if kind == "sd1" else NETWORK


def marks_in(path):
    """The marks that a file's header, or a folder's record, says."""
    record = (path / "provenance.json").read_text() if path.is_dir() else read_header(path)[1][KEY]
    return json.loads(record)["marks"]


def test_an_erasure_adds_marks_and_nothing_else(made):
    root, past, added, _ = made
    before, after = load_model(root / "base"), load_model(root / "run")
    assert set(after.info) - set(before.info) <= set(Marks.__annotations__)
    assert set(after.marks) == {*past, added, "erased", *({"erased_values"} if added == "erased_concepts" else ())}
    assert len(after.marks[added]) == len(past.get(added, ())) + 1
    for key in set(past) - {added}:
        assert after.marks[key] == past[key]


def test_every_export_says_every_mark_and_every_import_has_it(made, cli, tmp_path):
    root, _, _, forms = made
    marks = load_model(root / "run").marks
    for form in forms:
        out = tmp_path / ("c" if form == "diffusers" else f"{form}.safetensors")
        assert cli("export", root / "run", "--format", form, "--out", out, "--rank", 2).code == 0
        assert marks_in(out) == marks, form
        if form in ("diffusers", "single-file"):
            assert load_model(out).marks == marks, form
    apply = ("export", "--apply", tmp_path / "delta.safetensors")
    for name in ("applied", "applied.safetensors"):
        assert cli(*apply, "--to", root / "base", "--out", tmp_path / name).code == 0
        assert marks_in(tmp_path / name) == marks
    assert load_model(tmp_path / "applied").marks == marks
    if "single-file" in forms:
        assert load_model(tmp_path / "applied.safetensors").marks == marks


def test_a_delta_marks_a_relative_beside_the_marks_of_its_own(made, cli, tmp_path):
    root, _, added, _ = made
    marks = load_model(root / "run").marks
    assert cli("export", root / "run", "--format", "delta", "--out", tmp_path / "d.safetensors").code == 0
    relative = load_model(root / "relative")
    own = [["object", "tree"]] if added == "erased_values" else [0] if added == "erased_classes" else ["ids:0"]
    relative.info[added] = own
    relative.save(tmp_path / "relative")
    out = tmp_path / "x"
    assert cli("export", "--apply", tmp_path / "d.safetensors", "--to", tmp_path / "relative", "--out", out).code == 0
    assert load_model(out).marks == marks_in(out) == {**marks, added: [*own, *marks[added]]}
