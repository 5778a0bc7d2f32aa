"""Forgetting single samples: which they are, that methods and outputs see just those, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from erasure.core.errors import OptionError
from erasure.core.files import read_json
from erasure.data import Batches, Dataset
from erasure.data.forget_sets import by_sample, forget_ids, mislabelled, read_ids
from erasure.data.task import Task
from erasure.erasing.targets import TargetSpec, recorded_target, target_of
from erasure.evaluation.settings import EvaluationConfig
from erasure.models import load_model

SHORT = ("--arch", "resnet-digits", "--steps", 3, "--batch-size", 16, "--warmup-steps", 1)
QUICK = ("--epochs", 0, "--steps", 2, "--batch-size", 8)


@pytest.fixture(scope="session")
def wrong_folder(tmp_path_factory):
    """A classifier that was trained for a moment on digits of which a tenth is labelled wrongly."""
    from erasure.training.recipes import ClassifierRecipe
    from erasure.training.train import train

    out = tmp_path_factory.mktemp("wrong") / "c"
    recipe = ClassifierRecipe(arch="resnet-digits", steps=3, batch_size=16, warmup_steps=1, mislabel=0.1)
    train(recipe, "digits", out, seed=5)
    return out / "model"


def test_a_random_share_is_seeded_and_even_in_its_draws(digits):
    ids = forget_ids("random:0.1", digits, 3)
    assert len(ids) == 144 and (np.diff(ids) > 0).all() and ids.max() < 1442
    assert np.array_equal(ids, forget_ids("random:0.1@3", digits, 8))
    assert not np.array_equal(ids, forget_ids("random:0.1", digits, 4))
    drawn = np.bincount(np.concatenate([forget_ids("random:0.5", digits, seed) for seed in range(60)]), minlength=1442)
    assert drawn.min() > 8 and drawn.max() < 52  # of 60, each with chance a half


def test_classes_are_all_their_samples(digits):
    for spec in ("class:3", "3", "class:three"):
        assert np.array_equal(forget_ids(spec, digits, 0), np.flatnonzero(digits.labels == 3))
    assert by_sample("mislabelled") and by_sample("ids:x") and not by_sample("class:3") and not by_sample(None)
    single = Dataset("one", "train", np.zeros((5, 1, 1, 1), np.uint8), np.array([0, 0, 1, 2, 2]), ("a", "b", "c"))
    assert forget_ids("class:b", single, 0).tolist() == [2]


def test_ids_come_from_the_command_line_or_a_file(digits, tmp_path):
    files = {"lines.txt": "17\n\n5\n17\n", "list.json": "[17, 5, 17]"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert forget_ids(f"ids:{tmp_path / name}", digits, 0).tolist() == [5, 17]
    assert forget_ids("ids:17, 5,17", digits, 0).tolist() == [5, 17]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ids:5,1442", r"ids 1442 do not exist: the train split of digits has samples 0 to 1,441"),
        ("ids:-1", "ids -1 do not exist"),
        ("ids:" + ",".join(map(str, range(2000, 2010))), "ids 2000, 2001, 2002, 2003, 2004 and 5 more do not exist"),
        ("ids:99999999999999999999", "do not exist"),
        ("ids:", "names none of 1,442 samples"),
        ("ids:5,-", "is no list of ids"),
        ("ids:nowhere.txt", "nowhere.txt does not exist"),
        ("random:1", "between 0 and 1, 1 does not"),
        ("random:nan", "between 0 and 1, nan does not"),
        ("random:-0.1", "between 0 and 1"),
        ("random:", "expected a share, such as random:0.1"),
        ("random:0.1@x", "expected a share"),
        ("random:0.9999", "names all 1,442 samples"),
        ("random:0.0001", "none of them"),
        ("mislabelled:0.1@3", "the seed of the training"),
        ("class:ten", "unknown class 'ten'"),
        ("class:" + ",".join(map(str, range(10))), "leaves none of 10 classes"),
    ],
)
def test_a_forget_set_that_is_none_is_one_clear_error(digits, spec, message):
    with pytest.raises(OptionError, match=message):
        forget_ids(spec, digits, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\nfour\n", "line 2: 'four' is no id"),
        ("1.5\n", "line 1: '1.5' is no id"),
        ("[1, true]", "something else than whole numbers"),
        ("[1, 2", "is not readable JSON"),
    ],
)
def test_a_file_that_holds_no_ids_is_named(tmp_path, text, message):
    (tmp_path / "ids").write_text(text)
    with pytest.raises(OptionError, match=message):
        read_ids(str(tmp_path / "ids"), 10)


def test_wrong_labels_are_wrong_seeded_and_uniform(digits):
    changed, ids = mislabelled(digits, 0.5, 2)
    assert np.array_equal(ids, np.flatnonzero(changed.labels != digits.labels)) and len(ids) == 721
    assert np.array_equal(ids, forget_ids("mislabelled:0.5", changed, 2))
    again, _ = mislabelled(digits, 0.5, 2)
    other, others = mislabelled(digits, 0.5, 3)
    assert again.hash == changed.hash != other.hash and not np.array_equal(ids, others)
    shift = np.bincount((changed.labels - digits.labels)[ids] % 10, minlength=10)
    assert shift[0] == 0 and shift[1:].min() > 45 and shift[1:].max() < 120  # 80 each
    with pytest.raises(OptionError, match="between 0 and 1"):
        mislabelled(digits, 1.0, 0)


@pytest.mark.parametrize("rule", ["random", "next"])
def test_other_labels_of_samples_are_never_their_own(digits, rule):
    from erasure.methods.relabeling.base import other_labels

    labels = torch.arange(10).repeat(200)
    task = Task(digits.class_names, (), already_erased=(4,), samples=True)
    drawn = other_labels(rule, labels, task, torch.Generator().manual_seed(0))
    assert not (drawn == labels).any() and not (drawn == 4).any()
    table = torch.bincount(labels * 10 + drawn, minlength=100).reshape(10, 10)
    if rule == "random":
        others = table[[0, 1, 2, 3, 5, 6, 7, 8, 9]][:, [0, 1, 2, 3, 5, 6, 7, 8, 9]]
        assert (others.fill_diagonal_(25) > 8).all() and others.max() < 50  # 200 over 8 others
        assert (table[4] > 8).sum() == 9
    else:
        assert drawn[:10].tolist() == [1, 2, 3, 5, 5, 6, 7, 8, 9, 0]
    with pytest.raises(OptionError, match="for single samples give random or next"):
        other_labels("3", labels, task, torch.Generator())


def test_the_subject_splits_the_training_data_in_two(classifier, digits):
    target = target_of(classifier, TargetSpec(forget="random:0.2"), seed=6)
    ids = forget_ids("random:0.2", digits, 6)
    rest = np.setdiff1d(np.arange(len(digits)), ids)
    assert np.array_equal(target.forget_data.images, digits.images[ids])
    assert np.array_equal(target.retain_data.labels, digits.labels[rest])
    assert target.task.samples and target.task.forget == () and target.task.concept == "random:0.2"
    assert recorded_target(classifier, target.settings).settings == target.settings
    assert (
        target_of(classifier, TargetSpec(forget="class:3")).task == target_of(classifier, TargetSpec(forget="3")).task
    )


def test_outputs_are_of_just_those_samples(classifier, digits, tmp_path):
    target = target_of(classifier, TargetSpec(forget="ids:0,1,2,50"))
    assert len(target_of(classifier, TargetSpec(forget="ids:" + ",".join(map(str, range(1400))))).ids) == 1400
    outputs = target.outputs(classifier, EvaluationConfig(), tmp_path)
    right = classifier.describe(Batches(digits, 1, 0).dataset.samples(np.arange(len(digits))))[0].argmax(1).numpy()
    right = right == digits.labels
    assert outputs.correct("forget").tolist() == right[[0, 1, 2, 50]].tolist()
    assert outputs.correct("retain").sum() == right.sum() - right[[0, 1, 2, 50]].sum()


def test_what_was_erased_before_is_on_neither_side(classifier, digits, tmp_path):
    classifier.info |= {"erased_samples": ["ids:3,4,5", "random:0.1@1"], "erased_classes": [7]}
    target = target_of(classifier, TargetSpec(forget="ids:5,6"))
    earlier = {3, 4, *forget_ids("random:0.1@1", digits, 0), *np.flatnonzero(digits.labels == 7)} - {5, 6}
    assert len(target.retain_data) == len(digits) - len(earlier | {5, 6})
    outputs = target.outputs(classifier, EvaluationConfig(), tmp_path)
    assert outputs.chosen("forget").sum() == 2 and outputs.chosen("retain").sum() == len(target.retain_data)
    whole = target_of(classifier, TargetSpec(forget="3"))
    kept = ~np.isin(digits.labels, (3, 7))
    kept[[3, 4, 5, *forget_ids("random:0.1@1", digits, 0)]] = False
    assert np.array_equal(whole.retain_data.images, digits.images[kept])


@pytest.mark.parametrize("method", ["finetune", "random_label", "salun", "gradient_ascent", "retrain"])
def test_every_method_forgets_samples_end_to_end(cli, classifier_folder, tmp_path, method):
    options = ("--steps", 2) if method == "retrain" else QUICK
    base = ("erase", "--model", classifier_folder, "--forget", "random:0.1", "--method", method, "--seed", 2, *options)
    result = cli(*base, "--out", tmp_path / "run", "--json").json
    assert result["metrics"]["ua"]["n"] == 144 and result["metrics"]["ra"]["n"] == 1298
    assert result["forget"] == "random:0.1"
    settings = read_json(tmp_path / "run" / "run.json")["settings"]
    assert settings["forget"] == "random:0.1@2"
    assert settings["forget_ids"]["count"] == 144 and len(settings["forget_ids"]["sha256"]) == 64
    assert load_model(tmp_path / "run").info["erased_samples"] == ["random:0.1@2"]
    again = cli("evaluate", tmp_path / "run", "--json").json
    assert again["ua"] == result["ua"] and again["ra"] == result["ra"]
    if method == "salun":
        repeated = cli("erase", "--config", tmp_path / "run" / "run.json", "--out", tmp_path / "b", "--json").json
        assert repeated["hash"] == result["hash"]


def test_a_mask_is_of_the_gradient_on_the_samples(cli, classifier, classifier_folder, digits, tmp_path):
    from erasure.saliency.mask import Mask
    from erasure.saliency.scores import SaliencyConfig, build_mask

    ids = forget_ids("ids:1,2,3", digits, 0)
    base = ("mask", "--model", classifier_folder, "--out", tmp_path / "m.safetensors", "--forget")
    cli(*base, "ids:3,2,1")
    made, expected = (
        Mask.load(tmp_path / "m.safetensors"),
        build_mask("saliency", load_model(classifier_folder), digits.at(ids), SaliencyConfig(), 0),
    )
    assert all(made.tensors[name].equal(expected.tensors[name]) for name in expected.tensors)
    assert cli(*base, "ids:1,2,3").code == 0 and "other settings" in cli(*base, "ids:1,2,4").err


def test_a_file_of_ids_is_held_to(cli, refused, classifier_folder, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text("[4, 9]")
    base = ("erase", "--model", classifier_folder, "--method", "finetune", *QUICK, "--out")
    result = cli(*base, tmp_path / "run", "--forget", f"ids:{ids}", "--json").json
    assert result["metrics"]["ua"]["n"] == 2 and result["forget"] == "2 ids"
    assert load_model(tmp_path / "run").info["erased_samples"] == ["ids:4,9"]
    ids.write_text("[4, 8]")
    assert "no longer names the samples of the run" in refused("evaluate", tmp_path / "run")


def test_mislabelled_samples_are_found_again(cli, wrong_folder, digits, tmp_path):
    model = load_model(wrong_folder)
    assert model.info["recipe"]["mislabel"] == 0.1
    changed, ids = mislabelled(digits, 0.1, 5)
    target = target_of(model, TargetSpec(forget="mislabelled"), seed=99)
    assert np.array_equal(target.ids, ids) and target.dataset.hash == changed.hash
    assert np.array_equal(target.forget_data.labels, changed.labels[ids])
    assert np.array_equal(target.retain_data.labels, digits.labels[np.setdiff1d(np.arange(1442), ids)])
    assert target.test_data.split == "test" and target.task.concept == "mislabelled:0.1"
    base = ("erase", "--model", wrong_folder, "--forget", "mislabelled:0.1", "--method", "retrain", "--steps", 2)
    result = cli(*base, "--out", tmp_path / "run", "--json").json
    assert result["metrics"]["ua"]["n"] == 144
    other = target_of(model, TargetSpec(forget="3"))  # the labels of the training, wrong ones too
    assert np.array_equal(other.forget_data.labels, changed.labels[changed.labels == 3])


def test_training_with_wrong_labels_is_another_training(cli, refused, tmp_path):
    base = ("train", "classifier", "--data", "digits", *SHORT)
    plain = cli(*base, "--out", tmp_path / "a", "--json").json
    wrong = cli(*base, "--out", tmp_path / "b", "--mislabel", 0.3, "--json").json
    assert plain["hash"] != wrong["hash"]
    assert "is outside [0, 1)" in refused(*base, "--out", tmp_path / "c", "--mislabel", 1.5)


@pytest.mark.parametrize(
    ("model", "forget", "message"),
    [
        ("ddpm_folder", "random:0.1", "names single samples: a ddpm model is asked for classes"),
        ("ddpm_folder", "ids:5", "give classes, such as --forget class:3"),
        ("classifier_folder", "mislabelled", "does not record that labels of this data were wrong"),
        ("wrong_folder", "mislabelled:0.2", "was trained with --mislabel 0.1"),
        ("classifier_folder", "ids:5,2000", "ids 2000 do not exist"),
        ("classifier_folder", "random:1.5", "a share lies between 0 and 1"),
        ("classifier_folder", "ids:nowhere", "nowhere does not exist"),
    ],
)
def test_what_cannot_be_forgotten_is_refused_in_one_line(request, refused, tmp_path, model, forget, message):
    folder = request.getfixturevalue(model)
    for verb in ("erase", "mask"):
        assert message in refused(verb, "--model", folder, "--forget", forget, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_erasure_that_leaves_nothing_is_refused(refused, classifier, tmp_path):
    classifier.info["erased_samples"] = ["ids:" + ",".join(map(str, range(1, 1442)))]
    classifier.save(tmp_path / "m")
    line = refused("erase", "--model", tmp_path / "m", "--forget", "ids:0", "--out", tmp_path / "run")
    assert "leaves no sample to retain" in line


def test_labels_out_of_range_are_refused(digits):
    from erasure.core.errors import DataError

    for labels in (digits.labels + 1, digits.labels - 1, digits.labels * np.nan, digits.labels[:-1]):
        with pytest.raises(DataError, match=r"labels must lie in 0 to 9|expected a whole number as label"):
            replace(digits, labels=labels).check()
