"""U-Net from scratch, in the terms of Ronneberger, Fischer and Brox 2015 (arXiv:1505.04597, figure 1).

Two things differ from the paper, as in nearly every implementation since: convolutions are padded ('same'), so that the
output is as large as the input, and each is followed by batch normalisation (Ioffe and Szegedy 2015).
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from utils.checks import check_integers

DOWN = {"MP": "maxpool", "StrConv": "strided"}
UP = {"Tr": "transposed", "Ups": "upsample"}
FEW = 8  # channels; from 16 on, torch's own kernels of batch normalisation are as fast
COLUMNS = 64  # in a row: enough to fill the processor's vectors, and to keep its threads off each other's cache lines


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch normalisation and ReLU: the unit that both paths repeat."""
    layers = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),  # batch norm has the bias
            BatchNorm2d(out_channels),  # torch's, but fast for few channels
            nn.ReLU(inplace=True),
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
        widths = [base_channels * 2**level for level in range(depth + 1)]  # 8, 16, 32, ... towards the bottleneck

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
        self.check(images)
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

    def check(self, images: Tensor) -> None:
        """Refuse, in words, what the layers would refuse in riddles."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (N, {self.in_channels}, H, W)")
        step, (height, width) = 2**self.depth, images.shape[2:]
        if not height or not width or height % step or width % step:
            needed = f"a U-Net of depth {self.depth} needs multiples of {step}; resize or pad them"
            raise ValueError(f"images are {height} x {width}: {needed}")


def build_unet(variant: str, base_channels: int, depth: int) -> UNet:
    """The network for photographs that a name such as "StrConv+Ups+Dice" stands for; the loss takes no part in it."""
    down, up, _ = variant.split("+")
    return UNet(3, 1, base_channels, depth, DOWN[down], UP[up])


# --- Batch normalisation that is fast for few channels ----------------------------------------------------------------


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1), folded where channels are few.

    A channels-last batch is a matrix with a row for each pixel. Of 8 channels, torch's kernels are slower on two
    threads than on one. Here several pixels make a row of 64, and the moments of its columns are pooled: the same
    numbers but for rounding, and U-Nets train 1.3 times as fast. Only in training, and on a CPU.
    """

    def __init__(self, num_features: int):
        super().__init__(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps (N, C, H, W) of maps (N, C, H, W); errors as torch's."""
        if not (self.training and self.can_fold(x)):
            return super().forward(x)
        normalised, mean, variance = FoldedBatchNorm.apply(x, self.weight, self.bias, self.eps)
        count = x.numel() // self.num_features
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return normalised

    def can_fold(self, x: Tensor) -> bool:
        """Whether channels are few, rows lie ready in memory, and every row is full."""
        if x.device.type != "cpu" or x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            return False
        few = x.shape[1] == self.num_features <= FEW and COLUMNS % self.num_features == 0
        return few and x.numel() > 0 and x.numel() % COLUMNS == 0


class FoldedBatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of x itself."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised maps (N, C, H, W) of maps (N, C, H, W), and the mean and variance of each channel, (C,)."""
        unused = torch.zeros(COLUMNS, dtype=torch.promote_types(x.dtype, torch.float32))
        moments = torch.batch_norm_update_stats(fold(x), unused, unused.clone(), 0.0)
        means, variances = (of_columns.view(-1, x.shape[1]) for of_columns in moments)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)  # the law of total variance
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return affine(x, mean, variance, weight, bias, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor | None, ...]:
        """weight / s (g - mean(g) - x' mean(g x')), with x' = (x - mean) / s and s = sqrt(variance + eps).

        The paper's section 3 in one line; sum(g x') and sum(g) are the gradients of weight and bias.
        """
        x, weight, mean, variance = ctx.saved_tensors
        count, ones, zeros = x.numel() // len(weight), torch.ones_like(mean), torch.zeros_like(weight)
        given = [to_columns(mean), to_columns(variance), None, None, False]  # not to be taken from the columns
        _, along_x, total = torch.ops.aten.native_batch_norm_backward(
            fold(gradient), fold(x), to_columns(ones), *given, ctx.eps, [False, True, True]
        )
        along_x, total = (of_columns.view(-1, len(mean)).sum(0) for of_columns in (along_x, total))
        shares = weight * torch.rsqrt(variance + ctx.eps) * along_x / count
        result = affine(gradient, total / count, variance, weight, zeros, ctx.eps)
        result -= affine(x, mean, variance, shares, zeros, ctx.eps)
        return result, along_x, total, None


def fold(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as (1, 64, N * H * W * C / 64, 1), a view if they are channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(1, -1, 1, COLUMNS).permute(0, 3, 1, 2)


def to_columns(channels: Tensor) -> Tensor:
    """Numbers (C,), one for each channel, as (64,), one for each column."""
    return channels.repeat(COLUMNS // len(channels))


def affine(maps: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(maps - mean) / sqrt(variance + eps) * weight + bias, of maps (N, C, H, W) and (C,) each."""
    result = torch.empty_like(maps, memory_format=torch.channels_last)  # no view: ReLU works in place on it
    of_columns = [to_columns(each) for each in (weight, bias, mean, variance)]
    unused = mean.new_empty(0)
    torch.native_batch_norm(fold(maps), *of_columns, False, 0.0, eps, out=(fold(result), unused, unused.clone()))
    return result
