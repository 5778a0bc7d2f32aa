import pytest
import torch

from erasure.core.errors import ModelError, RunError
from erasure.formats.safetensors_io import write_tensors
from erasure.formats.unfinished import keep, restored


def test_what_was_kept_comes_back_to_the_same_settings_alone(tmp_path):
    path = tmp_path / "state"
    tensors = {"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor(3, dtype=torch.int32)}
    assert restored(path, "abc") == restored(None, "abc") == ({}, 0)
    keep(path, {"w": torch.zeros(5)}, 1, "abc")
    keep(path, tensors, 7, "abc")
    found, step = restored(path, "abc")
    assert step == 7 and set(found) == {"w", "n"}
    assert found["w"].view(torch.int32).equal(tensors["w"].view(torch.int32)) and found["n"].dtype == torch.int32
    with pytest.raises(RunError, match="unfinished work of other settings: remove it, or give another `out`"):
        restored(path, "abd")


def test_a_file_of_another_kind_and_a_cut_one_are_refused(tmp_path):
    write_tensors(tmp_path / "old", {"w": torch.zeros(1)}, {"fingerprint": "abc"})
    with pytest.raises(RunError, match="remove it"):
        restored(tmp_path / "old", "abc")
    keep(tmp_path / "cut", {"w": torch.zeros(100)}, 7, "abc")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:200])
    with pytest.raises(ModelError, match="truncated or damaged"):
        restored(tmp_path / "cut", "abc")
