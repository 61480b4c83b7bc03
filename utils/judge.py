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


class Mirrored(nn.Sequential):
    """A classifier that, in evaluation mode, adds up its logits of an image and of the mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits = super().forward(images)
        return logits if self.training else logits + super().forward(images.flip(3))


def stage(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Two 3x3 convolutions, the first of which halves the sides by pooling."""
    widen = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    refine = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
    norms = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
    return [widen, nn.MaxPool2d(2), norms[0], nn.GELU(), refine, norms[1], nn.GELU()]


def build_picture_judge(classes: int) -> Mirrored:
    """For RGB pictures of 32 x 32: the layers of airbench (Jordan 2024, arXiv:2404.00498, section 3), half as wide."""
    layers = [nn.Conv2d(3, 24, 2), nn.GELU(), *stage(24, 32), *stage(32, 128), *stage(128, 128)]
    return Mirrored(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def build_picture_guide(classes: int) -> nn.Sequential:
    """For RGB pictures: strided convolutions, smooth activations and mean pooling: logits (N, classes)."""
    sizes = [(3, 32, 5, 2), (32, 64, 3, 1), (64, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1)]
    layers = [layer for size in sizes for layer in [*convolution(*size)[:2], nn.SiLU()]]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def with_noise(images: Tensor, most: float) -> Tensor:
    """Images (N, C, H, W) in Gaussian noise, each of a deviation drawn from 0 to `most` of the range of a pixel.

    A classifier that has to read through noise must look at large shapes, and its gradient points at them: the link
    between robustness and gradients that people can read is shown by Kaur, Cohen and Lipton 2019 (arXiv:1910.08640).
    """
    return images + torch.rand(len(images), 1, 1, 1, device=images.device) * most * torch.randn_like(images)


def moved(images: Tensor, reach: int) -> Tensor:
    """Images (N, C, H, W), all shifted by up to `reach` pixels each way (around the edge) and mirrored, or not."""
    down, right, mirrored = torch.randint(-reach, reach + 1, (2,)).tolist() + [torch.rand(()) < 0.5]
    images = images.roll((down, right), dims=(2, 3))
    return images.flip(3) if mirrored else images


def classifier_loss(
    classifier: nn.Module, batch: tuple[Tensor, Tensor], step: int, smoothing: float = 0.0, noise: float = 0.0
) -> dict[str, Tensor]:
    """Cross-entropy, mean in nats, as `fit` wants it.

    Args:
        classifier: gives logits (B, classes).
        batch: images uint8 (B, C, H, W) and labels int64 (B,).
        step: not used.
        smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, section 7).
        noise: greatest deviation of the noise put on the images, see `with_noise`.
    """
    images, labels = to_unit(batch[0]), batch[1]
    if noise:
        images = with_noise(images, noise)
    return {"loss": F.cross_entropy(classifier(images).float(), labels, label_smoothing=smoothing)}


@torch.inference_mode()
def read(classifier: nn.Module, images: Tensor) -> Tensor:
    """The label that the classifier reads off each image: int64 (N,), of float images (N, C, H, W) in 0..1."""
    classifier.eval()
    return torch.cat([classifier(part).argmax(1) for part in images.split(500)])


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose label the classifier reads right, in 0..1."""
    device = next(classifier.parameters()).device
    return (read(classifier, to_unit(images.to(device))).cpu() == labels).float().mean().item()
