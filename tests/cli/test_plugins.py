"""A method of a third party, named on the command line: found from the current folder, each fault in one line."""

import json

import pytest

SOURCE = '''
"""my_method: fine-tune on what is to be kept, scaled (a test, 2026)."""
from dataclasses import dataclass
from typing import Annotated

from erasure.methods.base import GradientMethod


@dataclass(frozen=True, kw_only=True)
class MyMethod(GradientMethod):
    beta: Annotated[float, "weight of the loss, 100% by default"] = 1.0

    def loss(self, model, original, task, batches):
        return {"loss": self.beta * model.per_sample_loss(batches.retain_examples(model)).mean()}
'''
FAULTS = {
    "missing file": (None, "MyMethod", "does not exist"),
    "no class named": ("x = 1", None, "write my_method.py:Class"),
    "syntax error": ("def broken(:\n", "MyMethod", "line 1"),
    "exception at import": ("x = 1\n1 / 0\n", "MyMethod", "ZeroDivisionError: division by zero (my_method.py, line 2)"),
    "exit at import": ("import sys\nsys.exit('bye')\n", "MyMethod", "SystemExit: bye"),
    "lines in the exception": ("raise ValueError('one\\ntwo')", "MyMethod", "ValueError: one two"),
    "import of a missing package": ("import not_there_at_all", "MyMethod", "not_there_at_all"),
    "class missing": (SOURCE, "MyMethot", "did you mean 'MyMethod'"),
    "not a method": ("class MyMethod: pass", "MyMethod", "must be a subclass of erasure.methods.base.Method"),
    "no loss": (SOURCE.split("    def loss")[0], "MyMethod", "does not define loss"),
    "no dataclass": (SOURCE.replace("@dataclass(frozen=True, kw_only=True)\n", ""), "MyMethod", "must be a dataclass"),
    "missing argument": (SOURCE.replace("= 1.0", ""), "MyMethod", "needs a value for --beta"),
    "an option that is taken": (SOURCE.replace("beta:", "out:"), "MyMethod", "MyMethod.out: --out"),
}
SMALL = ("--steps", 2, "--batch-size", 4, "--num-images", 2, "--num-inference-steps", 2)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_plugin_is_one_line(refused, here, ddpm_folder, fault):
    source, name, message = FAULTS[fault]
    if source is not None:
        (here / "my_method.py").write_text(source)
    method = f"my_method.py:{name}" if name else "my_method.py"
    line = refused("erase", "--model", ddpm_folder, "--forget", 3, "--method", method, *SMALL, "--out", "run")
    assert message in line
    assert not (here / "run" / "run.json").exists()


@pytest.mark.parametrize("form", ["my_method.py:MyMethod", "my_package.my_module:MyMethod"])
def test_a_plugin_works_from_the_current_folder(cli, here, ddpm_folder, form):
    (here / "my_package").mkdir()
    for path in ("my_method.py", "my_package/my_module.py"):
        (here / path).write_text(SOURCE)
    command = ("erase", "--model", ddpm_folder, "--forget", 3, "--method", form)
    assert "--beta FLOAT" in cli(*command, "--help").out
    result = cli(*command, "--beta", 0.5, *SMALL, "--out", "run", "--json").json
    assert result["method"] == form
    record = json.loads((here / "run" / "run.json").read_text())
    assert record["settings"]["options"]["beta"] == 0.5
