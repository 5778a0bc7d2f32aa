import numpy as np
import pytest
import torch

from erasure.core.errors import DataError
from erasure.data.images import grid, read_image, to_float, to_uint8, write_png


def test_every_grey_level_survives_the_round_trip():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_uint8(to_float(images)), images)
    assert to_float(images).min() == -1 and to_float(images).max() == 1


@pytest.mark.parametrize("bad", [torch.full((1, 1, 2, 2), 1.5), torch.full((1, 1, 2, 2), float("nan"))])
def test_images_outside_their_range_are_refused(bad):
    with pytest.raises(DataError, match=r"\[-1, 1\]"):
        to_uint8(bad)
    with pytest.raises(DataError, match="expected float"):
        to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(DataError, match="expected uint8"):
        to_float(np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_pixels(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "a.png", "a"), image)


def test_a_grid_places_every_image():
    rows = [np.full((2, 3, 3, 1), 10, np.uint8), np.full((1, 3, 3, 1), 20, np.uint8)]
    picture = grid(rows, scale=2, gap=1)
    assert picture.shape == (15, 15, 1)
    assert (picture == 10).sum() == 2 * 36 and (picture == 20).sum() == 36
