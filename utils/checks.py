"""Checks of arguments: a ValueError in words, in place of a wrong number or an error three libraries down."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def check_integers(minimum: int = 1, **numbers: Any) -> None:
    """Refuse what is no integer, or below the minimum."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ValueError(f"{name}={value!r}: must be an integer of {minimum} or more")


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse two shapes that differ, where broadcasting might silently accept them."""
    (first, one), (second, other) = tensors.items()
    if one.shape != other.shape:
        raise ValueError(f"{first} have shape {tuple(one.shape)}, {second} {tuple(other.shape)}: they must be equal")


def check_range(name: str, tensor: Tensor, low: float, high: float) -> None:
    """Refuse values outside low..high, and NaN; not on a GPU, where each step would have to wait for the answer."""
    asked = tensor.device.type == "cpu" and tensor.numel()
    if asked and not low <= tensor.min() <= tensor.max() <= high:  # false for NaN, too
        found = f"{name} reach from {tensor.min():.3g} to {tensor.max():.3g}, expected {low} to {high}"
        diverged = "; if a network made them, its training has diverged: lower the learning rate or the loss's weights"
        raise ValueError(found + (diverged if tensor.isnan().any() else ""))


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """Refuse labels that are not int64 (count,) in 0 to classes - 1."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}, expected torch.int64 ({count},)")
    check_range("labels", labels, 0, classes - 1)
