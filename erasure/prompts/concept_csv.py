"""The concept in a CSV file: a row is a prompt to forget, with what takes its place, or a prompt to retain.

The columns are role,prompt,anchor,shows. `role` is forget or retain; `anchor` is the prompt whose prediction takes
the place of a forgotten one's; `shows` says what a frozen classifier should see, such as digit=three;style=chalk.
Columns of prompt sets, such as `seed`, may stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erasure.core.errors import DataError
from erasure.prompts.csv_table import CONCEPT_COLUMNS, CsvTable, parse_table, read_text

Shows = tuple[tuple[str, str], ...]

NEEDED = CONCEPT_COLUMNS[:3]
ROLES = ("forget", "retain")


@dataclass(frozen=True)
class Prompt:
    """A prompt; `anchor` is what a forgotten one becomes, `shows` the (domain, value) pairs of an image, in order."""

    text: str
    anchor: str = ""
    shows: Shows = ()


def read_prompts(path: Path, flag: str) -> tuple[list[Prompt], list[Prompt]]:
    """Read the prompts to forget and those to retain from a CSV file, in its order; `flag` is what named the file.

    Raises DataError, with the line, for a file that cannot be read, is no such table, or has a row without meaning.
    """
    found = prompts_of(parse_table(read_text(path, flag)[0], f"{flag} {path}", NEEDED))
    forget, retain = ([prompt for role, prompt in found if role == wanted] for wanted in ROLES)
    return forget, retain


def prompts_of(table: CsvTable) -> list[tuple[str, Prompt]]:
    """The role and the prompt of each row; raises DataError for a row without meaning."""
    return [_prompt(row.values, f"{table.where}, line {row.line}") for row in table.rows]


def _prompt(values: Mapping[str, str], place: str) -> tuple[str, Prompt]:
    role, anchor, shows = values["role"], values["anchor"], values.get("shows", "")
    if role not in ROLES:
        raise DataError(f"{place}: the role {role!r} must be forget or retain")
    if not values["prompt"]:
        raise DataError(f"{place}: the prompt to {role} is empty: write one, or take the line out")
    if role == "retain" and anchor:
        raise DataError(f"{place}: a prompt to retain has no anchor: leave it empty, or make the role forget")
    pairs = [tuple(part.strip() for part in pair.split("=")) for pair in shows.split(";") if shows]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise DataError(f"{place}: shows {shows!r} must be pairs such as object=church;style=photo")
    return role, Prompt(values["prompt"], anchor, tuple((domain, value) for domain, value in pairs))
