"""Options that save memory change no bit, save what they say, and compose."""

import gc
import itertools
import sys
import types

import pytest
import torch
from torch import nn

from erasure.core import registry
from erasure.core.errors import NotApplicableError, OptionError
from erasure.methods.base import Job
from erasure.models.base import recomputed_activations
from erasure.saliency.mask import Mask
from erasure.training.loop import TrainingConfig, minimize
from erasure.training.memory import WeightCounts, count, described, estimate, measured_peak
from tests.conftest import state_of, tiny
from tests.training.test_loop import half, network, regression, settings
from tests.training.test_shared_teacher import random_mask

CHOICES = list(itertools.product(("sgd", "adam", "adamw"), (False, True)))
LOW = {"memory": "low", "precision": "float32", "gradient_checkpointing": False}


class EightBit(torch.optim.Optimizer):
    """What the loop sees of an 8-bit optimiser: bytes in a weight's shape, a table, and a step that is a number."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {
                        "step": 0,
                        "state1": torch.zeros_like(p, dtype=torch.uint8),
                        "table": torch.ones(3).double(),
                    }
                assert isinstance(state["step"], int) and state["table"].dtype == torch.float64
                state["step"] += 1
                state["state1"] += p.grad.sign().to(torch.int8).view(torch.uint8)
                state["table"] *= 1 + p.grad.abs().mean()
                p.sub_(state["state1"].view(torch.int8) * group["lr"] / state["step"] / state["table"][0])


@pytest.fixture
def bitsandbytes(monkeypatch):
    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = EightBit
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(("optimizer", "masked"), [*CHOICES, ("adamw8bit", True)])
@pytest.mark.parametrize("before", [False, True])
def test_a_lean_optimiser_changes_no_bit(optimizer, masked, accumulate, before, bitsandbytes):
    ends = []
    for lean in (False, True):
        net = network()
        chosen = settings(optimizer=optimizer, weight_decay=0.1, clip_norm=0.1, accumulate=accumulate)
        chosen = TrainingConfig(**{**vars(chosen), "lean_optimizer": lean, "clip_before_mask": before})
        outcome = minimize(net, regression(net), chosen, seed=3, mask=half(net) if masked else None)
        ends.append((list(net.parameters()), [record["grad_norm"] for record in outcome.records]))
        assert not any(
            parameter.equal(old) for parameter, old in zip(net.parameters(), network().parameters(), strict=True)
        )
    assert all(a.equal(b) for a, b in zip(ends[0][0], ends[1][0], strict=True)) and ends[0][1] == ends[1][1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw8bit"])
@pytest.mark.parametrize(("first", "second"), list(itertools.product((False, True), repeat=2)))
def test_a_checkpoint_of_either_mode_continues_in_either(optimizer, first, second, tmp_path, bitsandbytes):
    def run(folder, lean, dies=None):
        net = network()

        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            return {}

        folder.mkdir(exist_ok=True)
        chosen = settings(optimizer=optimizer, lean_optimizer=lean, accumulate=2)
        minimize(net, regression(net), chosen, seed=5, mask=half(net), on_step=on_step, folder=folder)
        return list(net.parameters())

    whole = run(tmp_path / "whole", first)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", first, dies=6)
    assert (tmp_path / "killed" / "checkpoint.safetensors").is_file()
    assert all(a.equal(b) for a, b in zip(whole, run(tmp_path / "killed", second), strict=True))


def live_bytes(known):
    """Bytes of the storages of all tensors that are not in `known`, gradients included."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for pointer, size in storages.items() if pointer not in known), set(storages)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "optimizer", "listed"),
    [
        ({}, "adam", True),
        ({}, "sgd", False),
        ({**LOW, "accumulate": 2}, "adam", False),
        ({"share_teacher": True}, "adamw", True),
        ({"clip_before_mask": True}, "adam", True),
    ],
)
def test_the_estimate_is_what_is_held(options, optimizer, listed, digits, task, monkeypatch):
    """All tensors that are alive at the end of the second step's backward pass are counted."""
    monkeypatch.setattr("erasure.training.masked_parameters.MAX_INDEXED", 1 << 25 if listed else 0)
    model = tiny("ddpm")
    mask = random_mask(model, 0.3)
    job = Job(task, digits.of_classes(task.forget), digits.of_classes(task.retain), mask)
    network_bytes = sum(parameter.nbytes for parameter in model.network.parameters())
    mask_bytes = sum(tensor.nbytes for tensor in mask.tensors.values())
    _, known = live_bytes(set())
    known -= {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
    known -= {tensor.untyped_storage().data_ptr() for tensor in mask.tensors.values()}
    told, seen = [], []
    monkeypatch.setattr("erasure.methods.base.described", lambda parts: told.append(parts) or "")
    monkeypatch.setattr("erasure.methods.base.LARGE", 0)
    clip = nn.utils.clip_grad_norm_

    def counting(*arguments):
        seen.append(live_bytes(known)[0])
        return clip(*arguments)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", counting)
    chosen = {"steps": 2, "batch_size": 2, "optimizer": optimizer, **options}
    registry.load("methods", "salun")(**chosen).erase(model, job)
    (parts,) = told
    uses_mask = options.get("memory") != "low" and not listed
    held = seen[1] if uses_mask else seen[1] - mask_bytes  # on the CPU the booleans are those of the job
    assert parts["weights"] == network_bytes
    assert sum(parts.values()) == pytest.approx(held, rel=0.02)


def test_the_estimate_of_stable_diffusion():
    """The paper's network at density 0.5: half of what the official algorithm needs, which keeps all of it densely."""
    weights, free = 859_520_964, 429_760_482
    official = 4 * weights * (1 + 1 + 2 + 2)
    low = estimate(weights, free, weights, free, lean=True, teacher_bytes=2 * free + weights // 8)
    normal = estimate(weights, free, weights, free, teacher_bytes=4 * weights)
    assert sum(low.values()) < 0.47 * official and sum(normal.values()) < 0.8 * official
    assert described(low) == (
        "estimated memory: 9.7 GB (weights 3.4, teacher 1.0, gradients 1.7, optimiser 3.4, mask 0.1), activations aside"
    )
    within = estimate(weights, free, weights, free, 14_745_600, lean=True, in_backward=True)
    assert within["gradients"] == 4 * 14_745_600 < 0.04 * low["gradients"]
    eight = estimate(weights, free, weights, free, lean=True, optimizer="adamw8bit")
    assert eight["optimiser"] == pytest.approx(2.03 * free, rel=0.01) and eight["teacher"] == 0
    assert estimate(10, 10, optimizer="sgd", momentum=0.0)["optimiser"] == 0
    assert described(estimate(10**6, 10**6)).startswith("estimated memory: 16.0 MB (weights 4.0, gradients 4.0")


def test_counts():
    net = network()
    assert count(net) == WeightCounts(58, 58, 0, 0, 32)
    tensors = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in net.named_parameters()}
    tensors["0.weight"][0] = False
    assert count(net, Mask(tensors)) == WeightCounts(58, 54, 32, 28, 28)
    assert count(net, Mask(tensors), lambda name: name.startswith("0")) == WeightCounts(58, 36, 32, 28, 28)


@pytest.mark.parametrize(
    ("optimizer", "masked", "extra"),
    [*((*choice, {}) for choice in CHOICES), ("adam", True, {"accumulate": 2, "clip_before_mask": True})],
)
def test_low_memory_changes_no_bit(optimizer, masked, extra, digits, task, caplog):
    ends = []
    caplog.set_level("INFO", "erasure")
    for options in ({}, LOW):
        model = tiny("ddpm")
        mask = random_mask(model) if masked else None
        job = Job(task, digits.of_classes(task.forget), digits.of_classes(task.retain), mask)
        chosen = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "optimizer": optimizer, "weight_decay": 0.1}
        registry.load("methods", "salun")(**chosen, **extra, **options).erase(model, job)
        ends.append(model.hash)
    assert ends[0] == ends[1] != tiny("ddpm").hash
    assert caplog.text.count("estimated memory") == 1  # a small network is silent unless memory was asked about


@pytest.mark.parametrize("kind", ["ddpm", "classifier"])
def test_everything_together_is_killed_and_resumed(kind, digits, task, tmp_path):
    """--memory low as it stands: bf16, recomputed activations where the network can, shared teacher, lean."""

    def run(folder, dies=None):
        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            return {}

        model = tiny(kind)
        folder.mkdir(exist_ok=True)
        sets = (digits.of_classes(task.forget), digits.of_classes(task.retain))
        job = Job(task, *sets, random_mask(model), folder=folder, on_step=on_step)
        chosen = {"steps": 4, "batch_size": 8, "accumulate": 2, "checkpoint_every": 1, "memory": "low"}
        registry.load("methods", "salun")(**chosen).erase(model, job)
        assert kind == "classifier" or not model.network.is_gradient_checkpointing
        return model.hash

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies=2)
    assert run(tmp_path / "killed") == whole != tiny(kind).hash


def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def test_recomputed_activations_give_the_same_gradients_and_are_switched_off():
    net, saved = unet().train(), []
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 16)
    gradients = []
    for asked in (None, True):
        with recomputed_activations(net, asked, False):
            assert net.is_gradient_checkpointing == bool(asked)
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
                loss = net(*inputs).sample.square().mean()
            loss.backward()
        saved.append(sum(sizes))
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
        net.zero_grad()
    assert not net.is_gradient_checkpointing and saved[1] < 0.5 * saved[0]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)
    net.enable_gradient_checkpointing()
    with recomputed_activations(net, True, False):
        pass
    assert net.is_gradient_checkpointing, "it was on before"


def test_a_network_that_cannot_recompute_says_so_only_when_asked(classifier):
    with recomputed_activations(classifier.network, None, True), recomputed_activations(nn.Linear(1, 1), False, True):
        pass
    with (
        pytest.raises(NotApplicableError, match="`gradient_checkpointing`: a ResNetForImageClassification cannot"),
        recomputed_activations(classifier.network, True, True),
    ):
        pass


@pytest.mark.parametrize("weights", ["attn1", "attn2", "not-attn2"])
def test_weights_chooses_tensors_by_their_kind(weights):
    salun, net = registry.load("methods", "salun"), unet()
    method = salun(weights=weights)
    chosen = {name for name, _ in net.named_parameters() if method.trains(name)}
    cross = {name for name, _ in net.named_parameters() if ".attn2." in name}
    expected = {n for n, _ in net.named_parameters() if ".attn1." in n} if weights == "attn1" else cross
    assert chosen == ({n for n, _ in net.named_parameters()} - cross if weights == "not-attn2" else expected) != set()


def test_a_network_without_the_kind_of_weights_is_refused(ddpm, classifier, digits, task):
    job = Job(task, digits.of_classes(task.forget), digits.of_classes(task.retain))
    before = state_of(ddpm)
    with pytest.raises(NotApplicableError, match="`weights` attn2: this network has no cross-attention"):
        registry.load("methods", "salun")(weights="attn2", steps=1).erase(ddpm, job)
    with pytest.raises(NotApplicableError, match="`weights` attn1: this network has no self-attention"):
        registry.load("methods", "finetune")(weights="attn1", steps=1).erase(classifier, job)
    assert all(after.equal(before[name]) for name, after in ddpm.network.state_dict().items())


def test_what_is_not_given_follows_memory():
    salun = registry.load("methods", "salun")
    assert (salun().training_config(1).precision, salun().training_config(1).lean_optimizer) == ("float32", False)
    assert (
        salun(memory="low").training_config(1).precision,
        salun(memory="low").training_config(1).lean_optimizer,
    ) == ("bf16", True)
    given = salun(memory="low", precision="float32", lean_optimizer=False).training_config(1)
    assert (given.precision, given.lean_optimizer) == ("float32", False)
    assert salun(precision="bf16").training_config(1).precision == "bf16"


def test_eight_bits_need_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(OptionError, match="`optimizer` adamw8bit needs bitsandbytes: pip install"):
        minimize(network(), lambda step: {}, settings(optimizer="adamw8bit"), seed=0)


def test_the_peak_of_a_block_is_what_it_held_at_most():
    with measured_peak() as found:
        held = [torch.ones(1 << 24)]  # 64 MiB
        held.clear()
    assert 60 << 20 < found["peak_memory"] < 100 << 20
    with measured_peak() as found:
        torch.ones(1 << 10)
    assert found["peak_memory"] < 16 << 20
