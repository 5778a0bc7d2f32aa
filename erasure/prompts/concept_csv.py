"""A CSV file of prompts, read strictly: one row is a prompt to forget, with what takes its place, or one to retain.

The columns are role,prompt,anchor,shows. `role` is forget or retain; `anchor` is the prompt whose answer takes the
place of a forgotten one's; `shows` says what a held classifier should see, such as digit=three;digit=seven;style=chalk.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasure.core.errors import DataError

Shows = tuple[tuple[str, str], ...]

COLUMNS = ("role", "prompt", "anchor", "shows")
NEEDED = COLUMNS[:3]


@dataclass(frozen=True)
class Prompt:
    """A prompt; `anchor` is what a forgotten one becomes, `shows` the (domain, value) pairs of a picture, in order."""

    text: str
    anchor: str = ""
    shows: Shows = ()


def read_prompts(path: Path, flag: str) -> tuple[list[Prompt], list[Prompt]]:
    """The rows to forget and the rows to retain of a CSV file in UTF-8, in its order; `flag` is what named the file.

    Raises DataError, with the line, for a file that cannot be read, is no such table, or has a row that means nothing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{flag} {path} is not UTF-8 text: save it as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be read ({error.strerror}): give a CSV file of prompts") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows: dict[str, list[Prompt]] = {"forget": [], "retain": []}
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_columns(columns, f"{flag} {path}")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                role, prompt = _row(columns, cells, f"{flag} {path}, line {reader.line_num}")
                rows[role].append(prompt)
    except csv.Error as error:
        raise DataError(f"{flag} {path}, line {reader.line_num}: {error}: close the quotes of every prompt") from error
    return rows["forget"], rows["retain"]


def _check_columns(columns: Sequence[str], where: str) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise DataError(f"{where} has no column {missing[0]!r}: its first line must be {','.join(COLUMNS)}")
    unknown = [name for i, name in enumerate(columns) if name not in COLUMNS or name in columns[:i]]
    if unknown:
        raise DataError(f"{where} has a column {unknown[0]!r} too many: its first line must be {','.join(COLUMNS)}")


def _row(columns: Sequence[str], cells: Sequence[str], where: str) -> tuple[str, Prompt]:
    if len(cells) > len(columns):
        raise DataError(
            f"{where} has {len(cells)} values for {len(columns)} columns: put quotes around a prompt with commas"
        )
    values = dict.fromkeys(COLUMNS, "") | {name: cell.strip() for name, cell in zip(columns, cells, strict=False)}
    role = values["role"]
    if role not in ("forget", "retain"):
        raise DataError(f"{where}: the role {role!r} must be forget or retain")
    if not values["prompt"]:
        raise DataError(f"{where}: the prompt to {role} is empty: write one, or take the line out")
    if role == "retain" and values["anchor"]:
        raise DataError(f"{where}: a prompt to retain has no anchor: leave it empty, or make the role forget")
    pairs = [tuple(part.strip() for part in pair.split("=")) for pair in values["shows"].split(";") if values["shows"]]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise DataError(f"{where}: shows {values['shows']!r} must be pairs such as object=church;style=photo")
    return role, Prompt(values["prompt"], values["anchor"], tuple((domain, value) for domain, value in pairs))
