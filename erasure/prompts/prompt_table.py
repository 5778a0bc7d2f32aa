"""Prompts to generate images from: the command line, a text file or a CSV, each with its own seed, guidance and size.

A CSV has a column `prompt`. Both layouts of I2P are read (Schramowski et al., 2023, with `sd_seed` and the like; and
the one that ESD derived from it, with `evaluation_seed` and `case_number`), and so is any other table. It is parsed as
CSV: prompts may have line breaks and quotes, and an empty prompt is a prompt, the unconditional one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from erasure.core.errors import DataError, OptionError
from erasure.prompts.concept_csv import NEEDED, prompts_of
from erasure.prompts.csv_table import (
    CATEGORIES,
    GUIDANCE,
    HARD,
    HEIGHTS,
    ID,
    INDEX,
    SEEDS,
    WIDTHS,
    CsvTable,
    is_score,
    parse_table,
    read_text,
)

MULTIPLE = 8  # an autoencoder shrinks images by this factor
SEED_LIMIT = 2**63  # what a torch generator takes


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and what its table says of it: seed, guidance and size of its images, labels and scores.

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
        raise OptionError("no prompt was given: give --prompt TEXT (as often as you like) or --prompts FILE")
    return rows


def read_rows(file: str | Path, *, forget_only: bool = False) -> PromptTable:
    """Read the prompts of a file, in its order: a .txt with one prompt a line, or else a CSV with a column `prompt`.

    A row's id is its `case_number`, or else its number in an unnamed first column, or else its place from 1. With
    `forget_only`, a concept's file gives only the rows whose role is forget. Raises DataError, with the line of a
    broken row, for a file that cannot be read or is no such table.
    """
    path = Path(file)
    text, file_hash = read_text(path, "--prompts")
    if path.suffix.lower() == ".txt":
        return PromptTable(tuple(_of_lines(text)), (), file_hash)
    table = parse_table(text, f"--prompts {file}")
    if forget_only and set(table.columns) >= set(NEEDED):
        table = _forgotten(table)
    return PromptTable(tuple(_of_table(table)), table.columns, file_hash)


def _forgotten(table: CsvTable) -> CsvTable:
    """The rows of a concept's table that are to be forgotten; raises DataError when there are none."""
    roles = [role for role, _ in prompts_of(table)]
    rows = tuple(row for row, role in zip(table.rows, roles, strict=True) if role == "forget")
    if not rows:
        raise DataError(f"{table.where} names nothing to forget: add a row whose role is forget")
    return replace(table, rows=rows)


def _of_lines(text: str) -> list[PromptRow]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [PromptRow(str(number), line) for number, line in enumerate(lines, start=1)]


def _of_table(table: CsvTable) -> list[PromptRow]:
    """The rows of a table; raises DataError, which names a broken line but never shows its prompt."""
    if not table.rows:
        raise DataError(f"{table.where} has no row below its first line, which names its columns")
    found: list[PromptRow] = []
    lines: dict[str, int] = {}
    for number, row in enumerate(table.rows, start=1):
        try:
            made = _row(row.values, number)
        except ValueError as error:
            raise DataError(f"{table.where}, line {row.line}: {error}") from error
        if lines.setdefault(made.id, row.line) != row.line:
            raise DataError(
                f"{table.where}, line {row.line} has the number {made.id} of line {lines[made.id]}: each needs its own"
            )
        found.append(made)
    return found


def _row(values: Mapping[str, str], number: int) -> PromptRow:
    """The row `number`, counted from 1; raises ValueError for a cell without meaning."""
    return PromptRow(
        _id(values, number),
        values["prompt"],
        _whole(values, SEEDS),
        _guidance(values),
        _size(values, WIDTHS),
        _size(values, HEIGHTS),
        tuple(part.strip() for part in values.get(CATEGORIES, "").split(",") if part.strip()),
        {name: _number(name, value) for name, value in values.items() if is_score(name) and value},
        _hard(values.get(HARD, "")),
    )


def _id(values: Mapping[str, str], number: int) -> str:
    """A number, never words: it stands for a prompt that must not be shown."""
    column = next((name for name in (ID, INDEX) if name in values), None)
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


def _number(name: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{name} {value[:40]!r} is not a number")
    return found


def _hard(value: str) -> bool | None:
    known: dict[str, bool | None] = {"": None, "0": False, "0.0": False, "false": False}
    known |= {"1": True, "1.0": True, "true": True}
    if value.lower() not in known:
        raise ValueError(f"hard {value[:40]!r} is neither 0 nor 1")
    return known[value.lower()]
