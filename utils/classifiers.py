"""Classifiers: the judge, which measures what a VAE makes, and the guide, which teaches it.

Neither is ever trained on what a VAE makes. They differ in architecture and seed, so that a generator that has
learnt to please the guide does not please the judge for the same reason.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_integers
from utils.data import CLASSES, Split, to_unit

SPOILT = CLASSES  # the eleventh class of the guide of digits


def convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with batch normalisation and ReLU."""
    convolve = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    return [convolve, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def build_digit_judge() -> nn.Sequential:
    """Small 3x3 convolutions and max pooling (in the manner of Simonyan and Zisserman 2014)."""
    layers = [*convolution(1, 16, 3), nn.MaxPool2d(2), *convolution(16, 32, 3), *convolution(32, 32, 3)]
    layers += [nn.MaxPool2d(2), *convolution(32, 64, 3), *convolution(64, 64, 3), nn.AdaptiveMaxPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, CLASSES))


def build_digit_guide() -> nn.Sequential:
    """Two 5x5 strided convolutions and a hidden layer (in the manner of LeCun et al. 1998); eleven classes."""
    layers = [*convolution(1, 16, 5, stride=2), *convolution(16, 32, 5, stride=2), nn.Flatten()]
    layers += [nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, SPOILT + 1)]
    return nn.Sequential(*layers)


class MirrorSum(nn.Sequential):
    """A classifier that, in evaluation mode, adds up its logits of an image and of the mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits = super().forward(images)
        return logits if self.training else logits + super().forward(images.flip(3))


class ShiftNorm(nn.BatchNorm2d):
    """Batch normalisation that learns a shift and no scale, the shift 64 times as fast as by itself.

    Times eight, a parameter gets eight times the gradient, and each of its steps counts eight times: so it is with
    gradient descent (Jordan 2024, arXiv:2404.00498, section 3.4, where the learning rate is raised instead).
    """

    def __init__(self, channels: int):
        super().__init__(channels, affine=False)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        """Of images (N, C, H, W): in training, each channel with mean 8 * shift and deviation 1."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(images, *statistics, None, 8 * self.shift, self.training, self.momentum, self.eps)


class ScaledLinear(nn.Linear):
    """A linear layer with its outputs over nine, so that the softmax starts mild (Jordan 2024, section 3.1)."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, C)."""
        return super().forward(features) / 9


def judge_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Two 3x3 convolutions that start as the identity (Jordan 2024, section 3.3), and pooling that halves the sides."""
    widen = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    refine = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
    for layer in (widen, refine):
        nn.init.dirac_(layer.weight.data[: layer.in_channels])
    return [widen, nn.MaxPool2d(2), ShiftNorm(out_channels), nn.GELU(), refine, ShiftNorm(out_channels), nn.GELU()]


def build_picture_judge(base_channels: int) -> MirrorSum:
    """The layers of airbench (Jordan 2024, arXiv:2404.00498, section 3.1), of any width; Part 2b whitens the first."""
    check_integers(base_channels=base_channels)
    narrow, wide = base_channels, 4 * base_channels
    blocks = [*judge_block(24, narrow), *judge_block(narrow, wide), *judge_block(wide, wide)]
    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), ScaledLinear(wide, CLASSES, bias=False)]
    return MirrorSum(nn.Conv2d(3, 24, 2), nn.GELU(), *blocks, *head)


def build_picture_guide(base_channels: int) -> nn.Sequential:
    """Smooth activations and mean pooling, which leave no grid in the gradient.

    A strided convolution, or max pooling, looks at some pixels more than at their neighbours, and what pleases such a
    guide has stripes (Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003, on the gradient's artifacts).
    """
    check_integers(base_channels=base_channels)
    layers, widths = [], [3, *(base_channels * 2**level for level in (0, 1, 1, 2, 2, 3))]
    for level, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        if level in (0, 2, 4):
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


def add_noise(images: Tensor, most: float) -> Tensor:
    """Images (N, C, H, W) in Gaussian noise, each of a deviation drawn from 0 to `most` of the range of a pixel.

    A classifier that has to read through noise must look at large shapes, and its gradient points at them: the link
    between robustness and gradients that people can read is shown by Kaur, Cohen and Lipton 2019 (arXiv:1910.08640).
    """
    return images + torch.rand(len(images), 1, 1, 1, device=images.device) * most * torch.randn_like(images)


@torch.inference_mode()
def in_parts(function: Callable[..., Tensor], *tensors: Tensor, size: int) -> Tensor:
    """What a function makes of tensors (N, ...), `size` rows at a time, in one piece; no gradient passes."""
    if len(lengths := {len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"arguments have {sorted(lengths)} rows: there must be as many of each")
    return torch.cat([function(*parts) for parts in zip(*(tensor.split(size) for tensor in tensors))])


def predict_logits(classifier: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, classes) of float images (N, C, H, W) in 0..1."""
    # Of a hundred, the layers' outputs stay in a processor's cache: 1.5 times as fast as with 500.
    return in_parts(classifier.eval(), images, size=100)


def predict_labels(classifier: nn.Module, images: Tensor) -> Tensor:
    """The most probable label of each image: int64 (N,), of float images (N, C, H, W) in 0..1."""
    return predict_logits(classifier, images).argmax(1)


def accuracy(classifier: nn.Module, split: Split) -> float:
    """Share, in 0..1, of a split's images whose label the classifier predicts."""
    device = next(classifier.parameters()).device
    predicted = predict_labels(classifier, to_unit(split.images.to(device))).cpu()
    return (predicted == split.targets).float().mean().item()
