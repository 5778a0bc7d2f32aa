"""Data sets, training images and audits read the same files of a folder, and say how many they skip."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from erasure.auditing.image_sources import FolderImages
from erasure.data import load_dataset
from erasure.data.images import find_images, image_paths
from erasure.erasing.targets.generated_images import _from_folder, text_task
from erasure.prompts.concept import Concept, Prompt


def encoded(kind="PNG", value=3):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, format=kind)
    return stream.getvalue()


IMAGES = {
    "a/1.png": encoded(),
    "a/2.JPG": encoded("JPEG"),
    "b/3": encoded("PNG"),
    "b/4.tif": encoded("TIFF"),
    "b/5.gif": encoded("GIF"),
    "b/6.bmp": encoded("BMP"),
    "b/7.webp": encoded("WEBP"),
}
OTHERS = {
    "a/._1.png": b"\0\5\26\7 of macOS",
    "__MACOSX/a/1.png": b"\0\5\26\7 of macOS",
    ".ipynb_checkpoints/a/1.png": encoded(value=9),
    "a/.ipynb_checkpoints/1.png": encoded(value=9),
    "a/.DS_Store": b"\0\0\0\1Bud1",
    "a/boxes.txt": b"1 2 3 4",
    "b/table.csv": b"prompt\n",
    "b/weights": b"\x80\x02}q",
    "b/empty": b"",
}
SKIPPED = "skipped 9 files that are no images: "


@pytest.fixture
def folder(tmp_path):
    for name, content in (IMAGES | OTHERS).items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    return tmp_path / "mine"


def packed(folder, kind):
    path = folder.with_suffix(f".{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (IMAGES | OTHERS).items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, ".")
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_a_data_set_is_read_without_what_is_no_image(folder, caplog, kind):
    source = folder if kind == "folder" else packed(folder, kind)
    with caplog.at_level("INFO", logger="erasure"):
        train, again = (load_dataset(str(source), "train") for _ in range(2))
    assert train.class_names == ("a", "b") and np.bincount(train.labels).tolist() == [
        2,
        4,
    ]  # every fifth is for testing
    assert train.images.max() == 3 and train.hash == again.hash
    assert caplog.text.count(f"{source}: {SKIPPED}") == 1


def test_training_images_and_audits_read_the_same_files(folder, caplog):
    with caplog.at_level("INFO", logger="erasure"):
        names = [path.relative_to(folder).as_posix() for path in image_paths(folder)]
        assert names == sorted(IMAGES)
        assert [planned.row for planned in FolderImages(folder).planned] == names
        concept = Concept("cat", (Prompt("a cat", "a dog"),), (Prompt("a dog"),))
        images = _from_folder(folder, concept.forget, text_task(concept), 8, "--forget-images")
    assert len(images) == len(IMAGES) and images.images.max() == 3
    assert caplog.text.count(SKIPPED) == 1


def test_links_are_followed_once_and_a_broken_one_is_no_silent_gap(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").write_bytes(encoded())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "lost.png").symlink_to(tmp_path / "nowhere")
    names = [path.relative_to(tmp_path / "mine").as_posix() for path in find_images(tmp_path / "mine")]
    assert names == ["linked/1.png", "lost.png"]
    assert find_images(tmp_path / "none") == []


def test_a_hidden_folder_that_is_named_is_read(folder):
    assert len(image_paths(folder / ".ipynb_checkpoints")) == 1
