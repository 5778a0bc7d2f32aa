"""Verify: every form passes on what was written, and fails on one byte that was not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from erasure.erasing.targets import TargetSpec
from erasure.formats.safetensors_io import read_tensors
from erasure.formats.safetensors_stream import read_header, write_ordered
from erasure.models import load_model
from tests.support.exported import runs

FILES = ("single-file", "unet", "delta", "lora")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def made(request):
    return runs(request.param)


@pytest.fixture(scope="module")
def sd1():
    return runs("sd1")


def flipped(path, name):
    """One bit of a tensor's last byte, the other way round."""
    entry = read_header(path)[0][name]
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + entry.end - 1] ^= 1
    path.write_bytes(data)


def untouched(path):
    """A tensor of an export that the erasure did not change."""
    changed = json.loads(read_header(path)[1]["erasure"])["changed"]
    return next(name for name, entry in read_header(path)[0].items() if name not in changed and entry.end > entry.begin)


@pytest.mark.parametrize("form", FILES)
def test_every_form_is_proven_against_its_base(made, cli, tmp_path, form):
    for run, base in ((made.from_folder, made.tiny.folder), (made.from_file, made.theirs)):
        out = tmp_path / f"{run.name}.safetensors"
        written = cli("export", run, "--format", form, "--out", out, "--json").json
        result = cli("verify", out, "--base", base, "--json").json
        assert result["verified"] is True and result["format"] == form and len(result["checked"]) == 2
        assert (
            result["provenance"] == written["provenance"] == json.loads(out.with_name(f"{out.name}.json").read_text())
        )
        assert cli("verify", out, "--json").json["checked"] == result["checked"][1:]


@pytest.mark.parametrize("form", FILES)
def test_one_bit_elsewhere_is_found(sd1, cli, refused, tmp_path, form):
    out = tmp_path / "c.safetensors"
    assert cli("export", sd1.from_file, "--format", form, "--out", out).code == 0
    changed = json.loads(read_header(out)[1]["erasure"])["changed"]
    name = next(iter(read_header(out)[0])) if form in ("delta", "lora", "unet") else untouched(out)
    flipped(out, name)
    assert "SHA-256 differs" in refused("verify", out)
    line = refused("verify", out, "--base", sd1.theirs)
    if form == "single-file":
        assert f"tensor {name!r} differs from {sd1.theirs} in 1 weights, and no change of it is recorded" in line
    elif form == "unet":
        assert name in changed and f"tensor {name!r} is not as recorded" in line


def test_a_changed_weight_too_much_is_found_in_a_changed_tensor(sd1, cli, refused, tmp_path):
    out = tmp_path / "c.safetensors"
    assert cli("export", sd1.from_folder, "--format", "single-file", "--out", out).code == 0
    tensors, header = read_tensors(out)
    name = next(iter(json.loads(header["erasure"])["changed"]))
    base = load_model(sd1.tiny.file).network.state_dict()
    assert name.startswith("model.diffusion_model.") and base
    tensors[name] = tensors[name] + 1
    write_ordered(out, tensors, header)
    assert f"tensor {name!r} is not as recorded" in refused("verify", out, "--base", sd1.tiny.folder)


def test_a_folder_is_proven_and_a_bit_in_its_vae_is_found(made, cli, refused, tmp_path):
    for run, base in ((made.from_folder, made.tiny.folder), (made.from_file, made.theirs)):
        out = tmp_path / run.name
        assert cli("export", run, "--format", "diffusers", "--out", out).code == 0
        result = cli("verify", out, "--base", base, "--json").json
        assert result["verified"] is True and result["format"] == "diffusers"
        assert set(result["provenance"]["sha256"]) >= {"unchanged", "unet", "vae", "text_encoder"}
    flipped(out / "vae" / "diffusion_pytorch_model.safetensors", "encoder.conv_in.weight")
    assert "SHA-256 differs" in refused("verify", out)
    assert "tensor 'vae/encoder.conv_in.weight' differs from" in refused("verify", out, "--base", base)


def test_lost_and_added_tensors_are_named(sd1, cli, refused, tmp_path):
    out = tmp_path / "c.safetensors"
    assert cli("export", sd1.from_folder, "--format", "single-file", "--out", out).code == 0
    tensors, header = read_tensors(out)
    name = untouched(out)
    verify = ("verify", out, "--base", sd1.tiny.folder)
    write_ordered(out, {key: t for key, t in tensors.items() if key != name}, header)
    assert f"tensor {name!r} of the base is missing" in refused(*verify)
    write_ordered(out, {**tensors, "more": torch.ones(1)}, header)
    assert "tensor 'more' is not in the base" in refused(*verify)
    write_ordered(out, {**tensors, name: torch.ones(7)}, header)
    assert f"tensor {name!r} has another shape" in refused(*verify)


def test_a_file_without_provenance_is_compared_and_never_called_verified(sd1, cli, refused, tmp_path):
    assert "carries no provenance" in refused("verify", sd1.tiny.file)
    same = cli("verify", sd1.tiny.file, "--base", sd1.tiny.folder, "--json").json
    assert same["verified"] is False and same["differences"] == {}
    tensors = read_tensors(sd1.tiny.file)[0]
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    tensors["more"] = torch.ones(1)
    save_file(tensors, tmp_path / "x.safetensors")
    outcome = cli("verify", tmp_path / "x.safetensors", "--base", sd1.tiny.file)
    assert outcome.code == 0 and f"differs: {name}" in outcome.out and "only here: more" in outcome.out
    assert "carries no provenance" in outcome.out
    run = cli("verify", sd1.from_folder, "--base", sd1.tiny.folder, "--json").json
    assert run["differences"] and all(key.startswith("unet/") for key in run["differences"])


def test_another_base_and_damage_are_one_line(sd1, cli, refused, tmp_path):
    out = tmp_path / "c.safetensors"
    assert cli("export", sd1.from_folder, "--format", "unet", "--out", out).code == 0
    assert "is not the model that" in refused("verify", out, "--base", sd1.from_folder)
    assert "--base nowhere does not exist" in refused("verify", out, "--base", "nowhere")
    tensors, header = read_tensors(out)
    for bad in ("{", "[]", "{}", '{"format": "unet", "changed": {}, "sha256": 3}'):
        save_file(tensors, out, {**header, "erasure": bad})
        assert "provenance is damaged" in refused("verify", out), bad
    assert "No such file" in refused("verify", tmp_path / "none.safetensors")
    (tmp_path / "t.txt").write_text("x")
    assert "is not a readable safetensors file" in refused("verify", tmp_path / "t.txt")


def test_a_mask_is_checked_against_its_model(sd1, cli, refused, tmp_path):
    mask = sd1.from_folder / "mask.safetensors"
    assert cli("verify", mask, "--json").json["verified"] is False
    result = cli("verify", mask, "--base", sd1.tiny.folder, "--json").json
    assert result["verified"] is True and "density 0.5" in result["checked"][0]
    assert "other weights" in refused("verify", mask, "--base", sd1.from_folder)


def test_small_models_are_verified_too(ddpm_folder, cli, refused, tmp_path):
    from erasure.erasing.erase import EraseRequest, erase

    run = tmp_path / "run"
    erase(
        EraseRequest(str(ddpm_folder), TargetSpec(forget="3"), options={"steps": 2, "batch_size": 8}, evaluate=False),
        run,
    )
    for form in ("diffusers", "safetensors", "delta"):
        out = tmp_path / ("c" if form == "diffusers" else f"{form}.safetensors")
        assert cli("export", run, "--format", form, "--out", out).code == 0
        assert cli("verify", out, "--base", ddpm_folder, "--json").json["verified"] is True
        shown = cli("verify", out).out
        assert "forgotten: 3" in shown and "checked: " in shown
    for form in ("single-file", "unet", "lora"):
        assert f"--format {form} is for Stable Diffusion" in refused(
            "export", run, "--format", form, "--out", tmp_path / "x.safetensors"
        )
    line = refused("export", run, "--format", "safetensors", "--dtype", "float16", "--out", tmp_path / "x.safetensors")
    assert "--dtype has no meaning for a ddpm model" in line
    shutil.rmtree(tmp_path / "c" / "unet")
    assert "holds no safetensors" in refused("verify", tmp_path / "c")
