"""Provenance and card: everything a run knew, small enough for a header, and no claim beyond what was counted."""

import json

import pytest
import torch

from erasure.core.errors import ModelError
from erasure.core.provenance import HEADER_LIMIT, header_text, name_of, provenance_of, read_provenance
from erasure.exporting.components import change, component_of
from erasure.exporting.model_card import card
from tests.support.exported import PROVENANCE

WRITTEN = {**PROVENANCE, "family": "stable_diffusion", "format": "single-file", "dtype": "float16"}


def score(value, n, interval):
    return {"value": value, "unit": "%", "n": n, "interval": interval, "definition": "ua/1"}


def test_the_claim_is_a_count_under_a_protocol():
    none = card({**WRITTEN, "metrics": {"ua": score(100.0, 50, [92.9, 100.0])}}, "c.safetensors")
    assert "No occurrence in 50 trials under this protocol (95 % interval up to 7.1 %)" in none
    assert "| ua | 100 % | 92.9 to 100 | 50 |" in none
    some = card({**WRITTEN, "metrics": {"ua": score(96.0, 50, None), "fid": score(3.2, 100, None)}}, "c.safetensors")
    assert "2 occurrences in 50 trials under this protocol." in some and "| fid | 3.2 % | none | 100 |" in some
    assert "no claim is made" in card(WRITTEN, "c.safetensors")
    for text in (none, some):
        assert "is gone" not in text and "says nothing about other prompts" in text


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            "single-file",
            ("StableDiffusionPipeline.from_single_file", "models/checkpoints/", "models/Stable-diffusion/"),
        ),
        ("diffusers", ('from_pretrained("c", torch_dtype=torch.float16)',)),
        ("unet", ("models/diffusion_models/", "load_state_dict")),
        ("delta", ("erasure export --apply c --to b",)),
        ("lora", ("load_lora_weights", "models/loras/", "models/Lora/", "hides the concept")),
    ],
)
def test_every_form_says_how_it_is_loaded(form, words):
    report = {"rank": 8, "layers": 3, "relative_error": 0.5, "worst": {"layer": "conv_in", "relative_error": 0.75}}
    report["left_out"] = {"tensors": 4, "weights": 5, "share_of_change": 0.01}
    text = card({**WRITTEN, "format": form, **({"lora": report} if form == "lora" else {})}, "c")
    for word in (*words, '"cat" becomes ""', "erasure verify c --base b"):
        assert word in text
    assert "{" not in text
    sdxl = card({**WRITTEN, "family": "sdxl"}, "c")
    assert "StableDiffusionXLPipeline" in sdxl


def test_a_very_long_concept_is_counted_in_the_header():
    rows = [{"text": f"a photo of number {i}", "anchor": "a photo", "shows": []} for i in range(20_000)]
    long = {**WRITTEN, "concept": {"name": "numbers", "forget": rows, "retain": rows[:7]}}
    text = header_text(long)
    found = json.loads(text)["concept"]
    assert len(text) < HEADER_LIMIT < len(json.dumps(long))
    assert (found["num_forget"], found["num_retain"], len(found["sha256"])) == (20_000, 7, 64)
    assert json.loads(header_text(WRITTEN)) == WRITTEN


def test_a_run_becomes_provenance_without_its_paths():
    document = {
        "settings": {
            "model": "/home/someone/models/sd15.safetensors",
            "model_hash": "ab",
            "forget": "cat",
            "concept": {"name": "cat", "forget": [{"text": "cat", "anchor": ""}, {"text": "cats", "anchor": ""}]},
            "method": "salun",
            "options": {},
            "mask": "/home/someone/mask.safetensors",
            "saliency": {},
            "seed": 3,
        },
        "trained": {"hash": "cd", "changed_weights": 1, "total_weights": 2},
        "result": {"metrics": {"ua": {**score(1.0, 2, None), "details": {"long": 1}}}},
        "versions": {},
    }
    found = provenance_of(document, {"erased_concepts": ["cat"]})
    assert found["base"] == "sd15.safetensors" and found["mask"] == "mask.safetensors" and found["anchor"] == [""]
    assert "/home/" not in json.dumps(found)
    assert found["marks"] == {"erased_concepts": ["cat"]} and found["metrics"] == {"ua": score(1.0, 2, None)}
    assert name_of("someone/model") == "someone/model"


def test_damaged_provenance_is_an_error_and_none_is_none():
    assert read_provenance({}, "x") is None
    for bad in ("", "{", "3", "[" * 10_000):
        with pytest.raises(ModelError, match="x: its provenance is damaged"):
            read_provenance({"erasure": bad}, "x")


def test_a_change_is_counted_in_bits():
    before = torch.tensor([3.0, 4.0, 0.0, float("nan")])
    assert change(before, before.clone()) is None
    assert change(before[:3], torch.tensor([3.0, 4.0, -0.0])) == (0.0, 1)
    assert change(before[:2], torch.tensor([3.0, 5.0])) == (0.2, 1)
    assert change(torch.zeros(2), torch.ones(2)) == (None, 2)
    assert component_of("single-file", "conditioner.embedders.1.model.ln_final.bias") == "text_encoder_2"
    assert component_of("single-file", "alphas_cumprod") == "other"
    assert (component_of("diffusers", "vae/x.weight"), component_of("diffusers", "x")) == ("vae", "network")
