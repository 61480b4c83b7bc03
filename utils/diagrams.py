"""Diagrams of the models, drawn from the shapes that the models really produce.

One data unit is one inch on the page, so a label that clears its neighbours in one figure clears them in every other.
Colours are those of Okabe and Ito (2008), which readers with any common colour vision tell apart.
"""

from copy import deepcopy
from itertools import pairwise
from math import log2, prod, sqrt
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from utils.cvae import ConditionalVAE
from utils.standins import digits
from utils.unet import UNet

BLACK, GREY, WHITE = "#000000", "#737373", "#FFFFFF"
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
FONT_SIZE, LINE = 16, 0.34  # of text, in points, and of a line of it, in inches
COLUMN = 1.15  # from one box to the next
MIDDLE = 2.6 * COLUMN  # across the bottleneck, so that the shortest skip has room for its name
PICTURE = 1.8  # side of a thumbnail
GAP = 4.2  # between encoder and decoder of a VAE
OTHER_CODES = [(-0.9, 0.6), (-0.7, 0.75), (-0.6, 0.5), (0.7, 0.6), (0.85, 0.4), (-0.8, -0.6), (0.5, -0.7), (0.7, -0.6)]

Shape = tuple[int, ...]  # (C, H, W), or the length of a vector
Point = tuple[float, float]


class Box(NamedTuple):
    """A feature map on the page: the points where arrows and labels meet it."""

    left: Point
    right: Point
    top: Point
    bottom: Point


def draw_unet(model: UNet, image_size: int) -> Figure:
    """The U-shaped diagram of this model: one row per resolution, channels above each box.

    Args:
        model: any U-Net; it is left as it was.
        image_size: side of the square image, a multiple of 2**depth.

    Returns:
        The figure, 11 inches wide for depth 2 and 18 for depth 5.
    """
    shapes = output_shapes(model, torch.zeros(1, model.in_channels, image_size, image_size))
    rows = row_centres([image_size // 2**level for level in range(model.depth + 1)])
    right, bottom, top = 2 * model.depth * COLUMN + MIDDLE, rows[-1] - 2.2, box_height(image_size) / 2 + 1.6
    millions = sum(weights.numel() for weights in model.parameters()) / 1e6
    title = f"U-Net: {model.depth} levels, {millions:.2f} M parameters"
    margin = max(1.6, 5.3 - right / 2)  # below depth 2 the key is wider than the U
    figure, axes = canvas((-margin, right + margin), (bottom, top), title)
    write(axes, (-0.2, top - 1), "contracting path", color=BLUE, ha="left", weight="bold")
    write(axes, (right + 0.2, top - 1), "expanding path", color=GREEN, ha="right", weight="bold")

    skips, box = draw_contracting_path(axes, shapes, rows)
    x, y = box.top[0] + MIDDLE, rows[-1]
    deepest = draw_labelled_box(axes, (x, y), shapes["bottleneck"], ORANGE)
    draw_arrow(axes, box.right, deepest.left)
    write(axes, raised((x - MIDDLE / 2, y), -0.65), "bottleneck", weight="bold")
    draw_expanding_path(axes, shapes, skips, deepest)
    draw_key(axes, model, (right / 2 - 4.9, bottom + 1.1))
    return figure


def draw_contracting_path(axes: Axes, shapes: dict[str, Shape], rows: list[float]) -> tuple[list[Box], Box]:
    """Left arm of the U. Returns the boxes that the skips leave from, and the one that enters the bottleneck."""
    box, skips = draw_labelled_box(axes, (0, rows[0]), shapes["image"], WHITE, sized=True), []
    write(axes, raised(box.bottom, -0.5), "image")
    for level, row in enumerate(rows[1:]):
        x = (level + 1) * COLUMN
        skips.append(draw_labelled_box(axes, (x, rows[level]), shapes[f"contracting_path.{level}"], SKY))
        draw_arrow(axes, box.right, skips[-1].left)
        box = draw_labelled_box(axes, (x, row), shapes[f"down_samplings.{level}"], SKY, sized=True)
        draw_arrow(axes, skips[-1].bottom, raised(box.top, 1), BLUE)
    return skips, box


def draw_expanding_path(axes: Axes, shapes: dict[str, Shape], skips: list[Box], box: Box) -> None:
    """Right arm of the U, from the bottleneck's box to the logits."""
    for step, skip in enumerate(reversed(skips)):
        shape, x, y = shapes[f"up_convolutions.{step}"], box.top[0], skip.left[1]
        enlarged = draw_box(axes, (x, y), shape, GREEN)
        copied = draw_box(axes, (2 * enlarged.left[0] - x, y), shape, SKY)  # it touches: that is the concatenation
        write(axes, raised((copied.right[0], copied.top[1]), 0.5), f"{shape[0]} + {shape[0]}")
        draw_arrow(axes, raised(box.top, 1), enlarged.bottom, GREEN)
        draw_arrow(axes, skip.right, copied.left, GREY)
        write(axes, raised(((skip.right[0] + copied.left[0]) / 2, y), 0.5), "concatenate", color=GREY)
        box = draw_labelled_box(axes, (x + COLUMN, y), shapes[f"expanding_path.{step}"], GREEN)
        draw_arrow(axes, enlarged.right, box.left)
    logits = draw_labelled_box(axes, (box.top[0] + COLUMN, box.left[1]), shapes["head"], WHITE)
    draw_arrow(axes, box.right, logits.left, VERMILION)
    write(axes, raised(logits.bottom, -0.5), "logits")


def draw_key(axes: Axes, model: UNet, corner: Point) -> None:
    """What the arrows mean, in the words of this model's own layers."""
    pooled = isinstance(model.down_samplings[0], nn.MaxPool2d)
    transposed = isinstance(model.up_convolutions[0], nn.ConvTranspose2d)
    entries = [
        ("double convolution 3x3", BLACK),
        ("max pooling 2x2" if pooled else "strided convolution 3x3, stride 2", BLUE),
        ("transposed convolution 2x2" if transposed else "1x1 convolution, bilinear upsampling", GREEN),
        ("skip connection", GREY),
        ("1x1 convolution: the head", VERMILION),
    ]
    for index, (text, colour) in enumerate(entries):
        x, y = corner[0] + index // 3 * 6, corner[1] - index % 3 * 0.4
        draw_arrow(axes, (x, y), (x + 0.6, y), colour)
        write(axes, (x + 0.75, y), text, ha="left")


def draw_encoder_decoder(model: UNet, image_size: int) -> Figure:
    """What skips are for: an encoder-decoder without them (above) and the U-Net, with them (below).

    Args:
        model: any U-Net; it is left as it was.
        image_size: side of the square image, a multiple of 2**depth.

    Returns:
        The figure, 15 inches wide.
    """
    shapes = output_shapes(model, torch.zeros(1, model.in_channels, image_size, image_size))
    channels, side, _ = shapes["bottleneck"]
    held, given, cell = prod(shapes["bottleneck"]), prod(shapes["image"]), image_size // side
    carried = sum(prod(shapes[f"contracting_path.{level}"]) for level in range(model.depth))
    photo, mask = cat(image_size)
    blurred = F.interpolate(F.adaptive_avg_pool2d(mask, side), size=image_size, mode="bilinear")

    figure, axes = canvas((0, 15), (-7.5, 2.6), "What the skip connections are for")
    write(axes, (0.6, 1.4), "Encoder-decoder: everything passes through the bottleneck", ha="left", weight="bold")
    draw_strip(axes, 0, shapes, model.depth, (photo, blurred))
    write(axes, (7.5, -1.25), f"bottleneck {channels} x {side} x {side}: {held:,} values; the image has {given:,}")
    write(axes, (7.5, -1.65), f"one cell for {cell} x {cell} pixels: it keeps what is there, and blurs where")

    write(axes, (0.6, -2.6), "U-Net: details take the short way", ha="left", weight="bold")
    boxes = draw_strip(axes, -4.8, shapes, model.depth, (photo, mask))
    for start, end in zip(boxes[: model.depth], reversed(boxes), strict=False):
        draw_arrow(axes, start.top, end.top, GREY, "arc3,rad=-0.2")
    write(axes, (7.5, -6.05), f"skip connections: {carried:,} values, copied before each down-sampling")
    write(axes, (7.5, -6.45), "they give back where: the exact edge")
    note = "Sketches: the upper mask keeps one value per bottleneck cell; a trained model keeps more."
    write(axes, (7.5, -7.15), note, color=GREY)
    return figure


def draw_strip(axes: Axes, y: float, shapes: dict[str, Shape], depth: int, ends: tuple[Tensor, Tensor]) -> list[Box]:
    """Image, encoder, bottleneck, decoder and mask in one row. Returns the boxes between the two pictures."""
    encoder, decoder = ([f"{path}_path.{i}" for i in range(depth)] for path in ("contracting", "expanding"))
    names, colours = [*encoder, "bottleneck", *decoder], [SKY] * depth + [ORANGE] + [GREEN] * depth
    xs = torch.linspace(3.7, 11.3, len(names)).tolist()
    boxes = [draw_box(axes, (x, y), shapes[name], colour) for x, name, colour in zip(xs, names, colours, strict=True)]
    image, mask = draw_picture(axes, (1.5, y), ends[0], "image"), draw_picture(axes, (13.5, y), ends[1], "mask")
    connect(axes, image, *boxes, mask)
    return boxes


def cat(side: int) -> tuple[Tensor, Tensor]:
    """A cat's head and its mask, both (1, 1, side, side), with ears fine enough to lose."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    head = (x / 0.75) ** 2 + ((y - 0.2) / 0.62) ** 2 < 1
    ears = (y < 0) & ((x.abs() - 0.42).abs() < (y + 0.85) * 0.3)
    eyes = ((x.abs() - 0.28) / 0.1) ** 2 + ((y - 0.1) / 0.15) ** 2 < 1
    mask = (head | ears).float()[None, None]
    return 0.35 + 0.4 * mask - 0.75 * eyes, mask


def draw_autoencoder(model: ConditionalVAE) -> Figure:
    """A plain autoencoder made of this model's layers: the code is a point; there is neither noise nor label.

    Args:
        model: any conditional VAE; it is left as it was.

    Returns:
        The figure, 13.4 inches wide up to depth 2; each further level adds two.
    """
    axes, shapes, (_, before, after, _) = draw_row(model, (-2.9, 2.5), "Autoencoder")
    axes.add_patch(Rectangle((-1.2, -1), 2.4, 2, facecolor=WHITE, edgecolor=GREY))
    axes.scatter(*zip(*OTHER_CODES), color=GREY)
    axes.add_patch(Circle((0, 0), 0.17, facecolor=ORANGE, edgecolor=BLACK))
    connect(axes, before, box_around((0, 0), 0.34, 0.34), after)
    write(axes, (0, 1.2), f"code: {shapes['to_code'][0] // 2} numbers, a point")  # the other half: log-variance
    write(axes, (0, -2.1), "one image, one code: between the codes there may be nothing", weight="bold")
    write(axes, (0, -2.55), "grey: the codes of other images", color=GREY)
    return axes.figure


def draw_conditional_vae(model: ConditionalVAE) -> Figure:
    """The conditional VAE as built: a Gaussian instead of a point, the label where it enters, the losses where they do.

    Args:
        model: any conditional VAE; it is left as it was.

    Returns:
        The figure, 13.4 inches wide up to depth 2; each further level adds two.
    """
    halves = {"encoder": model.encoder_told, "decoder": model.decoder_told}
    title = f"Conditional VAE: the label goes to the {' and the '.join(filter(halves.get, halves))}"
    axes, shapes, (image, before, after, reconstruction) = draw_row(model, (-4.7, 4.3), title)
    draw_sampling(axes, shapes["to_code"][0] // 2, before, after)
    ends = [box.bottom for box, told in zip((before, after), halves.values()) if told]
    draw_label(axes, model.classes, shapes["embedding"], ends)
    write(axes, (0, 3.2), "reconstruction loss", color=VERMILION, weight="bold")
    for picture, x in ((image, -1.3), (reconstruction, 1.3)):
        draw_arrow(axes, picture.top, (x, 3.2), VERMILION, "angle,angleA=90,angleB=0")
    return axes.figure


def draw_row(model: ConditionalVAE, heights: Point, title: str) -> tuple[Axes, dict[str, Shape], list[Box]]:
    """Image, encoder, gap, decoder, reconstruction. Returns page, shapes, and the boxes at the ends and at the gap."""
    shapes = output_shapes(model, torch.zeros(1, *model.image_shape), torch.zeros(1, dtype=torch.int64))
    depth, picture = len(model.encoder) - 1, digit(model.image_shape)
    encoder, decoder = ([f"{half}.{step}" for step in range(depth)] for half in ("encoder", "decoder"))
    xs, end = [GAP / 2 + step for step in range(depth + 1)], GAP / 2 + max(depth, 2) + 1.6  # 2: room for the formula
    (_, axes), row = canvas((-end - 1, end + 1), heights, title), []
    for x, name in zip([-x for x in reversed(xs)] + xs, [*encoder, "to_code.0", "from_code.0", *decoder]):
        row.append(draw_labelled_box(axes, (x, 0), shapes[name], SKY if x < 0 else GREEN))
        write(axes, raised(row[-1].bottom, -0.5), " x ".join(map(str, shapes[name][1:])), color=GREY)
    blurred = F.avg_pool2d(picture, 3, stride=1, padding=1)
    image = draw_picture(axes, (-end, 0), picture, "image")
    result = draw_picture(axes, (end, 0), blurred, "reconstruction")
    for x, name, half, colour in ((-1, "image", "encoder", BLUE), (1, "decoder", "decoder", GREEN)):
        write(axes, raised((x * end, image.bottom[1]), -1.5), " x ".join(map(str, shapes[name])), color=GREY)
        write(axes, raised((x * (xs[1] + xs[-1]) / 2, image.bottom[1]), -0.5), half, color=colour, weight="bold")
    connect(axes, image, *row[: depth + 1])
    connect(axes, *row[depth + 1 :], result)
    return axes, shapes, [image, row[depth], row[depth + 1], result]


def draw_sampling(axes: Axes, size: int, before: Box, after: Box) -> None:
    """Mean and log-variance with their KL divergence, noise, and z, between encoder and decoder."""
    boxes = []
    for x, y, name in ((-0.65, 0.85, "mean"), (-0.65, -0.75, "log-variance"), (1.2, 0, "z")):
        boxes.append(draw_box(axes, (x, y), (size,), ORANGE))
        write(axes, raised(boxes[-1].bottom, -0.5), f"{name}: {size}")
    mean, log_variance, z = boxes
    connect(axes, before, mean, z, after)
    connect(axes, before, log_variance, z)
    axes.add_patch(Rectangle((-1.75, -1.75), 2.2, 3.35, fill=False, edgecolor=VERMILION, linestyle="--"))
    write(axes, (-0.65, 2.05), "KL divergence\nto N(0, 1)", color=VERMILION, weight="bold")
    write(axes, (1.1, 2.35), "noise ~ N(0, 1)", ha="left", bbox={"boxstyle": "round", "facecolor": WHITE})
    draw_arrow(axes, (z.top[0], 2.1), z.top, GREY)
    write(axes, (1.4, 1.6), "z = mean + deviation × noise\ndeviation = exp(log-variance / 2)", ha="left")


def draw_label(axes: Axes, classes: int, embedding: Shape, ends: list[Point]) -> None:
    """The label as a one-hot vector, its embedding, and from there an arrow to each of these ends."""
    box, side = draw_box(axes, (0, -2.6), embedding, PURPLE), 2.4 / max(classes, 10)
    write(axes, raised(box.top, 0.5), f"embedding: {embedding[0]}")
    for index in range(classes):
        colour = PURPLE if index == min(3, classes - 1) else WHITE  # 3 is the digit in the picture
        axes.add_patch(Rectangle(((index - classes / 2) * side, -4), side, side, facecolor=colour, edgecolor=BLACK))
    write(axes, (0, -4.25), f"label, one-hot: {classes}")
    draw_arrow(axes, (0, -4 + side), box.bottom, PURPLE)
    write(axes, (0.2, -3.35), "linear, no bias", ha="left")
    for end in ends:
        draw_arrow(axes, box.left if end[0] < 0 else box.right, end, PURPLE, "angle,angleA=0,angleB=90")


def digit(shape: Shape) -> Tensor:
    """A drawn 3, (1, 1 or 3, H, W): as large as an image of this shape, and tinted if that has three channels."""
    ink = torch.from_numpy(digits(4, seed=0)[0][3])[None, None] / 255
    tint = torch.linspace(1, 0.4, 3 if shape[0] == 3 else 1)[:, None, None]
    return F.interpolate(ink, size=shape[1:], mode="bilinear") * tint


def connect(axes: Axes, *boxes: Box) -> None:
    """An arrow from each box to the next."""
    for start, end in pairwise(boxes):
        draw_arrow(axes, start.right, end.left)


def output_shapes(model: nn.Module, *inputs: Tensor) -> dict[str, Shape]:
    """Run a copy of the model, so that the original keeps its mode and gets no hooks.

    Args:
        model: any module whose submodules return one tensor each.
        inputs: batches for its forward, on the CPU, the images first.

    Returns:
        The shape, without the batch, of every submodule's output by its dotted name; "image" is the first input's.
    """
    probe, shapes = deepcopy(model).cpu().eval(), {"image": tuple(inputs[0].shape[1:])}
    for name, module in probe.named_modules():
        if name:  # the model as a whole may return several tensors
            module.register_forward_hook(
                lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
            )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a VAE draws noise: no later result should change
        probe(*inputs)
    return shapes


def canvas(horizontal: Point, vertical: Point, title: str) -> tuple[Figure, Axes]:
    """White page with these limits, in inches, and this title."""
    figure, axes = plt.subplots(figsize=(horizontal[1] - horizontal[0], vertical[1] - vertical[0]), facecolor=WHITE)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    axes.set(xlim=horizontal, ylim=vertical)
    axes.axis("off")
    write(axes, (sum(horizontal) / 2, vertical[1] - 0.4), title, size=FONT_SIZE + 5, weight="bold")
    return figure, axes


def write(axes: Axes, point: Point, text: str, **style: object) -> None:
    """Text at a point, centred unless `style` says otherwise."""
    axes.text(*point, text, **{"ha": "center", "va": "center", "size": FONT_SIZE} | style)


def raised(point: Point, lines: float) -> Point:
    """The point so many lines of text higher: half a line is the centre of a label, a whole one clears it."""
    return point[0], point[1] + lines * LINE


def box_height(side: int) -> float:
    """The root keeps both the image and a side of 2 visible."""
    return 0.11 * sqrt(side)


def row_centres(sides: list[int]) -> list[float]:
    """Heights of rows of boxes with these sides, from 0 down, with room for an arrow and a label between them."""
    centres = [0.0]
    for upper, lower in pairwise(sides):
        centres.append(centres[-1] - (box_height(upper) + box_height(lower)) / 2 - LINE - 0.45)
    return centres


def draw_box(axes: Axes, centre: Point, shape: Shape, colour: str) -> Box:
    """A map (C, H, W): as high as the root of H, as wide as the logarithm of C; a vector: as high as its logarithm."""
    (x, y), breadth = centre, 0.045 * (1 + log2(shape[0]))
    width, height = (breadth, box_height(shape[1])) if shape[1:] else (0.2, 2.7 * breadth)
    axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour, edgecolor=BLACK))
    return box_around(centre, width, height)


def box_around(centre: Point, width: float, height: float) -> Box:
    """The points where arrows meet a rectangle."""
    x, y = centre
    return Box((x - width / 2, y), (x + width / 2, y), (x, y + height / 2), (x, y - height / 2))


def draw_labelled_box(axes: Axes, centre: Point, shape: Shape, colour: str, sized: bool = False) -> Box:
    """A box with its channels above it and, where a row begins, its height and width to the left."""
    box = draw_box(axes, centre, shape, colour)
    write(axes, raised(box.top, 0.5), str(shape[0]))
    if sized:
        write(axes, (box.left[0] - 0.1, box.left[1]), f"{shape[1]} x {shape[2]}", ha="right", color=GREY)
    return box


def draw_picture(axes: Axes, centre: Point, picture: Tensor, label: str) -> Box:
    """A thumbnail of (1, 1 or 3, H, W), values in [0, 1], with a label below it."""
    box = box_around(centre, PICTURE, PICTURE)
    extent = (box.left[0], box.right[0], box.bottom[1], box.top[1])
    axes.imshow(picture[0].permute(1, 2, 0).numpy(), extent=extent, cmap="gray", vmin=0, vmax=1)
    write(axes, raised(box.bottom, -0.5), label)
    return box


def draw_arrow(axes: Axes, start: Point, end: Point, colour: str = BLACK, path: str = "arc3") -> None:
    """An arrow, straight unless matplotlib's name of a connection style says otherwise."""
    style = {"arrowstyle": "-|>,head_width=0.3,head_length=0.6", "connectionstyle": path}
    axes.annotate("", end, start, arrowprops=style | {"color": colour, "linewidth": 2, "shrinkA": 1, "shrinkB": 1})
