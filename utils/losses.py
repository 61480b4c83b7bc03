"""Losses, on logits. Each is computed in float32, also where the model ran in a lower precision."""

from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_integers, check_labels, check_range, check_same_shape
from utils.classifiers import add_noise, random_shift
from utils.data import CLASSES, Split, draw_wrong_labels, to_unit

EPSILON = 1e-5  # of the Dice loss, as the assignment gives it
BLOCK = 8  # pixels: two pictures are alike if their means over such squares are
REACH = 3  # pixels by which pictures are shifted before guide or discriminator sees them


# --- Segmentation -----------------------------------------------------------------------------------------------------


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels: -[t log p + (1 - t) log(1 - p)] with p = sigmoid(logit).

    Targets are in 0..1 and of the shape of the logits, or ValueError is raised. A scalar in nats, 0 or more.
    """
    check_targets(logits, targets=targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice loss over the flattened batch: 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e), e = 1e-5.

    The formula is the assignment's (the idea: Milletari et al. 2016, arXiv:1606.04797, section 3). It is evaluated as
    sum(p (1 - t) + (1 - p) t) / (sum(p) + sum(t) + e), which is the same number, but a quotient of sums that cannot be
    negative: rounding never takes the loss below 0. The sums run over the whole batch. Arguments and errors as in
    `bce_loss`; a scalar in 0..1.
    """
    check_targets(logits, targets=targets)
    logits, targets = logits.float(), targets.float()
    # exp(log sigmoid) keeps the gradient p (1 - p) alive where sigmoid itself has rounded to 0 or 1.
    p, not_p = F.logsigmoid(logits).exp(), F.logsigmoid(-logits).exp()
    disagreement = (p * (1 - targets) + not_p * targets).sum()
    return disagreement / (p.sum() + targets.sum() + EPSILON)


def check_targets(logits: Tensor, **targets: Tensor) -> None:
    """Refuse no pixels, targets of another shape, or outside 0..1 (boolean ones cannot be: a GPU need not wait)."""
    check_integers(pixels=logits.numel())
    check_same_shape(logits=logits, **targets)
    check_range(0, 1, **{name: target for name, target in targets.items() if target.is_floating_point()})


# --- The evidence lower bound -----------------------------------------------------------------------------------------


def bernoulli_loss(logits: Tensor, images: Tensor) -> Tensor:
    """Minus the log-likelihood of each image under independent Bernoulli pixels: nats per image, (N,), 0 or more.

    -sum[x log p + (1 - x) log(1 - p)] with p = sigmoid(logit) (Kingma and Welling 2013, arXiv:1312.6114, appendix C.1).
    A grey pixel x counts as a share of white; the loss of grey images therefore has a floor above 0. Images are in 0..1
    and of the shape of the logits (N, ...), or ValueError is raised.
    """
    check_targets(logits, images=images)
    pixels = F.binary_cross_entropy_with_logits(logits.float(), images.float(), reduction="none")
    return pixels.flatten(1).sum(1)


def gaussian_loss(logits: Tensor, images: Tensor, log_deviation: Tensor) -> Tensor:
    """Minus the log-density of each image under independent Gaussian pixels: nats per image, (N,); may be negative.

    sum[(x - p)^2 / (2 s^2) + log s + log(2 pi) / 2] with the mean p = sigmoid(logit), which lies where pixels do, and
    one standard deviation s (Kingma and Welling 2013, arXiv:1312.6114, appendix C.2; one s for all pixels, learnt with
    the weights: Rybkin et al. 2021, arXiv:2006.13202, section 3). `log_deviation` is the scalar log s, where 1 is the
    whole range of a pixel; the other arguments and the errors are those of `bernoulli_loss`.
    """
    check_targets(logits, images=images)
    errors = (logits.float().sigmoid() - images.float()).square().flatten(1)
    return errors.sum(1) * torch.exp(-2 * log_deviation) / 2 + errors.shape[1] * (log_deviation + log(2 * pi) / 2)


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) from N(0, 1), summed over the code: sum(mean^2 + var - 1 - log var) / 2.

    Kingma and Welling 2013 (arXiv:1312.6114), appendix B, with the sign turned; 0 at mean 0 and variance 1. Both
    arguments are (N, latent size), or ValueError is raised. Nats per image, (N,), 0 or more.
    """
    check_same_shape(means=mean, log_variances=log_variance)
    mean, log_variance = mean.float(), log_variance.float()
    # expm1 keeps var - 1 exact near var = 1, where the difference would round to a negative sum.
    return (mean**2 + torch.expm1(log_variance) - log_variance).sum(1) / 2


def elbo_terms(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Reconstruction loss, KL divergence and their sum, minus the ELBO: scalars, means in nats per image.

    Kingma and Welling 2013 (arXiv:1312.6114), equation 10 with one draw; arguments as in the forward pass.
    """
    logits, mean, log_variance = model(images, labels)
    reconstruction, kl = model.reconstruction_loss(logits, images).mean(), kl_loss(mean, log_variance).mean()
    return {"reconstruction": reconstruction, "kl": kl, "negative_elbo": reconstruction + kl}


# --- Classifiers, and what they teach ---------------------------------------------------------------------------------


def classifier_loss(
    classifier: nn.Module, batch: tuple[Tensor, Tensor], smoothing: float = 0.0, noise: float = 0.0
) -> dict[str, Tensor]:
    """Cross-entropy, mean in nats, of a batch of images uint8 (B, C, H, W) and labels int64 (B,), as `fit` wants it.

    `smoothing` is the share of the target that is spread over all classes (Szegedy et al. 2016, section 7), `noise` the
    greatest deviation of the noise put on the images (`add_noise`).
    """
    images, labels = to_unit(batch[0]), batch[1]
    check_integers(images=len(images))
    check_labels(labels, len(images), CLASSES)
    if noise:
        images = add_noise(images, noise)
    return {"loss": F.cross_entropy(classifier(images).float(), labels, label_smoothing=smoothing)}


def guide_loss(model: nn.Module, guide: nn.Module, images: Tensor, sent: Tensor) -> Tensor:
    """How badly a frozen classifier reads the labels sent off what the model makes: mean cross-entropy in nats.

    The labels, int64 (N,), right or wrong, go to the whole model with the images, float (N, C, H, W) in 0..1. The
    gradient passes through the guide, in evaluation mode and with weights that require none, to the model. (The
    classification loss of AC-GAN's generator, Odena et al. 2016, arXiv:1610.09585, equation 3.)
    """
    logits, _, _ = model(images, sent)
    return F.cross_entropy(guide(logits.sigmoid()).float(), sent)


def adversarial_loss(
    discriminator: nn.Module, made: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor], noise: float, weight: float
) -> Tensor:
    """The discriminator's loss, whose gradient trains it and, reversed and times `weight`, what made the images.

    Discriminator: softplus(s) for images made and softplus(-s) for real ones; maker: softplus(-s), the non-saturating
    loss (Goodfellow et al. 2014, arXiv:1406.2661, sections 3 and 4). Both come from one backward pass: at the images
    made the gradient is reversed (Ganin et al. 2016, arXiv:1505.07818, section 4) and multiplied by exp(-s), which is
    the ratio of the two losses' slopes. A scalar in nats: 1.39, twice log 2, where the discriminator is at a loss.

    Args:
        discriminator: gives scores s (N,).
        made: images (M, C, H, W) in 0..1 with a gradient, and the labels that they were to show, int64 (M,).
        real: images (N, C, H, W) and their labels (N,).
        noise: greatest deviation of the noise in which all images are seen, shifted at random.
        weight: of the maker's loss.
    """
    count = len(made[0])
    entering = made[0] * 1.0  # a tensor of its own: the hook must not reverse the gradients of other losses
    shown = add_noise(random_shift(torch.cat([entering, real[0]]), REACH), noise)
    scores = discriminator(shown, torch.cat([made[1], real[1]]))
    factor = -weight * torch.exp(-scores[:count].detach().clamp(min=-10))[:, None, None, None]
    entering.register_hook(lambda gradient: gradient * factor)
    return F.softplus(scores[:count]).mean() + F.softplus(-scores[count:]).mean()


class Lookalikes:
    """For a picture and a class, the class's training picture that is nearest in colours and layout.

    Pictures are compared by their means over squares of 8 x 8 pixels. ValueError if the split lacks a class.
    """

    def __init__(self, split: Split):
        self.images = [split.images[split.targets == label] for label in range(CLASSES)]
        check_integers(**{f"images of class {label}": len(images) for label, images in enumerate(self.images)})
        self.layouts = [self.layout(images) for images in self.images]

    def find(self, images: Tensor, labels: Tensor) -> Tensor:
        """For each image, uint8 (N, C, H, W), its nearest neighbour in the class of its label (N,): the same shape."""
        check_labels(labels, len(images), CLASSES)
        wanted = zip(labels.tolist(), self.layout(images))
        nearest = [(label, (self.layouts[label] - one).square().sum(1).argmin()) for label, one in wanted]
        return torch.stack([self.images[label][index] for label, index in nearest])

    @staticmethod
    def layout(images: Tensor) -> Tensor:
        """Mean colour of each square, (N, C * H / 8 * W / 8), of images uint8 (N, C, H, W)."""
        return F.avg_pool2d(to_unit(images), BLOCK).flatten(1)


class Teachers(NamedTuple):
    """What teaches a model of photographs to follow its label."""

    guide: nn.Module  # a frozen classifier that gives logits (N, 10)
    noise: float  # greatest deviation of the noise in which guide and discriminator see pictures
    lookalikes: Lookalikes  # of the training images


def label_following_loss(
    models: nn.ModuleDict, batch: tuple[Tensor, Tensor], teachers: Teachers, weights: dict[str, float], warmup: float
) -> dict[str, Tensor]:
    """The loss of the label-following model of photographs and its terms, means in nats per image.

    The whole batch goes into the ELBO, under its right labels; what the other terms see says `label_terms`.

    Args:
        models: "vae", a ConditionalVAE, and "discriminator".
        batch: images uint8 (B, C, H, W) and labels int64 (B,), at least four.
        teachers: the guide, its noise, and the lookalikes.
        weights: of "guide", "discriminator" and "lookalike"; a term of weight 0 is left out.
        warmup: 0 to 1, a factor of all weights and of the KL divergence.
    """
    terms = elbo_terms(models["vae"], to_unit(batch[0]), batch[1])
    terms |= label_terms(models, batch, teachers, weights, warmup)
    total = terms["reconstruction"] + warmup * terms["kl"]
    for name in ("guide", "lookalike"):
        if weights[name]:
            total = total + warmup * weights[name] * terms[name]
    if weights["discriminator"]:
        total = total + terms["discriminator"]  # its weight reverses in the gradient: see adversarial_loss
    return {"loss": total, **terms}


def label_terms(
    models: nn.ModuleDict, batch: tuple[Tensor, Tensor], teachers: Teachers, weights: dict[str, float], warmup: float
) -> dict[str, Tensor]:
    """What guide, lookalikes and discriminator say of outputs sent with a label; those of weight 0 are left out.

    A quarter of the batch is sent with a wrong label, and a quarter once more with the right one; guide and
    discriminator look at both, and those with a wrong label have a lookalike to aim at. The other half of the batch is
    what the discriminator takes for real. Arguments and errors as in `label_following_loss`.
    """
    check_integers(4, images=len(batch[0]))
    (images, labels), part, terms = batch, len(batch[1]) // 4, {}
    sent = torch.cat([draw_wrong_labels(labels[:part]), labels[part : 2 * part]])
    logits, _, _ = models["vae"](to_unit(images[: 2 * part]), sent)
    outputs = logits.sigmoid()
    if weights["guide"]:
        shown = add_noise(random_shift(outputs, REACH), teachers.noise)
        terms["guide"] = F.cross_entropy(teachers.guide(shown).float(), sent)
    if weights["lookalike"]:
        wanted = to_unit(teachers.lookalikes.find(images[:part], sent[:part]))
        terms["lookalike"] = models["vae"].reconstruction_loss(logits[:part], wanted).mean()
    if weights["discriminator"]:
        made, real = (outputs, sent), (to_unit(images[2 * part :]), labels[2 * part :])
        weight = warmup * weights["discriminator"]
        terms["discriminator"] = adversarial_loss(models["discriminator"], made, real, teachers.noise, weight)
    return terms
