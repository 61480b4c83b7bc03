"""Losses. Each is computed in float32, also where the model ran in a lower precision."""

from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_same_shape
from utils.classifiers import add_noise
from utils.data import to_unit

EPSILON = 1e-5  # of the Dice loss, as the assignment gives it


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels: -[t log p + (1 - t) log(1 - p)] with p = sigmoid(logit).

    Targets are in 0..1. A scalar in nats, 0 or more. ValueError unless they have the shape of the logits.
    """
    check_same_shape(logits=logits, targets=targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice loss over the flattened batch: 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e), e = 1e-5.

    The formula is the assignment's (the idea: Milletari et al. 2016, arXiv:1606.04797, section 3). It is evaluated as
    sum(p (1 - t) + (1 - p) t) / (sum(p) + sum(t) + e), which is the same number, but a quotient of sums that cannot be
    negative: rounding never takes the loss below 0. The sums run over the whole batch. Arguments and errors as in
    `bce_loss`; a scalar in 0..1.
    """
    check_same_shape(logits=logits, targets=targets)
    logits, targets = logits.float(), targets.float()
    # exp(log sigmoid) keeps the gradient p (1 - p) alive where sigmoid itself has rounded to 0 or 1.
    p, not_p = F.logsigmoid(logits).exp(), F.logsigmoid(-logits).exp()
    disagreement = (p * (1 - targets) + not_p * targets).sum()
    return disagreement / (p.sum() + targets.sum() + EPSILON)


def bernoulli_loss(logits: Tensor, images: Tensor) -> Tensor:
    """Minus the log-likelihood of each image under independent Bernoulli pixels: nats per image, (N,), 0 or more.

    -sum[x log p + (1 - x) log(1 - p)] with p = sigmoid(logit) (Kingma and Welling 2014, arXiv:1312.6114, appendix C.1).
    A grey pixel x counts as a share of white; the loss of grey images therefore has a floor above 0. Images are in
    0..1, (N, ...). ValueError unless they have the shape of the logits.
    """
    check_same_shape(logits=logits, images=images)
    pixels = F.binary_cross_entropy_with_logits(logits.float(), images.float(), reduction="none")
    return pixels.flatten(1).sum(1)


def gaussian_loss(logits: Tensor, images: Tensor, log_deviation: Tensor) -> Tensor:
    """Minus the log-density of each image under independent Gaussian pixels: nats per image, (N,); may be negative.

    sum[(x - p)^2 / (2 s^2) + log s + log(2 pi) / 2] with the mean p = sigmoid(logit), which lies where pixels do, and
    one standard deviation s (Kingma and Welling 2014, arXiv:1312.6114, appendix C.2; one s for all pixels, learnt with
    the weights: Rybkin et al. 2021, arXiv:2006.13202, section 3). `log_deviation` is the scalar log s, where 1 is the
    whole range of a pixel; the other arguments and the errors are those of `bernoulli_loss`.
    """
    check_same_shape(logits=logits, images=images)
    errors = (logits.float().sigmoid() - images.float()).square().flatten(1)
    return errors.sum(1) * torch.exp(-2 * log_deviation) / 2 + errors.shape[1] * (log_deviation + log(2 * pi) / 2)


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) from N(0, 1), summed over the code: sum(mean^2 + var - 1 - log var) / 2.

    Kingma and Welling 2014 (arXiv:1312.6114), appendix B, with the sign turned; 0 at mean 0 and variance 1. Both
    arguments are (N, latent size). Nats per image, (N,), 0 or more.
    """
    mean, log_variance = mean.float(), log_variance.float()
    # expm1 keeps var - 1 exact near var = 1, where the difference would round to a negative sum.
    return (mean**2 + torch.expm1(log_variance) - log_variance).sum(1) / 2


def elbo_terms(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Reconstruction loss, KL divergence and their sum (minus the ELBO): scalars, means in nats per image.

    Kingma and Welling 2014 (arXiv:1312.6114), equation 10 with one draw; arguments as in the forward pass.
    """
    logits, mean, log_variance = model(images, labels)
    reconstruction, kl = model.reconstruction_loss(logits, images).mean(), kl_loss(mean, log_variance).mean()
    return {"reconstruction": reconstruction, "kl": kl, "negative_elbo": reconstruction + kl}


def classifier_loss(
    classifier: nn.Module, batch: tuple[Tensor, Tensor], smoothing: float = 0.0, noise: float = 0.0
) -> dict[str, Tensor]:
    """Cross-entropy, mean in nats, of a batch of images uint8 (B, C, H, W) and labels int64 (B,), as `fit` wants it.

    `smoothing` is the share of the target that is spread over all classes (Szegedy et al. 2016, section 7), `noise` the
    greatest deviation of the noise put on the images (`add_noise`).
    """
    images = to_unit(batch[0])
    images = add_noise(images, noise) if noise else images  # no draw where there is none
    return {"loss": F.cross_entropy(classifier(images).float(), batch[1], label_smoothing=smoothing)}
