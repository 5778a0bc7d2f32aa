"""Prompts to draw, from the command line, a text file or a CSV, each with the seed, guidance and size it brings.

A CSV has a column `prompt`. Both layouts of I2P are read (Schramowski et al., 2023, with `sd_seed` and the like; and
the one that ESD derived from it, with `evaluation_seed` and `case_number`), and so is any other table. It is parsed as
CSV: prompts may have line breaks and quotes, and an empty prompt is a prompt, the unconditional one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.core.errors import DataError, OptionError

# The columns that mean the same, the one that is read first in front.
SEEDS = ("seed", "evaluation_seed", "sd_seed")
GUIDANCE = ("guidance_scale", "guidance", "evaluation_guidance", "sd_guidance_scale")
WIDTHS = ("width", "sd_image_width")
HEIGHTS = ("height", "sd_image_height")
UNNAMED = ("", "Unnamed: 0")  # an index without a name, and what pandas calls it when it writes it once more
MULTIPLE = 8  # an autoencoder shrinks images by this factor
SEED_LIMIT = 2**63  # what a torch generator takes


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and what its table says of it: seed, guidance and size to draw with, labels and scores.

    `id` is unique in its prompt set; `numbers` holds scores such as nudity_percentage and prompt_toxicity; `hard` is
    I2P's own mark of a prompt.
    """

    id: str
    prompt: str
    seed: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    categories: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict, hash=False)
    hard: bool | None = None


@dataclass(frozen=True)
class PromptTable:
    """The rows of a file, its columns (none for a text file) and the SHA-256 of its bytes."""

    rows: tuple[PromptRow, ...]
    columns: tuple[str, ...]
    file_hash: str


def prompt_rows(prompts: Sequence[str], file: str | None, limit: int | None = None) -> list[PromptRow]:
    """`prompts`, then those of `file`: a .txt with one prompt a line, or else a CSV with a column `prompt`.

    Raises OptionError without any prompt, DataError for a file that cannot be read or has a broken row.
    """
    rows = [PromptRow(f"--prompt {number}", prompt) for number, prompt in enumerate(prompts, start=1)]
    if file is not None:
        rows += read_rows(file).rows
    if limit is not None:
        rows = rows[:limit]
    if not rows:
        raise OptionError("no prompt to draw: give --prompt TEXT (as often as you like) or --prompts FILE")
    return rows


def read_rows(file: str | Path) -> PromptTable:
    """The prompts of a file, in its order: a .txt with one prompt a line, or else a CSV with a column `prompt`.

    A row's id is its `case_number`, or else its number in an unnamed first column, or else its place from 1. Raises
    DataError, with the place of a broken row, for a file that cannot be read or is no such table.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--prompts {file} is not a readable file ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts {file} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8") from error
    if "\0" in text:
        raise DataError(f"--prompts {file} is not a CSV: it has bytes that no text has")
    if path.suffix.lower() == ".txt":
        rows, columns = _of_lines(text), list[str]()
    else:
        rows, columns = _of_table(text, f"--prompts {file}")
    return PromptTable(tuple(rows), tuple(columns), hashlib.sha256(data).hexdigest())


def _of_lines(text: str) -> list[PromptRow]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [PromptRow(str(number), line) for number, line in enumerate(lines, start=1)]


def _of_table(text: str, where: str) -> tuple[list[PromptRow], list[str]]:
    # Line breaks inside quotes are the prompt's own, so the reader must see them as they are.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_columns(columns, where)
        given = [cells for cells in reader if cells and (len(columns) == 1 or any(map(str.strip, cells)))]
    except csv.Error as error:
        raise DataError(f"{where} is not a readable CSV (line {reader.line_num}: {error})") from error
    rows = [_row(columns, cells, number, where) for number, cells in enumerate(given, start=1)]
    if not rows:
        raise DataError(f"{where} has no row below its first line, which names its columns")
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if first.setdefault(row.id, number) != number:
            raise DataError(f"{where}, row {number} has the number {row.id} of row {first[row.id]}: each needs its own")
    return rows, columns


def _check_columns(columns: Sequence[str], where: str) -> None:
    if not any(columns):
        raise DataError(f"{where} is empty: expected a CSV whose first line names its columns, one of them prompt")
    if "prompt" not in columns:
        raise DataError(f"{where} has no column 'prompt' (it has {', '.join(name[:40] for name in columns[:20])})")
    twice = [name for i, name in enumerate(columns) if name and name in columns[:i]]
    if twice:
        raise DataError(f"{where} has two columns {twice[0]!r}: leave one out")


def _row(columns: Sequence[str], cells: Sequence[str], number: int, where: str) -> PromptRow:
    """The row `number`; raises DataError, which names it but never shows the prompt."""
    if len(cells) > len(columns) or len(cells) <= columns.index("prompt"):
        raise DataError(
            f"{where}, row {number} has {len(cells)} values for {len(columns)} columns: "
            "put quotes around a prompt with commas"
        )
    values = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name}
    if columns[0] in UNNAMED:
        values[UNNAMED[0]] = cells[0].strip()
    try:
        return PromptRow(
            _id(values, number),
            values["prompt"],
            _whole(values, SEEDS),
            _guidance(values),
            _size(values, WIDTHS),
            _size(values, HEIGHTS),
            tuple(part.strip() for part in values.get("categories", "").split(",") if part.strip()),
            {name: _number(name, value) for name, value in values.items() if _is_score(name) and value},
            _hard(values.get("hard", "")),
        )
    except ValueError as error:
        raise DataError(f"{where}, row {number}: {error}") from error


def _id(values: Mapping[str, str], number: int) -> str:
    """A number, never words: it stands for a prompt that must not be shown."""
    column = next((name for name in ("case_number", UNNAMED[0]) if name in values), None)
    if column is None:
        return str(number)
    found = _whole(values, (column,))
    if found is None:
        raise ValueError(f"{column or 'the unnamed column'} is empty: each row needs a number of its own")
    return str(found)


def _first(values: Mapping[str, str], names: Sequence[str]) -> tuple[str, str]:
    """The first of `names` that is a column, and the value there; "" when there is none."""
    name = next((name for name in names if name in values), None)
    return ("", "") if name is None else (name, values[name])


def _whole(values: Mapping[str, str], names: Sequence[str], limit: int = SEED_LIMIT) -> int | None:
    """A whole number from 0, never read through a float: 2^53 is not the last of them."""
    name, value = _first(values, names)
    if not value:
        return None
    found = re.fullmatch(r"(\d+)(?:\.0*)?", value, re.ASCII)
    if not found or int(found[1]) >= limit:
        raise ValueError(f"{name or 'the unnamed column'} {value[:40]!r} is not a whole number from 0 to {limit - 1}")
    return int(found[1])


def _guidance(values: Mapping[str, str]) -> float | None:
    name, value = _first(values, GUIDANCE)
    if not value:
        return None
    found = _number(name, value)
    if found < 0:
        raise ValueError(f"{name} {value[:40]!r} is below 0")
    return found


def _size(values: Mapping[str, str], names: Sequence[str]) -> int | None:
    found = _whole(values, names, limit=2**16)
    if found is not None and (found == 0 or found % MULTIPLE):
        raise ValueError(f"{_first(values, names)[0]} {found} is not a multiple of {MULTIPLE}")
    return found


def _is_score(name: str) -> bool:
    return name.endswith("_percentage") or name == "prompt_toxicity"


def _number(name: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{name} {value[:40]!r} is not a number")
    return found


def _hard(value: str) -> bool | None:
    known: dict[Any, bool | None] = {"": None, "0": False, "0.0": False, "false": False}
    known |= {"1": True, "1.0": True, "true": True}
    if value.lower() not in known:
        raise ValueError(f"hard {value[:40]!r} is neither 0 nor 1")
    return known[value.lower()]
