"""A conditional variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114; Sohn, Lee and Yan 2015).

The encoder turns an image into a Gaussian over codes z, the decoder turns a code into an image, and either or both see
the label: a one-hot vector that a linear layer embeds.
"""

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_integers, check_labels, check_range
from utils.data import CLASSES
from utils.losses import bernoulli_loss, gaussian_loss

LABEL_TO = ("encoder", "decoder", "both")
LIKELIHOODS = ("bernoulli", "gaussian")
EMBEDDING = 16  # numbers that a label is embedded in


def halve(in_channels: int, out_channels: int) -> nn.Sequential:
    """A strided convolution: (N, C, H, W) -> (N, C', H/2, W/2)."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1), nn.SiLU())


def double(in_channels: int, out_channels: int) -> nn.Sequential:
    """A transposed convolution: (N, C, H, W) -> (N, C', 2H, 2W)."""
    return nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1))


def dense(in_features: int, hidden: int, out_features: int) -> nn.Module:
    """From the features to the code, or back: a linear layer, or two with a hidden layer between them."""
    if not hidden:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, out_features))


class ConditionalVAE(nn.Module):
    """A convolutional encoder, a Gaussian code and a convolutional decoder, with the label where `label_to` says.

    Args:
        image_shape: channels, height and width, (C, H, W); H and W must be multiples of 2**depth.
        classes: labels are 0 to classes - 1.
        latent_size: numbers in a code.
        base_channels: channels after the first convolution; each further one doubles them.
        depth: how many times the sides are halved.
        label_to: "encoder", "decoder" or "both", which sees the label.
        likelihood: of a pixel: "bernoulli" for black and white, "gaussian" with a learnt deviation for colours.
        hidden: numbers in the hidden layer on either side of the code; 0 for none.

    Raises:
        ValueError: for an unknown `label_to` or `likelihood`, or sizes that are no integers, too small, or cannot be
            halved so often.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        latent_size: int,
        base_channels: int,
        depth: int,
        label_to: str,
        likelihood: str = "bernoulli",
        hidden: int = 512,
    ):
        super().__init__()
        if label_to not in LABEL_TO or likelihood not in LIKELIHOODS:
            raise ValueError(f"{label_to=}, {likelihood=}: choose from {LABEL_TO} and {LIKELIHOODS}")
        check_integers(classes=classes, latent_size=latent_size, base_channels=base_channels, depth=depth)
        check_integers(0, hidden=hidden)
        check_integers(**dict(zip(("channels", "height", "width"), image_shape)))
        if any(side % 2**depth for side in image_shape[1:]):
            raise ValueError(f"images of shape {image_shape} cannot be halved {depth} times (depth)")
        self.image_shape, self.classes, self.latent_size = tuple(image_shape), classes, latent_size
        self.encoder_sees_label, self.decoder_sees_label = label_to != "decoder", label_to != "encoder"
        self.build_layers(base_channels, depth, hidden)
        start = torch.tensor(-1.5)  # a deviation of 0.22, about that of a picture's pixels
        self.log_deviation = nn.Parameter(start) if likelihood == "gaussian" else None

    def build_layers(self, base_channels: int, depth: int, hidden: int) -> None:
        """Embedding, encoder and decoder; the label widens what the dense layers take in."""
        channels, height, width = self.image_shape
        widths = [channels, *(base_channels * 2**level for level in range(depth))]  # such as 1, 16, 32 channels
        deepest = (widths[-1], height // 2**depth, width // 2**depth)
        self.embedding = nn.Linear(self.classes, EMBEDDING, bias=False)
        self.encoder = nn.Sequential(*(halve(*pair) for pair in pairwise(widths)), nn.Flatten())
        self.to_code = dense(prod(deepest) + EMBEDDING * self.encoder_sees_label, hidden, 2 * self.latent_size)
        self.from_code = dense(self.latent_size + EMBEDDING * self.decoder_sees_label, hidden, prod(deepest))
        self.decoder = nn.Sequential(nn.Unflatten(1, deepest), *(double(*pair) for pair in pairwise(widths[::-1])))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw a code, decode, all with the same labels.

        Of images, float (N, C, H, W) in 0..1, and labels, int64 (N,): logits of the reconstruction (N, C, H, W), and
        mean and log-variance of the code, each (N, latent_size). ValueError for another shape, type or range.
        """
        mean, log_variance = self.encode(images, labels)
        return self.decode(self.reparameterise(mean, log_variance), labels), mean, log_variance

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | image, label), each (N, latent_size); arguments and errors as in forward."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (N, *{self.image_shape})")
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, expected numbers from 0 to 1: see to_unit")
        check_range("images", images, 0, 1)
        features = self.encoder(images)  # (N, deepest channels * H / 2^depth * W / 2^depth)
        if self.encoder_sees_label:
            features = torch.cat([features, self.embed(labels, len(images))], dim=1)
        mean, log_variance = self.to_code(features).chunk(2, dim=1)
        return mean, log_variance.clamp(max=10)  # from 89 on, its exponential is infinite

    def reparameterise(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """A draw z = mean + deviation * noise, (N, latent_size): gradients flow through it (paper, section 2.4)."""
        return mean + torch.exp(log_variance / 2) * torch.randn_like(mean)

    def decode(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Logits (N, C, H, W) of p(image | z, label), of codes (N, latent_size); labels and errors as in forward."""
        if codes.ndim != 2 or codes.shape[1] != self.latent_size:
            raise ValueError(f"codes have shape {tuple(codes.shape)}, expected (N, {self.latent_size})")
        if self.decoder_sees_label:
            codes = torch.cat([codes, self.embed(labels, len(codes))], dim=1)
        return self.decoder(self.from_code(codes))

    def reconstruction_loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """Minus the log-likelihood of images (N, C, H, W), given the decoder's logits: nats per image, (N,)."""
        if self.log_deviation is None:
            return bernoulli_loss(logits, images)
        return gaussian_loss(logits, images, self.log_deviation)

    def embed(self, labels: Tensor, count: int) -> Tensor:
        """The one-hot vector of each label (count, classes), through the embedding layer: (count, EMBEDDING)."""
        check_labels(labels, count, self.classes)
        return self.embedding(F.one_hot(labels, self.classes).to(self.embedding.weight.dtype))


def build_digit_vae(latent_size: int, base_channels: int, label_to: str) -> ConditionalVAE:
    """The model of Part 2a: 28 x 28 grey pixels, halved twice."""
    return ConditionalVAE((1, 28, 28), CLASSES, latent_size, base_channels, depth=2, label_to=label_to)


def build_picture_vae(latent_size: int, base_channels: int, label_to: str, hidden: int) -> ConditionalVAE:
    """The model of Part 2b: 32 x 32 coloured pixels, halved three times."""
    return ConditionalVAE((3, 32, 32), CLASSES, latent_size, base_channels, 3, label_to, "gaussian", hidden)
