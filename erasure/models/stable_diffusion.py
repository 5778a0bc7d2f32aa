"""stable_diffusion: latent diffusion from text, SD 1.x and 2.x (Rombach et al., 2022), on UNet2DConditionModel.

Labels are the numbers of prompts that were bound to it (`bind`), encoded once. Noise is added to latents: a batch holds
the mean and the deviation of each image's encoding, drawn anew each time it is used, so that no image is encoded twice.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from erasure.core.errors import ModelError, NotApplicableError, OptionError
from erasure.core.files import atomic_folder, read_json
from erasure.core.run_dir import fingerprint
from erasure.formats.safetensors_io import hash_tensors
from erasure.models.components import in_dtype, read_component, read_tokenizer
from erasure.models.diffusion import DiffusionModel
from erasure.models.guidance import KEY, Steering
from erasure.models.info import ModelInfo, read_info, write_info
from erasure.models.prompt_encoding import PromptEmbeddings, in_batches, token_ids
from erasure.prompts import safety_filter


class StableDiffusion(DiffusionModel):
    """A UNet that denoises latents under text; `parts` are the pipeline's other modules and tokenizers by name."""

    family = "stable_diffusion"
    sampling: ClassVar[dict[str, Any]] = {"num_inference_steps": 50, "eta": 0.0, "guidance_scale": 7.5}
    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    one_file: ClassVar[bool] = True  # whether its layout in one file is read and written
    encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)

    def __init__(
        self, network: Any, noise_scheduler: Any, parts: dict[str, Any], info: ModelInfo, source: str = ""
    ) -> None:
        super().__init__(network, noise_scheduler, info, source)
        self.parts = parts
        self.prompt_embeddings: PromptEmbeddings | None = None
        self.vae_scale = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
        info.setdefault("channels", 3)
        info.setdefault("image_size", self._latent_side * self.vae_scale)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """A pipeline folder whose model_index.json names this family's pipeline."""
        index = folder / "model_index.json"
        return index.is_file() and read_json(index, ModelError).get("_class_name") == cls.pipeline_class

    @classmethod
    def load(cls, folder: str) -> Self:
        """Load from a pipeline folder; weights must be safetensors, complete and finite."""
        root = Path(folder)
        encoders, tokenizers = cls._texts(root)
        names = (cls.network_part, "vae", *encoders)
        missing = [name for name in (*names, *tokenizers, "scheduler") if not (root / name).is_dir()]
        if missing:
            raise ModelError(f"{folder} lacks {missing[0]}/: expected a whole {cls.pipeline_class} folder")
        modules: dict[str, Any] = {}
        dtypes: dict[str, str] = {}
        for name in names:
            modules[name], dtype = read_component(root, name)
            dtypes[name] = str(dtype).removeprefix("torch.")
        network = modules.pop(cls.network_part).requires_grad_(True)
        _check_inputs(network, folder)
        cls._check_widths(network, modules, folder)
        for name in tokenizers:
            modules[name] = read_tokenizer(root / name, cls._tokenizer_kind(name))
        modules["scheduler_config"] = read_json(root / "scheduler" / "scheduler_config.json", ModelError)
        info = read_info(root)
        info.setdefault("dtypes", dtypes)
        index = read_json(root / "model_index.json", ModelError)
        info.setdefault("pipeline", {k: v for k, v in index.items() if isinstance(v, bool)})
        return cls(network, cls._noise_scheduler(modules["scheduler_config"], folder), modules, info, folder)

    @classmethod
    def _texts(cls, root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The text encoders of the folder, and their tokenizers."""
        return cls.encoders, cls.tokenizers

    @classmethod
    def _tokenizer_kind(cls, name: str) -> str:
        return "CLIPTokenizer"

    @classmethod
    def _noise_scheduler(cls, config: Mapping[str, Any], folder: str) -> Any:
        return noise_scheduler(config)

    @classmethod
    def _check_widths(cls, network: Any, modules: Mapping[str, Any], folder: str) -> None:
        """Raise ModelError when the UNet was made for other text encoders, as when SD and SDXL are mixed."""
        width = sum(modules[name].config.hidden_size for name in cls.encoders)
        if network.config.cross_attention_dim != width:
            raise ModelError(
                f"{folder}: the UNet reads text {network.config.cross_attention_dim} wide, the text encoders of this "
                f"{cls.pipeline_class} give {width}: parts of different models (SD 1, 2 and XL) are mixed"
            )

    def save(self, folder: Path) -> None:
        """Write a stock pipeline folder with our erasure.json beside it, atomically, each part in its own precision."""
        with atomic_folder(folder) as temporary:
            self.pipeline().save_pretrained(
                temporary, safe_serialization=True, max_shard_size=self.info.get("max_shard_size", "10GB")
            )
            write_info(temporary, self.info, self.family)

    def pipeline(self) -> Any:
        """The stock diffusers pipeline of this model, each part in the precision that `info` records.

        Parts whose precision is float32 are shared with the model, the others are copies.
        """
        import diffusers

        dtypes = self.info.get("dtypes", {})
        modules = {self.network_part: self.network, **self.parts}
        config = modules.pop("scheduler_config", None) or dict(self.noise_scheduler.config)
        scheduler = getattr(diffusers, config.get("_class_name", "DDIMScheduler")).from_config(config)
        for name in (self.network_part, "vae", *self.encoders):
            modules[name] = in_dtype(modules[name], getattr(torch, dtypes.get(name, "float32")))
        kind: Any = getattr(diffusers, self.pipeline_class)
        return kind(**modules, scheduler=scheduler, **self._pipeline_options())

    def _pipeline_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def fresh(self, seed: int) -> Self:
        """The same with a UNet of new random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = type(self.network).from_config(self.network.config)
        twin = copy.copy(self)
        twin.network, twin.info = network.eval(), copy.deepcopy(self.info)
        twin._kept_hashes = None
        return twin

    def clone(self) -> Self:
        """A twin whose UNet and text encoders may move on their own."""
        twin = super().clone()
        twin.parts = {**self.parts, **{name: copy.deepcopy(self.parts[name]) for name in self.encoders}}
        return twin

    def to(self, device: torch.device) -> Self:
        """Move the network, the encoders and the bound prompts."""
        super().to(device)
        for name in ("vae", *self.encoders):
            self.parts[name].to(device)
        if self.prompt_embeddings is not None:
            self.prompt_embeddings = self.prompt_embeddings.to(device)
        return self

    def set_prompts(self, prompts: Sequence[str]) -> Self:
        """Encode `prompts` and the empty one; from now on labels are their numbers.

        A text to steer away from is encoded with them, and has the number after the empty prompt's.
        """
        steering = Steering.of(self.info)
        away = (steering.text,) if steering else ()
        safety_filter.check((*prompts, *away))
        everything = (*prompts, "")
        embeddings, pooled = in_batches(self.encode_prompts, (*everything, *away))
        assert embeddings is not None
        self.prompt_embeddings = PromptEmbeddings(everything, embeddings, pooled)
        return self

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings (n, tokens, d) of prompts, and pooled ones where the family has them."""
        ids = token_ids(self.parts["tokenizer"], prompts).to(self.device)
        return self.parts["text_encoder"](ids).last_hidden_state, None

    @property
    def steered_labels(self) -> tuple[int, ...]:
        """The number of the text to steer away from, none without."""
        return (self.bound.null + 1,) if KEY in self.info else ()

    @property
    def bound(self) -> PromptEmbeddings:
        """The bound prompts."""
        if self.prompt_embeddings is None:
            raise NotApplicableError(f"{self.source or 'this model'} was given no prompts: give --prompts or --forget")
        return self.prompt_embeddings

    @property
    def class_names(self) -> tuple[str, ...]:
        """The bound prompts, the empty one left out."""
        return self.prompt_embeddings.prompts[:-1] if self.prompt_embeddings is not None else ()

    def name_of(self, label: int) -> str:
        """Number and beginning of the prompt."""
        return f"{label:04d} {self.bound.prompts[label][:60]}".strip()

    @property
    def conditional(self) -> bool:
        """It always depends on a prompt."""
        return True

    @property
    def num_classes(self) -> int:
        """How many prompts are bound, the empty one left out."""
        return len(self.class_names)

    @property
    def null_label(self) -> int | None:
        """The number of the empty prompt."""
        return self.bound.null

    @property
    def _latent_side(self) -> int:
        """Height and width of the latents that the network was made for."""
        return self.network.config.sample_size

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents at the model's image size."""
        size = self.info["image_size"] // self.vae_scale
        return self.network.config.in_channels, size, size

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of images of `size` (height, width); None: the model's own."""
        if size is None:
            return self.sample_shape
        if min(size) < 1 or any(side % self.vae_scale for side in size):
            raise OptionError(f"images of {size[1]} x {size[0]}: sides must be multiples of {self.vae_scale}")
        return self.network.config.in_channels, size[0] // self.vae_scale, size[1] // self.vae_scale

    @property
    def parts_hash(self) -> str:
        """SHA-256 of all but the UNet that decides an image: autoencoder, text encoders, words, noise, steering."""
        return self._hashed("parts", self._parts_hash)

    def _parts_hash(self) -> str:
        states = {name: self.parts[name].state_dict() for name in ("vae", *self.encoders)}
        tensors = hash_tensors({f"{part}/{name}": t for part, state in states.items() for name, t in state.items()})
        words = [self.parts[name].get_vocab() for name in self.tokenizers]
        schedule = {key: value for key, value in self.noise_scheduler.config.items() if not key.startswith("_")}
        rest = {"affine": self._affine, "size": self.info["image_size"], "words": words, "schedule": schedule}
        rest |= {KEY: self.info[KEY]} if KEY in self.info else {}
        return fingerprint({"tensors": tensors, **json.loads(json.dumps(rest, default=str))})

    @property
    def _affine(self) -> tuple[float, float]:
        """Shift and scale between the encoder's output and latents of unit variance."""
        config = self.parts["vae"].config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The prediction for `noisy` latents (b, c, h, w) at `timesteps` (b,) under the prompts numbered `labels`."""
        embeddings = self.bound.embeddings[labels]
        return self.network(noisy, timesteps, encoder_hidden_states=embeddings).sample

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and deviation of the encodings of images (b, 3, h, w) in [-1, 1], stacked: (b, 2 c, h / 8, w / 8)."""
        posterior = self.parts["vae"].encode(images.to(self.device)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).cpu()

    def encoded(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (b, c, h, w) of unit variance, drawn from moments (b, 2 c, h, w)."""
        mean, deviation = inputs.chunk(2, dim=1)
        shift, scale = self._affine
        return (mean + deviation * torch.randn(mean.shape, generator=generator) - shift) * scale

    def decode(self, samples: Tensor) -> Tensor:
        """Images in [-1, 1] of latents (b, c, h, w)."""
        shift, scale = self._affine
        parts = [self.parts["vae"].decode(part / scale + shift).sample for part in samples.split(8)]
        return torch.cat(parts)


def noise_scheduler(config: Mapping[str, Any]) -> Any:
    """How latents are noised and sampled under a pipeline's scheduler_config.json, whatever sampler it names."""
    from diffusers import DDIMScheduler

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return DDIMScheduler.from_config(plain, clip_sample=False)  # latents have no bounds to clip at


def _check_inputs(network: Any, folder: str) -> None:
    channels = network.config.in_channels
    if channels != (network.config.out_channels or channels):  # FLUX leaves out what is the same
        raise ModelError(
            f"{folder} is an inpainting or editing model (its network reads {channels} channels): "
            "expected a text-to-image model"
        )
