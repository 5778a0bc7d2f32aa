"""ESD: its target, its partial sampling, and its low-rank form, which is a file of factors to the last digit."""

import copy

import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Batches, Dataset
from erasure.data.task import Task
from erasure.erasing.erase import EraseRequest, erase
from erasure.erasing.targets import TargetSpec
from erasure.methods.base import Job, StepBatches
from erasure.models import load_model
from erasure.models.diffusion import sampler
from erasure.training.loop import Step
from erasure.training.lora_layers import DOWN, UP, is_factor, low_rank
from tests.conftest import CATS, PROMPTS, about, pipeline_folder, state_of, tiny
from tests.support import tiny_flow

SMALL = {"steps": 2, "sampling_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 1}


def method(name="esd", **options):
    return registry.load("methods", name)(**{**SMALL, **options})


def flow(kind):
    return load_model(tiny_flow.folder(kind)).set_prompts(PROMPTS)


def draws(part=0, parts=1):
    nothing = Batches(Dataset.nothing(), 4, 0)
    return StepBatches(Step(0, torch.Generator().manual_seed(0), part, parts), nothing, nothing)


def job(task, **changes):
    return Job(task, Dataset.nothing(), Dataset.nothing(), **changes)


def noise_of(model, count=4):
    return torch.randn((count, *model.sample_shape), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "ddpm", "sd3", "flux"])
def test_the_target_is_guidance_turned_around(kind):
    """e(0) at eta 0, e(0) - (e(c) - e(0)) at eta 1: the answer under the guidance scale -eta."""
    model = flow(kind) if kind in tiny_flow.BY_KIND else tiny(kind)
    timesteps, labels = torch.tensor([10, 300, 600, 990]), torch.tensor([0, 1, 1, 0])
    inputs = (noise_of(model), timesteps, labels)
    for eta in (0.0, 1.0, 2.5):
        found = method(negative_guidance=eta).target(model, *inputs)
        with torch.no_grad():
            expected = model.prediction(inputs, guidance_scale=-eta)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        empty = model.predict(*inputs[:2], torch.full_like(labels, model.null_label))
        asked = model.predict(*inputs)
    torch.testing.assert_close(method().target(model, *inputs), 2 * empty - asked, rtol=1e-4, atol=1e-5)
    assert not empty.allclose(asked, atol=1e-4)


@pytest.mark.parametrize("kind", ["sd1", "ddpm"])
def test_the_loss_is_its_formula_and_only_the_student_gets_a_gradient(kind):
    student, original = tiny(kind), tiny(kind, seed=3)
    task = about(kind)[1]
    esd, given = method(negative_guidance=0.7), draws()
    loss = esd.loss(student, original, task, given)["loss"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((4, *student.sample_shape), generator=generator)
    labels = torch.tensor(task.forget)[torch.randint(0, len(task.forget), (4,), generator=generator)]
    stops = torch.randint(0, 3, (4,), generator=generator)
    noisy, timesteps = student.partly_sampled(noise, labels, stops, num_inference_steps=3, guidance_scale=3.0)
    with torch.no_grad():
        empty, asked = (original.predict(noisy, timesteps, each) for each in (labels * 0 + original.null_label, labels))
        target = empty - 0.7 * (asked - empty)
        expected = (student.predict(noisy, timesteps, labels) - target).square().mean()
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)
    loss.backward()
    assert all(p.grad is None for p in original.network.parameters())
    assert sum(p.grad is not None for p in student.network.parameters()) > 10


def test_parts_of_a_batch_are_the_whole():
    model, original = tiny("sd1"), tiny("sd1", seed=3)
    whole = method().loss(model, original, CATS, draws())["loss"]
    parts = [method().loss(model, original, CATS, draws(part, 2))["loss"] for part in range(2)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "ddpm"])
def test_partial_sampling_stops_where_the_stock_scheduler_is(kind):
    model = tiny(kind)
    noise, labels, stops = noise_of(model), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 2, 4, 1])
    model.network.train()
    found, timesteps = model.partly_sampled(noise, labels, stops, num_inference_steps=5, guidance_scale=3.0)
    assert model.network.training and not found.requires_grad
    model.network.eval()
    scheduler = sampler("ddim", model.noise_scheduler)
    scheduler.set_timesteps(5)
    sample, seen = noise * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        seen.append(sample)
        with torch.no_grad():
            answer = model.prediction((sample, timestep.expand(4), labels), guidance_scale=3.0)
        sample = scheduler.step(answer, timestep, sample).prev_sample
    assert timesteps.tolist() == scheduler.timesteps[stops].tolist()
    for i, stop in enumerate(stops.tolist()):
        torch.testing.assert_close(found[i], seen[stop][i], rtol=1e-4, atol=1e-4)
    assert found[0].equal(noise[0]) and not found[2].allclose(noise[2], atol=0.1)


def test_partial_sampling_of_a_flow_ends_in_the_image():
    model = flow("sd3")
    noise, labels = torch.randn((1, *model.sample_shape), generator=torch.Generator().manual_seed(4)), torch.tensor([1])
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0}
    noisy, timesteps = model.partly_sampled(noise, labels, torch.tensor([2]), **settings)
    sigmas = model.sigmas(3, model.sample_shape)
    assert float(timesteps) == pytest.approx(float(sigmas[2]) * model.num_train_timesteps)
    with torch.no_grad():
        last = noisy + (sigmas[3] - sigmas[2]) * model.prediction((noisy, timesteps, labels), 2.0)
        image = model.decode(last).clamp(-1, 1)
    torch.testing.assert_close(image, model.generate(labels, [4], **settings), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["esd", "lora_esd"])
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_flows_are_erased_too(name, kind):
    model = flow(kind)
    before = state_of(model)
    records = method(name, sampling_steps=2, steps=1).erase(model, job(CATS)).records
    assert len(records) == 1 and records[0]["loss"] > 0
    assert any(not tensor.equal(before[key]) for key, tensor in model.network.state_dict().items())


@pytest.mark.parametrize("preset", ["x", "u", "full"])
def test_each_variant_moves_its_tensors(preset):
    model = tiny("sd1")
    before = state_of(model)
    method(**registry.load("methods", "esd").presets[preset]).erase(model, job(CATS))
    moved = {"attn2" in key for key, tensor in state_of(model).items() if not tensor.equal(before[key])}
    assert moved == {"x": {True}, "u": {False}, "full": {True, False}}[preset]


@pytest.mark.parametrize("name", ["esd", "lora_esd"])
def test_what_is_refused(name):
    for kind, words in (("ddpm-unconditional", "has no null class"), ("classifier", "use a diffusion model")):
        with pytest.raises(NotApplicableError, match=words):
            method(name).check_model(tiny(kind))
    with pytest.raises(OptionError, match="`sampling_steps` 2000 is more than 1000"):
        method(name, sampling_steps=2000).check_model(tiny("sd1"))
    for wrong in ({"epochs": 1.0}, {"sampling_steps": 0}, {"negative_guidance": -1.0}):
        with pytest.raises(OptionError, match="`"):
            method(name, **wrong).check(CATS)
    with pytest.raises(OptionError, match="not single samples"):
        method(name).check(Task(("a", "b"), (), samples=True))
    with pytest.raises(NotApplicableError, match="`weights` attn2"):
        method(name, weights="attn2").check_model(tiny("ddpm"))
    with pytest.raises(NotApplicableError, match="`weights` attn2"):
        method(name, weights="attn2").check_model(flow("sd3"))


def test_factors_say_nothing_at_first_and_are_in_the_weights_at_last():
    """Beside their layer they answer as the merged weights do, and copies carry their own."""
    model = tiny("sd1")
    before, noisy = state_of(model), noise_of(model)
    layers = method("lora_esd").layers(model.network)
    inputs = (noisy, torch.full((4,), 500), torch.tensor([0, 1, 2, 3]))
    with torch.no_grad():
        plain = model.prediction(inputs)
        with low_rank(model.network, layers, 4, 0.5, torch.Generator().manual_seed(0)):
            names = [name for name, _ in model.network.named_parameters() if is_factor(name)]
            assert len(names) == 2 * len(layers) and model.prediction(inputs).equal(plain)
            for name, parameter in model.network.named_parameters():
                if name.endswith(UP):
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
            twin, beside = copy.deepcopy(model), model.prediction(inputs)
            first = model.network.get_submodule(layers[0])
            product = 0.5 * getattr(first, UP) @ getattr(first, DOWN)
        assert set(model.network.state_dict()) == set(before)
        torch.testing.assert_close(first.weight, before[f"{layers[0]}.weight"] + product)
        torch.testing.assert_close(model.prediction(inputs), beside, rtol=1e-4, atol=1e-4)
        assert twin.prediction(inputs).equal(beside) and not beside.allclose(plain, atol=1e-2)


def test_lora_moves_attention_alone_and_the_choice_of_weights_says_which():
    for weights, wanted in (("all", {"attn1", "attn2"}), ("attn2", {"attn2"})):
        model = tiny("sd1")
        before = state_of(model)
        method("lora_esd", weights=weights).erase(model, job(CATS))
        moved = [key for key, tensor in state_of(model).items() if not tensor.equal(before[key])]
        assert {part for key in moved for part in key.split(".") if part.startswith("attn")} - {"attentions"} == wanted
        assert all(key.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")) for key in moved)
        assert all(
            torch.linalg.matrix_rank((state_of(model)[key] - before[key]).double(), rtol=1e-4) <= 4 for key in moved
        )


def test_an_interrupted_run_leaves_no_factors():
    def interrupt(done):
        raise KeyboardInterrupt

    model = tiny("ddpm")
    names = set(model.network.state_dict())
    with pytest.raises(KeyboardInterrupt):
        method("lora_esd").erase(model, job(about("ddpm")[1], on_step=interrupt))
    assert set(model.network.state_dict()) == names and model.hash != tiny("ddpm").hash


@pytest.mark.parametrize(("kind", "keys"), [("sd1", "kohya"), ("sdxl", "peft")])
def test_the_exported_factors_are_the_whole_difference(kind, keys, cli, tmp_path):
    """The stock pipeline with the factors beside its weights answers as the cleaned model, whose weights hold them."""
    pytest.importorskip("peft")
    import diffusers

    folder = pipeline_folder(kind)
    options = {**SMALL, "steps": 3, "learning_rate": 1e-2}
    request = EraseRequest(str(folder), TargetSpec(forget="cat"), "lora_esd", options=options, evaluate=False)
    erase(request, tmp_path / "run", report=False)
    out = tmp_path / "l.safetensors"
    flags = ("--format", "lora", "--rank", 4, "--lora-keys", keys, "--out", out)
    lora = cli("export", tmp_path / "run", *flags, "--json").json["provenance"]["lora"]
    assert lora["relative_error"] < 1e-4 and lora["left_out"]["tensors"] == 0
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    plain, cleaned = (load_model(path) for path in (folder, tmp_path / "run"))
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    models = [model.set_prompts(PROMPTS) for model in (plain, cleaned)]
    applied = copy.copy(models[0])
    applied.network = pipeline.unet
    inputs = (noise_of(cleaned), torch.full((4,), 400), torch.tensor([0, 1, 2, 3]))
    with torch.no_grad():
        before, merged, beside = (model.prediction(inputs) for model in (*models, applied))
    torch.testing.assert_close(beside, merged, rtol=1e-5, atol=1e-5)
    assert not before.allclose(merged, atol=1e-3)


def test_a_mask_holds_esd_and_is_refused_by_its_low_rank_form(cli, tmp_path):
    wanted = TargetSpec(
        forget="cat",
        training_images={"num_forget_images": 2, "num_retain_images": 2, "training_image_inference_steps": 2},
    )
    options = {**SMALL, "weights": "all"}
    request = EraseRequest(str(pipeline_folder("sd1")), wanted, "esd", mask="saliency", options=options)
    result = erase(EraseRequest(**{**request.__dict__, "evaluate": False}), tmp_path / "run", report=False)
    assert 0.45 < result.trained["changed_weights"] / result.trained["total_weights"] <= 0.5
    flags = ("--model", pipeline_folder("sd1"), "--forget", "cat", "--method", "lora_esd", "--mask", "random")
    outcome = cli("erase", *flags, "--out", tmp_path / "other")
    assert outcome.code == 1 and "--mask random has no meaning for lora_esd: it trains low-rank factors" in outcome.err
