"""U-Net from scratch, in the terms of Ronneberger, Fischer and Brox 2015 (arXiv:1505.04597, figure 1).

Two things differ from the paper, as in nearly every implementation since: convolutions are padded ('same'), so that the
output is as large as the input, and those of `double_convolution` have batch normalisation (Ioffe and Szegedy 2015).
"""

import torch
from torch import Tensor, nn

from utils.checks import check_integers

DOWN = {"MP": "maxpool", "StrConv": "strided"}
UP = {"Tr": "transposed", "Ups": "upsample"}


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch normalisation and ReLU: the unit that both paths repeat."""
    layers = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),  # batch norm has the bias
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def down_sampling(kind: str, channels: int) -> nn.Module:
    """Halve both sides, keep the channels: (N, C, H, W) -> (N, C, H/2, W/2)."""
    if kind == "maxpool":
        return nn.MaxPool2d(kernel_size=2)
    return nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)


def up_convolution(kind: str, in_channels: int) -> nn.Module:
    """Double both sides, halve the channels: (N, C, H, W) -> (N, C/2, 2H, 2W)."""
    out_channels = in_channels // 2
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
    # A 1x1 convolution and bilinear interpolation commute; convolving first costs a quarter.
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )


class UNet(nn.Module):
    """A contracting path, a bottleneck and an expanding path, joined by skip connections.

    Args:
        in_channels: channels of the image, 3 for RGB.
        out_channels: maps to predict, 1 for foreground against background.
        base_channels: channels of the first level; each level down has twice as many.
        depth: how many times the sides are halved; both must be multiples of 2**depth.
        down: "maxpool" (MP) or "strided" (StrConv, a convolution that steps by two, and no pooling).
        up: "transposed" (Tr, a transposed convolution) or "upsample" (Ups, bilinear, and no transposed convolution).

    Raises:
        ValueError: for an unknown `down` or `up`, or a size that is not a positive integer.
    """

    def __init__(self, in_channels: int, out_channels: int, base_channels: int, depth: int, down: str, up: str):
        super().__init__()
        if down not in DOWN.values() or up not in UP.values():
            raise ValueError(f"down={down!r}, up={up!r}: choose from {[*DOWN.values()]} and {[*UP.values()]}")
        check_integers(in_channels=in_channels, out_channels=out_channels, base_channels=base_channels, depth=depth)
        self.in_channels, self.depth = in_channels, depth
        widths = [base_channels * 2**level for level in range(depth + 1)]  # 16, 32, 64, ... towards the bottleneck

        self.contracting_path = nn.ModuleList(
            double_convolution(before, after) for before, after in zip([in_channels, *widths], widths[:-1])
        )
        self.down_samplings = nn.ModuleList(down_sampling(down, width) for width in widths[:-1])
        self.bottleneck = double_convolution(widths[-2], widths[-1])
        self.up_convolutions = nn.ModuleList(up_convolution(up, width) for width in reversed(widths[1:]))
        self.expanding_path = nn.ModuleList(double_convolution(2 * width, width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(base_channels, out_channels, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, out_channels, H, W) of images (N, in_channels, H, W).

        Raises ValueError if the images have another number of channels, or sides that 2**depth does not divide.
        """
        step, sides = 2**self.depth, images.shape[2:]
        if images.ndim != 4 or images.shape[1] != self.in_channels or any(side % step or not side for side in sides):
            needed = f"(N, {self.in_channels}, H, W) with H and W multiples of {step} (depth {self.depth})"
            raise ValueError(f"images have shape {tuple(images.shape)}, expected {needed}: resize or pad them")
        skips, x = [], images
        for convolve, shrink in zip(self.contracting_path, self.down_samplings):
            x = convolve(x)  # level i: (N, base * 2^i, H / 2^i, W / 2^i)
            skips.append(x)
            x = shrink(x)  # sides / 2
        x = self.bottleneck(x)  # (N, base * 2^depth, H / 2^depth, W / 2^depth)
        for enlarge, convolve in zip(self.up_convolutions, self.expanding_path):
            x = enlarge(x)  # sides * 2, channels / 2
            x = convolve(torch.cat([skips.pop(), x], dim=1))  # skip connection: channels * 2, then / 2
        return self.head(x)  # 1x1 convolution: (N, out_channels, H, W)


def build_unet(variant: str, base_channels: int, depth: int) -> UNet:
    """The network for photographs that a name such as "StrConv+Ups+Dice" stands for; the loss takes no part in it."""
    down, up, _ = variant.split("+")
    return UNet(3, 1, base_channels, depth, DOWN[down], UP[up])
