"""A teacher that shares the student's module answers as a frozen copy would, whatever the student has become."""

import pytest
import torch
from torch import nn

from erasure.core import registry
from erasure.data import Batches
from erasure.methods.base import Job
from erasure.saliency.mask import Mask
from erasure.training.loop import TrainingConfig, minimize
from erasure.training.shared_teacher import SharedTeacher, shared_teacher
from tests.conftest import RECIPES, state_of, tiny


def random_mask(model, density=0.5):
    return Mask.random(Mask({n: p.detach() for n, p in model.network.named_parameters()}), density, 0)


def free_by(kind, model):
    """A mask and a choice of tensors."""
    first = next(iter(model.network.named_parameters()))[0]
    return {
        "everything": (None, lambda name: True),
        "masked": (random_mask(model), lambda name: True),
        "chosen": (None, lambda name: name != first),
        "masked and chosen": (random_mask(model, 0.2), lambda name: "weight" in name),
    }[kind]


def inputs_of(model, digits):
    return model.examples(Batches(digits, 6, 0).at(0), torch.Generator().manual_seed(0)).inputs


@pytest.mark.parametrize("free", ["everything", "masked", "chosen", "masked and chosen"])
@pytest.mark.parametrize("kind", [kind for kind in RECIPES if kind != "ddpm-unconditional"])
def test_it_answers_as_a_frozen_copy_at_every_step(kind, free, digits, tmp_path):
    """Also in the steps after a checkpoint was loaded; a classifier's running statistics move and do not show."""
    model = tiny(kind)
    mask, trains = free_by(free, model)
    inputs = inputs_of(model, digits)

    def train(steps, dies=None):
        student = tiny(kind)
        frozen, (twin, _) = student.frozen(), shared_teacher(student, mask, trains)
        student.network.train()
        with torch.no_grad():
            expected = frozen.prediction(inputs)

        def loss(step):
            assert twin.prediction(inputs).equal(expected)
            value = student.prediction(inputs)
            assert twin.prediction(inputs).equal(expected)  # between a forward and its backward pass
            return {"loss": (value - 1).square().mean()}

        def on_step(done):
            if done == dies:
                raise KeyboardInterrupt
            with torch.no_grad():
                assert not student.prediction(inputs).equal(expected)
            return {}

        settings = TrainingConfig(steps=steps, learning_rate=0.05, checkpoint_every=1)
        minimize(student.network, loss, settings, seed=0, mask=mask, trains=trains, folder=tmp_path, on_step=on_step)

    with pytest.raises(KeyboardInterrupt):
        train(4, dies=3)
    train(4)


def test_what_it_gives_back_has_every_bit_and_every_mode(classifier, digits):
    network = classifier.network
    teacher = SharedTeacher(network)
    network.train()
    network.resnet.encoder.eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-1.7)
        next(network.parameters()).view(-1)[0] = -0.0
    before, modes = state_of(classifier), [module.training for module in network.modules()]
    teacher(digits_images(digits))
    for name, after in network.state_dict().items():
        assert after.reshape(-1).view(torch.uint8).equal(before[name].reshape(-1).view(torch.uint8)), name
    assert [module.training for module in network.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def digits_images(digits):
    return Batches(digits, 4, 0).at(0).images


@pytest.mark.parametrize("at", ["forward", "bring", "restore"])
def test_a_failure_leaves_the_student_in_place(classifier, digits, at, monkeypatch):
    network, images = classifier.network, digits_images(digits)
    teacher, frozen = SharedTeacher(network, random_mask(classifier)), classifier.frozen()
    network.train()
    with torch.no_grad():
        for parameter, free in zip(network.parameters(), random_mask(classifier).tensors.values(), strict=True):
            parameter[free] += 1.0
    before = state_of(classifier)

    def fail(*_):
        raise KeyboardInterrupt

    if at == "forward":
        hook = network.classifier.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            teacher(images)
        hook.remove()
    else:
        part, calls = teacher._parts[5], []
        monkeypatch.setattr(
            "erasure.training.shared_teacher.write_at", interrupted_put(part, calls, 1 if at == "bring" else 2)
        )
        with pytest.raises(KeyboardInterrupt):
            teacher(images)
        monkeypatch.undo()
        for one in teacher._parts:
            one.restore()  # the second time finishes what the first began
    assert network.training or at == "restore"
    assert all(after.equal(before[name]) for name, after in network.state_dict().items())
    with torch.no_grad():
        assert teacher(images).logits.equal(frozen.network(images).logits)


def interrupted_put(part, calls, number):
    from erasure.training.weight_positions import write_at

    def interrupted(tensor, where, values):
        if tensor.data_ptr() == part._tensor.data_ptr():
            calls.append(1)
            if len(calls) == number:
                write_at(tensor, where, torch.where(torch.rand(values.shape) < 0.5, values, 7.0))  # half written
                raise KeyboardInterrupt
        write_at(tensor, where, values)

    return interrupted


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4)])
def test_originals_are_kept_short_when_that_is_exact(dtype, bytes_each):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e-20 if dtype == torch.bfloat16 else 1.0).copy_(parameter.to(dtype))
    x = torch.randn(5, 40)
    teacher, expected = SharedTeacher(network), network(x).detach()
    assert teacher.nbytes == bytes_each * sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.rand_like(parameter)
    assert teacher(x).equal(expected) and teacher(x).equal(expected)


def test_only_what_may_move_is_kept(ddpm):
    mask = random_mask(ddpm, 0.1)
    free, total = mask.selected, mask.total
    assert SharedTeacher(ddpm.network, mask).nbytes == pytest.approx(4 * free + total / 8, rel=0.01)
    assert 6 * SharedTeacher(ddpm.network, mask).nbytes < sum(p.nbytes for p in ddpm.frozen().network.parameters())


def test_autocast_and_the_compiled_call_do_not_reach_it():
    """A cached cast is of the student's weights; a compiled call is not what a frozen copy would run."""
    torch.manual_seed(0)
    network, x = nn.Linear(8, 4), torch.randn(3, 8)
    teacher = SharedTeacher(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(x).detach()
    with torch.no_grad():
        network.weight += 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(x)
        assert teacher(x).equal(expected)
        assert network(x).equal(student) and not student.equal(expected)
    network._compiled_call_impl = lambda *_: 1 / 0
    assert teacher(x).shape == (3, 4)


def test_a_twin_speaks_for_its_network(ddpm):
    twin, network = shared_teacher(ddpm)
    assert twin is not ddpm and twin.network is network and twin.num_classes == ddpm.num_classes
    assert network.config is ddpm.network.config and twin.device == ddpm.device and network.dtype == torch.float32
    images = [model.generate(torch.tensor([1]), [0], num_inference_steps=2) for model in (twin, ddpm)]
    assert images[0].equal(images[1])
    with pytest.raises(AttributeError):
        network.state_dict()


@pytest.mark.parametrize("name", ["salun", "random_label"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_method_ends_with_the_same_bits(name, precision, digits, task):
    hashes = set()
    for share in (False, True):
        model = tiny("ddpm")
        job = Job(task, digits.of_classes(task.forget), digits.of_classes(task.retain), random_mask(model))
        chosen = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": precision, "share_teacher": share}
        registry.load("methods", name)(**chosen).erase(model, job)
        hashes.add(model.hash)
    assert len(hashes) == 1
