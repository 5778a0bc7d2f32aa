"""Small models from the real classes, seeded, and the command line as a user meets it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from erasure.cli import main
from erasure.data import Dataset, load_dataset
from erasure.data.task import Task
from erasure.models import Model, load_model
from erasure.models.classifier import Classifier
from erasure.models.ddpm import DDPM
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.latent_cache import Latents
from erasure.training.recipes import ClassifierRecipe, DDPMRecipe, Recipe, new_model
from tests.support import tiny_pipelines

ROOT = Path(__file__).parent.parent
CIFAR10 = ROOT.parent / "shared" / "data"
RECIPES: dict[str, Recipe] = {
    "ddpm": DDPMRecipe(steps=4, batch_size=16, channels="16,32", warmup_steps=2),
    "ddpm-unconditional": DDPMRecipe(steps=4, batch_size=16, channels="16,32", warmup_steps=2, conditional=False),
    "classifier": ClassifierRecipe(arch="resnet-digits", steps=4, batch_size=16, warmup_steps=2),
}


PIPELINES = ("sd1", "sd2_v", "sdxl")
KINDS = (*RECIPES, *PIPELINES)
PROMPTS = ("a cat", "a photo of a cat", "a dog", "a tree", "a house")
CATS = Task(PROMPTS, (0, 1), anchors=(2, 3), title="cat")


@functools.cache
def pipeline_folder(kind: str) -> Path:
    """A tiny stock pipeline of one of PIPELINES, saved once."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-")) / kind
    getattr(tiny_pipelines, kind)().save_pretrained(folder)
    return folder


@functools.cache
def _loaded(kind: str) -> StableDiffusion:
    model = load_model(pipeline_folder(kind))
    assert isinstance(model, StableDiffusion)
    return model.set_prompts(PROMPTS)


def about(kind: str) -> tuple[Dataset, Task]:
    """What a model of `kind` is asked to forget, and the samples behind it."""
    if kind not in PIPELINES:
        digits = load_dataset("digits")
        return digits, Task.of_classes("3", digits.class_names)
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn((30, 8, 8, 8), generator=generator).abs()
    labels = np.arange(30) % len(PROMPTS)
    return Latents("noise", "train", np.empty((30, 0, 0, 0), np.uint8), labels, PROMPTS, moments=moments), CATS


def tiny(kind: str, seed: int = 0) -> Model:
    """An untrained model of one of RECIPES on digits, or of PIPELINES under PROMPTS."""
    if kind in PIPELINES:
        return _loaded(kind).clone() if seed == 0 else _loaded(kind).fresh(seed)
    model = new_model(RECIPES[kind], load_dataset("digits"), seed)
    model.info["recipe"] = {"data": "digits", "kind": RECIPES[kind].kind, "seed": seed, **asdict(RECIPES[kind])}
    return model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def task(digits: Dataset) -> Task:
    return Task.of_classes("3", digits.class_names)


@pytest.fixture
def ddpm() -> DDPM:
    model = tiny("ddpm")
    assert isinstance(model, DDPM)
    return model


@pytest.fixture
def classifier() -> Classifier:
    model = tiny("classifier")
    assert isinstance(model, Classifier)
    return model


@pytest.fixture(scope="session")
def ddpm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-ddpm"
    tiny("ddpm").save(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-classifier"
    tiny("classifier").save(folder)
    return folder


class Outcome:
    """What a command did: exit code, result on stdout (parsed), and stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(part) for part in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must fail with exit 1 and one line on stderr; returns that line."""

    def run(*arguments: object) -> str:
        outcome = cli(*arguments)
        assert outcome.code == 1, (outcome.code, outcome.out, outcome.err)
        assert outcome.err.startswith("erasure: ")
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.out == ""
        return outcome.err

    return run


def process(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "erasure", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def together(module: str, *arguments: object, count: int = 2) -> str:
    """What `python -m module` prints as the main one of several processes on CPUs."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*launch, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def state_of(model: Model) -> dict[str, torch.Tensor]:
    """A copy of the network's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.network.state_dict().items()}


def pytest_collection_modifyitems(items: list[pytest.PlannedSample]) -> None:
    """The longest tests first, so that several processes end at the same time."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
