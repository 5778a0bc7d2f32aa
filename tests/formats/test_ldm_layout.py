"""The two layouts of Stable Diffusion against diffusers' own converters, and what a file is told to be."""

import json

import pytest
import torch

from erasure.core.errors import ModelError
from erasure.formats.clip_tokenizer import clip_tokenizer, config_of, tokenizer_from
from erasure.formats.ldm_detect import UNET, VAE, kind_of, predicts_velocity, velocity_hint
from erasure.formats.ldm_layout import COMPONENTS, diffusers_tensors, original_names, original_tensors, prefix_of
from erasure.formats.single_file import empty, shipped_configs
from tests.support import tiny_pipelines

TINY = tiny_pipelines.BY_KIND
EVERY = [(kind, component) for kind in TINY for component in COMPONENTS[kind]]
PARAMETERS = {
    ("sd1", "unet"): (686, 859_520_964),
    ("sd2", "unet"): (686, 865_910_724),
    ("sdxl", "unet"): (1680, 2_567_463_684),
    ("sd1", "vae"): (248, 83_653_863),
    ("sd2", "vae"): (248, 83_653_863),
    ("sdxl", "vae"): (248, 83_653_863),
    ("sd1", "text_encoder"): (196, 123_060_480),
    ("sd2", "text_encoder"): (372, 340_387_840),
    ("sdxl", "text_encoder"): (196, 123_060_480),
    ("sdxl", "text_encoder_2"): (517, 694_659_840),
}


@pytest.fixture(scope="module")
def pipelines():
    return {kind: build() for kind, build in TINY.items()}


@pytest.fixture(scope="module")
def full():
    """Every published network in full size on the meta device: its state and its configuration."""
    configs = {kind: shipped_configs(kind) for kind in TINY}
    return {pair: (empty(pair[1], configs[pair[0]][pair[1]]).state_dict(), configs[pair[0]][pair[1]]) for pair in EVERY}


def config_dict(network):
    return network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)


def stock(component, kind, original, network):
    """What diffusers' own converter makes of the original tensors, under the names the class loads."""
    from diffusers.loaders import single_file_utils as converters

    if component == "unet":
        return converters.convert_ldm_unet_checkpoint(dict(original), dict(network.config))
    if component == "vae":
        return converters.convert_ldm_vae_checkpoint(dict(original), dict(network.config))
    prefix = prefix_of(kind, component)
    if prefix.endswith(".model."):
        found = converters.convert_open_clip_checkpoint(network, dict(original), prefix=prefix)
    else:
        found = converters.convert_ldm_clip_checkpoint(dict(original))
    wrapped = all(name.startswith("text_model.") for name in network.state_dict() if name != "text_projection.weight")
    return found if wrapped else {name.removeprefix("text_model."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize(("kind", "component"), EVERY)
def test_the_converters_of_diffusers_agree_bit_for_bit(pipelines, kind, component):
    network = pipelines[kind].components[component]
    state, config = network.state_dict(), config_dict(network)
    original = original_tensors(kind, component, state, config)
    for found in (
        stock(component, kind, original, network),
        diffusers_tensors(kind, component, original, config),
    ):
        assert set(found) == set(state)
        for name, tensor in found.items():
            assert tensor.shape == state[name].shape and torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(("kind", "component"), EVERY)
def test_the_names_of_the_published_models_are_complete(full, kind, component):
    state, config = full[kind, component]
    names = original_names(kind, component, config)
    count, parameters = PARAMETERS[kind, component]
    assert set(names) == set(state)
    assert (len(names), sum(tensor.numel() for tensor in state.values())) == (count, parameters)
    originals = original_tensors(kind, component, state, config)
    assert set(originals) == set(names.values())
    assert all(name.startswith(prefix_of(kind, component)) for name in originals)


@pytest.mark.parametrize("kind", TINY)
def test_the_published_unet_and_vae_go_through_the_stock_converter_in_place(full, kind):
    """At full size, where block numbers have two digits, every tensor must come back as itself and not as its twin."""
    from types import SimpleNamespace

    for component in ("unet", "vae"):
        state, config = full[kind, component]
        original = original_tensors(kind, component, state, config)
        found = stock(component, kind, original, SimpleNamespace(config=config))
        assert set(found) == set(state)
        if component == "unet":
            assert all(found[name] is state[name] for name in state)


def test_the_original_names_are_those_of_the_published_files(full):
    def names(kind, component):
        return original_names(kind, component, full[kind, component][1])

    unet, vae = names("sd1", "unet"), names("sd1", "vae")
    up = "model.diffusion_model.output_blocks"
    assert unet["up_blocks.0.upsamplers.0.conv.weight"] == f"{up}.2.1.conv.weight"
    assert unet["up_blocks.1.upsamplers.0.conv.weight"] == f"{up}.5.2.conv.weight"
    assert unet["up_blocks.3.resnets.2.conv_shortcut.weight"] == f"{up}.11.0.skip_connection.weight"
    assert unet["down_blocks.0.downsamplers.0.conv.bias"] == "model.diffusion_model.input_blocks.3.0.op.bias"
    assert vae["decoder.up_blocks.0.resnets.2.norm1.bias"] == "first_stage_model.decoder.up.3.block.2.norm1.bias"
    assert (
        vae["encoder.mid_block.attentions.0.to_out.0.weight"] == "first_stage_model.encoder.mid.attn_1.proj_out.weight"
    )
    two = names("sdxl", "text_encoder_2")
    assert two["text_projection.weight"] == "conditioner.embedders.1.model.text_projection"
    assert two["text_model.encoder.layers.31.mlp.fc2.bias"].endswith("model.transformer.resblocks.31.mlp.c_proj.bias")
    assert names("sdxl", "unet")["add_embedding.linear_2.bias"] == "model.diffusion_model.label_emb.0.2.bias"
    first = names("sd1", "text_encoder")
    assert set(first.values()) >= {"cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"}
    assert "cond_stage_model.model.positional_embedding" in names("sd2", "text_encoder").values()


def test_a_part_of_a_network_can_be_turned_and_half_a_fused_tensor_cannot(pipelines):
    text = pipelines["sd2"].text_encoder
    state, config = text.state_dict(), config_dict(text)
    layer = {name: tensor for name, tensor in state.items() if "layers.1.self_attn" in name}
    found = original_tensors("sd2", "text_encoder", layer, config)
    assert len(layer) == 8 and set(found) == {
        f"cond_stage_model.model.transformer.resblocks.1.attn.{name}"
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }
    query = {name: tensor for name, tensor in layer.items() if "q_proj.weight" in name}
    with pytest.raises(ModelError, match="give all three"):
        original_tensors("sd2", "text_encoder", query, config)
    with pytest.raises(ModelError, match="has no tensor 'nothing'"):
        original_tensors("sd2", "text_encoder", {"nothing": torch.ones(1)}, config)
    with pytest.raises(ModelError, match=r"lacks 'cond_stage_model.model.token_embedding.weight'"):
        diffusers_tensors("sd2", "text_encoder", found, config)
    with pytest.raises(ModelError, match="sd2 models have no text_encoder_2"):
        original_names("sd2", "text_encoder_2", config)
    with pytest.raises(ModelError, match="unet configuration is incomplete"):
        original_names("sd1", "unet", {"block_out_channels": [8]})


def test_a_last_layer_that_only_the_file_has_is_ignored(pipelines):
    text = pipelines["sd2"].text_encoder
    state, config = text.state_dict(), config_dict(text)
    original = original_tensors("sd2", "text_encoder", state, config)
    original |= {name.replace("resblocks.1", "resblocks.2"): t for name, t in original.items() if "resblocks.1" in name}
    assert set(diffusers_tensors("sd2", "text_encoder", original, config)) == set(state)


@pytest.fixture(scope="module")
def shapes(pipelines):
    """Names and shapes of the tiny models in the original layout."""
    found = {}
    for kind, pipeline in pipelines.items():
        found[kind] = {}
        for name in COMPONENTS[kind]:
            network = pipeline.components[name]
            tensors = original_tensors(kind, name, network.state_dict(), config_dict(network))
            found[kind] |= {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return found


@pytest.mark.parametrize("kind", TINY)
def test_a_kind_is_told_by_its_tensors(shapes, full, kind):
    assert kind_of(shapes[kind], "x") == kind
    real = {}
    for component in COMPONENTS[kind]:
        state, config = full[kind, component]
        real |= {name: tuple(t.shape) for name, t in original_tensors(kind, component, state, config).items()}
    assert kind_of(real | {"model_ema.decay": ()}, "x") == kind


def only(shapes, *prefixes):
    return {name: shape for name, shape in shapes.items() if name.startswith(prefixes)}


FIRST = f"{UNET}input_blocks.0.0.weight"
NOT_A_MODEL = {
    "a LoRA": {"lora_unet_down_blocks_0.lora_up.weight": (4, 8)},
    "a LoRA, .* merge": {"unet.down_blocks.0.attn1.to_q.lora_A.weight": (4, 8)},
    "is a LoRA": {"unet.up_blocks.1.attentions.0.attn1.processor.to_q_lora.down.weight": (4, 8)},
    "a LoRA, not": {"down_blocks.0.attentions.0.attn2.processor.to_out_lora.up.weight": (8, 4)},
    "mine.safetensors is a LoRA": {"text_encoder.text_model.q_proj.lora_linear_layer.up.weight": (8, 4)},
    "a LoRA, not a model": {"unet.down_blocks.0.attn1.to_q.lora.down.weight": (4, 8)},
    r"a LoHa \(a LyCORIS": {"lora_unet_down_blocks_0_attn1_to_q.hada_w1_a": (4, 8)},
    "is a LoKr": {"lora_unet_down_blocks_0_attn1_to_q.lokr_w1": (4, 8)},
    "is an OFT": {"oft_unet_down_blocks_0.oft_blocks": (4, 8)},
    "a T2I-Adapter": {"body.0.block1.weight": (8, 8, 3, 3), "conv_in.weight": (8, 64, 3, 3)},
    "is a T2I-Adapter": {"adapter.body.0.resnets.0.block1.weight": (8, 8, 3, 3), "adapter.conv_in.bias": (8,)},
    "an upscaler of images": {"body.0.rdb1.conv1.weight": (8, 8, 3, 3), "conv_first.weight": (8, 3, 3, 3)},
    "a ControlNet": {"control_model.time_embed.0.weight": (8, 8)},
    "is a ControlNet": {"controlnet_cond_embedding.conv_in.weight": (8, 3, 3, 3)},
    "a textual-inversion": {"emb_params": (2, 768)},
    "textual-inversion embedding": {"clip_l": (2, 768), "clip_g": (2, 1280)},
    "a textual-inversion embedding": {"<cat-toy>": (768,)},
    "is a textual-inversion embedding": {"my style": (3, 1024)},
    "a VAE alone": {"decoder.conv_in.weight": (8, 4, 3, 3)},
    "is a VAE alone": {"first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3)},
    "a text encoder alone": {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)},
    "is a text encoder": {"cond_stage_model.transformer.text_model.final_layer_norm.bias": (8,)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (8, 8)},
    "FLUX": {"double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "SDXL refiner": {"conditioner.embedders.0.model.ln_final.bias": (8,), FIRST: (8, 4, 3, 3)},
    "diffusers' layout": {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
    "in one file": {"unet.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
    "missing text encoder": {"input_blocks.0.0.weight": (8, 4, 3, 3)},
    "averaged copy": {"model_ema.diffusion_modelinput_blocks00weight": (8, 4, 3, 3)},
    r"unknown layout \(a, b, c\)": {"a": (1,), "b": (1,), "c": (1,), "d": (1,)},
    r"unknown layout \(model.diffusion_model.layers": {"model.diffusion_model.layers.0.w": (1,), "vae.x": (1,)},
    r"unknown layout \(no tensors": {},
}


@pytest.mark.parametrize("message", NOT_A_MODEL)
def test_what_is_no_model_is_named(message):
    with pytest.raises(ModelError, match=message) as told:
        kind_of(NOT_A_MODEL[message], "mine.safetensors")
    assert str(told.value).startswith("mine.safetensors ") and "\n" not in str(told.value)


def test_an_incomplete_or_mixed_model_is_named(shapes):
    sd1, sdxl = shapes["sd1"], shapes["sdxl"]
    cases = [
        (only(sd1, UNET), r"bare UNet \(missing text encoder and VAE\)"),
        (only(sd1, UNET, VAE), r"missing text encoder\)"),
        (only(sd1, UNET, "cond_stage"), r"missing VAE\)"),
        (only(sdxl, UNET, VAE, "conditioner.embedders.1"), r"missing first text encoder\)"),
        (only(sdxl, UNET, VAE, "conditioner.embedders.0"), r"missing second text encoder\)"),
        (sd1 | {FIRST: (32, 9, 3, 3)}, "an inpainting model .*9 channels"),
        (sd1 | {FIRST: (32, 8, 3, 3)}, "an instruct-pix2pix model"),
        (shapes["sd2"] | {FIRST: (32, 7, 3, 3), "low_scale_model.sqrt_alphas_cumprod": (9,)}, "an upscaler .*7 chan"),
        (sd1 | {f"{UNET}input_blocks.1.1.x.attn2.to_k.weight": (8, 1024)}, "UNet of Stable Diffusion 2 with the text"),
    ]
    for given, message in cases:
        with pytest.raises(ModelError, match=message):
            kind_of(given, "x")


def test_what_a_file_says_of_its_prediction():
    assert velocity_hint({}, {}) is None
    assert velocity_hint({"v_pred": (0,)}, {}) is True
    for key, value, wanted in [
        ("modelspec.prediction_type", "v", True),
        ("modelspec.prediction_type", "epsilon", False),
        ("modelspec.predict_key", "v", True),
        ("ss_v_parameterization", "True", True),
        ("ss_v_parameterization", "False", False),
    ]:
        assert velocity_hint({}, {key: value}) is wanted


@pytest.mark.parametrize("velocity", [False, True])
def test_what_a_network_predicts_is_told_by_what_it_does(velocity):
    """A network of the real class, taught one picture at the last timestep."""
    from diffusers import DDPMScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, noise_scheduler = tiny_pipelines.unet(), DDPMScheduler(**tiny_pipelines.NOISE)
        picture = torch.randn(1, 4, 8, 8).expand(4, -1, -1, -1)
        optimizer = torch.optim.Adam(unet.parameters(), 2e-3)
        timesteps = torch.full((4,), 999)
        for _ in range(40):
            noise = torch.randn(4, 4, 8, 8)
            noisy = noise_scheduler.add_noise(picture, noise, timesteps)
            target = noise_scheduler.get_velocity(picture, noise, timesteps) if velocity else noise
            loss = (unet(noisy, timesteps, torch.zeros(4, 2, 32)).sample - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert predicts_velocity(unet) is velocity
    assert predicts_velocity(unet, torch.zeros(1, 3, 32), seed=1) is velocity


def test_the_tokenizer_is_clips():
    tokenizer = clip_tokenizer()
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizer) == 49_408 and tokenizer.model_max_length == 77
    padded = clip_tokenizer("!")("cat", padding="max_length").input_ids
    assert padded == [49406, 2368, 49407, *[0] * 74]
    assert tokenizer("cat", padding="max_length").input_ids == [49406, 2368, *[49407] * 75]


def test_a_tokenizer_comes_back_from_its_configuration():
    assert config_of(clip_tokenizer("!")) == {"pad_token": "!", "model_max_length": 77}
    tiny = tiny_pipelines.tokenizer("!")
    again = tokenizer_from(json.loads(json.dumps(config_of(tiny))))
    for text in ("a cat!", "", "two words, 3"):
        assert again(text, padding="max_length").input_ids == tiny(text, padding="max_length").input_ids
    with pytest.raises(ModelError, match="tokenizer inside the model file is damaged"):
        tokenizer_from({"vocab": {"a": 0}, "merges": [["b", "c"]]})
