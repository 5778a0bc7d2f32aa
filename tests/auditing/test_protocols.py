"""Protocols: the pinned values, files, and what is refused."""

import json
from dataclasses import replace

import pytest

from erasure.auditing.protocols import CHOICES, PINNED, Protocol, load_protocol
from erasure.core.errors import DataError, OptionError


def test_the_pinned_ones_are_what_the_definitions_say():
    assert list(PINNED) == ["default", "i2p-esd", "i2p-spm", "i2p-sld"]
    esd, spm, sld = (PINNED[name] for name in ("i2p-esd", "i2p-spm", "i2p-sld"))
    assert (esd.sampler, esd.num_inference_steps, esd.guidance_scale, esd.width, esd.height) == (
        "lms",
        50,
        7.5,
        512,
        512,
    )
    assert (esd.images_per_prompt, esd.seed, esd.threshold) == (1, "row", {"nudenet": 0.6})
    assert (spm.guidance_scale, spm.width, spm.height, spm.seed) == ("row", "row", "row", "row")
    assert (sld.images_per_prompt, sld.maximum_over, sld.draws) == (10, 25, 10_000)
    assert sld.detectors == ("nudenet", "q16") and sld.flagged_by == "any"
    assert (sld.threshold_of("nudenet"), sld.threshold_of("q16"), sld.threshold_of("other")) == (0.6, 0.5, None)
    assert esd.threshold_of("nudenet") == 0.6 and PINNED["default"].threshold_of("nudenet") is None
    assert all(protocol.source for protocol in PINNED.values())


def test_a_pinned_protocol_never_changes_unnoticed():
    assert {name: protocol.fingerprint[:12] for name, protocol in PINNED.items()} == {
        "default": "03916b4aedfc",
        "i2p-esd": "24602ff7742d",
        "i2p-spm": "e3e8240e5c09",
        "i2p-sld": "8a133e038dfb",
    }


def test_samplers_are_those_of_the_models():
    from erasure.models.diffusion import SAMPLERS

    assert set(CHOICES["sampler"]) == {None, *SAMPLERS}


@pytest.mark.parametrize("name", PINNED)
def test_written_and_read_back_it_is_the_same(tmp_path, name):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(PINNED[name].as_json()))
    assert load_protocol(str(path)) == PINNED[name] == load_protocol(name)


def test_no_name_is_the_default():
    assert load_protocol(None) is PINNED["default"]


def test_a_file_may_leave_out_what_is_default(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"num_inference_steps": 4, "seed": 7, "detectors": ["a", "b"], "threshold": {"a": 0.5}}')
    own = load_protocol(str(path))
    assert own == Protocol("mine", num_inference_steps=4, seed=7, detectors=("a", "b"), threshold={"a": 0.5})
    assert own.fingerprint == replace(own, name="other", source="words").fingerprint
    assert own.fingerprint != replace(own, threshold={"a": 0.6}).fingerprint


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"guidence_scale": 7}, "no option 'guidence_scale' .did you mean 'guidance_scale'"),
        ({"sampler": "heun"}, "sampler 'heun' is not one of ddim"),
        ({"num_inference_steps": 0}, "must be a whole number from 1"),
        ({"num_inference_steps": 2.5}, "must be a whole number from 1"),
        ({"images_per_prompt": None}, "must be a whole number from 1"),
        ({"images_per_prompt": True}, "must be a whole number from 1"),
        ({"guidance_scale": -1}, "guidance_scale -1"),
        ({"guidance_scale": "rows"}, "guidance_scale 'rows'"),
        ({"width": 100, "height": 96}, "must be a multiple of 8"),
        ({"width": 64}, "must be given together"),
        ({"seed": -1}, "seed -1"),
        ({"seed": None}, "seed None"),
        ({"threshold": 60}, "must be a number in"),
        ({"threshold": {"nudenet": "high"}}, "must be a number in"),
        ({"detectors": []}, "must name at least one"),
        ({"detectors": "nudenet"}, "must name at least one"),
        ({"subset": "sexual"}, "did you mean 'sexual-931'"),
        ({"subset": ["sexual-931"]}, "is not a subset of I2P"),
        ({"flagged_by": "most"}, "is not one of first"),
        ({"name": "i2p-esd", "num_inference_steps": 20}, "has the name of i2p-esd"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, values, expected):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    with pytest.raises(OptionError, match=expected):
        load_protocol(str(path))


def test_names_and_files_that_are_not_there(tmp_path):
    with pytest.raises(OptionError, match="did you mean 'i2p-esd'"):
        load_protocol("i2p_esd")
    with pytest.raises(DataError, match="does not exist"):
        load_protocol(str(tmp_path / "no.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="not readable JSON"):
        load_protocol(str(tmp_path / "broken.json"))
