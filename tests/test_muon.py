"""Muon: against singular values, by hand, and against torch's own implementation where it has one."""

import pytest
import torch
from torch import nn

from utils.muon import Muon, orthogonalised


def test_singular_values_become_nearly_one_and_the_vectors_stay():
    torch.manual_seed(0)
    for shape in ((6, 40), (40, 6), (8, 8)):
        u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
        values = torch.linspace(1, 4, min(shape), dtype=torch.float64)
        result = u.T @ orthogonalised(u * values @ v) @ v.T  # diagonal if the vectors are the same
        assert result.diagonal().min() > 0.68
        assert result.diagonal().max() < 1.21
        torch.testing.assert_close(result, result.diagonal().diag(), atol=1e-9, rtol=0)


def test_one_iteration_after_the_other_by_hand():
    """Of a single singular value only the sum of the coefficients counts: x -> a x + b x^3 + c x^5 from x = 1."""
    x = 1.0
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(orthogonalised(torch.tensor([[0.0, 5.0], [0.0, 0.0]])), torch.tensor([[0.0, x], [0, 0]]))


def test_a_gradient_of_nothing_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_filters_keep_an_orthogonal_matrix_length_and_turn_by_the_rate():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, bias=False)
    optimiser = Muon(layer.parameters(), lr=1e-3, momentum=0.6, weight_decay=0.0)
    layer(torch.randn(2, 3, 6, 6)).square().sum().backward()
    before = layer.weight.detach() * 8**0.5 / layer.weight.detach().norm()
    optimiser.step()
    step = (before - layer.weight.detach()).flatten(1) / 1e-3
    gradient = layer.weight.grad.flatten(1)
    torch.testing.assert_close(step, orthogonalised(1.6 * gradient), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close((step * gradient).sum(), gradient.norm(p="nuc"), atol=0, rtol=0.35)  # steepest descent


def test_other_parameters_descend_as_torchs_sgd_does():
    torch.manual_seed(0)
    ours = nn.Linear(4, 3)
    theirs = nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    pairs = [
        (ours, Muon(ours.parameters(), lr=0.1, momentum=0.8, weight_decay=0.0)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8, nesterov=True)),
    ]
    for _ in range(5):
        inputs = torch.randn(6, 4)
        for layer, optimiser in pairs:
            optimiser.zero_grad()
            layer(inputs).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_decay_by_hand_and_what_has_no_gradient_stays():
    weight, still = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([5.0]))
    optimiser = Muon([weight, still], lr=0.5, momentum=0.0, weight_decay=0.2)
    weight.grad = torch.tensor([1.0])
    optimiser.step()
    assert weight.item() == pytest.approx(2 * (1 - 0.5 * 0.2) - 0.5)
    assert still.item() == 5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_filters_descend_as_torchs_muon_does():
    """Torch's is for matrices, in bfloat16, and does not fix the length: one step, compared with that tolerance."""
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 20), torch.randn(6, 20)
    start *= 6**0.5 / start.norm()
    ours, theirs = nn.Parameter(start.view(6, 5, 2, 2).clone()), nn.Parameter(start.clone())
    ours.grad, theirs.grad = gradient.view(6, 5, 2, 2).clone(), gradient.clone()
    Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.0, ns_steps=3).step()
    torch.testing.assert_close(ours.detach().flatten(1), theirs.detach(), atol=5e-3, rtol=0)
