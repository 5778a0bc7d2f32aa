"""Softmax regression on digits in float64, whose gradients and Hessian are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from erasure.data import Dataset, load_dataset
from erasure.models import Model
from erasure.models.classifier import Classifier


class Exact(Classifier):
    """A classifier that never leaves float64."""

    def prepared(self, images: Tensor) -> Tensor:
        return super().prepared(images).double()

    def criterion(self, prediction: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(prediction, target, reduction="none")


def part(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Some samples of a data set."""
    return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])


def regression(seed: int = 0) -> Exact:
    """An untrained one."""
    digits = load_dataset("digits")
    info = {"channels": 1, "image_size": 8, "class_names": list(digits.class_names)}
    model = Exact.new("softmax-digits", info, seed)
    model.network.double()
    return model


def gradients_of(model: Model, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Each sample's gradient (n, 650), weights then biases, and the mean Hessian (650, 650)."""
    inputs = dataset.samples(np.arange(len(dataset))).flatten(1).double()
    with torch.no_grad():
        chances = model.network.classifier(inputs).softmax(1)
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    wrong = chances - nn.functional.one_hot(torch.from_numpy(dataset.labels), 10)
    gradients = torch.cat([torch.einsum("nk,nf->nkf", wrong, inputs).flatten(1), wrong], 1)
    # How the logits depend on the weights: the identity over classes, times the inputs or one.
    middle = torch.diag_embed(chances) - torch.einsum("nk,nl->nkl", chances, chances)
    wide = torch.cat([inputs, ones], 1)
    blocks = torch.einsum("nkl,nf,ng->kflg", middle, wide, wide) / len(inputs)
    order = torch.cat([torch.arange(650).view(10, 65)[:, :64].flatten(), torch.arange(650).view(10, 65)[:, 64]])
    return gradients, blocks.reshape(650, 650)[order][:, order]


def trained(model: Exact, dataset: Dataset, decay: float, steps: int = 12) -> Exact:
    """`model` at the minimum of the mean loss on `dataset` plus decay / 2 |theta|^2, by Newton's method."""
    weights = list(model.network.parameters())
    with torch.no_grad():
        for _ in range(steps):
            gradients, hessian = gradients_of(model, dataset)
            theta = torch.cat([w.flatten() for w in weights])
            slope = gradients.mean(0) + decay * theta
            theta -= torch.linalg.solve(hessian + decay * torch.eye(650, dtype=torch.float64), slope)
            nn.utils.vector_to_parameters(theta, weights)
    return model


def flat(model: Model) -> Tensor:
    """All weights as one vector, a copy."""
    return nn.utils.parameters_to_vector(model.network.parameters()).detach().clone()
