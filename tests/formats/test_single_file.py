"""Single files in the original layout: written, read, patched, refused; the stock library reads each one we write."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure.core.errors import ModelError
from erasure.formats import single_file
from erasure.formats.safetensors_stream import read_header, write_ordered
from tests.support.tiny_pipelines import BY_KIND, assert_equal, written


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {kind: written(kind, tmp_path_factory.mktemp(kind)) for kind in BY_KIND}


@pytest.fixture(params=BY_KIND)
def tiny(made, request):
    return made[request.param]


@pytest.fixture
def sd1(made):
    return made["sd1"]


def test_a_file_gives_its_components_back_bit_for_bit(tiny):
    file = single_file.read(tiny.file)
    assert (file.kind, file.dtype, file.averaged) == (tiny.kind, torch.float32, False)
    assert file.velocity is (tiny.kind == "sd2")
    assert file.metadata["note"] == "ours"
    for name, state in tiny.states.items():
        assert_equal(file.components[name], state)
        tiny.pipeline.components[name].load_state_dict(file.components[name])
    for name in [name for name in file.configs if name.startswith("tokenizer")]:
        again, own = file.tokenizer(name)("a cat!"), tiny.pipeline.components[name]("a cat!")
        assert again.input_ids == own.input_ids
    wanted = json.loads((tiny.folder / "scheduler" / "scheduler_config.json").read_text())
    assert file.configs["scheduler"] == wanted


def test_the_stock_pipeline_reads_the_file(tiny):
    pipeline = type(tiny.pipeline).from_single_file(str(tiny.file), config=str(tiny.folder), local_files_only=True)
    for name, state in tiny.states.items():
        assert_equal(pipeline.components[name].state_dict(), state)


def test_half_precision_out_and_in(tiny, tmp_path):
    single_file.write(tmp_path / "half.safetensors", tiny.states, tiny.configs, {}, torch.float16)
    file = single_file.read(tmp_path / "half.safetensors")
    assert file.dtype == torch.float16
    for name, state in tiny.states.items():
        assert_equal(file.components[name], state, torch.float16)
    pipeline = type(tiny.pipeline).from_single_file(
        str(file.path), config=str(tiny.folder), local_files_only=True, torch_dtype=torch.float16
    )
    assert_equal(pipeline.unet.state_dict(), tiny.states["unet"], torch.float16)


def test_another_size_than_the_published_one_is_refused_unless_the_file_says_so(sd1, tmp_path):
    tensors = load_file(sd1.file)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="not those of Stable Diffusion 1"):
        single_file.read(tmp_path / "x.safetensors")
    wider = {**tensors, "model.diffusion_model.out.2.bias": torch.ones(5)}
    save_file(wider, tmp_path / "x.safetensors", sd1.embedded)
    with pytest.raises(ModelError, match=r"not those of Stable Diffusion 1 \(the unet, first 'conv_out.bias'"):
        single_file.read(tmp_path / "x.safetensors")
    save_file({**tensors, "model.diffusion_model.more": torch.ones(5)}, tmp_path / "x.safetensors", sd1.embedded)
    with pytest.raises(ModelError, match=r"not those of Stable Diffusion 1 .*more"):
        single_file.read(tmp_path / "x.safetensors")
    for bad in ("[1]", "{", '{"unet": 3}', '{"unet": {"block_out_channels": 3}}'):
        save_file(tensors, tmp_path / "x.safetensors", {single_file.EMBEDDED: bad})
        with pytest.raises(ModelError):
            single_file.read(tmp_path / "x.safetensors")


def test_a_file_without_its_vae_or_that_does_not_exist_is_named(sd1, tmp_path):
    tensors = {name: t for name, t in load_file(sd1.file).items() if not name.startswith("first_stage")}
    save_file(tensors, tmp_path / "x.safetensors", sd1.embedded)
    with pytest.raises(ModelError, match=r"missing VAE\)"):
        single_file.read(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        single_file.read(tmp_path / "none.safetensors")


def test_incomplete_components_are_not_written(sd1, tmp_path):
    out = tmp_path / "x.safetensors"
    with pytest.raises(ModelError, match="needs its vae"):
        single_file.write(out, {"unet": sd1.states["unet"]}, sd1.configs, {})
    vae = {name: t for name, t in sd1.states["vae"].items() if name != "quant_conv.bias"}
    with pytest.raises(ModelError, match=r"no 'first_stage_model.quant_conv.bias'"):
        single_file.write(out, {**sd1.states, "vae": vae}, sd1.configs, {})
    assert not out.exists()


def test_a_text_encoder_without_its_usual_prefix_is_read_and_patched(sd1, tmp_path):
    short = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(sd1.file).items()}
    save_file(short, tmp_path / "short.safetensors", sd1.embedded)
    assert_equal(
        single_file.read(tmp_path / "short.safetensors").components["text_encoder"], sd1.states["text_encoder"]
    )
    changed = {"text_encoder": {name: t * 2 for name, t in sd1.states["text_encoder"].items()}}
    single_file.patch(tmp_path / "short.safetensors", tmp_path / "out.safetensors", changed, {})
    assert list(read_header(tmp_path / "out.safetensors")[0]) == list(read_header(tmp_path / "short.safetensors")[0])
    found = single_file.read(tmp_path / "out.safetensors").components["text_encoder"]
    assert_equal(found, changed["text_encoder"])


def test_a_number_too_large_for_half_precision_is_refused(sd1, tmp_path):
    unet = {**sd1.states["unet"]}
    unet["conv_in.bias"] = unet["conv_in.bias"] + 1e5
    with pytest.raises(ModelError, match="numbers too large for float16"):
        single_file.write(tmp_path / "x.safetensors", {**sd1.states, "unet": unet}, sd1.configs, {}, torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def theirs(sd1, tmp_path):
    """A user's file in half precision, with an averaged copy beside the UNet."""
    own = {name: tensor.half() for name, tensor in load_file(sd1.file).items()}
    own["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(3, dtype=torch.float16)
    write_ordered(tmp_path / "theirs.safetensors", own, sd1.embedded)
    return tmp_path / "theirs.safetensors"


def test_patching_by_component_drops_the_averaged_copy(theirs, sd1, tmp_path):
    assert single_file.read(theirs).averaged
    unet = {name: t + 1 for name, t in sd1.states["unet"].items() if "attn2" in name}
    vae = {"encoder.mid_block.attentions.0.to_q.weight": torch.ones(32, 32)}
    single_file.patch(theirs, tmp_path / "out.safetensors", {"unet": unet, "vae": vae}, {})
    file = single_file.read(tmp_path / "out.safetensors")
    assert not file.averaged
    assert_equal(file.components["unet"], {**sd1.states["unet"], **unet}, torch.float16)
    assert_equal(file.components["vae"], {**sd1.states["vae"], **vae}, torch.float16)
    assert list(read_header(file.path)[0]) == [
        name for name in read_header(theirs)[0] if not name.startswith("model_ema")
    ]
    single_file.patch(theirs, tmp_path / "text.safetensors", {"text_encoder": sd1.states["text_encoder"]}, {})
    assert single_file.read(tmp_path / "text.safetensors").averaged


def test_what_a_file_says_of_its_noise_schedule_is_followed(made, tmp_path):
    """The parts' sizes are the file's own here, its scheduler is the published one."""
    for kind, extra, metadata, wanted in [
        ("sd1", {}, {}, (False, "PNDMScheduler", "epsilon", None)),
        ("sd1", {}, {"modelspec.prediction_type": "v"}, (True, "PNDMScheduler", "v_prediction", None)),
        ("sd2", {}, {"ss_v_parameterization": "True"}, (True, "DDIMScheduler", "v_prediction", None)),
        ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, (False, "PNDMScheduler", "epsilon", None)),
        ("sd2", {}, {}, (None, "PNDMScheduler", "epsilon", None)),
        ("sdxl", {}, {}, (False, "EulerDiscreteScheduler", "epsilon", None)),
        ("sdxl", {"v_pred": torch.empty(0)}, {}, (True, "EulerDiscreteScheduler", "v_prediction", None)),
        (
            "sdxl",
            {name: torch.empty(0) for name in ("v_pred", "ztsnr")},
            {},
            (True, "EulerDiscreteScheduler", "v_prediction", True),
        ),
    ]:
        own = {name: config for name, config in made[kind].configs.items() if name != "scheduler"}
        metadata = {**metadata, single_file.EMBEDDED: json.dumps(own)}
        write_ordered(tmp_path / "x.safetensors", {**load_file(made[kind].file), **extra}, metadata)
        file = single_file.read(tmp_path / "x.safetensors")
        scheduler = file.configs["scheduler"]
        found = (scheduler["_class_name"], scheduler["prediction_type"], scheduler.get("rescale_betas_zero_snr"))
        assert (file.velocity, *found) == wanted, (kind, extra, metadata)


def test_a_silent_file_is_settled_by_its_network(made, tmp_path, monkeypatch):
    tiny = made["sd2"]
    own = {name: config for name, config in tiny.configs.items() if name != "scheduler"}
    save_file(load_file(tiny.file), tmp_path / "x.safetensors", {single_file.EMBEDDED: json.dumps(own)})
    silent = single_file.read(tmp_path / "x.safetensors")
    assert silent.velocity is None
    for velocity, kind in [(True, "DDIMScheduler"), (False, "PNDMScheduler")]:
        monkeypatch.setattr(single_file, "predicts_velocity", lambda unet, answer=velocity: answer)
        file = single_file.settled(silent, tiny.pipeline.unet)
        assert file.velocity is velocity and file.configs["scheduler"]["_class_name"] == kind
        assert file.configs["unet"] == tiny.configs["unet"]
        assert single_file.settled(file, None) is file


def test_a_velocity_model_of_sdxl_says_so_where_other_programs_look(made, tmp_path):
    tiny = made["sdxl"]
    configs = {**tiny.configs, "scheduler": {**tiny.configs["scheduler"], "prediction_type": "v_prediction"}}
    single_file.write(tmp_path / "x.safetensors", tiny.states, configs, {})
    entries, metadata = read_header(tmp_path / "x.safetensors")
    assert "v_pred" in entries and metadata["modelspec.prediction_type"] == "v"
    assert single_file.read(tmp_path / "x.safetensors").velocity is True
