"""Networks that look at an image and its label: the judge, which measures, the guide, which teaches, a discriminator.

Judge and guide learn from real training images only. They differ in architecture and seed, so that a generator that has
learnt to please the guide does not please the judge for the same reason.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from utils.checks import check_integers, check_labels, check_not_negative
from utils.data import CLASSES, Split, to_unit

# --- Digits, (N, 1, 28, 28) in 0..1 -> logits (N, 10) -----------------------------------------------------------------


def convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with batch normalisation and ReLU."""
    convolve = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    return [convolve, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def build_digit_judge() -> nn.Sequential:
    """Small 3x3 convolutions and max pooling (in the manner of Simonyan and Zisserman 2014)."""
    return nn.Sequential(
        *convolution(1, 16, 3),
        nn.MaxPool2d(2),
        *convolution(16, 32, 3),
        *convolution(32, 32, 3),
        nn.MaxPool2d(2),
        *convolution(32, 64, 3),
        *convolution(64, 64, 3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def build_digit_guide() -> nn.Sequential:
    """Few 5x5 strided convolutions and a hidden layer (in the manner of LeCun et al. 1998)."""
    return nn.Sequential(
        *convolution(1, 16, 5, stride=2),
        *convolution(16, 32, 5, stride=2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, CLASSES),
    )


# --- Photographs, (N, 3, 32, 32) in 0..1 -> logits (N, 10) ------------------------------------------------------------


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
        """Of images (N, C, H, W), each channel with mean 8 * shift and deviation 1."""
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
    """The layers of airbench (Jordan 2024, arXiv:2404.00498, section 3.1), of any width; `whiten` its first one."""
    check_integers(base_channels=base_channels)
    wide = 4 * base_channels
    return MirrorSum(
        nn.Conv2d(3, 24, 2),
        nn.GELU(),
        *judge_block(24, base_channels),
        *judge_block(base_channels, wide),
        *judge_block(wide, wide),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        ScaledLinear(wide, CLASSES, bias=False),
    )


def whiten(convolution: nn.Conv2d, images: Tensor) -> None:
    """Freeze the filters of a first convolution so that what comes out is uncorrelated, each filter in both signs.

    The filters are the eigenvectors of the covariance of patches over the roots of their eigenvalues: neighbouring
    pixels are nearly alike, and a network that need not find that out learns faster (Jordan 2024, section 3.2).
    The convolution has 2 C k^2 filters of k x k; images are some thousand of the training ones, float (N, C, H, W).
    """
    patches = F.unfold(images, convolution.kernel_size).transpose(1, 2).flatten(0, 1)  # (patches, C k^2)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    filters = (vectors / (values + 5e-4).sqrt()).T  # what varies less than that is noise
    convolution.weight.data = torch.cat([filters, -filters]).view_as(convolution.weight)
    convolution.bias.data = -convolution.weight.flatten(1) @ patches.mean(0)
    convolution.requires_grad_(False)


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


class Discriminator(nn.Module):
    """Scores how real a picture is for its label: three strided convolutions and a projection on the label.

    Spectral normalisation keeps its slope in bounds (Miyato et al. 2018, arXiv:1802.05957); the score is
    w h + (V y) h for the features h and the one-hot label y (Miyato and Koyama 2018, arXiv:1802.05637, equation 3).
    """

    def __init__(self, channels: int, base_channels: int):
        super().__init__()
        check_integers(channels=channels, base_channels=base_channels)
        layers, widths = [], [channels, base_channels, 2 * base_channels, 4 * base_channels]
        for narrow, wide in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(narrow, wide, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.real = spectral_norm(nn.Linear(widths[-1], 1))
        self.fits = spectral_norm(nn.Linear(CLASSES, widths[-1], bias=False))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (N,), high for real, of images (N, C, H, W) in 0..1 and labels int64 (N,)."""
        check_labels(labels, len(images), CLASSES)
        features = 4 * self.features(images).mean((2, 3))  # (N, wide)
        one_hot = F.one_hot(labels, CLASSES).to(features.dtype)
        return self.real(features)[:, 0] + (features * self.fits(one_hot)).sum(1)


# --- What they are shown, and what they read --------------------------------------------------------------------------


def add_noise(images: Tensor, most: float) -> Tensor:
    """Images (N, C, H, W) in Gaussian noise, each of a deviation drawn from 0 to `most` of the range of a pixel.

    A classifier that has to read through noise must look at large shapes, and its gradient points at them: the link
    between robustness and gradients that people can read is shown by Kaur, Cohen and Lipton 2019 (arXiv:1910.08640).
    """
    check_not_negative(most=most)
    return images + torch.rand(len(images), 1, 1, 1, device=images.device) * most * torch.randn_like(images)


def random_shift(images: Tensor, reach: int) -> Tensor:
    """Images (N, C, H, W), all shifted by up to `reach` pixels each way (around the edge) and mirrored, or not."""
    check_integers(0, reach=reach)
    down, right, mirrored = torch.randint(-reach, reach + 1, (2,)).tolist() + [torch.rand(()) < 0.5]
    images = images.roll((down, right), dims=(2, 3))
    return images.flip(3) if mirrored else images


@torch.inference_mode()
def in_parts(function: Callable[..., Tensor], *tensors: Tensor, size: int) -> Tensor:
    """What a function makes of tensors (N, ...), `size` rows at a time, in one piece: it needs less memory."""
    return torch.cat([function(*parts) for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True)])


def predict_logits(classifier: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, 10) of float images (N, C, H, W) in 0..1."""
    # Of a hundred, the layers' outputs stay in a processor's cache: half as fast again as with 500.
    return in_parts(classifier.eval(), images, size=100).float()


def predict_labels(classifier: nn.Module, images: Tensor) -> Tensor:
    """The most probable label of each image: int64 (N,), of float images (N, C, H, W) in 0..1."""
    return predict_logits(classifier, images).argmax(1)


def accuracy(classifier: nn.Module, split: Split) -> float:
    """Share, in 0..1, of a split's images whose label the classifier predicts."""
    check_integers(images=len(split.images))
    device = next(classifier.parameters()).device
    predicted = predict_labels(classifier, to_unit(split.images.to(device)))
    return (predicted.cpu() == split.targets).float().mean().item()
