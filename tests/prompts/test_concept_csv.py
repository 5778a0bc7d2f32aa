import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.core.errors import DataError
from erasure.prompts.concept import Concept, Prompt, load_concept
from erasure.prompts.concept_csv import read_prompts

HEADER = "role,prompt,anchor,shows\n"
GOOD = "forget,a church,a barn,\nretain,a barn,,\n"


@pytest.fixture
def table(tmp_path):
    """Write a CSV file from its text, or from bytes; gives its path as the user would type it."""

    def write(content: str | bytes, name: str = "mine.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_file_of_ones_own_is_a_concept_named_after_it(table):
    path = table("\ufeff" + HEADER.replace("\n", "\r\n") + GOOD.replace("\n", "\r\n"), "one, two.csv")
    assert load_concept(path) == Concept("one, two", (Prompt("a church", "a barn"),), (Prompt("a barn"),))
    assert load_concept(table("prompt,role,anchor\na church,forget,\na barn,retain\n\n")).forget[0].anchor == ""
    both = load_concept(f"nudity,{table(HEADER + GOOD)}")
    assert both.name == "nudity,mine" and len(both.forget) == 2


def test_what_a_picture_shows_is_read_in_order(table):
    rows = 'forget,x,y,digit=three; digit = seven;style=chalk\nretain,y,,"object=gas pump"\n'
    concept = load_concept(table(HEADER + rows))
    assert concept.forget[0].shows == (("digit", "three"), ("digit", "seven"), ("style", "chalk"))
    assert concept.retain[0].shows == (("object", "gas pump"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: expected a CSV whose first line names its columns: role,prompt,anchor"),
        ("role,promt,anchor\n" + GOOD, r"has no column 'prompt' \(it has role, promt, anchor\)"),
        ("role;prompt;anchor\nforget;x;y\n", "has no column 'role'"),
        ("role,prompt,anchor,role\n" + GOOD, "has two columns 'role'"),
        (HEADER + GOOD + "keep,x,,\n", "line 4: the role 'keep' must be forget or retain"),
        (HEADER + "retain,a barn,,\n", "names nothing to forget: add a row"),
        (HEADER + GOOD + "forget, ,x,\n", "line 4: the prompt to forget is empty"),
        (HEADER + GOOD + "retain,,,\n", "line 4: the prompt to retain is empty"),
        (HEADER + GOOD + "retain,x,y,\n", "line 4: a prompt to retain has no anchor"),
        (HEADER + GOOD + "forget,x, X ,\n", "the anchor of 'x' is the concept itself: give"),
        (HEADER + GOOD + "forget,x,a church,\n", "the anchor 'a church' of 'x' is to be forgotten itself"),
        (HEADER + GOOD + "forget,a church,a tower,\n", "forgets 'a church' twice"),
        (HEADER + "forget,a church,a barn,\n", "leaves nothing to retain: add rows whose role is retain"),
        (HEADER + GOOD + "retain,A church,,\n", "'A church' is a prompt to forget and to retain"),
        (HEADER + GOOD + "retain,x,,church\n", "shows 'church' must be pairs such as"),
        (HEADER + GOOD + "retain,x,,object=church;\n", "must be pairs"),
        (HEADER + GOOD + "retain,x,,object==church\n", "must be pairs"),
        (HEADER + GOOD + "retain,x,,=church\n", "must be pairs"),
        (HEADER + GOOD + "retain,a dog, a cat, a bird,,\n", "line 4 has 6 values for 4 columns: put quotes"),
        (HEADER + GOOD + 'retain,"a dog,,\n', "line 4 is not readable .unexpected end of data.: close the quotes"),
        (HEADER + GOOD + 'retain,"a" dog,,\n', "line 4 is not readable"),
        ("rôle,prompt\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(table, content, message):
    with pytest.raises(DataError, match=message) as refusal:
        load_concept(table(content))
    assert "mine.csv" in str(refusal.value) and "\n" not in str(refusal.value) and "`concept`" in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused(table, tmp_path):
    with pytest.raises(DataError, match=r"`concept` .*none\.csv is not a readable file"):
        load_concept(str(tmp_path / "none.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is not a readable file"):
        load_concept(str(tmp_path / "folder.csv"))
    with pytest.raises(DataError, match=r"`retain` .*none\.csv is not a readable file"):
        Concept.from_words("church", retain=str(tmp_path / "none.csv"))


WORDS = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(bool)
)
NAMES = st.text("abcé ,\"'", min_size=1, max_size=6).map(str.strip).filter(bool)
ROWS = st.lists(st.tuples(WORDS, WORDS, st.lists(st.tuples(NAMES, NAMES), max_size=3).map(tuple)), max_size=6)


@settings(max_examples=80, deadline=None)
@given(forget=ROWS, retain=ROWS)
def test_a_table_that_is_written_is_read_back(tmp_path_factory, forget, retain):
    path = tmp_path_factory.mktemp("table") / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["role", "prompt", "anchor", "shows"])
        for role, rows in (("forget", forget), ("retain", retain)):
            for text, anchor, shows in rows:
                pairs = ";".join(f"{domain}={value}" for domain, value in shows)
                writer.writerow([role, text, anchor if role == "forget" else "", pairs])
    expected = [Prompt(*row) for row in forget], [Prompt(text, "", shows) for text, _, shows in retain]
    assert read_prompts(path, "--concept") == expected
    concept = Concept("any", tuple(expected[0]), tuple(expected[1]))
    assert Concept.from_json(json.loads(json.dumps(concept.as_json()))) == concept
