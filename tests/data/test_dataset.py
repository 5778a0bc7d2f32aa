import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from erasure.core.errors import DataError
from erasure.data import Batches, load_dataset
from erasure.data.cifar10 import NAMES, RECORD, Cifar10
from tests.conftest import CIFAR10


def test_digits_are_split_once_and_for_all(digits):
    test = load_dataset("digits", "test")
    assert (len(digits), len(test)) == (1442, 355)
    assert digits.images.dtype == np.uint8 and digits.images.max() == 255
    train = {image.tobytes() for image in digits.images}
    assert sum(image.tobytes() in train for image in test.images) <= 1


def _png(value: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _tree(split: str = "") -> dict[str, bytes]:
    prefix = f"{split}/" if split else ""
    return {f"{prefix}{name}/{i}.png": _png(10 * j + i) for j, name in enumerate(("a", "b")) for i in range(5)}


def _write(kind, root, files):
    if kind == "folder":
        for name, raw in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(raw)
        return root
    path = root / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in files.items():
                archive.writestr(name, raw)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_a_tree_of_class_folders_loads_from_any_container(tmp_path, kind):
    source = _write(kind, tmp_path, _tree())
    train, test = (load_dataset(str(source), split) for split in ("train", "test"))
    assert train.class_names == ("a", "b") and (len(train), len(test)) == (8, 2)
    assert train.images[train.labels == 1].min() == 10
    assert load_dataset(str(source), image_size=2).images.shape == (8, 2, 2, 3)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_split_folders_are_respected(tmp_path, kind):
    source = _write(kind, tmp_path, _tree("train") | _tree("test"))
    assert len(load_dataset(str(source), "train")) == 10


def test_a_broken_image_is_named(tmp_path):
    source = _write("folder", tmp_path, _tree() | {"b/broken.png": _png(1)[:40]})
    with pytest.raises(DataError, match=r"b/broken.png is not a readable image"):
        load_dataset(str(source))


def test_images_of_two_sizes_are_named(tmp_path):
    source = _write("folder", tmp_path, _tree() | {"b/wide.png": _png(1, 6)})
    with pytest.raises(DataError, match=r"b/wide.png is 6 x 6.*`image_size`"):
        load_dataset(str(source))


@pytest.mark.parametrize(
    ("spec", "message"),
    [("digitss", "did you mean 'digits'"), ("./nowhere", "neither a path"), ("someone/something", "cannot be loaded")],
)
def test_unknown_data_is_one_clear_error(spec, message):
    with pytest.raises(DataError, match=message):
        load_dataset(spec)


def test_an_archive_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="not a readable folder, tar or zip"):
        load_dataset(str(tmp_path / "x.tar.gz"))


def _binary(per_class: int) -> bytes:
    records = np.zeros((per_class * 10, RECORD), np.uint8)
    records[:, 0] = np.arange(len(records)) % 10
    records[:, 1:1025] = 200  # the red plane comes first
    return records.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_the_official_binary_version_loads(tmp_path, packed):
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    (root / "test_batch.bin").write_bytes(_binary(1000))
    if packed:
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(root / "test_batch.bin", "cifar-10-batches-bin/test_batch.bin")
        (root / "test_batch.bin").unlink()
        root.rmdir()
    dataset = load_dataset("cifar10", "test", tmp_path)
    assert dataset.images.shape == (10000, 32, 32, 3) and dataset.class_names == NAMES
    assert (dataset.images[0] == [200, 0, 0]).all()


def test_a_wrong_count_is_refused(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(_binary(999))
    with pytest.raises(DataError, match=r"not CIFAR-10's test split: expected 1000 .* found 999"):
        load_dataset("cifar10", "test", tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(_binary(1000)[:-5])
    with pytest.raises(DataError, match="damaged"):
        load_dataset("cifar10", "test", tmp_path)


def test_the_pickled_version_is_not_opened(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="pickled Python version"):
        load_dataset("cifar10", "train", tmp_path)
    with pytest.raises(DataError, match="needs `data_dir`"):
        Cifar10().load("train")


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 archives are not beside the checkout")
def test_the_real_archive_loads():
    dataset = load_dataset("cifar10", "test", CIFAR10)
    assert dataset.images.shape == (10000, 32, 32, 3)
    assert np.bincount(dataset.labels).tolist() == [1000] * 10
    # Photographs, not noise: neighbouring pixels agree.
    steps = np.diff(dataset.images[:500].astype(float), axis=1)
    assert np.abs(steps).mean() < 0.3 * dataset.images[:500].std()


def test_a_hub_table_is_read_by_its_column_types():
    datasets = pytest.importorskip("datasets", reason="the hub extra is not installed")
    from erasure.data.hub import from_table

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    pictures = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (1, 2, 3)]
    table = datasets.Dataset.from_dict({"img": pictures, "label": [0, 1, 1]}, features=features)
    dataset = from_table(table, "owner/name", "train", None)
    assert dataset.images[:, 0, 0, 0].tolist() == [1, 2, 3] and dataset.class_names == ("no", "yes")
    with pytest.raises(DataError, match="needs an image and a class-label column"):
        from_table(table.remove_columns("label"), "owner/name", "train", None)


def test_a_batch_is_a_function_of_its_step(digits):
    one, other = Batches(digits, 100, 7), Batches(digits, 100, 7)
    other.at(30)
    for step in (14, 3, 14):
        assert one.at(step).images.equal(other.at(step).images)
    seen = np.concatenate([Batches(digits, 103, 0).at(step).labels for step in range(14)])
    assert np.array_equal(np.bincount(seen), np.bincount(digits.labels))


def test_first_is_even_over_the_classes(digits):
    assert np.bincount(digits.first(50).labels).tolist() == [5] * 10
