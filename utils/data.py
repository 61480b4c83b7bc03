"""Oxford-IIIT Pet, or its embedded stand-in, decoded once into uint8 tensors; splits, checks and augmentation.

A trimap holds 1 (pet), 2 (background) and 3 (border). Foreground is pet + border; the border keeps its own value, so
that a score can leave it out.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for its newest version otherwise

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import OxfordIIITPet
from tqdm import tqdm

from utils import standins
from utils.checks import check_bytes, check_integers
from utils.storage import cached

PET, BACKGROUND, BORDER = 1, 2, 3
SPLIT_SEED = 0  # one hold-out for every run and seed: changing it would let choices peek at other images
SOURCES = ("oxford-iiit-pet", "stand-in")
FOLDERS = ("oxford-iiit-pet", "cifar10")
AHEAD = 8  # batches made at once: between two steps of training, the processor has forgotten how to make one
STANDIN_SIZES = {"train": 320, "validation": 64, "test": 128}


class DataError(RuntimeError):
    """The data set is missing, incomplete or broken; the message names the file and the remedy."""


class Split(NamedTuple):
    """Images uint8 (N, 3, S, S) in 0..255 and trimaps uint8 (N, 1, S, S) in {1, 2, 3}, with one name each."""

    images: Tensor
    trimaps: Tensor
    names: list[str]


class Pets(NamedTuple):
    """`train` is fitted, `validation` (10 % of the official trainval list) decides, `test` is read once, at the end."""

    source: str
    train: Split
    validation: Split
    test: Split


def load_pets(source: str, data_dir: Path, image_size: int) -> Pets:
    """The whole data set at image_size x image_size pixels (aspect ratio not kept).

    Args:
        source: "oxford-iiit-pet" (downloaded if absent) or "stand-in" (drawn by `standins`, no file needed).
        data_dir: folder that holds, or will hold, `oxford-iiit-pet/`; the decoded copy goes to `data_dir/cache/`.
        image_size: side in pixels, 16 or more.

    Raises:
        ValueError: for an unknown source or too small a size.
        DataError: if the real set is missing, incomplete or broken.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r}: choose from {SOURCES}")
    if not isinstance(image_size, int) or image_size < 16:
        raise ValueError(f"image_size={image_size!r}: must be an integer of 16 or more")
    if source == "stand-in":
        return Pets(source, *(draw_standins(name, image_size) for name in STANDIN_SIZES))
    root = Path(data_dir) / "oxford-iiit-pet"
    download_if_absent(root)
    trainval, test = (decoded(root, split, image_size) for split in ("trainval", "test"))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(trainval.names))
    held_out = len(order) // 10
    return Pets(source, take(trainval, np.sort(order[held_out:])), take(trainval, np.sort(order[:held_out])), test)


def draw_standins(split: str, image_size: int) -> Split:
    """One split of the stand-in set; each split is drawn from a seed of its own."""
    count = STANDIN_SIZES[split]
    images, trimaps = standins.pets(count, image_size, seed=list(STANDIN_SIZES).index(split))
    names = [f"stand-in {split} {i}" for i in range(count)]
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(trimaps)[:, None], names)


def take(split: Split, indices: np.ndarray) -> Split:
    """The chosen rows of a split."""
    chosen = torch.from_numpy(indices)
    return Split(split.images[chosen], split.trimaps[chosen], [split.names[i] for i in indices])


# --- From files to tensors --------------------------------------------------------------------------------------------


def download_if_absent(root: Path) -> None:
    """Let torchvision fetch and unpack the two archives (about 800 MB) where the folder does not exist."""
    if root.exists():
        return
    try:
        OxfordIIITPet(root.parent, target_types="segmentation", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{root} does not exist and the download failed ({error}). Put Oxford-IIIT Pet there (folders images/ and "
            f"annotations/), set DATA_DIR to where it is, or run on the embedded stand-in: source='stand-in'"
        ) from error


def decoded(root: Path, split: str, image_size: int) -> Split:
    """One official list as tensors: from the cache if it fits the files, else decoded, checked and cached."""
    names = listed_names(root, split)
    pairs = [(root / "images" / f"{name}.jpg", root / "annotations" / "trimaps" / f"{name}.png") for name in names]
    fingerprint = [file_size(path) for pair in pairs for path in pair]
    cache = root.parent / "cache" / f"oxford-iiit-pet-{split}-{image_size}.pt"
    tensors = cached(cache, fingerprint, lambda: decode_pairs(pairs, split, image_size))
    return Split(tensors["images"], tensors["trimaps"], names)


def decode_pairs(pairs: list[tuple[Path, Path]], split: str, image_size: int) -> dict[str, Tensor]:
    """All images and trimaps of a list, as `Split` has them."""
    images = torch.empty(len(pairs), 3, image_size, image_size, dtype=torch.uint8)
    trimaps = torch.empty(len(pairs), 1, image_size, image_size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        decoding = pool.map(lambda pair: decode_pair(*pair, image_size), pairs)
        for i, (image, trimap) in enumerate(tqdm(decoding, f"decode {split}", len(pairs), leave=False)):
            images[i], trimaps[i, 0] = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(trimap)
    return {"images": images, "trimaps": trimaps}


def listed_names(root: Path, split: str) -> list[str]:
    """The names on an official list, such as 'Abyssinian_201'."""
    path = root / "annotations" / f"{split}.txt"
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {remedy(root)}") from None
    if not names:
        raise DataError(f"{path} is empty: {remedy(root)}")
    return names


def remedy(root: Path) -> str:
    """What to do about an incomplete data set."""
    return f"the data set is incomplete; delete {root} and run again to download or unpack it anew"


def file_size(path: Path) -> int:
    """Size in bytes; a listed file that is absent or empty is an error."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is on the official list but missing: {remedy(path_root(path))}") from None
    if not size:
        raise DataError(f"{path} is empty: {remedy(path_root(path))}")
    return size


def path_root(path: Path) -> Path:
    """The folder of the data set that a file lies in."""
    return next(parent for parent in path.parents if parent.name in FOLDERS)


def decode_pair(image_path: Path, trimap_path: Path, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (S, S, 3) and trimap uint8 (S, S), both resized; every trimap value is checked before resizing."""
    square = (image_size, image_size)
    image, trimap = open_image(image_path).convert("RGB"), open_image(trimap_path)
    if image.size != trimap.size:
        raise DataError(f"{trimap_path} is {trimap.size}, its image {image.size}: {remedy(path_root(trimap_path))}")
    values = set(np.unique(np.asarray(trimap)).tolist())
    if not values <= {PET, BACKGROUND, BORDER}:
        found = f"{trimap_path} holds the values {sorted(values)}, a trimap only 1, 2, 3"
        raise DataError(f"{found}: {remedy(path_root(trimap_path))}")
    return np.array(image.resize(square, Image.BILINEAR)), np.array(trimap.resize(square, Image.NEAREST))


def open_image(path: Path) -> Image.Image:
    """A fully decoded image, or an error that names the file."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} does not decode ({error}): {remedy(path_root(path))}") from error


# --- From tensors to batches ------------------------------------------------------------------------------------------


def to_input(images: Tensor) -> Tensor:
    """What the U-Nets eat: uint8 (N, 3, H, W) in 0..255 -> float32 in -2..2, in channels-last memory.

    Raises:
        ValueError: for images of another type or number of dimensions.
    """
    check_bytes(images=images)
    return ((images.float() - 127.5) / 63.75).contiguous(memory_format=torch.channels_last)


def foreground(trimaps: Tensor) -> Tensor:
    """True where pet or border."""
    return trimaps != BACKGROUND


def augmentation() -> A.Compose:
    """Random flip, affine map and colour, the same geometry for image and trimap.

    Outside the frame both are mirrored: a constant fill would paint black corners, and a trimap value that is none.
    """
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                scale=(0.85, 1.2),
                translate_percent=(-0.06, 0.06),
                rotate=(-12, 12),
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.7,
            ),
            A.ColorJitter((0.8, 1.2), (0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.03, 0.03), p=0.5),
        ]
    )


class PetBatches:
    """Shuffled, augmented batches. They depend on seed and epoch alone, so that training resumes exactly.

    Args:
        split: what to draw from; each image comes once an epoch, a last incomplete batch is dropped.
        batch_size: images in a batch, at most the size of the split.
        sizes: the side in pixels for each epoch; smaller than the images means progressive resizing.
        seed: of order and augmentation.

    Raises:
        ValueError: if the split is smaller than one batch, or a size or the seed is no integer.
    """

    def __init__(self, split: Split, batch_size: int, sizes: list[int], seed: int):
        if not 1 <= batch_size <= len(split.images):
            raise ValueError(f"batch_size={batch_size}: must be from 1 to {len(split.images)}, the images there are")
        check_integers(**{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        check_integers(0, seed=seed)
        self.images = split.images.permute(0, 2, 3, 1).numpy()  # (N, H, W, 3), as albumentations wants them
        self.trimaps = split.trimaps[:, 0].numpy()
        self.batch_size, self.sizes, self.seed = batch_size, sizes, seed
        self.augment = augmentation()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 (B, 3, s, s) and targets bool (B, 1, s, s) of one epoch (counted from 0), s = sizes[number]."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.images))
        order = order[: len(self) * self.batch_size].reshape(-1, self.batch_size)
        self.augment.set_random_seed(self.seed * 100_003 + number)
        batches = (self.batch(indices, self.sizes[number]) for indices in order)
        while ready := list(islice(batches, AHEAD)):
            yield from ready

    def batch(self, indices: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, s, s) and targets bool (B, 1, s, s)."""
        pairs = [self.pair(index, size) for index in indices]
        images, trimaps = (torch.from_numpy(np.stack(parts)) for parts in zip(*pairs))
        return images.permute(0, 3, 1, 2), foreground(trimaps[:, None])

    def pair(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """One image and its trimap, shrunk if asked, then augmented."""
        image, trimap = self.images[index], self.trimaps[index]
        if size != len(image):
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            trimap = cv2.resize(trimap, (size, size), interpolation=cv2.INTER_NEAREST)
        augmented = self.augment(image=image, mask=trimap)
        return augmented["image"], augmented["mask"]
