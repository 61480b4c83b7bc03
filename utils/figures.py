"""Every figure of the course: plots of data and results, and drawings of the networks.

Most colours are those of Okabe and Ito (2008), which readers with any common colour vision tell apart. In a drawing one
data unit is one inch on the page, so that a label that clears its neighbours in one figure clears them in every other.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain, pairwise
from math import log2, prod, sqrt
from textwrap import dedent

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from utils.data import BORDER, PET, foreground

BLACK, GREY, WHITE = "#000000", "#737373", "#FFFFFF"
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, BLACK, "#8C564B", "#999933", GREY)
FOUND, MISSED, FALSE_ALARM = SKY, "#CC0000", "#F0E442"  # blue, red, yellow


def titled(figure: Figure, title: str, dataset: str) -> Figure:
    """Give the figure its title, and say in capitals when it does not show real data."""
    figure.suptitle(f"STAND-IN DATA: {title}" if dataset == "stand-in" else title, fontsize=15)
    return figure


def show_source(*parts: Callable) -> None:
    """Display the code of functions, methods or classes as it stands in utils/, with docstrings cut short."""
    display(Markdown("```python\n" + "\n\n\n".join(map(source_of, parts)) + "\n```"))


def source_of(part: Callable) -> str:
    """The code of a function, method or class, with the first paragraph of each docstring."""
    lines = dedent(inspect.getsource(part)).rstrip().splitlines()
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in sorted(nodes, key=lambda node: -node.lineno):  # from the end: the line numbers before it stay right
        if ast.get_docstring(node):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            paragraph = "\n".join(lines[first:last]).split("\n\n")[0]
            lines[first:last] = (paragraph + '"""' * (not paragraph.endswith('"""'))).splitlines()
    return "\n".join(lines)


def show_image(ax: Axes, image: Tensor) -> None:
    """An image (C, H, W), uint8 or float in 0..1, grey or in colour, without axes; nothing is stretched."""
    style = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == torch.uint8 else 1, "interpolation": "nearest"}
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), **style)
    ax.set(xticks=[], yticks=[])


def plot_tiles(rows: list[list[tuple]], headers: Sequence[str], title: str, dataset: str) -> Figure:
    """Rows of pictures: an image (C, H, W), the masks (H, W) to paint on it, by colour, and a caption for each."""
    size = (1.8 * len(rows[0]), 1.95 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, layout="constrained", squeeze=False)
    for ax, (image, masks, caption) in zip(axes.flat, chain(*rows)):
        show_image(ax, image)
        for colour, mask in masks.items():
            ax.imshow(mask.numpy()[..., None] * np.array(to_rgba(colour, 0.65)), interpolation="nearest")
        ax.set_xlabel(caption, fontsize=10, parse_math=False)  # of file names with $ in them
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


def trimap_layers(trimap: Tensor) -> dict[str, Tensor]:
    """The pet (blue) and its border (purple) of a trimap uint8 (1, H, W)."""
    return {SKY: trimap[0] == PET, PURPLE: trimap[0] == BORDER}


def plot_predictions(images, names, predicted: dict, title: str, dataset: str, trimaps=None, scores=None) -> Figure:
    """Each row: an image, uint8 (3, H, W), with its name, and what each variant takes for a pet, in blue.

    Masks are N of bool (1, H, W) by variant. With trimaps uint8 (N, 1, H, W) and each variant's IoU (N,), missed pixels
    are red, false alarms yellow, and the truth stands beside the image.
    """
    rows = [[(image, {}, name)] for image, name in zip(images, names)]
    for i, row in enumerate(rows):
        truth = torch.ones_like(images[i][0], dtype=torch.bool) if trimaps is None else foreground(trimaps[i, 0])
        row += [] if trimaps is None else [(images[i], trimap_layers(trimaps[i]), "")]
        for variant, masks in predicted.items():
            found, missed = masks[i][0] & truth, truth & ~masks[i][0] & (trimaps is not None)
            layers = {FOUND: found, MISSED: missed, FALSE_ALARM: masks[i][0] & ~truth}
            grey = images[i].float().mean(0, keepdim=True) / 255
            row.append((grey, layers, f"IoU {scores[variant][i]:.2f}" if scores else ""))
    headers = ["image", *([] if trimaps is None else ["truth"]), *predicted]
    return plot_tiles(rows, headers, title, dataset)


def plot_learning_curves(histories: dict[str, list[dict]], sizes: Sequence[int], dataset: str) -> Figure:
    """Training loss (a panel for each, since units differ) and validation IoU, whole and its last third."""
    colours, x = dict(zip(histories, COLOURS)), {"xlabel": "epoch"}

    def curves(key: str, ending: str = "", first: int = 0) -> dict:
        chosen = {name: history[first:] for name, history in histories.items() if name.endswith(ending)}
        epochs = range(first + 1, len(sizes) + 1)
        return {name: (epochs, [row[key] for row in rows], {"color": colours[name]}) for name, rows in chosen.items()}

    panels = [
        (curves("loss", "BCE"), {"title": "Training loss: BCE", "ylabel": "nats per pixel"} | x),
        (curves("loss", "Dice"), {"title": "Training loss: Dice", "ylabel": "1 - soft Dice"} | x),
        (curves("score"), {"title": "Validation IoU, one view", "ylabel": "IoU, pet + border"} | x),
        (curves("score", first=len(sizes) * 2 // 3), {"title": "Its last third", "ylabel": "IoU, pet + border"} | x),
    ]
    figure = plot_lines(panels, "Learning curves; dashed: from here on, training images of this side", dataset)
    for ax in figure.axes[:3]:
        for epoch in [0, *(i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1])]:
            ax.axvline(epoch + 0.5, color=GREY, linestyle="--", linewidth=1)
            ax.text(epoch + 1, 0.99, f"{sizes[epoch]} px", transform=ax.get_xaxis_transform(), va="top", color=GREY)
    return figure


def plot_image_table(images: Tensor, rows, columns, title: str, dataset: str, side: float = 1.05) -> Figure:
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


def plot_wrong_labels(sources, outputs, true, sent, probabilities, names, title: str, dataset: str) -> Figure:
    """25 tiles: a source and what the model made of it; a blue frame and a tick where the judge reads the label sent.

    Sources and outputs are float (25, C, H, W) in 0..1, true classes and labels sent int64 (25,), the judge's
    probabilities of the outputs (25, classes), of which the tile shows the greatest; names are those of the classes.
    """
    figure, axes = plt.subplots(5, 5, figsize=(14, 12))
    figure.subplots_adjust(0.01, 0.03, 0.99, 0.88, wspace=0.06, hspace=0.5)  # much faster than a layout engine
    confidence, read = probabilities.max(1)
    for i, ax in enumerate(axes.flat):
        colour, line, mark = (BLUE, "-", "✓") if sent[i] == read[i] else (VERMILION, ":", "✗")
        for left, width, images in ((0, 0.44, sources), (0.46, 0.54, outputs)):
            inset = ax.inset_axes((left, 0, width, 1), anchor="S")
            show_image(inset, images[i])
        plt.setp([*inset.spines.values()], color=colour, linewidth=3, linestyle=line)
        ax.child_axes[0].set_xlabel(f"true {names[true[i]]}", fontsize=10)
        reads = f"reads {names[read[i]]}, {confidence[i]:.0%} {mark}"
        ax.set_title(f"sent {names[sent[i]]}\n{reads}", fontsize=11, color=colour)
        ax.set_axis_off()
    count = f"{(sent == read).sum().item()} of {len(read)}"
    return titled(figure, f"{title}\n{count} read as the label sent (✓), with the judge's probability", dataset)


def plot_codes(planes: dict[str, Tensor], labels: Tensor, dataset: str) -> Figure:
    """Points (N, 2), a panel for each name: dots coloured by label (N,), each label's mean and deviation."""
    reach = 1.1 * max(points.abs().quantile(0.99).item() for points in planes.values())  # a few stray dots lie outside
    axes = {"xlim": (-reach, reach), "ylim": (-reach, reach), "aspect": "equal"}
    axes |= {"xlabel": "first discriminant", "ylabel": "second discriminant"}
    panels = [({}, axes | {"title": name}) for name in planes]
    figure = plot_lines(panels, "Codes: mean and deviation of each class", dataset)
    for ax, points in zip(figure.axes, planes.values()):
        for label, colour in zip(labels.unique(), COLOURS):
            cloud = points[labels == label].numpy()
            ax.plot(*cloud.T, "o", color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0)
            values, vectors = np.linalg.eigh(np.cov(cloud.T))
            angle, (width, height) = np.degrees(np.arctan2(*vectors[::-1, 0])), 2 * np.sqrt(values)
            ax.add_patch(Ellipse(cloud.mean(0), width, height, angle=angle, fill=False, color=colour, linewidth=2))
            style = {"size": 13, "weight": "bold", "ha": "center", "va": "center", "color": colour}
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour}
            ax.text(*cloud.mean(0), str(label.item()), bbox=box, **style)
    return figure


def plot_elbo_curves(histories: dict[str, list[dict]], dataset: str) -> Figure:
    """Reconstruction and KL apart, and their sum: training (dotted) and validation (solid), nats per image."""
    panels = []
    for key, title in {"reconstruction": "Reconstruction", "kl": "KL divergence", "negative_elbo": "-ELBO"}.items():
        curves, shown = {}, []
        for (model, history), colour in zip(histories.items(), COLOURS):
            epochs, style = range(1, len(history) + 1), {"color": colour, "marker": "o", "markersize": 3}
            for kind, prefix, line in (("validation", "validation_", "-"), ("training", "", ":")):
                values = [row[prefix + key] for row in history]
                curves[f"{model}, {kind}"] = (epochs, values, style | {"linestyle": line})
                shown += values if key == "kl" else values[1:] or values
        epochs = max((drawn for drawn, *_ in curves.values()), key=len)
        low, high, step = min(shown), max(shown), len(epochs) // 6 + 1
        limits = (low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
        labels = {"title": title, "xlabel": "epoch", "ylabel": "nats per image"}
        panels.append((curves, labels | {"xticks": epochs[::step], "ylim": limits}))
    return plot_lines(panels, "Learning curves (the first epoch's values may lie outside)", dataset)


SIDES = {"left": (0, 0.5), "right": (1, 0.5), "top": (0.5, 1), "bottom": (0.5, 0)}  # of a box, where arrows meet it
COLUMN, ROW = 1.75, 1.6  # inches from one box to the next
TEXT = {"size": 15, "ha": "center", "va": "center"}


def new_page(horizontal: tuple[float, float], vertical: tuple[float, float], title: str) -> Axes:
    """A white page with limits in inches and a title."""
    figure, ax = plt.subplots(figsize=(horizontal[1] - horizontal[0], vertical[1] - vertical[0]), facecolor=WHITE)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    ax.set(xlim=horizontal, ylim=vertical)
    ax.axis("off")
    ax.text(sum(horizontal) / 2, vertical[1] - 0.4, title, **TEXT | {"size": 20, "weight": "bold"})
    return ax


def draw_box(ax: Axes, x: float, y: float, shape: tuple[int, ...], colour: str, above="", below="") -> Rectangle:
    """A map (C, H, W), as high as the root of H and as wide as the logarithm of C, or a vector; and its labels."""
    breadth = 0.045 * (1 + log2(shape[0]))
    width, height = (breadth, 0.11 * sqrt(shape[1])) if shape[1:] else (0.2, 2.7 * breadth)
    box = Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour, edgecolor=BLACK)
    ax.add_patch(box)
    ax.text(x, y + height / 2 + 0.17, above, **TEXT)
    ax.text(x, y - height / 2 - 0.17, below, **TEXT | {"color": GREY})
    return box


def draw_arrow(start: Rectangle, end: Rectangle, colour=BLACK, sides=("right", "left"), path="arc3") -> None:
    """An arrow between two boxes, straight unless matplotlib's name of a connection style says otherwise."""
    style = {"arrowstyle": "-|>,head_width=0.3,head_length=0.6", "connectionstyle": path, "color": colour}
    places = {"xytext": SIDES[sides[0]], "textcoords": start, "xycoords": end}
    start.axes.annotate("", SIDES[sides[1]], **places, arrowprops=style | {"linewidth": 2, "shrinkA": 1, "shrinkB": 1})


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


def draw_unet(model: nn.Module, image_size: int, skips: bool = True) -> Figure:
    """The U-shaped diagram of this U-Net, a row for each resolution, or of the same network without its skips."""
    shapes, steps = output_shapes(model, torch.zeros(1, model.in_channels, image_size, image_size)), range(model.depth)
    down, up = ([f"{path}_path.{i}" for i in steps] for path in ("contracting", "expanding"))
    names, levels = ["image", *down, "bottleneck", *up, "head"], [0, *steps, model.depth, *reversed(steps), 0]
    colours = [WHITE, *[SKY] * len(down), ORANGE, *[GREEN] * len(up), WHITE]
    held, copied = prod(shapes["bottleneck"]), sum(prod(shapes[name]) for name in down)
    title = f"U-Net: its skip connections carry {copied:,} values past the bottleneck's {held:,}"
    without = f"Without skip connections: {prod(shapes['image']):,} values have to pass through {held:,}"
    right, bottom = (len(names) - 1) * COLUMN, -ROW * model.depth - 1.8
    ax, boxes = new_page((-1.2, right + 1.2), (bottom, 1.8), title if skips else without), []
    for column, (name, level, colour) in enumerate(zip(names, levels, colours)):
        label = " x ".join(map(str, shapes[name]))
        boxes.append(draw_box(ax, column * COLUMN, -level * ROW, shapes[name], colour, label))
    for (start, end), (before, after) in zip(pairwise(boxes), pairwise(levels)):
        if after > before:
            draw_arrow(start, end, BLUE, ("bottom", "left"), "angle,angleA=-90,angleB=180")
        elif after < before:
            draw_arrow(start, end, GREEN, ("right", "bottom"), "angle,angleA=0,angleB=90")
        else:
            draw_arrow(start, end, BLACK if start is boxes[0] else VERMILION)
    for level in steps if skips else ():
        draw_arrow(boxes[1 + level], boxes[-2 - level], GREY)
        ax.text(right / 2, -level * ROW + 0.17, "concatenate", **TEXT | {"color": GREY})
    for box, text in ((boxes[0], "image"), (boxes[-1], "logits"), (boxes[model.depth + 1], "bottleneck")):
        ax.annotate(text, (0.5, 0), xycoords=box, xytext=(0, -12), textcoords="offset points", **TEXT)
    pooled = isinstance(model.down_samplings[0], nn.MaxPool2d)
    transposed = isinstance(model.up_convolutions[0], nn.ConvTranspose2d)
    key = {"each coloured box: double convolution 3x3": BLACK, "head: 1x1 convolution": VERMILION}
    key["contracting path: " + ("max pooling 2x2" if pooled else "strided convolution 3x3")] = BLUE
    key["expanding path: " + ("transposed convolution 2x2" if transposed else "bilinear upsampling")] = GREEN
    for index, (text, colour) in enumerate(key.items()):
        ax.text(right * (0.2 + 0.6 * (index % 2)), bottom + 0.7 - index // 2 * 0.4, text, **TEXT | {"color": colour})
    return ax.figure


def draw_halves(model: nn.Module, vertical: tuple[float, float], title: str) -> tuple[Axes, dict, list[Rectangle]]:
    """Image and encoder left, decoder and reconstruction right, of a model with hidden layers: page, shapes, boxes."""
    shapes = output_shapes(model, torch.zeros(1, *model.image_shape), torch.zeros(1, dtype=torch.int64))
    left = ["image", *(f"encoder.{i}" for i in range(len(model.encoder) - 1)), "to_code.0"]
    right = ["from_code.0", *(f"decoder.{i}" for i in range(len(model.decoder)))]
    places = [2.3 + 1.3 * i for i in range(len(left))]
    ax, boxes = new_page((-places[-1] - 1.2, places[-1] + 1.2), vertical, title), []
    for x, name in zip([-x for x in reversed(places)] + places, left + right):
        numbers, at_end = [*map(str, shapes[name])], name in (left[0], right[-1])
        labels = ("", " x ".join(numbers)) if at_end else (numbers[0], " x ".join(numbers[1:]))
        boxes.append(draw_box(ax, x, 0, shapes[name], WHITE if at_end else SKY if x < 0 else GREEN, *labels))
    for start, end in [*pairwise(boxes[: len(left)]), *pairwise(boxes[len(left) :])]:
        draw_arrow(start, end)
    for x, text, half, colour in ((-1, "image", "encoder", BLUE), (1, "reconstruction", "decoder", GREEN)):
        ax.text(x * places[-1], -0.85, text, **TEXT)
        ax.text(x * (places[0] + places[-1]) / 2, -1.3, half, **TEXT | {"color": colour, "weight": "bold"})
    return ax, shapes, boxes


def draw_autoencoder(model: nn.Module) -> Figure:
    """A plain autoencoder, of this conditional VAE's layers: the code is a point; there is no noise and no label."""
    ax, shapes, boxes = draw_halves(model, (-2.3, 2.2), "Autoencoder")
    size, before = shapes["to_code"][0] // 2, len(boxes) // 2 - 1  # the other half: log-variance
    code = draw_box(ax, 0, 0, (size,), ORANGE, f"code: {size} numbers, a point")
    draw_arrow(boxes[before], code)
    draw_arrow(code, boxes[before + 1])
    ax.text(0, -1.9, "one image, one code: codes in between are never trained", **TEXT | {"weight": "bold"})
    return ax.figure


def draw_conditional_vae(model: nn.Module) -> Figure:
    """The conditional VAE as built: a Gaussian for a code, the label where it enters, the losses where they do."""
    halves = {"encoder": model.encoder_sees_label, "decoder": model.decoder_sees_label}
    title = f"Conditional VAE: the label goes to the {' and the '.join(filter(halves.get, halves))}"
    ax, shapes, boxes = draw_halves(model, (-4.2, 4.2), title)
    ends, size = boxes[len(boxes) // 2 - 1 :][:2], shapes["to_code"][0] // 2
    mean, log_variance, z = (
        draw_box(ax, x, y, (size,), ORANGE, below=f"{name}: {size}")
        for x, y, name in ((-0.7, 0.85, "mean"), (-0.7, -0.75, "log-variance"), (1.1, 0, "z"))
    )
    for start, end in ((ends[0], mean), (ends[0], log_variance), (mean, z), (log_variance, z), (z, ends[1])):
        draw_arrow(start, end)
    noise = draw_box(ax, 1.1, 1.9, (1,), WHITE, "noise ~ N(0, 1)")
    draw_arrow(noise, z, GREY, ("bottom", "top"))
    ax.text(1.1, 2.45, "z = mean + exp(log-variance / 2) × noise", **TEXT)
    ax.text(-0.7, 1.75, "KL divergence\nto N(0, 1)", **TEXT | {"color": VERMILION, "weight": "bold"})
    loss = draw_box(ax, 0, 3.1, (1,), VERMILION, "reconstruction loss")
    draw_arrow(boxes[0], loss, VERMILION, ("top", "left"), "angle,angleA=90,angleB=0")
    draw_arrow(boxes[-1], loss, VERMILION, ("top", "right"), "angle,angleA=90,angleB=0")
    label = draw_box(ax, 0, -3.5, (model.classes,), PURPLE, below=f"label, one-hot: {model.classes}")
    embedding = draw_box(ax, 0, -2.2, shapes["embedding"], PURPLE, f"embedding: {shapes['embedding'][0]}")
    draw_arrow(label, embedding, PURPLE, ("top", "bottom"))
    for end, side, sees in zip(ends, ("left", "right"), halves.values()):
        if sees:
            draw_arrow(embedding, end, PURPLE, (side, "bottom"), "angle,angleA=0,angleB=90")
    return ax.figure
