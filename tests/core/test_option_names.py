"""A message names an option as its reader can type it: arguments in Python, flags on the command line."""

import pytest

from erasure.core.errors import DivergedError, ErasureError, OptionError
from erasure.core.option_names import options_as_flags, worded
from erasure.models import load_model

IN_PYTHON = {
    "--num-images and --eta must be at least 0": "`num_images` and `eta` must be at least 0",
    "give --no-keys-and-values, or leave it": "give `keys_and_values=False`, or leave it",
    "say what to forget, such as --forget 3": "say what to forget, such as `forget=3`",
    "name something, such as --forget church": "name something, such as `forget='church'`",
    "make one with `erasure mask --model <this model>`": "make one with `erasure mask --model <this model>`",
    "`pip install --upgrade x`, or give --onnx FILE": "`pip install --upgrade x`, or give `onnx` FILE",
    "the fields of `--weights` and --rank": "the fields of `weights` and `rank`",
    "folder/a--b.png, x --- y and -- are no options": "folder/a--b.png, x --- y and -- are no options",
}


@pytest.mark.parametrize("text", IN_PYTHON)
def test_flags_become_arguments_in_python_alone(text):
    assert worded(text) == IN_PYTHON[text]
    with options_as_flags():
        assert worded(text) == text
    assert worded(text) == IN_PYTHON[text]


def test_an_error_that_holds_another_names_options_once():
    inner = OptionError("--rank 0 is outside 1 to 4")
    assert str(ErasureError(f"--format lora: {inner}")) == "`format` lora: `rank` 0 is outside 1 to 4"
    assert inner.message == "--rank 0 is outside 1 to 4"
    assert str(DivergedError("lower --learning-rate", 3)) == "lower `learning_rate`"


def test_the_same_error_from_python_and_from_the_command_line(refused, tmp_path):
    with pytest.raises(ErasureError) as caught:
        load_model("nowhere")
    line = refused("erase", "--model", "nowhere", "--forget", 3, "--out", tmp_path / "run")
    assert line == f"erasure: {caught.value.message}\n" and line.startswith("erasure: --model nowhere does not exist")
    assert str(caught.value).startswith("`model` nowhere does not exist")
