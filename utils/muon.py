"""Muon: gradient descent that steps equally far in every direction of a convolution's weights (Jordan et al. 2024)."""

import torch
from torch import Tensor

from utils.checks import check_not_negative


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors, (M, N), whose singular values are all about 1: from 0.68 to 1.21.

    Those below a fiftieth of the Frobenius norm stay smaller. Three Newton-Schulz iterations of
    X <- a X + b (X X^T) X + c (X X^T)^2 X, with the coefficients of Jordan et al. 2024
    (https://kellerjordan.github.io/posts/muon, "Newton-Schulz iteration"), which rise fastest from zero. Each
    multiplies X by a polynomial P of G = X X^T, whereby G becomes P G P: only the small G is iterated, and X is
    multiplied by all three P at the end.

    Args:
        matrix: float (M, N).
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram, polynomials = wide @ wide.T, []
    for _ in range(3):
        if polynomials:
            gram = polynomials[-1] @ gram @ polynomials[-1]
        polynomials.append(torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315))
        polynomials[-1].diagonal().add_(3.4445)
    wide = torch.linalg.multi_dot([*polynomials, wide])  # of one matrix, they commute
    return wide if len(matrix) <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum (Sutskever et al. 2013, equations 3 and 4), orthogonalised for the weights of convolutions.

    Such a weight is a matrix with a row for each output channel (of a transposed convolution, for each input channel).
    Its gradient is mostly made of a few directions; when all singular values are one, the rare ones are learnt as fast.
    Each such weight is also kept at the length of an orthogonal matrix, so that a rate means the same turn throughout:
    for networks with normalisation, whose learnt scales make up for it. (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon, whose airbench does so.)

    Args:
        parameters: tensors to train; those with four dimensions are weights of convolutions.
        lr: learning rate.
        momentum: 0..1, of all parameters.
        weight_decay: share that the other parameters lose in each step, times the learning rate.

    Raises:
        ValueError: if one of the three is negative, or no finite number.
    """

    def __init__(self, parameters, lr: float, momentum: float, weight_decay: float):
        check_not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"]
                velocity.mul_(group["momentum"]).add_(parameter.grad)
                direction = parameter.grad + group["momentum"] * velocity
                if parameter.ndim == 4:
                    direction = orthogonalised(direction.flatten(1)).view_as(parameter)
                    parameter.mul_(min(len(parameter), parameter[0].numel()) ** 0.5 / parameter.norm())
                else:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction, alpha=group["lr"])
