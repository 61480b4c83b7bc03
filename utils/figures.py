"""Every figure of the course: plots of data and results, and drawings of the networks. Nothing is computed here.

Colours are those of Okabe and Ito (2008), which readers with any common colour vision tell apart. In a drawing one data
unit is one inch on the page, so that a label that clears its neighbours in one figure clears them in every other.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain, pairwise
from math import log2, prod, sqrt
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from utils.data import BACKGROUND, BORDER, PET
from utils.files import write_atomically
from utils.standins import digits

BLACK, GREY, WHITE = "#000000", "#737373", "#FFFFFF"
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, BLACK, "#8C564B", "#999933", GREY)
FOUND, MISSED, FALSE_ALARM = SKY, "#CC0000", "#F0E442"  # blue, red, yellow
LONGEST_SOURCE = 25  # lines: nobody reads a wall of code


# --- What all figures share -------------------------------------------------------------------------------------------


def titled(figure: Figure, title: str, dataset: str) -> Figure:
    """Give the figure its title, and say in capitals when it does not show real data."""
    figure.suptitle(f"STAND-IN DATA: {title}" if dataset == "stand-in" else title, fontsize=15)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=70))


def show_source(*parts: Callable) -> None:
    """Display the code of functions, methods or classes as it stands in utils/, with docstrings cut short."""
    display(Markdown("```python\n" + "\n\n\n".join(map(source_of, parts)) + "\n```"))


def source_of(part: Callable) -> str:
    """The code of a function, method or class, with the first paragraph of each docstring; ValueError if it is long."""
    lines = dedent(inspect.getsource(part)).rstrip().splitlines()
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in sorted(nodes, key=lambda node: -node.lineno):  # from the end: the line numbers before it stay right
        if ast.get_docstring(node):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            paragraph = "\n".join(lines[first:last]).split("\n\n")[0]
            lines[first:last] = (paragraph + '"""' * (not paragraph.endswith('"""'))).splitlines()
    if len(lines) > LONGEST_SOURCE:
        raise ValueError(f"{part.__qualname__} has {len(lines)} lines: show parts of it, of at most {LONGEST_SOURCE}")
    return "\n".join(lines)


def show_image(ax: Axes, image: Tensor) -> None:
    """An image (C, H, W), uint8 or float in 0..1, grey or in colour, without axes; nothing is stretched."""
    top = 255 if image.dtype == torch.uint8 else 1
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
    ax.set(xticks=[], yticks=[])


def plot_tiles(rows: list[list[tuple]], headers: Sequence[str], title: str, dataset: str) -> Figure:
    """Rows of pictures: an image (C, H, W), the masks (H, W) to paint on it, by colour, and a caption for each."""
    size = (1.8 * len(rows[0]), 1.95 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, layout="constrained", squeeze=False)
    for ax, (image, masks, caption) in zip(axes.flat, chain(*rows)):
        show_image(ax, image)
        for colour, mask in masks.items():
            layer = np.zeros((*mask.shape, 4))
            layer[mask.numpy()] = to_rgba(colour, 0.65)
            ax.imshow(layer, interpolation="nearest")
        ax.set_xlabel(caption, fontsize=10)
        ax.spines[:].set_visible(False)
    for ax, header in zip(axes[0], headers):
        ax.set_title(header, fontsize=12)
    return titled(figure, title, dataset)


def plot_lines(panels: list[tuple[dict, dict]], title: str, dataset: str = "", width: float = 5) -> Figure:
    """Panels side by side, each of curves by name, (x, y, how matplotlib draws them), and of what its axes say."""
    size = (width * len(panels), 4.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for ax, (curves, labels) in zip(axes[0], panels):
        for (name, (x, y, *style)), colour in zip(curves.items(), COLOURS):
            ax.plot(x, y, **{"color": colour, "linewidth": 2, "label": name} | dict(*style))
        ax.set(**labels)
        ax.grid(alpha=0.3)
        if curves:
            ax.legend()
    return titled(figure, title, dataset)


# --- Part 1 -----------------------------------------------------------------------------------------------------------


def layers(trimap: Tensor) -> dict[str, Tensor]:
    """The pet (blue) and its border (purple) of a trimap uint8 (1, H, W)."""
    return {SKY: trimap[0] == PET, PURPLE: trimap[0] == BORDER}


def plot_samples(images: Tensor, trimaps: Tensor, dataset: str) -> Figure:
    """Images uint8 (N, 3, H, W) above their trimaps uint8 (N, 1, H, W)."""
    rows = [[(image, {}, "") for image in images], [(i, layers(t), "") for i, t in zip(images, trimaps)]]
    return plot_tiles(rows, [], "Images, and their trimaps: pet blue, border purple", dataset)


def plot_augmentations(
    originals: Sequence[tuple], augmented: Sequence[Sequence[tuple]], captions: Sequence[Sequence[str]], dataset: str
) -> Figure:
    """Each row: an image uint8 (3, H, W) with its trimap uint8 (1, H, W), then the pair after random draws."""

    def outlined(image: Tensor, trimap: Tensor, caption: str) -> tuple:
        ground = (trimap == BACKGROUND).float()
        return image, {PURPLE: (F.max_pool2d(ground, 5, 1, 2) > ground)[0]}, caption

    rows = [
        [outlined(*pair, text) for pair, text in zip([original, *draws], ["original", *texts])]
        for original, draws, texts in zip(originals, augmented, captions)
    ]
    return plot_tiles(rows, [], "Augmentation moves image and mask (outlined) together", dataset)


def plot_predictions(
    images: Tensor, trimaps: Tensor, predicted: dict[str, Tensor], scores: dict[str, Tensor], title: str, dataset: str
) -> Figure:
    """Each row: image, truth, and each variant's pixels: found (blue), missed (red), false alarms (yellow), and IoU.

    Images uint8 (N, 3, H, W), trimaps uint8 (N, 1, H, W); for each variant masks bool (N, 1, H, W) and IoU (N,).
    """
    rows = [[(image, {}, ""), (image, layers(trimap), "")] for image, trimap in zip(images, trimaps)]
    for i, row in enumerate(rows):
        truth, grey = trimaps[i, 0] != BACKGROUND, images[i].float().mean(0, keepdim=True) / 255
        for variant, masks in predicted.items():
            parts = {FOUND: masks[i, 0] & truth, MISSED: truth & ~masks[i, 0], FALSE_ALARM: masks[i, 0] & ~truth}
            row.append((grey, parts, f"IoU {scores[variant][i]:.2f}"))
    title = f"{title}: found blue, missed red, false alarms yellow"
    return plot_tiles(rows, ["image", "truth", *predicted], title, dataset)


def plot_masks(
    images: Tensor, names: Sequence[str], predicted: dict[str, Tensor], dataset: str, scores: dict | None = None
) -> Figure:
    """Each row: a photograph uint8 (3, H, W), and what each variant finds in it, in blue, with its IoU if known."""
    rows = [[(image, {}, name)] for image, name in zip(images, names)]
    for i, row in enumerate(rows):
        grey = images[i].float().mean(0, keepdim=True) / 255
        for variant, masks in predicted.items():
            row.append((grey, {FOUND: masks[i, 0]}, f"IoU {scores[variant][i]:.2f}" if scores else ""))
    return plot_tiles(rows, ["photograph", *predicted], "What the networks take for a pet", dataset)


def plot_loss_against_size(radii: Sequence[int], costs: dict[str, dict[str, Sequence[float]]]) -> Figure:
    """What the same mistake costs each loss, against the radius of the object; a panel for each title."""
    axes = {"xlabel": "radius of the object, pixels (image 128 x 128)", "yscale": "log", "ylim": (1e-5, 5)}
    axes["ylabel"] = "loss (BCE in nats, Dice without unit)"
    panels = [
        ({name: (radii, values, {"marker": "o"}) for name, values in losses.items()}, axes | {"title": title})
        for title, losses in costs.items()
    ]
    return plot_lines(panels, "The price of missing half of an object: compare slopes, not heights", width=6)


def plot_learning_curves(histories: dict[str, list[dict]], sizes: Sequence[int], dataset: str) -> Figure:
    """Training loss (a panel for each, since units differ) and validation IoU, whole and its last third."""
    late = len(sizes) * 2 // 3
    losses, epochs = {"BCE": {}, "Dice": {}}, range(1, len(sizes) + 1)
    for (variant, history), color in zip(histories.items(), COLOURS):
        losses["Dice" if variant.endswith("Dice") else "BCE"][variant] = (
            epochs,
            [row["loss"] for row in history],
            {"color": color},
        )
    scores = {variant: [row["score"] for row in history] for variant, history in histories.items()}
    iou = {"title": "Validation IoU, one view", "ylabel": "IoU, pet + border", "xlabel": "epoch"}
    panels = [
        (losses["BCE"], {"title": "Training loss: BCE", "ylabel": "nats per pixel", "xlabel": "epoch"}),
        (losses["Dice"], {"title": "Training loss: Dice", "ylabel": "1 - soft Dice", "xlabel": "epoch"}),
        ({variant: (epochs, score) for variant, score in scores.items()}, iou),
        (
            {variant: (epochs[late:], score[late:]) for variant, score in scores.items()},
            iou | {"title": "Its last third"},
        ),
    ]
    figure = plot_lines(panels, "Learning curves; dashed: from here on, training images of this side", dataset)
    for ax in figure.axes[:3]:
        for epoch in [0, *(i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1])]:
            ax.axvline(epoch + 0.5, color=GREY, linestyle="--", linewidth=1)
            ax.text(epoch + 1, 0.99, f"{sizes[epoch]} px", transform=ax.get_xaxis_transform(), va="top", color=GREY)
    return figure


# --- Conditional VAEs -------------------------------------------------------------------------------------------------


def plot_image_table(
    images: Tensor, rows: Sequence[str], columns: Sequence[str], title: str, dataset: str, side: float = 1.05
) -> Figure:
    """Images float (R, C, channels, H, W) in 0..1 as one picture, a tile `side` inches wide; names of rows, columns."""
    height, width = (pixels + 3 for pixels in images.shape[-2:])
    tiles = F.pad(images.cpu(), (0, 3, 0, 3), value=1)  # a white gap after each
    picture = tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (channels, R * height, C * width)
    size = (1.3 + side * len(columns), 0.9 + side * len(rows))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    show_image(ax, picture)
    ax.set_xticks([(i + 0.5) * width - 2 for i in range(len(columns))], columns, fontsize=12)
    ax.set_yticks([(i + 0.5) * height - 2 for i in range(len(rows))], rows, fontsize=12)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return titled(figure, title, dataset)


def plot_wrong_labels(
    sources: Tensor,
    outputs: Tensor,
    true: Tensor,
    sent: Tensor,
    probabilities: Tensor,
    names: Sequence[str],
    title: str,
    dataset: str,
) -> Figure:
    """25 tiles: a source and what the model made of it; a blue frame and a tick where the judge reads the label sent.

    Args:
        sources, outputs: float (25, C, H, W) in 0..1.
        true, sent: the true classes and the labels sent, int64 (25,).
        probabilities: the judge's, of the outputs, (25, classes); the percentage is the greatest.
        names: of the classes.
    """
    figure, axes = plt.subplots(5, 5, figsize=(14, 12))
    figure.subplots_adjust(0.01, 0.03, 0.99, 0.88, wspace=0.06, hspace=0.5)  # much faster than a layout engine
    confidence, read = probabilities.max(1)
    for i, ax in enumerate(axes.flat):
        colour, line, mark = (BLUE, "-", "✓") if sent[i] == read[i] else (VERMILION, ":", "✗")
        for left, width, images in ((0, 0.44, sources), (0.46, 0.54, outputs)):
            inset = ax.inset_axes((left, 0, width, 1), anchor="S")
            show_image(inset, images[i])
        inset.spines[:].set(color=colour, linewidth=3, linestyle=line)
        ax.child_axes[0].set_xlabel(f"true {names[true[i]]}", fontsize=10)
        reads = f"reads {names[read[i]]}, {confidence[i]:.0%} {mark}"
        ax.set_title(f"sent {names[sent[i]]}\n{reads}", fontsize=11, color=colour)
        ax.set_axis_off()
    count = f"{(sent == read).sum().item()} of {len(read)}"
    return titled(figure, f"{title}\n{count} read as the label sent (✓), with the judge's probability", dataset)


def plot_elbo_curves(histories: dict[str, list[dict]], dataset: str) -> Figure:
    """Reconstruction and KL apart, and their sum: training (dotted) and validation (solid), nats per image."""
    panels = []
    for key, title in {"reconstruction": "Reconstruction", "kl": "KL divergence", "negative_elbo": "-ELBO"}.items():
        curves, shown = {}, []
        for (model, history), color in zip(histories.items(), COLOURS):
            for kind, prefix, line in (("validation", "validation_", "-"), ("training", "", ":")):
                values = [row[prefix + key] for row in history]
                style = {"color": color, "linestyle": line, "marker": "o", "markersize": 3}
                curves[f"{model}, {kind}"] = (range(1, len(values) + 1), values, style)
                shown += values if key == "kl" else values[1:] or values
        margin = 0.05 * (max(shown) - min(shown)) or 1
        limits = (min(shown) - margin, max(shown) + margin)
        panels.append((curves, {"title": title, "xlabel": "epoch", "ylabel": "nats per image", "ylim": limits}))
    figure = plot_lines(panels, "Learning curves (the first epoch's values may lie outside)", dataset)
    for ax in figure.axes:
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_trade_off(points: dict[str, tuple[float, float]], curve: Sequence[str], dataset: str) -> Figure:
    """Agreement with the label sent over PSNR in dB, a point for each model; the models named in `curve` are joined."""
    x, y = ([points[name][axis] for name in curve] for axis in (0, 1))
    joined = {"": (x, y, {"color": GREY, "linewidth": 1.5})}
    marks = {
        name: (*point, {"marker": mark, "markersize": 11, "linestyle": ""})
        for (name, point), mark in zip(points.items(), "os^DvPX*<")
    }
    labels = {"xlabel": "PSNR of reconstructions with the right label, dB", "ylim": (0, 1.05)}
    labels["ylabel"] = "judge reads the wrong label sent"
    return plot_lines([(joined | marks, labels)], "Label agreement against reconstruction quality", dataset, width=9)


def plot_codes(codes: dict[str, Tensor], labels: Tensor, dataset: str) -> Figure:
    """Two-dimensional codes (N, 2), a panel for each model: a dot each, and mean and deviation of each class."""
    reach = 1.1 * max(points.abs().quantile(0.99).item() for points in codes.values())  # a few stray dots lie outside
    limits = {"xlim": (-reach, reach), "ylim": (-reach, reach), "aspect": "equal"}
    limits |= {"xlabel": "first discriminant", "ylabel": "second discriminant"}
    figure = plot_lines(
        [({}, limits | {"title": name}) for name in codes], "Codes: mean and deviation of each class", dataset
    )
    for ax, points in zip(figure.axes, codes.values()):
        for label, colour in zip(labels.unique().tolist(), COLOURS):
            cloud = points[labels == label].numpy()
            ax.plot(*cloud.T, "o", color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0)
            values, vectors = np.linalg.eigh(np.cov(cloud.T))
            angle, (width, height) = np.degrees(np.arctan2(*vectors[::-1, 0])), 2 * np.sqrt(values)
            ax.add_patch(Ellipse(cloud.mean(0), width, height, angle=angle, fill=False, color=colour, linewidth=2))
            disc = {"boxstyle": "circle,pad=0.15", "facecolor": WHITE, "edgecolor": colour}
            ax.text(
                *cloud.mean(0), str(label), color=colour, size=13, weight="bold", ha="center", va="center", bbox=disc
            )
    return figure


def plot_kl(
    means: Tensor, over_mean: dict[float, Tensor], deviations: Tensor, over_deviation: dict[float, Tensor]
) -> Figure:
    """KL divergence of N(mean, deviation) from N(0, 1) in nats: over the mean, and over the deviation."""
    panels = []
    for x, curves, name, other in ((means, over_mean, "mean μ", "σ"), (deviations, over_deviation, "deviation σ", "μ")):
        drawn = {f"{other} = {value:g}": (x.tolist(), y.tolist()) for value, y in curves.items()}
        panels.append((drawn, {"xlabel": name, "ylabel": "KL divergence, nats", "ylim": (0, None)}))
    return plot_lines(panels, "The KL divergence of N(μ, σ²) from N(0, 1)", width=6)


# --- Drawings of networks ---------------------------------------------------------------------------------------------

FONT_SIZE, LINE = 16, 0.34  # of text, in points, and of a line of it, in inches
COLUMN = 1.15  # from one box to the next
MIDDLE = 2.6 * COLUMN  # across the bottleneck, so that the shortest skip connection has room for its name
Point = tuple[float, float]


class Box(NamedTuple):
    """A feature map on the page: the points where arrows and labels meet it."""

    left: Point
    right: Point
    top: Point
    bottom: Point


class Page:
    """A white page with limits in inches and a title, to draw boxes, arrows and text on."""

    def __init__(self, horizontal: Point, vertical: Point, title: str):
        size = (horizontal[1] - horizontal[0], vertical[1] - vertical[0])
        self.figure, self.axes = plt.subplots(figsize=size, facecolor=WHITE)
        self.figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
        self.axes.set(xlim=horizontal, ylim=vertical)
        self.axes.axis("off")
        self.write((sum(horizontal) / 2, vertical[1] - 0.4), title, size=FONT_SIZE + 5, weight="bold")

    def write(self, point: Point, text: str, lines: float = 0, **style: object) -> None:
        """Text so many lines above a point, centred unless `style` says otherwise."""
        style = {"ha": "center", "va": "center", "size": FONT_SIZE} | style
        self.axes.text(point[0], point[1] + lines * LINE, text, **style)

    def box(self, centre: Point, shape: tuple[int, ...], colour: str, label: str = "", below: str = "") -> Box:
        """A map (C, H, W), as high as the root of H and as wide as the logarithm of C, or a vector; and its labels."""
        (x, y), breadth = centre, 0.045 * (1 + log2(shape[0]))
        width, height = (breadth, 0.11 * sqrt(shape[1])) if shape[1:] else (0.2, 2.7 * breadth)
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor=BLACK))
        box = Box((corner[0], y), (x + width / 2, y), (x, y + height / 2), (x, corner[1]))
        self.write(box.top, label, 0.5)
        self.write(box.bottom, below, -0.5, color=GREY)
        return box

    def arrow(self, start: Point, end: Point, colour: str = BLACK, path: str = "arc3") -> None:
        """An arrow, straight unless matplotlib's name of a connection style says otherwise."""
        style = {"arrowstyle": "-|>,head_width=0.3,head_length=0.6", "connectionstyle": path}
        self.axes.annotate(
            "", end, start, arrowprops=style | {"color": colour, "linewidth": 2, "shrinkA": 1, "shrinkB": 1}
        )

    def connect(self, *boxes: Box) -> None:
        """An arrow from each box to the next."""
        for start, end in pairwise(boxes):
            self.arrow(start.right, end.left)


def output_shapes(model: nn.Module, *inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape, without the batch, of every submodule's output by its name; "image" is the first input's.

    A copy of the model is run, so that the original keeps its mode and gets no hooks, and no later draw changes.
    """
    probe, shapes = deepcopy(model).cpu().eval(), {"image": tuple(inputs[0].shape[1:])}
    for name, module in probe.named_modules():
        if name:  # the model as a whole may return several tensors
            module.register_forward_hook(lambda *call, name=name: shapes.update({name: tuple(call[2].shape[1:])}))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        probe(*inputs)
    return shapes


def draw_unet(model: nn.Module, image_size: int) -> Figure:
    """The U-shaped diagram of this U-Net: a row for each resolution, channels above each box."""
    shapes = output_shapes(model, torch.zeros(1, model.in_channels, image_size, image_size))
    depth, heights = model.depth, [0.11 * sqrt(image_size / 2**level) for level in range(model.depth + 1)]
    rows = [0.0]
    for upper, lower in pairwise(heights):
        rows.append(rows[-1] - (upper + lower) / 2 - LINE - 0.45)
    right, bottom, top = 2 * depth * COLUMN + MIDDLE, rows[-1] - 2.2, heights[0] / 2 + 1.6
    millions, margin = sum(weights.numel() for weights in model.parameters()) / 1e6, max(1.6, 5.3 - depth * COLUMN)
    title = f"U-Net: {depth} down-samplings, {millions:.2f} M parameters"
    page = Page((-margin, right + margin), (bottom, top), title)
    page.write((-0.2, top - 1), "contracting path", color=BLUE, ha="left", weight="bold")
    page.write((right + 0.2, top - 1), "expanding path", color=GREEN, ha="right", weight="bold")

    def sized(level: int, x: float, name: str, colour: str) -> Box:
        box = page.box((x, rows[level]), shapes[name], colour, str(shapes[name][0]))
        page.write((box.left[0] - 0.1, rows[level]), "{1} x {2}".format(*shapes[name]), ha="right", color=GREY)
        return box

    box, skips = sized(0, 0, "image", WHITE), []
    page.write(box.bottom, "image", -0.5)
    for level in range(depth):
        name = f"contracting_path.{level}"
        skips.append(page.box(((level + 1) * COLUMN, rows[level]), shapes[name], SKY, str(shapes[name][0])))
        page.arrow(box.right, skips[-1].left)
        box = sized(level + 1, (level + 1) * COLUMN, f"down_samplings.{level}", SKY)
        page.arrow(skips[-1].bottom, (box.top[0], box.top[1] + LINE), BLUE)
    x = box.top[0] + MIDDLE
    deepest = page.box((x, rows[-1]), shapes["bottleneck"], ORANGE, str(shapes["bottleneck"][0]))
    page.arrow(box.right, deepest.left)
    page.write((x - MIDDLE / 2, rows[-1]), "bottleneck", -0.65, weight="bold")
    draw_expanding_path(page, shapes, skips, deepest)
    draw_key(page, model, (right / 2 - 4.9, bottom + 1.1))
    return page.figure


def draw_expanding_path(page: Page, shapes: dict, skips: list[Box], box: Box) -> None:
    """Right arm of the U, from the bottleneck's box to the logits."""
    for step, skip in enumerate(reversed(skips)):
        shape, x, y = shapes[f"up_convolutions.{step}"], box.top[0], skip.left[1]
        enlarged = page.box((x, y), shape, GREEN)
        copied = page.box((2 * enlarged.left[0] - x, y), shape, SKY)  # it touches: that is the concatenation
        page.write((copied.right[0], copied.top[1]), f"{shape[0]} + {shape[0]}", 0.5)
        page.arrow((x, box.top[1] + LINE), enlarged.bottom, GREEN)
        page.arrow(skip.right, copied.left, GREY)
        page.write(((skip.right[0] + copied.left[0]) / 2, y), "concatenate", 0.5, color=GREY)
        convolved = shapes[f"expanding_path.{step}"]
        box = page.box((x + COLUMN, y), convolved, GREEN, str(convolved[0]))
        page.arrow(enlarged.right, box.left)
    logits = page.box((box.top[0] + COLUMN, box.left[1]), shapes["head"], WHITE, str(shapes["head"][0]))
    page.arrow(box.right, logits.left, VERMILION)
    page.write(logits.bottom, "logits", -0.5)


def draw_key(page: Page, model: nn.Module, corner: Point) -> None:
    """What the arrows mean, in the words of this model's own layers."""
    pooled = isinstance(model.down_samplings[0], nn.MaxPool2d)
    transposed = isinstance(model.up_convolutions[0], nn.ConvTranspose2d)
    down = "max pooling 2x2" if pooled else "strided convolution 3x3, stride 2"
    up = "transposed convolution 2x2" if transposed else "1x1 convolution, bilinear upsampling"
    texts = ("double convolution 3x3", down, up, "skip connection", "1x1 convolution: the head")
    for index, (text, colour) in enumerate(zip(texts, (BLACK, BLUE, GREEN, GREY, VERMILION))):
        x, y = corner[0] + index // 3 * 6, corner[1] - index % 3 * 0.4
        page.arrow((x, y), (x + 0.6, y), colour)
        page.write((x + 0.75, y), text, ha="left")


def draw_encoder_decoder(model: nn.Module, image_size: int) -> Figure:
    """What skip connections are for: an encoder-decoder without them (above), and this U-Net, with them (below)."""
    shapes = output_shapes(model, torch.zeros(1, model.in_channels, image_size, image_size))
    depth, names = range(model.depth), {"image": WHITE}
    names |= {f"contracting_path.{i}": SKY for i in depth} | {"bottleneck": ORANGE}
    names |= {f"expanding_path.{i}": GREEN for i in depth} | {"head": WHITE}
    page, xs = Page((0, 13), (-6.3, 2.3), "What the skip connections are for"), np.linspace(1.2, 11.8, len(names))
    for y in (0, -4.2):
        boxes = [page.box((x, y), shapes[name], colour) for x, (name, colour) in zip(xs, names.items())]
        page.connect(*boxes)
        page.write(boxes[0].bottom, "image", -0.6)
        page.write(boxes[-1].bottom, "mask", -0.6)
    for start, end in zip(boxes[1 : model.depth + 1], boxes[-2::-1]):
        page.arrow(start.top, end.top, GREY, "arc3,rad=-0.2")
    held, given = prod(shapes["bottleneck"]), prod(shapes["image"])
    carried = sum(prod(shapes[f"contracting_path.{i}"]) for i in depth)
    channels, side, _ = shapes["bottleneck"]
    above = f"bottleneck {channels} x {side} x {side}: {held:,} values; the image has {given:,}"
    page.write((0.3, 1.25), "Encoder-decoder: everything passes through the bottleneck", ha="left", weight="bold")
    page.write((6.5, -1.25), above)
    page.write((0.3, -2.3), "U-Net: details take the short way", ha="left", weight="bold")
    page.write((6.5, -5.6), f"skip connections: {carried:,} values, copied before each down-sampling")
    return page.figure


def draw_autoencoder(model: nn.Module) -> Figure:
    """A plain autoencoder, of this conditional VAE's layers: the code is a point; there is no noise and no label."""
    page, shapes, (_, before, after, _) = draw_row(model, (-2.9, 2.5), "Autoencoder")
    others = [(-0.9, 0.6), (-0.7, 0.75), (-0.6, 0.5), (0.7, 0.6), (0.85, 0.4), (-0.8, -0.6), (0.5, -0.7), (0.7, -0.6)]
    page.axes.add_patch(Rectangle((-1.2, -1), 2.4, 2, facecolor=WHITE, edgecolor=GREY))
    page.axes.scatter(*zip(*others), color=GREY)
    page.axes.add_patch(Circle((0, 0), 0.17, facecolor=ORANGE, edgecolor=BLACK))
    page.arrow(before.right, (-0.17, 0))
    page.arrow((0.17, 0), after.left)
    page.write((0, 1.2), f"code: {shapes['to_code'][0] // 2} numbers, a point")  # the other half: log-variance
    page.write((0, -2.1), "one image, one code: between the codes there may be nothing", weight="bold")
    page.write((0, -2.55), "grey: the codes of other images", color=GREY)
    return page.figure


def draw_conditional_vae(model: nn.Module) -> Figure:
    """The conditional VAE as built: a Gaussian for a code, the label where it enters, the losses where they do."""
    halves = {"encoder": model.encoder_sees_label, "decoder": model.decoder_sees_label}
    title = f"Conditional VAE: the label goes to the {' and the '.join(filter(halves.get, halves))}"
    page, shapes, (image, before, after, reconstruction) = draw_row(model, (-4.7, 4.3), title)
    size, boxes = shapes["to_code"][0] // 2, []
    for x, y, name in ((-0.65, 0.85, "mean"), (-0.65, -0.75, "log-variance"), (1.2, 0, "z")):
        boxes.append(page.box((x, y), (size,), ORANGE))
        page.write(boxes[-1].bottom, f"{name}: {size}", -0.5)
    page.connect(before, boxes[0], boxes[2], after)
    page.connect(before, boxes[1], boxes[2])
    page.axes.add_patch(Rectangle((-1.75, -1.75), 2.2, 3.35, fill=False, edgecolor=VERMILION, linestyle="--"))
    page.write((-0.65, 2.05), "KL divergence\nto N(0, 1)", color=VERMILION, weight="bold")
    page.write((1.1, 2.35), "noise ~ N(0, 1)", ha="left", bbox={"boxstyle": "round", "facecolor": WHITE})
    page.arrow((boxes[2].top[0], 2.1), boxes[2].top, GREY)
    page.write((1.4, 1.6), "z = mean + deviation × noise\ndeviation = exp(log-variance / 2)", ha="left")
    draw_label(
        page,
        model.classes,
        shapes["embedding"],
        [b.bottom for b, sees in zip((before, after), halves.values()) if sees],
    )
    page.write((0, 3.2), "reconstruction loss", color=VERMILION, weight="bold")
    for picture, x in ((image, -1.3), (reconstruction, 1.3)):
        page.arrow(picture.top, (x, 3.2), VERMILION, "angle,angleA=90,angleB=0")
    return page.figure


def draw_label(page: Page, classes: int, embedding: tuple[int], ends: list[Point]) -> None:
    """The label as a one-hot vector, its embedding, and from there an arrow to each of these ends."""
    box, side = page.box((0, -2.6), embedding, PURPLE, f"embedding: {embedding[0]}"), 2.4 / max(classes, 10)
    for index in range(classes):
        colour = PURPLE if index == min(3, classes - 1) else WHITE  # 3 is the digit in the picture
        corner = ((index - classes / 2) * side, -4)
        page.axes.add_patch(Rectangle(corner, side, side, facecolor=colour, edgecolor=BLACK))
    page.write((0, -4.25), f"label, one-hot: {classes}")
    page.arrow((0, -4 + side), box.bottom, PURPLE)
    page.write((0.2, -3.35), "linear, no bias", ha="left")
    for end in ends:
        page.arrow(box.left if end[0] < 0 else box.right, end, PURPLE, "angle,angleA=0,angleB=90")


def draw_row(model: nn.Module, heights: Point, title: str) -> tuple[Page, dict, list[Box]]:
    """Image, encoder, gap, decoder, reconstruction. Gives page, shapes, and the boxes at the ends and at the gap."""
    shapes = output_shapes(model, torch.zeros(1, *model.image_shape), torch.zeros(1, dtype=torch.int64))
    depth, ink = len(model.encoder) - 1, torch.from_numpy(digits(4, seed=0)[0][3])[None, None] / 255
    picture = F.interpolate(ink, size=model.image_shape[1:], mode="bilinear")
    encoder, decoder = ([f"{half}.{step}" for step in range(depth)] for half in ("encoder", "decoder"))
    xs, end = [2.1 + step for step in range(depth + 1)], 2.1 + max(depth, 2) + 1.6  # 2: room for the formula
    page, row = Page((-end - 1, end + 1), heights, title), []
    for x, name in zip([-x for x in reversed(xs)] + xs, [*encoder, "to_code.0", "from_code.0", *decoder]):
        shape, colour = shapes[name], SKY if x < 0 else GREEN
        row.append(page.box((x, 0), shape, colour, str(shape[0]), " x ".join(map(str, shape[1:]))))
    blurred, ends = F.avg_pool2d(picture, 3, stride=1, padding=1), []
    left = (-end, picture, "image", "image", "encoder", BLUE)
    for x, image, label, name, half, colour in (left, (end, blurred, "reconstruction", "decoder", "decoder", GREEN)):
        page.axes.imshow(image[0, 0].numpy(), extent=(x - 0.9, x + 0.9, -0.9, 0.9), cmap="gray", vmin=0, vmax=1)
        ends.append(Box((x - 0.9, 0), (x + 0.9, 0), (x, 0.9), (x, -0.9)))
        page.write(ends[-1].bottom, label, -0.5)
        page.write(ends[-1].bottom, " x ".join(map(str, shapes[name])), -1.5, color=GREY)
        page.write((np.sign(x) * (xs[1] + xs[-1]) / 2, -0.9), half, -0.5, color=colour, weight="bold")
    page.connect(ends[0], *row[: depth + 1])
    page.connect(*row[depth + 1 :], ends[1])
    return page, shapes, [ends[0], row[depth], row[depth + 1], ends[1]]
