"""Losses, on logits. Each is computed in float32, also where the model ran in a lower precision."""

from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5  # of the Dice loss, as the assignment gives it


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels: -[t log p + (1 - t) log(1 - p)] with p = sigmoid(logit).

    Args:
        logits: any shape, unbounded.
        targets: same shape, values in [0, 1].

    Returns:
        A scalar in nats, 0 or more.
    """
    check_same_shape(logits, targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice loss over the flattened batch: 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e), e = 1e-5.

    The formula is the assignment's (the idea: Milletari et al. 2016, arXiv:1606.04797, section 3). It is evaluated as
    sum(p (1 - t) + (1 - p) t) / (sum(p) + sum(t) + e), which is the same number, but a quotient of sums that cannot be
    negative: rounding never takes the loss below 0. The sums run over the whole batch, so an image with an empty mask
    still gets a gradient from its neighbours' denominator.

    Args:
        logits: any shape, unbounded.
        targets: same shape, values in [0, 1].

    Returns:
        A scalar in [0, 1].
    """
    check_same_shape(logits, targets)
    logits, targets = logits.float(), targets.float()
    # exp(log sigmoid) keeps the gradient p (1 - p) alive where sigmoid itself has rounded to 0 or 1.
    p, not_p = F.logsigmoid(logits).exp(), F.logsigmoid(-logits).exp()
    disagreement = (p * (1 - targets) + not_p * targets).sum()
    return disagreement / (p.sum() + targets.sum() + EPSILON)


def check_same_shape(logits: Tensor, targets: Tensor) -> None:
    """Refuse what broadcasting would silently accept."""
    if logits.shape != targets.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, targets {tuple(targets.shape)}: they must be equal")
