import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.core import shipped as shipping
from erasure.core.errors import DataError, OptionError
from erasure.core.shipped import shipped
from erasure.prompts.concept import Concept, Prompt, concept_names, joined, load_concept

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STYLES = ("ink", "neon", "chalk", "blueprint", "sepia")
PAINTERS = ("van-gogh", "picasso", "monet", "rembrandt", "hokusai", "warhol")
IMAGENETTE = (
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
)


def drawn(digit: str, style: str) -> str:
    return f"a photo of the digit {digit} in {style} style"


def anchors_of(concept: Concept) -> dict[str, str]:
    return {row.text: row.anchor for row in concept.forget}


def texts(rows: tuple[Prompt, ...]) -> list[str]:
    return [row.text for row in rows]


def test_the_presets_are_all_there():
    assert set(concept_names()) == {
        *("nudity", "violence", *PAINTERS),
        *(f"imagenette/{name.lower().replace(' ', '-')}" for name in IMAGENETTE),
        *(f"digits/{name}" for name in (*DIGITS, *STYLES)),
    }


@pytest.mark.parametrize("name", concept_names())
def test_every_preset_loads_and_keeps_its_anchors(name):
    concept = load_concept(name)
    assert concept.name == name and concept.forget and concept.retain
    kept = texts(concept.retain)
    assert len(set(kept)) == len(kept) and not set(kept) & set(texts(concept.forget))
    assert {row.anchor for row in concept.forget} <= set(kept)
    assert Concept.from_json(json.loads(json.dumps(concept.as_json()))) == concept
    assert load_concept(str(shipped("prompts") / f"{name}.csv")).forget == concept.forget


def test_nudity_is_the_papers():
    concept = load_concept("nudity")
    assert anchors_of(concept) == {"a photo of a nude person": "a photo of a person wearing clothes"}
    assert concept.table() == ("a photo of a nude person", "a photo of a person wearing clothes")


def test_the_ten_imagenette_classes_form_a_ring_of_anchors():
    presets = {
        row.shows[0][1]: c
        for n in concept_names()
        if n.startswith("imagenette/")
        for c in [load_concept(n)]
        for row in c.forget
    }
    assert set(presets) == set(IMAGENETTE)
    for i, label in enumerate(IMAGENETTE):
        concept, following = presets[label], presets[IMAGENETTE[(i + 1) % 10]]
        assert list(anchors_of(concept).values()) == texts(following.forget)
        assert concept.forget[1].text == f"Image of {label}"
        assert concept.erased == {("object", label)}
        assert len(concept.retain) == 18 and {row.shows[0][1] for row in concept.retain} == set(IMAGENETTE) - {label}
    assert presets["English springer"].forget[0].text == "an image of an English springer"
    assert presets["French horn"].forget[0].text == "an image of a French horn"


@pytest.mark.parametrize("name", PAINTERS)
def test_a_style_gives_way_to_the_plain_subject_and_leaves_the_other_styles(name):
    concept = load_concept(name)
    style = dict(concept.forget[0].shows)["style"]
    assert concept.erased == {("style", style)} and style.lower().replace(" ", "-") == name
    assert all(row.text == f"{row.anchor} in the style of {style}" for row in concept.forget)
    styles = Counter(dict(row.shows)["style"] for row in concept.retain)
    assert len(styles) == 6 and styles.pop("painting") and len(set(styles.values())) == 1


@pytest.mark.parametrize("name", [*DIGITS, *STYLES])
def test_the_digits_are_kept_evenly_alone_and_in_pairs(name):
    """What the shipped model was taught to draw, in its own words, with the answer that its data gives."""
    concept = load_concept(f"digits/{name}")
    domain, values = ("digit", DIGITS) if name in DIGITS else ("style", STYLES)
    following = values[(values.index(name) + 1) % len(values)]
    wanted = {drawn(d, s): drawn(d, s).replace(name, following) for d in DIGITS for s in STYLES if name in (d, s)}
    assert anchors_of(concept) == wanted and concept.erased == {(domain, name)}
    singles = {drawn(d, s) for d in DIGITS for s in STYLES if name not in (d, s)}
    pairs = [row for row in concept.retain if row.text not in singles]
    assert len(concept.retain) == len(singles) + 30 and len(pairs) == 30
    shown = [tuple(value for _, value in row.shows) for row in pairs]
    assert not any(name in row for row in shown) and all(first != second for first, second, _ in shown)
    for counts, kinds in (
        (Counter(first for first, _, _ in shown), set(DIGITS) - {name}),
        (Counter(second for _, second, _ in shown), set(DIGITS) - {name}),
        (Counter(style for *_, style in shown), set(STYLES) - {name}),
        (Counter(digit for pair in shown for digit in pair[:2]), set(DIGITS) - {name}),
    ):
        assert set(counts) == kinds and max(counts.values()) - min(counts.values()) <= 1


def test_the_digits_are_asked_for_in_the_captions_of_their_data():
    from erasure.data import load_dataset

    data = load_dataset("digits_styles", "test")
    answers = {}
    for label, captions in enumerate(data.captions):
        seen = [(aspect.domain or name, aspect.names[aspect.of_class[label]]) for name, aspect in data.aspects.items()]
        answers |= dict.fromkeys(captions, tuple(pair for pair in seen if pair[1] != "none"))
    for name in (*DIGITS, *STYLES):
        concept = load_concept(f"digits/{name}")
        assert all(answers[row.text] == row.shows for row in (*concept.forget, *concept.retain))


def test_a_digit_and_a_style_together_forget_both_and_keep_what_is_free_of_both():
    concept = load_concept("digits/three, digits/neon")
    assert concept.name == "digits/three,digits/neon"
    assert concept.erased == {("digit", "three"), ("style", "neon")}
    anchors = anchors_of(concept)
    assert set(anchors) == {drawn(d, s) for d in DIGITS for s in STYLES if d == "three" or s == "neon"}
    assert len(concept.forget) == 14
    assert anchors[drawn("three", "sepia")] == drawn("four", "sepia")
    assert anchors[drawn("three", "neon")] == drawn("four", "chalk")
    assert anchors[drawn("two", "neon")] == drawn("two", "chalk")
    assert anchors[drawn("seven", "neon")] == drawn("seven", "chalk")
    singles = {drawn(d, s) for d in DIGITS for s in STYLES if d != "three" and s != "neon"}
    assert singles < set(texts(concept.retain))
    parts = [load_concept("digits/three"), load_concept("digits/neon")]
    pairs = {row for part in parts for row in part.retain if len(row.shows) == 3}
    free = {row for row in pairs if not {"three", "neon"} & {value for _, value in row.shows}}
    assert {row for row in concept.retain if len(row.shows) == 3} == free and 30 < len(free) < len(pairs)


def test_an_anchor_that_is_forgotten_too_is_followed_to_the_first_that_is_not():
    church = anchors_of(load_concept("imagenette/church,imagenette/french-horn"))
    assert church["Image of church"] == church["Image of French horn"] == "Image of garbage truck"
    nine = load_concept("imagenette/" + ",imagenette/".join(n.lower().replace(" ", "-") for n in IMAGENETTE[1:]))
    assert set(anchors_of(nine).values()) == {"an image of a tench", "Image of tench"} == set(texts(nine.retain))
    with pytest.raises(OptionError, match="leaves nothing to retain"):
        load_concept(",".join(name for name in concept_names() if name.startswith("imagenette/")))


def test_an_anchor_that_shows_what_is_erased_gives_way_to_the_nearest_that_does_not():
    """Van Gogh's church may become neither a plain church nor another's church, but another plain painting."""
    concept = load_concept("van-gogh,imagenette/church")
    assert concept.erased == {("style", "Van Gogh"), ("object", "church")}
    anchor = anchors_of(concept)["a painting of a church in the style of Van Gogh"]
    assert dict(next(row for row in concept.retain if row.text == anchor).shows)["style"] == "painting"
    assert not any("church" in text for text in texts(concept.retain))
    assert anchors_of(concept)["a painting of a cat in the style of Van Gogh"] == "a painting of a cat"


def test_two_concepts_that_point_at_each_other_fall_back_on_what_is_kept():
    one, other, rest = (Prompt(c, "", (("object", c), ("style", s))) for c, s in (("a", "x"), ("b", "x"), ("d", "x")))
    far = Prompt("c", "", (("object", "c"), ("style", "y")))
    first = Concept("a", (Prompt("a", "b", one.shows),), (other, far, rest))
    second = Concept("b", (Prompt("b", "a", other.shows),), (one, far, rest))
    both = joined([first, second])
    assert anchors_of(both) == {"a": "d", "b": "d"} and both.retain == (far, rest)


def test_a_prompt_that_one_file_describes_is_described_in_the_join():
    bare = Concept("a", (Prompt("a", "k"),), (Prompt("k"), Prompt("z")))
    told = Concept("b", (Prompt("b", "k", (("object", "b"),)),), (Prompt("k", "", (("object", "k"),)),))
    assert joined([bare, told]).retain == (Prompt("k", "", (("object", "k"),)), Prompt("z"))


def test_one_concept_joined_is_itself_and_none_is_refused():
    concept = load_concept("nudity")
    assert joined([concept]) is concept and load_concept("nudity,nudity") == concept
    with pytest.raises(OptionError, match="give `concept` or `forget`"):
        joined([])


def test_concepts_without_answers_are_joined_by_their_prompts():
    concept = load_concept("nudity,violence")
    assert len(concept.forget) == 1 + len(load_concept("violence").forget) and not concept.erased
    assert anchors_of(concept)["a photo of a nude person"] == "a photo of a person wearing clothes"


def test_the_table_holds_every_prompt_once_with_the_anchors_last():
    concept = Concept("x", (Prompt("a", "b"), Prompt("c", "n"), Prompt("d", "n")), (Prompt("b"), Prompt("e")))
    assert concept.table() == ("a", "c", "d", "b", "e", "n")


@pytest.mark.parametrize("name", [*concept_names(), "digits/three,digits/neon"])
def test_the_description_is_short_and_says_all_three_things(name):
    lines = load_concept(name).described()
    assert len(lines) <= 8 and lines[0].startswith(f"{name}: ") and lines[-1].startswith("  kept: ")
    assert any(" becomes " in line for line in lines) and not any("\n" in line for line in lines)


def test_the_description_shortens_long_lists():
    lines = load_concept("digits/three,digits/neon").described()
    assert "  and 11 more" in lines and "  no longer shown: digit three, style neon" in lines
    assert lines[0].startswith("digits/three,digits/neon: 14 prompts to forget, ")
    kept = int(lines[0].split()[-3])
    assert lines[-1].endswith(f" and {kept - 3} more") and lines[-1].count("'") == 6
    assert "'church' becomes the empty prompt" in "\n".join(Concept.from_words("church").described())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nudty", r"did you mean 'nudity'\?"),
        ("church", r"did you mean 'imagenette/church'\?"),
        ("digits/tree", r"did you mean 'digits/three'\?"),
        ("nudity,retain", "`concept` retain is neither a preset nor a CSV file"),
        (" , ", "`concept` names nothing to forget"),
        ("", "`concept` names nothing to forget"),
    ],
)
def test_an_unknown_preset_brings_the_nearest(given, message):
    with pytest.raises(OptionError, match=message) as refusal:
        load_concept(given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("record", [{}, [], {"name": "x", "forget": [{}], "retain": []}, {"name": "x", "forget": 3}])
def test_a_record_of_something_else_is_refused(record):
    with pytest.raises(DataError, match="not the record of a concept"):
        Concept.from_json(record)


@settings(max_examples=60, deadline=None)
@given(chosen=st.lists(st.sampled_from([f"digits/{name}" for name in (*DIGITS, *STYLES)]), min_size=1, unique=True))
def test_any_join_keeps_apart_what_is_forgotten_and_what_is_kept(chosen):
    parts = [load_concept(name) for name in chosen]
    gone = frozenset().union(*(part.erased for part in parts))
    if len(gone & {("digit", d) for d in DIGITS}) == 10 or len(gone & {("style", s) for s in STYLES}) == 5:
        with pytest.raises(OptionError, match="nothing to retain"):
            joined(parts)
        return
    concept = joined(parts)
    kept = set(texts(concept.retain))
    assert concept.erased == gone and not any(gone & set(row.shows) for row in concept.retain)
    assert set(texts(concept.forget)) == {text for part in parts for text in texts(part.forget)}
    assert len(concept.forget) == len(set(texts(concept.forget))) and not kept & set(texts(concept.forget))
    assert {row.anchor for row in concept.forget} <= kept


def test_reading_concepts_loads_nothing_heavy():
    code = "import sys, erasure.prompts.concept as c; c.load_concept('nudity'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_installed_package_finds_its_presets_inside(monkeypatch, tmp_path):
    monkeypatch.setattr(shipping, "__file__", str(tmp_path / "erasure" / "core" / "shipped.py"))
    assert shipped("prompts") == tmp_path / "prompts" and concept_names() == ()
    (tmp_path / "erasure" / "shipped" / "prompts" / "mine").mkdir(parents=True)
    (tmp_path / "erasure" / "shipped" / "prompts" / "mine" / "thing.csv").write_text(
        "role,prompt,anchor\nforget,a church,a barn\nretain,a barn,\n"
    )
    assert concept_names() == ("mine/thing",) and load_concept("mine/thing").forget[0].text == "a church"
    wheel = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text()
    assert 'prompts = "erasure/shipped/prompts"' in wheel


def test_presets_files_and_lists_of_words_are_concepts_in_python(tmp_path):
    assert Concept.preset("nudity") == load_concept("nudity")
    with pytest.raises(OptionError, match=r"there is no concept .church. \(did you mean .imagenette/church.\?\)"):
        Concept.preset("church")
    (tmp_path / "mine.csv").write_text("role,prompt,anchor\nforget,a cat,a dog\nretain,a dog,\n")
    assert Concept.from_csv(tmp_path / "mine.csv") == load_concept(str(tmp_path / "mine.csv"))
    assert Concept.from_words(["church", "Van Gogh"], ["barn", ""]) == Concept.from_words("church, Van Gogh", "barn,")
    kept = ["a dog, asleep", "a tree"]
    assert [row.text for row in Concept.from_words("church", retain=kept).retain] == kept
    assert Concept.from_words("church", retain=tmp_path / "mine.csv").retain == (Prompt("a dog"),)
