"""The three data sets as uint8 tensors, the user's own images, scaling and batches.

Oxford-IIIT Pet has a trimap for each photograph: 1 is pet, 2 background and 3 border. Foreground is pet and border;
the border keeps its own value, so that a score can leave it out. MNIST and CIFAR-10 have a label for each image.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from utils import standins
from utils.checks import check_integers
from utils.files import UNFINISHED, cached, folder_lock, of_system
from utils.standins import BACKGROUND, BORDER, PET

CLASSES = 10
DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLIT_SEED = 0  # one hold-out for every run and seed: changing it would let choices peek at other images
STANDIN_PETS, STANDIN_LABELLED = (320, 64, 128), (2_000, 100, 100)  # images for training, validation and test


class DataError(RuntimeError):
    """A data set or an image is missing, incomplete or damaged; the message names the file and the remedy."""


class Split(NamedTuple):
    """Images uint8 (N, C, H, W); targets are labels int64 (N,) in 0..9, or trimaps uint8 (N, 1, H, W) in {1, 2, 3}."""

    images: Tensor
    targets: Tensor
    names: Sequence[str] = ()  # of the files of pets, or of drawn images


class Dataset(NamedTuple):
    """`train` is fitted, `validation`, held out of the official training images, decides, `test` is read at the end."""

    classes: tuple[str, ...]  # none for pets
    train: Split
    validation: Split
    test: Split


def load_pets(dataset: str, data_dir: Path, image_size: int) -> Dataset:
    """Photographs of cats and dogs with trimaps, image_size x image_size pixels (16 or more; aspect ratio not kept).

    `dataset` is "oxford-iiit-pet", a folder of `data_dir` (downloaded if absent), or "stand-in", which is drawn.
    Raises ValueError for another name or size, DataError if the real set is missing, incomplete or damaged.
    """
    check_integers(16, image_size=image_size)
    if dataset != "oxford-iiit-pet":
        return stand_in(dataset, "oxford-iiit-pet", (), partial(standins.pets, size=image_size), STANDIN_PETS)
    from torchvision.datasets import OxfordIIITPet  # here, since it takes a second, and stand-ins do not need it

    root = data_dir / dataset
    with remedied(root, "the folders images/ and annotations/"):
        if not root.exists():
            download(root, data_dir, partial(OxfordIIITPet, target_types="segmentation", download=True))
        return hold_out((), *(read_pets(root, part, image_size) for part in ("trainval", "test")))


def load_digits(dataset: str, data_dir: Path) -> Dataset:
    """Handwritten digits, grey, 28 x 28 pixels: "mnist", in `data_dir/MNIST/raw/`, or "stand-in"; as `load_pets`."""
    if dataset != "mnist":
        return stand_in(dataset, "mnist", DIGITS, standins.digits, STANDIN_LABELLED)
    from torchvision.datasets import MNIST

    root = data_dir / "MNIST" / "raw"
    with remedied(root, "the four unpacked IDX files"):
        if not root.exists():
            download(root, data_dir, partial(MNIST, download=True))
        return hold_out(DIGITS, *(read_idx(root, prefix) for prefix in ("train", "t10k")))


def load_pictures(dataset: str, data_dir: Path) -> Dataset:
    """Small RGB photographs, 32 x 32 pixels: "cifar10", or "stand-in" (coloured letters); as `load_pets`.

    The image folder `data_dir/cifar10/{train,test}/<class>/` is read where there is one, else torchvision's download.
    Both give the same splits in the same order if the folder's files are numbered, with leading zeros, in the order of
    the download.
    """
    if dataset != "cifar10":
        return stand_in(dataset, "cifar10", standins.LETTERS, standins.letters, STANDIN_LABELLED)
    from torchvision.datasets import CIFAR10

    root = data_dir / dataset
    with remedied(root, "the pictures, as {train,test}/<class>/,"):
        if root.exists():
            train, test = (read_image_folder(root, part) for part in ("train", "test"))
        else:
            with folder_lock(data_dir / "cache"):  # of two processes, one downloads
                parts = [CIFAR10(data_dir, train, download=True) for train in (True, False)]
            splits = (Split(channels_first(part.data), torch.tensor(part.targets)) for part in parts)
            train, test = (take(split, split.targets.argsort(stable=True)) for split in splits)  # as in the folder
        order = torch.randperm(len(test.targets), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return hold_out(CIFAR10_CLASSES, train, take(test, order))  # it was class by class


def stand_in(name: str, real: str, classes: tuple[str, ...], draw: Callable, counts: tuple[int, ...]) -> Dataset:
    """The drawn stand-in for a real data set; each split has a seed of its own."""
    if name != "stand-in":
        raise ValueError(f"dataset={name!r}: choose from {(real, 'stand-in')}")
    splits = []
    for seed, (part, count) in enumerate(zip(("train", "validation", "test"), counts)):
        images, targets = draw(count, seed=seed)
        targets = torch.from_numpy(targets).long() if classes else channels_first(targets)
        splits.append(Split(channels_first(images), targets, [f"stand-in {part} {i}" for i in range(count)]))
    return Dataset(classes, *splits)


def hold_out(classes: tuple[str, ...], training: Split, test: Split) -> Dataset:
    """The official splits, with the same tenth of the training images, at most 5,000, set aside in every run."""
    count = len(training.images)
    held_out = min(5_000, count // 10)
    if not held_out:
        raise DataError(f"there are {count} training images, at least 10 are needed")
    if classes:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
        train, validation = order[held_out:], order[:held_out]
    else:  # the published splits of the pets were drawn by NumPy, and keep the order of the official list
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(count))
        train, validation = order[held_out:].sort().values, order[:held_out].sort().values
    return Dataset(classes, take(training, train), take(training, validation), test)


def take(split: Split, indices: Tensor) -> Split:
    """The chosen rows of a split."""
    return Split(split.images[indices], split.targets[indices], split.names and [split.names[i] for i in indices])


def channels_first(array: np.ndarray) -> Tensor:
    """Images (N, H, W, C), or (N, H, W) with one channel, as a tensor (N, C, H, W)."""
    return torch.from_numpy(array.reshape(*array.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()


def download(root: Path, data_dir: Path, fetch: Callable[[str], Any]) -> None:
    """Let `fetch` fill a folder, and move the data set from there to `root`, so that it is whole or absent."""
    with folder_lock(data_dir / "cache"), TemporaryDirectory(prefix=UNFINISHED, dir=data_dir / "cache") as fresh:
        if not root.exists():  # another process may have been faster
            fetch(fresh)
            root.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(fresh) / root.relative_to(data_dir), root)


@contextmanager
def remedied(root: Path, what: str) -> Iterator[None]:
    """Add to an error about a data set what to do about it; `what` has to lie in its folder `root`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not root.exists():
            advice = f"Put {what} there, set DATA_DIR to where it is, or run on stand-in data: dataset='stand-in'"
            raise DataError(f"{root} does not exist and the download failed ({error}). {advice}") from error
        if not isinstance(error, (FileNotFoundError, DataError)):
            raise
        finding = f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else error
        remedy = f"the data set is incomplete; delete {root} and run again to download or unpack it anew"
        raise DataError(f"{finding}: {remedy}") from error


def read_pets(root: Path, part: str, image_size: int) -> Split:
    """One official list of Oxford-IIIT Pet, "trainval" or "test"."""
    path, folders = root / "annotations" / f"{part}.txt", (root / "images", root / "annotations" / "trimaps")
    names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} is empty")
    pairs = [(folders[0] / f"{name}.jpg", folders[1] / f"{name}.png") for name in names]
    pixels = decoded(root, part, pairs, image_size)
    return Split(pixels[:, :3].contiguous(), pixels[:, 3:].contiguous(), names)


def read_image_folder(root: Path, part: str) -> Split:
    """One half of an image folder in the layout of CIFAR-10, class by class."""
    paths = [files_in(root / part / name) for name in CIFAR10_CLASSES]
    counts = [len(some) for some in paths]
    if len(set(counts)) > 1 or not counts[0]:
        found = ", ".join(f"{count} {name}" for name, count in zip(CIFAR10_CLASSES, counts))
        raise DataError(f"{root / part} holds {found}; all classes must have the same number")
    images = decoded(root, part, [(path,) for some in paths for path in some], 32)
    return Split(images, torch.arange(CLASSES).repeat_interleave(counts[0]))


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, by name, except hidden ones."""
    hidden = ("desktop.ini", "Thumbs.db")  # by Windows, without a dot
    return sorted(path for path in folder.glob("[!.]*") if path.is_file() and path.name not in hidden)


def decoded(root: Path, part: str, items: list[tuple[Path, ...]], side: int) -> Tensor:
    """Each item by `decode`, stacked: from the cache if it was made of files of the same sizes, else decoded anew."""
    files = [path for item in items for path in item]
    sizes = [path.stat().st_size for path in files]

    def decode_all() -> dict[str, Tensor]:
        with ThreadPoolExecutor() as pool:
            decoding = pool.map(partial(decode, side), items)
            return {"pixels": torch.stack([*tqdm(decoding, f"decode {part}", len(items), leave=False)])}

    return cached(root.parent / "cache" / f"{root.name}-{part}-{side}.pt", sizes, decode_all)["pixels"]


def decode(side: int, paths: tuple[Path, ...]) -> Tensor:
    """A photograph and its trimap, resized, or a picture of the right size: uint8 (4 or 3, side, side)."""
    image, *trimaps = map(open_image, paths)
    if not trimaps and image.size != (side, side):
        raise DataError(f"{paths[0]} is {image.size[0]} x {image.size[1]} pixels, not {side} x {side}")
    layers = [image.convert("RGB").resize((side, side), Image.BILINEAR)]
    for trimap in trimaps:
        if trimap.mode not in ("L", "P"):
            raise DataError(f"{paths[1]} has the mode {trimap.mode}, a trimap has one byte for each pixel (L or P)")
        if trimap.size != image.size:
            raise DataError(f"{paths[1]} is {trimap.size}, its image {image.size}")
        if not {*(values := np.unique(trimap).tolist())} <= {PET, BACKGROUND, BORDER}:  # resizing may skip pixels
            raise DataError(f"{paths[1]} holds the values {values}, a trimap only 1, 2, 3")
        layers.append(trimap.resize((side, side), Image.NEAREST))
    return torch.from_numpy(np.dstack(layers)).permute(2, 0, 1)


def open_image(path: Path, remedy: str = "") -> Image.Image:
    """A fully decoded image, upright as its camera noted (EXIF)."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # Pillow raises a dozen types, depending on what is wrong, in the EXIF data too
        if of_system(error):
            raise
        raise DataError(f"{path} cannot be read as an image ({error}){remedy}") from error


def read_idx(root: Path, prefix: str) -> Split:
    """The two IDX files of one official split of MNIST, checked against each other."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    paths, parts = [root / f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")], []
    for path, read in zip(paths, (read_image_file, read_label_file)):
        try:
            parts.append(read(str(path)))
        except (RuntimeError, ValueError, TypeError, AssertionError, LookupError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__})") from error
    images, labels = parts
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise DataError(f"{paths[0]} and {paths[1].name} hold {shapes}, not (N, 28, 28) and (N,)")
    if labels.max() >= CLASSES:
        raise DataError(f"{paths[1]} holds other labels than 0 to {CLASSES - 1}")
    return Split(images[:, None], labels)


def open_rgb(path: Path) -> Image.Image:
    """A file as RGB, upright, on white where transparent. DataError if it is no image, or of more than 8 bits."""
    image = open_image(path, ": remove it, or save it as JPEG or PNG")
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits for a value (mode {image.mode}): save it with 8")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def foreground(trimaps: Tensor) -> Tensor:
    """True where pet or border."""
    return trimaps != BACKGROUND


def normalise(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) -> float32 in -2..2, in channels-last memory: the input of the U-Nets."""
    return ((images.float() - 127.5) / 63.75).contiguous(memory_format=torch.channels_last)


def to_unit(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) -> float32 in 0..1, in channels-last memory: the input of all other networks."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


class Batches:
    """Shuffled batches. They depend on seed and epoch alone, so that training resumes exactly.

    Each image comes once an epoch, augmented with its trimap; a last incomplete batch is dropped. `sizes` are the sides
    in pixels, epoch by epoch. ValueError for too small a split, or a batch size or side that is no positive integer.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, augment: A.Compose | None = None, sizes: Sequence[int] = ()
    ):
        check_integers(batch_size=batch_size)
        if batch_size > len(split.images):
            raise ValueError(f"batches of {batch_size} images: there are only {len(split.images)}")
        check_integers(**{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        self.split, self.batch_size, self.seed, self.augment, self.sizes = split, batch_size, seed, augment, sizes

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.split.images) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch, from 0 on: images uint8 (B, C, s, s), and labels int64 (B,) or foreground bool (B, 1, s, s)."""
        seed = self.seed * 100_003 + number
        order = torch.randperm(len(self.split.images), generator=torch.Generator().manual_seed(seed))
        whole, steps = self.split.images.shape[-1], []
        size = self.sizes[number] if self.sizes else whole
        if size != whole:
            steps.append(A.Resize(size, size, cv2.INTER_AREA, mask_interpolation=cv2.INTER_NEAREST))
        if self.augment:
            self.augment.set_random_seed(seed)
            steps.append(self.augment)
        chosen = order.split(self.batch_size)[: len(self)]
        batches = (transformed(self.split.images[rows], self.split.targets[rows], steps) for rows in chosen)
        while ready := list(islice(batches, 8)):  # one by one, between training steps, takes longer
            yield from ready


def transformed(images: Tensor, targets: Tensor, steps: list[Callable]) -> tuple[Tensor, Tensor]:
    """Images uint8 (B, C, H, W), changed one by one, and labels (B,) or, of trimaps, the foreground (B, 1, H, W)."""
    has_trimaps = targets.ndim == 4
    if steps:
        masks = [{"mask": trimap} for trimap in targets[:, 0].numpy()] if has_trimaps else [{}] * len(images)
        samples = [{"image": image} | mask for image, mask in zip(images.permute(0, 2, 3, 1).numpy(), masks)]
        for step in steps:
            samples = [step(**sample) for sample in samples]
        images = torch.from_numpy(np.stack([sample["image"] for sample in samples])).permute(0, 3, 1, 2)
        if has_trimaps:
            targets = torch.from_numpy(np.stack([sample["mask"] for sample in samples]))[:, None]
    return images, foreground(targets) if has_trimaps else targets


def draw_wrong_labels(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each label int64 (N,) one of the nine others, all equally likely: int64 (N,), never the label itself."""
    shift = torch.randint(1, CLASSES, labels.shape, generator=generator, device=labels.device)
    return (labels + shift) % CLASSES
