"""Training the text encoder: a view of a text-to-image model whose `network` is the text encoder.

The loop, masks, checkpoints and the count of changed weights then work on the text encoder as they do on a UNet. Every
prediction encodes its prompts again, with gradient; the UNet's weights are frozen, so the gradient passes through it
and none of its weights gets one. The prompt embeddings of the whole model stay those of the original until
`set_prompts` is called again: with them the whole model is the frozen original, without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from erasure.core.errors import NotApplicableError
from erasure.models import Model
from erasure.models.prompt_encoding import WINDOW, token_ids
from erasure.models.stable_diffusion import StableDiffusion
from erasure.training.loop import OnStep


class TextEncoderView(StableDiffusion):
    """A view of `whole`, a Stable Diffusion with one text encoder, which the view shares and trains."""

    part: ClassVar[str] = "text_encoder"

    def __init__(self, whole: StableDiffusion) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole = whole
        self.network = whole.parts[self.part]
        self._kept_hashes = None  # those of the whole are another network's

    @classmethod
    def of(cls, model: Model) -> Self:
        """The view of `model`; raises NotApplicableError for a family that has none."""
        if isinstance(model, cls):
            return model
        if type(model) is not StableDiffusion:
            several = isinstance(model, StableDiffusion)
            why = "encodes a prompt with several text encoders, and the others keep what one forgets"
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
        """Token ids (n + 1, window) of the current prompts, the empty one last."""
        return token_ids(self.parts["tokenizer"], self.bound.prompts).to(self.device)

    @property
    def window(self) -> int:
        """How many tokens of a prompt the text encoder reads."""
        return min(self.parts["tokenizer"].model_max_length, WINDOW)

    @property
    def vocabulary(self) -> int:
        """How many tokens the text encoder knows."""
        return self.network.get_input_embeddings().num_embeddings

    def tokens(self, ids: Tensor) -> Tensor:
        """Return token embeddings (b, k, d) of `ids` (b, k), a copy without graph."""
        return self.network.get_input_embeddings().weight[ids].detach().clone()

    def with_current_prompts(self, on_step: OnStep | None) -> OnStep | None:
        """`on_step` of a training, called with the whole model's prompts encoded by the text encoder as it is then."""
        if on_step is None:
            return None

        def encoded(done: int) -> Mapping[str, Any]:
            original, was_training = self.whole.prompt_embeddings, self.network.training
            self.network.eval()
            try:
                self.whole.set_prompts(self.whole.class_names)
                return on_step(done)
            finally:
                self.whole.prompt_embeddings = original
                self.network.train(was_training)

        return encoded

    def read(self, ids: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Encode token ids (b, window) to embeddings (b, window, d), with gradient.

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
        """Predict under the prompts numbered `labels` (b,), each encoded once, with gradient."""
        assert labels is not None
        numbers, places = labels.unique(return_inverse=True)
        return self.predict_under(noisy, timesteps, self.read(self.ids[numbers])[places])

    def predict_under(self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict under `embeddings` (b, window, d), with a gradient for them and for no weight of the UNet."""
        with frozen_weights(self.whole.network):
            return self.whole.network(noisy, timesteps, encoder_hidden_states=embeddings).sample


@contextmanager
def frozen_weights(network: nn.Module) -> Iterator[None]:
    """Compute inside the block without gradients for the weights of `network`."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
