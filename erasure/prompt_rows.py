"""Prompts to draw, from the command line, a text file or a CSV, each with the seed and guidance it brings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasure.errors import DataError, OptionError

GUIDANCE = ("guidance_scale", "guidance", "sd_guidance_scale", "evaluation_guidance")
SEEDS = ("seed", "sd_seed", "evaluation_seed")


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and its own seed and guidance where it has them."""

    prompt: str
    seed: int | None = None
    guidance_scale: float | None = None


def prompt_rows(prompts: Sequence[str], file: str | None, limit: int | None = None) -> list[PromptRow]:
    """`prompts`, then those of `file`: a .csv with a column `prompt`, or any other text with one prompt a line.

    Raises OptionError without any prompt, DataError for a file that cannot be read or has a broken number.
    """
    rows = [PromptRow(prompt) for prompt in prompts]
    if file is not None:
        path = Path(file)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--prompts {file} is not a readable UTF-8 file: {error}") from error
        rows += _of_table(text, file) if path.suffix.lower() == ".csv" else _of_lines(text)
    if limit is not None:
        rows = rows[:limit]
    if not rows:
        raise OptionError("no prompt to draw: give --prompt TEXT (as often as you like) or --prompts FILE")
    return rows


def _of_lines(text: str) -> list[PromptRow]:
    return [PromptRow(line.strip()) for line in text.splitlines() if line.strip()]


def _of_table(text: str, name: str) -> list[PromptRow]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        columns = reader.fieldnames or []
        if "prompt" not in columns:
            raise DataError(
                f"--prompts {name} has no column 'prompt' (it has {', '.join(map(str, columns)) or 'none'})"
            )
        seed_column = next((column for column in SEEDS if column in columns), None)
        guidance_column = next((column for column in GUIDANCE if column in columns), None)
        rows = []
        for number, line in enumerate(reader, start=1):
            seed, guidance = (line.get(column) if column else None for column in (seed_column, guidance_column))
            try:
                rows.append(
                    PromptRow(
                        (line["prompt"] or "").strip(),
                        int(float(seed)) if seed else None,
                        float(guidance) if guidance else None,
                    )
                )
            except ValueError as error:
                raise DataError(f"--prompts {name}, row {number}: {error}") from error
        return rows
    except csv.Error as error:
        raise DataError(f"--prompts {name} is not a readable CSV: {error}") from error
