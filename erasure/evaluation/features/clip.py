"""Networks of transformers that look at images: found, loaded from safetensors, and shown what they were trained on.

`Reading` does with torch alone what `preprocessor_config.json` records. The CLIP score is that of Hessel et al. (2021),
100 * max(cos, 0), without the factor 2.5 of their CLIPScore.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import DataError, ModelError
from erasure.core.files import read_json
from erasure.core.run_dir import fingerprint
from erasure.formats.safetensors_io import check_finite, hash_tensors
from erasure.models import resolve
from erasure.models.prompt_encoding import token_ids

BATCH_SIZE = 32
LOCAL: dict[str, Any] = {"local_files_only": True}  # fetching is done before, once
TOKENIZERS = ("tokenizer.json", "vocab.json")  # either is a whole vocabulary
MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers for its filters
# Processors whose steps are resize, crop, rescale and normalise; those that interpolate linearly where nothing is
# recorded, as the others do by cubes; and those to which a bare number is the shorter side, not a square.
PROCESSORS = ("Beit", "Bit", "CLIP", "ConvNext", "DeiT", "MobileNetV1", "MobileNetV2", "Siglip", "ViT")
LINEAR = ("MobileNetV1", "MobileNetV2", "ViT")
SHORTEST = ("Bit", "CLIP", "ConvNext", "MobileNetV1", "MobileNetV2")
WARPED = 384  # ConvNext crops nothing from this size on


@dataclass(frozen=True)
class ImagePreprocessor:
    """How a network wants its images: in order resize, crop the centre, scale, normalise.

    `shortest` is the shorter side after resizing, or `size` is (height, width) outright; neither leaves the size alone.
    """

    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """What `preprocessor_config.json` records, or the `image_processor` of `processor_config.json`.

        Raises ModelError when neither is there, or when it describes steps that are not done here.
        """
        path, config = folder / "preprocessor_config.json", None
        if not path.is_file() and (folder / "processor_config.json").is_file():
            path = folder / "processor_config.json"
            config = read_json(path, ModelError).get("image_processor")
        config = read_json(path, ModelError) if config is None else config
        try:
            return cls._from(config)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{path} does not say how the network reads an image: {_said(error)}") from error

    @classmethod
    def _from(cls, config: dict[str, Any]) -> Self:
        kind = _kind(config)
        mode = MODES.get(config.get("resample", 2 if kind in LINEAR else 3))
        if mode is None:
            raise ValueError(f"resample {config['resample']} is none of {', '.join(map(str, MODES))}")
        resized = config.get("do_resize", True)
        shortest, size = _resize(kind, config) if resized else (None, None)
        cropped = config.get("do_center_crop", config.get("crop_size") is not None)
        crop = _pair(config["crop_size"]) if cropped else None
        if kind == "ConvNext" and shortest is not None:
            shortest, size, crop = _convnext(shortest, config.get("crop_pct"))
        scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
        normal = config if config.get("do_normalize", True) else {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
        mean, std = (tuple(map(float, normal[key])) for key in ("image_mean", "image_std"))
        return cls(shortest, size, crop, mode, scale, mean, std)

    def __call__(self, images: np.ndarray, device: torch.device | None = None) -> Tensor:
        """uint8 images (n, h, w, 3), or grey (n, h, w, 1), as the network takes them, float32 (n, 3, height, width).

        Raises DataError for anything else, and for images that are smaller than the crop.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
            raise DataError(f"expected uint8 images (n, h, w, 3), got {images.dtype} of shape {images.shape}")
        pixels = torch.from_numpy(images).to(device or "cpu").permute(0, 3, 1, 2).float()
        pixels = self._cropped(self._resized(pixels.expand(-1, 3, -1, -1)))
        mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (self.mean, self.std))
        return (pixels * self.scale - mean) / std

    def _resized(self, pixels: Tensor) -> Tensor:
        """Across, then down, rounded to whole values after each, as Pillow does it: in one go, bicubic overshoots."""
        height, width = pixels.shape[-2:]
        target = self.size or (height, width)
        if self.shortest is not None:
            short = min(height, width)
            target = (self.shortest * height // short, self.shortest * width // short)
        smooth = self.mode != "nearest-exact"
        for size in ((height, target[1]), target):
            if tuple(pixels.shape[-2:]) != size:
                pixels = nn.functional.interpolate(pixels, size=size, mode=self.mode, antialias=smooth)
                pixels = (pixels + 0.5).floor().clamp(0, 255)
        return pixels

    def _cropped(self, pixels: Tensor) -> Tensor:
        if self.crop is None:
            return pixels
        (height, width), (tall, wide) = self.crop, pixels.shape[-2:]
        if tall < height or wide < width:
            raise DataError(f"the network reads {width} x {height} pixels, these images have {wide} x {tall}")
        top, left = (tall - height) // 2, (wide - width) // 2
        return pixels[..., top : top + height, left : left + width]


def _kind(config: dict[str, Any]) -> str:
    """The processor's name without its ending; empty where the file names none."""
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
    if kind and kind not in PROCESSORS:
        raise ValueError(f"{named} is none of the known processors ({', '.join(PROCESSORS)})")
    return kind


def _resize(kind: str, config: dict[str, Any]) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side or the (height, width) that images are brought to."""
    size = config["size"]
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), None
    if isinstance(size, int) and kind in SHORTEST:
        return size, None
    return None, _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)


def _convnext(side: int, crop_pct: float | None) -> tuple[int | None, tuple[int, int] | None, tuple[int, int] | None]:
    """Small ones see the share `crop_pct` of the image, large ones all of it, squeezed to a square."""
    square = (side, side)
    return (None, square, None) if side >= WARPED else (int(side / (crop_pct or 224 / 256)), None, square)


def local_folder(given: str) -> Path:
    """Where the model `given` lies: a folder, a run, a shipped name, or a hub id, which is fetched if it is not here.

    Raises ModelError when it is none of them or cannot be fetched.
    """
    try:
        source = resolve(given)
    except ModelError as error:  # it speaks of --model, which is another flag
        raise ModelError(error.message.removeprefix("--model ")) from error
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "merges.txt"]))
    except Exception as error:  # the hub's client raises a dozen kinds for one meaning
        raise ModelError(
            f"{given} is no folder here and cannot be read from the hub ({type(error).__name__}): "
            "check the spelling, or the network, or download it first"
        ) from error


def load_network(kind: Any, folder: Path) -> Any:
    """A network of the transformers class `kind`, float32, in evaluation mode; no code of the folder runs.

    Raises ModelError when its weights are missing, a pickle, incomplete, damaged or not finite.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: expected a model folder of transformers")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(folder.glob("*.bin"))
        hint = f"{pickled[0].name} is a pickle, which can run code: convert it first" if pickled else "they are missing"
        raise ModelError(f"{folder} has no weights in safetensors: {hint}")
    with _silent():
        try:
            network, found = kind.from_pretrained(
                str(folder), use_safetensors=True, trust_remote_code=False, output_loading_info=True, **LOCAL
            )
        except Exception as error:  # transformers raises a dozen kinds for one meaning
            raise ModelError(f"{folder} cannot be loaded as {kind.__name__}: {_said(error)}") from error
    missing = sorted({*map(str, found["missing_keys"]), *map(str, found["mismatched_keys"])})
    if missing:
        raise ModelError(f"{folder} does not fit its config.json: {len(missing)} tensors differ, first {missing[0]!r}")
    check_finite(network, folder)
    return network.float().eval().requires_grad_(False)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What is missing from a file is ours to tell, in one line."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _said(error: Exception) -> str:
    """The first line of an error; a key that is not there is named as such."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class ClipModel:
    """A CLIPModel with its tokenizer and the way it reads images."""

    network: Any
    tokenizer: Any
    reading: ImagePreprocessor
    source: str

    @property
    def hash(self) -> str:
        """SHA-256 of the weights and of how images are read."""
        return hash_of(self.network, self.reading)


def hash_of(network: nn.Module, reading: ImagePreprocessor) -> str:
    """SHA-256 of a network's tensors and of how it reads images."""
    return fingerprint({"weights": hash_tensors(network.state_dict()), "reading": asdict(reading)})


def load_clip(given: str, device: torch.device | str = "cpu") -> ClipModel:
    """The CLIP model in a folder or under a hub id; raises ModelError when it is missing, damaged or another model."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = local_folder(given)
    config = read_json(folder / "config.json", ModelError) if (folder / "config.json").is_file() else {}
    if config.get("model_type", "clip") != "clip":
        raise ModelError(f"{given} is not a CLIP model: its config.json says {config['model_type']!r}")
    network = load_network(CLIPModel, folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{folder} has no tokenizer: expected {' or '.join(TOKENIZERS)}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), **LOCAL)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ModelError(f"the tokenizer in {folder} is damaged: {_said(error)}") from error
    # Folders without tokenizer_config.json leave the window open.
    tokenizer.model_max_length = network.config.text_config.max_position_embeddings
    return ClipModel(network.to(torch.device(device)), tokenizer, ImagePreprocessor.of(folder), given)


@torch.no_grad()
def clip_image_features(model: ClipModel, images: np.ndarray) -> Tensor:
    """Projected embeddings (n, d) of uint8 images (n, h, w, 3), not normalised, on the CPU."""
    parts = []
    for i in range(0, max(len(images), 1), BATCH_SIZE):
        pixels = model.reading(images[i : i + BATCH_SIZE], model.network.device)
        pooled = model.network.vision_model(pixel_values=pixels).pooler_output
        parts.append(model.network.visual_projection(pooled).cpu())
    return torch.cat(parts)


@torch.no_grad()
def clip_text_features(model: ClipModel, prompts: Sequence[str]) -> Tensor:
    """Projected embeddings (n, d) of texts, not normalised, on the CPU; a text beyond the window is cut and told."""
    parts = []
    for i in range(0, len(prompts), BATCH_SIZE):
        ids = token_ids(model.tokenizer, prompts[i : i + BATCH_SIZE]).to(model.network.device)
        pooled = model.network.text_model(input_ids=ids).pooler_output
        parts.append(model.network.text_projection(pooled).cpu())
    return torch.cat(parts)


def clip_scores(model: ClipModel, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """CLIP score (n,) of each image with its own prompt: 100 * max(cos, 0) of their projected embeddings.

    Raises DataError unless each image has a prompt. Hessel et al., 2021, whose CLIPScore is 2.5 * max(cos, 0).
    """
    if len(images) != len(prompts):
        raise DataError(f"{len(images)} images and {len(prompts)} prompts: expected one prompt for each image")
    return clip_text_scores(model, clip_image_features(model, images), prompts)


def clip_text_scores(model: ClipModel, embedded: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """CLIP score (n,) of each embedded image (n, d) with its own prompt."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    text = clip_text_features(model, list(place))[[place[prompt] for prompt in prompts]]
    return 100 * nn.functional.cosine_similarity(embedded.double(), text.double()).clamp(min=0).numpy()
