"""The tokenizer of every Stable Diffusion model: CLIP's byte-pair encoding (Radford et al., 2021), built offline.

Only the merges are kept (configs/clip-merges.txt.gz, MIT, OpenAI); the vocabulary follows from them: 256 byte symbols,
the same at the end of a word, one symbol a merge, and the two special tokens, 49,408 in all.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.core.errors import ModelError

MERGES = Path(__file__).parent / "configs" / "clip-merges.txt.gz"
MAX_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(pad_token: str = END) -> Any:
    """CLIP's CLIPTokenizer; SD 1 pads with `<|endoftext|>`, SD 2 and SDXL's second encoder with `!`."""
    vocabulary, merges = clip_vocabulary()
    return _built(vocabulary, merges, {"pad_token": pad_token})


def tokenizer_from(config: Mapping[str, Any]) -> Any:
    """The CLIPTokenizer a configuration describes: its own `vocab` and `merges` if it has them, CLIP's otherwise.

    Raises ModelError when the two do not make a tokenizer.
    """
    if "vocab" not in config:
        return clip_tokenizer(config.get("pad_token", END))
    try:
        return _built(dict(config["vocab"]), [tuple(pair) for pair in config["merges"]], config)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ModelError(f"the tokenizer inside the model file is damaged: {error}") from error


def config_of(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer_from needs to build the tokenizer again; CLIP's own vocabulary is left out."""
    config: dict[str, Any] = {"pad_token": str(tokenizer.pad_token), "model_max_length": tokenizer.model_max_length}
    vocabulary, merges = content_of(tokenizer)
    if (vocabulary, merges) != clip_vocabulary():
        config |= {"vocab": vocabulary, "merges": [list(pair) for pair in merges]}
    return config


def content_of(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    return model["vocab"], [(first, second) for first, second in pairs]


@functools.cache
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's 49,408 symbols by name, and its 48,894 merges in order of precedence."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    symbols = _byte_symbols()
    symbols += [f"{symbol}</w>" for symbol in symbols]
    symbols += [first + second for first, second in merges]
    return {symbol: index for index, symbol in enumerate([*symbols, START, END])}, merges


def _byte_symbols() -> list[str]:
    """One visible character a byte: itself if it prints in Latin-1, else the next one from U+0100 on."""
    printing = [chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    return printing + [chr(0x100 + number) for number in range(256 - len(printing))]


def _built(vocabulary: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    pairs: Any = merges  # its signature says text, its backend takes pairs
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,
        pad_token=config.get("pad_token", END),
        model_max_length=config.get("model_max_length", MAX_LENGTH),
    )
