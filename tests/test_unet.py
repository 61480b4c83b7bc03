"""The U-Net by shapes, gradients and the trait each variant is named for; batch normalisation against torch's."""

import pytest
import torch
from torch import nn

from utils.unet import DOWN, UP, BatchNorm2d, UNet, build_unet, up_convolution

FOLDED = [(4, 8, 16, 16), (1, 1, 8, 8), (3, 2, 32, 1), (2, 4, 3, 8), (5, 8, 8, 1)]  # (N, C, H, W)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # bfloat16: two or three roundings
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
    ((1, 3, 30, 32), "30 x 32: a U-Net of depth 3 needs multiples of 8"),
    ((1, 3, 32, 0), "multiples of 8"),
    ((1, 1, 32, 32), r"expected \(N, 3, H, W\)"),
    ((3, 32, 32), r"expected \(N, 3, H, W\)"),
])  # fmt: skip
def test_images_that_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        UNet(3, 1, 4, 3, "maxpool", "transposed")(torch.zeros(shape))


# --- Folded batch normalisation ---------------------------------------------------------------------------------------


def channels_last(*shape, dtype=torch.float64):
    """Maps whose channels differ in mean and deviation, in channels-last memory."""
    maps = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.5, 3, shape[1])[:, None, None] + 2
    return maps.to(dtype).contiguous(memory_format=torch.channels_last)


def is_folded(layer, x):
    return "NativeBatchNorm" not in type(layer(x).grad_fn).__name__  # the name of torch's own


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", FOLDED)
def test_maps_gradients_and_moments_are_those_of_torch_in_float64(shape, dtype):
    x, gradient = channels_last(*shape, dtype=dtype), channels_last(*shape, dtype=dtype)
    ours, theirs = BatchNorm2d(shape[1]), nn.BatchNorm2d(shape[1]).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    ours = ours.double() if dtype == torch.float64 else ours
    assert is_folded(ours, x)
    theirs(x.double())  # as `ours` has just done: running moments of two batches
    results = []
    for layer, kind in ((ours, dtype), (theirs, torch.float64)):
        leaf = x.to(kind, copy=True).requires_grad_()
        maps = layer(leaf)
        maps.backward(gradient.to(kind))
        results.append([maps, leaf.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var])
    for one, other in zip(*results):
        tolerance = TOLERANCES[dtype] * max(other.abs().max().item(), 1)
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 2


def test_two_values_in_one_channel_by_hand():
    """-1 and 3, thirty-two times each: mean 1, variance 4, unbiased 4 * 64 / 63."""
    layer = BatchNorm2d(1)
    maps = layer(torch.tensor([-1.0, 3.0]).repeat(32).view(1, 1, 8, 8).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(maps.flatten()[:2], torch.tensor([-1.0, 1.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.1]))
    torch.testing.assert_close(layer.running_var, torch.tensor([0.9 + 0.1 * 4 * 64 / 63]))


def test_gradients_by_finite_differences():
    layer, x = BatchNorm2d(2).double(), channels_last(2, 2, 4, 8).requires_grad_()
    nn.init.normal_(layer.weight)
    assert is_folded(layer, x)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x).square(), (x, layer.weight, layer.bias))


def test_gradients_may_be_a_slice_of_others_and_relu_may_work_in_place():
    """As in the expanding path, whose layers are joined along the channels."""
    x, gradients = channels_last(2, 8, 8, 8), []
    for kind in (BatchNorm2d, nn.BatchNorm2d):
        leaf, layer = x.clone().requires_grad_(), kind(8).double()
        joined = torch.cat([torch.relu_(layer(leaf)), 2 * leaf], dim=1)
        (joined * torch.arange(16.0).view(-1, 1, 1)).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_what_is_not_folded():
    """NCHW, pixels that leave a row half empty, channels that are many or do not divide a row, and evaluation."""
    layer, torchs, x = BatchNorm2d(8), nn.BatchNorm2d(8), channels_last(2, 8, 4, 4, dtype=torch.float32)
    assert is_folded(layer, x)
    assert not is_folded(layer, x.contiguous())
    for shape in ((1, 8, 3, 3), (2, 16, 4, 4), (2, 6, 8, 8)):
        assert not is_folded(BatchNorm2d(shape[1]), channels_last(*shape, dtype=torch.float32))
    torchs.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), torchs.eval()(x))
    assert not is_folded(layer, x)


@pytest.mark.parametrize("shape", [(64, 4, 1, 1), (8, 8, 8), (1, 8, 1, 1)])
def test_errors_are_torchs(shape):
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        nn.BatchNorm2d(8)(torch.zeros(shape))
    with pytest.raises(theirs.type) as ours:
        BatchNorm2d(8)(torch.zeros(shape))
    assert str(ours.value) == str(theirs.value)
