"""Images of the reader's own, made into what the networks have learnt from."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.checks import check_integers
from utils.data import DataError

DIGIT, BOX = 28, 20  # pixels: side of an MNIST image, and of the square that its digit fits into


def opened(path: Path) -> Image.Image:
    """An image file as RGB, upright as its camera noted (EXIF), on white where it is transparent.

    Raises:
        DataError: if the file is missing, is no image, or has more than 8 bits for a value.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: give the path of an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): remove it, or save it as JPEG or PNG") from error
    if upright.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits for a value (mode {upright.mode}): save it with 8")
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def photographs(folder: Path, image_size: int) -> tuple[list[str], Tensor]:
    """All photographs of a folder, as the U-Nets want them: names, and images uint8 (N, 3, S, S) in 0..255.

    Each is scaled to a square, as those of the data set are. Hidden files are left alone.

    Raises:
        DataError: if the folder is missing or empty, or holds a file that is no image.
        ValueError: if `image_size` is no positive integer.
    """
    check_integers(image_size=image_size)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give one that holds photographs")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder} is empty: put photographs there (JPEG, PNG, ...)")
    square = (image_size, image_size)
    images = [np.asarray(opened(path).resize(square, Image.BILINEAR)) for path in paths]
    return [path.name for path in paths], torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def digit(path: Path) -> Tensor:
    """A digit, dark on light or light on dark, in the form of MNIST: uint8 (1, 28, 28), light ink on black.

    As MNIST was made (LeCun et al. 1998, section III.A): the ink is scaled to fit into 20 x 20 pixels, proportions
    kept, and its centre of mass comes to the middle. The ground is taken to be the median of the image's edge.

    Raises:
        DataError: as `opened` does, or if there is no ink.
    """
    grey = np.asarray(opened(path).convert("L"), dtype=np.float32)
    ground = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    contrast = np.abs(grey - ground)
    if contrast.max() < 32:  # of 255
        raise DataError(f"{path} is all of one brightness: no digit is to be seen")
    ink = np.clip(contrast / contrast.max() * 1.25 - 0.25, 0, 1)  # the ground is never quite even
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(side * BOX / max(ink.shape))) for side in ink.shape)
    small = np.asarray(Image.fromarray(np.uint8(255 * ink)).resize((width, height), Image.BOX))
    place = [middle(small.sum(1 - axis)) for axis in (0, 1)]
    whole = np.zeros((DIGIT, DIGIT), dtype=np.uint8)
    whole[place[0] : place[0] + height, place[1] : place[1] + width] = small
    return torch.from_numpy(whole)[None]


def middle(profile: np.ndarray) -> int:
    """Where a row of ink has to begin for its centre of mass to come to the middle of the image, as far as it fits."""
    centre = np.average(np.arange(len(profile)) + 0.5, weights=profile)
    return int(np.clip(round(DIGIT / 2 - centre), 0, DIGIT - len(profile)))
