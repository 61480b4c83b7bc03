"""Classifiers that read a label off an image: the judge, which measures, and the guide, which may teach.

Both learn from real training images only. They differ in architecture and seed, so that a generator that has learnt to
please the guide does not please the judge for the same reason.
"""

from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.labelled import to_unit


def convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with batch normalisation and ReLU."""
    convolve = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    return [convolve, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def build_judge(image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Small 3x3 convolutions and max pooling (in the manner of Simonyan and Zisserman 2014): logits (N, classes)."""
    return nn.Sequential(
        *convolution(image_shape[0], 16, 3),
        nn.MaxPool2d(2),
        *convolution(16, 32, 3),
        *convolution(32, 32, 3),
        nn.MaxPool2d(2),
        *convolution(32, 64, 3),
        *convolution(64, 64, 3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def build_guide(image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Few 5x5 strided convolutions and a hidden layer (in the manner of LeCun et al. 1998): logits (N, classes)."""
    channels, height, width = image_shape
    return nn.Sequential(
        *convolution(channels, 16, 5, stride=2),
        *convolution(16, 32, 5, stride=2),
        nn.Flatten(),
        nn.Linear(32 * ceil(height / 4) * ceil(width / 4), 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, classes),
    )


def classifier_loss(classifier: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
    """Cross-entropy, mean in nats, of images uint8 (B, C, H, W) and labels int64 (B,), as `fit` wants it."""
    images, labels = batch
    return {"loss": F.cross_entropy(classifier(to_unit(images)).float(), labels)}


@torch.inference_mode()
def read(classifier: nn.Module, images: Tensor) -> Tensor:
    """The label that the classifier reads off each image: int64 (N,), of float images (N, C, H, W) in 0..1."""
    classifier.eval()
    return torch.cat([classifier(part).argmax(1) for part in images.split(500)])


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose label the classifier reads right, in 0..1."""
    device = next(classifier.parameters()).device
    return (read(classifier, to_unit(images.to(device))).cpu() == labels).float().mean().item()
