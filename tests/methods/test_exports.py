"""`erasure.methods` has the base classes and every method by name, for Python and for type checkers alike."""

import ast
from pathlib import Path

import pytest

import erasure.methods
from erasure.core import registry


def static_names():
    """The names that type checkers see in `erasure.methods`, and the module each is imported from."""
    tree = ast.parse(Path(erasure.methods.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.asname: node.module for node in imports for alias in node.names}


def test_type_checkers_see_what_python_finds():
    expected = dict.fromkeys(erasure.methods.BASES, "erasure.methods.base")
    for name in registry.names("methods"):
        expected[registry.load("methods", name).__name__] = registry.module_name("methods", name)
    assert static_names() == expected and set(expected) <= set(dir(erasure.methods))
    for name, module in expected.items():
        found = getattr(erasure.methods, name)
        assert name == "Options" or (found.__name__ == name and found.__module__ == module)


@pytest.mark.parametrize("name", ["salun", "Salun", "Nothing", "sal_un"])
def test_no_other_spelling_is_found(name):
    with pytest.raises(AttributeError, match=name):
        getattr(erasure.methods, name)
