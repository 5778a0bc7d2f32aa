"""The verbs, each a module of this folder with `parser`, `run` and, for exit codes other than 0, `code`."""

from __future__ import annotations

VERBS = {
    "demo": "erase a digit from the model that ships, measure it and show it",
    "train": "train a DDPM, a small Stable Diffusion or a classifier from scratch",
    "exact": "keep a classifier as a service that forgets single samples exactly",
    "influence": "rank a classifier's training samples by influence, to find wrong labels",
    "mask": "compute a mask: which weights are salient for what is to be forgotten",
    "erase": "erase classes or a concept from a model into a run folder",
    "generate": "generate images with a model or a run",
    "evaluate": "measure a run or a model",
    "audit": "count what a detector finds in images of a model or a folder: rates, intervals, a verdict",
    "compare": "put runs or audits side by side",
    "benchmark": "compare methods over scenarios and seeds in one table, beside the original",
    "export": "write a cleaned model for other tools",
    "verify": "say what a file is, and prove what changed in it",
    "list": "list methods, metrics, models, data, detectors or concepts",
    "completion": "print a script that completes commands in a shell",
}


class UsageError(Exception):
    """Options that make no command together; the command line ends with 2."""
