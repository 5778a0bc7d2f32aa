"""Real photographs through every verb, for a few steps, where the CIFAR-10 archives lie beside the checkout."""

import pytest

from erasure.core.files import read_json
from tests.conftest import CIFAR10

pytestmark = pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 archives are not beside the checkout")


@pytest.mark.slow
def test_train_mask_erase_generate_evaluate_on_real_images(cli, tmp_path):
    data = ("--data", "cifar10", "--data-dir", CIFAR10, "--limit", 200)
    small = ("--channels", "16,32,32", "--layers-per-block", 1, "--steps", 4, "--batch-size", 16, "--warmup-steps", 1)
    trained = cli("train", "ddpm", *data, *small, "--out", tmp_path / "m", "--json").json
    assert trained["loss"] > 0
    labeler = ("--arch", "resnet-digits", "--steps", 4, "--batch-size", 16)
    classifier = cli("train", "classifier", *data, *labeler, "--out", tmp_path / "c", "--json").json
    assert 0 < classifier["test_accuracy"] < 100

    mask = cli(
        "mask", "--model", tmp_path / "m", "--forget", "cat", "--out", tmp_path / "mask.safetensors", "--json"
    ).json
    assert mask["density"] == pytest.approx(0.5, abs=1e-4)
    few = ("--num-images", 2, "--num-inference-steps", 2)
    erase = ("--method", "salun", "--mask", tmp_path / "mask.safetensors", "--steps", 2, "--batch-size", 8)
    result = cli(
        "erase",
        "--model",
        tmp_path / "m",
        "--forget",
        "cat",
        *erase,
        *few,
        "--classifier",
        tmp_path / "c",
        "--out",
        tmp_path / "r",
        "--json",
    ).json
    assert result["metrics"]["ua"]["n"] == 2 and result["metrics"]["fd_classifier"]["details"]["n_real"] == 180
    assert read_json(tmp_path / "r" / "run.json")["status"] == "done"
    drawn = cli(
        "generate", "--model", tmp_path / "r", "--classes", "cat,ship", *few, "--out", tmp_path / "g", "--json"
    ).json
    assert drawn["images"] == 4
    again = cli("evaluate", tmp_path / "r", "--json").json
    assert again["ua"] == result["ua"]


def test_without_a_classifier_the_reason_is_given(cli, tmp_path):
    data = ("--data", "cifar10", "--data-dir", CIFAR10, "--limit", 50)
    small = ("--channels", "16,32", "--layers-per-block", 1, "--steps", 1, "--batch-size", 8, "--no-conditional")
    cli("train", "ddpm", *data, *small, "--out", tmp_path / "m")
    few = ("--num-images", 2, "--num-inference-steps", 1, "--steps", 1, "--batch-size", 4)
    result = cli("erase", "--model", tmp_path / "m", "--forget", "ship", *few, "--out", tmp_path / "r", "--json").json
    assert result["ua"] is None and "give --classifier" in result["not_measured"]["forget_share"]
