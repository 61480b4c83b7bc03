"""Batch normalisation that is fast where channels are few, too; its numbers are torch's, but for their rounding."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW = 8  # channels; from 16 on, torch's own kernels are as fast
COLUMNS = 64  # in a row: enough to fill the processor's vectors, and to keep its threads off each other's cache lines


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1), folded where channels are few.

    A batch in channels-last memory is a matrix with a row for each pixel, and torch's kernels take it row by row. With
    8 channels that is slow, on two threads slower than on one. Here several pixels make a row of 64, and the moments of
    its columns are pooled. So it is in training on a CPU; elsewhere this is torch's own layer.

    Args:
        num_features: channels.
    """

    def __init__(self, num_features: int):
        super().__init__(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps (N, C, H, W) of maps (N, C, H, W); errors as torch's."""
        if not (self.training and self.folds(x)):
            return super().forward(x)
        with torch.no_grad():
            mean, variance = moments(x)
            count = x.numel() // self.num_features
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return Normalisation.apply(x, self.weight, self.bias, mean, variance, self.eps)

    def folds(self, x: Tensor) -> bool:
        """Whether channels are few, rows lie ready in memory, and every row is full."""
        if x.device.type != "cpu" or x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            return False
        few = x.shape[1] == self.num_features <= FEW and COLUMNS % self.num_features == 0
        return few and x.numel() > 0 and x.numel() % COLUMNS == 0


class Normalisation(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are those of x itself."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        """Maps (N, C, H, W) of maps (N, C, H, W); the other tensors are (C,)."""
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        return affine(x, mean, variance, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """weight / s (g - mean(g) - x' mean(g x')), with x' = (x - mean) / s and s = sqrt(variance + eps).

        The paper's section 3 in one line; sum(g x') and sum(g) are the gradients of weight and bias.
        """
        x, weight, mean, variance = ctx.saved_tensors
        count = x.numel() // len(weight)
        along_x, total = sums(gradient, x, mean, variance, ctx.eps)
        shares = weight * torch.rsqrt(variance + ctx.eps) * along_x / count
        none = torch.zeros_like(weight)
        result = affine(gradient, total / count, variance, weight, none, ctx.eps)
        result -= affine(x, mean, variance, shares, none, ctx.eps)
        return result, along_x, total, None, None, None


def folded(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as (1, 64, N * H * W * C / 64, 1), a view if they are channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(1, -1, 1, COLUMNS).permute(0, 3, 1, 2)


def columns(channels: Tensor) -> Tensor:
    """Numbers (C,), one for each channel, as (64,), one for each column."""
    return channels.repeat(COLUMNS // len(channels))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by the count) of each channel of maps (N, C, H, W): (C,) each, float32 or float64."""
    unused = torch.zeros(COLUMNS, dtype=torch.promote_types(x.dtype, torch.float32))
    means, variances = torch.batch_norm_update_stats(folded(x), unused, unused.clone(), 0.0)
    means, variances = means.view(-1, x.shape[1]), variances.view(-1, x.shape[1])
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)  # the law of total variance


def sums(gradient: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """sum(g x') and sum(g) of each channel, (C,) each, of maps g and x (N, C, H, W) and the moments of x."""
    given = [columns(mean), columns(variance), None, None, False]  # not to be taken from the columns
    which = [False, True, True]  # no gradient of x, the two sums
    _, along_x, total = torch.ops.aten.native_batch_norm_backward(
        folded(gradient), folded(x), columns(torch.ones_like(mean)), *given, eps, which
    )
    return along_x.view(-1, len(mean)).sum(0), total.view(-1, len(mean)).sum(0)


def affine(maps: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(maps - mean) / sqrt(variance + eps) * weight + bias, of maps (N, C, H, W) and (C,) each."""
    result = torch.empty_like(maps, memory_format=torch.channels_last)  # no view: ReLU works in place on it
    of_columns = [columns(each) for each in (weight, bias, mean, variance)]
    unused = mean.new_empty(0)
    torch.native_batch_norm(folded(maps), *of_columns, False, 0.0, eps, out=(folded(result), unused, unused.clone()))
    return result
