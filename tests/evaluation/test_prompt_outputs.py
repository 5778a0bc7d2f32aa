"""What the metrics count on a text-to-image model, with a labeler whose labels are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError
from erasure.data import load_dataset
from erasure.erasing.targets.generated_images import text_task
from erasure.evaluation.classifiers import ImageLabeler, ImageLabels
from erasure.evaluation.measure import measured
from erasure.evaluation.outputs import GeneratorOutputs
from erasure.evaluation.prompt_outputs import PromptOutputs, shown_by, unseen_prompts
from erasure.evaluation.settings import EvaluationConfig
from erasure.prompts.concept import Concept, Prompt, load_concept
from erasure.sampling.draw import SamplingOptions
from tests.conftest import pipeline_folder, tiny
from tests.evaluation import test_classifiers, test_dinov2
from tests.evaluation.test_classifiers import saved

clip_folder = test_classifiers.clip_folder
dinov2_folder = test_dinov2.dinov2_folder
WHOSE = {"cmmd": "clip", "fd_dinov2": "dinov2"}
# The ten classes at their places among ImageNet's thousand.
IMAGENETTE = {
    **{0: "tench, Tinca tinca", 217: "English springer, English springer spaniel", 482: "cassette player"},
    **{491: "chain saw, chainsaw", 497: "church, church building", 566: "French horn, horn"},
    **{569: "garbage truck, dustcart", 571: "gas pump, gasoline pump, petrol pump, island dispenser"},
    **{574: "golf ball", 701: "parachute, chute"},
}
CONCEPT = Concept(
    "three",
    (
        Prompt("three ink", "four ink", (("digit", "three"), ("style", "ink"))),
        Prompt("three neon", "four neon", (("digit", "three"), ("style", "neon"))),
    ),
    (
        Prompt("four ink", shows=(("digit", "four"), ("style", "ink"))),
        Prompt("four neon", shows=(("digit", "four"), ("style", "neon"))),
        Prompt("five ink", shows=(("digit", "five"), ("style", "ink"))),
        Prompt("five neon", shows=(("digit", "five"), ("style", "neon"))),
        Prompt("four five", shows=(("digit", "four"), ("digit", "five"), ("style", "ink"))),
    ),
)
BOTH = Concept(
    "three,neon",
    (*CONCEPT.forget, Prompt("five neon", "five ink", (("digit", "five"), ("style", "neon")))),
    (CONCEPT.retain[0], CONCEPT.retain[2]),
)


class Scripted(ImageLabeler):
    """Sees what it was told to see, two images a row."""

    name = "scripted"
    domains = {"digit": ("three", "four", "five"), "style": ("ink", "neon")}  # noqa: RUF012
    hash = "scripted"

    def __init__(self, seen):
        self.seen = seen

    def describe(self, images):
        digits = np.array([list(digits) for digits, _ in self.seen], dtype=object)
        styles = np.array([[style] for _, style in self.seen], dtype=object)
        features = images.reshape(len(images), -1)[:, :4].astype(np.float64)
        count = len(images)
        return ImageLabels({"digit": digits[:count], "style": styles[:count]}, features)


def outputs(concept, seen, tmp_path, original=None, **networks):
    model = tiny("sd1")
    task = text_task(concept)
    model.set_prompts(task.class_names)
    labeler = Scripted(seen) if seen else None
    samples = SamplingOptions(num_images=2, num_inference_steps=1)
    return PromptOutputs(
        model,
        concept,
        task,
        load_dataset("digits_styles", "test"),
        tmp_path,
        EvaluationConfig(samples=samples, **networks),
        labeler=labeler,
        original=original,
    )


def pair(first, second, style):
    return ((first, second), style)


SEEN = [
    *[pair("three", "", "ink"), pair("four", "", "ink")],  # three ink: one of two is still a three
    *[pair("four", "", "neon"), pair("five", "", "ink")],  # three neon: none is, one lost its style
    *[pair("four", "", "ink"), pair("five", "", "ink")],  # four ink: one right
    *[pair("four", "", "neon"), pair("four", "", "neon")],
    *[pair("five", "", "ink"), pair("five", "", "neon")],  # five ink: a style lost
    *[pair("five", "", "neon"), pair("three", "", "neon")],
    *[pair("four", "five", "ink"), pair("five", "four", "ink")],  # the pair: one in the wrong order
]


def test_each_metric_counts_its_trials(tmp_path):
    found = measured(outputs(CONCEPT, SEEN, tmp_path), ())
    value = {name: score.value for name, score in found.metrics.items()}
    n = {name: score.n for name, score in found.metrics.items()}
    assert CONCEPT.erased == {("digit", "three")}
    assert value["ua"] == 75 and n["ua"] == 4 and found.ua == 75
    assert value["ira"] == 75 and n["ira"] == 8 and found.ra == 75
    assert value["cra"] == pytest.approx(100 * 10 / 12) and n["cra"] == 12
    assert value["composition"] == 50 and n["composition"] == 2
    assert found.classifier_hash == "scripted"


def test_what_was_erased_is_still_there_on_the_other_side(tmp_path):
    pairs = Concept("three", (Prompt("three four", "", (("digit", "three"), ("digit", "four"))),), CONCEPT.retain[:1])
    seen = [pair("four", "three", "ink"), pair("four", "five", "ink"), *SEEN[4:6]]
    assert outputs(pairs, seen, tmp_path).correct("forget").tolist() == [True, False]
    twice = Concept("three", (Prompt("three three", "", (("digit", "three"), ("digit", "three"))),), CONCEPT.retain[:1])
    assert len(outputs(twice, seen, tmp_path / "twice").correct("forget")) == 2


def test_two_erased_domains_keep_what_a_forget_prompt_also_shows(tmp_path):
    seen = [*SEEN[:4], *SEEN[10:12], *SEEN[4:6], *SEEN[8:10]]
    one = outputs(BOTH, seen, tmp_path)
    assert BOTH.erased == {("digit", "three"), ("style", "neon")}
    # three ink: digit; three neon: digit and style; five neon: style
    assert one.correct("forget").tolist() == [True, False, False, False, True, False, True, True]
    # outside: the ink of three ink, the five of five neon
    assert one.across().tolist() == [True, True, True, False]
    with pytest.raises(NotApplicableError, match="two things"):
        one.together()


def test_real_images_are_those_that_show_the_same(tmp_path):
    reference = outputs(CONCEPT, SEEN, tmp_path).reference("retain")
    shown = {reference.class_names[label] for label in np.unique(reference.labels)}
    assert shown == {
        *("four in ink style", "four in neon style", "five in ink style", "five in neon style"),
        *("four next to five in ink style", "five next to four in ink style"),
    }


def test_without_a_labeler_every_metric_says_why(tmp_path):
    found = measured(outputs(CONCEPT, None, tmp_path), ())
    assert found.metrics == {} and found.ua is None
    assert (
        set(found.not_measured) == set(PromptOutputs.default_metrics)
        and "give `classifier`" in found.not_measured["ira"]
    )
    with pytest.raises(NotApplicableError, match="`clip`"):
        measured(outputs(CONCEPT, SEEN, tmp_path), ("clip_score",))


def test_the_picture_is_a_grid_of_both_domains(tmp_path):
    rows = outputs(CONCEPT, SEEN, tmp_path).picture()
    assert [row.name for row in rows] == ["ink", "neon"] and all(len(row.images) == 3 for row in rows)
    assert not any(row.forgotten for row in rows)
    assert [row.forgotten for row in outputs(BOTH, SEEN, tmp_path).picture()] == [True, True, True, False, False]


@pytest.mark.parametrize("place", [lambda index: index, lambda index: 999 - index])
def test_an_imagenet_classifier_is_asked_by_name_whatever_its_order(cli, tmp_path, place):
    labels = [f"thing {i}" for i in range(1000)]
    for index, label in IMAGENETTE.items():
        labels[place(index)] = label
    network = saved(tmp_path / "resnet", "resnet", tuple(labels))
    asked = ("--concept", "imagenette/church", "--classifier", tmp_path / "resnet", "--metrics", "ua,ira")
    for index, ua, ira in ((497, 0, 0), (574, 100, 100 * 2 / 18), (1, 100, 0)):
        network.classifier[1].bias.data.zero_()[place(index)] = 1e4
        network.save_pretrained(tmp_path / "resnet")
        found = cli(
            "evaluate", pipeline_folder("sd1"), *asked, "--num-images", 1, "--num-inference-steps", 1, "--json"
        ).json
        assert found["ua"] == ua and found["ra"] == pytest.approx(ira)
        assert found["metrics"]["ua"]["n"] == 2 and found["metrics"]["ira"]["n"] == 18


@pytest.mark.parametrize("name", ["cmmd", "fd_dinov2"])
def test_distances_to_real_images_in_other_spaces(tmp_path, monkeypatch, clip_folder, dinov2_folder, name):
    one = outputs(CONCEPT, SEEN, tmp_path, clip=str(clip_folder), dinov2=str(dinov2_folder))
    real = one.reference("retain")
    one.__dict__["reference"] = lambda part: real.first(20)
    score = registry.load("metrics", name)().measure(one)
    assert score.n == one.chosen("retain").sum() == 10 and score.details["n_real"] == 20
    assert score.value > 0 and score.interval[0] < score.value < score.interval[1]
    assert measured(one, (name,)).metrics[name].details["model"] == getattr(one.config, WHOSE[name])
    monkeypatch.setattr(
        "erasure.evaluation.features.spaces.write_tensors", None
    )  # features of real images are taken once
    one._pairs.clear()
    assert registry.load("metrics", name)().measure(one) == score


def test_classes_have_no_words(digits, task, tmp_path):
    plain = GeneratorOutputs(tiny("ddpm"), task, digits, tmp_path, EvaluationConfig())
    for name in ("ira", "cra", "composition", "clip_score"):
        with pytest.raises(NotApplicableError, match="text-to-image"):
            registry.load("metrics", name)().measure(plain)


def test_the_same_seed_pairs_two_models(tmp_path):
    one = outputs(CONCEPT, SEEN, tmp_path / "a")
    other = outputs(CONCEPT, SEEN, tmp_path / "b", original=one)
    other.model = tiny("sd1", seed=5).set_prompts(other.task.class_names)
    assert one.samples.labels.tolist() == other.samples.labels.tolist()
    assert not np.array_equal(one.samples.images, other.samples.images)
    assert measured(one, ("ua",)).metrics["ua"].value == 75
    assert torch.equal(torch.from_numpy(one.chosen("forget")), torch.from_numpy(other.chosen("forget")))


def test_prompts_that_no_method_was_given_show_what_is_erased_in_other_words():
    data = load_dataset("digits_styles", "test")
    concept = load_concept("digits/five,digits/ink")
    rows = unseen_prompts(concept, data, 40, seed=0)
    shown = {caption: shows for captions, shows in rowwise(data) for caption in captions}
    assert len({row.text for row in rows}) == 40 and not {row.text for row in rows} & set(concept.table())
    assert all(row.shows == shown[row.text] and set(row.shows) & concept.erased for row in rows)
    beside = [row for row in rows if len(row.shows) == 3]
    assert len(beside) == 20 and len({row.shows for row in rows}) >= 34  # 14 classes show one of the two alone
    assert rows == unseen_prompts(concept, data, 40, seed=0) != unseen_prompts(concept, data, 40, seed=1)
    few = replace(data, captions=tuple(texts if len(shows) == 2 else () for texts, shows in rowwise(data)))
    assert len(unseen_prompts(load_concept("digits/five"), few, 40, seed=0)) == 25  # five styles, five wordings left
    with pytest.raises(NotApplicableError, match="needs data with captions"):
        unseen_prompts(concept, replace(data, captions=()), 40, seed=0)


def rowwise(data):
    return zip(data.captions, shown_by(data), strict=True)
