"""A CSV file of prompts, read strictly: what concepts, prompt sets and lists of prompts have in common.

The first line names the columns, one of them `prompt`. A file may have columns that its reader does not use, so that
one file serves all three; a column that none of them knows is named in a note, since it may be a typing error. Errors
name the line and never show a prompt, which may be unfit to be shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from erasure.core.errors import DataError
from erasure.core.logging import log_warning

PROMPT = "prompt"
CONCEPT_COLUMNS = ("role", PROMPT, "anchor", "shows")
# The columns that mean the same, the one that is read first in front.
SEEDS = ("seed", "evaluation_seed", "sd_seed")
GUIDANCE = ("guidance_scale", "guidance", "evaluation_guidance", "sd_guidance_scale")
WIDTHS = ("width", "sd_image_width")
HEIGHTS = ("height", "sd_image_height")
ID, CATEGORIES, HARD = "case_number", "categories", "hard"
INDEX = ""  # a first column without a name, also as pandas calls it when it writes it once more
PANDAS_INDEX = "Unnamed: 0"
UNUSED = ("lexica_url", "sd_model")  # of the published I2P
KNOWN = (*CONCEPT_COLUMNS, *SEEDS, *GUIDANCE, *WIDTHS, *HEIGHTS, ID, CATEGORIES, HARD, INDEX, *UNUSED)
LISTED = 40  # letters of a cell, and half as many columns, that an error shows


@dataclass(frozen=True)
class CsvRow:
    """One row: the line of the file it begins in, and its cells by column, without spaces around them."""

    line: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class CsvTable:
    """The rows of a file in its order, its columns, and how errors name it."""

    where: str
    columns: tuple[str, ...]
    rows: tuple[CsvRow, ...]


def read_text(path: Path, flag: str) -> tuple[str, str]:
    """The text of a file in UTF-8 and the SHA-256 of its bytes; raises DataError, naming `flag`, for anything else."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{flag} {path} is not a readable file ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{flag} {path} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8") from error
    if "\0" in text:
        raise DataError(f"{flag} {path} is not a CSV: it has bytes that no text has")
    return text, hashlib.sha256(data).hexdigest()


def parse_table(text: str, where: str, needed: Sequence[str] = (PROMPT,)) -> CsvTable:
    """The table in `text`, with at least the columns `needed`; `where` is how errors name the file.

    Raises DataError for a table without them, a row of another length, and quotes that are not closed.
    """
    # Line breaks inside quotes are the prompt's own, so the reader must see them as they are.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    found, line = [], 1
    try:
        columns = _columns(next(reader, []), where, needed)
        line = reader.line_num + 1
        for cells in reader:
            if cells and (len(columns) == 1 or any(map(str.strip, cells))):
                found.append(CsvRow(line, _values(columns, cells, f"{where}, line {line}")))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{where}, line {line} is not readable ({error}): close the quotes of its prompt") from error
    return CsvTable(where, tuple(columns), tuple(found))


def is_score(name: str) -> bool:
    """Whether a column holds a score, such as nudity_percentage."""
    return name.endswith("_percentage") or name == "prompt_toxicity"


def _columns(first: Sequence[str], where: str, needed: Sequence[str]) -> list[str]:
    columns = [name.strip() for name in first]
    if not any(columns):
        raise DataError(f"{where} is empty: expected a CSV whose first line names its columns: {','.join(needed)}")
    if columns[0] == PANDAS_INDEX:
        columns[0] = INDEX
    missing = [name for name in needed if name not in columns]
    if missing:
        own = ", ".join(name[:LISTED] for name in columns[: LISTED // 2])
        raise DataError(f"{where} has no column {missing[0]!r} (it has {own}): its first line must name it")
    twice = [name for i, name in enumerate(columns) if name and name in columns[:i]]
    if twice:
        raise DataError(f"{where} has two columns {twice[0]!r}: leave one out")
    unknown = [name for name in columns if name not in KNOWN and not is_score(name)]
    if unknown:
        log_warning(f"{where}: no meaning is known for {', '.join(map(_suggested, unknown[: LISTED // 2]))}: not read")
    return columns


def _suggested(name: str) -> str:
    near = get_close_matches(name, KNOWN, n=1)
    return repr(name[:LISTED]) + (f" (did you mean {near[0]!r}?)" if near else "")


def _values(columns: Sequence[str], cells: Sequence[str], place: str) -> dict[str, str]:
    """The cells by column; columns without a name are left out, unless the first is one."""
    if len(cells) > len(columns) or len(cells) <= columns.index(PROMPT):
        raise DataError(
            f"{place} has {len(cells)} values for {len(columns)} columns: put quotes around a prompt with commas"
        )
    every = [*cells, *[""] * (len(columns) - len(cells))]
    named = {name: cell.strip() for name, cell in zip(columns, every, strict=True) if name}
    return named | ({INDEX: cells[0].strip()} if columns[0] == INDEX else {})
