"""The drawn digits: what is told of an image is what was drawn, and training never sees a test digit."""

import numpy as np
import pytest

from erasure.core.errors import DataError
from erasure.data import load_dataset
from erasure.data.digits_styles import STYLES


@pytest.fixture(scope="module")
def held_out():
    return load_dataset("digits_styles", "test")


def test_every_combination_is_there(held_out):
    assert held_out.images.shape == (355 * 5 + 500 * 2, 32, 32, 3) and len(held_out.class_names) == 550
    counts = np.bincount(held_out.labels, minlength=550)
    assert (counts[50:] == 2).all() and counts[:50].min() >= 30


def test_names_captions_and_aspects_agree(held_out):
    aspects = held_out.aspects
    for label, name in enumerate(held_out.class_names):
        shown = {key: aspect.names[aspect.of_class[label]] for key, aspect in aspects.items()}
        content = shown["digit"] + ("" if shown["second"] == "none" else f" next to {shown['second']}")
        assert name == f"{content} in {shown['style']} style"
        for caption in held_out.captions[label]:
            assert shown["style"] in caption and shown["digit"] in caption
            assert shown["second"] == "none" or caption.index(shown["digit"]) <= caption.rindex(shown["second"])
    assert aspects["second"].domain == aspects["digit"].domain or aspects["second"].domain == "digit"


def test_styles_look_different_and_contents_too(held_out):
    means = [held_out.images[np.isin(held_out.labels, range(s, 50, 5))].mean((0, 1, 2)) for s in range(len(STYLES))]
    for i, one in enumerate(means):
        assert all(np.abs(one - other).max() > 25 for other in means[:i])


def test_a_pair_has_something_on_both_sides_and_a_single_in_the_middle(held_out):
    ink = np.array(held_out.aspects["style"].of_class)[held_out.labels] == 0
    pair = np.array(held_out.aspects["second"].of_class)[held_out.labels] != 10
    dark = held_out.images.mean(-1) < 120
    halves = dark[ink & pair].reshape(-1, 32, 2, 16).any((1, 3))
    assert halves.all()
    assert dark[ink & ~pair][:, :, 8:24].any((1, 2)).all()


def test_it_is_the_same_every_time_and_splits_share_no_picture(held_out):
    again = load_dataset("digits_styles", "test")
    assert again.hash == held_out.hash
    train = load_dataset("digits_styles")
    own = {image.tobytes() for image in held_out.images}
    assert not own & {image.tobytes() for image in train.images}
    with pytest.raises(DataError, match="no `data_dir`"):
        load_dataset("digits_styles", data_dir="..")
    with pytest.raises(DataError, match="takes no `image_size`"):
        load_dataset("digits_styles", image_size=16)
