import pytest

from erasure.core.errors import OptionError
from erasure.data.task import Task, class_index

NAMES = ("cat", "dog", "bird")


def test_classes_by_index_and_by_name_mean_the_same():
    assert Task.of_classes("0,2", NAMES) == Task.of_classes("Bird, cat", NAMES)
    assert Task.of_classes("1", NAMES).retain == (0, 2)
    assert Task.of_classes("dog,cat", NAMES).concept == "cat,dog"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("3", "out of range"),
        ("-1", "out of range"),
        ("dgo", "did you mean 'dog'"),
        ("", "names no class"),
        (" , ", "names no class"),
        ("0,1,2", "leaves none of 3 classes"),
    ],
)
def test_a_bad_class_says_what_was_expected(given, message):
    with pytest.raises(OptionError, match=message):
        Task.of_classes(given, NAMES)


def test_a_name_that_looks_like_a_number_is_a_name_first():
    assert class_index("7", ("5", "6", "7")) == 2
