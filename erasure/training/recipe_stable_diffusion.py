"""Recipe of a small Stable Diffusion: autoencoder first, then text encoder and UNet together (Rombach et al., 2022).

Every part is the stock class at a small size, so that what holds for it holds for the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from erasure.core.errors import OptionError
from erasure.core.rng import derive_seed
from erasure.data import Batch, Batches, Dataset
from erasure.models.info import ModelInfo
from erasure.models.prompt_encoding import token_ids
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.latent_cache import Latents
from erasure.training.loop import Step, TrainingConfig, TrainingResult, minimize
from erasure.training.recipes import Recipe

WINDOW = 16  # tokens; the longest caption of the data has thirteen
KL_WEIGHT = 1e-6


@dataclass(frozen=True)
class SDRecipe(Recipe):
    """A latent diffusion model with its own autoencoder, text encoder and tokenizer."""

    kind = "sd"

    steps: Annotated[int, "optimiser steps of text encoder and UNet"] = 4000
    batch_size: Annotated[int, "images a step"] = 64
    learning_rate: Annotated[float, "peak step size"] = 1.5e-3
    ema_decay: Annotated[float, "decay of the averaged weights that are kept, 0 for none"] = 0.997
    vae_steps: Annotated[int, "optimiser steps of the autoencoder"] = 1200
    vae_batch_size: Annotated[int, "images a step of the autoencoder"] = 32
    vae_learning_rate: Annotated[float, "peak step size of the autoencoder"] = 2e-3
    channels: Annotated[str, "channels of each level of the UNet, joined by commas"] = "64,128"
    vae_channels: Annotated[str, "channels of each level of the autoencoder"] = "16,32,32"
    text_width: Annotated[int, "width of the text encoder"] = 64
    text_layers: Annotated[int, "layers of the text encoder"] = 2
    condition_drop: Annotated[float, "share of captions replaced by nothing, for guidance"] = 0.1

    def check(self, dataset: Dataset) -> None:
        """Also: captions, colour, and sizes that the levels can halve."""
        super().check(dataset)
        if not dataset.captions:
            raise OptionError(f"--data {dataset.name} has no captions: expected digits_styles")
        unet, vae = widths(self.channels), widths(self.vae_channels)
        halvings = len(unet) + len(vae) - 2
        if dataset.images.shape[1] % (1 << halvings):
            raise OptionError(f"images of {dataset.images.shape[1]} pixels cannot be halved {halvings} times")
        if not 0 <= self.condition_drop < 1 or self.vae_steps < 1 or self.text_width % 16:
            raise OptionError(
                "--condition-drop must lie in [0, 1), --vae-steps be at least 1, --text-width divide by 16"
            )

    def new(self, dataset: Dataset, seed: int) -> StableDiffusion:
        """An untrained model for `dataset` with random weights."""
        return new_sd(self, dataset, seed)

    def fit(self, model: Any, dataset: Dataset, seed: int, *, folder: Path, fingerprint: str) -> TrainingResult:
        """Train autoencoder, text encoder and UNet in place."""
        return fit_sd(model, self, dataset, seed, folder=folder, fingerprint=fingerprint)

    def vae_loop(self) -> TrainingConfig:
        """How the autoencoder is trained."""
        return replace(
            self.loop(), steps=self.vae_steps, learning_rate=self.vae_learning_rate, ema_decay=0.0, weight_decay=0.0
        )


def widths(given: str) -> tuple[int, ...]:
    """Channels of each level; raises OptionError for anything but multiples of 8 joined by commas."""
    found = tuple(int(part) if part.strip().isdigit() else 0 for part in given.split(","))
    if any(width < 8 or width % 8 for width in found):
        raise OptionError(f"channels {given!r}: expected multiples of 8 joined by commas, such as 64,128")
    return found


def new_sd(recipe: SDRecipe, dataset: Dataset, seed: int) -> StableDiffusion:
    """An untrained model for `dataset`, random weights, a tokenizer of its captions' words."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    size, levels = dataset.images.shape[1], widths(recipe.channels)
    vae_levels = widths(recipe.vae_channels)
    tokenizer = word_tokenizer([caption for group in dataset.captions for caption in group])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        vae: Any = AutoencoderKL(
            block_out_channels=vae_levels,
            down_block_types=("DownEncoderBlock2D",) * len(vae_levels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_levels),
            latent_channels=4,
            norm_num_groups=8,
            sample_size=size,
        )
        text: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.text_width,
                intermediate_size=2 * recipe.text_width,
                num_hidden_layers=recipe.text_layers,
                num_attention_heads=4,
                max_position_embeddings=WINDOW,
                projection_dim=recipe.text_width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet: Any = UNet2DConditionModel(
            sample_size=size >> (len(vae_levels) - 1),
            block_out_channels=levels,
            down_block_types=("CrossAttnDownBlock2D",) * len(levels),
            up_block_types=("CrossAttnUpBlock2D",) * len(levels),
            layers_per_block=1,
            cross_attention_dim=recipe.text_width,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {"vae": vae.eval(), "text_encoder": text.eval(), "tokenizer": tokenizer}
    info: ModelInfo = {
        "data": dataset.name,
        "image_size": size,
        "channels": 3,
        "condition_drop": recipe.condition_drop,
        "sampling": {"num_inference_steps": 30, "eta": 0.0, "guidance_scale": 4.0},
        "dtypes": dict.fromkeys(("unet", "vae", "text_encoder"), recipe.weights_dtype),
    }
    return StableDiffusion(unet.eval(), scheduler, parts, info)


def word_tokenizer(texts: Sequence[str]) -> Any:
    """A CLIPTokenizer whose merges make one token of every word of `texts`; other words fall into letters."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    for word in sorted({word for text in texts for word in text.replace(",", " ").split()}):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge, joined = " ".join(parts[:2]), "".join(parts[:2])
            if merge not in merges:
                merges.append(merge)
            if joined not in vocab:
                vocab.append(joined)
            parts = [joined, *parts[2:]]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: i for i, token in enumerate(vocab)}
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=numbered, merges=pairs, model_max_length=WINDOW)


def fit_sd(
    model: StableDiffusion,
    recipe: SDRecipe,
    dataset: Dataset,
    seed: int,
    *,
    folder: Path | None = None,
    fingerprint: str = "",
) -> TrainingResult:
    """Train `model` in place; the autoencoder in `folder`/vae, then the rest in `folder`, with the averaged weights."""
    first = _fit_vae(model, recipe, dataset, seed, folder / "vae" if folder else None, fingerprint)
    latents = Latents.of(model, dataset)
    vae = model.parts["vae"]
    vae.register_to_config(scaling_factor=float(1 / latents.moments[:, : vae.config.latent_channels].std()))
    batches = Batches(latents, recipe.batch_size, derive_seed(seed, "batches"))
    captions = [token_ids(model.parts["tokenizer"], group) for group in (*dataset.captions, ("",))]
    joint = nn.ModuleDict({"unet": model.network, "text_encoder": model.parts["text_encoder"]})
    joint.requires_grad_(True).train()

    def loss(step: Step) -> dict[str, Tensor]:
        batch = batches.at(step.index)
        model.prompt_embeddings = _drawn_captions(model, captions, batch.labels, step.generator)
        numbered = Batch(batch.images, torch.arange(len(batch.labels)))
        examples = model.examples(numbered, step.generator, condition_drop=True)
        return {"loss": model.per_sample_loss(step.own(examples)).mean()}

    second = minimize(joint, loss, recipe.loop(), seed=seed, folder=folder, fingerprint=fingerprint)
    if second.ema is not None:
        joint.load_state_dict(second.ema, strict=False)
    joint.eval()
    model.prompt_embeddings = None
    return TrainingResult(second.records, first.seconds + second.seconds)


def _drawn_captions(
    model: StableDiffusion, captions: Sequence[Tensor], labels: Tensor, generator: torch.Generator
) -> Any:
    """For each label one of its captions, and the empty one last, encoded with the graph of the text encoder."""
    from erasure.models.prompt_encoding import PromptEmbeddings

    chosen = [captions[label][torch.randint(len(captions[label]), (), generator=generator)] for label in labels]
    ids = torch.stack([*chosen, captions[-1][0]]).to(model.device)
    embeddings = model.parts["text_encoder"](ids).last_hidden_state
    return PromptEmbeddings(("",) * len(ids), embeddings)


def _fit_vae(
    model: StableDiffusion, recipe: SDRecipe, dataset: Dataset, seed: int, folder: Path | None, fingerprint: str
) -> TrainingResult:
    """Squared and absolute error of the reconstruction, and a slight pull to the unit normal distribution."""
    vae = model.parts["vae"]
    batches = Batches(dataset, recipe.vae_batch_size, derive_seed(seed, "vae"))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    def loss(step: Step) -> dict[str, Tensor]:
        images = step.own(batches.at(step.index).images).to(model.device)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=step.generator).to(model.device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - images
        squared, pull = error.square().mean(), posterior.kl().mean()
        return {"loss": squared + 0.5 * error.abs().mean() + KL_WEIGHT * pull, "squared_error": squared}

    vae.requires_grad_(True).train()
    outcome = minimize(
        vae, loss, recipe.vae_loop(), seed=seed, folder=folder, fingerprint=fingerprint, description="autoencoder"
    )
    vae.eval().requires_grad_(False)
    return outcome


def reconstruction_error(model: StableDiffusion, images: np.ndarray) -> float:
    """Mean squared error, in [-1, 1] units, of `images` (n, h, w, 3) after encoding and decoding."""
    from erasure.data.images import to_float

    pictures = to_float(images)
    mean = model.moments(pictures).chunk(2, dim=1)[0].to(model.device)
    return float((model.parts["vae"].decode(mean).sample.cpu() - pictures).square().mean())
