"""Every figure of the course: plots of data and results, and drawings of the networks. Nothing is computed here.

Colours are those of Okabe and Ito (2008), which readers with any common colour vision tell apart. In a drawing one data
unit is one inch on the page, so that a label that clears its neighbours in one figure clears them in every other.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from math import log2, prod, sqrt
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from utils.data import BACKGROUND, BORDER, PET
from utils.standins import digits
from utils.storage import write_atomically

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
    for node in reversed([*ast.walk(ast.parse("\n".join(lines)))]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            summary = text.split("\n\n")[0].splitlines()
            indent = " " * node.body[0].col_offset
            lines[first:last] = [indent + line for line in (f'"""{summary[0]}', *summary[1:])]
            lines[first + len(summary) - 1] += '"""'
    if len(lines) > LONGEST_SOURCE:
        raise ValueError(f"{part.__qualname__} has {len(lines)} lines: show parts of it, of at most {LONGEST_SOURCE}")
    return "\n".join(lines)


def grid(rows: int, columns: int, side: float = 1.9) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns pictures without axes."""
    size = (side * columns, side * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def panels(count: int, width: float = 5, height: float = 4.5) -> tuple[Figure, np.ndarray]:
    """A row of plots with a faint grid."""
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.grid(alpha=0.3)
    return figure, axes[0]


def show_image(ax: Axes, image: Tensor) -> None:
    """An image (C, H, W), uint8 or float in 0..1, grey or in colour; nothing is stretched."""
    top = 255 if image.dtype == torch.uint8 else 1
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=top, interpolation="nearest")


def paint(ax: Axes, mask: Tensor, colour: str, opacity: float = 0.6) -> None:
    """Tint the pixels where mask (H, W) is true."""
    layer = np.zeros((*mask.shape, 4))
    layer[mask.numpy()] = [*plt.matplotlib.colors.to_rgb(colour), opacity]
    ax.imshow(layer, interpolation="nearest")


# --- Part 1 -----------------------------------------------------------------------------------------------------------


def show_trimap(ax: Axes, image: Tensor, trimap: Tensor) -> None:
    """An image with its pet (blue) and border (purple) tinted; trimap uint8 (1, H, W)."""
    show_image(ax, image)
    paint(ax, trimap[0] == PET, SKY)
    paint(ax, trimap[0] == BORDER, PURPLE, opacity=0.9)


def plot_samples(images: Tensor, trimaps: Tensor, dataset: str) -> Figure:
    """Images uint8 (N, 3, H, W) above their trimaps uint8 (N, 1, H, W)."""
    figure, axes = grid(2, len(images))
    for (above, below), image, trimap in zip(axes.T, images, trimaps):
        show_image(above, image)
        show_trimap(below, image, trimap)
    return titled(figure, "Images, and their trimaps: pet blue, border purple", dataset)


def plot_augmentations(
    originals: Sequence[tuple], augmented: Sequence[Sequence[tuple]], captions: Sequence[Sequence[str]], dataset: str
) -> Figure:
    """Each row: an image uint8 (3, H, W) with its trimap uint8 (1, H, W), then the pair after random draws."""
    figure, axes = grid(len(originals), 1 + len(augmented[0]), side=2.1)
    for row, original, draws, texts in zip(axes, originals, augmented, captions):
        for ax, (image, trimap), text in zip(row, [original, *draws], ["original", *texts]):
            show_image(ax, image)
            ax.contour(trimap[0] != BACKGROUND, levels=[0.5], colors=PURPLE, linewidths=2)
            ax.set_title(text, fontsize=9)
    return titled(figure, "Augmentation moves image and mask (outlined) together", dataset)


def plot_loss_against_size(radii: Sequence[int], costs: dict[str, dict[str, Sequence[float]]]) -> Figure:
    """What the same mistake costs each loss, against the radius of the object; a panel for each title."""
    figure, axes = panels(len(costs), 6, 4.2)
    for ax, (title, losses) in zip(axes, costs.items()):
        for (name, values), colour, marker in zip(losses.items(), COLOURS, "os"):
            ax.plot(radii, values, marker=marker, color=colour, linewidth=2, label=name)
        ax.set(xlabel="radius of the object, pixels (image 128 x 128)", yscale="log", title=title)
        ax.sharey(axes[0])
    axes[0].set_ylabel("loss (BCE in nats, Dice without unit)")
    axes[0].legend(fontsize=12)
    figure.suptitle("The price of missing half of an object: compare slopes, not heights", fontsize=15)
    return figure


def plot_learning_curves(histories: dict[str, list[dict]], sizes: Sequence[int], dataset: str) -> Figure:
    """Training loss (a panel for each, since units differ) and validation IoU, whole and its last third."""
    figure, axes = panels(4, 4.6)
    names = ("Training loss: BCE", "Training loss: Dice", "Validation IoU, one view", "The last third of it")
    for ax, name, unit in zip(axes, names, ("nats per pixel", "1 - soft Dice", "IoU, pet + border", "")):
        ax.set(title=name, ylabel=unit, xlabel="epoch")
    for (variant, history), colour in zip(histories.items(), COLOURS):
        epochs, late = np.arange(1, len(history) + 1), len(history) * 2 // 3
        loss, score = ([row[key] for row in history] for key in ("loss", "score"))
        axes[int(variant.endswith("Dice"))].plot(epochs, loss, color=colour, linewidth=2, label=variant)
        axes[2].plot(epochs, score, color=colour, linewidth=2, label=variant)
        axes[3].plot(epochs[late:], score[late:], color=colour, linewidth=2, label=variant)
    for ax in axes[:3]:
        for epoch in [0, *(i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1])]:
            ax.axvline(epoch + 0.5, color="grey", linestyle="--", linewidth=1)
            ax.text(epoch + 1, 0.99, f"{sizes[epoch]} px", transform=ax.get_xaxis_transform(), va="top", color=GREY)
    axes[3].legend(loc="lower right")
    return titled(figure, "Learning curves; dashed: from here on, training images of this side", dataset)


def plot_predictions(
    images: Tensor, trimaps: Tensor, predicted: dict[str, Tensor], scores: dict[str, Tensor], title: str, dataset: str
) -> Figure:
    """Each row: image, truth, and each variant's pixels: found (blue), missed (red), false alarms (yellow), and IoU.

    Images uint8 (N, 3, H, W), trimaps uint8 (N, 1, H, W); for each variant masks bool (N, 1, H, W) and IoU (N,).
    """
    figure, axes = grid(len(images), 2 + len(predicted), side=2.1)
    for i, row in enumerate(axes):
        show_image(row[0], images[i])
        show_trimap(row[1], images[i], trimaps[i])
        truth = trimaps[i, 0] != BACKGROUND
        for ax, (variant, masks) in zip(row[2:], predicted.items()):
            mask, grey = masks[i, 0], images[i].float().mean(0, keepdim=True) / 255
            show_image(ax, grey)
            for part, colour in ((mask & truth, FOUND), (truth & ~mask, MISSED), (mask & ~truth, FALSE_ALARM)):
                paint(ax, part, colour)
            ax.set_xlabel(f"IoU {scores[variant][i]:.2f}", fontsize=11)
    for ax, name in zip(axes[0], ["image", "truth", *predicted]):
        ax.set_title(name, fontsize=12)
    return titled(figure, f"{title}: found blue, missed red, false alarms yellow", dataset)


def plot_masks(
    images: Tensor, names: Sequence[str], predicted: dict[str, Tensor], dataset: str, scores: dict | None = None
) -> Figure:
    """Each row: a photograph uint8 (3, H, W), and what each variant finds in it, in blue, with its IoU if known."""
    figure, axes = grid(len(images), 1 + len(predicted), side=2.1)
    for i, row in enumerate(axes):
        show_image(row[0], images[i])
        row[0].set_xlabel(names[i], fontsize=9)
        for ax, (variant, masks) in zip(row[1:], predicted.items()):
            show_image(ax, images[i].float().mean(0, keepdim=True) / 255)
            paint(ax, masks[i, 0], FOUND)
            ax.set_xlabel(f"IoU {scores[variant][i]:.2f}" if scores else "", fontsize=11)
    for ax, name in zip(axes[0], ["photograph", *predicted]):
        ax.set_title(name, fontsize=12)
    return titled(figure, "What the networks take for a pet", dataset)


# --- Conditional VAEs -------------------------------------------------------------------------------------------------


def plot_image_table(
    images: Tensor, rows: Sequence[str], columns: Sequence[str], title: str, dataset: str, side: float = 1.05
) -> Figure:
    """Images float (R, C, channels, H, W) in 0..1 as one picture, a tile `side` inches wide; names of rows, columns."""
    height, width = (side + 3 for side in images.shape[-2:])
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
        true, sent: int64 (25,), the true class and the label sent.
        probabilities: (25, classes), the judge's, of the outputs; the percentage is the greatest.
        names: of the classes.
    """
    figure, axes = plt.subplots(5, 5, figsize=(13, 11.5))
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.87, wspace=0.06, hspace=0.5)  # much faster than a layout engine
    confidence, read = probabilities.max(1)
    for i, ax in enumerate(axes.flat):
        followed = sent[i] == read[i]
        colour, line = (BLUE, "-") if followed else (VERMILION, ":")
        pair = ax.inset_axes((0, 0, 0.42, 1)), ax.inset_axes((0.46, 0, 0.54, 1))
        for each, image in zip(pair, (sources[i], outputs[i])):
            show_image(each, image)
            each.set(xticks=[], yticks=[], anchor="S")
        pair[0].set_xlabel(f"true {names[true[i]]}", fontsize=11)
        pair[1].spines[:].set(color=colour, linewidth=3, linestyle=line)
        mark = f"reads {names[read[i]]}, {confidence[i]:.0%} {'✓' if followed else '✗'}"
        ax.set_title(f"sent {names[sent[i]]}\n{mark}", fontsize=11, color=colour)
        ax.set_axis_off()
    followed = f"{(sent == read).sum().item()} of {len(sent)} read as the label sent (✓), with the judge's probability"
    return titled(figure, f"{title}\n{followed}", dataset)


def plot_elbo_curves(histories: dict[str, list[dict]], dataset: str) -> Figure:
    """Reconstruction and KL apart, and their sum: training (dotted) and validation (solid), nats per image."""
    keys = {"reconstruction": "Reconstruction", "kl": "KL divergence", "negative_elbo": "-ELBO: their sum"}
    figure, axes = panels(3)
    for ax, (key, name) in zip(axes, keys.items()):
        shown = []
        for (model, history), colour in zip(histories.items(), COLOURS):
            epochs = range(1, len(history) + 1)
            for prefix, style in (("validation_", "o-"), ("", "o:")):
                values = [row[prefix + key] for row in history]
                label = f"{model}, {'validation' if prefix else 'training'}"
                ax.plot(epochs, values, style, color=colour, linewidth=2, markersize=3, label=label)
                shown += values if key == "kl" else values[1:]
        ax.set(title=name, xlabel="epoch", ylabel="nats per image")
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) or 1
            ax.set_ylim(min(shown) - margin, max(shown) + margin)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[2].legend()
    return titled(figure, "Learning curves (the first epoch's values may lie above the panel)", dataset)


def plot_trade_off(points: dict[str, tuple[float, float]], curve: Sequence[str], dataset: str) -> Figure:
    """Agreement with the label sent over PSNR in dB, a point for each model; the models named in `curve` are joined."""
    figure, [ax] = panels(1, 9, 5.5)
    ax.plot(*zip(*(points[name] for name in curve)), color=GREY, linewidth=1.5)
    for (name, point), marker, colour in zip(points.items(), "os^DvPX", COLOURS):
        ax.plot(*point, marker, color=colour, markersize=11, label=name)
    ax.set(xlabel="PSNR of reconstructions with the right label, dB", ylim=(0, 1.05))
    ax.set_ylabel("judge reads the wrong label sent")
    ax.legend()
    return titled(figure, "Label agreement against reconstruction quality", dataset)


def plot_codes(codes: dict[str, Tensor], labels: Tensor, dataset: str) -> Figure:
    """Two-dimensional codes (N, 2), a panel for each model: a dot each, and mean and deviation of each class."""
    figure, axes = panels(len(codes), 6.5, 6.5)
    reach = 1.1 * max(points.abs().quantile(0.99).item() for points in codes.values())  # a few stray dots lie outside
    for ax, (name, points) in zip(axes, codes.items()):
        for label, colour in zip(labels.unique().tolist(), COLOURS):
            cloud = points[labels == label]
            ax.plot(*cloud.T.tolist(), "o", color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0)
            values, vectors = np.linalg.eigh(np.cov(cloud.T.numpy()))
            width, height = 2 * np.sqrt(values)
            angle, centre = np.degrees(np.arctan2(*vectors[::-1, 0])), cloud.mean(0).tolist()
            ax.add_patch(Ellipse(centre, width, height, angle=angle, fill=False, color=colour, linewidth=2))
            disc = {"boxstyle": "circle,pad=0.15", "facecolor": WHITE, "edgecolor": colour, "linewidth": 1.5}
            ax.text(*centre, str(label), color=colour, fontsize=13, weight="bold", ha="center", va="center", bbox=disc)
        ax.set(title=name, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set(xlabel="first discriminant", ylabel="second discriminant")
    return titled(figure, "Codes by true class: mean and one standard deviation", dataset)


def plot_kl(
    means: Tensor, over_mean: dict[float, Tensor], deviations: Tensor, over_deviation: dict[float, Tensor]
) -> Figure:
    """KL divergence of N(mean, deviation) from N(0, 1) in nats: over the mean, and over the deviation."""
    figure, axes = panels(2, 6, 4.2)
    for ax, x, curves, other in zip(axes, (means, deviations), (over_mean, over_deviation), ("σ", "μ")):
        for (value, y), colour in zip(curves.items(), COLOURS):
            ax.plot(x.tolist(), y.tolist(), color=colour, linewidth=2, label=f"{other} = {value:g}")
        ax.set(ylim=(0, None), ylabel="KL divergence, nats")
        ax.legend()
    axes[0].set(xlabel="mean μ")
    axes[1].set(xlabel="standard deviation σ")
    figure.suptitle("The KL divergence of N(μ, σ²) from N(0, 1)", fontsize=15)
    return figure


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
    entries = {
        "double convolution 3x3": BLACK,
        "max pooling 2x2" if pooled else "strided convolution 3x3, stride 2": BLUE,
        "transposed convolution 2x2" if transposed else "1x1 convolution, bilinear upsampling": GREEN,
        "skip connection": GREY,
        "1x1 convolution: the head": VERMILION,
    }
    for index, (text, colour) in enumerate(entries.items()):
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
    ends = []
    for x, image, label, name, half, colour in (
        (-end, picture, "image", "image", "encoder", BLUE),
        (end, F.avg_pool2d(picture, 3, stride=1, padding=1), "reconstruction", "decoder", "decoder", GREEN),
    ):
        page.axes.imshow(image[0, 0].numpy(), extent=(x - 0.9, x + 0.9, -0.9, 0.9), cmap="gray", vmin=0, vmax=1)
        ends.append(Box((x - 0.9, 0), (x + 0.9, 0), (x, 0.9), (x, -0.9)))
        page.write(ends[-1].bottom, label, -0.5)
        page.write(ends[-1].bottom, " x ".join(map(str, shapes[name])), -1.5, color=GREY)
        page.write((np.sign(x) * (xs[1] + xs[-1]) / 2, -0.9), half, -0.5, color=colour, weight="bold")
    page.connect(ends[0], *row[: depth + 1])
    page.connect(*row[depth + 1 :], ends[1])
    return page, shapes, [ends[0], row[depth], row[depth + 1], ends[1]]
