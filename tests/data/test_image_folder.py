"""CIFAR-100, SVHN and Tiny ImageNet in the layouts in which they are published, small ones made here."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from erasure.core.errors import DataError
from erasure.data import cifar100, hub, load_dataset, svhn, tiny_imagenet

WNIDS = ("n02124075", "n01443537", "n04067472")


def _image(value: int, size: int = 32, mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def _write(root, files):
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)


def _zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)


def _cifar100_binary() -> bytes:
    records = np.zeros((10_000, cifar100.RECORD), np.uint8)
    records[:, 0] = 19  # the coarse label, which is not read
    records[:, 1] = np.arange(10_000) % 100
    records[:, 2:1026] = 200  # the red plane comes first
    return records.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_the_binary_version_of_cifar100_loads_with_its_fine_labels(tmp_path, packed):
    _write(tmp_path / "cifar-100-binary", {"test.bin": _cifar100_binary()})
    if packed:
        with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(tmp_path / "cifar-100-binary" / "test.bin", "cifar-100-binary/test.bin")
        (tmp_path / "cifar-100-binary" / "test.bin").unlink()
        (tmp_path / "cifar-100-binary").rmdir()
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"another data set beside it")
    dataset = load_dataset("cifar100", "test", tmp_path)
    assert dataset.images.shape == (10_000, 32, 32, 3) and (dataset.images[0] == [200, 0, 0]).all()
    assert dataset.labels[:3].tolist() == [0, 1, 2] and dataset.class_names[1] == "aquarium_fish"
    assert (dataset.flips, dataset.crop_padding) == (True, 4)


def test_cifar100_from_images_is_counted_and_knows_its_classes(tmp_path):
    _write(tmp_path, {f"train/{name}/0.jpg": _image(i, kind="JPEG") for i, name in enumerate(cifar100.NAMES)})
    with pytest.raises(DataError, match=r"not CIFAR-100's train split: expected 500 .* 100 classes, found 1 to 1"):
        load_dataset("cifar100", "train", tmp_path)
    _write(tmp_path, {"train/airplane/0.png": _image(0)})
    with pytest.raises(DataError, match="'airplane' is not a class of CIFAR-100"):
        load_dataset("cifar100", "train", tmp_path)


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "cifar-100-python/train"])
def test_the_pickled_cifar100_is_not_opened(tmp_path, name):
    _write(tmp_path, {name: b"x"})
    for given in (tmp_path, tmp_path / name.split("/")[0]):
        if given.suffix == ".gz" or given == tmp_path:
            with pytest.raises(DataError, match="pickled Python version of CIFAR-100"):
                load_dataset("cifar100", "train", given)


def _matrix(path, count=11, **changed):
    from scipy.io import savemat

    pixels = np.zeros((32, 32, 3, count), np.uint8)
    pixels[:, :, 0] = np.arange(count)
    pixels[3, 5, 2] = 99
    savemat(path, {"X": pixels, "y": (np.arange(count) % 10 + 1)[:, None].astype(np.uint8), **changed})


def test_svhn_loads_from_its_matlab_files(tmp_path, monkeypatch):
    assert svhn.COUNTS == {"train": 73_257, "test": 26_032}
    monkeypatch.setattr(svhn, "COUNTS", {"train": 11, "test": 11})
    _matrix(tmp_path / "test_32x32.mat")
    dataset = load_dataset("svhn", "test", tmp_path)
    assert dataset.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # 10 is the digit 0
    assert dataset.images[7, 0, 0].tolist() == [7, 0, 0] and dataset.images[7, 3, 5].tolist() == [7, 0, 99]
    assert not dataset.flips and dataset.images.dtype == np.uint8
    with pytest.raises(DataError, match=r"no SVHN train split"):
        load_dataset("svhn", "train", tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.full((32, 32, 3, 11), np.nan)}, "X is float64"),
        ({"X": np.zeros((32, 32, 11), np.uint8)}, "expected uint8 of shape"),
        ({"y": np.arange(11)[:, None]}, "its labels must be 1 to 10"),
        ({"y": np.full((11, 1), np.nan)}, "its labels must be 1 to 10"),
    ],
)
def test_damaged_matlab_files_are_refused(tmp_path, changed, message):
    _matrix(tmp_path / "train_32x32.mat", **changed)
    with pytest.raises(DataError, match=message):
        load_dataset("svhn", "train", tmp_path)


def test_other_files_in_place_of_svhn_are_refused(tmp_path):
    path = tmp_path / "train_32x32.mat"
    _matrix(path)
    with pytest.raises(DataError, match="expected 73,257 digits, found 11"):
        load_dataset("svhn", "train", tmp_path)
    for content, message in (
        (path.read_bytes()[:300], "damaged or no MATLAB file"),
        (b"\x80\x04 a pickle", "damaged or no MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(64), "format 1"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_dataset("svhn", "train", tmp_path)


def test_svhn_loads_from_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn, "COUNTS", {"train": 10, "test": 10})
    _write(tmp_path, {f"train/{digit}/1.png": _image(digit) for digit in range(10)})
    dataset = load_dataset("svhn", "train", tmp_path)
    assert dataset.labels.tolist() == dataset.images[:, 0, 0, 0].tolist() == list(range(10))
    _write(tmp_path, {"train/ten/1.png": _image(0)})
    with pytest.raises(DataError, match=r"train/ten/1.png is no digit"):
        load_dataset("svhn", "train", tmp_path)


@pytest.fixture
def tiny(monkeypatch):
    """Files of a Tiny ImageNet of three classes, two images each for training and one for validation."""
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", {"train": 2, "test": 1})
    words = "n01443537\tgoldfish, Carassius auratus\nn02124075\tcat\nn04067472\tcat, tabby\nn00000001\tother\n"
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": words.encode(), "test/images/test_0.JPEG": b"?"}
    rows = []
    for i, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t9\t9\n".encode()
        for k, mode in enumerate(("RGB", "L")):  # some are grey
            files[f"train/{wnid}/images/{wnid}_{k}.JPEG"] = _image(40 * i + 100, 64, mode, "JPEG")
        files[f"val/images/val_{2 - i}.JPEG"] = _image(40 * i + 100, 64, kind="JPEG")
        rows.append(f"val_{2 - i}.JPEG\t{wnid}\t0\t0\t9\t9")
    files["val/val_annotations.txt"] = "\n".join(rows).encode()
    return {f"tiny-imagenet-200/{name}": raw for name, raw in files.items()}


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_loads_as_it_was_published(tmp_path, tiny, packed):
    if packed:
        _zipped(tmp_path / "tiny-imagenet-200.zip", tiny)
    else:
        _write(tmp_path, tiny)
    train, test = (load_dataset("tiny_imagenet", split, tmp_path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("goldfish", "n02124075", "n04067472")  # sorted; two are cats
    assert train.images.shape == (6, 64, 64, 3) and test.images.shape == (3, 64, 64, 3)
    brightness = {0: 140, 1: 100, 2: 180}  # as each class was painted
    for dataset in (train, test):
        seen = dataset.images.mean(axis=(1, 2, 3))
        assert [brightness[label] for label in dataset.labels.tolist()] == pytest.approx(seen, abs=3)
    assert train.flips


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wnids.txt": b"n01443537"}, "wnids.txt names 1 classes, not 3"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn01443537\t0"}, "val_1.JPEG has no class"),
        ({"val/images/val_0.JPEG": b"\xff\xd8 broken"}, "val_0.JPEG is not a readable image"),
        ({"val/images/val_0.JPEG": _image(1, 32)}, "expected a colour image of 64 x 64"),
    ],
)
def test_a_damaged_tiny_imagenet_is_refused(tmp_path, tiny, changed, message):
    _write(tmp_path, tiny | {f"tiny-imagenet-200/{name}": raw for name, raw in changed.items()})
    with pytest.raises(DataError, match=message):
        load_dataset("tiny_imagenet", "test", tmp_path)


def test_a_tiny_imagenet_with_images_missing_is_refused(tmp_path, tiny):
    tiny.pop(f"tiny-imagenet-200/train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG")
    _write(tmp_path, tiny)
    with pytest.raises(DataError, match=r"expected 2 images in each of 3 classes, found 1 to 2"):
        load_dataset("tiny_imagenet", "train", tmp_path / "tiny-imagenet-200")
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataError, match=r"lacks val/val_annotations.txt"):
        load_dataset("tiny_imagenet", "train", tmp_path)


@pytest.mark.parametrize("name", ["cifar100", "svhn", "tiny_imagenet"])
def test_what_is_missing_is_said(tmp_path, name):
    with pytest.raises(DataError, match="needs `data_dir` with the files: expected"):
        load_dataset(name)
    with pytest.raises(DataError, match="expected"):
        load_dataset(name, data_dir=tmp_path)
    with pytest.raises(DataError, match="takes no `image_size`"):
        load_dataset(name, data_dir=tmp_path, image_size=16)


def test_hub_ids_bring_what_the_hub_does_not_say(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the hub extra is not installed")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "coarse_label": datasets.ClassLabel(names=["animal"]),
            "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    columns = {"img": [Image.new("L", (4, 4), v) for v in (1, 2)], "coarse_label": [0, 0], "fine_label": [1, 0]}
    table, asked = datasets.Dataset.from_dict(columns, features=features), []

    def load(name, configuration=None):
        asked.append((name, configuration))
        return {"train": table, "valid": table}

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset = load_dataset("ufldl-stanford/svhn", "test")
    assert dataset.class_names == ("cat", "dog") and dataset.labels.tolist() == [1, 0]
    assert (dataset.flips, dataset.crop_padding) == (False, 4) and load_dataset("uoft-cs/cifar100").flips
    assert load_dataset("someone/else", "train").crop_padding == 0
    assert asked == [("ufldl-stanford/svhn", "cropped_digits"), ("uoft-cs/cifar100", None), ("someone/else", None)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"valid": table})
    with pytest.raises(DataError, match="has no train split"):
        hub.Hub().load("train", "someone/else")


def test_an_archive_is_decoded_once_and_a_damaged_copy_again(tmp_path, monkeypatch):
    from erasure.data import cifar
    from erasure.data.cifar10 import Cifar10

    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "cifar10-train.tar.gz"
    with tarfile.open(archive, "w:gz") as tarred:
        for number, class_name in enumerate(("cat", "dog", "ship")):
            raw = _image(number)
            member = tarfile.TarInfo(f"train/{class_name}/{number}.png")
            member.size = len(raw)
            tarred.addfile(member, io.BytesIO(raw))
    data = Cifar10()
    first = data._read_images(archive, "train")
    assert first[0].shape == (3, 32, 32, 3) and first[1].tolist() == [3, 5, 8]
    (kept,) = (tmp_path / "cache" / "decoded").iterdir()
    decoded = []
    monkeypatch.setattr(cifar, "members", lambda *a, **k: decoded.append(a) or iter(()))
    again = data._read_images(archive, "train")
    assert not decoded and (again[0] == first[0]).all() and (again[1] == first[1]).all()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(DataError, match="holds no images"):
        data._read_images(archive, "train")
    assert decoded
