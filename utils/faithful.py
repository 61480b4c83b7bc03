"""What a conditional VAE of photographs needs, beyond the evidence lower bound, to show the label that it is sent.

A discriminator, which asks whether a picture could be a real one of its class, and lookalikes, which say what to aim at
when there is no picture to reconstruct.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from utils.checks import check_integers, check_labels
from utils.cvae import elbo_terms
from utils.judge import moved, with_noise
from utils.labelled import CLASSES, LabelledSplit, to_unit
from utils.wrong_labels import draw_wrong

BLOCK = 8  # pixels: two pictures are alike if their means over such squares are
REACH = 3  # pixels by which pictures are moved before guide or discriminator sees them


class Discriminator(nn.Module):
    """Scores how real a picture is for its label: three strided convolutions and a projection on the label.

    Spectral normalisation keeps its slope in bounds (Miyato et al. 2018, arXiv:1802.05957); the score is
    w h + (V y) h for the features h and the one-hot label y (Miyato and Koyama 2018, arXiv:1802.05637, equation 3).

    Args:
        channels: of an image.
        base_channels: after the first convolution; doubled by each of the next two.

    Raises:
        ValueError: if one of the two is no positive integer.
    """

    def __init__(self, channels: int, base_channels: int):
        super().__init__()
        check_integers(channels=channels, base_channels=base_channels)
        widths = [channels, base_channels, 2 * base_channels, 4 * base_channels]
        layers = []
        for narrow, wide in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(narrow, wide, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.real = spectral_norm(nn.Linear(widths[-1], 1))
        self.fits = spectral_norm(nn.Linear(CLASSES, widths[-1], bias=False))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (N,), high for real, of images (N, C, H, W) in 0..1 and labels int64 (N,).

        Raises:
            ValueError: for labels of another shape, type or range.
        """
        check_labels(labels, len(images), CLASSES)
        features = 4 * self.features(images).mean((2, 3))  # (N, wide)
        one_hot = F.one_hot(labels, CLASSES).to(features.dtype)
        return self.real(features)[:, 0] + (features * self.fits(one_hot)).sum(1)


def adversarial_loss(
    discriminator: Discriminator,
    made: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    disturb,
    weight: float,
) -> Tensor:
    """The discriminator's loss, whose gradient trains it and, reversed and times `weight`, what made the images.

    Discriminator: softplus(s) for images made and softplus(-s) for real ones; maker: softplus(-s), the non-saturating
    loss (Goodfellow et al. 2014, arXiv:1406.2661, sections 3 and 4). Both come from one backward pass: at the images
    made the gradient is turned round (Ganin et al. 2016, arXiv:1505.07818, section 4) and multiplied by exp(-s), which
    is the ratio of the two losses' slopes.

    Args:
        discriminator: gives scores (N,).
        made: images (M, C, H, W) in 0..1 with a gradient, and the labels that they were to show, int64 (M,).
        real: images (N, C, H, W) and their labels (N,).
        disturb: done to all images, (M + N, C, H, W), on the way in.
        weight: of the maker's loss.

    Returns:
        A scalar in nats: 1.39, twice log 2, where the discriminator is at a loss.
    """
    count = len(made[0])
    entering = made[0] * 1.0  # a tensor of its own: the hook must not turn the gradients of other losses
    scores = discriminator(disturb(torch.cat([entering, real[0]])), torch.cat([made[1], real[1]]))
    turned = -weight * torch.exp(-scores[:count].detach().clamp(min=-10))[:, None, None, None]
    entering.register_hook(lambda gradient: gradient * turned)
    return F.softplus(scores[:count]).mean() + F.softplus(-scores[count:]).mean()


class Lookalikes:
    """For any picture and any class, the training picture of that class that is most like it in colours and layout.

    Two pictures are compared by their means over squares of 8 x 8 pixels.

    Args:
        split: where to look.

    Raises:
        ValueError: if it lacks a class.
    """

    def __init__(self, split: LabelledSplit):
        self.images = [split.images[split.labels == label] for label in range(CLASSES)]
        check_integers(**{f"images of class {label}": len(images) for label, images in enumerate(self.images)})
        self.layouts = [layout(images) for images in self.images]

    def find(self, images: Tensor, labels: Tensor) -> Tensor:
        """Uint8 (N, C, H, W): for each image, uint8 (N, C, H, W), its lookalike in the class of its label (N,).

        Raises:
            ValueError: for images or labels of another shape, type or range.
        """
        check_labels(labels, len(images), CLASSES)
        wanted = zip(labels.tolist(), layout(images))
        nearest = [(label, (self.layouts[label] - one).square().sum(1).argmin()) for label, one in wanted]
        return torch.stack([self.images[label][index] for label, index in nearest])


def faithful_loss(
    models: nn.ModuleDict,
    guide: nn.Module,
    lookalikes: Lookalikes,
    batch: LabelledSplit,
    weights: dict[str, float],
    rise: float,
    noise: float,
) -> dict[str, Tensor]:
    """The loss of the faithful model and its terms, means in nats per image.

    The whole batch goes into the evidence lower bound, under its right labels. A quarter of it is sent with a wrong
    label as well, and a quarter once more with the right one; on both, guide and discriminator have their say, and the
    former has a lookalike to aim at. Half of the batch is what the discriminator takes for real.

    Args:
        models: "vae", a ConditionalVAE, and "discriminator".
        guide: a frozen classifier that gives logits (N, 10).
        lookalikes: of the training images.
        batch: images uint8 (B, C, H, W) and labels int64 (B,).
        weights: of "guide", "adversary" and "lookalike"; a term of weight 0 is left out.
        rise: 0 to 1, a factor of all weights and of the KL divergence.
        noise: greatest deviation of the noise in which guide and discriminator see pictures.

    Returns:
        "loss" and all terms that it is made of, scalars.

    Raises:
        ValueError: for a batch of fewer than four, or images or labels of another shape, type or range.
    """
    check_integers(4, images=len(batch[0]))
    images, labels = to_unit(batch[0]), batch[1]
    part = len(labels) // 4
    terms = elbo_terms(models["vae"], images, labels)
    total = terms["reconstruction"] + rise * terms["kl"]
    sent = torch.cat([draw_wrong(labels[:part]), labels[part : 2 * part]])
    logits, _, _ = models["vae"](images[: 2 * part], sent)
    made = logits.sigmoid()
    if weights["guide"]:
        terms["guide"] = F.cross_entropy(guide(with_noise(moved(made, REACH), noise)).float(), sent)
        total = total + rise * weights["guide"] * terms["guide"]
    if weights["lookalike"]:
        wanted = to_unit(lookalikes.find(batch[0][:part], sent[:part]))
        terms["lookalike"] = models["vae"].reconstruction_loss(logits[:part], wanted).mean()
        total = total + rise * weights["lookalike"] * terms["lookalike"]
    if weights["adversary"]:
        real = images[2 * part :], labels[2 * part :]
        terms["discriminator"] = adversarial_loss(
            models["discriminator"],
            (made, sent),
            real,
            lambda shown: with_noise(moved(shown, REACH), noise),
            rise * weights["adversary"],
        )
        total = total + terms["discriminator"]
    return {"loss": total, **terms}


def layout(images: Tensor) -> Tensor:
    """Mean colour of each square of 8 x 8 pixels, (N, C * H / 8 * W / 8), of images uint8 (N, C, H, W)."""
    return F.avg_pool2d(to_unit(images), BLOCK).flatten(1)
