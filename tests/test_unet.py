"""The U-Net by its shapes, its gradients, and the trait that each variant is named for."""

from itertools import product

import pytest
import torch
from torch import nn

from utils.unet import DOWN, UP, UNet, up_convolution

KINDS = list(product(DOWN, UP))


@pytest.mark.parametrize(("down", "up"), KINDS)
@pytest.mark.parametrize(("depth", "height", "width"), [(1, 2, 6), (3, 24, 40), (5, 64, 64)])
def test_output_is_as_large_as_the_input(down, up, depth, height, width):
    model = UNet(3, 2, 4, depth, down, up).eval()
    assert model(torch.randn(2, 3, height, width)).shape == (2, 2, height, width)


@pytest.mark.parametrize(("down", "up"), KINDS)
def test_every_parameter_gets_a_gradient(down, up):
    model = UNet(3, 1, 4, 3, down, up)
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def kinds_of_layers(down, up):
    return {type(module) for module in UNet(3, 1, 4, 3, down, up).modules()}


def strides(down, up):
    return {m.stride for m in UNet(3, 1, 4, 3, down, up).modules() if isinstance(m, nn.Conv2d)}


def test_max_pooling_pools_and_does_not_stride():
    assert nn.MaxPool2d in kinds_of_layers("maxpool", "transposed")
    assert strides("maxpool", "transposed") == {(1, 1)}


def test_strided_holds_no_pooling():
    pooling = {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d}
    assert not pooling & kinds_of_layers("strided", "transposed")
    assert (2, 2) in strides("strided", "transposed")


def test_upsampling_holds_no_transposed_convolution():
    assert nn.ConvTranspose2d not in kinds_of_layers("strided", "upsample")
    assert nn.Upsample in kinds_of_layers("strided", "upsample")
    assert nn.Upsample not in kinds_of_layers("strided", "transposed")
    assert nn.ConvTranspose2d in kinds_of_layers("strided", "transposed")


def test_skip_connections_carry_detail_around_the_bottleneck():
    model = UNet(1, 1, 4, 2, "maxpool", "transposed").eval()
    for module in model.bottleneck:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)  # the bottleneck says the same of every image
    one, other = torch.randn(2, 1, 1, 16, 16)
    assert not torch.allclose(model(one), model(other))


def test_convolving_before_upsampling_is_upsampling_before_convolving():
    convolve, enlarge = up_convolution("upsample", 8)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(enlarge(convolve(x)), convolve(enlarge(x)))


def test_parameters_of_the_smallest_network_by_hand():
    # down 3*9*1+2 and 1*9*1+2, bottleneck 1*9*2+4 and 2*9*2+4, up 2*4*1+1, then 2*9*1+2 and 1*9*1+2, head 1+1
    model = UNet(3, 1, 1, 1, "maxpool", "transposed")
    assert sum(p.numel() for p in model.parameters()) == (29 + 11) + (22 + 40) + 9 + (20 + 11) + 2


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 3, 30, 32), "30 x 32: a U-Net of depth 3 needs multiples of 8"),
    ((1, 3, 32, 0), "multiples of 8"),
    ((1, 1, 32, 32), r"expected \(N, 3, H, W\)"),
    ((3, 32, 32), r"expected \(N, 3, H, W\)"),
])  # fmt: skip
def test_wrong_images_are_refused_in_words(shape, message):
    with pytest.raises(ValueError, match=message):
        UNet(3, 1, 4, 3, "maxpool", "transposed")(torch.zeros(shape))


@pytest.mark.parametrize(("change", "message"), [
    ({"down": "average"}, "down='average'"),
    ({"up": "nearest"}, "up='nearest'"),
    ({"depth": 0}, "depth=0: must be an integer of 1 or more"),
    ({"base_channels": 2.5}, "base_channels=2.5: must be an integer"),
])  # fmt: skip
def test_wrong_arguments_are_refused_in_words(change, message):
    arguments = {"in_channels": 3, "out_channels": 1, "base_channels": 4, "depth": 3}
    with pytest.raises(ValueError, match=message):
        UNet(**(arguments | {"down": "maxpool", "up": "upsample"} | change))
