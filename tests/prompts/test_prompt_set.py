"""Prompts from files: a table of ours with every trap of I2P in both layouts, filters, hashes, and bad input."""

import csv
import io
import subprocess
import sys

import pytest

from erasure.core.errors import DataError, OptionError
from erasure.prompts import prompt_set
from erasure.prompts.prompt_set import load_prompt_set, rows_hash
from erasure.prompts.prompt_table import PromptRow, prompt_rows, read_rows

ORIGINAL = [
    *("prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage"),
    *("sd_safety_percentage", "prompt_toxicity", "lexica_url", "sd_seed", "sd_guidance_scale"),
    *("sd_image_width", "sd_image_height", "sd_model"),
]
DERIVED = ["", *[name for name in ORIGINAL if name not in ("sd_seed", "sd_guidance_scale")]]
DERIVED += ["evaluation_seed", "evaluation_guidance", "case_number"]

# prompt, categories, hard, nudity, seed, guidance, width, height: harmless words, and every trap of the real table
TRAPS = [
    ("", "violence", "0", "10.0", "4294967295", "7", "512", "512"),
    ("a lighthouse,\nby the sea", "shocking, violence", "0", "0", "0", "1.0", "512", "512"),
    ('a "quoted" word; and\r\na second line', "sexual", "1", "50", "4294967294", "255", "768", "512"),
    ("a lighthouse,\nby the sea", "illegal activity, sexual", "1.0", "50.5", "3.0", "7.5", "512", "704"),
    ("nan", "self-harm", "", "", "123", "8", "", ""),
    ("=1+1, ünïcode 灯台 🗼", "hate, harassment, sexual", "0.0", "100", "9007199254740993", "", "512", "512"),
]


def trap_table(layout="original", rows=TRAPS):
    """A CSV with the traps, in either layout of I2P; pandas' file has an unnamed index and floats for ids."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(DERIVED if layout == "derived" else ORIGINAL)
    for i, (prompt, categories, hard, nudity, seed, guidance, width, height) in enumerate(rows):
        middle = [prompt, categories, hard, "33.3", nudity, "20", "0.5", "0.01", "https://example.com/a,b"]
        if layout == "derived":
            writer.writerow([i, *middle, width, height, "1.4", seed, guidance, f"{i + 100}.0"])
        else:
            writer.writerow([*middle, seed, guidance, width, height, "1.4"])
    return stream.getvalue()


@pytest.fixture
def traps(tmp_path):
    path = tmp_path / "traps.csv"
    path.write_bytes(trap_table().encode())
    return str(path)


def ids(found):
    return [row.id for row in found.rows]


@pytest.mark.parametrize("layout", ["original", "derived"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_trap_in_both_layouts(tmp_path, layout, encoding):
    path = tmp_path / "i2p.csv"
    path.write_bytes(trap_table(layout).encode(encoding))
    rows = read_rows(path).rows
    assert [row.id for row in rows] == [str(i + (100 if layout == "derived" else 1)) for i in range(len(TRAPS))]
    assert [row.prompt for row in rows] == [trap[0] for trap in TRAPS]
    assert [row.seed for row in rows] == [4294967295, 0, 4294967294, 3, 123, 9007199254740993]
    assert [row.guidance_scale for row in rows] == [7.0, 1.0, 255.0, 7.5, 8.0, None]
    assert [(row.width, row.height) for row in rows][2:5] == [(768, 512), (512, 704), (None, None)]
    assert rows[5].categories == ("hate", "harassment", "sexual") and rows[3].categories[0] == "illegal activity"
    assert [row.hard for row in rows] == [False, False, True, True, None, False]
    assert rows[3].numbers["nudity_percentage"] == 50.5 and "nudity_percentage" not in rows[4].numbers
    assert rows[0].numbers["prompt_toxicity"] == 0.01


def test_ids_come_from_the_case_number_then_the_index_then_the_place(tmp_path):
    path = tmp_path / "p.csv"
    for text, expected in (
        (",prompt,case_number\n5,a,17\n6,b,18\n", ["17", "18"]),
        (",prompt\n5,a\n6,b\n", ["5", "6"]),
        ("Unnamed: 0,prompt\n5,a\n6,b\n", ["5", "6"]),
        ("prompt,\na,\nb,\n", ["1", "2"]),
        ("prompt\na\n\nb\n", ["1", "2"]),
    ):
        path.write_text(text)
        assert [row.id for row in read_rows(path).rows] == expected


def test_the_evaluation_columns_rank_before_those_of_the_data_set(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,sd_seed,evaluation_seed\na,1,2\n")
    assert read_rows(path).rows[0].seed == 2


def test_any_table_and_text_files(tmp_path):
    (tmp_path / "p.csv").write_text('prompt, seed , guidance\n"a cat, sitting", 7, 3.5\na dog,8,\n,9\n,,\n')
    cat, dog, empty = read_rows(tmp_path / "p.csv").rows
    assert cat == PromptRow("1", "a cat, sitting", 7, 3.5)
    assert (dog, empty) == (PromptRow("2", "a dog", 8), PromptRow("3", "", 9))
    (tmp_path / "p.txt").write_text("a cat, sitting\n\n a dog \n")
    found = prompt_rows(["a tree"], str(tmp_path / "p.txt"))
    assert [(row.id, row.prompt) for row in found] == [
        ("--prompt 1", "a tree"),
        ("1", "a cat, sitting"),
        ("2", "a dog"),
    ]
    assert len(prompt_rows(["a tree"], str(tmp_path / "p.txt"), limit=2)) == 2
    (tmp_path / "one.csv").write_text('prompt\na cat\n""\n')
    assert [row.prompt for row in read_rows(tmp_path / "one.csv").rows] == ["a cat", ""]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("p.csv", b"text,seed\na,1\n", "has no column 'prompt' (it has text, seed)"),
        ("p.csv", b"", "is empty"),
        ("p.csv", b"\n\n", "is empty"),
        ("p.csv", b"prompt,seed\n", "has no row"),
        ("p.csv", b"\x89PNG\r\n\x1a\n\x00\x00", "is not UTF-8"),
        ("p.csv", b"PK\x03\x04\x00\x00prompt", "is not a CSV"),
        ("p.csv", "prompt\nnaïve\n".encode("latin-1"), "is not UTF-8"),
        ("p.csv", "prompt\na\n".encode("utf-16"), "is not UTF-8"),
        ("p.csv", b"prompt,seed\na,1\nb, c,2\n", "line 3 has 3 values for 2 columns"),
        ("p.csv", b"seed,prompt\n1,a\n2\n", "line 3 has 1 values for 2 columns"),
        ("p.csv", b'prompt,seed\n"a,1\n', "line 2 is not readable"),
        ("p.csv", b"prompt,prompt\na,b\n", "two columns 'prompt'"),
        ("p.csv", b"prompt,case_number\na,4\nb,5\nc,4.0\n", "line 4 has the number 4 of line 2"),
        ("p.csv", b"prompt,case_number\na,4\nb,\n", "line 3: case_number is empty"),
        ("p.csv", b",prompt\n0,a\n0,b\n", "line 3 has the number 0 of line 2"),
        ("p.csv", b",prompt\nx,a\n", "line 2: the unnamed column 'x' is not a whole number"),
        ("p.csv", b"prompt,seed\na,1\nb,-1\n", "line 3: seed '-1' is not a whole number"),
        ("p.csv", b"prompt,seed\na,1.5\n", "line 2: seed '1.5'"),
        ("p.csv", b"prompt,seed\na,1e9\n", "line 2: seed '1e9'"),
        ("p.csv", b"prompt,seed\na,9223372036854775808\n", "line 2: seed"),
        ("p.csv", b"prompt,guidance\na,much\n", "line 2: guidance 'much' is not a number"),
        ("p.csv", b"prompt,guidance\na,nan\n", "line 2: guidance 'nan' is not a number"),
        ("p.csv", b"prompt,guidance\na,-1\n", "line 2: guidance '-1' is below 0"),
        ("p.csv", b"prompt,width\na,512\nb,500\n", "line 3: width 500 is not a multiple of 8"),
        ("p.csv", b"prompt,sd_image_height\na,0\n", "line 2: sd_image_height 0"),
        ("p.csv", b"prompt,nudity_percentage\na,high\n", "line 2: nudity_percentage 'high'"),
        ("p.csv", b"prompt,hard\na,maybe\n", "line 2: hard 'maybe'"),
        ("p.txt", b"a\xff", "is not UTF-8"),
    ],
)
def test_bad_input_is_one_line_that_says_where(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as found:
        load_prompt_set(str(tmp_path / name))
    message = str(found.value)
    assert expected in message and str(tmp_path / name) in message and "\n" not in message


def test_missing_files_and_unknown_names(tmp_path):
    with pytest.raises(DataError, match="is not a readable file"):
        load_prompt_set(str(tmp_path / "no.csv"))
    with pytest.raises(DataError, match="is not a readable file"):
        read_rows(tmp_path)
    with pytest.raises(OptionError, match="did you mean 'nudity'"):
        load_prompt_set("nudty")
    with pytest.raises(OptionError, match="did you mean 'sexual-931'"):
        load_prompt_set("i2p:sexual-93")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["1", "2", "3", "4", "5", "6"]),
        ({"categories": ("sexual",)}, ["3", "4", "6"]),
        ({"categories": ("Violence", "hate")}, ["1", "2", "6"]),
        ({"min_nudity": "50"}, ["3", "4", "6"]),
        ({"min_nudity": "nudity_percentage >= 50"}, ["3", "4", "6"]),
        ({"min_nudity": ">50"}, ["4", "6"]),
        ({"min_nudity": "<50 %"}, ["1", "2"]),
        ({"min_nudity": "q16_percentage>20"}, None),
        ({"hard": True}, ["3", "4"]),
        ({"hard": False}, ["1", "2", "6"]),
        ({"rows": "2-3, 6"}, ["2", "3", "6"]),
        ({"rows": "6,1"}, ["1", "6"]),
        ({"limit": 2}, ["1", "2"]),
        ({"categories": ("sexual",), "hard": True, "rows": "4-9", "limit": 1}, ["4"]),
    ],
)
def test_filters(traps, filters, expected):
    if expected is None:
        with pytest.raises(DataError, match="no row that passes"):
            load_prompt_set(traps, **filters)
        return
    found = load_prompt_set(traps, **filters)
    assert ids(found) == expected and found.name == "traps"
    assert found.filters == {key: list(value) if key == "categories" else value for key, value in filters.items()}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"categories": ("sexuel",)}, "did you mean 'sexual'"),
        ({"min_nudity": "nude_percentage>50"}, "did you mean 'nudity_percentage'"),
        ({"min_nudity": "a lot"}, "is no comparison"),
        ({"min_nudity": "1.2.3"}, "is no comparison"),
        ({"rows": "1,7"}, "no row '7'"),
        ({"rows": "9-8"}, "no row '9-8'"),
        ({"rows": ""}, "no row ''"),
        ({"limit": 0}, "`limit` 0"),
    ],
)
def test_filters_that_mean_nothing(traps, filters, expected):
    with pytest.raises(OptionError, match=expected):
        load_prompt_set(traps, **filters)


def test_filters_need_their_columns(tmp_path):
    (tmp_path / "p.csv").write_text("prompt\na\n")
    for filters in ({"categories": ("x",)}, {"min_nudity": "5"}, {"hard": True}):
        with pytest.raises(OptionError, match="leave the filter out"):
            load_prompt_set(str(tmp_path / "p.csv"), **filters)


def test_named_subsets_and_what_is_known_of_them(traps, caplog):
    with caplog.at_level("INFO", logger="erasure"):
        assert ids(load_prompt_set(traps, subset="nudity-95")) == ["4", "6"]
        assert ids(load_prompt_set(traps, subset="sexual-931", rows="1-3")) == ["3"]
    assert "nudity-95 has 2 rows here, 95 in the published I2P" in caplog.text
    assert "sexual-931 has 3 rows here, 931" in caplog.text


def test_the_hub_is_read_at_a_pinned_revision(monkeypatch, traps, caplog):
    asked = {}

    def download(repo_id, filename, **how):
        asked.update(how, repo_id=repo_id, filename=filename)
        return traps

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with caplog.at_level("INFO", logger="erasure"):
        found = load_prompt_set("i2p:nudity-95")
    assert found.name == "i2p" and ids(found) == ["4", "6"] and found.filters == {"subset": "nudity-95"}
    assert asked["repo_id"] == "AIML-TUDA/i2p" and asked["repo_type"] == "dataset" and len(asked["revision"]) == 40
    assert "6 rows were read, the published I2P has 4703" in caplog.text
    with pytest.raises(OptionError, match="differ"):
        load_prompt_set("i2p:nudity-95", subset="sexual-931")


def test_offline_is_one_line_that_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("a long story\nof many lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(DataError, match=r"AIML-TUDA/i2p \(ConnectionError\).*`prompts` FILE") as found:
        load_prompt_set("i2p")
    assert "\n" not in str(found.value)


def test_presets_give_what_they_forget(tmp_path):
    assert [row.prompt for row in load_prompt_set("nudity").rows] == ["a photo of a nude person"]
    digits = load_prompt_set("digits/three", limit=3)
    assert digits.name == "digits/three" and ids(digits) == ["1", "2", "3"]
    own = tmp_path / "own.csv"
    own.write_text("role,prompt,anchor\nretain,a dog,\nforget,a cat,a dog\n")
    found = load_prompt_set(str(own))
    assert [(row.id, row.prompt) for row in found.rows] == [("1", "a cat")] and found.name == "own"
    own.write_text("role,prompt,anchor\nretain,a dog,\n")
    with pytest.raises(DataError, match="names nothing to forget"):
        load_prompt_set(str(own))
    own.write_text("role,prompt,anchor\nforgot,a dog,\n")
    with pytest.raises(DataError, match="line 2: the role 'forgot' must be forget or retain"):
        load_prompt_set(str(own))


def test_hashes_cover_what_decides_the_images(traps, tmp_path):
    found = load_prompt_set(traps)
    assert found.as_json()["rows"] == 6 and found.rows_hash == load_prompt_set(traps).rows_hash
    base = PromptRow("1", "a", 1, 2.0, 8, 8)
    changed = [("2", "a", 1, 2.0, 8, 8), ("1", "b", 1, 2.0, 8, 8), ("1", "a", 2, 2.0, 8, 8), ("1", "a", 1, 3.0, 8, 8)]
    changed += [("1", "a", 1, 2.0, 16, 8), ("1", "a", 1, 2.0, 8, 16)]
    assert len({rows_hash([PromptRow(*values)]) for values in changed} | {rows_hash([base])}) == 7
    assert rows_hash([base]) == rows_hash([PromptRow("1", "a", 1, 2.0, 8, 8, ("x",), {"q16_percentage": 3.0}, True)])
    assert rows_hash(found.rows) != rows_hash(found.rows[::-1])
    (tmp_path / "more.csv").write_bytes(trap_table().encode() + b"z" + b"," * 13 + b"\n")
    more = load_prompt_set(str(tmp_path / "more.csv"), limit=6)
    assert more.rows_hash == found.rows_hash and more.file_hash != found.file_hash


def test_ten_thousand_rows_are_read_in_little_time(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("prompt,seed\n" + "".join(f'"a view of house {i}, by the sea",{i}\n' for i in range(10_000)))
    found = load_prompt_set(str(path), rows="5000-9999")
    assert len(found.rows) == 5000 and found.rows[0].seed == 4999


def test_reading_prompts_loads_nothing_heavy():
    names = ("erasure.prompts.prompt_set", "erasure.auditing.protocols", "erasure.prompts.safety_filter")
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "huggingface_hub", "pandas"} & set(loaded)
    assert prompt_set.SUBSETS["nudity-95"].min_nudity == ">50"
