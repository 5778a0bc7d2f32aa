"""Training the text encoder: a text-to-image model seen as one whose `network` is what reads the prompts.

The loop, masks, checkpoints and the count of what changed then work on the text encoder as they do on a UNet. Every
prediction encodes its prompts anew, with gradient; the UNet answers with its weights held, so the gradient passes
through it and leaves nothing there. The bound embeddings of the whole model stay those of the original until its
prompts are bound again: with them the whole model is the frozen original, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from erasure.core.errors import NotApplicableError
from erasure.models import Model
from erasure.models.prompt_encoding import WINDOW, token_ids
from erasure.models.stable_diffusion import StableDiffusion


class TextEncoderView(StableDiffusion):
    """A view of `whole`, a Stable Diffusion whose one text encoder it shares and trains."""

    part: ClassVar[str] = "text_encoder"

    def __init__(self, whole: StableDiffusion) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole = whole
        self.network = whole.parts[self.part]

    @classmethod
    def of(cls, model: Model) -> Self:
        """The view of `model`; raises NotApplicableError for a family that has none."""
        if isinstance(model, cls):
            return model
        if type(model) is not StableDiffusion:
            several = isinstance(model, StableDiffusion)
            why = "reads a prompt with several text encoders, and what one forgets, the others still say"
            raise NotApplicableError(
                f"{model.source or 'this model'} is a {model.family} model: it "
                f"{why if several else 'has no text encoder'}; this method trains the one of Stable Diffusion 1 and 2"
            )
        return cls(model)

    def save(self, folder: Any) -> None:
        """Write the whole model."""
        self.whole.save(folder)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents at the model's image size."""
        return self.whole.sample_shape

    @cached_property
    def ids(self) -> Tensor:
        """Token ids (n + 1, window) of the bound prompts, the empty one last."""
        return token_ids(self.parts["tokenizer"], self.bound.prompts).to(self.device)

    @property
    def window(self) -> int:
        """How many tokens of a prompt are read."""
        return min(self.parts["tokenizer"].model_max_length, WINDOW)

    @property
    def vocabulary(self) -> int:
        """How many tokens the text encoder knows."""
        return self.network.get_input_embeddings().num_embeddings

    def tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings (b, k, d) of `ids` (b, k), a copy without graph."""
        return self.network.get_input_embeddings().weight[ids].detach().clone()

    def looking(self, on_step: Callable[[int], Mapping[str, Any]] | None) -> Callable[[int], Mapping[str, Any]] | None:
        """`on_step` for a training: while it looks at the whole model, the prompts are bound as they are read now."""
        if on_step is None:
            return None

        def look(done: int) -> Mapping[str, Any]:
            original, was_training = self.whole.prompt_embeddings, self.network.training
            self.network.eval()
            try:
                self.whole.set_prompts(self.whole.class_names)
                return on_step(done)
            finally:
                self.whole.prompt_embeddings = original
                self.network.train(was_training)

        return look

    def read(self, ids: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Embeddings (b, window, d) of token ids (b, window), with gradient.

        `prefix` (b, k, d) stands in the place of the k token embeddings after the start token.
        """
        if prefix is None:
            return self.network(ids).last_hidden_state

        def put(_: nn.Module, __: Any, tokens: Tensor) -> Tensor:
            return torch.cat([tokens[:, :1], prefix.to(tokens), tokens[:, 1 + prefix.shape[1] :]], dim=1)

        hook = self.network.get_input_embeddings().register_forward_hook(put)
        try:
            return self.network(ids).last_hidden_state
        finally:
            hook.remove()

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """The prediction under the prompts numbered `labels` (b,), each encoded once, with gradient."""
        assert labels is not None
        numbers, places = labels.unique(return_inverse=True)
        return self.predict_under(noisy, timesteps, self.read(self.ids[numbers])[places])

    def predict_under(self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """The prediction under `embeddings` (b, window, d), with gradient for these alone."""
        with weights_held(self.whole.network):
            return self.whole.network(noisy, timesteps, encoder_hidden_states=embeddings).sample


@contextmanager
def weights_held(network: nn.Module) -> Iterator[None]:
    """What is computed inside the block will have no gradient for the weights of `network`."""
    asking = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
