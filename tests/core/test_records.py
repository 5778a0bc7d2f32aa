"""Records: what is written is read back, and a wrong shape is one line that names the place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from erasure.core.errors import RunError
from erasure.core.records import Facts, Record, stored


@dataclass(frozen=True)
class Part(Record):
    n: int
    share: float | None
    ends: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Whole(Record):
    label: str = stored(key="class")
    kind: Literal["a", "b"]
    parts: tuple[Part, ...]
    named: Mapping[str, Part | None]
    sure: bool
    free: Facts | None
    note: str | None = stored(optional=True)


WHOLE = Whole(
    label="x", kind="a", parts=(Part(1, None, (0.0, 1.0)),), named={"p": Part(2, 0.5, (0, 1)), "q": None}, sure=True,
    free={"any": [1, {"z": None}]},
)  # fmt: skip
WRITTEN = {
    "class": "x", "kind": "a", "parts": [{"n": 1, "share": None, "ends": [0.0, 1.0]}],
    "named": {"p": {"n": 2, "share": 0.5, "ends": [0, 1]}, "q": None}, "sure": True, "free": {"any": [1, {"z": None}]},
}  # fmt: skip


def test_a_record_is_written_in_the_order_of_its_fields_and_read_back():
    assert WHOLE.to_dict() == WRITTEN and list(WHOLE.to_dict()) == list(WRITTEN)
    assert Whole.from_dict(WRITTEN, "x") == WHOLE
    noted = {**WRITTEN, "note": "n"}
    assert Whole.from_dict(noted, "x").to_dict() == noted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "c"}, "kind is 'c', expected one of a, b"),
        ({"sure": 1}, "sure is 1, expected true or false"),
        ({"class": None}, "class is None, expected text"),
        ({"parts": {}}, "parts is {}, expected an array"),
        ({"parts": [{"n": 1, "share": None}]}, "parts[0] has no 'ends'"),
        ({"parts": [{"n": True, "share": None, "ends": [0, 1]}]}, "parts[0].n is True, expected a whole number"),
        ({"named": {"p": {"n": 1, "share": "much", "ends": [0, 1]}}}, "named.p.share is 'much', expected a number"),
        ({"named": {"p": {"n": 1, "share": 1, "ends": [0]}}}, "named.p.ends is [0], expected an array of 2"),
        ({"free": 3}, "free is 3, expected a JSON object"),
        ({"other": 3}, "it has an unknown entry 'other'"),
    ],
)
def test_a_wrong_shape_is_one_line_that_names_the_place(change, said):
    with pytest.raises(RunError) as raised:
        Whole.from_dict({**WRITTEN, **change}, "w.json is damaged")
    assert str(raised.value) == f"w.json is damaged: {said}"


def test_anything_but_an_object_is_refused():
    with pytest.raises(RunError, match=r"^w.json is damaged: it is \[1\], expected a JSON object$"):
        Whole.from_dict([1], "w.json is damaged")
