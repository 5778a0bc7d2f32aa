import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.core.errors import MaskError, ModelError
from erasure.formats.bits import packed, unpacked
from erasure.formats.delta import applied
from erasure.formats.safetensors_io import read_tensors, write_tensors
from erasure.saliency.mask import Mask


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=3), st.integers(0, 9))
def test_bits_come_back_in_their_shape(shape, seed):
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = packed(chosen)
    assert bits.dtype == torch.uint8 and len(bits) == -(-chosen.numel() // 8)
    assert unpacked(bits, tuple(shape)).equal(chosen)


def test_the_order_of_the_bits_is_that_of_older_files():
    assert packed(torch.tensor([True] + [False] * 8)).tolist() == [128, 0]


@pytest.mark.parametrize("bits", [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2)])
def test_bits_of_another_number_are_damage(tmp_path, bits):
    with pytest.raises(ValueError, match="do not hold 9 bits"):
        unpacked(bits, (3, 3))
    with pytest.raises(ModelError, match="does not fit"):
        applied({"w": torch.zeros(9)}, {"w::change": torch.ones(0), "w::bits": bits})
    Mask({"w": torch.ones(3, 3, dtype=torch.bool)}).save(tmp_path / "m.safetensors")
    write_tensors(tmp_path / "m.safetensors", {"w": bits}, read_tensors(tmp_path / "m.safetensors")[1])
    with pytest.raises(MaskError, match="is damaged"):
        Mask.load(tmp_path / "m.safetensors")
