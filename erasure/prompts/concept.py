"""What to forget, in words: the presets in prompts/, a CSV file of prompts, or plain words; frozen data, no tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from erasure.core.errors import DataError, OptionError, suggestion
from erasure.core.shipped import shipped
from erasure.prompts.concept_csv import Prompt, Shows, read_prompts
from erasure.prompts.templates import filled, mentions, replacement, templates_for

EVERYDAY = "retain"  # prompts/retain.csv: what is kept when the user gives only words
AUDIT = "audit/"  # prompts to audit with; they name nothing to forget
LISTED = 3  # examples of each kind that the user is told


@dataclass(frozen=True)
class Concept:
    """Prompts to forget, each with its anchor, and prompts to retain."""

    name: str
    forget: tuple[Prompt, ...]
    retain: tuple[Prompt, ...]

    @property
    def erased(self) -> frozenset[tuple[str, str]]:
        """The (domain, value) pairs that forgotten prompts show and no retained one does."""
        kept = {pair for row in self.retain for pair in row.shows}
        return frozenset(pair for row in self.forget for pair in row.shows if pair not in kept)

    def table(self) -> tuple[str, ...]:
        """The distinct prompts: forgotten ones first, then retained ones, then the anchors that are neither."""
        rows = [row.text for row in (*self.forget, *self.retain)]
        return tuple(dict.fromkeys([*rows, *(row.anchor for row in self.forget)]))

    def described(self) -> list[str]:
        """At most seven lines for the user: what is forgotten, what takes its place, and what is kept."""
        lines = [f"{self.name}: {len(self.forget)} prompts to forget, {len(self.retain)} to keep"]
        lines += [
            f"  {row.text!r} becomes {repr(row.anchor) if row.anchor else 'the empty prompt'}"
            for row in self.forget[:LISTED]
        ]
        if len(self.forget) > LISTED:
            lines.append(f"  and {len(self.forget) - LISTED} more")
        if self.erased:
            lines.append("  no longer shown: " + _listed([" ".join(pair) for pair in sorted(self.erased)]))
        return [*lines, "  kept: " + _listed([repr(row.text) for row in self.retain])]

    def as_json(self) -> dict[str, Any]:
        """Plain values for run.json, which `from_json` reads back."""
        rows = {
            role: [
                {"text": row.text, "anchor": row.anchor, "shows": [list(pair) for pair in row.shows]} for row in found
            ]
            for role, found in (("forget", self.forget), ("retain", self.retain))
        }
        return {"name": self.name, **rows}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Concept:
        """The concept that `as_json` wrote; raises DataError for anything else."""
        try:
            forget, retain = (
                tuple(
                    Prompt(str(row["text"]), str(row["anchor"]), tuple((str(d), str(v)) for d, v in row["shows"]))
                    for row in given[role]
                )
                for role in ("forget", "retain")
            )
            return cls(str(given["name"]), forget, retain)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("this is not the record of a concept: expected name, forget and retain") from error


def concept_names() -> tuple[str, ...]:
    """The presets by name, such as "nudity" and "imagenette/church"."""
    root = shipped("prompts")
    found = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.csv"))
    return tuple(sorted(name for name in found if name != EVERYDAY and not name.startswith(AUDIT)))


def load_concept(given: str) -> Concept:
    """Presets and paths of CSV files, joined by commas, as one concept.

    Raises OptionError for a name that is neither, DataError for a file that is missing, broken or contradicts itself.
    """
    parts = [given] if _is_file(given) else _split(given)
    if not parts:
        raise OptionError("--concept names nothing to forget: give a preset or a CSV file, such as --concept nudity")
    return joined([_loaded(part) for part in parts])


def joined(concepts: Sequence[Concept]) -> Concept:
    """One concept that forgets what any of them forgets, and retains what all of them leave.

    An anchor that another of them forgets is followed to its own anchor, or else becomes the kept prompt that shows
    nearly the same. Raises OptionError when nothing is left to retain.
    """
    concepts = tuple(dict.fromkeys(concepts))
    if not concepts:
        raise OptionError("nothing is named to forget: give --concept or --forget")
    if len(concepts) == 1:
        return concepts[0]
    erased = frozenset[tuple[str, str]]().union(*(concept.erased for concept in concepts))
    forget: dict[str, Prompt] = {}
    anchors: dict[str, list[str]] = {}
    shown: dict[str, Shows] = {}
    for concept in concepts:
        for row in concept.forget:
            forget.setdefault(_key(row.text), row)
            anchors.setdefault(_key(row.text), []).append(row.anchor)
        shown |= {_key(row.text): row.shows for row in (*concept.forget, *concept.retain) if row.shows}

    def is_free(text: str) -> bool:
        return _key(text) not in forget and erased.isdisjoint(shown.get(_key(text), ()))

    kept: dict[str, Prompt] = {}
    for row in (row for concept in concepts for row in concept.retain if is_free(row.text)):
        kept.setdefault(_key(row.text), replace(row, shows=shown.get(_key(row.text), ())))
    name = ",".join(concept.name for concept in concepts)
    if not kept:
        raise OptionError(f"{name} leaves nothing to retain: forget fewer of them at once")

    def anchor_of(row: Prompt) -> str:
        target = shown.get(_key(row.anchor)) or row.shows
        followed = _followed(_key(row.text), anchors, is_free)
        return _nearest(kept.values(), target, row.shows) if followed is None else followed

    return Concept(name, tuple(replace(row, anchor=anchor_of(row)) for row in forget.values()), tuple(kept.values()))


def from_words(forget: str, anchor: str | None = None, retain: str | None = None) -> Concept:
    """The concept that words name: several joined by commas, each put into a few sentences.

    `anchor` is one for all, or one for each; by default the sentence without the concept. `retain` is prompts joined by
    commas or a CSV file, by default everyday prompts without those that mention a concept, and the anchors. Raises
    OptionError when the words contradict each other, DataError for a broken file.
    """
    words = list({_key(part): part for part in _split(forget)}.values())
    if not words:
        raise OptionError("--forget names nothing to forget: name something, such as --forget church")
    anchors = [None] if anchor is None else [part.strip() for part in anchor.split(",")]
    if words and len(anchors) not in (1, len(words)):
        raise OptionError(
            f"--anchor gives {len(anchors)} prompts for {len(words)} concepts: give one for all, or one for each"
        )
    rows = [
        Prompt(filled(template, concept), replacement(template, concept, other))
        for concept, other in zip(words, anchors * len(words) if len(anchors) == 1 else anchors, strict=True)
        for template in templates_for(concept)
    ]
    if retain is None:
        everyday = read_prompts(shipped("prompts") / f"{EVERYDAY}.csv", "--retain")[1]
        kept = [row for row in everyday if not any(mentions(row.text, concept) for concept in words)]
        kept += [Prompt(row.anchor) for row in rows if row.anchor]
    elif retain.strip().lower().endswith(".csv") or _is_file(retain):
        kept = read_prompts(Path(retain.strip()), "--retain")[1]
    else:
        kept = [Prompt(part) for part in _split(retain)]
    return _checked(Concept(",".join(words), tuple(dict.fromkeys(rows)), tuple(dict.fromkeys(kept))))


def _loaded(given: str) -> Concept:
    if given in concept_names():
        name, path = given, shipped("prompts") / f"{given}.csv"
    elif given.lower().endswith(".csv") or _is_file(given):
        name, path = Path(given).stem, Path(given)
    else:
        same = [f" (did you mean {known!r}?)" for known in concept_names() if known.rpartition("/")[2] == given.lower()]
        near = same[0] if same else suggestion(given, concept_names())
        raise OptionError(
            f"--concept {given} is neither a preset nor a CSV file{near}; --forget takes words of your own"
        )
    forget, retain = read_prompts(path, "--concept")
    return _checked(Concept(name, tuple(dict.fromkeys(forget)), tuple(dict.fromkeys(retain))), path)


def _checked(concept: Concept, file: Path | None = None) -> Concept:
    """The concept itself; raises DataError (of a file) or OptionError (of words) when it contradicts itself."""
    wrong, source = (OptionError, "--forget") if file is None else (DataError, f"--concept {file}")
    remedy = "give --anchor another prompt" if file is None else "give its row another anchor"
    if not concept.forget:
        remedy = "name something, such as --forget church" if file is None else "add a row whose role is forget"
        raise wrong(f"{source} names nothing to forget: {remedy}")
    forget = {_key(row.text): row for row in concept.forget}
    for row in concept.forget:
        if row != forget[_key(row.text)]:
            raise wrong(f"{source} forgets {row.text!r} twice, in two ways: take one out")
        if _key(row.anchor) == _key(row.text):
            raise wrong(f"{source}: the anchor of {row.text!r} is the concept itself: {remedy}")
        if _key(row.anchor) in forget:
            raise wrong(f"{source}: the anchor {row.anchor!r} of {row.text!r} is to be forgotten itself: {remedy}")
    if not concept.retain:
        remedy = "give --retain prompts, or a CSV file" if file is None else "add rows whose role is retain"
        raise wrong(f"{source} leaves nothing to retain: {remedy}")
    both = [row.text for row in concept.retain if _key(row.text) in forget]
    if both:
        remedy = "take it out of --retain" if file is None else "take one of the two rows out"
        raise wrong(f"{source}: {both[0]!r} is a prompt to forget and to retain: {remedy}")
    return concept


def _followed(start: str, anchors: Mapping[str, Sequence[str]], is_free: Callable[[str], bool]) -> str | None:
    """The first free prompt on the way from anchor to anchor, the shortest way first; None when the ways run dry."""
    level, seen = [start], {start}
    while level:
        found = [anchor for key in level for anchor in anchors.get(key, ())]
        for anchor in found:
            if is_free(anchor):
                return anchor
        level = [key for key in dict.fromkeys(map(_key, found)) if key not in seen]
        seen.update(level)
    return None


def _nearest(rows: Collection[Prompt], *targets: Shows) -> str:
    """The prompt whose picture differs least from the first target, then from the next."""
    return min(rows, key=lambda row: [_distance(row.shows, target) for target in targets]).text


def _distance(one: Shows, other: Shows) -> int:
    """In how many values two pictures differ, each domain in its order; one that a picture lacks counts too."""
    sides = [
        [[value for name, value in shows if name == domain] for shows in (one, other)]
        for domain in dict((*one, *other))
    ]
    return sum(a != b for side in sides for a, b in zip_longest(*side))


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _split(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _key(text: str) -> str:
    """What makes two prompts the same: text encoders read no capitals and no extra spaces."""
    return " ".join(text.lower().split())


def _is_file(given: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a sentence can be too long for a file name
        return Path(given).is_file()
    return False
