"""Images with a class label: MNIST, CIFAR-10 or a drawn stand-in, as uint8 tensors; splits, checks and batches."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from tqdm import tqdm

from utils import standins
from utils.checks import check_bytes, check_integers, check_labels
from utils.data import SPLIT_SEED, DataError, file_size, open_image, remedy
from utils.storage import cached

CLASSES = 10
DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HELD_OUT = 5_000  # of the official training images, for every choice that is made
STANDIN_SIZES = {"train": 3_000, "validation": 200, "test": 400}


class LabelledSplit(NamedTuple):
    """Images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) in 0..9."""

    images: Tensor
    labels: Tensor


class LabelledImages(NamedTuple):
    """`train` is fitted, `validation` (held out of the official training set) decides, `test` is read at the end."""

    source: str
    names: tuple[str, ...]  # of the classes
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
    if check_source(source, "mnist") == "stand-in":
        return LabelledImages(source, DIGITS, *(drawn(standins.digits, name) for name in STANDIN_SIZES))
    root = Path(data_dir) / "MNIST" / "raw"
    if not root.exists():
        what = "Put MNIST's four unpacked IDX files there, set DATA_DIR to where MNIST/raw is"
        download(lambda: MNIST(data_dir, download=True), root, what)
    return hold_out(source, DIGITS, read_idx(root, "train"), read_idx(root, "t10k"))


def load_pictures(source: str, data_dir: Path) -> LabelledImages:
    """All colour pictures, 32 x 32 pixels.

    Args:
        source: "cifar10" or "stand-in" (coloured shapes drawn by `standins`, no file needed). CIFAR-10 is read from the
            image folder `cifar10/{train,test}/<class>/` where there is one, else as torchvision downloads it.
        data_dir: folder that holds, or will hold, the data; the decoded copy of an image folder goes to its `cache/`.

    Raises:
        ValueError: for an unknown source.
        DataError: if the real set is missing, incomplete or broken.
    """
    if check_source(source, "cifar10") == "stand-in":
        return LabelledImages(source, standins.SHAPES, *(drawn(standins.shapes, name) for name in STANDIN_SIZES))
    root = Path(data_dir) / "cifar10"
    if root.exists():
        test = decoded(root, "test")  # class by class: shuffled, so that any part of it holds all classes
        order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return hold_out(source, CIFAR10_CLASSES, decoded(root, "train"), take(test, order))
    what = "Put the pictures into cifar10/{train,test}/<class>/, set DATA_DIR to where that is"
    official = download(lambda: [CIFAR10(data_dir, train, download=True) for train in (True, False)], root, what)
    return hold_out(source, CIFAR10_CLASSES, *(unpickled(part) for part in official))


def check_source(source: str, real: str) -> str:
    """The source, if it is the real set or "stand-in"."""
    if source not in (real, "stand-in"):
        raise ValueError(f"source={source!r}: choose from {(real, 'stand-in')}")
    return source


def drawn(draw: Callable, split: str) -> LabelledSplit:
    """One split of a stand-in set; each split is drawn from a seed of its own."""
    images, labels = draw(STANDIN_SIZES[split], seed=list(STANDIN_SIZES).index(split))
    images = images.reshape(*images.shape[:3], -1)  # (N, H, W, C), also where there is no axis for one grey channel
    return LabelledSplit(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


def hold_out(source: str, names: tuple[str, ...], training: LabelledSplit, test: LabelledSplit) -> LabelledImages:
    """The official splits, with the same part of the training images set aside in every run."""
    order = torch.randperm(len(training.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = min(HELD_OUT, len(order) // 10)
    return LabelledImages(source, names, take(training, order[held_out:]), take(training, order[:held_out]), test)


def take(split: LabelledSplit, indices: Tensor) -> LabelledSplit:
    """The chosen rows of a split."""
    return LabelledSplit(split.images[indices], split.labels[indices])


def download(fetch: Callable, root: Path, what: str):
    """Let torchvision fetch and unpack a data set, or say what to do without."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:
        instead = "or run on the embedded stand-in: source='stand-in'"
        raise DataError(f"{root} does not exist and the download failed ({error}). {what}, {instead}") from error


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


def decoded(root: Path, split: str) -> LabelledSplit:
    """One half of an image folder as tensors: from the cache if it fits the files, else decoded, checked and cached."""
    classes = [sorted((root / split / name).glob("*.*")) for name in CIFAR10_CLASSES]
    counts = [len(paths) for paths in classes]
    if len(set(counts)) > 1 or not counts[0]:
        found = ", ".join(f"{count} {name}" for name, count in zip(CIFAR10_CLASSES, counts))
        raise DataError(f"{root / split} holds {found}; each class must have as many: {remedy(root)}")
    paths = [path for some in classes for path in some]
    cache = root.parent / "cache" / f"cifar10-{split}.pt"
    tensors = cached(cache, [file_size(path) for path in paths], lambda: {"images": decode_all(paths, split)})
    return LabelledSplit(tensors["images"], torch.arange(CLASSES).repeat_interleave(counts[0]))


def decode_all(paths: list[Path], split: str) -> Tensor:
    """The pictures as uint8 (N, 3, 32, 32), each checked."""
    images = torch.empty(len(paths), 3, 32, 32, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for i, image in enumerate(tqdm(pool.map(open_image, paths), f"decode {split}", len(paths), leave=False)):
            if image.size != (32, 32):
                raise DataError(f"{paths[i]} is {image.size[0]} x {image.size[1]} pixels, not 32 x 32: replace it")
            images[i] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return images


def unpickled(official: CIFAR10) -> LabelledSplit:
    """torchvision's copy, which it has checked against the official md5 sums, as tensors."""
    images = torch.from_numpy(official.data).permute(0, 3, 1, 2).contiguous()
    return LabelledSplit(images, torch.tensor(official.targets))


def to_unit(images: Tensor) -> Tensor:
    """What the conditional VAEs eat: uint8 (N, C, H, W) in 0..255 -> float32 in 0..1, in channels-last memory.

    Raises:
        ValueError: for images of another type or number of dimensions.
    """
    check_bytes(images=images)
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def digit_augmentation() -> A.Compose:
    """Random affine map, for classifiers: what is written stays the same digit."""
    return A.Compose([A.Affine(scale=(0.85, 1.15), translate_percent=(-0.08, 0.08), rotate=(-12, 12), shear=(-12, 12))])


def picture_augmentation() -> A.Compose:
    """Random mirror image and shift, for classifiers: what is shown stays the same thing."""
    return A.Compose([A.HorizontalFlip(), A.Affine(translate_px=(-2, 2), border_mode=cv2.BORDER_REFLECT_101, p=1)])


class LabelledBatches:
    """Shuffled batches. They depend on seed and epoch alone, so that training resumes exactly.

    Args:
        split: what to draw from; each image comes once an epoch, a last incomplete batch is dropped.
        batch_size: images in a batch, at most the size of the split.
        seed: of order and augmentation.
        augment: for each image; none if left out.

    Raises:
        ValueError: if the split is smaller than one batch, has not as many labels as images, or the seed is no integer.
    """

    def __init__(self, split: LabelledSplit, batch_size: int, seed: int, augment: A.Compose | None = None):
        if not 1 <= batch_size <= len(split.labels):
            raise ValueError(f"batch_size={batch_size}: must be from 1 to {len(split.labels)}, the images there are")
        check_labels(split.labels, len(split.images), CLASSES)
        check_integers(0, seed=seed)
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
