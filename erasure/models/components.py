"""The parts of a stock pipeline folder: read strictly (safetensors, complete, finite), written in their precision."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erasure.core.errors import ModelError
from erasure.core.files import read_json
from erasure.formats.safetensors_io import check_finite
from erasure.formats.safetensors_stream import dtype_of

STEMS = ("diffusion_pytorch_model", "model")


def read_component(root: Path, name: str) -> tuple[Any, torch.dtype]:
    """The module in `root/name`, float32 in evaluation mode, and the floating type of its file.

    Raises ModelError when it is missing, a pickle, incomplete, damaged or not finite.
    """
    folder = root / name
    if not (folder / "config.json").is_file():
        raise ModelError(f"{root} has no {name}/config.json: expected a whole pipeline folder")
    path, variant = _weights(folder)
    kind = _class_of(read_json(root / "model_index.json", ModelError), name)
    with _quiet():
        try:
            module, found = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, variant=variant, output_loading_info=True
            )
        except Exception as error:  # the libraries raise a dozen kinds for one meaning
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path} cannot be loaded as {kind.__name__}: {first}") from error
    wrong = sorted({*map(str, found["missing_keys"]), *map(str, found["mismatched_keys"])})
    if wrong:
        raise ModelError(f"{path} does not fit its config.json: {len(wrong)} tensors differ, first {wrong[0]!r}")
    module = module.float().eval().requires_grad_(False)
    for parameter in module.parameters():  # mapped files are not aligned, which changes the last bits of products
        parameter.data = parameter.data.clone()
    check_finite(module, path)
    return module, dtype_of(path)


def read_tokenizer(folder: Path, kind: str = "CLIPTokenizer") -> Any:
    """The tokenizer in `folder`, a CLIPTokenizer or a T5TokenizerFast; raises ModelError when it is incomplete."""
    import transformers

    other = {"CLIPTokenizer": "merges.txt", "T5TokenizerFast": "spiece.model"}[kind]
    if not (folder / "tokenizer.json").is_file() and not (folder / other).is_file():
        raise ModelError(f"{folder} has neither tokenizer.json nor {other}: words would fall into letters")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises a dozen kinds for one meaning
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} cannot be loaded as a {kind}: {first}") from error


def _weights(folder: Path) -> tuple[Path, str | None]:
    """The first file of the component's weights, and its variant ("fp16") if there is no plain one."""
    for variant in (None, "fp16", "bf16", "non_ema"):
        for stem in STEMS:
            tail = f".{variant}" if variant else ""
            single = folder / f"{stem}{tail}.safetensors"
            shards = sorted(folder.glob(f"{stem}-*-of-*{tail}.safetensors")) + sorted(
                folder.glob(f"{stem}{tail}-*-of-*.safetensors")
            )
            if single.is_file() or shards:
                return (single if single.is_file() else shards[0]), variant
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.ckpt")])
    hint = f"{pickled[0].name} is a pickle, which can run code: convert it first" if pickled else "they are missing"
    raise ModelError(f"{folder} has no weights in safetensors: {hint}")


def _class_of(index: dict[str, Any], name: str) -> Any:
    """The class that model_index.json names for a component; only those of the two libraries are known."""
    import diffusers
    import transformers

    library, kind = (index.get(name) or [None, None])[:2]
    known = {"diffusers": diffusers, "transformers": transformers}.get(str(library))
    if known is None or not hasattr(known, str(kind)):
        raise ModelError(
            f"model_index.json names {library}.{kind} for {name}: expected a class of diffusers or transformers"
        )
    return getattr(known, kind)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' tables of missing keys are ours to tell, in one line."""
    import diffusers.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `module` in another floating type, or itself."""
    return module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)
