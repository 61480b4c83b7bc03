"""Scores: of masks (IoU, Dice, pixel accuracy), and of what a conditional VAE makes of a wrong label.

Segmentation scores 'over the whole set' add up the pixel counts of all images before dividing, so that a large pet
weighs more than a small one; `iou_per_image` divides for each image and then averages. 'Border ignored' leaves out the
trimap's border.

A wrong label is sent by one of two protocols. *Literal*: the whole model gets it, as the assignment says. *Swap*: the
encoder sees the true label, the decoder the wrong one. A code is the mean of q(z | image, label): nothing is random.
"""

from collections.abc import Callable
from statistics import mean
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_labels, check_same_shape
from utils.classifiers import in_parts, predict_labels
from utils.cvae import ConditionalVAE
from utils.data import BORDER, CLASSES, foreground, normalise
from utils.losses import kl_loss
from utils.training import mixed_precision

THRESHOLD = 0.5  # a pixel is foreground where its probability is at least this
BATCH = 500  # images that a conditional VAE encodes or decodes at a time


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Foreground probabilities, float32 (N, 1, H, W) in 0..1 on the CPU, of uint8 images (N, 3, H, W)."""
    device = next(model.eval().parameters()).device
    with mixed_precision(device):  # as in training
        return in_parts(lambda part: model(normalise(part.to(device))).float().sigmoid().cpu(), images, size=32)


def predict_two_views(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities as `predict` gives them, and their mean over the image and its mirror (test-time augmentation)."""
    plain, mirrored = predict(model, images), predict(model, images.flip(-1))
    return plain, mirrored.flip(-1).add_(plain).div_(2)  # in place: half the memory


def confusion(predicted: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Pixel counts of each image, int64 (N, 4): true positives, false positives, false negatives, true negatives.

    All masks are bool (N, ...) of one shape, else ValueError is raised; `counted` is False for pixels to leave out.
    """
    counted = torch.ones_like(target) if counted is None else counted
    check_same_shape(predicted=predicted, target=target)
    check_same_shape(counted=counted, target=target)
    if {predicted.dtype, target.dtype} != {torch.bool}:
        remedy = "set a threshold, or take the foreground of trimaps"
        raise ValueError(f"masks are {predicted.dtype} and {target.dtype}, expected torch.bool: {remedy}")
    return in_parts(count_cells, predicted, target, counted, size=256)  # to add up bools, torch makes an int64 of each


def count_cells(predicted: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """tp, fp, fn and tn of masks, bool (N, ...): int64 (N, 4)."""
    cells = (predicted & target, predicted & ~target, ~predicted & target, ~predicted & ~target)
    return torch.stack([(cell & counted).flatten(1).sum(1) for cell in cells], dim=1)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union (Jaccard 1912), tp / (tp + fp + fn), of counts (..., 4); 1 where both are empty."""
    tp, fp, fn, _ = counts.double().unbind(-1)
    return share(tp, tp + fp + fn)


def dice(counts: Tensor) -> Tensor:
    """Dice coefficient (Dice 1945), 2 tp / (2 tp + fp + fn), of counts (..., 4); 1 where both are empty."""
    tp, fp, fn, _ = counts.double().unbind(-1)
    return share(2 * tp, 2 * tp + fp + fn)


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of pixels that are right, (tp + tn) / all, of counts (..., 4); 1 where no pixel is counted."""
    tp, fp, fn, tn = counts.double().unbind(-1)
    return share(tp + tn, tp + fp + fn + tn)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Part over whole; 1 where the whole is 0."""
    return torch.where(whole > 0, part / whole, 1.0)


def segmentation_scores(predicted: Tensor, trimaps: Tensor) -> dict[str, float]:
    """All scores of masks, bool (N, 1, H, W), against trimaps, uint8 (N, 1, H, W) in {1, 2, 3}; each in 0..1."""
    target = foreground(trimaps)
    counts = confusion(predicted, target)
    whole, inside = counts.sum(0), confusion(predicted, target, counted=trimaps != BORDER).sum(0)
    return {
        "iou": iou(whole).item(),
        "dice": dice(whole).item(),
        "pixel_accuracy": pixel_accuracy(whole).item(),
        "iou_per_image": iou(counts).mean().item(),
        "iou_border_ignored": iou(inside).item(),
    }


def effect_by_seed(scores: dict[tuple[str, int], float], before: str, after: str) -> dict[int, float]:
    """The main effect of a factor: how a score changes if `after` stands for `before` in a variant's name.

    `scores` are those of all variants, such as "MP+Tr+BCE", with each seed. For each seed, the mean over all pairs of
    variants that differ in nothing else (Montgomery, *Design and Analysis of Experiments*, on 2^k factorial designs).
    """
    differences = {}
    for (variant, seed), score in scores.items():
        parts = variant.split("+")
        if before in parts:
            partner = "+".join(after if part == before else part for part in parts)
            differences.setdefault(seed, []).append(scores[partner, seed] - score)
    return {seed: mean(each) for seed, each in differences.items()}


def encode(model: ConditionalVAE, images: Tensor, labels: Tensor) -> Tensor:
    """Codes (N, latent size) of float images (N, C, H, W) in 0..1 and labels int64 (N,), which the encoder may see."""
    model.eval()
    return in_parts(lambda *batch: model.encode(*batch)[0], images, labels, size=BATCH)


def decode(model: ConditionalVAE, codes: Tensor, labels: Tensor) -> Tensor:
    """Images in 0..1 (N, C, H, W), the sigmoid of the decoder's logits, of codes (N, latent size) and labels (N,)."""
    model.eval()
    return in_parts(lambda *batch: model.decode(*batch).sigmoid(), codes, labels, size=BATCH)


def generate(model: ConditionalVAE, images: Tensor, sent: Tensor, encoder_labels: Tensor | None = None) -> Tensor:
    """What the model makes of images sent with these labels; `encoder_labels` go to the encoder instead (swap)."""
    return decode(model, encode(model, images, sent if encoder_labels is None else encoder_labels), sent)


def evaluate_elbo(model: ConditionalVAE, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Minus the ELBO and its two parts: means in nats per image, with one drawn code each; arguments as in `encode`."""
    model.eval()

    def two_parts(images: Tensor, labels: Tensor) -> Tensor:
        logits, mean, log_variance = model(images, labels)
        return torch.stack([model.reconstruction_loss(logits, images), kl_loss(mean, log_variance)], dim=1)

    reconstruction, kl = in_parts(two_parts, images, labels, size=BATCH).double().mean(0).tolist()
    return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}


def label_following(
    model: ConditionalVAE,
    judge: nn.Module,
    images: Tensor,
    labels: Tensor,
    attributes: dict[str, Callable[[Tensor], Tensor]],
    guide: nn.Module | None = None,
    swap: bool = False,
) -> dict[str, float]:
    """Send every image with every label, and measure what comes out.

    Args:
        model, judge: on the device of the images; the judge gives logits (N, 10).
        images: float (N, C, H, W) in 0..1; N is a multiple of 100.
        labels: int64 (N,), the true ones, not all the same.
        attributes: by name, a function of images (N, C, H, W) that gives one number or more for each, (N,) or (N, K).
        guide: the classifier that took part in training, if any, for `guide_agreement`.
        swap: the images are encoded with their true labels, in place of the literal protocol.

    Returns:
        Shares in 0..1 over the 9 N wrong pairs: `wrong_label_agreement` (literal: the judge reads the label sent),
        `swap_agreement`, `true_class_agreement` (literal: it still reads the true class) and `source_retrieval` (see
        `retrieved`). Over the N right ones: `right_label_agreement`. And for each attribute `..._correlation`: its rank
        correlation between source and output (literal), mean over the labels sent, in -1..1. With a guide also
        `guide_agreement`: the share of the wrong pairs whose output it reads as the label sent.
    """
    check_labels(labels, len(images), CLASSES)
    true_codes, rows = encode(model, images, labels), {}
    for label in range(CLASSES):
        sent = torch.full_like(labels, label)
        codes = true_codes if swap else encode(model, images, sent)
        outputs, wrong = decode(model, codes, sent), labels != label
        swapped = outputs if torch.equal(codes, true_codes) else decode(model, true_codes, sent)
        row = agreement(judge, outputs, swapped, labels, label)
        row["source_retrieval"] = retrieved(encode(model, outputs, sent), codes)[wrong]
        if guide is not None:
            row["guide_agreement"] = (predict_labels(guide, outputs) == label)[wrong]
        for name, attribute in attributes.items():
            row[f"{name}_correlation"] = attribute_correlation(attribute, images[wrong], outputs[wrong])
        for name, values in row.items():
            rows.setdefault(name, []).append(values.double())
    return {name: torch.cat(values).mean().item() for name, values in rows.items()}


def agreement(judge: nn.Module, outputs: Tensor, swapped: Tensor, labels: Tensor, sent: int) -> dict[str, Tensor]:
    """What the judge reads, image by image, off outputs (N, C, H, W) that were all sent with one label: bools."""
    wrong, predicted = labels != sent, predict_labels(judge, outputs)
    swap = predicted if swapped is outputs else predict_labels(judge, swapped)
    return {
        "wrong_label_agreement": (predicted == sent)[wrong],
        "swap_agreement": (swap == sent)[wrong],
        "true_class_agreement": (predicted == labels)[wrong],
        "right_label_agreement": (predicted == sent)[~wrong],
    }


def retrieved(codes: Tensor, sources: Tensor) -> Tensor:
    """Whether each output's code is nearer (Euclidean) to its own source's than to those of 99 others: bool (N,).

    The candidates are the sources in the same hundred of rows; chance is 1 %. Both are (N, latent size), where N is a
    multiple of 100.
    """
    check_same_shape(codes=codes, sources=sources)
    if not len(codes) or len(codes) % 100:
        raise ValueError(f"{len(codes)} images: source retrieval needs 100, 200, ...")
    hundreds = (part.unflatten(0, (-1, 100)) for part in (codes, sources))  # (N / 100, 100, latent size)
    nearest = torch.cdist(*hundreds).argmin(dim=2)  # (N / 100, 100)
    return (nearest == torch.arange(100, device=codes.device)).flatten()


def attribute_correlation(attribute: Callable[[Tensor], Tensor], sources: Tensor, outputs: Tensor) -> Tensor:
    """Spearman's rank correlation (1904) of each number of an attribute between sources and outputs: (K,) in -1..1.

    NaN where all sources or all outputs have the same value.
    """
    from scipy.stats import spearmanr  # here, since it takes most of a second, and Part 1 does not need it

    columns = (attribute(images).view(len(images), -1).T.cpu() for images in (sources, outputs))  # (K, N)
    return torch.tensor([float(spearmanr(*pair).statistic) for pair in zip(*columns)], dtype=torch.float64)


def judge_features(judge: nn.Module, images: Tensor) -> Tensor:
    """What the judge's last layer reads of float images (N, C, H, W) in 0..1: float64 (N, features)."""
    return in_parts(judge[:-1].eval(), images, size=100).double()


def realism(made: Tensor, sent: Tensor, real: Tensor, labels: Tensor) -> dict[str, float]:
    """How outputs compare with real images, by the judge's features of both.

    Args:
        made, sent: features of outputs (M, K), and the labels they were sent with, int64 (M,).
        real, labels: features of real images (N, K), and their labels (N,); at least two of each class, as above.

    Returns:
        `frechet`, see `frechet_distance`: 0 if mean and covariance are equal; and `diversity`, the mean Euclidean
        distance of two outputs that were sent as one class, over that of two real images of a class.
    """
    diversity = mean_pairwise_distance(made, sent) / mean_pairwise_distance(real, labels)
    return {"frechet": frechet_distance(made, real), "diversity": diversity}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with mean and covariance of features a (M, K) and b (N, K), float64.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500,
    equation 6). The trace of the root is the sum of the roots of the eigenvalues of S_a S_b.
    """
    difference, covariances = a.mean(0) - b.mean(0), (torch.cov(a.T), torch.cov(b.T))
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt()
    distance = difference.square().sum() + sum(map(torch.trace, covariances)) - 2 * roots.sum()
    return max(0.0, distance.item())  # of equal sets, rounding leaves a number on either side of 0


def mean_pairwise_distance(features: Tensor, labels: Tensor) -> float:
    """Mean Euclidean distance of two rows of features (N, K) with the same label, and of that the mean over labels."""
    return torch.stack([F.pdist(features[labels == label]).mean() for label in labels.unique()]).mean().item()


def project_on_discriminants(codes: Tensor, labels: Tensor) -> Tensor:
    """Codes (N, K) on the plane where the classes lie farthest apart, in units of the deviation: float64 (N, 2).

    The first two linear discriminants (Fisher 1936), with every class counted alike.
    """
    centred = codes.double() - codes.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(codes))
    white = centred @ vectors / values.clamp(min=1e-9).sqrt()  # in all directions the same deviation
    means = torch.stack([white[labels == label].mean(0) for label in labels.unique()])  # (classes, K)
    return white @ torch.linalg.svd(means, full_matrices=False).Vh[:2].T  # their first two principal directions


def baselines(model: ConditionalVAE) -> dict[str, SimpleNamespace]:
    """Two stand-ins for a model: one gives back the source, one decodes a code from the prior in place of its own."""

    def draw(images: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return torch.randn(len(images), model.latent_size, device=images.device), None

    copy = {
        "encode": lambda images, labels: (images.flatten(1), None),
        "decode": lambda codes, labels: codes.view(-1, *model.image_shape).logit(eps=1e-6),
    }
    random = {"encode": draw, "decode": model.decode}
    both = {"copy the source": copy, "random code": random}
    return {name: SimpleNamespace(eval=model.eval, **functions) for name, functions in both.items()}
