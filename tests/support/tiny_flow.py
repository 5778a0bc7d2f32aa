"""SD3 and FLUX in miniature: stock pipelines from the real classes, seeded, with every structure of the real ones.

Latents are (4, 8, 8) and images (3, 32, 32), shifted as well as scaled; widths differ wherever the real ones differ.
"""

from __future__ import annotations

import functools
import json
import string
import tempfile
from pathlib import Path
from typing import Any

from tests.support.tiny_pipelines import _seeded, text_config, tokenizer, vae

WINDOW = 12  # tokens of T5
T5_WIDTH = 32


def t5_tokenizer() -> Any:
    """A T5TokenizerFast that spells words out."""
    from transformers import T5TokenizerFast

    symbols = ["▁", *string.ascii_lowercase, *string.digits, *string.punctuation]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast(vocab=[*special, *((symbol, -2.0) for symbol in symbols)], extra_ids=0, model_max_length=512)


def t5_encoder() -> Any:
    """Two layers of T5 1.1."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def sd3(seed: int = 0, t5: bool = True) -> Any:
    """The shape of SD3.5 medium: a fixed shift, norms of queries and keys, one layer with a second self-attention."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    return _seeded(
        lambda: StableDiffusion3Pipeline(
            vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=CLIPTextModelWithProjection(text_config(8, "quick_gelu", 8)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(16, "gelu", 24)),
            text_encoder_3=t5_encoder() if t5 else None,
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer("!"),
            tokenizer_3=t5_tokenizer() if t5 else None,
            transformer=SD3Transformer2DModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=32,
                pos_embed_max_size=8,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
        seed,
    )


def flux(seed: int = 0, guidance_embeds: bool = True) -> Any:
    """The shape of FLUX.1: double and single blocks; dev is told the guidance and shifts by the number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    dynamic = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {"shift": 1.0}
    return _seeded(
        lambda: FluxPipeline(
            vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=CLIPTextModel(text_config(16, "quick_gelu", 16)),
            text_encoder_2=t5_encoder(),
            tokenizer=tokenizer(),
            tokenizer_2=t5_tokenizer(),
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=16,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(**dynamic),
        ),
        seed,
    )


BY_KIND = {
    "sd3": sd3,
    "sd3-without-t5": functools.partial(sd3, t5=False),
    "flux": flux,
    "flux-schnell": functools.partial(flux, guidance_embeds=False),
}


@functools.cache
def folder(kind: str) -> Path:
    """The tiny stock pipeline of a kind, saved once; beside it what no configuration says, its sizes."""
    root = Path(tempfile.mkdtemp(prefix="tiny-flow-")) / kind
    BY_KIND[kind]().save_pretrained(root)
    (root / "erasure.json").write_text(json.dumps({"image_size": 32, "max_sequence_length": WINDOW}))
    return root
