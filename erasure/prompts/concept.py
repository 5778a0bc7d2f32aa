"""Concepts: prompts to forget, each with its anchor, and prompts to keep. From a preset, a CSV file, or plain words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
LISTED = 3  # examples of each kind in a description

Words = str | Sequence[str]  # a text that joins several by commas, or several texts


@dataclass(frozen=True)
class Concept:
    """Prompts to forget, each with its anchor, and prompts to retain."""

    name: str
    forget: tuple[Prompt, ...]
    retain: tuple[Prompt, ...]

    @classmethod
    def preset(cls, name: str) -> Concept:
        """The preset of that name, such as "nudity"; `concept_names` lists them. Raises OptionError for another."""
        if name not in concept_names():
            raise OptionError(f"there is no concept {name!r}{_near(name)}")
        return _from_file(name, shipped("prompts") / f"{name}.csv")

    @classmethod
    def from_csv(cls, path: str | Path) -> Concept:
        """The concept in a CSV file with the columns role,prompt,anchor,shows, named after it.

        Raises DataError for a file that is missing, broken or contradicts itself.
        """
        return _from_file(Path(path).stem, Path(path))

    @classmethod
    def from_words(cls, words: Words, anchor: Words | None = None, retain: Words | Path | None = None) -> Concept:
        """The concept that words name, each of them put into a few sentences.

        Args:
            words: what to forget; a text may join several by commas.
            anchor: what takes its place, one for all or one for each; by default the sentence without the concept.
            retain: prompts to keep, or a CSV file of them; by default everyday prompts that mention no concept, and the
                anchors.

        Raises:
            OptionError: the words contradict each other.
            DataError: the CSV file is broken.
        """
        concepts = list({_key(part): part for part in _listed_words(words)}.values())
        if not concepts:
            raise OptionError("--forget names nothing to forget: name something, such as --forget church")
        rows = _sentences(concepts, anchor)
        kept = _everyday(concepts, rows) if retain is None else _retained(retain)
        return _checked(cls(",".join(concepts), tuple(dict.fromkeys(rows)), tuple(dict.fromkeys(kept))))

    @property
    def erased(self) -> frozenset[tuple[str, str]]:
        """The (domain, value) pairs that forgotten prompts show and no retained one does."""
        kept = {pair for row in self.retain for pair in row.shows}
        return frozenset(pair for row in self.forget for pair in row.shows if pair not in kept)

    def table(self) -> tuple[str, ...]:
        """The distinct prompts: those to forget, those to retain, then the anchors that are neither."""
        rows = [row.text for row in (*self.forget, *self.retain)]
        return tuple(dict.fromkeys([*rows, *(row.anchor for row in self.forget)]))

    def described(self) -> list[str]:
        """Describe it in at most seven lines: what is forgotten, what takes its place, and what is kept."""
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
    return joined([_named(part) for part in parts])


def _named(given: str) -> Concept:
    """A preset or a CSV file."""
    if given in concept_names():
        return Concept.preset(given)
    if given.lower().endswith(".csv") or _is_file(given):
        return Concept.from_csv(given)
    raise OptionError(
        f"--concept {given} is neither a preset nor a CSV file{_near(given)}; --forget takes words of your own"
    )


def _near(given: str) -> str:
    """The preset that was probably meant, for errors."""
    same = [known for known in concept_names() if known.rpartition("/")[2] == given.lower()]
    return f" (did you mean {same[0]!r}?)" if same else suggestion(given, concept_names())


def _from_file(name: str, path: Path) -> Concept:
    forget, retain = read_prompts(path, "--concept")
    return _checked(Concept(name, tuple(dict.fromkeys(forget)), tuple(dict.fromkeys(retain))), path)


def joined(concepts: Sequence[Concept]) -> Concept:
    """One concept that forgets what any of them forgets, and retains what none of them forgets.

    An anchor that another of them forgets is replaced by that prompt's own anchor, or else by the kept prompt that
    shows nearly the same. Raises OptionError when nothing is left to retain.
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


def _sentences(concepts: Sequence[str], anchor: Words | None) -> list[Prompt]:
    """A few sentences about each concept, with the same about its anchor; raises OptionError for too few anchors."""
    anchors: list[str | None] = [None] if anchor is None else [*_anchors(anchor)]
    if len(anchors) not in (1, len(concepts)):
        raise OptionError(
            f"--anchor gives {len(anchors)} prompts for {len(concepts)} concepts: give one for all, or one for each"
        )
    pairs = zip(concepts, anchors * len(concepts) if len(anchors) == 1 else anchors, strict=True)
    return [
        Prompt(filled(template, concept), replacement(template, concept, other))
        for concept, other in pairs
        for template in templates_for(concept)
    ]


def _everyday(concepts: Sequence[str], rows: Sequence[Prompt]) -> list[Prompt]:
    """Everyday prompts that mention no concept, and the anchors of the sentences."""
    everyday = read_prompts(shipped("prompts") / f"{EVERYDAY}.csv", "--retain")[1]
    kept = [row for row in everyday if not any(mentions(row.text, concept) for concept in concepts)]
    return kept + [Prompt(row.anchor) for row in rows if row.anchor]


def _retained(given: Words | Path) -> list[Prompt]:
    """Prompts to retain: those of a CSV file, or the ones given."""
    if isinstance(given, str) and (given.strip().lower().endswith(".csv") or _is_file(given)):
        given = Path(given.strip())
    return read_prompts(given, "--retain")[1] if isinstance(given, Path) else [Prompt(p) for p in _listed_words(given)]


def _checked(concept: Concept, file: Path | None = None) -> Concept:
    """The concept itself; raises DataError (of a file) or OptionError (of words) when it contradicts itself."""
    for problem, of_words, of_file in _contradictions(concept):
        if file is None:
            raise OptionError(f"--forget{problem}: {of_words}")
        raise DataError(f"--concept {file}{problem}: {of_file}")
    return concept


def _contradictions(concept: Concept) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a concept, and what to do about it where it comes from words and where from a file."""
    if not concept.forget:
        yield " names nothing to forget", "name something, such as --forget church", "add a row whose role is forget"
    forget = {_key(row.text): row for row in concept.forget}
    for row in concept.forget:
        if row != forget[_key(row.text)]:
            yield f" forgets {row.text!r} twice, in two ways", "take one out", "take one out"
        remedies = ("give --anchor another prompt", "give its row another anchor")
        if _key(row.anchor) == _key(row.text):
            yield f": the anchor of {row.text!r} is the concept itself", *remedies
        if _key(row.anchor) in forget:
            yield f": the anchor {row.anchor!r} of {row.text!r} is to be forgotten itself", *remedies
    if not concept.retain:
        yield " leaves nothing to retain", "give --retain prompts, or a CSV file", "add rows whose role is retain"
    for row in concept.retain:
        if _key(row.text) in forget:
            remedies = ("take it out of --retain", "take one of the two rows out")
            yield f": {row.text!r} is a prompt to forget and to retain", *remedies


def _followed(start: str, anchors: Mapping[str, Sequence[str]], is_free: Callable[[str], bool]) -> str | None:
    """The nearest free prompt along the chains of anchors that begin at `start`; None when there is none."""
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
    """The prompt whose image differs least from the first target, then from the next."""
    return min(rows, key=lambda row: [_distance(row.shows, target) for target in targets]).text


def _distance(one: Shows, other: Shows) -> int:
    """In how many values two images differ, each domain in its order; a value that only one image has counts too."""
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


def _listed_words(given: Words) -> list[str]:
    """The parts of a text that joins them by commas, or the texts given."""
    return _split(given) if isinstance(given, str) else [part.strip() for part in given if part.strip()]


def _anchors(given: Words) -> list[str]:
    """The same for anchors, which may be empty: the empty prompt."""
    return [part.strip() for part in (given.split(",") if isinstance(given, str) else given)]


def _key(text: str) -> str:
    """What makes two prompts the same: text encoders read no capitals and no extra spaces."""
    return " ".join(text.lower().split())


def _is_file(given: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a sentence can be too long for a file name
        return Path(given).is_file()
    return False
