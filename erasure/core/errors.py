"""Every error a user can cause, and what it is about.

    ErasureError
    ├── OptionError          an unknown name, or a value outside its range
    ├── ModelError           a model folder that is missing, damaged or of no known family
    ├── MaskError            a mask that is damaged or was made for another network
    ├── DataError            a data set that is missing, broken or not what it claims to be
    ├── RunError             an output folder that cannot take this run
    ├── OutputError          a file that could not be written (permission, disk full)
    ├── NotApplicableError   a method or metric that has no meaning for this model
    └── DivergedError        training that left the finite numbers

The command line prints any of them as one line on stderr and exits 1; everything else keeps its traceback, because
it is a defect of this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from erasure.core.option_names import worded


class ErasureError(Exception):
    """Root of the tree: what was given, what was expected, what to do.

    Messages are written with flags; `str` names options as arguments in Python and as flags on the command line.
    """

    @property
    def message(self) -> str:
        """The message as it was written."""
        return super().__str__()

    def __str__(self) -> str:
        return worded(self.message)


class OptionError(ErasureError):
    """An unknown name, or a value outside its range."""


class ModelError(ErasureError):
    """A model folder that is missing, damaged or of no known family."""


class MaskError(ErasureError):
    """A mask that is damaged or was made for another network."""


class DataError(ErasureError):
    """A data set that is missing, broken or not what it claims to be."""


class RunError(ErasureError):
    """An output folder that cannot take this run."""


class OutputError(ErasureError):
    """A file that could not be written."""


class NotApplicableError(ErasureError):
    """A method or metric that has no meaning for this model."""


class DivergedError(ErasureError):
    """Training that left the finite numbers; `step` is the step of the last good weights, 0 when nothing was kept."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def suggestion(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `known`, or the sorted list of them when nothing is near."""
    options = sorted(set(known))
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(options)})" if options else ""
