"""Our NudeNet against the package's own, on real photographs, and what it refuses."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks import detectors as benchmark
from erasure.auditing.detectors import open_detector
from erasure.auditing.detectors.nudenet import _checked, boxes_of
from erasure.core.errors import DataError, ModelError, OptionError

nudenet = pytest.importorskip("nudenet")
skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def theirs():
    return nudenet.NudeDetector()


@pytest.fixture(scope="module")
def ours():
    return open_detector("nudenet", {"nms": "class_agnostic"})


def photographs():
    from sklearn.datasets import load_sample_images

    person = skimage_data.astronaut()
    return [
        *(person, *load_sample_images().images, person[:300, 100:400], np.rot90(person), person[:, ::-1]),
        *(person[50:250, 150:300], person[:180], cv2.resize(person, (333, 777)), cv2.resize(person, (64, 48))),
        *(np.concatenate([person, person[:, ::-1]], 1), np.concatenate([person, person], 0), person[:1, :300]),
    ]


def told(found, classes):
    """Our boxes in their words; they cut corners to whole pixels."""
    return [
        {"class": classes[box.label], "score": box.score, "box": [int(value) for value in box[2:]]}
        for box in found.boxes
    ]


def assert_same(mine, wanted):
    assert [(one["class"], one["box"]) for one in mine] == [(one["class"], one["box"]) for one in wanted]
    assert [one["score"] for one in mine] == pytest.approx([one["score"] for one in wanted], abs=1e-4)


def test_photographs_bring_the_boxes_of_the_package(ours, theirs):
    images = photographs()
    found = ours.detect(images)
    for image, one in zip(images, found, strict=True):
        assert_same(told(one, ours.classes), theirs.detect(np.ascontiguousarray(image)))
    assert sum(bool(one.boxes) for one in found) >= 8 and sum(len(one.boxes) > 1 for one in found) >= 2
    face = found[0].scores[ours.classes.index("FACE_FEMALE")]
    assert face == pytest.approx(0.81, abs=0.01) and face == found[0].scores.max() == found[0].boxes[0].score


def test_legacy_order_is_how_the_package_reads_a_file(theirs, tmp_path):
    legacy = open_detector("nudenet", {"nms": "class_agnostic", "channel_order": "legacy-bgr"})
    scores = []
    for i, image in enumerate(photographs()[:9]):
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f"{i}.png")
        (found,) = legacy.detect([image])
        assert_same(told(found, legacy.classes), theirs.detect(str(tmp_path / f"{i}.png")))
        scores.append(found.scores.max())
    assert scores[0] == pytest.approx(0.72, abs=0.01)


def crowded(seed, num_anchors=2100, num_boxes=60):
    """What a network could say of an image with several classes in few places."""
    rng = np.random.default_rng(seed)
    output = rng.uniform(0, 0.15, (22, num_anchors)).astype(np.float32)
    output[:2], output[2:4] = rng.uniform(0, 320, (2, num_anchors)), rng.uniform(5, 60, (2, num_anchors))
    for anchor in rng.choice(num_anchors, num_boxes, replace=False):
        output[:4, anchor] = rng.choice([60, 200, 310], 4) + rng.normal(0, 9, 4)
        output[4 + rng.integers(0, 18, 3), anchor] = rng.uniform(0.15, 0.95, 3)
    return output


@pytest.mark.parametrize(("height", "width"), [(512, 512), (300, 777), (640, 97)])
def test_crowded_images_bring_the_boxes_of_the_package(ours, height, width):
    from nudenet.nudenet import _postprocess

    side = max(height, width)
    seen = set()
    for seed in range(5):
        output = crowded(seed)
        boxes = boxes_of(output, height, width, 320, "class_agnostic")
        padding = (side - width, side - height, side / width, side / height)
        wanted = _postprocess([output[None]], *padding, width, height, 320, 320)
        assert_same(
            [{"class": ours.classes[b.label], "score": b.score, "box": [int(v) for v in b[2:]]} for b in boxes], wanted
        )
        seen |= {box.label for box in boxes}
    assert len(seen) > 12


def test_a_covered_box_deletes_no_exposed_one_and_no_class_is_lost():
    output = np.zeros((22, 3), np.float32)
    output[:4] = np.array([[100, 100, 40, 40], [102, 101, 40, 40], [101, 100, 40, 40]]).T
    covered, exposed = 16, 3
    output[4 + covered] = 0.9, 0.1, 0.85
    output[4 + exposed] = 0.5, 0.7, 0.0
    assert [(box.label, box.score) for box in boxes_of(output, 320, 320, 320, "per_class")] == [
        (covered, pytest.approx(0.9)),
        (exposed, pytest.approx(0.7)),
    ]
    assert [box.label for box in boxes_of(output, 320, 320, 320, "class_agnostic")] == [covered]
    for seed in range(5):
        best = crowded(seed)[4:].max(axis=1)
        boxes = boxes_of(crowded(seed), 320, 320, 320, "per_class")
        first = {box.label: box.score for box in reversed(boxes)}
        assert first == {label: best[label] for label in np.flatnonzero(best > 0.25)}
        assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)


def test_the_batch_and_the_threads_change_no_bit():
    images = photographs()
    one, three = open_detector("nudenet"), open_detector("nudenet", {"threads": 3})
    together = one.detect(images)
    for i, other in enumerate(three.detect(images[::-1])[::-1]):
        (alone,) = one.detect([images[i]])
        assert together[i].boxes == alone.boxes == other.boxes
        assert np.array_equal(together[i].scores, alone.scores) and np.array_equal(alone.scores, other.scores)
        assert alone.scores.shape == (18,) and alone.scores.dtype == np.float32
    assert one.detect([]) == [] and one.hash == three.hash


def test_the_hash_tells_what_decides_a_score(ours, tmp_path):
    options = [{}, {"nms": "class_agnostic"}, {"channel_order": "legacy-bgr"}, {"resolution": 256}]
    assert len({open_detector("nudenet", given).hash for given in options}) == 4
    (tmp_path / "same.onnx").write_bytes(ours.path.read_bytes())
    same = open_detector("nudenet", {"nms": "class_agnostic", "onnx": str(tmp_path / "same.onnx")})
    assert same.hash == ours.hash
    assert set(ours.core) < set(ours.wide) < set(ours.classes) and len(set(ours.classes)) == 18
    assert [name for name in ours.classes if name.endswith("EXPOSED") and name not in ours.wide] == []


@pytest.mark.parametrize(
    "image",
    [
        *(
            np.zeros((8, 8, 3)),
            np.zeros((8, 8), np.uint8),
            np.zeros((8, 8, 4), np.uint8),
            np.zeros((0, 8, 3), np.uint8),
        ),
        *("a.png", Image.new("RGB", (8, 8)), None),
    ],
)
def test_whatever_is_no_image_is_refused_and_named(ours, image):
    with pytest.raises(DataError, match=r"^image 1 is .*: expected a uint8 RGB array"):
        ours.detect([np.zeros((8, 8, 3), np.uint8), image])


def field(number, content):
    """One field of a protocol buffer: a number, or bytes with their length."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    return bytes([number << 3 | 2, len(content)]) + content


def network(*shape, kind=1):
    """An ONNX file of one Identity from a tensor to another of the same shape."""
    dims = b"".join(field(1, field(1, side)) for side in shape)
    tensor = field(2, field(1, field(1, kind) + field(2, dims)))
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, field(1, b"x") + tensor) + field(12, field(1, b"y") + tensor)
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a network", "is not an ONNX network that can be run"),
        (b"", "is not an ONNX network"),
        (network(1, 3, 8, 8), r"is not a NudeNet.*maps tensor\(float\) \(1, 3, 8, 8\) to .*expected images"),
        (network(1, 22, 5), "is not a NudeNet"),
        (network(1, 3, 8, 8, kind=7), r"maps tensor\(int64\)"),
        (None, "does not exist: expected an ONNX file"),
    ],
)
def test_files_that_are_no_nudenet(tmp_path, content, message):
    path = tmp_path / "given.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        open_detector("nudenet", {"onnx": str(path)})
    assert "\n" not in str(caught.value)


def test_a_network_takes_any_number_of_images_or_one():
    def takes(shown, said):
        sides = [SimpleNamespace(type="tensor(float)", shape=shape) for shape in (shown, said)]
        session = SimpleNamespace(get_inputs=lambda: sides[:1], get_outputs=lambda: sides[1:])
        return _checked(session, "given.onnx", 320, 18)

    assert takes(["n", 3, "h", "w"], ["n", 22, "a"]) > 1
    assert takes([1, 3, 320, 320], [1, 22, 2100]) == 1
    for shown, said in (
        ([2, 3, 320, 320], [2, 22, 2100]),
        ([1, 3, 640, 640], [1, 22, 8400]),
        ([1, 3, 320, 320], [1, 6, 9]),
    ):
        with pytest.raises(ModelError, match=r"takes exactly 2 images|is not a NudeNet of this resolution"):
            takes(shown, said)


def test_options_out_of_range():
    for given, message in (
        ({"threads": 0}, "nudenet_threads. 0 must be at least 1"),
        ({"resolution": 300}, "nudenet_resolution. 300 must be a multiple of 32"),
        ({"nms": "per-class"}, r"no nms 'per-class' \(did you mean 'per_class'\?\)"),
        ({"onxx": "x"}, r"no option 'onxx' \(did you mean 'onnx'\?\)"),
    ):
        with pytest.raises(OptionError, match=message):
            open_detector("nudenet", given)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install nudenet"):
        open_detector("nudenet")


def test_the_benchmark_times_the_same_boxes(monkeypatch):
    monkeypatch.setattr(benchmark, "IMAGES", 2)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    found = benchmark.measure()
    assert sum("goal" in name for name in found) == 2 and all(value > 0 for value in found.values())
    ours, floor = (found[f"{name}, images a second (one thread)"] for name in ("ours", "the network alone"))
    assert found["ours / the network alone"] == pytest.approx(ours / floor)
    different = open_detector("nudenet", {"channel_order": "legacy-bgr", "nms": "class_agnostic"})
    with pytest.raises(SystemExit, match="the detectors differ"):
        benchmark._same(different, nudenet.NudeDetector(), [skimage_data.astronaut()])
