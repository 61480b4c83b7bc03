"""The U-Net by shapes, gradients and the trait each variant is named for."""

import pytest
import torch
from torch import nn

from utils.unet import DOWN, UP, UNet, build_unet, up_convolution

each_variant = pytest.mark.parametrize(("down", "up"), [(down, up) for down in DOWN for up in UP])


@each_variant
@pytest.mark.parametrize(("depth", "height", "width"), [(1, 2, 6), (3, 24, 40), (5, 64, 64)])
def test_output_is_as_large_as_the_input_and_every_parameter_gets_a_gradient(down, up, depth, height, width):
    model = UNet(3, 2, 4, depth, DOWN[down], UP[up])
    logits = model(torch.randn(4, 3, height, width))
    assert logits.shape == (4, 2, height, width)
    logits.square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@each_variant
def test_each_variant_samples_as_its_name_says(down, up):
    layers = [*build_unet(f"{down}+{up}+Dice", 4, 3).modules()]
    kinds, strides = {*map(type, layers)}, {layer.stride for layer in layers if isinstance(layer, nn.Conv2d)}
    assert (nn.MaxPool2d in kinds) == (down == "MP")
    assert ((2, 2) in strides) == (down == "StrConv")
    assert (nn.ConvTranspose2d in kinds) == (up == "Tr")
    assert (nn.Upsample in kinds) == (up == "Ups")
    assert not {nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d} & kinds


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
    ((1, 3, 30, 32), r"\(1, 3, 30, 32\), expected \(N, 3, H, W\) with H and W multiples of 8 \(depth 3\)"),
    ((1, 3, 32, 0), "multiples of 8"),
    ((1, 1, 32, 32), r"expected \(N, 3, H, W\)"),
    ((3, 32, 32), r"expected \(N, 3, H, W\)"),
])  # fmt: skip
def test_images_that_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        UNet(3, 1, 4, 3, "maxpool", "transposed")(torch.zeros(shape))
