"""Every detector that is a network of torch: parity with the stock class, known answers, and what is refused."""

import pickle  # noqa: TID251 (to make the files that must be refused)
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from erasure.auditing.detectors import Detection, Detector, open_detector
from erasure.auditing.detectors.base import Scorer
from erasure.core import registry
from erasure.core.errors import DataError, ModelError, OptionError
from erasure.data import load_dataset
from erasure.data.images import to_float
from erasure.formats.pickle_io import read_array
from erasure.models.classifier import Classifier
from tests.evaluation.test_classifiers import by_hand, noise, reading, saved, seeded, small_clip, stock


class Brightness(Scorer):
    """The mean of all values."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How it is scaled."""

        factor: Annotated[float, "what the mean is multiplied by"] = 1.0

    classes = ("bright",)
    threshold = 128.0

    def _identity(self):
        return {"factor": self.options.factor}

    def _scores(self, images):
        return images.mean(axis=(1, 2, 3))[:, None] * self.options.factor


def mixed():
    """Images of two sizes, in turns."""
    small, large = noise(3, 40, 40, seed=1), noise(2, 45, 70, seed=2)
    return [small[0], large[0], small[1], large[1], small[2]]


def scores_of(found):
    assert all(isinstance(one, Detection) and one.boxes is None and one.scores.dtype == np.float32 for one in found)
    return np.stack([one.scores for one in found])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return small_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("name", registry.names("detectors"))
def test_every_detector_says_what_it_is(name):
    kind = registry.load("detectors", name)
    assert issubclass(kind, Detector) and kind.name() == name
    assert np.isfinite(kind.threshold)
    with pytest.raises(OptionError, match=f"detector {name} has no option 'colour'"):
        open_detector(name, {"colour": "red"})


def test_a_detector_of_a_third_party_is_opened_and_its_failure_is_no_score():
    found = open_detector("tests.auditing.test_detectors:Brightness")
    assert scores_of(found.detect(mixed()))[:, 0] == pytest.approx([image.mean() for image in mixed()])
    assert found.hash != Brightness.open({"factor": 2.0}).hash
    with pytest.raises(DataError, match="no finite score in image 0"):
        Brightness.open({"factor": np.nan}).detect(mixed())
    with pytest.raises(DataError, match="image 0 is float64 of shape"):
        found.detect(noise() / 2)
    with pytest.raises(OptionError, match=r"unknown detector 'nudnet' .*did you mean 'nudenet'"):
        open_detector("nudnet")


def test_a_stock_classifier_gives_the_probabilities_of_its_own_class(tmp_path):
    network = saved(tmp_path, "vit")
    detector = open_detector("image_classifier", {"model": str(tmp_path)})
    assert detector.classes == ("tench", "church", "crane", "cardigan", "Cardigan, Welsh corgi") and not detector.core
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([by_hand("vit", image) for image in mixed()])).float()
        wanted = network(pixels).logits.softmax(dim=1).numpy()
    scores = scores_of(detector.detect(mixed()))
    # Pillow rounds a few pixels to the other side.
    assert scores == pytest.approx(
        np.stack([*wanted[:, :2].T, wanted[:, 2] + wanted[:, 3], *wanted[:, 4:].T], 1), abs=0.02
    )
    assert scores.sum(1) == pytest.approx(1) and np.ptp(scores, axis=0).max() > 0.05
    assert scores[1] == pytest.approx(detector.detect(mixed()[1:2])[0].scores, abs=1e-5)


def test_a_classifier_of_aspects_gives_the_larger_of_two_of_one_kind():
    detector = open_detector("image_classifier", {"model": "digits-sd-classifier"})
    assert len(detector.classes) == 15 and {"three", "neon"} < set(detector.classes)
    data = load_dataset("digits_styles", "test")
    images = data.images[::400]
    scores = scores_of(detector.detect(list(images)))
    model = Classifier.load("checkpoints/digits-sd-classifier")
    logits, _ = model.describe(to_float(images))
    left, right, style = (block.softmax(1).numpy() for block in logits.split([10, 11, 5], dim=1))
    assert scores == pytest.approx(np.concatenate([np.maximum(left, right[:, :10]), style], 1), abs=1e-5)
    for word in ("three", "neon"):
        shown = [word in data.class_names[label].split() for label in data.labels[::400]]
        flagged = scores[:, detector.classes.index(word)] >= detector.threshold
        assert 0 < sum(shown) < len(shown) and (flagged == shown).mean() > 0.95


def test_zero_shot_is_a_softmax_over_ten_words_or_more(clip):
    given = {"model": str(clip), "labels": "church, cat,church", "others": "dog"}
    detector = open_detector("clip_zero_shot", given)
    assert detector.core == ("church", "cat") and detector.classes[:3] == ("church", "cat", "dog")
    assert len(detector.classes) == 10
    image, text = stock(clip, mixed(), [f"a photo of a {word}" for word in detector.classes])
    wanted = (100 * image @ text.T).softmax(1).numpy()
    scores = scores_of(detector.detect(mixed()))
    assert scores == pytest.approx(wanted, abs=0.03) and np.ptp(scores) > 0.3
    assert detector.hash != open_detector("clip_zero_shot", {**given, "others": ""}).hash
    with pytest.raises(OptionError, match="needs `labels`"):
        open_detector("clip_zero_shot", {"model": str(clip), "labels": " ,"})


@pytest.fixture(scope="module")
def checker(tmp_path_factory):
    """A pipeline's checker of the real class, whose thresholds are near what noise reaches."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    folder = tmp_path_factory.mktemp("pipeline")
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=12)
    network = seeded(StableDiffusionSafetyChecker, config)
    generator = torch.Generator().manual_seed(0)
    pixels = reading(folder / "feature_extractor", "clip")(noise(40))
    with torch.no_grad():
        embedded = network.visual_projection(network.vision_model(pixels)[1])
        for concepts, weights in (
            (network.concept_embeds, network.concept_embeds_weights),
            (network.special_care_embeds, network.special_care_embeds_weights),
        ):
            concepts.copy_(torch.randn(concepts.shape, generator=generator))
            reached = torch.nn.functional.cosine_similarity(embedded[:, None], concepts[None], dim=2)
            weights.copy_(reached.quantile(0.95 if len(weights) == 17 else 0.7, dim=0))
    network.save_pretrained(folder / "safety_checker")
    return folder, network


def test_the_safety_checker_flags_what_the_stock_module_flags(checker):
    folder, network = checker
    detector = open_detector("safety_checker", {"model": str(folder)})
    assert len(detector.classes) == 20 and len(detector.core) == 17
    scores = scores_of(detector.detect(list(noise(40))))
    _, flagged = network(detector.reading(noise(40)), [np.zeros((2, 2, 3))] * 40)
    assert (scores[:, :17].max(axis=1) > 0).tolist() == flagged and 3 < sum(flagged) < 37
    assert (scores[:, :17].max(axis=1) >= detector.threshold).tolist() == flagged
    with torch.no_grad():
        embedded = network.visual_projection(network.vision_model(detector.reading(noise(40)))[1])
    plain = (
        torch.nn.functional.cosine_similarity(embedded[:, None], network.concept_embeds[None], dim=2)
        - network.concept_embeds_weights
    ).numpy()
    raised = scores[:, 17:].max(axis=1) > 0
    assert scores[~raised, :17] == pytest.approx(plain[~raised], abs=6e-4) and 3 < raised.sum() < 37
    assert scores[raised, :17] == pytest.approx(plain[raised] + 0.01, abs=6e-4)
    with pytest.raises(ModelError, match="has no config"):
        open_detector("safety_checker", {"model": str(folder / "feature_extractor")})


def embeddings(count=2, width=12, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.fixture
def prompts(tmp_path):
    np.save(tmp_path / "prompts.npy", embeddings())
    return tmp_path / "prompts.npy"


def test_q16_is_the_share_of_the_second_embedding(clip, prompts, tmp_path):
    detector = open_detector("q16", {"model": str(clip), "prompts": str(prompts)})
    features, _ = stock(clip, mixed(), ["a"] * 5)
    unit = torch.nn.functional.normalize(torch.from_numpy(embeddings()).double())
    wanted = (100 * features @ unit.T).softmax(1)[:, 1:].numpy()
    scores = scores_of(detector.detect(mixed()))
    assert scores == pytest.approx(wanted, abs=0.05)
    np.save(tmp_path / "long.npy", embeddings() * 7)
    longer = open_detector("q16", {"model": str(clip), "prompts": str(tmp_path / "long.npy")})
    assert scores_of(longer.detect(mixed())) == pytest.approx(scores, abs=1e-5)
    first = open_detector("q16", {"model": str(clip), "prompts": str(prompts), "inappropriate": "0"})
    assert scores_of(first.detect(mixed())) == pytest.approx(1 - scores, abs=1e-5) and first.hash != detector.hash
    np.save(tmp_path / "three.npy", embeddings(3))
    three = {"model": str(clip), "prompts": str(tmp_path / "three.npy")}
    both = scores_of(open_detector("q16", {**three, "inappropriate": "1, 2"}).detect(mixed()))
    alone = scores_of(open_detector("q16", {**three, "inappropriate": "0"}).detect(mixed()))
    assert both == pytest.approx(1 - alone, abs=1e-5)


def test_embeddings_and_options_that_q16_cannot_use(clip, prompts, tmp_path):
    for array, message in (
        (embeddings(width=8), "embeddings of 8 numbers"),
        (embeddings(1), r"shape \(1, 12\)"),
        (embeddings() * [[0], [1]], "zero or not finite"),
        (embeddings() * np.nan, "zero or not finite"),
    ):
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(ModelError, match=message):
            open_detector("q16", {"model": str(clip), "prompts": str(tmp_path / "bad.npy")})
    for given in ("2", "0,1", "-1", "", "one"):
        with pytest.raises(OptionError, match="embeddings 0 to 1"):
            open_detector("q16", {"model": str(clip), "prompts": str(prompts), "inappropriate": given})
    for name, missing in (("q16", "prompts"), ("image_classifier", "model")):
        with pytest.raises(OptionError, match=f"needs (its )?`{missing}`"):
            open_detector(name)
    with pytest.raises(OptionError, match="is not an image classifier"):
        open_detector("image_classifier", {"model": f"clip:{clip}"})


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_pickled_array_is_read_in_every_protocol(tmp_path, protocol, kind):
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(embeddings().astype(kind), protocol))
    read = read_array(tmp_path / "prompts.p")
    assert read.dtype == kind and np.array_equal(read, embeddings().astype(kind))


def test_an_array_is_read_from_safetensors(tmp_path):
    save_file({"prompts": embeddings()}, tmp_path / "prompts.safetensors")
    assert np.array_equal(read_array(tmp_path / "prompts.safetensors"), embeddings())
    save_file({"a": embeddings(), "b": embeddings()}, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match="holds 2 tensors"):
        read_array(tmp_path / "two.safetensors")


class Trap:
    """What a malicious file does when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def test_a_file_that_wants_to_run_something_runs_nothing(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "prompts.p"
    traps = [
        Trap(open, str(mark), "w"),
        Trap(eval, f"open({str(mark)!r}, 'w')"),
        [embeddings(), Trap(open, str(mark), "w")],
        np.array([Trap(open, str(mark), "w")], dtype=object),
        Trap(np.memmap, str(mark), "uint8", "w+", 0, (4,)),
        Trap(np.fromfile, str(path)),
        Trap(getattr, np.ndarray, "tofile"),
    ]
    for trap in traps:
        for protocol in range(6):
            path.write_bytes(pickle.dumps(trap, protocol))
            with pytest.raises(ModelError, match="was not loaded: it names"):
                read_array(path)
            assert not mark.exists()
    path.write_bytes(pickle.dumps(traps[0]))
    pickle.loads(path.read_bytes()).close()
    assert mark.exists(), "the trap is one"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"nothing", pickle.dumps(embeddings())[:-20], pickle.dumps({"a": 1}), pickle.dumps([1.0])),
        *(pickle.dumps(np.array(["a"])), pickle.dumps(np.array([None])), pickle.dumps(embeddings()[:0])),
        b"\x93NUMPY\x01\x00v",
    ],
)
def test_files_that_hold_no_array_of_numbers(tmp_path, content):
    (tmp_path / "prompts.p").write_bytes(content)
    with pytest.raises(ModelError, match="something other than an array") as caught:
        read_array(tmp_path / "prompts.p")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="does not exist"):
        read_array(tmp_path / "nowhere.npy")
