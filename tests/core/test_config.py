"""A dataclass from layers of values."""

from dataclasses import dataclass

import pytest

from erasure.core.config import build
from erasure.core.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: float = 0.5
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Needy(Options):
    strength: float


def test_later_layers_win_and_defaults_fill_the_rest():
    assert build(Options, "x", {"rate": 0.1, "limit": 3}, {"rate": 0.2}) == Options(rate=0.2, limit=3)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(OptionError, match="x has no option 'rat' \\(did you mean 'rate'"):
        build(Options, "x", {"rat": 1})


def test_a_field_without_a_value_is_named():
    with pytest.raises(OptionError, match="x needs a value for `strength`"):
        build(Needy, "x", {"rate": 0.1})
    assert build(Needy, "x", {"strength": 2.0}).strength == 2.0
