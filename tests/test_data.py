"""The data sets: right tensors, fixed splits, each kind of damage told by name; the user's images; batches."""

import io
import random
import shutil
import struct
from contextlib import contextmanager
from errno import EACCES
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, features
from torchvision import datasets
from torchvision.datasets import OxfordIIITPet

from tests.files import DATA, definitions, idx, write_image
from utils import data
from utils.data import CIFAR10_CLASSES, Batches, DataError, Split, load_digits, load_pets, load_pictures
from utils.files import UNFINISHED
from utils.results import NOTEBOOKS

UNET, MNIST, CIFAR10 = (definitions(notebook) for notebook in NOTEBOOKS.values())

SIZE = 16
LOADERS = {"oxford-iiit-pet": lambda name, folder: load_pets(name, folder, SIZE), "mnist": load_digits}
LOADERS["cifar10"] = load_pictures
ROOTS = {"oxford-iiit-pet": "oxford-iiit-pet", "mnist": "MNIST/raw", "cifar10": "cifar10"}
COUNTS = {"oxford-iiit-pet": (18, 2, 6), "mnist": (36, 4, 10), "cifar10": (36, 4, 20)}
SHAPES = {"oxford-iiit-pet": (3, SIZE, SIZE), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
every_set = pytest.mark.parametrize("name", LOADERS)
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
TRIMAP = np.random.default_rng(0).integers(1, 4, (24, 20), np.uint8)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """The three sets in miniature, each in the real one's layout."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pets = folder / "oxford-iiit-pet"
    for part, count in {"trainval": 20, "test": 6}.items():
        names = [f"Breed_{part}_{i}" for i in range(count)]
        for name in names:
            write_image(pets / "images" / f"{name}.jpg", rng.integers(0, 256, (24, 20, 3), np.uint8))
            write_image(pets / "annotations" / "trimaps" / f"{name}.png", rng.integers(1, 4, (24, 20), np.uint8))
        (pets / "annotations" / f"{part}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for part, count in {"train": 40, "t10k": 10}.items():
        images = rng.integers(0, 256, (count, 28, 28))
        images[:, 0, 0] = np.arange(count) % 10  # tells the label
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            (folder / "MNIST" / "raw" / f"{part}-{kind}-ubyte").write_bytes(idx(array))
    for part, count in {"train": 4, "test": 2}.items():
        for label, name in enumerate(CIFAR10_CLASSES):
            for i in range(count):
                picture = np.full((32, 32, 3), [label, 10 * i, 20 * (part == "test")], np.uint8)
                write_image(folder / "cifar10" / part / name / f"{i:04}.png", picture)
    return folder


@pytest.fixture
def folder(originals, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(originals, tmp_path / "data")


# --- Loading ----------------------------------------------------------------------------------------------------------


@every_set
def test_shapes_types_and_splits(folder, name):
    dataset, again = (LOADERS[name](name, folder) for _ in range(2))
    for split, same, count in zip(dataset[1:], again[1:], COUNTS[name]):
        assert split.images.shape == (count, *SHAPES[name])
        assert split.images.dtype == torch.uint8
        assert split.images.is_contiguous()
        assert torch.equal(split.images, same.images)
        if name == "oxford-iiit-pet":
            assert split.targets.shape == (count, 1, SIZE, SIZE)
            assert split.targets.dtype == torch.uint8
            assert set(split.targets.unique().tolist()) <= {1, 2, 3}
            assert len(split.names) == count
        else:
            assert torch.equal(split.images[:, 0, 0, 0].long(), split.targets)
            assert len(dataset.classes) == 10
    seen = {image.numpy().tobytes() for split in dataset[1:] for image in split.images}
    assert len(seen) == sum(COUNTS[name]), "splits touch"


PUBLISHED = {  # checksums of training, validation and test
    "oxford-iiit-pet": "3d7e1552 dd29ef45 e9027b59",
    "mnist": "98456aa5 a71156a3 5b87863f",
    "cifar10": "9ba82eea c119ad2b 56456577",
}


def mark(side, paths):
    """In place of the pixels of a file, a number that tells its name: uint8 (4 or 3, 1, 1)."""
    return torch.full((2 + len(paths), 1, 1), crc32(paths[0].name.encode()) % 256, dtype=torch.uint8)


@every_set
def test_the_published_splits_stay_the_same(tmp_path, name, monkeypatch):
    if not (DATA / ROOTS[name]).exists():
        pytest.skip("needs the real data")
    (tmp_path / ROOTS[name]).parent.mkdir(exist_ok=True)
    (tmp_path / ROOTS[name]).symlink_to((DATA / ROOTS[name]).resolve())  # leaves the real cache alone
    monkeypatch.setattr(data, "decode", mark)  # 60,000 files would take a minute
    splits = LOADERS[name](name, tmp_path)[1:]
    sums = [(split.images.flatten(1).sum(1), split.targets if split.targets.ndim == 1 else 0) for split in splits]
    assert [f"{crc32((sum_ + 7919 * labels).numpy().tobytes()):08x}" for sum_, labels in sums] == PUBLISHED[
        name
    ].split()


def test_pixels_and_order_are_torchvisions(folder):
    theirs = OxfordIIITPet(folder, split="test", target_types="segmentation")
    ours = load_pets("oxford-iiit-pet", folder, SIZE).test
    for i, (image, trimap) in enumerate(theirs):
        expected = np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(ours.images[i].numpy(), expected)
        assert np.array_equal(ours.targets[i, 0].numpy(), np.asarray(trimap.resize((SIZE, SIZE), Image.NEAREST)))


@pytest.mark.parametrize("name", ["oxford-iiit-pet", "cifar10"])
def test_the_second_load_reads_the_cache_and_a_changed_file_is_decoded_again(folder, name, monkeypatch):
    first = LOADERS[name](name, folder).test
    with monkeypatch.context() as patch:
        patch.setattr(data, "open_image", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(LOADERS[name](name, folder).test.images, first.images)
    if name == "cifar10":
        write_image(folder / name / "test" / "cat" / "0000.png", PHOTOGRAPH.repeat(2, 0).repeat(2, 1)[:32, :32])
    else:
        Image.new("RGB", (20, 24), "red").save(folder / name / "images" / "Breed_test_0.jpg")
    assert not torch.equal(LOADERS[name](name, folder).test.images, first.images)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


HTML = b"<html>404 Not Found</html>" * 100
PETS_ROOT, MNIST_ROOT, CIFAR_ROOT = ROOTS.values()
IMAGES, TRIMAPS = f"{PETS_ROOT}/images", f"{PETS_ROOT}/annotations/trimaps"


def in_mode(mode, content):
    """The bytes of a PNG in another mode of Pillow's, its values unchanged."""
    values = np.array(Image.open(io.BytesIO(content)))
    values = np.dstack([values] * 3) if mode == "RGB" else values.astype(np.uint16)
    return png(values)


DAMAGES = [  # set, file, what becomes of its bytes (None: it is deleted), message
    ("oxford-iiit-pet", f"{PETS_ROOT}/annotations", None, "trainval.txt is missing"),
    ("oxford-iiit-pet", f"{PETS_ROOT}/annotations/test.txt", lambda _: b"\n", "test.txt is empty"),
    ("oxford-iiit-pet", f"{IMAGES}/Breed_trainval_3.jpg", None, "Breed_trainval_3.jpg is missing"),
    ("oxford-iiit-pet", f"{TRIMAPS}/Breed_test_5.png", None, "Breed_test_5.png is missing"),
    ("oxford-iiit-pet", f"{IMAGES}/Breed_test_1.jpg", lambda _: b"", "Breed_test_1.jpg cannot be read"),
    ("oxford-iiit-pet", f"{IMAGES}/Breed_test_2.jpg", lambda b: b[:-200], "Breed_test_2.jpg cannot be read"),
    ("oxford-iiit-pet", f"{IMAGES}/Breed_test_2.jpg", lambda _: HTML, "Breed_test_2.jpg cannot be read"),
    ("oxford-iiit-pet", f"{TRIMAPS}/Breed_trainval_0.png", lambda b: b[:60], "Breed_trainval_0.png cannot be read"),
    (
        *("oxford-iiit-pet", f"{TRIMAPS}/Breed_test_4.png", lambda _: png(np.full((24, 20), 255, np.uint8))),
        r"Breed_test_4.png holds the values \[255\], a trimap only 1, 2, 3",
    ),
    (
        *("oxford-iiit-pet", f"{TRIMAPS}/Breed_test_4.png", lambda _: png(np.ones((20, 20), np.uint8))),
        r"Breed_test_4.png is \(20, 20\), its image \(20, 24\)",
    ),
    *(
        ("oxford-iiit-pet", f"{TRIMAPS}/Breed_test_4.png", partial(in_mode, mode), f"test_4.png has the mode {shown}")
        for mode, shown in (("RGB", "RGB"), ("I;16", "I(;16)?, a trimap"))  # older Pillow says I
    ),
    ("cifar10", f"{CIFAR_ROOT}/test/dog", None, "test holds 2 airplane, .* 0 dog, .*; all classes must have"),
    ("cifar10", f"{CIFAR_ROOT}/train/ship/0001.png", None, "train holds 4 airplane, .* 3 ship, 4 truck; all classes"),
    ("cifar10", f"{CIFAR_ROOT}/train", None, "train holds 0 airplane, "),
    ("cifar10", f"{CIFAR_ROOT}/test/frog/0001.png", lambda b: b[:60], "frog/0001.png cannot be read"),
    ("cifar10", f"{CIFAR_ROOT}/test/frog/0001.png", lambda _: HTML, "frog/0001.png cannot be read"),
    ("cifar10", f"{CIFAR_ROOT}/test/frog/0001.png", lambda _: b"", "frog/0001.png cannot be read"),
    (
        *("cifar10", f"{CIFAR_ROOT}/train/bird/0002.png", lambda _: png(np.zeros((32, 64, 3), np.uint8))),
        "bird/0002.png is 64 x 32 pixels, not 32 x 32",
    ),
    (
        "mnist",
        f"{MNIST_ROOT}/train-labels-idx1-ubyte",
        lambda _: idx(np.full(40, 10)),
        "holds other labels than 0 to 9",
    ),
    (
        *("mnist", f"{MNIST_ROOT}/train-labels-idx1-ubyte", lambda _: idx(np.zeros(39))),
        r"hold \(40, 28, 28\) and \(39,\), not \(N, 28, 28\) and \(N,\)",
    ),
    ("mnist", f"{MNIST_ROOT}/train-images-idx3-ubyte", lambda _: idx(np.zeros((40, 32, 32))), r"hold \(40, 32, 32\)"),
]
for file in (f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")):
    DAMAGES += [("mnist", f"{MNIST_ROOT}/{file}", None, f"{file} is missing")]
    for keep in (0, 3, 7, 12, -1):
        DAMAGES += [("mnist", f"{MNIST_ROOT}/{file}", lambda b, keep=keep: b[:keep], f"{file} is damaged")]
    DAMAGES += [("mnist", f"{MNIST_ROOT}/{file}", lambda _: HTML, f"{file} is damaged")]


@pytest.mark.parametrize(("name", "file", "change", "message"), DAMAGES)
def test_damage_is_told_by_name_with_the_remedy_and_leaves_no_cache(folder, name, file, change, message):
    path = folder / file
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    remedy = f": the data set is incomplete; delete .*{ROOTS[name]} and run again to download or unpack it anew"
    with pytest.raises(DataError, match=f"{message}.*{remedy}".replace("/", r"[\\/]")):  # Windows has the other one
        LOADERS[name](name, folder)
    assert not list(folder.glob(f"cache/*{'test' if 'test' in file else 'train'}*"))


def offline(*_, **__):
    raise OSError("no route to host")


@every_set
def test_absent_data_without_a_network_says_what_to_do(tmp_path, name, monkeypatch):
    for official in ("OxfordIIITPet", "MNIST", "CIFAR10"):
        monkeypatch.setattr(datasets, official, offline)
    message = r"does not exist and the download failed \(no route to host\). Put .* DATA_DIR .* dataset='stand-in'"
    with pytest.raises(DataError, match=f"{ROOTS[name].split('/')[-1]} {message}"):
        LOADERS[name](name, tmp_path)


@pytest.mark.parametrize(("name", "official"), [("oxford-iiit-pet", "OxfordIIITPet"), ("mnist", "MNIST")])
def test_a_download_that_breaks_off_leaves_nothing_and_the_next_run_downloads_again(
    folder, tmp_path, monkeypatch, name, official
):
    def interrupted(into, **_):
        (Path(into) / ROOTS[name]).mkdir(parents=True)
        raise OSError("no route to host")

    def complete(into, **_):
        shutil.copytree(folder / ROOTS[name], Path(into) / ROOTS[name])

    monkeypatch.setattr(datasets, official, interrupted)
    for _ in range(2):
        with pytest.raises(DataError, match=r"does not exist and the download failed \(no route to host\)"):
            LOADERS[name](name, tmp_path / "new")
    monkeypatch.setattr(datasets, official, complete)
    fetched = LOADERS[name](name, tmp_path / "new")
    assert torch.equal(fetched.test.images, LOADERS[name](name, folder).test.images)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"cache", ROOTS[name].split("/")[0]}
    assert not [path for path in (tmp_path / "new" / "cache").iterdir() if path.is_dir()]


def test_a_download_that_another_process_has_made_meanwhile_is_not_repeated(folder, tmp_path, monkeypatch):
    @contextmanager
    def waiting(cache):
        cache.mkdir(parents=True)
        shutil.copytree(folder / MNIST_ROOT, tmp_path / "new" / MNIST_ROOT)
        yield

    monkeypatch.setattr(datasets, "MNIST", offline)
    monkeypatch.setattr(data, "folder_lock", waiting)
    assert len(load_digits("mnist", tmp_path / "new").test.images) == COUNTS["mnist"][2]


def test_a_download_that_lacks_a_file_is_called_incomplete(folder, tmp_path, monkeypatch):
    def incomplete(into, **_):
        shutil.copytree(folder / PETS_ROOT, Path(into) / PETS_ROOT)
        (Path(into) / PETS_ROOT / "annotations" / "test.txt").unlink()

    monkeypatch.setattr(datasets, "OxfordIIITPet", incomplete)
    with pytest.raises(DataError, match=r"test\.txt is missing: the data set is incomplete; delete .* and run again"):
        load_pets("oxford-iiit-pet", tmp_path / "new", SIZE)


def test_what_a_killed_download_has_left_is_deleted_by_the_next_run(folder):
    left = folder / "cache" / f"{UNFINISHED}download"
    (left / "MNIST").mkdir(parents=True)
    (left / "MNIST" / "half").write_bytes(b"half")
    load_pets("oxford-iiit-pet", folder, SIZE)
    assert not left.exists()


def test_the_download_of_pictures_gives_the_splits_of_the_image_folder(folder, tmp_path, monkeypatch):
    def official(root, train, download):
        files = (folder / CIFAR_ROOT / ("train" if train else "test")).glob("*/*")
        files = sorted(files, key=lambda path: (path.name, path.parent.name))  # of each class in turn
        labels = [CIFAR10_CLASSES.index(path.parent.name) for path in files]
        return SimpleNamespace(data=np.stack([np.asarray(Image.open(path)) for path in files]), targets=labels)

    monkeypatch.setattr(datasets, "CIFAR10", official)
    for fetched, read in zip(load_pictures("cifar10", tmp_path)[1:], load_pictures("cifar10", folder)[1:]):
        assert torch.equal(fetched.images, read.images)
        assert torch.equal(fetched.targets, read.targets)


def test_hidden_files_in_an_image_folder_are_no_pictures(folder):
    (folder / CIFAR_ROOT / "train" / "cat" / ".DS_Store").write_bytes(b"of macOS")
    (folder / CIFAR_ROOT / "train" / "cat" / "desktop.ini").write_bytes(b"of Windows")
    assert len(load_pictures("cifar10", folder).train.images) == COUNTS["cifar10"][0]


@every_set
def test_wrong_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"dataset='minst': choose from .*{name}.*stand-in"):
        LOADERS[name]("minst", tmp_path)


@pytest.mark.parametrize("size", [8, 16.0, True])
def test_wrong_image_sizes_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"image_size={size}: must be an integer of 16 or more"):
        load_pets("stand-in", tmp_path, size)


@every_set
def test_standins_have_the_real_ones_form_and_disjoint_splits(tmp_path, name):
    dataset = LOADERS[name]("stand-in", tmp_path)
    counts = data.STANDIN_PETS if name == "oxford-iiit-pet" else data.STANDIN_LABELLED
    assert [split.images.shape for split in dataset[1:]] == [(count, *SHAPES[name]) for count in counts]
    assert [len(split.targets) for split in dataset[1:]] == list(counts)
    assert dataset.train.targets.dtype == (torch.uint8 if name == "oxford-iiit-pet" else torch.int64)
    assert len(dataset.classes) == (0 if name == "oxford-iiit-pet" else 10)
    assert not list(tmp_path.iterdir())
    assert len({image.numpy().tobytes() for split in dataset[1:] for image in split.images}) == sum(counts)


def mutated(content, seed):
    """A file of which some bytes are other ones, or the end is missing."""
    chance = random.Random(seed)
    content = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content[: chance.choice([len(content), chance.randrange(1, len(content))])])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@given(st.integers(0, 10**6))
@settings(max_examples=150)
def test_a_mutated_picture_is_read_or_named(tmp_path_factory, form, seed):
    picture, trimap = (tmp_path_factory.getbasetemp() / name for name in ("picture", "trimap.png"))
    exif = Image.Exif()
    exif.update({0x010F: "maker", 0x0112: 6, 0x011A: 72.0, 0x0128: 2})  # 6: to be turned
    Image.fromarray(PHOTOGRAPH).save(picture, form, exif=exif)
    picture.write_bytes(mutated(picture.read_bytes(), seed))
    trimap.write_bytes(mutated(png(TRIMAP), seed + 1) if seed % 2 else png(TRIMAP))
    for read, shape in (
        (lambda: torch.from_numpy(np.array(data.open_rgb(picture))), (3,)),
        (lambda: MNIST.load_digit(picture), (28, 28)),
        (lambda: data.decode(SIZE, (picture, trimap)), (4, SIZE, SIZE)),
    ):
        try:
            pixels = read()
        except DataError as error:
            assert str(picture.parent) in str(error)  # noqa: PT017 - most mutated files can still be read
        else:
            assert pixels.shape[-len(shape) :] == shape
            assert pixels.dtype == torch.uint8


@given(st.integers(0, 10**6))
@settings(max_examples=150)
def test_a_mutated_idx_file_is_read_or_named(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.getbasetemp(), np.random.default_rng(0)
    for kind, array in (("images-idx3", rng.integers(0, 256, (5, 28, 28))), ("labels-idx1", np.arange(5))):
        content = idx(array) if seed % 3 else idx(array)[:40]
        (folder / f"t10k-{kind}-ubyte").write_bytes(mutated(content, seed))
    try:
        split = data.read_idx(folder, "t10k")
    except DataError as error:
        assert str(folder) in str(error)  # noqa: PT017
    else:
        assert split.images.shape == (len(split.targets), 1, 28, 28)
        assert split.targets.max() <= 9


def test_an_empty_split_is_named(tmp_path):
    for kind, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
        (tmp_path / f"t10k-{kind}-ubyte").write_bytes(idx(np.zeros(shape)))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is damaged"):
        data.read_idx(tmp_path, "t10k")


def test_where_memory_is_short_no_file_is_called_damaged(monkeypatch):
    monkeypatch.setattr(Image, "open", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        data.open_image(Path("photograph.jpg"))


# --- The user's images ------------------------------------------------------------------------------------------------


ODD_NOTES = [(0x011A, 2, b"72\0\0"), (0x0128, 2, b"2\0\0\0"), (0x010F, 5, b"\0" * 4)]  # resolution, its unit, maker


@pytest.mark.parametrize(("tag", "kind", "value"), ODD_NOTES)
def test_a_photograph_with_odd_notes_of_its_camera_is_named(tmp_path, tag, kind, value):
    """EXIF entries of a type that Pillow does not expect of this tag, in a photograph that is to be turned."""
    entries = [struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHI", tag, kind, 4 if kind == 2 else 1) + value]
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + b"".join(sorted(entries)) + bytes(4)
    Image.fromarray(PHOTOGRAPH).save(tmp_path / "odd.jpg", exif=exif)
    try:
        data.open_rgb(tmp_path / "odd.jpg")
    except DataError as error:
        assert "odd.jpg cannot be read as an image" in str(error)  # noqa: PT017 - another Pillow may be able to


def test_a_phones_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    pixels[:, :200, 0] = pixels[:, 200:, 2] = 250  # red on the left, blue on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif)
    [path] = UNET.photographs_in(tmp_path)
    image = np.asarray(data.open_rgb(path))
    assert image.shape == (400, 300, 3)
    above, below = image[:190].mean((0, 1)), image[210:].mean((0, 1))
    assert above[0] > 240 > 10 > above[2], "what was left is now above"
    assert below[2] > 240 > 10 > below[0]


def test_a_mask_comes_back_to_the_frame_of_its_photograph():
    pixels = np.zeros((60, 200, 3), np.uint8)
    pixels[:, :50] = 255  # bright on the left
    bright = torch.nn.Conv2d(3, 1, 1)
    torch.nn.init.ones_(bright.weight)
    mask = UNET.find_pet(bright, Image.fromarray(pixels), 16)
    assert mask.shape == (1, 60, 200)
    assert mask[0, :, :44].all()
    assert not mask[0, :, 56:].any()


def test_images_of_every_kind_become_rgb_on_white(tmp_path):
    Image.new("L", (30, 20), 77).save(tmp_path / "a grey.png")
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "b clear.png")
    Image.new("LA", (30, 20), (0, 255)).save(tmp_path / "c solid.png")
    Image.new("RGB", (30, 20), (0, 0, 255)).convert("P").save(tmp_path / "d palette.png")
    Image.new("CMYK", (30, 20), (0, 0, 0, 0)).save(tmp_path / "e print.jpg")
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "f moving.gif", save_all=True, append_images=[blue])  # its first frame counts
    blue.save(tmp_path / "g web.webp", lossless=True)
    blue.convert("P").save(tmp_path / "h see-through palette.png", transparency=blue.convert("P").getpixel((0, 0)))
    for hidden in (".hidden", "desktop.ini"):
        (tmp_path / hidden).write_text("left alone")
    paths = UNET.photographs_in(tmp_path)
    assert [path.name[0] for path in paths] == list("abcdefgh")
    white, black, first, second = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)
    expected = [(77, 77, 77), white, black, second, white, first, second, white]
    assert [data.open_rgb(path).getpixel((16, 16)) for path in paths] == expected


@pytest.mark.parametrize("size", [(1, 1), (900, 1), (1, 900), (3000, 200)])
def test_photographs_of_any_shape_get_a_mask_of_their_own_frame(tmp_path, size):
    Image.new("RGB", size, "white").save(tmp_path / "photograph.png")
    photograph = data.open_rgb(tmp_path / "photograph.png")
    bright = torch.nn.Conv2d(3, 1, 1)
    torch.nn.init.ones_(bright.weight)
    assert UNET.find_pet(bright, photograph, 16).all()
    assert UNET.find_pet(bright, photograph, 16).shape == (1, *size[::-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML, "cannot be read as an image .*: remove it, or save it as JPEG or PNG"),
        (png(PHOTOGRAPH)[:900], "cannot be read as an image"),
        (png(np.zeros((9, 9), np.uint16)), "has more than 8 bits for a value"),
        (png(np.zeros((99, 99), np.uint8)), "cannot be read as an image .*decompression bomb"),  # before it is decoded
        (None, "is missing"),
    ],
    ids=["text", "truncated", "deep", "enormous", "missing"],
)
def test_what_is_no_image_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    if content is not None:
        (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png " + message):
        data.open_rgb(tmp_path / "image.png")


def test_a_damaged_avif_is_named(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / "image.avif"
    Image.new("RGB", (16, 16)).save(path)
    assert data.open_rgb(path).size == (16, 16)
    other = path.read_bytes().replace(b"pitm\0\0\0\0\0\1", b"pitm\0\0\0\0\0\7")  # an image that is not there
    path.write_bytes(other)
    with pytest.raises(DataError, match=r"image\.avif cannot be read as an image"):
        data.open_rgb(path)


def test_a_picture_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    def failing(_):
        raise PermissionError(EACCES, "Permission denied", "image.png")

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(PermissionError, match=r"image\.png"):
        data.open_rgb(tmp_path / "image.png")


def test_folders_without_photographs(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="is no folder that holds photographs"):
            UNET.photographs_in(folder)


@pytest.mark.parametrize(("ground", "ink"), [(0, 255), (230, 20)])
@pytest.mark.parametrize("size", [28, 900])
def test_a_digit_takes_the_form_of_mnist(tmp_path, ground, ink, size):
    """A thick 1 of any size, dark on light or light on dark, away from the middle."""
    pixels = np.full((size, size + size // 3), ground, dtype=np.uint8)
    pixels[size // 10 : size // 2, size // 2 : size // 2 + size // 8] = ink
    write_image(tmp_path / "one.png", pixels)
    image = MNIST.load_digit(tmp_path / "one.png")
    assert image.dtype == torch.uint8
    assert image.shape == (1, 28, 28)
    assert (image[0].amax(1) > 0).nonzero().flatten().tolist() == list(range(4, 24)), "20 rows, in the middle"
    assert 3 <= (image[0].amax(0) > 0).sum() <= 8
    assert image.max() == 255
    for axis in (0, 1):
        weights = image[0].double().sum(axis) / image.sum()
        assert (weights @ torch.arange(28.0).double()).item() == pytest.approx(13.5, abs=0.5)


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_grey_picture_is_a_digit_or_told(tmp_path_factory, grey):
    path = tmp_path_factory.getbasetemp() / "digit.png"
    for pixels in (grey, np.full((40, 40), 200, np.uint8), np.pad(np.uint8([[255]]), ((9, 800), (900, 9)))):
        write_image(path, pixels)
        if np.ptp(pixels):
            try:
                image = MNIST.load_digit(path)
            except DataError as error:
                assert "all of one brightness" in str(error)  # noqa: PT017
            else:
                assert image.shape == (1, 28, 28)
                assert image.max() == 255
        else:
            with pytest.raises(DataError, match=r"digit\.png is all of one brightness"):
                MNIST.load_digit(path)


# --- Batches ----------------------------------------------------------------------------------------------------------


def pets(count=10):
    """Ten images that hold their own number, and a trimap with a pet where the image is bright."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, SIZE, SIZE).clone()
    images[..., SIZE // 2 :] += 200
    return Split(images, torch.where(images[:, :1] >= 200, data.PET, data.BACKGROUND).byte(), [""] * count)


def labelled(count=10, channels=1):
    """Images that hold their own number in each pixel, labels that are its last digit."""
    values = torch.arange(count)
    return Split(values.byte()[:, None, None, None].repeat(1, channels, SIZE, SIZE), values % 10)


SETS = [
    (pets, UNET.pet_augmentation, [SIZE] * 6),
    (labelled, MNIST.digit_augmentation, ()),
    (lambda count: labelled(count, 3), CIFAR10.picture_augmentation, ()),
]


def everything(batches, number=0):
    return [torch.cat(parts) for parts in zip(*batches.epoch(number))]


@pytest.mark.parametrize(("split", "augment", "sizes"), SETS)
@given(count=st.integers(1, 20), batch_size=st.integers(1, 5), seed=st.integers(0, 2**31), number=st.integers(0, 5))
def test_an_epoch_holds_each_image_at_most_once_and_repeats(split, augment, sizes, count, batch_size, seed, number):
    assume(batch_size <= count)
    split = split(count)
    for transform in (None, augment()):
        batches, other = (Batches(split, batch_size, seed, transform, sizes) for _ in range(2))
        next(other.epoch(0))  # what was drawn before must not matter
        epoch, again = list(batches.epoch(number)), list(other.epoch(number))
        assert len(epoch) == len(batches) == count // batch_size
        for (images, targets), (same, same_targets) in zip(epoch, again):
            assert torch.equal(images, same)
            assert torch.equal(targets, same_targets)
            assert images.shape == (batch_size, *split.images.shape[1:])
            assert images.dtype == torch.uint8
            assert targets.dtype == (torch.bool if sizes else torch.int64)
    images, targets = everything(Batches(split, batch_size, seed, None, sizes), number)
    values = images[:, 0, 0, 0].long()
    assert len(values.unique()) == len(values) == count // batch_size * batch_size
    assert torch.equal(targets, images[:, :1] >= 200 if sizes else values % 10)


@pytest.mark.parametrize(("split", "augment", "sizes"), SETS)
def test_epochs_and_seeds_differ(split, augment, sizes):
    split = split(10)
    first, second = (everything(Batches(split, 4, 5, augment(), sizes), number)[0] for number in (1, 2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, everything(Batches(split, 4, 6, augment(), sizes), 1)[0])


def test_image_and_mask_move_together():
    images, targets = everything(Batches(pets(), 10, 0, UNET.pet_augmentation()), 3)
    bright = images.float().mean(1, keepdim=True) > 110
    assert (bright == targets).float().mean() > 0.95  # interpolation may differ on the edge
    assert len({target.numpy().tobytes() for target in targets}) > 3, "nothing moved"


def test_progressive_sizes():
    for augment in (None, UNET.pet_augmentation()):
        batches = Batches(pets(), 5, 0, augment, [8, SIZE])
        for number, size in enumerate((8, SIZE)):
            images, targets = everything(batches, number)
            assert images.shape[2:] == targets.shape[2:] == (size, size)


def test_augmentation_moves_digits_and_keeps_their_form():
    split = load_digits("stand-in", None).validation
    before, after = (
        everything(Batches(split, len(split.images), 7, augment)) for augment in (None, MNIST.digit_augmentation())
    )
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])
    ink = after[0].flatten(1).sum(1) / before[0].flatten(1).sum(1)
    assert 0.5 < ink.min() < ink.max() < 1.6


def test_pictures_are_mirrored_and_shifted_by_whole_pixels():
    split = Split(torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8), torch.zeros(32))
    before, after = (
        everything(Batches(split, 32, 7, augment))[0] for augment in (None, CIFAR10.picture_augmentation())
    )
    assert not torch.equal(before, after)
    for source, moved in zip(before[:8], after[:8]):
        core = moved[:, 8:24, 8:24]
        places = [(down, right) for down in range(5, 12) for right in range(5, 12)]
        views = [view[:, y : y + 16, x : x + 16] for view in (source, source.flip(2)) for y, x in places]
        assert any(torch.equal(core, view) for view in views)


@given(st.integers(1, 64), st.integers(1, 64))
def test_augmentation_keeps_shapes_and_the_values_of_a_trimap(height, width):
    rng = np.random.default_rng(0)
    image, trimap = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(1, 4, (height, width), np.uint8)
    pets, *others = UNET.pet_augmentation(), MNIST.digit_augmentation(), CIFAR10.picture_augmentation()
    for augment in (pets, *others):
        augment.set_random_seed(0)
    pair = pets(image=image, mask=trimap)
    assert pair["image"].shape == image.shape
    assert set(np.unique(pair["mask"])) <= set(np.unique(trimap))
    for augment in others:
        assert augment(image=image)["image"].shape == image.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 11}, "batches of 11 images: there are only 10")]
    + [({"batch_size": size}, f"batch_size={size}: must be an integer of 1") for size in (0, 2.0, 2.5, True, None)]
    + [({"sizes": [16, size]}, rf"sizes\[1\]={size}: must be an integer of 1") for size in (0, -1, 2.5, None)],
)
def test_batches_refuse_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Batches(**{"split": labelled(), "batch_size": 2, "seed": 0} | changes)


# --- Values -----------------------------------------------------------------------------------------------------------


def test_bytes_are_scaled():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    for scale, expected in ((data.normalise, [-2, -1.2, 2]), (data.to_unit, [0, 0.2, 1])):
        assert scale(images).flatten().tolist() == pytest.approx(expected)
        assert scale(images.expand(2, 3, 4, 3)).is_contiguous(memory_format=torch.channels_last)
