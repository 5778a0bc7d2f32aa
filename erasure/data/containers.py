"""Files in a folder, a tar or a zip, read alike, and the images among them."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from erasure.core.errors import DataError
from erasure.data.images import HEAD, files_below, is_image, log_skipped, read_image

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


def members(source: Path, split: str | None, channels: int | None = None) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, class, image) for every image below `split` (None: any), of so many `channels` (None: its own).

    Raises DataError for the first broken one.
    """
    for file in images_in(source):
        parts = PurePosixPath(file.name).parts
        if len(parts) >= 2 and (split is None or parts[-3:-2] == (split,)):
            yield file.name, parts[-2], read_image(io.BytesIO(file.read()), f"{source}: {file.name}", channels)


def images_in(source: Path) -> Iterator[StoredFile]:
    """Every image in a folder, tar or zip; a note says how many other files there are."""
    skipped = []
    for file in files(source):
        if is_image(file.name, file.head):
            yield file
        else:
            skipped.append(file.name)
    log_skipped(source, skipped)


class StoredFile:
    """A file in a folder, tar or zip, opened when it is read; read it before the next one."""

    def __init__(self, source: Path, name: str, opened: Callable[[], Any]) -> None:
        self.source, self.name, self._opened = source, name, opened
        self._stream: Any = None

    def head(self) -> bytes:
        """The first HEAD bytes; `read` still begins with them, since going back in an archive is slow."""
        with _readable(self.source):
            return bytes(self._content().peek(HEAD)[:HEAD])

    def read(self) -> bytes:
        """The whole content; raises DataError when the archive is damaged."""
        with _readable(self.source):
            return bytes(self._content().read())

    def _content(self) -> Any:
        if self._stream is None:
            self._stream = self._opened()
        return self._stream

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._stream is not None:
            self._stream.close()


def files(source: Path) -> Iterator[StoredFile]:
    """Every file in a folder, tar or zip; raises DataError for what is none of them, or is damaged."""
    with _readable(source):
        for name, opened in _stored(source):
            file = StoredFile(source, name, opened)
            yield file
            file.close()


def _stored(source: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    if source.is_dir():
        for path in sorted(files_below(source)):
            yield path.relative_to(source).as_posix(), partial(path.open, "rb")
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as zipped:
            for name in zipped.namelist():
                if not name.endswith("/"):
                    yield name, partial(zipped.open, name)
    else:
        with tarfile.open(source) as tarred:
            for member in tarred:
                if member.isfile():
                    yield member.name, partial(tarred.extractfile, member)


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{source} is not a readable folder, tar or zip of images: {error}") from error
