import math

import pytest
import torch
from torch import nn

from erasure.core.errors import DivergedError, MaskError, OptionError, RunError
from erasure.core.run_dir import read_log
from erasure.formats.bits import packed
from erasure.formats.safetensors_io import read_tensors
from erasure.saliency.mask import Mask
from erasure.training.loop import TrainingConfig, minimize
from erasure.training.masked_parameters import MaskedParameters
from erasure.training.weight_positions import indexable, values_at, write_at

OPTIMISERS = [("sgd", 0.0), ("sgd", 0.1), ("adam", 0.0), ("adam", 0.1), ("adamw", 0.1)]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def half(net, density=0.5):
    return Mask.random(Mask.top({n: torch.zeros_like(p) for n, p in net.named_parameters()}, 0.5), density, 0)


def every_other(net):
    """A mask that splits every tensor."""
    return Mask({n: torch.arange(p.numel()).view(p.shape) % 2 == 0 for n, p in net.named_parameters()})


def regression(net, parts=None):
    def loss(step):
        x = torch.randn(16, 4, generator=step.generator)[step.part :: step.parts]
        return {"loss": (net(x) - x[:, :2]).square().mean()}

    return loss


def settings(**changes):
    return TrainingConfig(**{"steps": 12, "learning_rate": 0.05, "checkpoint_every": 4, **changes})


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("optimizer", "decay"), OPTIMISERS)
def test_held_weights_keep_every_bit(optimizer, decay, listed, monkeypatch):
    monkeypatch.setattr("erasure.training.masked_parameters.MAX_INDEXED", 1 << 25 if listed else 0)
    net = network()
    net[0].bias.data[0] = -0.0
    mask, before = half(net), {n: p.detach().clone() for n, p in net.named_parameters()}
    minimize(net, regression(net), settings(optimizer=optimizer, weight_decay=decay), seed=0, mask=mask)
    for name, after in net.named_parameters():
        held = ~mask.tensors[name]
        assert after.detach()[held].view(torch.int32).equal(before[name][held].view(torch.int32))
        assert not after.detach()[~held].equal(before[name][~held])


@pytest.mark.parametrize(("optimizer", "decay"), OPTIMISERS)
def test_free_weights_move_as_if_the_gradient_had_been_masked(optimizer, decay):
    """The compact copies give what a textbook loop gives that multiplies gradients by the mask."""
    net, reference = network(), network()
    mask = half(net)
    minimize(net, regression(net), settings(optimizer=optimizer, weight_decay=decay, clip_norm=0.1), seed=3, mask=mask)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    extra = {"momentum": 0.9} if optimizer == "sgd" else {}
    inner = kinds[optimizer](reference.parameters(), lr=0.05, weight_decay=decay, **extra)
    original = {n: p.detach().clone() for n, p in reference.named_parameters()}
    captured = []
    minimize(
        network(),
        lambda step: captured.append(step.generator.initial_seed()) or regression(net)(step),
        settings(),
        seed=3,
    )
    for seed in captured:
        inner.zero_grad()
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        (reference(x) - x[:, :2]).square().mean().backward()
        for name, parameter in reference.named_parameters():
            parameter.grad.mul_(mask.tensors[name])
        nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
        inner.step()
        for name, parameter in reference.named_parameters():
            parameter.data = torch.where(mask.tensors[name], parameter.data, original[name])
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, dict(reference.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_the_norm_can_be_taken_before_the_mask():
    results = []
    for before in (False, True):
        net = network()
        mask = half(net, 0.1)
        outcome = minimize(
            net, regression(net), settings(steps=1, clip_before_mask=before, clip_norm=1e9), seed=0, mask=mask
        )
        results.append(outcome.records[0]["grad_norm"])
    assert results[0] < 0.7 * results[1]


def test_tensors_without_free_weights_ask_for_no_gradient():
    net = network()
    tensors = {n: torch.full(p.shape, n.startswith("2"), dtype=torch.bool) for n, p in net.named_parameters()}
    free = MaskedParameters(net, Mask(tensors))
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert sum(p.numel() for p in free.parameters) == 18
    free.release()
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(OptionError, match="no weight is trainable"):
        MaskedParameters(net, Mask({n: torch.zeros(p.shape, dtype=torch.bool) for n, p in net.named_parameters()}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dies_at", [3, 5, 9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, masked, optimizer, dies_at):
    def run(folder, dies=None):
        net = network()
        mask = half(net) if masked else None

        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            return {}

        chosen = settings(optimizer=optimizer, ema_decay=0.9)
        where = {"folder": folder, "fingerprint": "f"}
        return net, minimize(net, regression(net), chosen, seed=5, mask=mask, on_step=on_step, **where)

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, one = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies=dies_at)
    resumed, two = run(tmp_path / "killed")
    assert all(a.equal(b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert all(one.ema[name].equal(two.ema[name]) for name in one.ema)
    steps = [record["step"] for record in read_log(tmp_path / "killed" / "log.jsonl")]
    assert steps == list(range(12)) == [record["step"] for record in two.records]
    with pytest.raises(RunError, match="other settings"):
        minimize(network(), regression(network()), settings(), seed=5, folder=tmp_path / "killed", fingerprint="g")


@pytest.mark.parametrize("options", [{}, {"lean_optimizer": True}, {"clip_before_mask": True}])
@pytest.mark.parametrize("masked", [False, True])
def test_accumulation_equals_the_whole_batch(masked, options):
    results = []
    for accumulate in (1, 8):
        net = network()
        chosen = settings(accumulate=accumulate, optimizer="sgd", **options)
        minimize(net, regression(net), chosen, seed=0, mask=half(net) if masked else None)
        results.append(list(net.parameters()))
    for one, eight in zip(*results, strict=True):
        torch.testing.assert_close(one, eight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_no_gradient_is_left_in_the_network_and_no_hook(dense):
    net = network()
    mask = every_other(net)
    mask.tensors["0.bias"].zero_()
    free = MaskedParameters(net, mask, clip_before_mask=dense)
    net(torch.randn(3, 4)).sum().backward()
    assert sum(p.grad is not None for p in net.parameters()) == (4 if dense else 0)
    free.clip(math.inf)
    assert all(p.grad is None for p in net.parameters()) and all(p.grad is not None for p in free.parameters)
    free.release()
    net(torch.randn(3, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_divergence_goes_back_to_the_last_good_weights(tmp_path):
    net = network()

    def loss(step):
        value = regression(net)(step)["loss"]
        return {"loss": value * (math.inf if step.index == 7 else 1.0)}

    with pytest.raises(DivergedError, match=r"diverged at step 7 .* those of step 4") as caught:
        minimize(net, loss, settings(), seed=0, folder=tmp_path)
    assert caught.value.step == 4
    saved, _ = read_tensors(tmp_path / "checkpoint.safetensors")
    assert all(p.equal(saved[f"network/{n}"]) for n, p in net.named_parameters())
    reference = network()
    minimize(reference, regression(reference), settings(steps=4), seed=0)
    for one, other in zip(net.parameters(), reference.parameters(), strict=True):
        assert one.equal(other)


def test_an_unbounded_loss_stops_at_its_limit():
    net = network()
    with pytest.raises(DivergedError) as caught:
        minimize(
            net, lambda step: {"loss": -regression(net)(step)["loss"]}, settings(steps=5000, learning_rate=1.0), seed=0
        )
    assert caught.value.step == 0


def test_the_callers_random_state_and_the_networks_flags_are_kept():
    net = network()
    net[0].weight.requires_grad_(False)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    minimize(net, regression(net), settings(), seed=0, trains=lambda name: name.startswith("2"))
    assert torch.rand(1).equal(expected)
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())


def test_the_learning_rate_schedule():
    cosine = settings(steps=110, warmup_steps=10, schedule="cosine", learning_rate=1.0)
    rates = [cosine.learning_rate_at(step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[-1] < 0.001
    assert settings().learning_rate_at(11) == 0.05


def test_bfloat16_autocast_stays_close_to_float32():
    losses = []
    for precision in ("float32", "bf16"):
        net = network()
        losses.append(minimize(net, regression(net), settings(precision=precision), seed=0).records[-1]["loss"])
        assert all(p.dtype == torch.float32 for p in net.parameters())
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_foreign_mask_and_bad_settings_are_refused():
    net = network()
    with pytest.raises(MaskError):
        minimize(net, regression(net), settings(), seed=0, mask=Mask({"x": torch.ones(1, dtype=torch.bool)}))
    for bad in ({"steps": -1}, {"accumulate": 0}, {"checkpoint_every": 0}, {"optimizer": "lion"}):
        with pytest.raises(OptionError):
            minimize(net, regression(net), settings(**bad), seed=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_divergence_in_bfloat16_names_the_other_format(precision):
    net = network()
    with pytest.raises(DivergedError) as caught:
        minimize(
            net, lambda step: {"loss": net(torch.ones(1, 4)).sum() * torch.nan}, settings(precision=precision), seed=0
        )
    assert ("or use `precision` float32" in str(caught.value)) == (precision == "bf16")


@pytest.mark.parametrize("shape", [(7,), (8,), (3, 5), (2, 3, 3, 3), (1,)])
def test_packed_bits_say_what_booleans_say(shape):
    selected = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    selected.view(-1)[0] = True
    bits, tensor = packed(selected), torch.randn(shape)
    assert bits.numel() == -(-selected.numel() // 8) and bits.dtype == torch.uint8
    assert values_at(tensor, bits).equal(tensor[selected])
    expected = tensor.clone()
    expected[selected] = 5.0
    write_at(tensor, bits, torch.full((int(selected.sum()),), 5.0))
    assert tensor.equal(expected)
    if len(shape) == 4:
        other = torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)
        assert indexable(bits, other).dtype == torch.bool and values_at(other, bits).equal(tensor[selected])
        write_at(other, bits, -values_at(tensor, bits))
        assert other[selected].equal(-tensor[selected]) and other[~selected].equal(tensor[~selected])


def test_between_lean_steps_no_value_is_held_twice():
    net = network()
    mask = every_other(net)
    free = MaskedParameters(net, mask, lean=True)
    optimizer = torch.optim.Adam(free.parameters, fused=True)
    for _ in range(2):
        net(torch.randn(3, 4)).square().sum().backward()
        assert all(parameter.grad is None for parameter in net.parameters())
        assert [p.grad.numel() for p in free.parameters] == [int(t.sum()) for t in mask.tensors.values()]
        free.step(optimizer)
        assert all(p.grad is None and p.untyped_storage().nbytes() == 4 for p in free.parameters)
        assert optimizer.param_groups[0]["params"] == free.parameters
    free.release()


@pytest.mark.parametrize("masked", [False, True])
def test_an_unused_tensor_gets_no_gradient_and_does_not_move(masked):
    for lean in (False, True):
        net = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
        before = net["unused"].weight.detach().clone()
        free = MaskedParameters(net, every_other(net) if masked else None, lean=lean)
        optimizer = torch.optim.AdamW(free.parameters, weight_decay=0.5, fused=True)
        net["used"](torch.randn(2, 3)).sum().backward()
        assert [p.grad is None for p in free.parameters] == [False, False, True, True]
        free.step(optimizer)
        assert net["unused"].weight.equal(before)
