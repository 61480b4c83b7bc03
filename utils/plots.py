"""Every picture of the course that shows data or results. Nothing is computed here; diagrams are in `diagrams`.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from utils.data import BACKGROUND, BORDER, PET
from utils.storage import write_atomically

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
PET_COLOUR, BORDER_COLOUR = "#56B4E9", "#E69F00"
OBEYED = {True: "#0072B2", False: "#D55E00"}
FOUND_COLOUR, MISSED_COLOUR, FALSE_ALARM_COLOUR = "#56B4E9", "#D55E00", "#F0E442"


def titled(figure: Figure, title: str, source: str) -> Figure:
    """Give the figure its title, and say in capitals when it does not show real data."""
    figure.suptitle(f"STAND-IN DATA: {title}" if source == "stand-in" else title, fontsize=15)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=70))


def grid(rows: int, columns: int, side: float = 1.9) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns pictures without axes."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, side * rows + 0.6), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def show_image(ax: Axes, image: Tensor) -> None:
    """An image uint8 (3, H, W) in its real colours."""
    ax.imshow(image.permute(1, 2, 0).numpy())


def show_grey(ax: Axes, image: Tensor) -> None:
    """An image uint8 (3, H, W) without its colours, as a ground to paint on."""
    ax.imshow(image.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=255)


def paint(ax: Axes, mask: Tensor, colour: str, opacity: float = 0.6) -> None:
    """Tint the pixels where mask (H, W) is true."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    layer = np.zeros((*mask.shape, 4))
    layer[mask.numpy()] = [*rgb, opacity]
    ax.imshow(layer, interpolation="nearest")


def show_trimap(ax: Axes, image: Tensor, trimap: Tensor) -> None:
    """An image with its pet (blue) and border (orange) tinted; trimap uint8 (1, H, W)."""
    show_image(ax, image)
    paint(ax, trimap[0] == PET, PET_COLOUR)
    paint(ax, trimap[0] == BORDER, BORDER_COLOUR, opacity=0.9)


def plot_samples(images: Tensor, trimaps: Tensor, source: str) -> Figure:
    """Images uint8 (N, 3, H, W) above their trimaps uint8 (N, 1, H, W)."""
    figure, axes = grid(2, len(images))
    for (above, below), image, trimap in zip(axes.T, images, trimaps):
        show_image(above, image)
        show_trimap(below, image, trimap)
    return titled(figure, "Images, and their trimaps: pet blue, border orange", source)


def plot_augmentations(originals: Sequence[tuple], augmented: Sequence[Sequence[tuple]], source: str) -> Figure:
    """Each row: an image with its trimap, then the same pair after different random draws.

    A pair is an image uint8 (3, H, W) and a trimap uint8 (1, H, W).
    """
    figure, axes = grid(len(originals), 1 + len(augmented[0]))
    for row, original, draws in zip(axes, originals, augmented):
        for ax, (image, trimap) in zip(row, [original, *draws]):
            show_image(ax, image)
            ax.contour(trimap[0] != BACKGROUND, levels=[0.5], colors=BORDER_COLOUR, linewidths=2)
    axes[0, 0].set_title("original")
    axes[0, 1].set_title("random draws", loc="left")
    return titled(figure, "Augmentation moves image and mask (outlined) together", source)


def plot_loss_against_size(radii: Sequence[int], costs: dict[str, Sequence[float]]) -> Figure:
    """What the same mistake costs under each loss, against the size of the object (radius in pixels)."""
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for (name, values), colour, marker in zip(costs.items(), COLOURS, "os"):
        ax.plot(radii, values, marker=marker, color=colour, linewidth=2, label=name)
    ax.set(xlabel="radius of the object, pixels (image 128 x 128)", ylabel="loss (BCE in nats)", yscale="log")
    ax.set_title("The price of missing half of an object")
    ax.legend(fontsize=12, loc="center right")
    ax.grid(alpha=0.3)
    return figure


def plot_learning_curves(histories: dict[str, list[dict]], sizes: Sequence[int], source: str) -> Figure:
    """Training loss (one panel for each loss, since their units differ) and validation IoU of all variants."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    panels = {"BCE": axes[0], "Dice": axes[1]}
    for (variant, history), colour in zip(histories.items(), COLOURS):
        epochs = range(1, len(history) + 1)
        loss_axis = panels[variant.split("+")[-1]]
        loss_axis.plot(epochs, [row["loss"] for row in history], color=colour, linewidth=2, label=variant)
        axes[2].plot(epochs, [row["score"] for row in history], color=colour, linewidth=2, label=variant)
    axes[0].set(title="Training loss: BCE", ylabel="nats per pixel")
    axes[1].set(title="Training loss: Dice", ylabel="1 - soft Dice")
    axes[2].set(title="Validation IoU, one view", ylabel="IoU, pet + border", ylim=(0.3, 1))
    for ax in axes:
        mark_size_changes(ax, sizes)
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.3)
        if ax.has_data() and ax.get_legend_handles_labels()[0]:
            ax.legend()
    return titled(figure, "Learning curves; dashed: training images get larger", source)


def mark_size_changes(ax: Axes, sizes: Sequence[int]) -> None:
    """A dashed line where the training images change their side."""
    for epoch in range(1, len(sizes)):
        if sizes[epoch] != sizes[epoch - 1]:
            ax.axvline(epoch + 0.5, color="grey", linestyle="--", linewidth=1)


def plot_predictions(
    images: Tensor, trimaps: Tensor, predicted: dict[str, Tensor], scores: dict[str, Tensor], title: str, source: str
) -> Figure:
    """Each row: image, truth, and each variant's IoU and pixels: found (blue), missed (red), false alarms (yellow).

    Args:
        images: uint8 (N, 3, H, W).
        trimaps: uint8 (N, 1, H, W).
        predicted: for each variant, bool (N, 1, H, W).
        scores: for each variant, IoU (N,).
        title: of the figure.
        source: of the data.
    """
    figure, axes = grid(len(images), 2 + len(predicted))
    for i, row in enumerate(axes):
        show_image(row[0], images[i])
        show_trimap(row[1], images[i], trimaps[i])
        truth = trimaps[i, 0] != BACKGROUND
        for ax, variant in zip(row[2:], predicted):
            mask = predicted[variant][i, 0]
            show_grey(ax, images[i])
            paint(ax, mask & truth, FOUND_COLOUR)
            paint(ax, truth & ~mask, MISSED_COLOUR)
            paint(ax, mask & ~truth, FALSE_ALARM_COLOUR)
            ax.text(3, 4, f"IoU {scores[variant][i]:.2f}", va="top", fontsize=11, backgroundcolor="#ffffffb0")
    for ax, name in zip(axes[0], ["image", "truth", *predicted]):
        ax.set_title(name, fontsize=12)
    return titled(figure, title, source)


def plot_masks(images: Tensor, names: Sequence[str], predicted: dict[str, Tensor], source: str) -> Figure:
    """Each row: a photograph uint8 (3, H, W), and what each variant finds in it, bool (N, 1, H, W), in blue."""
    figure, axes = grid(len(images), 1 + len(predicted))
    for i, row in enumerate(axes):
        show_image(row[0], images[i])
        row[0].set_title(names[i], fontsize=9)
        for ax, (variant, masks) in zip(row[1:], predicted.items()):
            show_grey(ax, images[i])
            paint(ax, masks[i, 0], FOUND_COLOUR)
            ax.set_title(variant, fontsize=9)
    return titled(figure, "What the four take for a pet", source)


def plot_cost(
    sizes: Sequence[int], by_size: Sequence[float], widths: Sequence[int], by_width: Sequence[float]
) -> Figure:
    """Seconds of training for an image, against its side in pixels and the channels of the U-Net's first level.

    Both axes are logarithmic: a power law is a line, its exponent the slope of the least-squares fit.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    names = ("side of the image, pixels (8 channels)", "channels of the first level (128 px)")
    for ax, name, x, y, colour in zip(axes, names, (sizes, widths), (by_size, by_width), COLOURS):
        exponent, factor = np.polyfit(np.log(x), np.log(y), 1)
        ax.loglog(x, y, "o", color=colour, markersize=8, label="measured")
        ax.loglog(x, np.exp(factor) * np.array(x) ** exponent, color=colour, label=f"exponent {exponent:.2f}")
        ax.set_xticks(x, x)
        ax.minorticks_off()
        ax.set(xlabel=name)
        ax.legend()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds for an image")
    figure.suptitle("What a training step of the U-Net costs", fontsize=15)
    return figure


# --- Conditional VAEs -------------------------------------------------------------------------------------------------


def show_unit(ax: Axes, image: Tensor) -> None:
    """An image float (C, H, W) in 0..1, grey or in colour; nothing is stretched."""
    picture = image.permute(1, 2, 0).cpu().numpy()
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def plot_image_table(images: Tensor, rows: Sequence[str], columns: Sequence[str], title: str, source: str) -> Figure:
    """Images float (R, C, channels, H, W) in 0..1 as one picture, with a name for each row and each column."""
    height, width = (side + 3 for side in images.shape[-2:])
    tiles = F.pad(images.cpu(), (0, 3, 0, 3), value=1)  # a white gap after each
    picture = tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (channels, R * height, C * width)
    figure, ax = plt.subplots(figsize=(1.3 + 1.05 * len(columns), 0.9 + 1.05 * len(rows)), layout="constrained")
    show_unit(ax, picture)
    ax.set_xticks([(i + 0.5) * width - 2 for i in range(len(columns))], columns, fontsize=12)
    ax.set_yticks([(i + 0.5) * height - 2 for i in range(len(rows))], rows, fontsize=12)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return titled(figure, title, source)


def plot_wrong_labels(
    sources: Tensor,
    outputs: Tensor,
    true: Tensor,
    sent: Tensor,
    read: Tensor,
    names: Sequence[str],
    title: str,
    source: str,
) -> Figure:
    """25 tiles: a source, what the model made of it, and the labels; a blue frame and a tick where it obeyed.

    Args:
        sources, outputs: float (25, C, H, W) in 0..1.
        true, sent, read: int64 (25,): the true class, the label sent, what the judge reads off the output.
        names: of the classes.
        title: what the tiles show.
        source: of the data.
    """
    figure, axes = plt.subplots(5, 5, figsize=(12, 10))
    words = max(map(len, names)) > 1  # which need two lines, and the space below the source
    space, gap, right, top = ("\n", 0.45, 0.965, 0.865) if words else (", ", 0.25, 0.99, 0.89)
    figure.subplots_adjust(0.085, 0.01, right, top, wspace=0.65, hspace=gap)  # much faster than a layout engine
    labels = ([names[label] for label in part.tolist()] for part in (true, sent, read))
    for ax, image, output, truth, asked, reading in zip(axes.flat, sources, outputs, *labels):
        obeyed = asked == reading
        show_unit(ax, output)
        inset = ax.inset_axes((-0.54, 0.5, 0.5, 0.5))
        show_unit(inset, image)
        if words:
            inset.set_xlabel(f"true\n{truth}", fontsize=10, labelpad=2)
        else:
            inset.set_title(f"true {truth}", fontsize=12, pad=2)
        ax.set_title(f"sent {asked}{space}reads {reading} {'✓' if obeyed else '✗'}", fontsize=12, color=OBEYED[obeyed])
        for spine in ax.spines.values():
            spine.set(color=OBEYED[obeyed], linewidth=3, linestyle="-" if obeyed else ":")
        for each in (ax, inset):
            each.set(xticks=[], yticks=[])
    obedient = (sent == read).sum().item()
    return titled(figure, f"{title}\n{obedient} of {len(sent)} read as the label sent (✓)", source)


def plot_elbo_curves(histories: dict[str, list[dict]], source: str) -> Figure:
    """Reconstruction and KL apart, and their sum: training (dotted) and validation (solid), nats per image."""
    panels = {"reconstruction": "Reconstruction", "kl": "KL divergence", "negative_elbo": "-ELBO: their sum"}
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for ax, (key, name) in zip(axes, panels.items()):
        for (model, history), colour in zip(histories.items(), COLOURS):
            epochs = range(1, len(history) + 1)
            ax.plot(epochs, [row[f"validation_{key}"] for row in history], color=colour, linewidth=2, label=model)
            ax.plot(epochs, [row[key] for row in history], color=colour, linestyle=":")
        last = [row[f"validation_{key}"] for history in histories.values() for row in history[len(history) // 4 :]]
        ax.set(
            title=name,
            xlabel="epoch",
            ylabel="nats per image",
            ylim=(min(last) - 0.03 * abs(min(last)), max(last) + 0.05 * abs(max(last))),
        )
        ax.grid(alpha=0.3)
    axes[0].legend()
    return titled(figure, "Training (dotted) and validation (solid)", source)


def plot_trade_off(points: dict[str, tuple[float, float]], curve: Sequence[str], source: str) -> Figure:
    """Agreement with the label sent over the quality of reconstruction; the models named in `curve` are joined.

    Args:
        points: for each model, its PSNR in dB and its agreement in 0..1.
        curve: names of points that differ in one weight, in its order.
        source: of the data.
    """
    figure, ax = plt.subplots(figsize=(9, 5.5), layout="constrained")
    ax.plot(*zip(*(points[name] for name in curve)), color=COLOURS[0], linewidth=2)
    for (name, point), marker, colour in zip(points.items(), "os^DvPX", cycle(COLOURS[1:])):
        ax.plot(*point, marker, color=colour, markersize=10, label=name)
    ax.set(
        xlabel="PSNR of reconstructions with the right label, dB",
        ylabel="reads as the wrong label sent",
        ylim=(0, 1.05),
    )
    ax.legend()
    ax.grid(alpha=0.3)
    return titled(figure, "What obedience costs", source)


def plot_codes(codes: dict[str, Tensor], labels: Tensor, source: str) -> Figure:
    """Two-dimensional codes (N, 2), a panel for each model; each point is drawn as its class."""
    figure, axes = plt.subplots(1, len(codes), figsize=(7.5 * len(codes), 7), layout="constrained", squeeze=False)
    for ax, (name, points) in zip(axes[0], codes.items()):
        for label in labels.unique().tolist():
            x, y = points[labels == label].T.tolist()
            ax.scatter(x, y, marker=f"${label}$", color=COLOURS[label % len(COLOURS)], s=45, linewidths=0.3)
        ax.set(title=name, xlabel="first component", ylabel="second component", aspect="equal")
    return titled(figure, "Codes, each drawn as its true class", source)


def plot_kl(means: Sequence[float], deviations: Sequence[float], divergences: Sequence[Sequence[float]]) -> Figure:
    """KL divergence of N(mean, deviation) from N(0, 1) in nats, over the mean; a line for each deviation."""
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for deviation, values, colour in zip(deviations, divergences, COLOURS):
        ax.plot(means, values, color=colour, linewidth=2, label=f"standard deviation {deviation:g}")
    ax.set(xlabel="mean", ylabel="KL divergence, nats", title="The KL divergence from N(0, 1)", ylim=(0, None))
    ax.legend()
    ax.grid(alpha=0.3)
    return figure
