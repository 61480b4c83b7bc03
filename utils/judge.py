"""Classifiers that read a label off an image: the judge, which measures, and the guide, which may teach.

Both learn from real training images only. They differ in architecture and seed, so that a generator that has learnt to
please the guide does not please the judge for the same reason.
"""

from itertools import pairwise
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_bytes, check_integers, check_labels, check_not_negative, check_same_shape
from utils.labelled import to_unit


def convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with batch normalisation and ReLU."""
    convolve = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    return [convolve, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def build_judge(image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Small 3x3 convolutions and max pooling (in the manner of Simonyan and Zisserman 2014): logits (N, classes).

    Raises:
        ValueError: if a size is no positive integer.
    """
    check_sizes(image_shape, classes)
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
    """Few 5x5 strided convolutions and a hidden layer (in the manner of LeCun et al. 1998): logits (N, classes).

    Raises:
        ValueError: if a size is no positive integer.
    """
    check_sizes(image_shape, classes)
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


def check_sizes(image_shape: tuple[int, int, int], classes: int) -> None:
    """Refuse what cannot be the shape of an image, or a number of classes."""
    channels, height, width = image_shape
    check_integers(channels=channels, height=height, width=width, classes=classes)


class Mirrored(nn.Sequential):
    """A classifier that, in evaluation mode, adds up its logits of an image and of the mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits = super().forward(images)
        return logits if self.training else logits + super().forward(images.flip(3))


class Shift(nn.BatchNorm2d):
    """Batch normalisation that learns a shift and no scale, the shift 64 times as fast as by itself.

    Times eight, a parameter gets eight times the gradient, and each of its steps counts eight times: so it is with
    gradient descent (Jordan 2024, arXiv:2404.00498, section 3.4, where the learning rate is raised instead).
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=False)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        """Of images (N, C, H, W), each channel with mean 8 * shift and deviation 1."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(images, *statistics, None, 8 * self.shift, self.training, self.momentum, self.eps)


class Head(nn.Linear):
    """A linear layer with its outputs over nine, so that the softmax starts mild (Jordan 2024, section 3.1)."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, C)."""
        return super().forward(features) / 9


def stage(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Two 3x3 convolutions, the first of which halves the sides by pooling.

    They start as the identity, as far as that goes (Jordan 2024, section 3.3).
    """
    widen = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    refine = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
    for layer in (widen, refine):
        nn.init.dirac_(layer.weight.data[: layer.in_channels])
    return [widen, nn.MaxPool2d(2), Shift(out_channels), nn.GELU(), refine, Shift(out_channels), nn.GELU()]


def build_picture_judge(classes: int, base_channels: int) -> Mirrored:
    """For RGB pictures of 32 x 32: the layers of airbench (Jordan 2024, arXiv:2404.00498, section 3.1), of any width.

    Its first convolution is for `whiten`.

    Raises:
        ValueError: if a size is no positive integer.
    """
    check_integers(classes=classes, base_channels=base_channels)
    wide = 4 * base_channels
    return Mirrored(
        nn.Conv2d(3, 24, 2),
        nn.GELU(),
        *stage(24, base_channels),
        *stage(base_channels, wide),
        *stage(wide, wide),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        Head(wide, classes, bias=False),
    )


def whiten(convolution: nn.Conv2d, images: Tensor) -> None:
    """Freeze the filters of a first convolution so that what comes out is uncorrelated, each filter in both signs.

    The filters are the eigenvectors of the covariance of patches over the roots of their eigenvalues: neighbouring
    pixels are nearly alike, and a network that need not find that out learns faster (Jordan 2024, section 3.2).

    Args:
        convolution: of 2 C k^2 filters of k x k on C channels.
        images: float (N, C, H, W) in 0..1, some thousand of those that are to be learnt.
    """
    patches = F.unfold(images, convolution.kernel_size).transpose(1, 2).flatten(0, 1)  # (patches, C k^2)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    filters = (vectors / (values + 5e-4).sqrt()).T  # what varies less than that is noise
    convolution.weight.data = torch.cat([filters, -filters]).view_as(convolution.weight)
    convolution.bias.data = -convolution.weight.flatten(1) @ patches.mean(0)
    convolution.requires_grad_(False)


def build_picture_guide(classes: int, base_channels: int) -> nn.Sequential:
    """For RGB pictures: smooth activations and mean pooling, which leave no grid in the gradient: logits (N, classes).

    A convolution that steps, or maximum pooling, looks at some pixels more than at their neighbours, and what pleases
    such a guide has stripes (Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003, on the gradient's artifacts).

    Raises:
        ValueError: if a size is no positive integer.
    """
    check_integers(classes=classes, base_channels=base_channels)
    layers, widths = [], [3, *(base_channels * 2**level for level in (0, 1, 1, 2, 2, 3))]
    for level, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        if level in (0, 2, 4):
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def with_noise(images: Tensor, most: float) -> Tensor:
    """Images (N, C, H, W) in Gaussian noise, each of a deviation drawn from 0 to `most` of the range of a pixel.

    A classifier that has to read through noise must look at large shapes, and its gradient points at them: the link
    between robustness and gradients that people can read is shown by Kaur, Cohen and Lipton 2019 (arXiv:1910.08640).

    Raises:
        ValueError: if `most` is negative, or no finite number.
    """
    check_not_negative(most=most)
    return images + torch.rand(len(images), 1, 1, 1, device=images.device) * most * torch.randn_like(images)


def moved(images: Tensor, reach: int) -> Tensor:
    """Images (N, C, H, W), all shifted by up to `reach` pixels each way (around the edge) and mirrored, or not.

    Raises:
        ValueError: if `reach` is no integer of 0 or more.
    """
    check_integers(0, reach=reach)
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

    Raises:
        ValueError: if the batch is empty, or for images or labels of another shape, type or range.
    """
    images, labels = to_unit(batch[0]), batch[1]
    check_integers(images=len(images))
    if noise:
        images = with_noise(images, noise)
    logits = classifier(images).float()
    check_labels(labels, *logits.shape)
    return {"loss": F.cross_entropy(logits, labels, label_smoothing=smoothing)}


@torch.inference_mode()
def read(classifier: nn.Module, images: Tensor) -> Tensor:
    """The label that the classifier reads off each image: int64 (N,), of float images (N, C, H, W) in 0..1."""
    classifier.eval()
    # Of a hundred, the layers' outputs stay in a processor's cache: half as fast again as with 500.
    return torch.cat([classifier(part).argmax(1) for part in images.split(100)])


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose label, int64 (N,), the classifier reads right, in 0..1.

    Raises:
        ValueError: if there is no image, or not one label for each.
    """
    check_bytes(images=images)
    check_integers(images=len(images))
    check_same_shape(labels=labels, images=images[:, 0, 0, 0])
    device = next(classifier.parameters()).device
    return (read(classifier, to_unit(images.to(device))).cpu() == labels).float().mean().item()
