"""audit_model from Python: names or objects give one result, and the record says what was changed of a protocol."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from erasure.auditing.api import audit_model
from erasure.auditing.protocols import Protocol, load_protocol
from erasure.auditing.request import AuditRequest
from erasure.auditing.result import AuditResult
from erasure.cli import main
from erasure.core.errors import DataError, ModelError, OptionError, RunError
from erasure.models import load_model
from erasure.prompts.prompt_set import load_prompt_set

DETECTOR = {"image_classifier": {"model": "digits-sd-classifier"}}
DRAW = {"num_inference_steps": 2, "guidance_scale": 4.0, "detectors": DETECTOR, "classes": ["three"]}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """An audit by names, of a model against itself."""
    out = tmp_path_factory.mktemp("named") / "audit"
    return audit_model("digits-sd", base="digits-sd", prompts="digits/three", limit=2, out=out, **DRAW)


def same(result):
    """What does not depend on where and when an audit ran."""
    values = result.to_dict()
    return {key: value for key, value in values.items() if key not in ("out", "seconds", "images_per_second")}


def test_loaded_models_and_prompts_give_the_result_of_their_names(named, tmp_path):
    model = load_model("digits-sd")
    info, weight = dict(model.info), next(model.network.parameters())
    prompts = load_prompt_set("digits/three", limit=2)
    found = audit_model(model, base=model, prompts=prompts, out=tmp_path / "out", **DRAW)
    assert same(found) == same(named) and found.rate.n == 2
    assert model.info == info and model.prompt_embeddings is None and next(model.network.parameters()) is weight
    assert (tmp_path / "out" / "model.jsonl").read_bytes() == _records(named)


def _records(result):
    return (Path(result.out) / "model.jsonl").read_bytes()


def test_the_result_is_what_audit_json_holds_and_the_command_prints(named, capsys):
    held = json.loads((Path(named.out) / "audit.json").read_text())
    assert held == named.to_dict() and AuditResult.read(Path(named.out)) == named
    flags = ["--num-inference-steps", "2", "--guidance-scale", "4", "--detector", "image_classifier", "--limit", "2"]
    flags += ["--image-classifier-model", "digits-sd-classifier", "--detect", "three", "--out", named.out, "--json"]
    code = main(["audit", "digits-sd", "--base", "digits-sd", "--prompts", "digits/three", *flags])
    assert code == {"none": 0, "inconclusive": 4}[named.verdict]
    assert json.loads(capsys.readouterr().out) == held


def test_a_list_of_prompts_is_a_prompt_set(tmp_path):
    given = {**DRAW, "detectors": DETECTOR, "threshold": 0.9}
    found = audit_model("digits-sd", prompts=["a three, chalk", "a seven, ink"], out=tmp_path / "out", **given)
    assert found.planned == 2 and found.prompts.name == "2 given prompts" and found.concept.threshold == 0.9
    for prompts in ([], ["a three", " "]):
        with pytest.raises(DataError, match="at least one prompt"):
            audit_model("digits-sd", prompts=prompts, out=tmp_path / "none", **given)
    with pytest.raises(OptionError, match="limit"):
        audit_model("digits-sd", prompts=["a three"], limit=1, out=tmp_path / "none", **given)


def test_a_model_of_another_family_is_refused_by_name_and_as_an_object(tmp_path):
    for model in ("digits-ddpm", load_model("digits-ddpm")):
        with pytest.raises(ModelError, match="expected a stablediffusion"):
            audit_model(model, prompts="digits/three", out=tmp_path / "out", **DRAW)
    with pytest.raises(OptionError, match="folder of the base's images"):
        audit_model(images=tmp_path, base=load_model("digits-ddpm"), out=tmp_path / "out")


def test_errors_name_the_arguments_of_python(tmp_path):
    for change, said in (({"classes": ["thre"]}, "`classes` 'thre'"), ({"detectors": {}}, "`detectors` names none")):
        with pytest.raises(OptionError, match=said):
            audit_model("digits-sd", prompts="digits/three", out=tmp_path / "out", **{**DRAW, **change})


def test_a_notebook_shows_the_verdict_and_no_markup_of_a_file(named):
    page = replace(named, claim="<b>3 of 9</b>", reasons=("n < 9",))._repr_html_()
    assert f"<b>{named.verdict}</b>: &lt;b&gt;3 of 9&lt;/b&gt;" in page and "<li>n &lt; 9</li>" in page


ESD = load_protocol("i2p-esd")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "i2p-esd"),
        ({"threshold": 0.6}, "i2p-esd"),  # its own
        ({"threshold": 0.5}, "i2p-esd, changed: threshold"),
        ({"classes": ("FEET_EXPOSED",), "threshold": 0.5}, "i2p-esd, changed: classes, threshold"),
        ({"detectors": {"nudenet": {}, "q16": {}}}, "i2p-esd, changed: detectors"),
        ({"protocol": ESD.changed(num_inference_steps=50, sampler="lms")}, "i2p-esd"),
        (
            {"protocol": ESD.changed(num_inference_steps=20, sampler="ddim"), "threshold": 0.5},
            "i2p-esd, changed: num_inference_steps, sampler, threshold",
        ),
        ({"protocol": load_protocol(None), "threshold": 0.5}, "default"),  # which leaves it open
        ({"protocol": load_protocol(None).changed(images_per_prompt=3)}, "default, changed: images_per_prompt"),
        ({"protocol": Protocol("mine", threshold=0.5), "threshold": 0.4}, "mine, changed: threshold"),
    ],
)
def test_the_record_names_what_was_changed_of_a_protocol(changes, name):
    assert AuditRequest(**{"protocol": ESD, **changes}).recorded_protocol.name == name


def test_damage_is_one_line_that_names_the_file(named, tmp_path):
    text = (Path(named.out) / "audit.json").read_text()
    (tmp_path / "audit.json").write_text(text.replace('"planned": 2', '"planned": "two"'))
    with pytest.raises(RunError, match=r"audit.json is damaged, .*: planned is 'two', expected a whole"):
        AuditResult.read(tmp_path)
