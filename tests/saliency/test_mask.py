import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.core.errors import MaskError, OptionError
from erasure.formats.safetensors_io import write_tensors
from erasure.saliency.mask import Mask

SCORES = {"a": torch.tensor([[3.0, 1.0], [2.0, 0.0]]), "b.c": torch.tensor([5.0, 2.0, 2.0])}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40), min_size=1, max_size=4),
    st.floats(0.001, 1.0),
    st.sampled_from([3, 1 << 20]),
)
def test_top_selects_exactly_what_a_full_sort_would(values, density, chunk):
    scores = {f"t{i}": torch.tensor(part) for i, part in enumerate(values)}
    flat = torch.cat(list(scores.values()))
    wanted = round(density * len(flat))
    order = torch.argsort(flat, descending=True, stable=True)[:wanted]
    expected = torch.zeros(len(flat), dtype=torch.bool)
    expected[order] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erasure.saliency.mask.CHUNK", chunk)
        mask = Mask.top(scores, density)
    assert torch.cat([mask.tensors[name] for name in scores]).equal(expected)
    assert mask.selected == wanted


def test_ties_are_broken_by_position_and_the_density_is_exact():
    mask = Mask.top({"a": torch.ones(5), "b": torch.ones(5)}, 0.7)
    assert mask.tensors["a"].all() and mask.tensors["b"].tolist() == [True, True, False, False, False]
    assert Mask.top({"a": torch.zeros(1000)}, 0.5).selected == 500


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(OptionError, match=r"outside \(0, 1\]"):
        Mask.top(SCORES, density)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(MaskError, match="'b' is not finite"):
        Mask.top({"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])}, 0.5)


def test_set_algebra():
    top, low = Mask.top(SCORES, 3 / 7), ~Mask.top(SCORES, 3 / 7)
    assert (top & low).selected == 0 and (top | low).selected == 7
    assert (~low).tensors["a"].equal(top.tensors["a"])
    assert (top | low).density == 1.0
    with pytest.raises(MaskError, match="two different networks"):
        top & Mask.top({"x": torch.ones(2)}, 0.5)


def test_random_masks_have_the_density_and_depend_on_the_seed():
    like = Mask.top({"a": torch.zeros(999)}, 0.5)
    one, two = Mask.random(like, 0.25, 0), Mask.random(like, 0.25, 1)
    assert one.selected == two.selected == 250
    assert not one.tensors["a"].equal(two.tensors["a"])
    assert one.tensors["a"].equal(Mask.random(like, 0.25, 0).tensors["a"])


def test_a_mask_takes_one_bit_a_weight_and_keeps_its_provenance(tmp_path):
    scores = {"w": torch.rand(4000, 3), "scalar": torch.rand(1), "odd": torch.rand(13)}
    mask = Mask.top(scores, 0.3, {"concept": "three", "seed": 4})
    mask.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < mask.total / 8 + 1000
    loaded = Mask.load(tmp_path / "m.safetensors")
    assert all(loaded.tensors[name].equal(mask.tensors[name]) for name in scores)
    assert loaded.provenance == {"concept": "three", "seed": 4, "density": 0.3}


def test_files_that_are_no_masks_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(MaskError, match="does not exist"):
        Mask.load(path)
    write_tensors(path, {"w": torch.ones(2)})
    with pytest.raises(MaskError, match="is not a mask"):
        Mask.load(path)
    Mask.top(SCORES, 0.5).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MaskError, match="truncated or damaged"):
        Mask.load(path)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(MaskError, match="it is a pickle"):
        Mask.load(path)
    write_tensors(path, {"w": torch.ones(1)}, {"format": "erasure-mask-1", "shapes": json.dumps({"v": [3]})})
    with pytest.raises(MaskError, match="damaged"):
        Mask.load(path)


def test_a_mask_of_another_network_is_refused():
    mask = Mask.top(SCORES, 0.5)
    with pytest.raises(MaskError, match=r"2 tensors, 7 weights; this one has 2 and 6"):
        mask.check(torch.nn.Linear(2, 2))


def test_by_block_counts_every_weight_once():
    blocks = Mask.top({"up.0.w": torch.ones(4), "up.1.w": torch.zeros(4), "out.bias": torch.ones(2)}, 0.6).by_block()
    assert blocks == {
        "up.0": {"density": 1.0, "weights": 4},
        "up.1": {"density": 0.0, "weights": 4},
        "out": {"density": 1.0, "weights": 2},
    }
