"""An export holds one model: the original stays in its files, and the disk is asked before anything is computed."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure.exporting import components
from erasure.formats.safetensors_stream import read_header
from erasure.models import load_model
from tests.support.exported import runs
from tests.support.tiny_pipelines import assert_equal


@pytest.fixture(scope="module")
def sd1():
    return runs("sd1")


FORMS = {"diffusers": (), "single-file": (), "unet": ("--dtype", "float16"), "delta": (), "lora": ("--rank", 4)}


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_without_room_is_said_before_anything_is_computed(sd1, cli, refused, tmp_path, monkeypatch, form):
    out = tmp_path / ("c" if form == "diffusers" else "c.safetensors")
    export = ("export", sd1.from_folder, "--format", form, *FORMS[form], "--out", out)
    cli(*export)
    files = [out] if out.is_file() else list(out.rglob("*.safetensors"))
    written = sum(entry.end - entry.begin for path in files for entry in read_header(path)[0].values())

    def free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count))

    free(int(1.6 * written))
    assert cli(*export).code == 0  # it fits, and may be written over itself
    before = {path: path.read_bytes() for path in files}
    monkeypatch.setattr(components, "hash_tensors", None)
    monkeypatch.setattr(components, "change", None)
    free(int(0.9 * written))
    line = refused(*export)
    assert f"--format {form} takes up to" in line and "GB are free: give --out on another disk" in line
    assert all(path.read_bytes() == data for path, data in before.items())
    if form == "delta":
        apply = ("export", "--apply", out, "--to", sd1.tiny.folder, "--out", tmp_path / "x")
        assert "--format diffusers takes up to" in refused(*apply)


def as_float32(states):
    return {(part, name): tensor.float() for part, state in states.items() for name, tensor in state.items()}


def older_names(path):
    """An autoencoder's file with the names of attention that the first published pipelines have."""
    tensors = load_file(path)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): t for name, t in tensors.items()}
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "variant"), [("sd2", "plain"), ("sdxl", "half"), ("sdxl", "shards"), ("sd1", "older"), ("sdxl", "file")]
)
def test_the_original_is_read_from_its_files_as_it_is_loaded(tmp_path, kind, variant):
    made, folder = runs(kind), tmp_path / "folder"
    if variant == "half":
        copy.deepcopy(made.tiny.pipeline).to(torch.float16).save_pretrained(folder, variant="fp16")
    else:
        made.tiny.pipeline.save_pretrained(folder, max_shard_size="400KB" if variant == "shards" else "1GB")
    if variant == "older":
        older_names(folder / "vae" / "diffusion_pytorch_model.safetensors")
    place = made.theirs if variant == "file" else folder
    like = load_model(made.from_folder)
    found = components.original(str(place), like)
    whole = components.Original.of(load_model(place))
    assert_equal(as_float32(found.states), as_float32(whole.states))
    assert found.dtypes == whole.dtypes and list(found.states) == list(whole.states)
    assert found.hash == load_model(place).hash != like.hash
    mapped = sum(isinstance(state, components.LazyTensors) for state in found.states.values())
    assert mapped == {"older": len(found.states) - 1, "file": 0}.get(variant, len(found.states))


def test_files_that_hold_another_network_are_left_to_the_library(sd1, tmp_path):
    like = load_model(sd1.from_folder)
    folder = shutil.copytree(sd1.tiny.folder, tmp_path / "folder")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("model.safetensors"))  # which of the two is meant?
    assert components.original(str(folder), like) is None
    save_file({"conv_in.weight": torch.ones(3)}, weights)
    weights.with_name("model.safetensors").unlink()
    assert components.original(str(folder), like) is None
    assert components.original("nobody/nothing-here", like) is None


def test_an_export_loads_one_model(sd1, cli, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("erasure.exporting.export.load_model", lambda given: loaded.append(given) or load_model(given))
    for run in (sd1.from_folder, sd1.from_file):
        assert cli("export", run, "--format", "unet", "--out", tmp_path / f"{run.name}.safetensors").code == 0
    assert loaded == [sd1.from_folder, sd1.from_file]


def test_the_original_under_a_hub_id_is_read_where_the_hub_keeps_it(sd1, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: str(sd1.tiny.folder))
    found = components.original("somebody/model", load_model(sd1.from_folder))
    assert found.hash == load_model(sd1.tiny.folder).hash
