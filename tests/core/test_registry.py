import re

import pytest

from erasure.core import registry
from erasure.core.errors import OptionError


@pytest.mark.parametrize("folder", registry.LISTED)
def test_every_plugin_loads_and_its_summary_begins_with_its_name(folder):
    assert registry.names(folder)
    for name in registry.names(folder):
        assert isinstance(registry.load(folder, name), type)
        assert registry.summary(folder, name).startswith(f"{name}: ")


@pytest.mark.parametrize("folder", ["methods", "metrics"])
def test_every_method_and_metric_names_its_source(folder):
    for name in registry.names(folder):
        assert re.search(r"[A-Z]\w+( et al\.)?, 20\d\d", registry.summary(folder, name)), name


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'salun'"):
        registry.load("methods", "salum")


def test_a_third_party_class_is_loaded_by_module_and_name():
    assert registry.load("methods", "erasure.methods.relabeling.salun:SalUn") is registry.load("methods", "salun")
    with pytest.raises(OptionError, match="cannot be imported"):
        registry.load("methods", "nowhere.at_all:Thing")
