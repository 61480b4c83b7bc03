"""Losses, on logits. Each is computed in float32, also where the model ran in a lower precision."""

from math import log, pi

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.checks import check_integers, check_range, check_same_shape

EPSILON = 1e-5  # of the Dice loss, as the assignment gives it


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels: -[t log p + (1 - t) log(1 - p)] with p = sigmoid(logit).

    Args:
        logits: any shape, unbounded.
        targets: same shape, values in [0, 1].

    Returns:
        A scalar in nats, 0 or more; NaN where a logit is.

    Raises:
        ValueError: for targets of another shape or range.
    """
    check_targets(logits, targets=targets)
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
        A scalar in [0, 1]; NaN where a logit is.

    Raises:
        ValueError: for targets of another shape or range.
    """
    check_targets(logits, targets=targets)
    logits, targets = logits.float(), targets.float()
    # exp(log sigmoid) keeps the gradient p (1 - p) alive where sigmoid itself has rounded to 0 or 1.
    p, not_p = F.logsigmoid(logits).exp(), F.logsigmoid(-logits).exp()
    disagreement = (p * (1 - targets) + not_p * targets).sum()
    return disagreement / (p.sum() + targets.sum() + EPSILON)


def bernoulli_loss(logits: Tensor, images: Tensor) -> Tensor:
    """Minus the log-likelihood of each image under independent Bernoulli pixels, summed over its pixels.

    -sum[x log p + (1 - x) log(1 - p)] with p = sigmoid(logit) (Kingma and Welling 2013, arXiv:1312.6114, appendix C.1).
    A grey pixel x counts as a share of white; the loss of grey images therefore has a floor above 0.

    Args:
        logits: (N, ...), unbounded.
        images: same shape, values in [0, 1].

    Returns:
        (N,), nats per image, 0 or more; NaN where a logit is.

    Raises:
        ValueError: for images of another shape or range.
    """
    check_targets(logits, images=images)
    pixels = F.binary_cross_entropy_with_logits(logits.float(), images.float(), reduction="none")
    return pixels.flatten(1).sum(1)


def gaussian_loss(logits: Tensor, images: Tensor, log_deviation: Tensor) -> Tensor:
    """Minus the log-likelihood of each image under independent Gaussian pixels, summed over channels and pixels.

    sum[(x - p)^2 / (2 s^2) + log s + log(2 pi) / 2] with the mean p = sigmoid(logit), which lies where pixels do, and
    one standard deviation s (Kingma and Welling 2013, arXiv:1312.6114, appendix C.2; one s for all pixels, learnt with
    the weights: Rybkin et al. 2021, arXiv:2006.13202, section 3). The logarithm of a density: it may be negative.

    Args:
        logits: (N, ...), unbounded.
        images: same shape, values in [0, 1].
        log_deviation: scalar, log s, where 1 is the whole range of a pixel.

    Returns:
        (N,), nats per image; NaN where a logit is.

    Raises:
        ValueError: for images of another shape or range.
    """
    check_targets(logits, images=images)
    errors = (logits.float().sigmoid() - images.float()).square().flatten(1)
    return errors.sum(1) * torch.exp(-2 * log_deviation) / 2 + errors.shape[1] * (log_deviation + log(2 * pi) / 2)


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) from N(0, 1), summed over the code: sum(mean^2 + var - 1 - log var) / 2.

    Kingma and Welling 2013 (arXiv:1312.6114), appendix B, with the sign turned; 0 at mean 0 and variance 1.

    Args:
        mean, log_variance: (N, latent size), unbounded.

    Returns:
        (N,), nats per image, 0 or more; NaN where a mean or log-variance is.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(means=mean, log_variances=log_variance)
    mean, log_variance = mean.float(), log_variance.float()
    # expm1 keeps var - 1 exact near var = 1, where the difference would round to a negative sum.
    return (mean**2 + torch.expm1(log_variance) - log_variance).sum(1) / 2


def check_targets(logits: Tensor, **targets: Tensor) -> None:
    """Refuse no pixels, targets of another shape, or outside 0..1 (boolean ones cannot be: a GPU need not wait)."""
    check_integers(pixels=logits.numel())
    check_same_shape(logits=logits, **targets)
    check_range(0, 1, **{name: target for name, target in targets.items() if target.is_floating_point()})
