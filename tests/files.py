"""Files in the forms in which the real data sets come, for tests and benchmarks."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, array: np.ndarray) -> None:
    """An image file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def idx(array: np.ndarray) -> bytes:
    """An IDX file (LeCun): magic number, sizes, values."""
    sizes = [0x0800 + array.ndim, *array.shape]
    return np.array(sizes, ">i4").tobytes() + array.astype(np.uint8).tobytes()
