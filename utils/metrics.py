"""Scores of binary segmentation, and the predictions that they are computed from.

Scores 'over the whole set' add up the pixel counts of all images before dividing, so that a large pet weighs more than
a small one; `iou_per_image` divides for each image and then averages. 'Border ignored' leaves out the trimap's border.
"""

import torch
from torch import Tensor, nn

from utils.checks import check_integers, check_range, check_same_shape
from utils.data import BORDER, PET, foreground, to_input

THRESHOLD = 0.5  # a pixel is foreground where its probability is at least this
PART = 256  # images whose pixels are counted at a time


def confusion(predicted: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Pixel counts of each image.

    Args:
        predicted, target: bool (N, ...), the same shape.
        counted: bool of that shape, False for pixels to leave out; all are counted without it.

    Returns:
        int64 (N, 4): true positives, false positives, false negatives, true negatives.

    Raises:
        ValueError: if the shapes differ or a tensor is not bool.
    """
    counted = torch.ones_like(target) if counted is None else counted
    for name, tensor in {"predicted": predicted, "target": target, "counted": counted}.items():
        if tensor.dtype != torch.bool or tensor.shape != target.shape:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected bool {tuple(target.shape)}")
    parts = zip(*(tensor.split(PART) for tensor in (predicted, target, counted)))
    return torch.cat([cells(*part) for part in parts])


def cells(predicted: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """The counts of a few images: to add up, torch makes an int64 of each bool, eight times the memory."""
    four = (predicted & target, predicted & ~target, ~predicted & target, ~predicted & ~target)
    return torch.stack([(cell & counted).flatten(1).sum(1) for cell in four], dim=1)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union (Jaccard 1912), tp / (tp + fp + fn), of counts (..., 4); 1 where both are empty."""
    tp, fp, fn, _ = counts.double().unbind(-1)
    return torch.where(tp + fp + fn > 0, tp / (tp + fp + fn).clamp(min=1), 1.0)


def dice(counts: Tensor) -> Tensor:
    """Dice coefficient (Dice 1945), 2 tp / (2 tp + fp + fn), of counts (..., 4); 1 where both are empty."""
    tp, fp, fn, _ = counts.double().unbind(-1)
    return torch.where(tp + fp + fn > 0, 2 * tp / (2 * tp + fp + fn).clamp(min=1), 1.0)


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of pixels that are right, (tp + tn) / all, of counts (..., 4); 1 where no pixel is counted."""
    tp, fp, fn, tn = counts.double().unbind(-1)
    total = tp + fp + fn + tn
    return torch.where(total > 0, (tp + tn) / total.clamp(min=1), 1.0)


def segmentation_scores(predicted: Tensor, trimaps: Tensor) -> dict[str, float]:
    """All scores of the project, each in 0..1.

    Args:
        predicted: bool (N, 1, H, W), True for foreground.
        trimaps: uint8 (N, 1, H, W) in {1, 2, 3}; the target is pet + border.

    Raises:
        ValueError: if there is no image, the shapes differ, or a trimap holds other values.
    """
    check_integers(images=len(trimaps))
    check_range(PET, BORDER, trimaps=trimaps)
    target = foreground(trimaps)
    counts = confusion(predicted, target)
    whole = counts.sum(0)
    inside = confusion(predicted, target, counted=trimaps != BORDER).sum(0)
    return {
        "iou": iou(whole).item(),
        "dice": dice(whole).item(),
        "pixel_accuracy": pixel_accuracy(whole).item(),
        "iou_per_image": iou(counts).mean().item(),
        "iou_border_ignored": iou(inside).item(),
        "dice_border_ignored": dice(inside).item(),
        "pixel_accuracy_border_ignored": pixel_accuracy(inside).item(),
    }


def baselines(train_trimaps: Tensor, test_trimaps: Tensor) -> dict[str, dict[str, float]]:
    """Scores of two guesses that look at no image: everything is foreground, and the mean training mask.

    Args:
        train_trimaps, test_trimaps: uint8 (N, 1, H, W) in {1, 2, 3}, of one size.

    Raises:
        ValueError: if there is no trimap, the sizes differ, or a trimap holds other values.
    """
    check_integers(training_images=len(train_trimaps), test_images=len(test_trimaps))
    check_range(PET, BORDER, training_trimaps=train_trimaps)
    check_same_shape(training_trimaps=train_trimaps[0], test_trimaps=test_trimaps[0])
    everything = torch.ones_like(test_trimaps, dtype=torch.bool)
    mean_mask = foreground(train_trimaps).float().mean(0, keepdim=True) >= THRESHOLD  # (1, 1, H, W)
    return {
        "all_foreground": segmentation_scores(everything, test_trimaps),
        "mean_mask": segmentation_scores(mean_mask.expand_as(everything), test_trimaps),
    }


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """Foreground probabilities, float32 (N, 1, H, W) in 0..1 on the CPU, of uint8 images (N, 3, H, W).

    Raises:
        ValueError: for images of another type, or that the model refuses.
    """
    check_integers(batch_size=batch_size)
    device = next(model.parameters()).device
    model.eval()
    return torch.cat([model(to_input(part.to(device))).float().sigmoid().cpu() for part in images.split(batch_size)])


def iou_difference(before: Tensor, after: Tensor, resamples: int = 1000) -> tuple[float, float, float]:
    """Accumulated IoU of `after` minus that of `before`, and the ends of its 95 % bootstrap interval over images.

    Args:
        before, after: counts int64 (N, 4) of two models on the same N images.
        resamples: how many times N images are drawn with replacement (Efron 1979, the percentile method).

    Raises:
        ValueError: if there is no image, or the models saw different numbers of them.
    """
    check_integers(images=len(before), resamples=resamples)
    check_same_shape(counts_before=before, counts_after=after)
    drawn = torch.randint(len(before), (resamples, len(before)), generator=torch.Generator().manual_seed(0))
    differences = iou(after[drawn].sum(1)) - iou(before[drawn].sum(1))  # (resamples,)
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return (iou(after.sum(0)) - iou(before.sum(0))).item(), low, high
