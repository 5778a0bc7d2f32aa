"""JSON is read in one way: what is wrong is said with the file, and with its line."""

import pytest

from erasure.core.errors import DataError, RunError
from erasure.core.files import json_lines, parse_json, parse_object, read_json


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "nan?", "[" * 100_000, b"\xff\xfe\xfa"])
def test_what_is_no_json_is_one_error(tmp_path, text):
    with pytest.raises(DataError, match="x is not readable JSON"):
        parse_json(text, "x", DataError)
    path = tmp_path / "f.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"f\.json is not readable JSON"):
        read_json(path, DataError)


def test_an_object_is_wanted(tmp_path):
    assert parse_json("[1]", "x") == [1] and parse_object(b'{"a": 1}', "x") == {"a": 1}
    with pytest.raises(RunError, match="x is not a JSON object"):
        parse_object("[1]", "x")
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_a_line_that_a_kill_cut_short_is_left_out_and_no_other(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert list(json_lines(path)) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": 2\n{"a": 3}\n')
    with pytest.raises(RunError, match=r"log\.jsonl, line 2 is not readable JSON"):
        list(json_lines(path))
