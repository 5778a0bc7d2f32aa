"""One file of prompts serves as a concept, a prompt set and a list of prompts: each reads what it uses of it."""

import pytest

from erasure.core.errors import DataError
from erasure.prompts.concept import Prompt, load_concept
from erasure.prompts.csv_table import parse_table
from erasure.prompts.prompt_set import load_prompt_set
from erasure.prompts.prompt_table import PromptRow, prompt_rows

EVERY = """role,prompt,anchor,shows,seed,guidance_scale,width,height,case_number,categories,nudity_percentage,hard
retain,a tree,,object=tree,3,2.5,64,72,10,plants,0,0
forget,"a cat,
asleep",a dog,object=cat,4,7.5,64,64,11,"pets, sleep",1.5,1
"""
CAT = PromptRow("11", "a cat,\nasleep", 4, 7.5, 64, 64, ("pets", "sleep"), {"nudity_percentage": 1.5}, True)
TREE = PromptRow("10", "a tree", 3, 2.5, 64, 72, ("plants",), {"nudity_percentage": 0.0}, False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(EVERY)
    return path


def test_one_file_serves_a_concept_a_prompt_set_and_a_list(file, caplog):
    with caplog.at_level("INFO", logger="erasure"):
        concept = load_concept(str(file))
        assert concept.forget == (Prompt("a cat,\nasleep", "a dog", (("object", "cat"),)),)
        assert concept.retain == (Prompt("a tree", "", (("object", "tree"),)),)
        assert load_prompt_set(str(file)).rows == (CAT,)
        assert load_prompt_set(str(file), categories=("sleep",), hard=True).rows == (CAT,)
        assert prompt_rows([], str(file)) == [TREE, CAT]
    assert not caplog.text


def test_a_concept_without_numbers_is_numbered_by_what_it_forgets(file):
    file.write_text("role,prompt,anchor,seed\nretain,a tree,,3\nforget,a cat,a dog,4\nforget,cats,dogs,\n")
    assert load_prompt_set(str(file)).rows == (PromptRow("1", "a cat", 4), PromptRow("2", "cats"))


def test_a_column_without_a_meaning_is_named_by_every_reader(file, caplog):
    file.write_text(EVERY.replace("shows", "show").replace("width", "notes"))
    for read in (load_concept, load_prompt_set, lambda path: prompt_rows([], path)):
        caplog.clear()
        with caplog.at_level("INFO", logger="erasure"):
            read(str(file))
        assert "no meaning is known for 'show' (did you mean 'shows'?), 'notes'" in caplog.text
        assert len(caplog.records) == 1


def test_a_place_is_the_line_in_which_a_row_begins():
    text = 'prompt,seed\n"one\ntwo\nthree",1\n\nfour,2\nfive\n'
    assert [row.line for row in parse_table(text, "x").rows] == [2, 6, 7]
    assert parse_table(text, "x").rows[2].values == {"prompt": "five", "seed": ""}
    with pytest.raises(DataError, match="x, line 6 has 3 values for 2 columns"):
        parse_table(text.replace("four,2", "four,4,2"), "x")
    with pytest.raises(DataError, match="x, line 6 is not readable"):
        parse_table(text.replace("four", '"four'), "x")
