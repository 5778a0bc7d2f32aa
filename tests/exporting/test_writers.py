"""Exports of Stable Diffusion: the stock library reads each one, and what did not change keeps its bits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from erasure.core.errors import ModelError
from erasure.exporting import components, writers
from erasure.formats import single_file
from erasure.formats.safetensors_io import hash_tensors, read_tensors
from erasure.formats.safetensors_stream import read_header
from erasure.models import load_model, located
from tests.support.exported import PROVENANCE, erased, runs
from tests.support.tiny_pipelines import BY_KIND, assert_equal


@pytest.fixture(scope="module", params=BY_KIND)
def made(request):
    return runs(request.param)


@pytest.fixture(scope="module")
def sd1():
    return runs("sd1")


def raw(path, name):
    entries, _ = read_header(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return data[start + entries[name].begin : start + entries[name].end]


def drawn(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline("a cat", num_inference_steps=2, output_type="np", generator=generator, height=32, width=32).images


def parts(pipeline):
    return {n: part.state_dict() for n, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def test_a_single_file_is_loaded_as_the_folder_it_was_written_from(made):
    folder, file = load_model(made.tiny.folder), load_model(made.tiny.file)
    assert (file.family, file.hash, file.parts_hash) == (folder.family, folder.hash, folder.parts_hash)
    assert file.noise_scheduler.config.prediction_type == folder.noise_scheduler.config.prediction_type
    for model in (folder, file):
        model.set_prompts(["a cat", "a dog!"])
    assert file.prompt_embeddings.embeddings.equal(folder.prompt_embeddings.embeddings)
    assert file.info["dtypes"] == folder.info["dtypes"] and file.image_shape == folder.image_shape
    assert all(parameter.requires_grad for parameter in file.network.parameters())
    theirs = load_model(made.theirs)
    assert set(theirs.info["dtypes"].values()) == {"float16"}
    assert located(made.theirs) == str(made.theirs.resolve())


def test_what_was_recognised_is_told_once(made, tmp_path, caplog):
    path = shutil.copy(made.theirs, tmp_path / f"recognised-{made.tiny.kind}.safetensors")
    with caplog.at_level("INFO", logger="erasure"):
        for _ in range(2):
            load_model(path)
    title = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}[made.tiny.kind]
    predicts = "velocity" if made.tiny.kind == "sd2" else "epsilon"
    assert caplog.messages == [f"{path.name}: {title}, float16, {predicts}"]


def test_a_run_from_a_folder_becomes_a_file_that_draws_the_same(made, cli, tmp_path):
    out = tmp_path / "c.safetensors"
    assert cli("export", made.from_folder, "--format", "single-file", "--out", out).code == 0
    kind, config = type(made.tiny.pipeline), str(made.tiny.folder)
    stock = kind.from_pretrained(made.from_folder / "model", local_files_only=True)
    pipeline = kind.from_single_file(str(out), config=config, local_files_only=True)
    found, wanted = parts(pipeline), parts(stock)
    assert set(found) == set(wanted) > {"unet", "vae"}
    for name, state in wanted.items():
        assert_equal(found[name], state)
    assert (drawn(pipeline) == drawn(stock)).all()
    loaded = load_model(out)
    assert loaded.hash == load_model(made.from_folder).hash != load_model(made.tiny.folder).hash
    assert str(made.tiny.folder.parent) not in json.dumps(read_header(out)[1])


def test_a_users_file_comes_back_with_its_order_and_its_bytes(made, cli, tmp_path):
    out = tmp_path / "c.safetensors"
    result = cli("export", made.from_file, "--format", "safetensors", "--out", out, "--json").json
    before, carried = read_header(made.theirs)
    after, metadata = read_header(out)
    assert list(after) == [name for name in before if not name.startswith("model_ema.")]
    assert metadata["modelspec.title"] == "mine" == carried["modelspec.title"]
    changed = result["provenance"]["changed"]
    assert changed and all(name.startswith("model.diffusion_model.") for name in changed)
    for name in after:
        assert after[name][:2] == before[name][:2]
        assert (raw(out, name) != raw(made.theirs, name)) == (name in changed), name
    kind, config = type(made.tiny.pipeline), str(made.tiny.folder)
    pipeline = kind.from_single_file(str(out), config=config, local_files_only=True)
    stock = kind.from_pretrained(made.from_file / "model", local_files_only=True, torch_dtype=torch.float32)
    stock.unet.half().float()
    for name, state in parts(stock).items():
        assert_equal(parts(pipeline)[name], state)
    assert (drawn(pipeline) == drawn(stock)).all()


def test_a_pickled_checkpoint_is_loaded_and_becomes_a_safetensors_file(sd1, tmp_path, monkeypatch):
    torch.save({"global_step": 7, "state_dict": load_file(sd1.theirs)}, tmp_path / "theirs.ckpt")
    configs = {**sd1.tiny.configs, "model_index": {"requires_safety_checker": False}}
    monkeypatch.setattr(single_file, "shipped_configs", lambda *_, **__: configs)
    base, model = (load_model(tmp_path / "theirs.ckpt") for _ in range(2))
    assert base.hash == load_model(sd1.theirs).hash and base.info["dtypes"]["unet"] == "float16"
    model.network.conv_out.bias.data.add_(1)
    cleaned = writers.Cleaned(components.Original.of(base), model, PROVENANCE, tmp_path / "theirs.ckpt")
    found = writers.write("single-file", cleaned, tmp_path / "out.safetensors", writers.ExportOptions())
    assert list(found["changed"]) == ["model.diffusion_model.out.2.bias"]
    before, after = load_file(sd1.theirs), load_file(tmp_path / "out.safetensors")
    averaged = [name for name in before if name.startswith("model_ema.")]
    assert averaged and set(before) - set(after) == set(averaged)
    assert [name for name in after if not after[name].equal(before[name])] == ["model.diffusion_model.out.2.bias"]


def test_weights_outside_the_mask_keep_their_bits_in_half_precision(made, cli, tmp_path):
    """float16 to float32 and back is exact, so only weights that moved may differ from the user's file."""
    from erasure.saliency.mask import Mask

    assert cli("export", made.from_file, "--format", "unet", "--out", tmp_path / "u.safetensors").code == 0
    mask = Mask.load(made.from_file / "mask.safetensors")
    base = {name: t.half() for name, t in load_model(made.theirs).network.state_dict().items()}
    found = load_file(tmp_path / "u.safetensors")
    moved = 0
    for name, tensor in found.items():
        assert tensor.dtype == torch.float16
        held = ~mask.tensors[name]
        assert tensor.view(torch.int16)[held].equal(base[name].view(torch.int16)[held]), name
        moved += int((tensor != base[name]).sum())
    assert moved > 0.2 * mask.total


def test_the_folder_is_a_stock_pipeline_in_the_format_of_its_base(made, cli, tmp_path):
    flags, wanted = {"sd1": ((), torch.float16), "sd2": (("--dtype", "bfloat16"), torch.bfloat16)}.get(
        made.tiny.kind, (("--dtype", "float32"), torch.float32)
    )
    result = cli("export", made.from_file, "--format", "diffusers", *flags, "--out", tmp_path / "c", "--json").json
    pipeline = type(made.tiny.pipeline).from_pretrained(tmp_path / "c", local_files_only=True, torch_dtype=wanted)
    cleaned = load_model(made.from_file)
    assert_equal(pipeline.unet.state_dict(), cleaned.network.state_dict(), wanted)
    weights = load_file(tmp_path / "c" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {wanted}
    if made.tiny.kind != "sd2":
        assert load_model(tmp_path / "c").parts_hash == cleaned.parts_hash
    assert json.loads((tmp_path / "c" / "provenance.json").read_text()) == result["provenance"]
    card = (tmp_path / "c" / "README.md").read_text()
    assert "no claim is made" in card and '"a photo of a cat" becomes "a photo"' in card
    assert "is gone" not in card


def test_a_delta_gives_what_the_run_gives(made, cli, tmp_path):
    folder = made.tiny.kind == "sd2"
    run, model = (made.from_folder, made.tiny.folder) if folder else (made.from_file, made.theirs)
    assert cli("export", run, "--format", "delta", "--out", tmp_path / "d.safetensors").code == 0
    apply = ("export", "--apply", tmp_path / "d.safetensors", "--to", model)
    for name, form in [("a.safetensors", "single-file"), ("a", "diffusers")]:
        assert cli(*apply, "--out", tmp_path / name).code == 0
        assert cli("export", run, "--format", form, "--out", tmp_path / f"run-{name}").code == 0
    one, two = (read_tensors(tmp_path / name)[0] for name in ("a.safetensors", "run-a.safetensors"))
    assert hash_tensors(one) == hash_tensors(two)
    assert load_model(tmp_path / "a").hash == load_model(tmp_path / "run-a").hash
    assert cli(*apply, "--dtype", "float32", "--out", tmp_path / "whole").code == 0
    assert load_model(tmp_path / "whole").hash == load_model(run).hash
    assert load_model(tmp_path / "whole").info["erased_concepts"] == ["cat"]


def test_a_delta_is_added_to_another_fine_tune(sd1, cli, refused, tmp_path):
    cli("export", sd1.from_folder, "--format", "delta", "--out", tmp_path / "d.safetensors")
    base, cleaned = load_model(sd1.tiny.folder), load_model(sd1.from_folder)
    other = load_model(sd1.tiny.folder)
    for parameter in other.network.parameters():
        parameter.data.mul_(1.5)
    other.save(tmp_path / "other")
    apply = ("export", "--apply", tmp_path / "d.safetensors", "--to", tmp_path / "other")
    outcome = cli(*apply, "--out", tmp_path / "x.safetensors", "--json")
    assert "audit the result again" in outcome.err and outcome.json["provenance"]["base"] == "other"
    found, states = load_model(tmp_path / "x.safetensors"), [m.network.state_dict() for m in (base, cleaned, other)]
    for name, tensor in found.network.state_dict().items():
        before, after, own = (state[name] for state in states)
        assert tensor.allclose(own + (after - before), atol=1e-7), name
        assert tensor[after == before].equal(own[after == before]), name
    assert cli("verify", tmp_path / "x.safetensors", "--base", tmp_path / "other", "--json").json["verified"]


def test_a_cleaned_file_remembers_what_is_gone_when_it_is_erased_from_again(sd1, cli, tmp_path):
    cli("export", sd1.from_folder, "--format", "single-file", "--out", tmp_path / "c.safetensors")
    assert load_model(tmp_path / "c.safetensors").info["erased_concepts"] == ["cat"]
    run = erased(tmp_path / "c.safetensors", tmp_path / "again", tmp_path / "cache")
    result = cli("export", run, "--format", "single-file", "--out", tmp_path / "d.safetensors", "--json").json
    assert result["provenance"]["base"] == "c.safetensors"
    assert result["provenance"]["marks"]["erased_concepts"] == ["cat", "cat"]
    assert cli("verify", tmp_path / "d.safetensors", "--base", tmp_path / "c.safetensors", "--json").json["verified"]


def test_what_cannot_be_exported_is_one_line(sd1, refused, cli, ddpm_folder, tmp_path):
    run, out = sd1.from_folder, ("--out", tmp_path / "x.safetensors")
    assert "did you mean 'single-file'" in refused("export", run, "--format", "singlefile", *out)
    assert "unknown --dtype 'float8'" in refused("export", run, "--format", "unet", "--dtype", "float8", *out)
    assert "a delta, which is exact" in refused("export", run, "--format", "delta", "--dtype", "float16", *out)
    assert "--rank 0 is outside 1 to" in refused("export", run, "--format", "lora", "--rank", 0, *out)
    assert "--rank 9999 is outside 1 to" in refused("export", run, "--format", "lora", "--rank", 9999, *out)
    assert "unknown --lora-keys 'khoya'" in refused("export", run, "--format", "lora", "--lora-keys", "khoya", *out)
    assert "--base nowhere does not exist" in refused("export", run, "--format", "unet", "--base", "nowhere", *out)
    line = refused("export", run, "--format", "unet", "--base", sd1.from_folder / "model", *out)
    assert "is no longer the model that this run began from" in line
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    document = json.loads((run / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps({k: v for k, v in document.items() if k != "trained"}))
    assert "is not a finished erasure" in refused("export", unfinished, "--format", "unet", *out)
    assert not (tmp_path / "x.safetensors").exists()
    for wrong in (("--format", "unet"), ("--format", "single-file"), ("--format", "lora")):
        assert cli("export", run, *wrong, "--apply", "d", "--to", "m", *out).code == 2


def test_a_base_that_moved_is_said_where(sd1, cli, refused, tmp_path):
    moved = tmp_path / "run"
    moved.mkdir()
    document = json.loads((sd1.from_folder / "run.json").read_text())
    document["settings"]["model"] = "/nowhere/model"
    (moved / "run.json").write_text(json.dumps(document))
    (moved / "model").symlink_to(sd1.from_folder / "model")
    form = ("--format", "unet", "--out", tmp_path / "u.safetensors")
    line = refused("export", moved, *form)
    assert "/nowhere/model does not exist" in line and "--base" in line
    assert cli("export", moved, *form, "--base", sd1.tiny.folder).code == 0


def test_a_full_disk_leaves_what_was_there(sd1, cli, refused, tmp_path, monkeypatch):
    out = tmp_path / "c.safetensors"
    assert cli("export", sd1.from_folder, "--format", "single-file", "--out", out).code == 0
    before = out.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("erasure.formats.safetensors_stream._write", full)
    line = refused("export", sd1.from_folder, "--format", "single-file", "--dtype", "float16", "--out", out)
    assert "No space left on device" in line and out.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_number_too_large_for_half_precision_is_refused(sd1, refused, tmp_path):
    base, model = (load_model(sd1.tiny.folder) for _ in range(2))
    next(model.network.parameters()).data.view(-1)[0] = 1e6
    cleaned = writers.Cleaned(components.Original.of(base), model, PROVENANCE)
    for form in ("diffusers", "single-file", "unet"):
        with pytest.raises(ModelError, match="numbers too large for float16"):
            writers.write(form, cleaned, tmp_path / form, writers.ExportOptions(torch.float16))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_model_are_named(sd1, cli, refused, tmp_path):
    for form, message in [("delta", "is a delta, not a model"), ("lora", "is a LoRA"), ("unet", "one network")]:
        out = tmp_path / f"{form}.safetensors"
        assert cli("export", sd1.from_folder, "--format", form, "--out", out).code == 0
        assert message in refused("mask", "--model", out, "--forget", "cat", "--out", tmp_path / "m")
    mask = sd1.from_folder / "mask.safetensors"
    assert "is a mask, not a model" in refused("mask", "--model", mask, "--forget", "cat", "--out", tmp_path / "m")
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file: expected a model folder"):
        load_model(tmp_path / "x.bin")
