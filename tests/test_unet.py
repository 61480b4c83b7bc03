"""The U-Net by its shapes, its gradients, and the trait that each variant is named for."""

from itertools import product

import pytest
import torch
from torch import nn

from utils.unet import DOWN, UP, BatchNorm2d, UNet, up_convolution

KINDS = list(product(DOWN.values(), UP.values()))


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


# --- Folded batch normalisation, against torch's own in float64, by hand, and by finite differences -------------------


FEW = [(4, 8, 16, 16), (1, 1, 8, 8), (3, 2, 32, 1), (2, 4, 3, 8), (5, 8, 8, 1)]  # (N, C, H, W) that are folded
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # bfloat16: two or three roundings


def channels_last(*shape, dtype=torch.float64):
    """Maps whose channels differ in mean and deviation, in channels-last memory."""
    maps = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.5, 3, shape[1])[:, None, None] + 2
    return maps.to(dtype).contiguous(memory_format=torch.channels_last)


def run(layer, x, gradient):
    """What a training step reads and changes: the maps, the three gradients, the running moments."""
    x = x.clone().requires_grad_()
    maps = layer(x)
    maps.backward(gradient)
    return [maps, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]


def is_folded(layer, x):
    return type(layer(x).grad_fn).__name__ == "FoldedBatchNormBackward"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", FEW)
def test_numbers_are_those_of_torch(shape, dtype):
    torch.manual_seed(0)
    x, gradient = channels_last(*shape, dtype=dtype), channels_last(*shape, dtype=dtype)
    ours, theirs = BatchNorm2d(shape[1]), nn.BatchNorm2d(shape[1]).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    ours = ours.double() if dtype == torch.float64 else ours
    assert is_folded(ours, x)
    theirs(x.double())  # as `ours` has just done: running moments of two batches
    for one, other in zip(run(ours, x, gradient), run(theirs, x.double(), gradient.double()), strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=TOLERANCES[dtype] * max(scale, 1))
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 2


def test_two_values_in_one_channel_by_hand():
    """-1 and 3, thirty-two times each: mean 1, variance 4, unbiased 4 * 64 / 63."""
    layer = BatchNorm2d(1)
    x = torch.tensor([-1.0, 3.0]).repeat(32).view(1, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    maps = layer(x)
    torch.testing.assert_close(maps.flatten()[:2], torch.tensor([-1.0, 1.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.1]))
    torch.testing.assert_close(layer.running_var, torch.tensor([0.9 + 0.1 * 4 * 64 / 63]))


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    layer = BatchNorm2d(2).double()
    nn.init.normal_(layer.weight)
    x = channels_last(2, 2, 4, 8).requires_grad_()
    assert is_folded(layer, x)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x).square(), (x, layer.weight, layer.bias))


def test_gradients_may_be_a_slice_of_others_and_relu_may_work_in_place():
    """As in the expanding path, whose layers are joined along the channels."""
    torch.manual_seed(0)
    x, gradients = channels_last(2, 8, 8, 8), []
    for kind in (BatchNorm2d, nn.BatchNorm2d):
        leaf, layer = x.clone().requires_grad_(), kind(8).double()
        joined = torch.cat([torch.relu_(layer(leaf)), 2 * leaf], dim=1)
        (joined * torch.arange(16.0).view(-1, 1, 1)).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_what_is_not_folded():
    """Evaluation, NCHW, channels that are many or do not divide a row, pixels that leave a row half empty."""
    layer = BatchNorm2d(8)
    x = channels_last(2, 8, 4, 4, dtype=torch.float32)
    assert is_folded(layer, x)
    assert not is_folded(layer, x.contiguous())
    assert not is_folded(layer, channels_last(1, 8, 3, 3, dtype=torch.float32))
    assert not is_folded(BatchNorm2d(16), channels_last(2, 16, 4, 4, dtype=torch.float32))
    assert not is_folded(BatchNorm2d(6), channels_last(2, 6, 8, 8, dtype=torch.float32))
    assert not is_folded(layer.eval(), x)


def test_evaluation_is_torchs():
    torch.manual_seed(0)
    x, ours, theirs = channels_last(2, 8, 8, 8, dtype=torch.float32), BatchNorm2d(8), nn.BatchNorm2d(8)
    ours(x)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("shape", "message"), [
    ((64, 4, 1, 1), "expected input to have 8 channels|running_mean should contain 4"),
    ((8, 8, 8), "expected 4D input"),
    ((1, 8, 1, 1), "Expected more than 1 value per channel"),
])  # fmt: skip
def test_errors_are_torchs(shape, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        BatchNorm2d(8)(torch.zeros(shape))
