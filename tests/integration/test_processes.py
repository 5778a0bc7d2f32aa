"""Several processes that work together equal one."""

import json

import pytest
import torch

from erasure.formats.safetensors_io import read_tensors
from erasure.models import load_model
from tests.conftest import pipeline_folder, process, tiny, together
from tests.support import launched

pytestmark = pytest.mark.slow


def test_two_processes_equal_one(ddpm_folder, tmp_path):
    common = ("erase", "--model", ddpm_folder, "--forget", 3, "--steps", 4, "--batch-size", 16, "--optimizer", "sgd")
    common = (*common, "--learning-rate", 0.01, "--num-images", 2, "--num-inference-steps", 2, "--json")
    alone = process(*common, "--out", tmp_path / "one", OMP_NUM_THREADS="1")
    two = json.loads(together("erasure", *common, "--out", tmp_path / "two"))
    out, err = alone.communicate(timeout=280)
    assert alone.returncode == 0, err
    one = json.loads(out)
    assert two["metrics"]["ua"]["n"] == one["metrics"]["ua"]["n"] == 2
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-6)
    states = [load_model(tmp_path / name).network.state_dict() for name in ("one", "two")]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of what every method leaves: one process's, and that of two."""
    folder = tmp_path_factory.mktemp("launched")
    launched.run(folder / "one", pipeline_folder("sd1"))
    assert together("tests.support.launched", folder / "two", pipeline_folder("sd1")).count("2 processes") == 2
    return folder / "one", folder / "two"


@pytest.mark.parametrize("name", launched.METHODS)
def test_every_method_does_in_two_processes_what_it_does_in_one(both, name):
    one, two = (read_tensors(folder / f"{name}.safetensors")[0] for folder in both)
    before = launched.method_of(name).part_of(tiny("sd1")).network.state_dict()
    assert any(not one[key].equal(value) for key, value in before.items())
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=key)
