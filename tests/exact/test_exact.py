"""Exact unlearning: after any requests a service holds the bits of training without the samples, and nothing else."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import exact as benchmark
from erasure.cli import main
from erasure.core.errors import DataError, OptionError, RunError
from erasure.data import load_dataset
from erasure.data.images import write_png
from erasure.exact import fit, forget, predict, verify
from erasure.exact import plan as plan_module
from erasure.exact import service as service_module
from erasure.exact.arcane import Arcane, kernel, representatives
from erasure.exact.hash_log import HashLog, RequestEvent
from erasure.exact.plan import DataSpec, ExactPlan
from erasure.exact.sisa import Sisa
from erasure.exact.training import pinned, train_stage
from erasure.formats.safetensors_io import read_tensors

SIZES = {"a": 9, "b": 8, "c": 1}  # one class has one sample
COUNT = sum(SIZES.values())
TINY = {"slices": 3, "epochs": 2.0, "batch_size": 4}
SOURCE = DataSpec("digits", None, None)
METHODS = {
    "sisa": Sisa(arch="softmax-digits", shards=3, **TINY),
    "arcane": Arcane(hidden=8, code=2, **TINY),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("data") / "tiny", np.random.default_rng(0)
    for split, sizes in {"train": SIZES, "test": dict.fromkeys(SIZES, 2)}.items():
        for name, count in sizes.items():
            for i in range(count):
                image = generator.integers(0, 256, (8, 8, 1), dtype=np.uint8)
                write_png(root / split / name / f"{i}.png", image)
    return root


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("services")
    for name, method in METHODS.items():
        fit(name, method, str(data), root / name, seed=1)
    return root


@pytest.fixture
def service(fitted, tmp_path):
    def copied(name, to="service"):
        return shutil.copytree(fitted / name, tmp_path / to)

    return copied


def contents(folder):
    """Every state on disk, by name."""
    return {path.name: path.read_bytes() for path in (folder / "states").iterdir()}


def from_nothing(plan, deleted, folder):
    """The states of `plan` trained from nothing, on data in which what was deleted is noise."""
    dataset, gone = plan.dataset(), sorted(deleted)
    noise = np.random.default_rng(9).integers(0, 256, dataset.images.shape, dtype=np.uint8)
    images, labels = dataset.images.copy(), dataset.labels.copy()
    images[gone], labels[gone] = noise[gone], 0
    for stage in plan.stages(deleted):
        train_stage(plan, stage, replace(dataset, images=images, labels=labels), folder / "states")
    (folder / "states").mkdir(parents=True, exist_ok=True)
    return contents(folder)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(METHODS)),
    requests=st.lists(st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_any_requests_end_with_the_bits_of_training_without_the_samples(fitted, tmp_path_factory, name, requests):
    root = tmp_path_factory.mktemp("example")
    folder, deleted = shutil.copytree(fitted / name, root / "service"), set()
    for ids in requests:
        if ids & deleted:
            before = contents(folder)
            with pytest.raises(OptionError, match="forgotten before"):
                forget(folder, ids)
            assert contents(folder) == before
        if ids - deleted:
            forget(folder, ids - deleted)
            deleted |= ids
    assert contents(folder) == from_nothing(ExactPlan.read(folder), deleted, root / "reference")
    assert verify(folder).exact


def test_batch_norm_and_the_optimiser_are_part_of_a_state(data, tmp_path):
    method = Sisa(arch="resnet-digits", shards=2, slices=2, epochs=3, batch_size=8)
    fit("sisa", method, str(data), tmp_path / "service", seed=2)
    forget(tmp_path / "service", [0, 11])
    states = contents(tmp_path / "service")
    assert states == from_nothing(ExactPlan.read(tmp_path / "service"), {0, 11}, tmp_path / "reference")
    plan = ExactPlan.read(tmp_path / "service")
    for stage in plan.stages({0, 11}):
        state = read_tensors(tmp_path / "service" / "states" / f"{stage.name}.safetensors")[0]
        before = [one for one in plan.stages({0, 11}) if one.unit == stage.unit and one.number <= stage.number]
        assert state["optimizer/0/step"].item() == sum(method.steps(len(one.ids)) for one in before)
        assert any(name.endswith("running_mean") and value.any() for name, value in state.items())


def test_training_is_pinned_to_the_threads_of_the_plan():
    before = torch.get_num_threads()
    with pinned(before + 1, torch.device("cpu")):
        assert torch.get_num_threads() == before + 1 and torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", METHODS)
def test_a_request_retrains_from_the_first_affected_slice_and_nothing_else(service, name, monkeypatch):
    folder, seen = service(name), []
    original = service_module.train_stage
    monkeypatch.setattr(
        service_module, "train_stage", lambda plan, stage, *rest: (seen.append(stage), original(plan, stage, *rest))[1]
    )
    plan = ExactPlan.read(folder)
    unit, slices = next((unit, slices) for unit, slices in plan.units.items() if len(slices[1]) and len(slices[2]) > 1)
    before = contents(folder)
    result = forget(folder, slices[1][:1])
    assert [(stage.unit, stage.number) for stage in seen] == [(unit, 2), (unit, 3)]
    sizes = [len(stage.ids) for stage in seen]
    assert sizes == [len(slices[0]) + len(slices[1]) - 1, sum(map(len, slices)) - 1]
    assert result.retrained_samples == sum(sizes) * 2 * 2 / (3 + 1)  # 2 epochs over 3 slices: 2 e / (R + 1)
    assert result.naive_samples == 2 * (COUNT - 1)
    assert len(set(before) - set(contents(folder))) == 2 == result.removed_files


def test_the_benchmark_counts_what_a_request_retrains(service, digits, monkeypatch):
    folder = service("sisa")
    counted = benchmark.cost(ExactPlan.read(folder), [[4, 12]])
    assert forget(folder, [4, 12]).share_of_naive == pytest.approx(counted, abs=1e-6)
    monkeypatch.setattr(benchmark, "REQUESTS", 60)
    found = {name.partition(" / ")[0]: value for name, value in benchmark.measure().items()}
    expected = (2 / 3 + 1 / 15) / 10  # (1/S)(2/3 + 1/(3R)) for 10 shards, or classes, of 5 slices
    assert found["SISA, single requests"] == pytest.approx(expected, rel=0.15)
    assert found["ARCANE, single requests"] == pytest.approx(expected, rel=0.15)
    assert found["ARCANE, a whole class"] == 0 < found["ARCANE, skewed, told in advance"] < expected


def test_forgetting_a_class_of_arcane_drops_its_model_and_trains_nothing(service, data, monkeypatch):
    folder = service("arcane")
    monkeypatch.setattr(service_module, "train_stage", None)
    monkeypatch.setattr(plan_module, "environment", lambda threads: {"torch": "another"})  # no training, so no matter
    result = forget(folder, range(9))
    assert result.retrained_states == 0 and not list((folder / "states").glob("class-0-*"))
    said = predict(folder, data / "train" / "a").predictions
    assert len(said) == 9 and not any(found.class_name == "a" for found in said)


@pytest.mark.parametrize("name", METHODS)
def test_everything_may_be_forgotten(service, data, name):
    folder = service(name)
    result = forget(folder, range(COUNT))
    assert contents(folder) == {} and result.retrained_states == 0
    with pytest.raises(RunError, match="no model is left"):
        predict(folder, data)
    assert verify(folder).exact and verify(folder).test_accuracy is None


@pytest.mark.parametrize("aggregate", ["mean", "vote"])
def test_more_shards_than_samples_leave_empty_ones_without_a_say(data, tmp_path, aggregate):
    method = replace(METHODS["sisa"], shards=50, aggregate=aggregate)
    result = fit("sisa", method, str(data), tmp_path / "service")
    assert result.units == 50 and result.samples == COUNT
    forget(tmp_path / "service", [3])
    said = predict(tmp_path / "service", data / "train" / "b").predictions
    assert len(said) == 8 and all(0 < found.score <= 1 for found in said)
    assert verify(tmp_path / "service").exact


@pytest.mark.parametrize(
    ("ids", "message"),
    [([COUNT], "do not exist"), ([-1], "do not exist"), ([], "names no sample"), ([2, 3], "2 were forgotten before")],
)
def test_a_request_that_cannot_be_met_changes_nothing(service, ids, message):
    folder = service("sisa")
    forget(folder, "2,2")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OptionError, match=message):
        forget(folder, ids)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


class Killed(BaseException):
    """Stands for kill -9, which no `except` sees."""


@pytest.mark.parametrize("after", [False, True])
def test_a_request_that_stops_anywhere_is_completed_by_the_next_command(service, data, monkeypatch, after):
    whole = service("sisa", "whole")
    forget(whole, [4, 12])
    stops = [
        (service_module, "train_stage"),
        (service_module, "write_json"),
        (HashLog, "append"),
        (service_module.Service, "sweep"),
    ]
    for i, (owner, name) in enumerate(stops):
        for count in itertools.count():
            folder = service("sisa", f"{i}-{count}")
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, _stopping(getattr(owner, name), count, after))
                try:
                    forget(folder, [4, 12])
                    break
                except Killed:
                    pass
            if count % 2:
                forget(folder, [4, 12])  # the same request
            elif (folder / "pending.json").is_file():
                predict(folder, data / "test")  # or any other command
            else:
                forget(folder, [4, 12])  # it had not begun
            assert contents(folder) == contents(whole) and not (folder / "pending.json").exists()
            assert HashLog(folder / "log.jsonl").broken() == ""
            assert len(HashLog(folder / "log.jsonl").events(RequestEvent)) == 1
        assert count >= 1, name


def _stopping(function, count, after):
    left = itertools.count(count, -1)

    def stopping(*arguments, **keywords):
        due = next(left) == 0
        if due and not after:
            raise Killed
        result = function(*arguments, **keywords)
        if due:
            raise Killed
        return result

    return stopping


def test_a_fit_that_was_stopped_goes_on_and_serves_nobody_before(data, tmp_path, monkeypatch, fitted):
    folder = tmp_path / "service"
    with monkeypatch.context() as patch:
        patch.setattr(service_module, "train_stage", _stopping(service_module.train_stage, 4, True))
        with pytest.raises(Killed):
            fit("sisa", METHODS["sisa"], str(data), folder, seed=1)
    with pytest.raises(RunError, match="interrupted"):
        forget(folder, [1])
    result = fit("sisa", METHODS["sisa"], str(data), folder, seed=1)
    assert contents(folder) == contents(fitted / "sisa")
    forget(folder, [1])
    left = contents(folder)
    assert fit("sisa", METHODS["sisa"], str(data), folder, seed=1) == result and contents(folder) == left
    with pytest.raises(RunError, match="holds another run"):
        fit("sisa", METHODS["sisa"], str(data), folder, seed=3)


@pytest.mark.parametrize("change", ["state", "stranger", "log", "missing"])
def test_verify_sees_what_was_changed(service, change, capsys):
    folder = service("arcane")
    forget(folder, [1])
    state = sorted((folder / "states").iterdir())[0]
    raw, log = bytearray(state.read_bytes()), (folder / "log.jsonl").read_text()
    if change == "state":
        raw[-1] ^= 1
        state.write_bytes(raw)
    elif change == "stranger":
        shutil.copy(state, folder / "states" / "kept.safetensors")
    elif change == "missing":
        state.unlink()
    else:
        (folder / "log.jsonl").write_text(log.replace('"ids": [1]', '"ids": [2]'))
    assert main(["exact", "verify", str(folder), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["exact"] is False
    assert found["differing"] == ([state.stem] if change in ("state", "missing") else [])
    assert found["strangers"] == (["kept.safetensors"] if change == "stranger" else [])
    assert (found["log"] != "whole") == (change == "log")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("live.json", '{"deleted": [1], "data_hash": "x"}', "live.json is damaged: it has no 'states'"),
        (
            "pending.json",
            '{"request": "one", "ids": [], "data_hash": "x"}',
            "request is 'one', expected a whole number",
        ),
        ("plan.json", '{"seed": 1}', "plan.json is damaged: it has no 'method_name'"),
        ("live.json", "[", "is not readable JSON"),
    ],
)
def test_a_damaged_file_is_one_line(service, refused, name, text, said):
    folder = service("sisa")
    (folder / name).write_text(text)
    assert said in refused("exact", "verify", folder)


def test_a_line_of_another_shape_is_no_log_entry(service):
    folder = service("sisa")
    forget(folder, [1])
    log = HashLog(folder / "log.jsonl")
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join([*lines[:-1], lines[-1].replace('"removed": [', '"removed": [3, ')]))
    assert log.broken() == f"line {len(lines)} is not a log entry" and not verify(folder).exact


def test_a_changed_state_is_neither_trained_on_nor_asked(service, data):
    folder = service("sisa")
    slices = ExactPlan.read(folder).units["shard-0"]
    state = next((folder / "states").glob("shard-0-stage-2-*"))
    raw = bytearray(state.read_bytes())
    raw[-1] ^= 1
    state.write_bytes(raw)
    with pytest.raises(RunError, match="is not what the log says"):
        forget(folder, slices[2][:1])
    state.unlink()
    forget(folder, slices[2][:1])
    assert verify(folder).exact
    last = next((folder / "states").glob("shard-0-stage-3-*"))
    last.write_bytes(raw)
    with pytest.raises(RunError, match="is not what live"):
        predict(folder, data / "test")


def test_the_data_may_lose_what_was_forgotten_and_nothing_else(data, tmp_path):
    own = shutil.copytree(data, tmp_path / "own")
    fit("arcane", METHODS["arcane"], str(own), tmp_path / "service")
    forget(tmp_path / "service", [0])
    write_png(own / "train" / "a" / "0.png", np.zeros((8, 8, 1), np.uint8))
    assert verify(tmp_path / "service").exact
    forget(tmp_path / "service", [2])
    write_png(own / "train" / "a" / "1.png", np.zeros((8, 8, 1), np.uint8))
    for request in (lambda: verify(tmp_path / "service"), lambda: forget(tmp_path / "service", [3])):
        with pytest.raises(RunError, match="another data set"):
            request()


def test_another_machine_is_refused_before_anything_is_written(service, monkeypatch):
    folder = service("sisa")
    here = plan_module.environment(1)
    monkeypatch.setattr(plan_module, "environment", lambda threads: {**here, "torch": "1.0"})
    with pytest.raises(RunError, match="torch"):
        forget(folder, [0])
    with pytest.raises(RunError, match="torch"):
        verify(folder)
    assert not (folder / "pending.json").exists()


def test_the_second_of_two_requests_at_once_is_told(service):
    folder = service("sisa")
    with FileLock(folder / ".lock"), pytest.raises(RunError, match="in use by another process"):
        forget(folder, [0])


def test_likely_samples_come_last_and_the_others_stay_where_they_are(data):
    dataset = load_dataset(str(data))
    plain, sorted_ = (
        ExactPlan.draw("sisa", METHODS["sisa"], dataset, SOURCE, 1, likely).units for likely in ((), (0, 5))
    )
    for unit, slices in sorted_.items():
        assert set(slices[2]) == set(plain[unit][2]) | ({0, 5} & {i for ids in plain[unit] for i in ids})
        assert [set(ids) for ids in slices[:2]] == [set(ids) - {0, 5} for ids in plain[unit][:2]]


def test_a_sample_stays_in_its_slice_whatever_else_there_is(digits):
    whole = ExactPlan.draw("sisa", Sisa(arch="softmax-digits"), digits, SOURCE, 1, ()).units
    part = replace(digits, images=digits.images[:300], labels=digits.labels[:300])
    for unit, slices in ExactPlan.draw("sisa", Sisa(arch="softmax-digits"), part, SOURCE, 1, ()).units.items():
        assert slices == [[i for i in ids if i < 300] for ids in whole[unit]]


def test_representatives_are_the_greedy_choice_by_log_determinant():
    points = np.random.default_rng(0).uniform(-1, 1, (12, 5))
    points[7] = points[2]  # a copy adds nothing
    matrix, chosen = kernel(points), []
    for _ in range(6):
        left = [i for i in range(12) if i not in chosen]
        gains = [np.linalg.slogdet(matrix[np.ix_([*chosen, i], [*chosen, i])])[1] for i in left]
        chosen.append(left[int(np.argmax(gains))])
    assert representatives(points, 6).tolist() == sorted(chosen)
    assert not {2, 7} <= set(representatives(points, 9).tolist())


def test_a_selection_is_frozen_and_says_so(data, tmp_path):
    method = replace(METHODS["arcane"], selection="entropy", keep=0.5)
    assert fit("arcane", method, str(data), tmp_path / "service").samples == 4 + 4 + 1
    chosen = {i for slices in ExactPlan.read(tmp_path / "service").units.values() for ids in slices for i in ids}
    unused = sorted(set(range(COUNT)) - chosen)[:2]
    assert forget(tmp_path / "service", unused).retrained_states == 0
    found = verify(tmp_path / "service")
    assert found.exact and any("selection" in sentence for sentence in found.not_claimed)


@pytest.mark.parametrize(
    ("name", "method", "least"),
    [
        ("arcane", Arcane(epochs=8), 90),
        ("sisa", Sisa(arch="softmax-digits", shards=3, epochs=10, learning_rate=0.01), 80),
    ],
)
def test_the_units_together_tell_digits_apart(name, method, least, tmp_path):
    result = fit(name, method, "digits", tmp_path / "service")
    assert result.test_accuracy > least
    found = forget(tmp_path / "service", [5, 17])
    assert 0 < found.share_of_naive < 0.7


def test_the_command_line_does_all_four(data, tmp_path, capsys):
    folder, listed = str(tmp_path / "service"), tmp_path / "ids.json"
    listed.write_text("[3, 8]")
    flags = ["--method", "arcane", "--hidden", "8", "--code", "2", "--epochs", "1", "--likely", "3"]
    for arguments in (
        ["fit", "--data", str(data), "--out", folder, *flags],
        ["forget", folder, "--ids", str(listed)],
        ["predict", folder, "--images", str(data / "test" / "a" / "0.png")],
        ["verify", folder],
    ):
        assert main(["exact", *arguments]) == 0
    out, _ = capsys.readouterr()
    assert "forgotten: [3, 8]" in out and "a/0.png: " in out and "exact: True" in out and "not claimed: " in out
    assert main(["exact", "forget", folder, "--ids", "3"]) == 1
    assert capsys.readouterr().err == "erasure: ids 3 were forgotten before: leave them out\n"


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (replace(METHODS["sisa"], shards=0), OptionError),
        (replace(METHODS["sisa"], slices=0), OptionError),
        (replace(METHODS["sisa"], batch_size=0), OptionError),
        (replace(METHODS["arcane"], keep=0.0), OptionError),
        (replace(METHODS["arcane"], epochs=float("nan")), OptionError),
    ],
)
def test_bad_settings_are_refused_before_a_folder_is_made(data, tmp_path, method, kind):
    name = type(method).__name__.lower()
    with pytest.raises(kind):
        fit(name, method, str(data), tmp_path / "service")
    assert not (tmp_path / "service").exists()


def test_images_to_predict_must_be_there(service, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        predict(service("sisa"), tmp_path / "nothing")
