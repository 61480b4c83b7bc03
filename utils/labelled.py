"""Images with a class label: MNIST or its drawn stand-in, as uint8 tensors; splits, checks and batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from utils import standins
from utils.data import SPLIT_SEED, DataError

CLASSES = 10
SOURCES = ("mnist", "stand-in")
HELD_OUT = 5_000  # of MNIST's training images, for every choice that is made
STANDIN_SIZES = {"train": 3_000, "validation": 200, "test": 400}


class LabelledSplit(NamedTuple):
    """Images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) in 0..9."""

    images: Tensor
    labels: Tensor


class LabelledImages(NamedTuple):
    """`train` is fitted, `validation` (held out of the official training set) decides, `test` is read at the end."""

    source: str
    train: LabelledSplit
    validation: LabelledSplit
    test: LabelledSplit


def load_digits(source: str, data_dir: Path) -> LabelledImages:
    """All digits, 28 x 28 pixels.

    Args:
        source: "mnist" (downloaded if absent) or "stand-in" (drawn by `standins`, no file needed).
        data_dir: folder that holds, or will hold, `MNIST/raw/`.

    Raises:
        ValueError: for an unknown source.
        DataError: if the real set is missing, incomplete or broken.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r}: choose from {SOURCES}")
    if source == "stand-in":
        return LabelledImages(source, *(draw_digits(name) for name in STANDIN_SIZES))
    root = Path(data_dir) / "MNIST" / "raw"
    download_if_absent(root)
    training, test = read_idx(root, "train"), read_idx(root, "t10k")
    order = torch.randperm(len(training.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = min(HELD_OUT, len(order) // 10)
    return LabelledImages(source, take(training, order[held_out:]), take(training, order[:held_out]), test)


def draw_digits(split: str) -> LabelledSplit:
    """One split of the stand-in set; each split is drawn from a seed of its own."""
    images, labels = standins.digits(STANDIN_SIZES[split], seed=list(STANDIN_SIZES).index(split))
    return LabelledSplit(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


def take(split: LabelledSplit, indices: Tensor) -> LabelledSplit:
    """The chosen rows of a split."""
    return LabelledSplit(split.images[indices], split.labels[indices])


def download_if_absent(root: Path) -> None:
    """Let torchvision fetch and unpack the four files (about 12 MB) where the folder does not exist."""
    if root.exists():
        return
    try:
        MNIST(root.parent.parent, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{root} does not exist and the download failed ({error}). Put MNIST's four unpacked IDX files there, set "
            f"DATA_DIR to where MNIST/raw is, or run on the embedded stand-in: source='stand-in'"
        ) from error


def read_idx(root: Path, prefix: str) -> LabelledSplit:
    """The two files of one official split, checked against each other."""
    paths = root / f"{prefix}-images-idx3-ubyte", root / f"{prefix}-labels-idx1-ubyte"
    images, labels = (parse(path, read) for path, read in zip(paths, (read_image_file, read_label_file)))
    remedy = f"delete {root} and run again"
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise DataError(f"{paths[0]} and {paths[1].name} hold {shapes}, not (N, 28, 28) and (N,): {remedy}")
    if not len(labels) or labels.max() >= CLASSES:
        raise DataError(f"{paths[1]} holds {len(labels)} labels, or others than 0 to {CLASSES - 1}: {remedy}")
    return LabelledSplit(images[:, None], labels)


def parse(path: Path, read) -> Tensor:
    """One IDX file as a tensor, or an error that names it."""
    try:
        return read(str(path))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: delete {path.parent} and run again") from error
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError, IndexError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}): delete {path.parent} and run again") from error


def to_unit(images: Tensor) -> Tensor:
    """What the conditional VAEs eat: uint8 (N, C, H, W) in 0..255 -> float32 in 0..1, in channels-last memory."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def digit_augmentation() -> A.Compose:
    """Random affine map, for classifiers: what is written stays the same digit."""
    return A.Compose([A.Affine(scale=(0.85, 1.15), translate_percent=(-0.08, 0.08), rotate=(-12, 12), shear=(-12, 12))])


class LabelledBatches:
    """Shuffled batches. They depend on seed and epoch alone, so that training resumes exactly.

    Args:
        split: what to draw from; each image comes once an epoch, a last incomplete batch is dropped.
        batch_size: images in a batch, at most the size of the split.
        seed: of order and augmentation.
        augment: for each image; none if left out.

    Raises:
        ValueError: if the split is smaller than one batch.
    """

    def __init__(self, split: LabelledSplit, batch_size: int, seed: int, augment: A.Compose | None = None):
        if not 1 <= batch_size <= len(split.labels):
            raise ValueError(f"batch_size={batch_size}: must be from 1 to {len(split.labels)}, the images there are")
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.split.labels) // self.batch_size

    def epoch(self, number: int) -> Iterator[LabelledSplit]:
        """Images uint8 (B, C, H, W) and labels int64 (B,) of one epoch, counted from 0."""
        seed = self.seed * 100_003 + number
        order = torch.randperm(len(self.split.labels), generator=torch.Generator().manual_seed(seed))
        if self.augment is not None:
            self.augment.set_random_seed(seed)
        for chosen in order.split(self.batch_size)[: len(self)]:
            batch = take(self.split, chosen)
            yield batch if self.augment is None else LabelledSplit(augmented(self.augment, batch.images), batch.labels)


def augmented(augment: A.Compose, images: Tensor) -> Tensor:
    """Each image uint8 (N, C, H, W) after a random draw of its own."""
    arrays = images.permute(0, 2, 3, 1).numpy()  # (N, H, W, C), as albumentations wants them
    return torch.from_numpy(np.stack([augment(image=array)["image"] for array in arrays])).permute(0, 3, 1, 2)
