"""Safetensors at byte level: order, exactness, alignment, and every way a header can lie."""

import json
import pickle  # noqa: TID251 (to make the file that must be refused)
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure.core.errors import ModelError, OutputError
from erasure.formats import single_file
from erasure.formats.safetensors_io import LIGHTNING, read_pickled_state
from erasure.formats.safetensors_stream import is_pickle, read_header, write_ordered, write_patched
from tests.support.tiny_pipelines import assert_equal, written


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return written("sd1", tmp_path_factory.mktemp("sd1"))


@pytest.fixture
def theirs(sd1, tmp_path):
    """A user's file: another order, half precision, other tensors among the model's, metadata of a trainer."""
    tensors = load_file(sd1.file)
    names = sorted(tensors, reverse=True)
    own = {name: tensors[name].half() for name in names}
    own["alphas_cumprod"] = torch.linspace(1, 0, 7, dtype=torch.float64)
    own["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    own["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(3, dtype=torch.float16)
    metadata = {"modelspec.title": "mine", "modelspec.hash_sha256": "0x12", **sd1.embedded}
    write_ordered(tmp_path / "theirs.safetensors", own, metadata)
    return tmp_path / "theirs.safetensors"


def raw(path, name):
    entries, _ = read_header(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return data[start + entries[name].begin : start + entries[name].end]


def test_a_patched_copy_differs_where_it_was_changed_and_nowhere_else(theirs, tmp_path):
    before, carried = read_header(theirs)
    name = next(name for name in before if name.endswith("attn2.to_k.weight"))
    changed = {name: torch.randn(before[name].shape, generator=torch.Generator().manual_seed(1))}
    write_patched(theirs, tmp_path / "out.safetensors", changed, {"erasure": "{}"})
    after, metadata = read_header(tmp_path / "out.safetensors")
    assert list(after) == list(before) and after == before
    assert metadata == {**{k: v for k, v in carried.items() if k != "modelspec.hash_sha256"}, "erasure": "{}"}
    for other in before:
        if other != name:
            assert raw(tmp_path / "out.safetensors", other) == raw(theirs, other), other
    loaded = load_file(tmp_path / "out.safetensors")
    assert loaded[name].dtype == torch.float16 and torch.equal(loaded[name], changed[name].half())
    write_patched(theirs, theirs, changed, {})  # onto itself
    assert raw(theirs, name) == raw(tmp_path / "out.safetensors", name)


def test_a_patched_copy_in_another_format_keeps_order_and_integers(theirs, tmp_path):
    write_patched(theirs, tmp_path / "out.safetensors", {}, {}, torch.float32)
    before, after = read_header(theirs)[0], read_header(tmp_path / "out.safetensors")[0]
    assert list(before) == list(after)
    old, new = load_file(theirs), load_file(tmp_path / "out.safetensors")
    for name, tensor in old.items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor
        assert new[name].dtype == wanted.dtype and torch.equal(new[name], wanted), name


def test_a_change_that_does_not_fit_the_template_is_refused(sd1, theirs, tmp_path):
    for changed, message in [
        ({"nothing": torch.ones(1)}, "no tensor 'nothing'"),
        ({next(iter(read_header(theirs)[0])): torch.ones(1)}, r"the changed one \(1,\)"),
    ]:
        with pytest.raises(ModelError, match=message):
            write_patched(theirs, tmp_path / "out.safetensors", changed, {})
    with pytest.raises(ModelError, match="no tensor 'nothing'"):
        single_file.patch(theirs, tmp_path / "out.safetensors", {"unet": {"nothing": torch.ones(1)}}, {})
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        write_patched(theirs, blocked / "out.safetensors", {}, {})
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("nested", [True, False])
def test_a_pickled_checkpoint_is_read_and_patched_like_any_other(sd1, tmp_path, nested, monkeypatch):
    tensors = load_file(sd1.file)
    state = {"global_step": 7, "state_dict": tensors} if nested else {**tensors, "global_step": 7}
    torch.save(state, tmp_path / "theirs.ckpt")
    monkeypatch.setattr(single_file, "shipped_configs", lambda *_, **__: sd1.configs)
    file = single_file.read(tmp_path / "theirs.ckpt")
    for name, wanted in sd1.states.items():
        assert_equal(file.components[name], wanted)
    assert not file.averaged and file.metadata == {}
    name = "model.diffusion_model.out.2.bias"
    write_patched(tmp_path / "theirs.ckpt", tmp_path / "out.safetensors", {name: torch.ones(4)}, {"a": "b"})
    assert list(read_header(tmp_path / "out.safetensors")[0]) == list(tensors)
    assert_equal(load_file(tmp_path / "out.safetensors"), {**tensors, name: torch.ones(4)})


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, protocol):
    poisoned, ran = tmp_path / "model.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {"w": torch.ones(1)}, "extra": Trap(ran)}, poisoned, pickle_protocol=protocol)
    with pytest.raises(ModelError, match="other than tensors and was not loaded"):
        single_file.read(poisoned)
    poisoned.write_bytes(pickle.dumps(Trap(ran), protocol=protocol))
    with pytest.raises(ModelError):
        single_file.read(poisoned)
    assert not ran.exists()
    pickle.loads(poisoned.read_bytes())
    assert ran.exists(), "the trap does not work, so the test proves nothing"


def test_the_training_record_of_published_checkpoints_is_no_obstacle(tmp_path, monkeypatch):
    """They name a class of a trainer as a key; it is neither imported nor called."""
    import sys
    from types import ModuleType

    home, name = LIGHTNING[0].rsplit(".", 1)
    module = ModuleType(home)
    callback = type(name, (), {"__module__": home})
    setattr(module, name, callback)
    with monkeypatch.context() as patched:
        parts = home.split(".")
        for depth in range(1, len(parts)):
            patched.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
        patched.setitem(sys.modules, home, module)
        torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": {callback: {"best": 1.0}}}, tmp_path / "x.ckpt")
    assert "pytorch_lightning" not in sys.modules
    assert_equal(read_pickled_state(tmp_path / "x.ckpt"), {"w": torch.ones(2)})
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(ModelError, match="no dictionary of tensors"):
        read_pickled_state(tmp_path / "empty.ckpt")


@pytest.mark.parametrize("kept", [0, 5, 8, 300, -1])
def test_a_truncated_file_is_named(sd1, tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(sd1.file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cut.safetensors is not a readable safetensors file \(truncated or damaged"):
        single_file.read(path)
    with pytest.raises(ModelError, match="not a readable safetensors"):
        write_patched(path, tmp_path / "out.safetensors", {}, {})
    assert not (tmp_path / "out.safetensors").exists()


def whole(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        whole({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
        whole({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
        whole({"a": tensor(0, 8)}, bytes(12)),
        whole({"a": tensor(0, 800)}, bytes(8)),
        whole({"a": tensor(-8, 0)}, bytes(8)),
        whole({"a": tensor(0, 8, shape=(3,))}, bytes(8)),
        whole({"a": tensor(0, 8, shape=(-1, -2))}, bytes(8)),
        whole({"a": tensor(0, 8, dtype="F7")}, bytes(8)),
        whole({"a": tensor(0, 8, dtype=[])}, bytes(8)),
        whole(
            b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[1,2]}}'
        ),
        whole({"a": {"dtype": "F32"}}),
        whole({"__metadata__": {"a": 1}}),
        whole([1]),
        whole(b"[" * 100_000),
        whole(b"\xff\xff"),
        (10**18).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(tmp_path):
    header = json.dumps({"a": tensor(0, 8)}).encode().ljust(640)
    assert len(header).to_bytes(8, "little")[:2] == b"\x80\x02"
    (tmp_path / "x.safetensors").write_bytes(whole(header, bytes(8)))
    assert not is_pickle(tmp_path / "x.safetensors")
    write_patched(tmp_path / "x.safetensors", tmp_path / "out.safetensors", {"a": torch.ones(2)}, {})
    assert_equal(load_file(tmp_path / "out.safetensors"), {"a": torch.ones(2)})
    torch.save({"a": torch.ones(2)}, tmp_path / "zip.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("zip.pt", "old.pt"):
        assert is_pickle(tmp_path / name)
        assert_equal(read_pickled_state(tmp_path / name), {"a": torch.ones(2)})


def test_any_order_and_mixed_formats_are_read_by_the_stock_library(tmp_path):
    tensors = {
        "z": torch.ones(3, dtype=torch.bool),
        "half": torch.randn(3).half(),
        "brain": torch.randn(1).bfloat16(),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "long": torch.arange(3),
        "turned": torch.randn(2, 3).T,
    }
    write_ordered(tmp_path / "x.safetensors", tensors, {"é": "ü"})
    entries, metadata = read_header(tmp_path / "x.safetensors")
    assert list(entries) == list(tensors) and metadata == {"é": "ü"}
    assert_equal(load_file(tmp_path / "x.safetensors"), tensors)
    save_file({"b": torch.ones(2), "a": torch.ones(1, dtype=torch.int64)}, tmp_path / "stock.safetensors")
    assert {name: e.shape for name, e in read_header(tmp_path / "stock.safetensors")[0].items()} == {
        "a": (1,),
        "b": (2,),
    }
