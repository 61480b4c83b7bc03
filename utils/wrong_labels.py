"""What a conditional VAE makes of images that come with a wrong label, measured over all pairs of image and label.

Two protocols. *Literal*: the wrong label goes to the whole model, as the assignment says. *Swap*: the encoder is told
the true label, the decoder the wrong one. A code is the mean of q(z | image, label), not a draw: nothing is random.
"""

from collections.abc import Callable
from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_integers, check_labels, check_same_shape
from utils.cvae import ConditionalVAE
from utils.judge import read
from utils.labelled import CLASSES
from utils.losses import kl_loss

CANDIDATES = 100  # among so many a source has to be found again
BATCH = 500


def draw_wrong(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each label int64 (N,) one of the nine others, all equally likely: int64 (N,), never the label itself.

    Raises:
        ValueError: for labels of another shape, type or range.
    """
    check_labels(labels, len(labels), CLASSES)
    shift = torch.randint(1, CLASSES, labels.shape, generator=generator, device=labels.device)
    return (labels + shift) % CLASSES


@torch.inference_mode()
def encode(model: ConditionalVAE, images: Tensor, labels: Tensor) -> Tensor:
    """Codes (N, latent size) of float images (N, C, H, W) in 0..1, with labels int64 (N,) for an encoder that asks.

    Raises:
        ValueError: for images or labels of another shape, type or range.
    """
    check_labels(labels, len(images), CLASSES)
    model.eval()
    batches = zip(images.split(BATCH), labels.split(BATCH))
    return torch.cat([model.encode(some, theirs)[0] for some, theirs in batches])


@torch.inference_mode()
def decode(model: ConditionalVAE, codes: Tensor, labels: Tensor) -> Tensor:
    """Images in 0..1 (N, C, H, W), the decoder's pixel probabilities, of codes (N, latent size) and labels (N,).

    Raises:
        ValueError: for codes or labels of another shape, type or range.
    """
    check_labels(labels, len(codes), CLASSES)
    model.eval()
    return torch.cat([model.decode(*both).sigmoid() for both in zip(codes.split(BATCH), labels.split(BATCH))])


@torch.inference_mode()
def evidence(model: ConditionalVAE, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Minus the evidence lower bound and its two parts: means in nats per image, with one drawn code each.

    Args:
        model: on the device of the images.
        images: float (N, C, H, W) in 0..1.
        labels: int64 (N,), the true ones.

    Raises:
        ValueError: if there is no image, or for images or labels of another shape, type or range.
    """
    check_integers(images=len(images))
    check_labels(labels, len(images), CLASSES)
    model.eval()
    parts = []
    for some, theirs in zip(images.split(BATCH), labels.split(BATCH)):
        logits, mean, log_variance = model(some, theirs)
        parts.append(torch.stack([model.reconstruction_loss(logits, some), kl_loss(mean, log_variance)]))
    reconstruction, kl = torch.cat(parts, dim=1).double().mean(1).tolist()
    return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}


def obedience(
    model: ConditionalVAE,
    judge: nn.Module,
    images: Tensor,
    labels: Tensor,
    qualities: dict[str, Callable[[Tensor], Tensor]],
    guide: nn.Module | None = None,
) -> dict[str, float]:
    """Send every image with every label, and measure what comes out.

    Args:
        model, judge: on the device of the images; the judge gives logits (N, 10).
        images: float (N, C, H, W) in 0..1; N is a multiple of 100.
        labels: int64 (N,), the true ones.
        qualities: by name, a function of images (N, C, H, W) that gives one number or more for each, (N,) or (N, K).
        guide: the classifier that took part in training, if any: what it reads is told apart as `guide_agreement`.

    Returns:
        Shares in 0..1 over the 9 N wrong pairs: `wrong_label_agreement` (literal: the judge reads the label sent),
        `swap_agreement`, `true_class_kept` (literal: it still reads the true class) and `style_retention` (see
        `found_again`). Over the N right ones: `own_label_agreement`. And for each quality `..._kept`: its rank
        correlation between source and output (literal), mean over the labels sent, in -1..1.

    Raises:
        ValueError: if N is not a multiple of 100, or all labels are the same.
    """
    check_integers(2, different_labels=len(labels.unique()))
    true_codes, shares = encode(model, images, labels), {}
    for label in range(CLASSES):
        sent, wrong = torch.full_like(labels, label), labels != label
        codes = encode(model, images, sent)
        outputs = decode(model, codes, sent)
        readings = read(judge, outputs)
        found = found_again(encode(model, outputs, sent), codes)
        told = not torch.equal(codes, true_codes)  # an encoder that is not told the label makes both protocols one
        swapped = read(judge, decode(model, true_codes, sent)) if told else readings
        rows = {
            "wrong_label_agreement": (readings == label)[wrong],
            "swap_agreement": (swapped == label)[wrong],
            "true_class_kept": (readings == labels)[wrong],
            "own_label_agreement": (readings == label)[~wrong],
            "style_retention": found[wrong],
        }
        if guide is not None:
            rows["guide_agreement"] = (read(guide, outputs) == label)[wrong]
        for name, quality in qualities.items():
            pairs = zip(*(quality(some[wrong]).view(len(labels[wrong]), -1).T for some in (images, outputs)))
            rows[f"{name}_kept"] = torch.stack([rank_correlation(*pair) for pair in pairs])
        for name, row in rows.items():
            shares.setdefault(name, []).append(row.double())
    return {name: torch.cat(rows).mean().item() for name, rows in shares.items()}


def found_again(codes: Tensor, sources: Tensor) -> Tensor:
    """Whether each output's code is nearer (Euclidean) to its own source's than to those of 99 others: bool (N,).

    The candidates are the sources in the same hundred of rows; chance is 1 %. Output and candidates are encoded with
    the same label, so that the label gives nothing away.

    Args:
        codes: (N, latent size), of the outputs.
        sources: (N, latent size), of their sources, row by row.

    Raises:
        ValueError: if N is not a multiple of 100, or the shapes differ.
    """
    check_same_shape(codes=codes, sources=sources)
    if len(codes) % CANDIDATES:
        raise ValueError(f"{len(codes)} images: style retention needs a multiple of {CANDIDATES}")
    hundreds = (part.unflatten(0, (-1, CANDIDATES)) for part in (codes, sources))  # (N / 100, 100, latent size)
    nearest = torch.cdist(*hundreds).argmin(dim=2)  # (N / 100, 100)
    return (nearest == torch.arange(CANDIDATES, device=codes.device)).flatten()


def leakage(known: Tensor, labels: Tensor, codes: Tensor, answers: Tensor) -> float:
    """How well a linear classifier, fitted by least squares, reads the class off the code: share in 0..1, chance 0.1.

    Args:
        known, labels: codes (M, latent size) and labels (M,) to fit.
        codes, answers: others, to be read.

    Raises:
        ValueError: if there are no codes, or for labels of another shape, type or range.
    """
    check_integers(known=len(known), codes=len(codes))
    check_labels(labels, len(known), CLASSES)
    check_labels(answers, len(codes), CLASSES)
    design, asked = (F.pad(part.double(), (0, 1), value=1.0) for part in (known, codes))  # a column of ones
    weights = torch.linalg.lstsq(design, F.one_hot(labels, CLASSES).double()).solution
    return ((asked @ weights).argmax(1) == answers).double().mean().item()


def telling_plane(codes: Tensor, labels: Tensor) -> Tensor:
    """Codes (N, latent size) on the plane where the classes lie farthest apart, in units of the deviation: (N, 2).

    Linear discriminants (Fisher 1936): whiten the codes, then take the first two principal directions of class means.

    Raises:
        ValueError: if there are fewer than two classes or numbers in a code, or for labels of another shape or range.
    """
    check_labels(labels, len(codes), CLASSES)
    check_integers(2, classes=len(labels.unique()), latent_size=codes.shape[1])
    centred = codes.double() - codes.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(codes))
    white = centred @ vectors / values.clamp(min=1e-9).sqrt()
    means = torch.stack([white[labels == label].mean(0) for label in labels.unique()])  # (classes, latent size)
    return white @ torch.linalg.svd(means, full_matrices=False).Vh[:2].T


# --- Qualities of a digit ---------------------------------------------------------------------------------------------


def thickness(images: Tensor) -> Tensor:
    """Width of the stroke in pixels, (N,), of float images (N, 1, H, W) in 0..1: twice the ink over its outline.

    A stroke of width w and length l has the area w l and an outline of 2 (w + l), so this is a bit less than w. The
    length of the outline is the total variation, the sum of all gradients' lengths (Rudin, Osher and Fatemi 1992).
    """
    padded = F.pad(images, (1, 1, 1, 1))
    across = padded[..., :-1, 1:] - padded[..., :-1, :-1]
    down = padded[..., 1:, :-1] - padded[..., :-1, :-1]
    outline = torch.hypot(across, down).flatten(1).sum(1)
    return 2 * images.flatten(1).sum(1) / outline.clamp(min=1e-6)


def slant(images: Tensor) -> Tensor:
    """Shear of the ink, (N,), of float images (N, 1, H, W): pixels to the right for each pixel up, -mu11 / mu02.

    By the central moments of the image, as in Morpho-MNIST (Castro et al. 2019, arXiv:1809.10780).
    """
    ink = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True).clamp(min=1e-6)  # (N, H, W), sums to 1
    rows, columns = (torch.arange(side, dtype=ink.dtype, device=ink.device) for side in ink.shape[1:])
    y = rows[:, None] - (ink.sum(2) @ rows)[:, None, None]  # (N, H, 1), from the centre of the ink
    x = columns - (ink.sum(1) @ columns)[:, None, None]  # (N, 1, W)
    return -(ink * x * y).sum((1, 2)) / (ink * y**2).sum((1, 2)).clamp(min=1e-6)


# --- Qualities of a picture -------------------------------------------------------------------------------------------


def colour(images: Tensor) -> Tensor:
    """Mean of each channel, (N, C) in 0..1, of float images (N, C, H, W) in 0..1."""
    return images.mean((2, 3))


def peak_signal_to_noise(sources: Tensor, outputs: Tensor) -> Tensor:
    """PSNR of each output in dB, (N,): -10 log10 of its mean squared error, of float images (N, C, H, W) in 0..1.

    Infinite where nothing differs.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(sources=sources, outputs=outputs)
    return -10 * (outputs - sources).square().flatten(1).mean(1).log10()


def bits_per_dimension(nats: float, image_shape: tuple[int, ...]) -> float:
    """Bits for each of the C * H * W values of an image, each rounded to one of 256 levels in 0..1.

    From minus a log-density in nats per image: nats / (C H W log 2) + log2(256), since the density is taken to be the
    same all over one level, 1/256 wide (Theis, van den Oord and Bethge 2016, arXiv:1511.01844, section 3.1).
    """
    return nats / (prod(image_shape) * log(2)) + 8


# --- Statistics -------------------------------------------------------------------------------------------------------


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation (1904) of two rows of numbers, (N,) each: a scalar in -1..1; ties by place.

    Raises:
        ValueError: if there are fewer than two numbers in a row, or not as many in both.
    """
    check_same_shape(one=one, other=other)
    check_integers(2, numbers=len(one))
    ranks = torch.stack([row.argsort(stable=True).argsort().double() for row in (one, other)])
    return torch.corrcoef(ranks)[0, 1]
