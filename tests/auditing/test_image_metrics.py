"""Metrics of an audit's images on disk: the same numbers as on whole arrays, and a reason where there is none."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from erasure.auditing.image_metrics import AuditOutputs, batches
from erasure.core import registry
from erasure.core.errors import DataError, NotApplicableError
from erasure.data.images import write_png
from erasure.evaluation.classifiers import open_labeler
from erasure.evaluation.distances import frechet, gaussian, kernel_distance
from erasure.evaluation.features.clip import clip_image_features, clip_scores, load_clip
from erasure.evaluation.features.dinov2 import dinov2_features, load_dinov2
from erasure.evaluation.features.inception import FIDInception
from erasure.evaluation.measure import measured
from erasure.evaluation.outputs import GeneratorOutputs
from erasure.evaluation.settings import EvaluationConfig
from erasure.formats.safetensors_io import write_tensors
from erasure.sampling.draw import LabeledImages
from tests.evaluation import test_classifiers, test_dinov2
from tests.evaluation.test_classifiers import noise, saved

clip_folder = test_classifiers.clip_folder
dinov2_folder = test_dinov2.dinov2_folder
PROMPTS = ["a church", "two cats and a dog", "", "a church", "noise", "a tree", "a house"]


def kept(folder, images):
    """Images as files, in order."""
    paths = [folder / f"{i:05d}.png" for i in range(len(images))]
    folder.mkdir(exist_ok=True)
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)
    return paths


@pytest.fixture
def sides(tmp_path):
    own, base = noise(7, 40, 48), noise(7, 40, 48, seed=1)
    return own, base, kept(tmp_path / "model", own), kept(tmp_path / "base", base)


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    saved(folder, "resnet")
    return str(folder)


def audited(paths, prompts, reference=(), paired=False, **networks):
    return AuditOutputs(paths, prompts, reference, EvaluationConfig(**networks), paired=paired)


def score(name, outputs):
    return registry.load("metrics", name)().measure(outputs)


def unit(features):
    features = features.double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_every_metric_is_that_of_the_whole_arrays(sides, clip_folder, dinov2_folder, resnet_folder):
    own, base, paths, others = sides
    clip, dinov2 = str(clip_folder), str(dinov2_folder)
    outputs = audited(paths, PROMPTS, others, paired=True, clip=clip, dinov2=dinov2, classifier=resnet_folder)
    found = measured(outputs, ()).to_dict()
    metrics = found["metrics"]
    assert set(metrics) == {"clip_score", "cmmd", "fd_dinov2", "fd_classifier", "paired_distance"}
    assert set(found["not_measured"]) == {"fid", "kid"} and "`inception`" in found["not_measured"]["fid"]
    assert found["ua"] is None and found["classifier_hash"] == open_labeler(resnet_folder, ()).hash
    assert metrics["clip_score"]["value"] == pytest.approx(clip_scores(load_clip(clip), own, PROMPTS).mean(), abs=1e-3)
    embedded = [unit(clip_image_features(load_clip(clip), images)) for images in (own, base)]
    value, interval = kernel_distance(*embedded, gaussian, "cmmd")
    assert metrics["cmmd"]["value"] == pytest.approx(1000 * value, abs=1e-4)
    assert metrics["cmmd"]["interval"] == pytest.approx([1000 * end for end in interval], abs=1e-4)
    assert metrics["cmmd"]["details"] == {"n_base": 7, "model": clip}
    tokens = [dinov2_features(load_dinov2(dinov2), images) for images in (own, base)]
    assert metrics["fd_dinov2"]["value"] == pytest.approx(frechet(*tokens), rel=1e-4)
    features_of = [open_labeler(resnet_folder, ()).describe(images).features for images in (own, base)]
    assert metrics["fd_classifier"]["value"] == pytest.approx(frechet(*features_of), rel=1e-4)
    moved = np.linalg.norm(features_of[0] - features_of[1], axis=1)
    assert metrics["paired_distance"]["value"] == pytest.approx(moved.mean(), rel=1e-4)
    assert metrics["paired_distance"]["details"] == {"space": f"classifier:{resnet_folder}"}


def test_pairs_are_compared_in_the_space_that_was_named(sides, clip_folder, dinov2_folder):
    own, base, paths, others = sides
    clip, dinov2 = str(clip_folder), str(dinov2_folder)
    embedded = [unit(clip_image_features(load_clip(clip), images)) for images in (own, base)]
    found = score("paired_distance", audited(paths, PROMPTS, others, paired=True, clip=clip, dinov2=dinov2))
    assert found.details == {"space": f"clip:{clip}"}
    assert found.value == pytest.approx(np.linalg.norm(embedded[0] - embedded[1], axis=1).mean(), abs=1e-4)
    found = score("paired_distance", audited(paths, PROMPTS, others, paired=True, dinov2=dinov2))
    assert found.details == {"space": f"dinov2:{dinov2}"} and found.value > 0.01
    assert score("paired_distance", audited(paths, PROMPTS, paths, paired=True, clip=clip)).value == 0


def test_a_set_beside_itself_is_at_distance_zero(sides, tmp_path, dinov2_folder):
    _, _, paths, others = sides
    weights = tmp_path / "i.safetensors"
    write_tensors(weights, FIDInception().state_dict())
    given = {"inception": str(weights), "dinov2": str(dinov2_folder)}
    same = measured(audited(paths[:3], PROMPTS[:3], paths[2::-1], **given), ("fid", "kid", "fd_dinov2")).metrics
    for name, found in same.items():
        assert found.value <= 1e-6 and found.details["n_reference"] == 3, name
    assert score("fd_dinov2", audited(paths, PROMPTS, others, **given)).value > 1e-3


def test_what_is_not_there_is_said(sides, clip_folder):
    _, _, paths, others = sides
    reasons = measured(audited(paths, PROMPTS, others), ()).not_measured
    assert set(reasons) == set(AuditOutputs.default_metrics)
    for name, reason in {
        **{"clip_score": "give `clip`", "cmmd": "give `clip`", "fd_dinov2": "give `dinov2`"},
        **{"fd_classifier": "give `classifier`", "paired_distance": "give `base`", "kid": "`inception`"},
    }.items():
        assert reason in reasons[name]
    clip = str(clip_folder)
    for outputs, name, reason in (
        (audited(paths, PROMPTS, clip=clip), "cmmd", "give `base` or `reference`"),
        (audited(paths[:1], PROMPTS[:1], others, clip=clip), "cmmd", "two images on each side, got 1 and 7"),
        (audited((), (), (), clip=clip), "clip_score", "no images"),
        (audited((), (), (), paired=True, clip=clip), "paired_distance", "no images"),
        (audited(paths, PROMPTS, others, paired=True), "paired_distance", "`classifier`, `clip` or `dinov2`"),
        *((audited(paths, PROMPTS), name, "no class") for name in ("ua", "ra", "forget_share")),
        *((audited(paths, PROMPTS), name, "text-to-image") for name in ("ira", "cra", "composition")),
    ):
        with pytest.raises(NotApplicableError, match=reason):
            score(name, outputs)
    with pytest.raises(NotApplicableError, match="no class"):
        audited(paths, PROMPTS, clip=clip).clip_scores("forget")
    with pytest.raises(DataError, match="7 images and 2 prompts"):
        audited(paths, PROMPTS[:2])
    with pytest.raises(DataError, match="7 images and 3 of the base model"):
        audited(paths, PROMPTS, others[:3], paired=True)


def test_images_are_read_in_order_whatever_their_size(tmp_path):
    images = [*noise(3, 8, 8), *noise(40, 6, 9, seed=1), *noise(1, 8, 8, seed=2), *noise(2, 1, 5)[..., :1]]
    paths = kept(tmp_path, images)
    seen = [image for batch in batches(paths) for image in batch]
    assert len(seen) == len(images)
    assert all(np.array_equal(one, np.broadcast_to(two, one.shape)) for one, two in zip(seen, images, strict=True))
    paths[5].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"00005\.png is not a readable image"):
        list(batches(paths))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, clip_folder):
    paths = kept(tmp_path, noise(4, 64, 64)) * 100
    list(batches(paths[:40]))  # what Pillow loads once
    tracemalloc.start()
    embedded = audited(paths, [""] * 400, clip=str(clip_folder)).clip_scores("retain")[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(embedded) == 400 and peak < 400 * 64 * 64 * 3 / 2


def test_samples_of_classes_are_measured_in_the_same_spaces(ddpm, digits, task, tmp_path, clip_folder, dinov2_folder):
    some = digits.first(40)
    config = EvaluationConfig(clip=str(clip_folder), dinov2=str(dinov2_folder))
    outputs = GeneratorOutputs(ddpm, task, some, tmp_path, config)
    retained = some.of_classes(task.retain)
    outputs.__dict__["samples"] = LabeledImages(some.images, some.labels)
    found = score("fd_dinov2", outputs)
    assert found.value == pytest.approx(0, abs=1e-4) and found.n == len(retained.images) == found.details["n_real"]
    assert score("cmmd", outputs).value <= 1e-6
    with pytest.raises(NotApplicableError, match="give `dinov2`"):
        score("fd_dinov2", GeneratorOutputs(ddpm, task, digits, tmp_path, EvaluationConfig()))
