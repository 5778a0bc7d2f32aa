"""LoRA: the nearest low-rank difference, under names that the stock loader takes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from erasure.core.errors import NotApplicableError, OptionError
from erasure.formats import single_file
from erasure.formats.lora import Layer, decomposed, factors, named, product
from erasure.formats.safetensors_io import read_tensors
from erasure.models import load_model
from tests.support.exported import runs
from tests.support.tiny_pipelines import BY_KIND

CPU = torch.device("cpu")
FULL = 128  # the most directions a layer of the tiny UNets has


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 3, 3, 3), (40, 2, 3, 3), (7, 5, 1, 1)])
def test_factors_are_the_best_of_their_rank_and_exact_at_full_rank(shape):
    difference = random(*shape)
    matrix = difference.double().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    for rank in range(1, len(s) + 1):
        down, up = factors(difference, rank)
        assert down.shape == (rank, *shape[1:]) and up.shape == (shape[0], rank, *([1] * (len(shape) - 2)))
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert product(down, up).flatten(1).allclose(best, atol=1e-9)
        assert down.flatten(1).norm(dim=1).allclose(up.flatten(1).norm(dim=0))
    assert product(down, up).allclose(difference.double(), atol=1e-12)


def test_a_rank_beyond_the_layer_is_filled_with_zeros():
    difference = random(3, 5)
    down, up = factors(difference, 8)
    assert down.shape == (8, 5) and up.shape == (3, 8)
    assert not down[3:].any() and not up[:, 3:].any()
    assert product(down, up).allclose(difference.double(), atol=1e-12)
    for part in factors(torch.zeros(3, 5), 2):
        assert part.isfinite().all()


def test_the_report_says_what_is_missing_and_what_was_left_out():
    before = {"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros(4, 4), "a.bias": torch.zeros(4)}
    before |= {"n.weight": torch.ones(4), "same.weight": torch.ones(2, 2)}
    after = {**before, "a.weight": torch.diag(torch.tensor([3.0, 4.0, 0, 0])), "b.weight": torch.ones(4, 4)}
    after |= {"a.bias": torch.tensor([2.0, 0, 0, 0]), "n.weight": torch.ones(4) * 2}
    layers, report = decomposed(before, after, 1, torch.float32, CPU)
    assert [layer.module for layer in layers] == ["a", "b"]
    assert report["worst"] == {"layer": "a", "relative_error": pytest.approx(3 / 5)}
    assert report["relative_error"] == pytest.approx((9 / 41) ** 0.5)
    assert report["left_out"] == {"tensors": 2, "weights": 5, "share_of_change": pytest.approx((8 / 49) ** 0.5)}
    for rank in (0, 5):
        with pytest.raises(OptionError, match=f"`rank` {rank} is outside 1 to 4"):
            decomposed(before, after, rank, torch.float32, CPU)
    with pytest.raises(NotApplicableError, match="nothing for a LoRA"):
        decomposed(before, {**before, "a.bias": torch.ones(4)}, 1, torch.float32, CPU)
    with pytest.raises(OptionError, match="did you mean 'kohya'"):
        named(layers, "khoya", "sd1", {})


@pytest.fixture(scope="module", params=BY_KIND)
def made(request):
    return runs(request.param)


@pytest.mark.parametrize("keys", ["kohya", "peft"])
def test_the_stock_pipeline_fuses_exactly_the_difference(made, cli, tmp_path, keys):
    pytest.importorskip("peft")
    out = tmp_path / "l.safetensors"
    flags = ("--format", "lora", "--rank", FULL, "--lora-keys", keys, "--out", out)
    lora = cli("export", made.from_folder, *flags, "--json").json["provenance"]["lora"]
    assert lora["relative_error"] < 1e-6 and lora["worst"]["relative_error"] < 1e-6
    base, cleaned = (load_model(path).network.state_dict() for path in (made.tiny.folder, made.from_folder))
    pipeline = type(made.tiny.pipeline).from_pretrained(made.tiny.folder, local_files_only=True)
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found = pipeline.unet.state_dict()
    assert set(found) == set(base)
    layers = 0
    for name, tensor in found.items():
        fits = name.endswith(".weight") and tensor.dim() in (2, 4) and not cleaned[name].equal(base[name])
        layers += fits
        wanted = cleaned[name] if fits else base[name]
        assert tensor.allclose(wanted, atol=3e-7 * float(wanted.abs().max())), name
        assert not fits or not tensor.allclose(base[name], atol=1e-5)
    assert layers == lora["layers"] > 40


def test_a_low_rank_says_what_it_misses(made, cli, tmp_path):
    out = tmp_path / "l.safetensors"
    outcome = cli("export", made.from_folder, "--format", "lora", "--rank", 2, "--dtype", "float16", "--out", out)
    assert outcome.code == 0 and "% of the change of" in outcome.out and "left out:" in outcome.out
    tensors, header = read_tensors(out)
    assert {tensor.dtype for name, tensor in tensors.items() if ".lora_" in name} == {torch.float16}
    lora = json.loads(header["erasure"])["lora"]
    base, cleaned = (load_model(path).network.state_dict() for path in (made.tiny.folder, made.from_folder))
    name = "conv_out.weight"
    start = "lora_unet_out_2" if made.tiny.kind == "sdxl" else "lora_unet_conv_out"
    moved = (cleaned[name] - base[name]).double()
    error = (moved - product(tensors[f"{start}.lora_down.weight"], tensors[f"{start}.lora_up.weight"])).norm()
    assert 0.3 < float(error / moved.norm()) <= lora["worst"]["relative_error"] < 1
    assert tensors[f"{start}.alpha"].item() == 2 and header["ss_network_dim"] == "2"
    assert "left out: " in (tmp_path / "l.safetensors.md").read_text()


def test_sdxl_has_the_names_of_the_original_and_the_others_those_of_diffusers(made, cli, tmp_path):
    out = tmp_path / "l.safetensors"
    assert cli("export", made.from_folder, "--format", "lora", "--rank", 1, "--out", out).code == 0
    modules = {name.split(".")[0].removeprefix("lora_unet_") for name in load_file(out)}
    if made.tiny.kind == "sdxl":
        assert {"input_blocks_0_0", "label_emb_0_0", "middle_block_1_transformer_blocks_0_attn2_to_k"} <= modules
    else:
        assert {"conv_in", "time_embedding_linear_1", "mid_block_attentions_0_proj_in"} <= modules


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_stock_loader_finds_every_layer_of_the_published_models(kind):
    """On the real configurations: kohya's names, through the stock converter, are the UNet's own modules."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft

    config = single_file.shipped_configs(kind)["unet"]
    unet = single_file.empty("unet", config)
    modules = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    layers = [Layer(name, torch.zeros(1, 1), torch.zeros(1, 1), 0.0, 1.0) for name in modules]
    pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    state, alphas = pipeline.lora_state_dict(named(layers, "kohya", kind, config), unet_config=unet.config)
    state = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
    found = convert_unet_state_dict_to_peft(state)
    assert {name.partition(".lora_")[0] for name in found} == set(modules)
    assert len(found) == 2 * len(modules) and len(alphas) == len(modules)
