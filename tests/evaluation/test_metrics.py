import json

import numpy as np
import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.core.statistics import wilson
from erasure.data.images import to_float, to_uint8
from erasure.data.task import Task
from erasure.evaluation.distances import frechet
from erasure.evaluation.features.inception import FIDInception
from erasure.evaluation.measure import measured
from erasure.evaluation.metrics.base import Score
from erasure.evaluation.outputs import ClassifierOutputs, GeneratorOutputs, probe
from erasure.evaluation.settings import EvaluationConfig
from erasure.formats.safetensors_io import write_tensors
from erasure.sampling.draw import LabeledImages, SamplingOptions
from tests.conftest import tiny

QUICK = EvaluationConfig(samples=SamplingOptions(num_images=4, num_inference_steps=2))


class Oracle:
    """Stands where samples are drawn: images are given, and so is what the classifier sees in them."""

    def __init__(self, outputs, images, labels, seen):
        outputs.__dict__["samples"] = LabeledImages(images, np.array(labels))
        features = images.reshape(len(images), -1).astype(np.float64)
        outputs.__dict__["_described"] = (np.array(seen), features)


@pytest.fixture
def outputs(ddpm, classifier, task, digits, tmp_path):
    original = GeneratorOutputs(ddpm, task, digits, tmp_path / "o", QUICK, classifier=classifier)
    cleaned = GeneratorOutputs(ddpm, task, digits, tmp_path / "c", QUICK, classifier=classifier, original=original)
    images = digits.images[:8]
    Oracle(original, images, [3, 3, 3, 3, 1, 1, 2, 2], [3, 3, 3, 9, 1, 1, 2, 2])
    Oracle(cleaned, images, [3, 3, 3, 3, 1, 1, 2, 2], [5, 5, 3, 9, 1, 1, 2, 3])
    return cleaned


def measure(name, outputs):
    return registry.load("metrics", name)().measure(outputs)


def test_ua_counts_what_is_no_longer_recognised(outputs):
    score = measure("ua", outputs)
    assert score.value == 75.0 and score.n == 4 and score.unit == "%" and score.higher_is_better
    assert score.interval == pytest.approx([100 * end for end in wilson(3, 4)])
    assert score.details == {"given_original": pytest.approx(100 * 2 / 3), "n_given_original": 3}
    assert measure("ua", outputs.original).value == 25.0


def test_ra_counts_what_is_kept_class_by_class(outputs):
    score = measure("ra", outputs)
    assert score.value == 75.0 and score.details["by_class"] == {"one": 100.0, "two": 50.0}


def test_paired_distance_is_zero_between_equal_images_and_sees_one_change(outputs):
    assert measure("paired_distance", outputs).value == 0.0
    outputs._described[1][4, 0] += 6.0
    score = measure("paired_distance", outputs)
    assert score.value == pytest.approx(6.0 / 4) and score.n == 4
    outputs._described[1][0, 0] += 6.0  # a forgotten class does not count
    assert measure("paired_distance", outputs).value == pytest.approx(6.0 / 4)
    with pytest.raises(NotApplicableError):
        measure("paired_distance", outputs.original)


def test_fd_of_the_real_images_themselves_is_zero(ddpm, classifier, task, digits, tmp_path):
    outputs = GeneratorOutputs(ddpm, task, digits, tmp_path, QUICK, classifier=classifier)
    outputs.__dict__["samples"] = LabeledImages(digits.images, digits.labels)
    assert measure("fd_classifier", outputs).value == pytest.approx(0, abs=1e-6)
    noise = np.random.default_rng(0).integers(0, 256, digits.images.shape, dtype=np.uint8)
    outputs = GeneratorOutputs(ddpm, task, digits, tmp_path, QUICK, classifier=classifier)
    outputs.__dict__["samples"] = LabeledImages(noise, digits.labels)
    score = measure("fd_classifier", outputs)
    kept = digits.labels != 3
    features = [classifier.describe(to_float(images[kept]))[1].numpy() for images in (noise, digits.images)]
    assert score.value == pytest.approx(frechet(*features), rel=1e-6) and score.value > 0.01
    assert score.n == kept.sum() == score.details["n_real"]


def test_a_classifier_is_measured_by_its_own_predictions(classifier, task, digits, tmp_path):
    outputs = ClassifierOutputs(classifier, task, digits, QUICK)
    logits = classifier.describe(to_float(digits.images))[0].argmax(1).numpy()
    forgotten = digits.labels == 3
    assert measure("ua", outputs).value == pytest.approx(100 * (logits[forgotten] != 3).mean())
    assert measure("ra", outputs).value == pytest.approx(100 * (logits == digits.labels)[~forgotten].mean())
    for name in ("fd_classifier", "fid", "kid"):
        with pytest.raises(NotApplicableError, match="generates no images"):
            measure(name, outputs)


@pytest.fixture
def told(classifier, task, digits):
    """Outputs of a classifier that predicts what it is told for samples 0 to 39; the test split is the next 30."""

    def make(seen_of, forget_ids=None, of_task=task, retrained=None):
        def describe(images):
            where = [every.index(image.tobytes()) for image in to_uint8(images)]
            logits = torch.full((len(images), 10), 0.0)
            logits[range(len(images)), [seen_of(i, int(digits.labels[i])) for i in where]] = 4.0
            return logits, torch.zeros(len(images), 2)

        every = [image.tobytes() for image in digits.images[:70]]
        classifier = tiny("classifier")
        classifier.describe = describe
        train, test = digits.at(np.arange(40)), digits.at(np.arange(40, 70))
        ids = None if forget_ids is None else np.array(forget_ids)
        config = EvaluationConfig(sample_seed=3)
        return ClassifierOutputs(
            classifier, of_task, train, config, forget_ids=ids, test=lambda: test, retrained=retrained
        )

    return make


def test_ta_leaves_a_forgotten_class_out_of_the_test_split(told, digits):
    labels = digits.labels[40:70]
    wrong_threes = told(lambda i, label: 5 if label == 3 else label)
    assert measure("ta", wrong_threes).value == 100.0 and measure("ta", wrong_threes).n == (labels != 3).sum()
    samples = Task(digits.class_names, (), samples=True)
    score = measure("ta", told(lambda i, label: 5 if label == 3 else label, [1, 2], samples))
    assert score.n == 30 and score.value == pytest.approx(100 * (labels != 3).mean())


def test_parts_by_sample_ids(told, digits):
    outputs = told(lambda i, label: (label + 1) % 10 if i in (1, 2, 30, 41) else label, [0, 1, 2])
    assert measure("ua", outputs).value == pytest.approx(200 / 3)
    assert measure("ra", outputs).value == pytest.approx(100 * 36 / 37)
    assert measure("ta", outputs).n == 30 and measure("ta", outputs).value == pytest.approx(100 * 29 / 30)
    assert len(outputs.predictions("forget").losses) == 3


def test_the_attack_sees_samples_that_look_like_the_test_split(told):
    def unsure(i, label):  # right about what it keeps, wrong about what it forgot and what it never saw
        return label if 3 <= i < 40 else (label + 1) % 10

    score = measure("mia", told(unsure, [0, 1, 2]))
    assert score.value == 100.0 and score.n == 3 and score.details == {"n_attack": 30}
    assert measure("mia", told(lambda i, label: label if i < 40 else (label + 1) % 10, [0, 1, 2])).value == 0.0
    assert measure("loss_auc", told(lambda i, label: label if i > 2 else (label + 1) % 10, [0, 1, 2])).value == 0.0
    assert measure("loss_auc", told(lambda i, label: label if i < 40 else (label + 1) % 10, [0, 1, 2])).value == 1.0


def test_the_average_gap_needs_a_retrained_model_and_is_zero_to_itself(told):
    retrained = told(lambda i, label: label if i > 2 else 0, [0, 1, 2])
    with pytest.raises(NotApplicableError, match="give `retrained`"):
        measure("avg_gap", retrained)
    assert measure("avg_gap", told(lambda i, label: label if i > 2 else 0, [0, 1, 2], retrained=retrained)).value == 0
    score = measure("avg_gap", told(lambda i, label: label, [0, 1, 2], retrained=retrained))
    assert score.value == pytest.approx(np.mean(list(score.details["gaps"].values()))) and score.value > 0


def test_a_generator_has_no_predictions_of_its_own(outputs, ddpm):
    for name in ("ta", "mia", "loss_auc"):
        with pytest.raises(NotApplicableError, match="generator"):
            measure(name, outputs)


def test_a_classifier_is_measured_by_its_own_metrics_without_being_asked(told):
    found = measured(told(lambda i, label: label, [0, 1]), ())
    assert set(found.metrics) == {"ua", "ra", "ta", "mia", "loss_auc"} and not found.not_measured
    assert found.ua == found.metrics["ua"].value and found.metrics["ua"].interval[1] > 0
    again = {name: Score.from_dict(json.loads(json.dumps(score))) for name, score in found.to_dict()["metrics"].items()}
    assert again == found.metrics


def test_an_unconditional_model_has_a_forget_share(classifier, task, digits, tmp_path):
    model = tiny("ddpm-unconditional")
    outputs = GeneratorOutputs(model, task, digits, tmp_path, QUICK, classifier=classifier)
    assert outputs.samples.labels.tolist() == [-1] * 4
    outputs.__dict__["_described"] = (np.array([3, 3, 0, 1]), np.zeros((4, 2)))
    assert measure("forget_share", outputs).value == 50.0
    with pytest.raises(NotApplicableError, match="unconditional"):
        measure("ua", outputs)


def test_reasons_why_something_cannot_be_measured(ddpm, classifier, digits, task, tmp_path):
    with pytest.raises(NotApplicableError, match="give `classifier`"):
        measure("ra", GeneratorOutputs(ddpm, task, digits, tmp_path, QUICK))
    nothing = GeneratorOutputs(ddpm, Task(digits.class_names, ()), digits, tmp_path, QUICK, classifier=classifier)
    with pytest.raises(NotApplicableError, match="`forget`"):
        measure("ua", nothing)
    with pytest.raises(NotApplicableError, match="measured by ua"):
        measure("forget_share", GeneratorOutputs(ddpm, task, digits, tmp_path, QUICK, classifier=classifier))


def test_fid_and_kid_use_the_given_inception(ddpm, classifier, task, digits, tmp_path):
    torch.manual_seed(0)
    write_tensors(tmp_path / "i.safetensors", FIDInception().state_dict())
    small = digits.of_classes([3, 4]).first(12)
    config = EvaluationConfig(inception=str(tmp_path / "i.safetensors"))
    outputs = GeneratorOutputs(ddpm, Task(digits.class_names, (3,)), small, tmp_path, config)
    outputs.__dict__["samples"] = LabeledImages(small.images, small.labels)
    assert measure("fid", outputs).value == pytest.approx(0, abs=1e-6)
    assert measure("kid", outputs).value <= 1e-6
    details = measure("fid", outputs).details
    assert details["n_real"] == 6 and details["kid"] == measure("kid", outputs).value


def test_a_probe_looks_at_both_parts(ddpm, classifier, task):
    found = probe(ddpm, task, classifier, {3: [1, 2], 4: [3], 5: [4]}, steps=2)
    assert set(found) == {"ua", "ra"} and found["ua"] in (0, 50, 100) and found["ra"] in (0, 50, 100)


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_every_definition_has_a_version(name):
    kind = registry.load("metrics", name)
    assert kind.definition.startswith(f"{name}/") and isinstance(kind.higher_is_better, bool)
