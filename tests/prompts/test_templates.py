import pytest

from erasure.core.errors import OptionError
from erasure.core.shipped import shipped
from erasure.prompts.concept import Concept, Prompt, load_concept
from erasure.prompts.concept_csv import read_prompts
from erasure.prompts.templates import filled, mentions, replacement, templates_for, with_article


def anchors_of(concept: Concept) -> dict[str, str]:
    return {row.text: row.anchor for row in concept.forget}


def texts(rows: tuple[Prompt, ...]) -> list[str]:
    return [row.text for row in rows]


def test_words_become_sentences_whose_anchor_is_the_sentence_without_them():
    concept = Concept.from_words("church")
    assert concept.name == "church"
    assert anchors_of(concept) == {
        "church": "",
        "a photo of a church": "a photo",
        "an image of a church": "an image",
        "a painting of a church": "a painting",
    }
    everyday = texts(tuple(read_prompts(shipped("prompts") / "retain.csv", "--retain")[1]))
    assert texts(concept.retain) == [*everyday, "a photo", "an image", "a painting"] and 20 <= len(everyday) <= 28


def test_an_anchor_goes_through_the_same_sentence_unless_it_is_one():
    assert list(anchors_of(Concept.from_words("church", "old barn")).values()) == [
        "old barn",
        "a photo of an old barn",
        "an image of an old barn",
        "a painting of an old barn",
    ]
    assert set(anchors_of(Concept.from_words("church", "a photo of a barn")).values()) == {"a photo of a barn"}
    assert set(anchors_of(Concept.from_words("church", "")).values()) == {""}
    dressed = Concept.from_words("a photo of a nude person", "a photo of a person wearing clothes")
    assert anchors_of(dressed) == anchors_of(load_concept("nudity"))


def test_several_words_take_one_anchor_or_one_each():
    both = anchors_of(Concept.from_words("church, van Gogh", "barn"))
    assert both["church"] == both["van Gogh"] == "barn" and len(both) == 8
    each = anchors_of(Concept.from_words("church,mosque", "barn,tower"))
    assert each["a photo of a church"] == "a photo of a barn" and each["a photo of a mosque"] == "a photo of a tower"
    assert len(Concept.from_words("church,Church, church,a church").forget) == 5


@pytest.mark.parametrize(
    ("concept", "lost"),
    [
        ("cat", {"a photo of a cat on a sofa"}),
        ("Horses", {"a photo of a horse in a field"}),
        ("a photo of a beach", {"a photo of a beach at sunset"}),
        ("cartoon", {"a cartoon of a robot"}),
        (
            "dog,elephants in the city",
            {"a photo of a dog", "a photo of an elephant", "a photo of a city street at night"},
        ),
    ],
)
def test_everyday_prompts_that_mention_a_concept_are_not_kept(concept, lost):
    kept, all_kept = (set(texts(Concept.from_words(words).retain)) for words in (concept, "zebra"))
    assert all_kept - kept - {"an image", "a painting"} == lost


def test_what_to_retain_can_be_given_as_prompts_or_as_a_file(tmp_path):
    assert texts(Concept.from_words("church", None, "a barn , a tower").retain) == ["a barn", "a tower"]
    long = ",".join(f"a photo of barn number {i}" for i in range(100))
    assert len(Concept.from_words("church", retain=long).retain) == 100
    path = tmp_path / "keep.csv"
    path.write_text("role,prompt,anchor\nretain,a barn,\nforget,x,y\n")
    assert texts(Concept.from_words("church", retain=str(path)).retain) == ["a barn"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("church", "a church"),
        ("old church", "an old church"),
        ("a church", "a church"),
        ("the Eiffel tower", "the Eiffel tower"),
        ("English springer", "English springer"),
        ("Van Gogh", "Van Gogh"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("unusual unit", "an unusual unit"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("one-eyed cat", "a one-eyed cat"),
        ("dogs", "dogs"),
        ("dogs in a park", "dogs in a park"),
        ("dog with glasses", "a dog with glasses"),
        ("bus", "a bus"),
        ("glass", "a glass"),
        ("canvas", "a canvas"),
        ("people", "people"),
        ("nudity", "nudity"),
        ("fire engine", "a fire engine"),
        ("3 cats", "3 cats"),
        ("Édouard Manet", "Édouard Manet"),
    ],
)
def test_the_article_is_right(words, expected):
    assert with_article(words) == expected
    assert filled("a photo of {}", words) == f"a photo of {expected}" and filled("{}", words) == words


@pytest.mark.parametrize(
    ("words", "anchor"),
    [
        ("a photo of a nude person", "a photo"),
        ("An image of a church", "an image"),
        ("a painting in the style of Van Gogh", "a painting"),
        ("a black and white photo of a church", "a photo"),
        ("Image of church", "an image"),
        ("a photo", ""),
    ],
)
def test_words_that_are_a_prompt_already_stand_alone(words, anchor):
    assert templates_for(words) == ("{}",) and replacement("{}", words) == anchor


def test_words_that_only_begin_like_a_prompt_are_words():
    assert len(templates_for("photo booth")) == len(templates_for("a picture frame")) == 4


@pytest.mark.parametrize(
    ("text", "words", "shared"),
    [
        ("a photo of two churches", "a church", True),
        ("a photo of berries", "berry", True),
        ("a photo of a dog", "a photo of a cat", False),
        ("a photo of a bus", "buses", False),
        ("a cartoon of a robot", "cartoon", True),
    ],
)
def test_a_mention_is_a_shared_word_that_says_something(text, words, shared):
    assert mentions(text, words) is shared


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "`forget` names nothing to forget"),
        ((" , ", "x"), "`forget` names nothing to forget"),
        (("church", "barn,tower"), "`anchor` gives 2 prompts for 1 concepts"),
        (("a,b,c", "x,y"), "give one for all, or one for each"),
        (("church", "Church"), "the anchor of 'church' is the concept itself: give `anchor` another prompt"),
        (("church,barn", "tower,church"), "'church' of 'barn' is to be forgotten itself: give `anchor`"),
        (("church", None, " , "), "leaves nothing to retain: give `retain`"),
        (("church", None, "a photo of a church"), "take it out of `retain`"),
    ],
)
def test_words_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        Concept.from_words(*arguments)
