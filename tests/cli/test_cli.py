import json

import pytest

from erasure.cli.verbs import VERBS

SMALL = ("--num-images", 2, "--num-inference-steps", 2)


def test_help_and_unknown_verbs(cli):
    assert cli("--help").code == 0 and all(verb in cli("--help").out for verb in VERBS)
    assert cli().code == 2
    assert cli("--version").out.strip().count(".") == 2
    wrong = cli("ersae")
    assert wrong.code == 2 and "did you mean 'erase'" in wrong.err and wrong.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("erase",),
        ("train",),
        ("train", "gan"),
        ("mask", "--model", "x"),
        ("list",),
        ("list", "things"),
        ("mask", "--density", "much"),
    ],
)
def test_a_command_that_cannot_be_read_is_one_line_and_exit_2(cli, arguments):
    outcome = cli(*arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "--help" in outcome.err


@pytest.mark.parametrize("folder", ["methods", "metrics", "models", "data"])
def test_lists(cli, folder):
    text = cli("list", folder)
    items = cli("list", folder, "--json").json[folder]
    assert text.code == 0 and len(text.out.splitlines()) == len(items) >= 2
    assert all(set(item) == {"name", "summary"} for item in items)


def test_generate_leaves_images_and_a_grid(cli, refused, ddpm_folder, tmp_path):
    command = ("generate", "--model", ddpm_folder, "--classes", "0,two", *SMALL)
    result = cli(*command, "--out", tmp_path / "g", "--json").json
    assert result["images"] == 4 and result["classes"] == ["zero", "two"]
    assert len(list((tmp_path / "g").glob("*/*.png"))) == 4 and (tmp_path / "g" / "grid.png").is_file()
    assert cli(*command, "--out", tmp_path / "g", "--json").json == result
    line = refused("generate", "--model", ddpm_folder, "--classes", "0", *SMALL, "--out", tmp_path / "g")
    assert "classes: [0, 2] there, [0] now" in line
    assert "out of range" in refused("generate", "--model", ddpm_folder, "--classes", "12", "--out", tmp_path / "h")


def test_only_generators_generate(refused, classifier_folder, tmp_path):
    assert "generates no images" in refused("generate", "--model", classifier_folder, "--out", tmp_path / "g")


def test_training_leaves_a_model_a_card_and_pictures(cli, refused, tmp_path):
    small = ("--steps", 3, "--batch-size", 8, "--warmup-steps", 1)
    command = ("train", "ddpm", "--data", "digits", "--channels", "16,32", *small)
    result = cli(*command, "--out", tmp_path / "d", "--json").json
    model = tmp_path / "d" / "model"
    for name in ("README.md", "loss.png", "samples.png", "erasure.json", "model_index.json"):
        assert (model / name).is_file(), name
    assert "loss over the last tenth" in (model / "README.md").read_text().lower()
    assert cli(*command, "--resume", "--out", tmp_path / "d", "--json").json == result
    line = refused(*command, "--learning-rate", "0.5", "--resume", "--out", tmp_path / "d")
    assert "options.learning_rate: 0.002 there, 0.5 now" in line
    assert "no run to resume" in refused(*command, "--resume", "--out", tmp_path / "new")
    outcome = cli(
        "train", "classifier", "--data", "digits", "--arch", "resnet-digits", *small, "--out", tmp_path / "c", "--json"
    )
    assert 0 <= outcome.json["test_accuracy"] <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "digitz"), "did you mean 'digits'"),
        (("--data", "digits", "--batch-size", "0"), "--batch-size 0"),
        (("--data", "digits", "--steps", "-1"), "--steps"),
        (("--data", "digits", "--stepz", "1"), "did you mean '--steps'"),
        (("--data", "cifar10"), "needs --data-dir"),
        (("--data", "cifar10", "--data-dir", "nowhere"), "does not exist"),
        (("--data", "digits", "--channels", "16,banana"), "--channels"),
        (("--data", "digits", "--channels", "12,20"), "--channels"),
    ],
)
def test_bad_training_is_one_line(refused, tmp_path, arguments, message):
    assert message in refused("train", "ddpm", *arguments, "--out", tmp_path / "x")


def test_mask_output(cli, refused, ddpm_folder, tmp_path):
    path = tmp_path / "m.safetensors"
    out = cli("mask", "--model", ddpm_folder, "--forget", 3, "--density", 0.25, "--out", path).out
    assert "density 0.24999" in out and "mid_block" in out
    assert "other settings" in refused("mask", "--model", ddpm_folder, "--forget", 4, "--density", 0.25, "--out", path)
    assert "is a folder" in refused("mask", "--model", ddpm_folder, "--forget", 4, "--out", tmp_path)
    random = cli(
        "mask", "--model", ddpm_folder, "--forget", 3, "--kind", "random", "--out", tmp_path / "r.safetensors", "--json"
    ).json
    assert random["provenance"]["score"] == "random"
    assert json.loads(json.dumps(random)) == random
