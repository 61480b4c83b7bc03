"""Figures: what is written is what the model has, nothing is cut off or covered, and drawing changes nothing."""

from copy import deepcopy
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import same_color, to_hex
from matplotlib.patches import Patch
from matplotlib.text import Annotation

from utils import figures, losses, unet
from utils.cvae import EMBEDDING, LABEL_TO, ConditionalVAE
from utils.data import BACKGROUND, BORDER, CIFAR10_CLASSES, PET
from utils.figures import PURPLE, WHITE, draw_autoencoder, draw_conditional_vae, draw_unet
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
    boxes = [arrow.xycoords for arrow in arrows if arrow.arrow_patch and same_color(arrow.arrow_patch.get_ec(), PURPLE)]
    middles = [box.get_x() + box.get_width() / 2 for box in boxes]
    assert sum(abs(x) < 1e-9 for x in middles) == 1
    return ["encoder" if x < 0 else "decoder" for x in middles if abs(x) > 1e-9]


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
    assert {f"label, one-hot: {classes}", f"embedding: {EMBEDDING}"} < set(lines)
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


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize(("depth", "side"), [(2, 64), (4, 128)])
def test_no_text_of_a_u_net_is_cut_off_or_covers_anything(depth, side, skips):
    check_layout(draw_unet(UNet(3, 1, 8, depth, "maxpool", "upsample"), side, skips))


def check_layout(figure):
    """No text leaves the page, or meets another text, a picture or a box that is filled."""
    axes = figure.axes[0]
    check_boxes(figure, texts(figure), [shape for shape in [*axes.patches, *axes.images] if is_filled(shape)])


def check_boxes(figure, texts, shapes=()):
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    boxes += [(shape, shape.get_window_extent()) for shape in shapes]
    for (one, box), (other, neighbour) in combinations(boxes, 2):
        assert not (isinstance(one, str) and box.overlaps(neighbour)), (one, other)


def is_filled(shape):
    return not isinstance(shape, Patch) or (shape.get_fill() and not same_color(shape.get_facecolor(), WHITE))


def test_a_u_net_has_the_channels_of_the_model():
    model = UNet(3, 1, 8, 2, "maxpool", "transposed")
    lines = written(draw_unet(model, 32))
    assert {"3 x 32 x 32", "8 x 32 x 32", "16 x 16 x 16", "32 x 8 x 8", "1 x 32 x 32"} < set(lines)
    assert {"contracting path: max pooling 2x2", "expanding path: transposed convolution 2x2"} < set(lines)
    assert lines.count("concatenate") == 2
    assert "concatenate" not in written(draw_unet(model, 32, skips=False))


# --- Plots ------------------------------------------------------------------------------------------------------------

LONGEST = torch.tensor([1, 0, 4, 6, 9]).repeat(5)  # automobile, airplane, deer, ...


def tiles(dataset="cifar10"):
    """25 photographs, each sent with the next class; the judge reads the label in every second one."""
    images, sent = torch.rand(25, 3, 32, 32), (LONGEST + 1) % 10
    read = torch.where(torch.arange(25) % 2 == 0, sent, LONGEST)
    probabilities = torch.nn.functional.one_hot(read, 10) * 0.9 + 0.01
    title = "The label-following model, 25 wrong labels"
    return figures.plot_wrong_labels(images, images, LONGEST, sent, probabilities, CIFAR10_CLASSES, title, dataset)


def test_the_25_tiles_say_what_was_sent_and_read_and_how_many_followed():
    figure = tiles()
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[0] == "sent bird\nreads bird, 91% ✓"
    assert titles[1] == "sent automobile\nreads airplane, 91% ✗"
    assert "13 of 25 read as the label sent" in figure.get_suptitle()


def test_no_text_of_the_25_tiles_is_cut_off_or_covers_another():
    figure = tiles()
    figure.canvas.draw()
    axes = [ax for tile in figure.axes for ax in (tile, *tile.child_axes)]
    texts = [text for ax in axes for text in (ax.title, ax.xaxis.label) if text.get_text()]
    assert len(texts) == 50
    check_boxes(figure, texts)


def test_a_figure_of_stand_in_data_says_so():
    assert tiles("stand-in").get_suptitle().startswith("STAND-IN DATA: ")
    assert "STAND-IN" not in tiles().get_suptitle()


def test_found_is_blue_missed_red_and_a_false_alarm_yellow():
    trimap = torch.tensor([[PET, BORDER], [BACKGROUND, BACKGROUND]]).byte()[None]
    mask, image = torch.tensor([[True, False], [True, False]])[None], torch.zeros(3, 2, 2, dtype=torch.uint8)

    def painted(ax):
        layers, colours = [layer.get_array() for layer in ax.images[1:]], {}
        for layer in layers:
            for row, column in np.argwhere(layer.any(2)):
                colours[int(row), int(column)] = to_hex(layer[row, column][:3]).upper()
        return colours

    scores = {"one": torch.tensor([0.25])}
    truth = figures.plot_predictions([image], [""], {"one": [mask]}, "", "pets", trimap[None], scores)
    assert painted(truth.axes[2]) == {(0, 0): figures.FOUND, (0, 1): figures.MISSED, (1, 0): figures.FALSE_ALARM}
    assert truth.axes[2].get_xlabel() == "IoU 0.25"
    own = figures.plot_predictions([image], [""], {"one": [mask]}, "", "pets")
    assert painted(own.axes[1]) == {(0, 0): figures.FOUND, (1, 0): figures.FOUND}, "nobody knows better"


def test_a_table_of_images_has_each_in_its_place():
    images = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 5) / 5
    shown = figures.plot_image_table(images, ["a", "b"], ["x", "y", "z"], "", "mnist").axes[0].images[0].get_array()
    corners = np.asarray(shown)[::7, ::8].squeeze()  # 3 pixels between the images
    assert corners == pytest.approx(images[:, :, 0, 0, 0].numpy())


def test_the_curves_of_the_elbo_are_those_of_their_names():
    parts, kinds = ("reconstruction", "kl", "negative_elbo"), {"": 0.0, "validation_": 100.0}
    rows = [
        {kind + part: first + 10 * i + epoch for kind, first in kinds.items() for i, part in enumerate(parts)}
        for epoch in range(3)
    ]
    for i, ax in enumerate(figures.plot_elbo_curves({"plain": rows}, "mnist").axes):
        drawn = {line.get_label(): (line.get_linestyle(), list(line.get_ydata())) for line in ax.lines}
        values = [10 * i + epoch for epoch in range(3)]
        assert drawn == {
            "plain, training": (":", values),
            "plain, validation": ("-", [100 + value for value in values]),
        }


def test_the_first_epoch_may_lie_outside_but_not_of_the_kl_divergence():
    row = {f"{kind}{key}": 1.0 for kind in ("", "validation_") for key in ("reconstruction", "kl", "negative_elbo")}
    rows = [dict.fromkeys(row, 100.0), row, dict.fromkeys(row, 3.0)]
    limits = [ax.get_ylim() for ax in figures.plot_elbo_curves({"plain": rows}, "mnist").axes]
    assert [low < 1 for low, _ in limits] == [True] * 3
    assert [high > 100 for _, high in limits] == [False, True, False]


def test_the_epochs_on_the_axis_are_those_of_the_longest_training():
    row = {f"{kind}{key}": 1.0 for kind in ("", "validation_") for key in ("reconstruction", "kl", "negative_elbo")}
    for axes in figures.plot_elbo_curves({"long": [row] * 5, "short": [row] * 2}, "mnist").axes:
        assert list(axes.get_xticks()) == [1, 2, 3, 4, 5]


def test_the_curves_of_the_u_nets_are_those_of_their_panels():
    sizes = [8, 8, 16]
    bce, dice = ([{"loss": first - i, "score": (first + i) / 100} for i in range(3)] for first in (10.0, 20.0))
    figure = figures.plot_learning_curves({"MP+Tr+BCE": bce, "MP+Tr+Dice": dice}, sizes, "oxford-iiit-pet")
    ious = [("MP+Tr+BCE", [0.1, 0.11, 0.12]), ("MP+Tr+Dice", [0.2, 0.21, 0.22])]
    ends = [(name, values[2:]) for name, values in ious]
    panels = [[("MP+Tr+BCE", [10, 9, 8])], [("MP+Tr+Dice", [20, 19, 18])], ious, ends]
    for ax, expected in zip(figure.axes, panels, strict=True):
        curves, dashed = ax.lines[: len(expected)], ax.lines[len(expected) :]
        assert [(line.get_label(), [*line.get_ydata()]) for line in curves] == expected
        assert [min(line.get_xdata()) for line in dashed] == ([] if expected is ends else [0.5, 2.5])
        assert [text.get_text() for text in ax.texts] == ([] if expected is ends else ["8 px", "16 px"])


def test_codes_have_the_mean_and_the_deviation_of_each_class():
    angle, labels = torch.tensor(0.5), torch.arange(4000) % 2
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    points = torch.randn(4000, 2) * torch.tensor([3.0, 1.0]) @ turn.T + torch.tensor([[0.0, 0.0], [20.0, -5.0]])[labels]
    [ax] = figures.plot_codes({"label to both": points}, labels, "mnist").axes
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    for ellipse, text, middle in zip(ax.patches, ax.texts, ((0, 0), (20, -5))):
        assert ellipse.center == pytest.approx(middle, abs=0.2)
        assert text.get_position() == pytest.approx(middle, abs=0.2)
        widths = sorted(zip((ellipse.width, ellipse.height), (ellipse.angle, ellipse.angle + 90)))
        assert [width for width, _ in widths] == pytest.approx([2, 6], rel=0.06)
        assert np.degrees(0.5) == pytest.approx(widths[1][1] % 180, abs=2)


@pytest.mark.parametrize("count", [1, 3])
def test_plots_take_any_number_of_pictures_and_epochs(tmp_path, count):
    images, trimaps = torch.randint(256, (count, 3, 16, 16)).byte(), torch.randint(1, 4, (count, 1, 16, 16)).byte()
    masks, ious, names = {"one": trimaps > 1}, {"one": torch.ones(count)}, ["$_$.jpg"] * count
    row = {f"{kind}{key}": 1.0 for kind in ("", "validation_") for key in ("reconstruction", "kl", "negative_elbo")}
    histories = {"MP+Tr+Dice": [{"loss": 1.0, "score": 0.5}] * count}
    unit = torch.rand(1, count, 1, 8, 8)
    for figure in (
        figures.plot_tiles([[(image, {}, "one")] for image in images], ["header"], "title", "stand-in"),
        figures.plot_lines([({"one": (range(count), range(count))}, {"title": "panel"})], "title"),
        figures.plot_learning_curves(histories, [16] * count, "stand-in"),
        figures.plot_predictions(images, names, masks, "title", "stand-in", trimaps, ious),
        figures.plot_predictions(images, names, masks, "title", "stand-in"),
        figures.plot_image_table(unit, ["row"], [""] * count, "title", "stand-in"),
        figures.plot_elbo_curves({"plain": [row] * count}, "stand-in"),
    ):
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 1000


# --- Displayed sources ------------------------------------------------------------------------------------------------


def test_a_displayed_source_is_the_code_with_its_docstring_cut_short():
    shown = figures.source_of(losses.dice_loss)
    assert shown.splitlines()[1].endswith('e = 1e-5."""')
    assert "# exp(log sigmoid) keeps the gradient" in shown
    assert "Milletari" not in shown
    names = {
        "F": torch.nn.functional,
        "Tensor": torch.Tensor,
        "EPSILON": 1e-5,
        "check_same_shape": losses.check_same_shape,
    }
    exec(shown, names)  # it is still code
    logits, targets = torch.randn(2, 5), torch.ones(2, 5)
    assert names["dice_loss"](logits, targets) == losses.dice_loss(logits, targets)


def test_a_method_is_shown_without_its_indent():
    assert figures.source_of(unet.UNet.forward).startswith("def forward(self, images")
