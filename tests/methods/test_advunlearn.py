"""AdvUnlearn: the text encoder moves and nothing else, its loss and its attack by hand, and what is exported of it."""

import json

import pytest
import torch

from erasure.core import registry
from erasure.core.errors import NotApplicableError, OptionError
from erasure.data import Dataset
from erasure.methods.base import Batches, Job, StepBatches
from erasure.methods.guidance.advunlearn import AdvUnlearn, behind
from erasure.models import load_model
from erasure.saliency.mask import Mask
from erasure.training.loop import Step
from erasure.training.text_encoder import TextEncoderView
from tests.conftest import CATS, PROMPTS, pipeline_folder, state_of, tiny
from tests.support import tiny_flow, tiny_pipelines

NOTHING = Dataset.nothing()
SMALL = {"steps": 3, "batch_size": 2, "retain_prompts": 2, "sampling_steps": 3, "warmup": 1, "attack_steps": 2}
QUICK = {"steps": 2, "retain-prompts": 1, "sampling-steps": 2, "warmup": 1, "attack-steps": 1, "learning-rate": 1e-2}
FLAGS = [part for name, value in QUICK.items() for part in (f"--{name}", value)]


def method(**options):
    return AdvUnlearn(**{**SMALL, "learning_rate": 1e-3, "checkpoint_every": 1, **options})


def states_of(model):
    parts = {name: model.parts[name].state_dict() for name in ("vae", "text_encoder")}
    return {
        name: {key: t.clone() for key, t in {"unet": state_of(model), **parts}[name].items()}
        for name in ("unet", "vae", "text_encoder")
    }


def draws_of(index=0):
    batches = Batches(NOTHING, 2, 0)
    return StepBatches(Step(index, torch.Generator().manual_seed(7)), batches, batches)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_the_text_encoder_moves_and_nothing_else(kind):
    model = tiny(kind)
    before, bound, hashes = states_of(model), model.bound.embeddings, (model.hash, model.parts_hash)
    flags = {name: p.requires_grad for name, p in model.parts["text_encoder"].named_parameters()}
    method().erase(model, Job(CATS, NOTHING, NOTHING))
    after = states_of(model)
    for part in ("unet", "vae"):
        assert all(after[part][name].equal(before[part][name]) for name in before[part])
    encoder = model.parts["text_encoder"]
    moved = [name for name, tensor in after["text_encoder"].items() if not tensor.equal(before["text_encoder"][name])]
    assert {name.split(".")[-2] for name in moved} >= {"q_proj", "fc1", "token_embedding"}
    assert model.hash == hashes[0] and model.parts_hash != hashes[1]
    assert all(p.grad is None for part in (model.network, encoder) for p in part.parameters())
    assert flags == {name: p.requires_grad for name, p in encoder.named_parameters()} and not encoder.training
    assert all(p.requires_grad for p in model.network.parameters())
    assert not model.bound.embeddings.equal(bound) and model.bound.prompts == (*PROMPTS, "")
    with torch.no_grad():
        assert model.bound.embeddings[:5].equal(model.encode_prompts(PROMPTS)[0])


def test_the_loss_is_its_formula():
    """Before the attack: |e(c) - (e0(0) - eta (e0(c) - e0(0)))|^2 + gamma |e(c_r) - e0(c_r)|^2, by hand."""
    whole, other = tiny("sd1"), tiny("sd1")
    part = TextEncoderView.of(whole)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a text encoder that has moved, while the bound prompts are the original's
        for parameter in part.network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.requires_grad_(True)
    found = method(gamma=0.7, negative_guidance=1.5).loss(part, part, CATS, draws_of())
    generator = draws_of().generator
    retain = torch.tensor(CATS.retain)[torch.randint(0, 3, (4,), generator=generator)]
    labels = torch.cat([torch.tensor(CATS.forget)[torch.randint(0, 2, (2,), generator=generator)], retain])
    noise = torch.randn((6, 4, 8, 8), generator=generator)
    stops = torch.randint(0, 3, (6,), generator=generator)
    with torch.no_grad():
        how = {"num_inference_steps": 3, "guidance_scale": 3.0}
        noisy, timesteps = other.partly_sampled(noise, labels, stops, **how)
        asked, null = other.predict(noisy, timesteps, labels), torch.full((2,), other.null_label)
        empty = other.predict(noisy[:2], timesteps[:2], null)
        words = whole.encode_prompts([PROMPTS[label] for label in labels.tolist()])[0]
        answers = whole.network(noisy, timesteps, encoder_hidden_states=words).sample
        forget = (answers[:2] - (empty - 1.5 * (asked[:2] - empty))).square().mean()
        kept = (answers[2:] - asked[2:]).square().mean()
    assert float(found["forget"]) == pytest.approx(float(forget), rel=1e-4)
    assert float(found["retain"]) == pytest.approx(float(kept), rel=1e-4)
    assert float(found["loss"]) == pytest.approx(float(forget + 0.7 * kept), rel=1e-4)
    found["loss"].backward()
    assert all(p.grad is None for p in whole.network.parameters())


def test_the_attack_goes_along_the_sign_of_the_gradient():
    part = TextEncoderView.of(tiny("sd1"))
    generator = torch.Generator().manual_seed(2)
    noisy, timesteps = torch.randn((2, 4, 8, 8), generator=generator), torch.tensor([300, 700])
    with torch.no_grad():
        original = part.whole.predict(noisy, timesteps, torch.tensor([0, 1])) + 0.1
    tokens = torch.tensor([[7, 8], [9, 10]])
    ids = behind(part.ids[:2], tokens)
    assert ids[0, :3].tolist() == [part.ids[0, 0], 7, 8] and ids.shape == part.ids[:2].shape
    assert ids[:, 3:-1].equal(part.ids[:2, 1:-3]) and ids[:, -1].equal(part.ids[:2, -1])
    table = part.network.get_input_embeddings().weight
    start = table[tokens].detach()
    plain = part.read(ids)
    assert torch.allclose(part.read(ids, start), plain) and not torch.allclose(part.read(ids, start + 1), plain)

    def error(prefix):
        answer = part.predict_under(noisy, timesteps, part.read(ids, prefix))
        return (answer - original).square().flatten(1).mean(1)

    for parameter in part.network.parameters():
        parameter.requires_grad_(True)
    found = start
    for _ in range(3):
        found = found.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(error(found).sum(), found)
        found = (found - 0.002 * slope.sign()).detach()
    attack = method(attack_steps=3, attack_step_size=0.002, prefix_tokens=2)
    attacked = attack.attacked(part, noisy, timesteps, ids, original)
    assert attacked.equal(found) and not attacked.requires_grad
    assert bool((error(attacked) < error(start)).all())
    assert all(p.grad is None for p in part.network.parameters())
    method(attack_steps=3, prefix_tokens=2).loss(part, part, CATS, draws_of(1))["loss"].backward()
    assert part.network.get_input_embeddings().weight.grad is not None


def test_the_warm_up_sees_the_prompt_itself(monkeypatch):
    calls = []
    monkeypatch.setattr(
        AdvUnlearn, "attacked", lambda self, model, *args: calls.append(1) or model.tokens(args[2][:, 1:2])
    )
    method(steps=3, warmup=2).erase(tiny("sd1"), Job(CATS, NOTHING, NOTHING))
    assert len(calls) == 1


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    def run(folder, dies=None):
        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            return {}

        model = tiny("sd1")
        folder.mkdir(exist_ok=True)
        method().erase(model, Job(CATS, NOTHING, NOTHING, folder=folder, fingerprint="f", on_step=on_step))
        return model.parts_hash

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies=2)
    assert (tmp_path / "killed" / "checkpoint.safetensors").is_file()
    assert run(tmp_path / "killed") == whole


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_mask_is_of_the_text_encoder(optimizer):
    model = tiny("sd1")
    part = method().part_of(model)
    before = state_of(part)
    mask = Mask.random(Mask({n: p.detach() for n, p in part.network.named_parameters()}), 0.5, 0)
    method(optimizer=optimizer, weight_decay=0.1).erase(model, Job(CATS, NOTHING, NOTHING, mask=mask))
    moved = 0
    for name, parameter in part.network.named_parameters():
        same = parameter.detach().view(torch.int32) == before[name].view(torch.int32)
        assert same[~mask.tensors[name]].all(), name
        moved += int((~same).sum())
    assert moved > 0


def test_a_look_during_training_sees_the_text_encoder_as_it_is():
    model, seen = tiny("sd1"), []
    original = model.bound.embeddings

    def on_step(done):
        seen.append(model.bound.embeddings)
        return {"done": done}

    outcome = method(steps=2).erase(model, Job(CATS, NOTHING, NOTHING, on_step=on_step))
    assert [record["done"] for record in outcome.records] == [1, 2]
    assert not seen[0].equal(original) and not seen[1].equal(seen[0]) and model.bound.embeddings.equal(seen[1])


def test_what_has_not_one_text_encoder_is_refused():
    for kind, why in (("sdxl", "several"), ("ddpm", "no text encoder"), ("classifier", "no text encoder")):
        with pytest.raises(NotApplicableError, match=why):
            method().check_model(tiny(kind))
    with pytest.raises(NotApplicableError, match="several"):
        method().check_model(load_model(tiny_flow.folder("sd3")))
    for bad in (
        {"gamma": -1.0},
        {"warmup": -1},
        {"retain_prompts": 0},
        {"prefix_tokens": 0},
        {"attack_step_size": 0.0},
    ):
        with pytest.raises(OptionError):
            method(**bad).check(CATS)
    with pytest.raises(OptionError, match="reads 77 tokens"):
        method(prefix_tokens=75).check_model(tiny("sd1"))
    assert registry.load("methods", "advunlearn")().gamma == 0.5 and AdvUnlearn.presets["nudity"] == {"gamma": 0.3}


@pytest.mark.parametrize(("kind", "base_is"), [("sd1", "folder"), ("sd2", "file")])
def test_what_is_exported_has_the_new_text_encoder_and_is_verified(cli, refused, tmp_path, kind, base_is):
    written = tiny_pipelines.written(kind, tmp_path)
    base, run = getattr(written, base_is), tmp_path / "run"
    asked = ("--forget", "cat", "--retain", "a dog,a tree", "--no-evaluate", "--out", run, "--json")
    found = cli("erase", "--model", base, "--method", "advunlearn", *FLAGS, *asked).json
    assert found["moves"] == "text encoder" and 0 < found["changed_weights"] <= found["total_weights"]
    assert found["part_hash"] != found["base_part_hash"]
    original, cleaned = load_model(base), load_model(run)
    assert found["hash"] == cleaned.hash == original.hash
    wanted = cleaned.parts["text_encoder"].state_dict()
    for form, name in (("diffusers", "d"), ("single-file", "s.safetensors")):
        out = tmp_path / name
        told = cli("export", run, "--format", form, "--out", out, "--json").json["provenance"]
        assert told["moves"] == "text encoder" and told["changed"]
        tiny_pipelines.assert_equal(load_model(out).parts["text_encoder"].state_dict(), wanted)
        tiny_pipelines.assert_equal(load_model(out).network.state_dict(), original.network.state_dict())
        verified = cli("verify", out, "--base", base, "--json").json
        assert verified["verified"] and "changed as recorded, of the text_encoder" in verified["checked"][0]
        assert cli("export", run, "--format", form, "--out", out).code == 0  # the same again
    for form in ("unet", "delta", "lora"):
        line = refused("export", run, "--format", form, "--out", tmp_path / form)
        assert "changed the text encoder alone" in line
    other = tmp_path / "other"
    again = ("--forget", "cat", "--retain", "a dog,a tree", "--no-evaluate", "--out", other, "--seed", 1)
    assert cli("erase", "--model", base, "--method", "advunlearn", *FLAGS, *again).code == 0
    assert "is something else" in refused("export", other, "--format", "diffusers", "--out", tmp_path / "d")


def test_a_run_under_a_mask_of_its_own_and_its_repetition(cli, refused, tmp_path):
    base, run = pipeline_folder("sd1"), tmp_path / "run"
    asked = ("--forget", "cat", "--retain", "a dog,a tree", "--no-evaluate")
    first = cli("erase", "--model", base, "--method", "advunlearn", *FLAGS, *asked, "--mask", "random", "--out", run)
    assert first.code == 0, first.err
    document = json.loads((run / "run.json").read_text())
    encoder = load_model(base).parts["text_encoder"]
    assert Mask.load(run / "mask.safetensors").total == sum(p.numel() for p in encoder.parameters())
    again = cli("erase", "--config", run / "run.json", "--out", tmp_path / "again", "--json").json
    assert again["part_hash"] == document["trained"]["part_hash"]
    given = (*asked, "--mask", run / "mask.safetensors", "--out", tmp_path / "given", "--json")
    assert (
        cli("erase", "--model", base, "--method", "advunlearn", *FLAGS, *given).json["part_hash"] == again["part_hash"]
    )
    encoder_file = run / "model" / "text_encoder" / "model.safetensors"
    encoder_file.write_bytes((pipeline_folder("sd1") / "text_encoder" / "model.safetensors").read_bytes())
    assert "weights have changed since" in refused("export", run, "--format", "diffusers", "--out", tmp_path / "x")
