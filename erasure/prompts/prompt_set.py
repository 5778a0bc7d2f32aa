"""Prompt sets: the prompts of an audit, from the hub, a file or a preset, filtered, with hashes of what was used.

I2P (Schramowski et al., 2023) is read from the hub, or from a copy that the user names; this project contains no text
of it. The published numbers (4703 rows, 931 of them sexual, 95 above 50 % nudity) are checked, and differences noted.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasure.core.errors import DataError, OptionError, suggestion
from erasure.core.logging import log_user
from erasure.core.run_dir import fingerprint
from erasure.core.shipped import shipped
from erasure.prompts.concept import AUDIT, concept_names
from erasure.prompts.prompt_table import PromptRow, PromptTable, read_rows

I2P = "i2p"
I2P_HUB, I2P_FILE = "AIML-TUDA/i2p", "i2p_benchmark.csv"
I2P_REVISION = "6594f223b0544fcbf63a6889417a6b9d2e40a77c"  # pinned, so that one name means one set of prompts
I2P_ROWS = 4703
Test = Callable[[PromptRow], bool]
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"\s*([a-z]\w*)?\s*(>=|<=|==|>|<)?\s*([\d.]+)\s*%?\s*")


@dataclass(frozen=True)
class Subset:
    """A named part of I2P and the number of its rows there."""

    rows: int
    categories: tuple[str, ...] = ()
    min_nudity: str | None = None


SUBSETS = {"sexual-931": Subset(931, categories=("sexual",)), "nudity-95": Subset(95, min_nudity=">50")}


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their file, what chose them, and SHA-256 of the file and of the rows used."""

    name: str
    rows: tuple[PromptRow, ...]
    file_hash: str
    rows_hash: str
    filters: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a record; the prompts themselves stay out."""
        facts = {"name": self.name, "rows": len(self.rows), "file_hash": self.file_hash, "rows_hash": self.rows_hash}
        return {**facts, "filters": self.filters}


def load_prompt_set(
    given: str,
    *,
    subset: str | None = None,
    categories: Sequence[str] = (),
    min_nudity: str | None = None,
    hard: bool | None = None,
    rows: str | None = None,
    limit: int | None = None,
) -> PromptSet:
    """The prompts that `given` names: "i2p" (from the hub), "i2p:SUBSET", a file, or a preset of prompts/.

    Rows must pass every filter: any of `categories`; `min_nudity`, a comparison such as "50" (at least), ">50" or
    "q16_percentage>=30"; `hard`; ids `rows` such as "1-10,17". The first `limit` of them are kept. Raises OptionError
    for an unknown name or filter, DataError for a file that cannot be read and when no row is left.
    """
    given, subset = _split(given, subset)
    name, table = _table(given)
    where = f"--prompts {given}"
    kept = table.rows
    if subset is not None:
        named = SUBSETS[subset]
        kept = _filtered(kept, table, where, named.categories, named.min_nudity)
        if len(kept) != named.rows:
            log_user(f"{where}: {subset} has {len(kept)} rows here, {named.rows} in the published I2P")
    kept = _filtered(kept, table, where, categories, min_nudity, hard, rows)
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit} must be at least 1")
    kept = kept[:limit]
    filters = {"subset": subset, "categories": list(categories), "min_nudity": min_nudity, "hard": hard, "rows": rows}
    chosen = {key: value for key, value in {**filters, "limit": limit}.items() if value not in (None, [])}
    if not kept:
        raise DataError(f"{where} has no row that passes {chosen}: loosen the filters")
    return PromptSet(name, kept, table.file_hash, rows_hash(kept), chosen)


def prompt_set_of(prompts: Sequence[str]) -> PromptSet:
    """A prompt set of the given texts, whose rows are numbered from 1; raises DataError for none, or an empty text."""
    texts = list(prompts)
    if not texts or not all(text.strip() for text in texts):
        raise DataError("expected at least one prompt, and no empty ones")
    rows = tuple(PromptRow(str(i), text) for i, text in enumerate(texts, start=1))
    return PromptSet(f"{len(texts)} given prompts", rows, fingerprint({"prompts": texts}), rows_hash(rows), {})


def rows_hash(rows: Sequence[PromptRow]) -> str:
    """SHA-256 of what decides the images: id, prompt, seed, guidance and size of each row, in order."""
    used = [[row.id, row.prompt, row.seed, row.guidance_scale, row.width, row.height] for row in rows]
    return fingerprint({"rows": used})


def _split(given: str, subset: str | None) -> tuple[str, str | None]:
    """The two parts of "i2p:SUBSET"; raises OptionError for an unknown subset."""
    if given.startswith(f"{I2P}:"):
        given, _, own = given.partition(":")
        if subset not in (None, own):
            raise OptionError(f"--prompts {given}:{own} and the protocol's subset {subset} differ: leave one out")
        subset = own
    if subset is not None and subset not in SUBSETS:
        raise OptionError(f"unknown subset {subset!r} of I2P{suggestion(subset, SUBSETS)}")
    return given, subset


def _table(given: str) -> tuple[str, PromptTable]:
    """Name and rows of what was given."""
    if given == I2P:
        table = read_rows(_i2p_file())
        if len(table.rows) != I2P_ROWS:
            log_user(f"--prompts {I2P}: {len(table.rows)} rows were read, the published I2P has {I2P_ROWS}")
        return I2P, table
    own = shipped("prompts") / f"{given}.csv"
    preset = given in concept_names() or (given.startswith(AUDIT) and own.is_file())
    path = own if preset else Path(given)
    if not path.exists() and not path.suffix:
        audits = (path.stem for path in sorted((shipped("prompts") / AUDIT).glob("*.csv")))
        known = [I2P, *(f"{I2P}:{name}" for name in SUBSETS), *(AUDIT + name for name in audits), *concept_names()]
        raise OptionError(f"--prompts {given} is no file, and neither {I2P} nor a preset{suggestion(given, known)}")
    return given if preset else path.stem, read_rows(path, forget_only=True)


def _i2p_file() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(I2P_HUB, I2P_FILE, repo_type="dataset", revision=I2P_REVISION))
    except Exception as error:  # the hub's client raises a dozen kinds for one meaning
        raise DataError(
            f"--prompts {I2P} cannot be read from the hub as {I2P_HUB} ({type(error).__name__}): check the "
            "network, or give a copy of its CSV file as --prompts FILE"
        ) from error


def _filtered(
    kept: Sequence[PromptRow],
    table: PromptTable,
    where: str,
    categories: Sequence[str],
    min_nudity: str | None,
    hard: bool | None = None,
    rows: str | None = None,
) -> tuple[PromptRow, ...]:
    """The rows that pass; raises OptionError for a filter that no row of the whole table could pass or fail."""
    tests: list[Test] = []
    if categories:
        tests.append(_by_category(categories, table.rows, where))
    if min_nudity is not None:
        tests.append(_by_number(min_nudity, table.rows, where))
    if hard is not None:
        if all(row.hard is None for row in table.rows):
            raise OptionError(f"{where} does not say which prompts are hard: leave the filter out")
        tests.append(lambda row: row.hard is hard)
    if rows is not None:
        tests.append(_by_id(rows, table.rows, where))
    return tuple(row for row in kept if all(test(row) for test in tests))


def _by_category(wanted: Sequence[str], every: Sequence[PromptRow], where: str) -> Test:
    """Whether a row has any of the categories."""
    known = {category for row in every for category in row.categories}
    chosen = {category.strip().lower() for category in wanted}
    if not known:
        raise OptionError(f"{where} says no row's categories: leave the filter out")
    for category in sorted(chosen - {category.lower() for category in known}):
        raise OptionError(f"{where} has no category {category!r}{suggestion(category, known)}")
    return lambda row: not chosen.isdisjoint(category.lower() for category in row.categories)


def _by_number(comparison: str, every: Sequence[PromptRow], where: str) -> Test:
    """Whether a row's score compares so ("50", ">50", "q16_percentage>=30"); without the score it does not."""
    found = _COMPARISON.fullmatch(comparison)
    try:
        column, sign, bound = found.groups() if found else (None, None, "")
        limit = float(bound)
    except ValueError:
        expected = "expected one such as 50, >50 or q16_percentage>=30"
        raise OptionError(f"{comparison!r} is no comparison: {expected}") from None
    name, holds = column or "nudity_percentage", COMPARISONS[sign or ">="]
    known = {number for row in every for number in row.numbers}
    if name not in known:
        raise OptionError(f"{where} has no numbers {name!r}{suggestion(name, known)}: leave the filter out")
    return lambda row: name in row.numbers and holds(row.numbers[name], limit)


def _by_id(wanted: str, every: Sequence[PromptRow], where: str) -> Test:
    """Whether a row's id is listed, singly or in a range of whole numbers."""
    known = {row.id for row in every}
    numbers = {name: int(name) for name in known if re.fullmatch(r"\d{1,18}", name, re.ASCII)}
    chosen: set[str] = set()
    for part in (part.strip() for part in wanted.split(",")):
        span = re.fullmatch(r"(\d+)\s*-\s*(\d+)", part, re.ASCII)
        found = {part} & known
        if span and not found:
            first, last = map(int, span.groups())
            found = {name for name, number in numbers.items() if first <= number <= last}
        if not found:
            raise OptionError(f"{where} has no row {part!r}: expected row numbers and ranges of them, such as 1-10,17")
        chosen |= found
    return lambda row: row.id in chosen
