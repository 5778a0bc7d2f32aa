import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.core.errors import ModelError
from erasure.erasing.targets import TargetSpec
from erasure.formats.delta import applied, difference
from erasure.formats.safetensors_io import hash_tensors, read_tensors
from erasure.models import load_model


@pytest.fixture(scope="module")
def run(ddpm_folder, tmp_path_factory):
    from erasure.erasing.erase import EraseRequest, erase

    folder = tmp_path_factory.mktemp("export") / "run"
    erase(
        EraseRequest(str(ddpm_folder), TargetSpec(forget="3"), options={"steps": 2, "batch_size": 8}, evaluate=False),
        folder,
    )
    return folder


def test_one_file_holds_the_weights_and_where_they_came_from(run, cli, tmp_path):
    result = cli("export", run, "--format", "safetensors", "--out", tmp_path / "c.safetensors", "--json").json
    tensors, header = read_tensors(tmp_path / "c.safetensors")
    assert hash_tensors(tensors) == load_model(run).hash == result["provenance"]["hash"]
    for provenance in (json.loads(header["erasure"]), json.loads((tmp_path / "c.safetensors.json").read_text())):
        assert provenance == result["provenance"]
        for key in ("base_hash", "method", "options", "seed", "tool", "metrics", "mask_density", "versions"):
            assert key in provenance


def test_the_folder_is_a_stock_pipeline(run, cli, tmp_path):
    from diffusers import DDPMPipeline

    cli("export", run, "--format", "diffusers", "--out", tmp_path / "c")
    assert hash_tensors(DDPMPipeline.from_pretrained(tmp_path / "c").unet.state_dict()) == load_model(run).hash
    assert json.loads((tmp_path / "c" / "provenance.json").read_text())["method"] == "salun"


@pytest.mark.parametrize("target", ["folder", "one.safetensors"])
def test_a_delta_is_smaller_and_gives_the_cleaned_weights_bit_for_bit(run, cli, ddpm_folder, tmp_path, target):
    delta = cli("export", run, "--format", "delta", "--out", tmp_path / "d.safetensors", "--json").json
    whole = cli("export", run, "--format", "safetensors", "--out", tmp_path / "w.safetensors", "--json").json
    assert delta["bytes"] < 0.7 * whole["bytes"]
    cli("export", "--apply", tmp_path / "d.safetensors", "--to", ddpm_folder, "--out", tmp_path / target, "--json")
    if target == "folder":
        assert load_model(tmp_path / target).hash == load_model(run).hash
    else:
        assert hash_tensors(read_tensors(tmp_path / target)[0]) == load_model(run).hash


def test_a_delta_refuses_another_architecture_and_damage(run, refused, cli, classifier_folder, tmp_path):
    cli("export", run, "--format", "delta", "--out", tmp_path / "d.safetensors")
    apply = ("export", "--apply", tmp_path / "d.safetensors", "--out", tmp_path / "x")
    assert "is not the model that" in refused(*apply, "--to", classifier_folder)
    raw = (tmp_path / "d.safetensors").read_bytes()
    (tmp_path / "d.safetensors").write_bytes(raw[:-8] + b"\x00\x00\x80\x3f" * 2)
    assert "is damaged" in refused(
        "export", "--apply", tmp_path / "d.safetensors", "--to", _base(run), "--out", tmp_path / "x"
    )
    cli("export", run, "--format", "safetensors", "--out", tmp_path / "w.safetensors")
    assert "is not a delta" in refused(
        "export", "--apply", tmp_path / "w.safetensors", "--to", _base(run), "--out", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


def test_a_delta_adds_the_same_change_to_another_fine_tune(run, cli, ddpm, tmp_path):
    cli("export", run, "--format", "delta", "--out", tmp_path / "d.safetensors")
    before = {name: tensor.clone() for name, tensor in ddpm.network.state_dict().items()}
    for parameter in ddpm.network.parameters():
        parameter.data.add_(1.0)
    ddpm.save(tmp_path / "other")
    to = ("--to", tmp_path / "other", "--out", tmp_path / "x")
    outcome = cli("export", "--apply", tmp_path / "d.safetensors", *to, "--json")
    assert "applied to another model than it was made for: audit the result again" in outcome.err
    assert outcome.json["provenance"]["metrics"] == {}
    cleaned, found = load_model(run).network.state_dict(), load_model(tmp_path / "x").network.state_dict()
    for name, tensor in found.items():
        assert tensor.allclose(before[name] + 1.0 + (cleaned[name] - before[name]), atol=1e-6), name
    assert hash_tensors(found) == outcome.json["provenance"]["hash"]


def _base(run):
    return json.loads((run / "run.json").read_text())["settings"]["model"]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float16, torch.float64]),
    st.integers(0, 9),
)
def test_applying_a_difference_gives_every_bit(size, share, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    base = {"w": torch.randn(size, generator=generator).to(dtype), "same": torch.ones(3), "n": torch.tensor(4)}
    changed = torch.rand(size, generator=generator) < share
    cleaned = {**base, "w": torch.where(changed, -base["w"], base["w"]), "n": torch.tensor(5)}
    cleaned["w"][0] = -0.0
    delta = difference(base, cleaned)
    assert not any(key.startswith("same") for key in delta)
    assert hash_tensors(applied(base, delta)) == hash_tensors(cleaned)
    # Whole tensors at most, and the one -0.0 that no sum gives.
    wrong = 4 + cleaned["w"].element_size()
    assert sum(t.numel() * t.element_size() for t in delta.values()) <= wrong + sum(
        t.numel() * t.element_size() for t in cleaned.values()
    )


def test_the_smallest_of_three_codings_is_taken():
    base = {"w": torch.zeros(1000)}
    for count, coding in [(3, {"w::change", "w::index"}), (500, {"w::change", "w::bits"}), (1000, {"w::change"})]:
        cleaned = {"w": torch.zeros(1000)}
        cleaned["w"][:count] = 1
        assert set(difference(base, cleaned)) == coding
    with pytest.raises(ModelError, match="which the model does not have"):
        applied({}, {"w::change": torch.ones(1)})


def test_a_sum_that_rounds_is_put_right_on_the_very_base_alone():
    base, cleaned = {"w": torch.tensor([1.0, 1e-8, 2.0])}, {"w": torch.tensor([1e-8, 1.0, 2.0])}
    delta = difference(base, cleaned)
    assert delta["w::fixed"].tolist() == [0] and delta["w::exact"].tolist() == [torch.tensor(1e-8).item()]
    assert applied(base, delta)["w"].equal(cleaned["w"])
    assert applied({"w": torch.ones(3)}, delta, exact=False)["w"].tolist() == pytest.approx([0, 2, 1])


def test_a_delta_of_whole_weights_still_fits_its_own_base_and_says_so_of_others():
    delta = {"w::values": torch.tensor([5.0]), "w::index": torch.tensor([2], dtype=torch.int32)}
    assert applied({"w": torch.zeros(4)}, delta)["w"].tolist() == [0, 0, 5, 0]
    for wrong in ({"w::index": torch.tensor([9])}, {"w::values": torch.ones(2)}, {"w::values": torch.ones(1).half()}):
        with pytest.raises(ModelError, match="does not fit: the file is damaged"):
            applied({"w": torch.zeros(4)}, {**delta, **wrong})


def test_nothing_foreign_is_replaced(run, refused, cli, tmp_path):
    (tmp_path / "mine.safetensors").write_text("mine")
    assert "exists and is something else" in refused(
        "export", run, "--format", "safetensors", "--out", tmp_path / "mine.safetensors"
    )
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("mine")
    assert "exists and is something else" in refused("export", run, "--format", "diffusers", "--out", tmp_path / "f")
    for _ in range(2):  # the same command again
        assert cli("export", run, "--format", "delta", "--out", tmp_path / "d.safetensors").code == 0
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_what_cannot_be_exported(run, refused, cli, ddpm_folder, tmp_path):
    assert "did you mean 'delta'" in refused("export", run, "--format", "dleta", "--out", tmp_path / "x")
    assert "does not exist" in refused("export", ddpm_folder, "--format", "delta", "--out", tmp_path / "x")
    assert cli("export", run, "--out", tmp_path / "x").code == 2
    assert cli("export", "--apply", "d", "--out", tmp_path / "x").code == 2


def test_python_takes_objects_and_gives_what_json_prints(run, cli, ddpm_folder, tmp_path):
    from types import SimpleNamespace

    from erasure.core.errors import OptionError
    from erasure.exporting.export import apply_delta, export
    from erasure.exporting.verify import verify

    base = load_model(ddpm_folder)
    before = base.hash
    made = export(SimpleNamespace(folder=run), "delta", tmp_path / "d.safetensors", base=base)
    assert made.to_dict() == cli("export", run, "--format", "delta", "--out", tmp_path / "d.safetensors", "--json").json
    assert made.bytes == (tmp_path / "d.safetensors").stat().st_size and made.provenance["method"] == "salun"
    proof = verify(made.out, base)
    assert proof.verified and proof.to_dict() == verify(made.out, ddpm_folder).to_dict()
    applied_to = apply_delta(made.out, base, tmp_path / "c")
    assert load_model(applied_to.out).hash == load_model(run).hash != base.hash == before
    with pytest.raises(OptionError, match="not a int"):
        export(3, "delta", tmp_path / "x")


def test_a_model_in_memory_that_changed_is_no_base(run, ddpm_folder, tmp_path):
    from erasure.exporting.export import export

    base = load_model(ddpm_folder)
    next(base.network.parameters()).data.add_(1)
    with pytest.raises(ModelError, match="is no longer the model that this run began from"):
        export(str(run), "safetensors", tmp_path / "c.safetensors", base=base)
