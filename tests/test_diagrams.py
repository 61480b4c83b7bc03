"""The drawn models: what is written is what the model has, nothing is cut off, and drawing changes nothing."""

from copy import deepcopy
from itertools import combinations

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import same_color
from matplotlib.patches import Patch
from matplotlib.text import Annotation

from utils.cvae import EMBEDDING, LABEL_TO, ConditionalVAE
from utils.diagrams import PURPLE, WHITE, draw_autoencoder, draw_conditional_vae, draw_encoder_decoder, draw_unet
from utils.unet import UNet

DRAWINGS = (draw_autoencoder, draw_conditional_vae)
SIZES = {  # image_shape, classes, latent_size, base_channels, depth
    "grey": ((1, 28, 28), 10, 16, 16, 2),
    "colour": ((3, 32, 32), 10, 64, 16, 3),
    "shallow": ((1, 16, 24), 3, 256, 8, 1),
}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def build(name="grey", label_to="both"):
    return ConditionalVAE(*SIZES[name], label_to)


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def written(figure):
    return [text.get_text() for text in texts(figure)]


def label_arrows(figure):
    """Where the arrows in the label's colour end, without the one between one-hot vector and embedding."""
    arrows = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    ends = [arrow.xy for arrow in arrows if same_color(arrow.arrow_patch.get_edgecolor(), PURPLE)]
    assert sum(x == 0 for x, _ in ends) == 1
    return ["encoder" if x < 0 else "decoder" for x, _ in ends if x != 0]


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("name", SIZES)
def test_the_shapes_are_those_of_the_model(draw, name):
    (channels, height, width), _, _, base, depth = SIZES[name]
    model = build(name)
    lines = written(draw(model))
    assert lines.count(f"{channels} x {height} x {width}") == 2
    assert lines.count(str(model.to_code[0].out_features)) == 2
    for level in range(depth):
        assert lines.count(str(base * 2**level)) == 2
        assert lines.count(f"{height // 2 ** (level + 1)} x {width // 2 ** (level + 1)}") == 2


@pytest.mark.parametrize("name", SIZES)
def test_the_code_and_the_label_have_the_sizes_of_the_model(name):
    _, classes, latent, *_ = SIZES[name]
    assert f"code: {latent} numbers, a point" in written(draw_autoencoder(build(name)))
    lines = written(draw_conditional_vae(build(name)))
    assert {f"mean: {latent}", f"log-variance: {latent}", f"z: {latent}"} < set(lines)
    assert {f"label, one-hot: {classes}", f"embedding: {EMBEDDING}", "linear, no bias"} < set(lines)
    assert {"reconstruction loss", "KL divergence\nto N(0, 1)", "noise ~ N(0, 1)"} < set(lines)


@pytest.mark.parametrize("label_to", LABEL_TO)
def test_the_label_goes_where_the_model_is_told_it(label_to):
    figure, told = draw_conditional_vae(build(label_to=label_to)), ["encoder", "decoder"]
    assert label_arrows(figure) == (told if label_to == "both" else [label_to])
    title = next(line for line in written(figure) if line.startswith("Conditional VAE"))
    assert [half for half in told if half in title] == label_arrows(figure)


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_as_they_were(draw, training):
    model = build().train(training)
    weights, state = deepcopy(model.state_dict()), torch.get_rng_state()
    draw(model)
    assert all(module.training == training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(after, weights[name]) for name, after in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("name", SIZES)
def test_no_text_of_a_vae_is_cut_off_or_covers_anything(draw, name):
    check_layout(draw(build(name)))


@pytest.mark.parametrize("draw", [draw_unet, draw_encoder_decoder])
def test_no_text_of_a_u_net_is_cut_off_or_covers_anything(draw):
    check_layout(draw(UNet(3, 1, 8, 2, "maxpool", "upsample"), 64))


def check_layout(figure):
    """No text leaves the page, or meets another text, a picture or a box that is filled."""
    axes = figure.axes[0]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    boxes += [(shape, shape.get_window_extent()) for shape in [*axes.patches, *axes.images] if is_filled(shape)]
    for (one, box), (other, neighbour) in combinations(boxes, 2):
        assert not (isinstance(one, str) and box.overlaps(neighbour)), (one, other)


def is_filled(shape):
    return not isinstance(shape, Patch) or (shape.get_fill() and not same_color(shape.get_facecolor(), WHITE))


def test_a_u_net_has_the_channels_of_the_model():
    lines = written(draw_unet(UNet(3, 1, 8, 2, "maxpool", "transposed"), 32))
    assert {"3", "8", "16", "32", "8 + 8", "16 + 16", "32 x 32", "16 x 16", "8 x 8", "max pooling 2x2"} < set(lines)
    assert "transposed convolution 2x2" in lines
