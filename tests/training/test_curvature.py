"""Products and solves against closed forms: softmax regression in float64, whose Hessian is known."""

import numpy as np
import pytest
import torch

from erasure.saliency.mask import Mask
from erasure.training import curvature
from erasure.training.curvature import (
    ConjugateGradients,
    SampleLosses,
    WeightSpace,
    damped_fisher,
    damped_hessian,
    dot,
    solve,
)
from tests.conftest import about, state_of, tiny
from tests.support.exact import gradients_of, part, regression, trained

DECAY = 0.01
EYE = torch.eye(650, dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted():
    digits = part(about("classifier")[0], np.arange(200))
    model = trained(regression(), digits, DECAY)
    losses = SampleLosses(model, WeightSpace(model.network), digits, 0, batch_size=64)
    return losses, *gradients_of(model, digits)


def drawn(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_products_equal_the_closed_forms(fitted):
    losses, gradients, hessian = fitted
    v = drawn(650)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(losses.hessian_product(v), hessian @ v, **close)
    torch.testing.assert_close(losses.products(v), gradients @ v, **close)
    torch.testing.assert_close(losses.fisher_product(v), gradients.T @ (gradients @ v) / 200, **close)
    torch.testing.assert_close(torch.cat(list(losses.gradients())), gradients, **close)
    torch.testing.assert_close(losses.gradient(), gradients.mean(0), **close)
    weights = drawn(200, 1)
    torch.testing.assert_close(losses.gradient(weights), (weights[:, None] * gradients).mean(0), **close)


def test_conjugate_gradients_equal_the_explicit_solve(fitted):
    losses, _, hessian = fitted
    v = drawn(650)
    found = solve(damped_hessian(losses, DECAY), v, 2000, 1e-10)
    torch.testing.assert_close(found, torch.linalg.solve(hessian + DECAY * EYE, v), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("held", [True, False])
def test_woodfisher_equals_the_explicit_inverse(fitted, held, monkeypatch):
    losses, gradients, _ = fitted
    monkeypatch.setattr(curvature, "KEPT_BYTES", 1 << 30 if held else 0)
    fisher, v = DECAY * EYE + gradients.T @ gradients / 200, drawn(650)
    found = solve(damped_fisher(losses, DECAY), v, 2000, 1e-11)
    torch.testing.assert_close(found, torch.linalg.inv(fisher) @ v, rtol=1e-6, atol=1e-7)


def test_conjugate_gradients_stop_where_the_matrix_is_not_positive():
    matrix = torch.diag(torch.tensor([2.0, 1.0, -5.0], dtype=torch.float64))
    state = ConjugateGradients.of(torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64))
    while state.step(lambda v: matrix @ v):
        kept = state.solution.clone()
    assert state.solution.equal(kept) and state.error > 0
    assert not ConjugateGradients.of(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).step(lambda v: matrix @ v)
    nothing = ConjugateGradients.of(torch.zeros(3))
    assert nothing.error == 0 and not nothing.step(lambda v: v)
    assert solve(lambda v: matrix.abs() @ v, torch.ones(3, dtype=torch.float64), 3, 0).tolist() == pytest.approx(
        [0.5, 1, 0.2]
    )


def test_a_mask_restricts_every_product_to_its_block(fitted):
    _, gradients, hessian = fitted
    digits = part(about("classifier")[0], np.arange(200))
    model = trained(regression(), digits, DECAY)
    mask = Mask.random(Mask(dict(model.network.named_parameters())), 0.3, 0)
    where = torch.cat([tensor.flatten() for tensor in mask.tensors.values()])
    space = WeightSpace(model.network, mask)
    losses = SampleLosses(model, space, digits, 0)
    v = drawn(space.size)
    torch.testing.assert_close(losses.hessian_product(v), hessian[where][:, where] @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat(list(losses.gradients())), gradients[:, where], rtol=1e-9, atol=1e-12)
    before = state_of(model)
    space.write(space.values() + 1)
    for name, tensor in model.network.state_dict().items():
        assert tensor.equal(before[name] + mask.tensors[name])


@pytest.mark.parametrize("kind", ["classifier", "ddpm", "sd1"])
def test_products_agree_with_gradients_on_every_family(kind):
    """Per-sample gradients come from forward passes of one sample; the products from a batch, differentiated twice."""
    model = tiny(kind)
    dataset, _ = about(kind)
    space = WeightSpace(model.network)
    model.network.train()
    losses = SampleLosses(model, space, dataset, 3, chosen=np.arange(4), batch_size=4)
    v = torch.randn(space.size, generator=torch.Generator().manual_seed(0))
    rows = torch.cat(list(losses.gradients()))
    torch.testing.assert_close(losses.products(v), rows @ v, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses.gradient(), rows.mean(0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses.fisher_product(v), rows.T @ (rows @ v) / 4, rtol=1e-2, atol=1e-3)
    slope = losses.gradient()
    first = dot(v, losses.hessian_product(slope))
    assert first == pytest.approx(dot(slope, losses.hessian_product(v)), rel=1e-2, abs=1e-4)
    assert losses.values().shape == (4,)
    assert model.network.training and all(p.requires_grad for p in model.network.parameters())
