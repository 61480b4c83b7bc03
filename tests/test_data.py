"""The data set: right tensors, splits that do not touch, and each way to be broken told by name."""

import shutil

import albumentations
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from utils import data, standins
from utils.data import BACKGROUND, DataError, PetBatches, Split, load_pets

SIZE = 16
COUNTS = {"trainval": 20, "test": 6}


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A miniature Oxford-IIIT Pet in the real one's layout: images of 20 x 24 pixels."""
    root = tmp_path_factory.mktemp("data") / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        names = [f"Breed_{split}_{i}" for i in range(count)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
            Image.fromarray(rng.integers(1, 4, (24, 20), np.uint8)).save(
                root / "annotations" / "trimaps" / f"{name}.png"
            )
        lines = [f"{name} {i + 1} 1 1\n" for i, name in enumerate(names)]
        (root / "annotations" / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture
def root(original, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(original, tmp_path / "oxford-iiit-pet")


def load(root):
    return load_pets("oxford-iiit-pet", root.parent, SIZE)


def test_shapes_types_and_values(root):
    pets = load(root)
    for split, count in zip((pets.train, pets.validation, pets.test), (18, 2, 6)):
        assert split.images.shape == (count, 3, SIZE, SIZE)
        assert split.trimaps.shape == (count, 1, SIZE, SIZE)
        assert split.images.dtype == split.trimaps.dtype == torch.uint8
        assert set(split.trimaps.unique().tolist()) <= {1, 2, 3}
        assert len(split.names) == count


def test_splits_do_not_touch_and_stay_the_same(root):
    pets = load(root)
    train, validation, test = (set(split.names) for split in pets[1:])
    assert not train & validation
    assert not (train | validation) & test
    assert load(root).validation.names == pets.validation.names


def test_pixels_and_order_are_torchvisions(root):
    theirs = OxfordIIITPet(root.parent, split="test", target_types="segmentation")
    ours = load(root).test
    for i, (image, trimap) in enumerate(theirs):
        expected = np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(ours.images[i].numpy(), expected)
        assert np.array_equal(ours.trimaps[i, 0].numpy(), np.asarray(trimap.resize((SIZE, SIZE), Image.NEAREST)))


def test_the_second_load_reads_the_cache(root, monkeypatch):
    first = load(root)
    monkeypatch.setattr(data, "decode_pair", lambda *_: pytest.fail("decoded again"))
    second = load(root)
    assert torch.equal(first.train.images, second.train.images)


def test_a_changed_file_is_decoded_again(root):
    before = load(root).test.images.clone()
    Image.new("RGB", (20, 24), "red").save(root / "images" / "Breed_test_0.jpg")
    assert not torch.equal(load(root).test.images, before)


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign"])
def test_a_damaged_cache_is_named_and_rebuilt(root, damage):
    before = load(root).test
    cache = root.parent / "cache" / f"oxford-iiit-pet-test-{SIZE}.pt"
    content = cache.read_bytes()
    if damage == "altered":
        cache.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    else:
        cache.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not a cache")
    with pytest.warns(UserWarning, match=f"oxford-iiit-pet-test-{SIZE}.pt is not used and will be rebuilt"):
        after = load(root).test
    assert torch.equal(before.images, after.images)


def break_nothing_there(root):
    shutil.rmtree(root / "annotations")
    return r"trainval.txt is missing.*delete"


def break_empty_list(root):
    (root / "annotations" / "test.txt").write_text("")
    return r"test.txt is empty.*delete"


def break_missing_image(root):
    (root / "images" / "Breed_trainval_3.jpg").unlink()
    return r"Breed_trainval_3.jpg is on the official list but missing.*delete"


def break_missing_trimap(root):
    (root / "annotations" / "trimaps" / "Breed_test_5.png").unlink()
    return r"Breed_test_5.png is on the official list but missing.*delete"


def break_empty_image(root):
    (root / "images" / "Breed_test_1.jpg").write_bytes(b"")
    return r"Breed_test_1.jpg is empty.*delete"


def break_truncated_image(root):
    path = root / "images" / "Breed_test_2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return r"Breed_test_2.jpg does not decode.*delete"


def break_foreign_image(root):
    (root / "images" / "Breed_test_2.jpg").write_text("<html>404</html>")
    return r"Breed_test_2.jpg does not decode.*delete"


def break_truncated_trimap(root):
    path = root / "annotations" / "trimaps" / "Breed_trainval_0.png"
    path.write_bytes(path.read_bytes()[:60])
    return r"Breed_trainval_0.png does not decode.*delete"


def break_values_of_trimap(root):
    mask = np.full((24, 20), 255, np.uint8)
    Image.fromarray(mask).save(root / "annotations" / "trimaps" / "Breed_test_4.png")
    return r"Breed_test_4.png holds the values \[255\], a trimap only 1, 2, 3.*delete"


def break_size_of_trimap(root):
    Image.new("L", (20, 20), 1).save(root / "annotations" / "trimaps" / "Breed_test_4.png")
    return r"Breed_test_4.png is \(20, 20\), its image \(20, 24\).*delete"


BREAKAGES = [value for name, value in list(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("damage", BREAKAGES, ids=lambda f: f.__name__)
def test_broken_data_is_told_by_name_and_leaves_no_cache(root, damage):
    message = damage(root)
    with pytest.raises(DataError, match=message):
        load(root)
    assert not list(root.parent.glob(f"cache/*{'test' if 'test' in message else 'trainval'}*"))


def test_absent_data_without_a_network(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(data, "OxfordIIITPet", no_network)
    with pytest.raises(DataError, match=r"download failed \(no route to host\).*DATA_DIR.*stand-in"):
        load_pets("oxford-iiit-pet", tmp_path, SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"), [(("cifar", 64), "source='cifar'"), (("stand-in", 8), "image_size=8")]
)
def test_wrong_arguments(tmp_path, arguments, message):
    source, size = arguments
    with pytest.raises(ValueError, match=message):
        load_pets(source, tmp_path, size)


def test_standins_have_the_real_ones_form_and_disjoint_splits(tmp_path):
    pets = load_pets("stand-in", tmp_path, 32)
    assert pets.train.images.shape[1:] == (3, 32, 32)
    assert set(pets.test.trimaps.unique().tolist()) == {1, 2, 3}
    assert not list(tmp_path.iterdir())
    as_bytes = [{image.numpy().tobytes() for image in split.images} for split in pets[1:]]
    assert not as_bytes[0] & as_bytes[1]
    assert not (as_bytes[0] | as_bytes[1]) & as_bytes[2]


def test_digits_have_mnists_form():
    images, labels = standins.digits(200, seed=0)
    assert images.shape == (200, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [20] * 10
    assert (images.min(axis=(1, 2)) == 0).all()
    assert (images.max(axis=(1, 2)) > 200).all()
    assert not images[:, [0, -1]].any(), "ink on the edge: cut off?"
    assert not images[:, :, [0, -1]].any(), "ink on the edge: cut off?"


def test_a_digit_depends_on_seed_and_place_alone():
    images, labels = standins.digits(30, seed=3)
    fewer, their_labels = standins.digits(13, seed=3)
    assert np.array_equal(images[:13], fewer)
    assert np.array_equal(labels[:13], their_labels)
    everything = {image.tobytes() for seed in (3, 4) for image in standins.digits(30, seed)[0]}
    assert len(everything) == 60


@pytest.mark.parametrize(("digit", "holes"), [(0, 1), (4, 1), (6, 1), (8, 2), (9, 1)])
def test_the_holes_of_digits_are_open(digit, holes):
    images, labels = standins.digits(1000, seed=0)
    paper = [np.uint8(image < 128) for image in images[labels == digit]]
    found = [cv2.connectedComponents(part, connectivity=4)[0] - 2 for part in paper]  # -2: the ink and the surroundings
    assert np.mean(np.array(found) >= holes) > 0.97


def test_digits_can_be_read():
    (known, labels), (asked, answers) = (standins.digits(count, seed) for count, seed in ((2000, 0), (500, 1)))
    known, asked = (np.float32(images).reshape(len(images), -1) / 255 for images in (known, asked))
    nearest = np.argmin((known**2).sum(axis=1) - 2 * asked @ known.T, axis=1)
    assert np.mean(labels[nearest] == answers) > 0.9


def test_digits_vary_in_slant_and_thickness():
    images = standins.digits(1000, seed=0)[0][::10]  # zeros only, so that the shape of the digit plays no part
    moments = [cv2.moments(image) for image in images]
    assert np.std([m["mu11"] / m["mu02"] for m in moments]) > 0.1
    assert np.ptp([m["m00"] for m in moments]) > 0.5 * np.mean([m["m00"] for m in moments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "count=0: must be an integer of 1 or more"), ((1, -1), "seed=-1: must be an integer of 0 or more")],
)
def test_digits_refuse_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        standins.digits(*arguments)


# --- Batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def split():
    """Ten images that hold their own number, and a trimap with a pet where the image is bright."""
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, SIZE, SIZE).clone()
    images[..., SIZE // 2 :] += 200
    trimaps = torch.where(images[:, :1] >= 200, 1, BACKGROUND).to(torch.uint8)
    return Split(images, trimaps, [str(i) for i in range(10)])


def everything(batches, epoch):
    return [torch.cat(parts) for parts in zip(*batches.epoch(epoch))]


def test_an_epoch_is_the_same_each_time_and_differs_from_the_next(split):
    batches, other = (PetBatches(split, 4, [SIZE] * 3, seed=5) for _ in range(2))
    list(batches.epoch(0))
    images, targets = everything(batches, 1)
    again_images, again_targets = everything(other, 1)
    assert torch.equal(images, again_images)
    assert torch.equal(targets, again_targets)
    assert not torch.equal(images, everything(batches, 2)[0])
    assert not torch.equal(images, everything(PetBatches(split, 4, [SIZE] * 3, seed=6), 1)[0])


def test_each_image_comes_at_most_once(split):
    batches = PetBatches(split, 4, [SIZE], seed=0)
    batches.augment = albumentations.Compose([])
    images, targets = everything(batches, 0)
    assert len(batches) == 2
    assert images.shape == (8, 3, SIZE, SIZE)
    assert len(set(images[:, 0, 0, 0].tolist())) == 8
    assert targets.dtype == torch.bool


def test_image_and_mask_move_together(split):
    images, targets = everything(PetBatches(split, 10, [SIZE] * 5, seed=0), 3)
    bright = images.float().mean(1, keepdim=True) > 110
    assert (bright == targets).float().mean() > 0.95  # interpolation may differ on the edge
    assert len({target.numpy().tobytes() for target in targets}) > 3, "nothing moved"


def test_progressive_sizes(split):
    batches = PetBatches(split, 5, [8, SIZE], seed=0)
    assert [everything(batches, epoch)[0].shape[-1] for epoch in (0, 1)] == [8, SIZE]


@pytest.mark.parametrize("batch_size", [0, 11])
def test_impossible_batch_size(split, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: must be from 1 to 10"):
        PetBatches(split, batch_size, [SIZE], seed=0)
