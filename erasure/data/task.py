"""Task: what to forget and what to keep, as plain frozen data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasure.core.errors import OptionError, suggestion

CLASS = "class:"  # may stand before classes, as other words stand before other forget sets


@dataclass(frozen=True)
class Task:
    """Classes of a labelled data set, or prompts, to forget; every other one is retained.

    `forget`, `already_erased` and `retain` are indices; `class_names[i]` is the name of class i, or the prompt. The
    classes of `already_erased` are neither forgotten again nor kept. `anchors` are what takes the place of each of
    `forget`, where the task defines it, and `title` is its name. With `samples`, single samples of any class are
    forgotten instead of classes: `forget` is empty, and each sample's other labels are all of `retain` but its own.
    """

    class_names: tuple[str, ...]
    forget: tuple[int, ...]
    already_erased: tuple[int, ...] = ()
    anchors: tuple[int, ...] = ()
    title: str = ""
    samples: bool = False

    @property
    def retain(self) -> tuple[int, ...]:
        """Indices of the classes that are kept, ascending."""
        return tuple(i for i in range(len(self.class_names)) if i not in self.forget and i not in self.already_erased)

    @property
    def concept(self) -> str:
        """The task's title, or the forgotten classes by name, joined by commas."""
        return self.title or ",".join(self.class_names[i] for i in self.forget)

    @classmethod
    def of_classes(cls, given: str, class_names: Sequence[str], already_erased: Sequence[int] = ()) -> Task:
        """Read `given`, class indices or names joined by commas ("3", "cat,dog" or "class:3").

        Raises OptionError when a class is unknown or out of range, when none is given, or when all are.
        """
        names = tuple(class_names)
        forget = tuple(
            sorted({class_index(part, names) for part in given.removeprefix(CLASS).split(",") if part.strip()})
        )
        if not forget:
            raise OptionError("--forget names no class: give at least one, such as --forget " + names[0])
        task = cls(names, forget, tuple(i for i in already_erased if i not in forget))
        if not task.retain:
            raise OptionError(f"--forget leaves none of {len(names)} classes: at least one must be left to retain")
        return task


def class_index(given: str, class_names: Sequence[str]) -> int:
    """Index of a class that is given as an index or by its name (case ignored)."""
    text = given.strip()
    lowered = [name.lower() for name in class_names]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    if text.removeprefix("-").isdecimal():
        index = int(text)
        if not 0 <= index < len(class_names):
            raise OptionError(f"class {index} is out of range: this data has classes 0 to {len(class_names) - 1}")
        return index
    raise OptionError(f"unknown class {text!r}{suggestion(text.lower(), lowered)}")
