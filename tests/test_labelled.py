"""MNIST, CIFAR-10, stand-ins: right tensors, splits that do not touch, and each way to be broken told by name."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.files import idx
from utils import labelled, standins
from utils.data import DataError
from utils.labelled import (
    CIFAR10_CLASSES,
    LabelledBatches,
    LabelledSplit,
    digit_augmentation,
    load_digits,
    load_pictures,
    picture_augmentation,
    to_unit,
)

COUNTS = {"train": 40, "t10k": 10}


@pytest.fixture
def root(tmp_path):
    """A miniature MNIST in the real one's layout."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in COUNTS.items():
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28))))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return folder


def load(root):
    return load_digits("mnist", root.parent.parent)


def test_shapes_types_and_splits(root):
    digits = load(root)
    assert digits.source == "mnist"
    for split, count in zip(digits[2:], (36, 4, 10)):
        assert split.images.shape == (count, 1, 28, 28)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (count,)
    train, validation, test = ({image.numpy().tobytes() for image in split.images} for split in digits[2:])
    assert len(train | validation | test) == 50
    again = load(root)
    assert torch.equal(digits.validation.images, again.validation.images)


def test_images_keep_their_labels(root):
    everything = (root / "train-images-idx3-ubyte").read_bytes()[16:]
    for split in load(root)[2:4]:
        for image, label in zip(*split):
            assert everything.index(image.numpy().tobytes()) // 784 % 10 == label


def test_standins_have_the_real_ones_form(tmp_path):
    digits = load_digits("stand-in", tmp_path)
    assert [len(split.labels) for split in digits[2:]] == list(labelled.STANDIN_SIZES.values())
    assert digits.train.images.shape[1:] == (1, 28, 28)
    assert digits.train.labels.dtype == torch.int64
    assert not list(tmp_path.iterdir())


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source='minst': choose from"):
        load_digits("minst", tmp_path)


FILES = [f"{prefix}-{kind}-ubyte" for prefix in COUNTS for kind in ("images-idx3", "labels-idx1")]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing: delete .* and run again"):
        load(root)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 3, 7, 12, -1])
def test_a_truncated_file_is_named(root, name, keep):
    path = root / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name} is damaged .* delete .* and run again"):
        load(root)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_something_else_is_named(root, name):
    (root / name).write_bytes(b"<html>404 Not Found</html>" * 100)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        load(root)


def test_images_of_another_size_and_labels_out_of_range_are_refused(root):
    (root / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 10)))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte holds 40 labels, or others than 0 to 9"):
        load(root)
    (root / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39)))
    with pytest.raises(DataError, match=r"hold \(40, 28, 28\) and \(39,\), not \(N, 28, 28\) and \(N,\)"):
        load(root)
    (root / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((39, 32, 32))))
    with pytest.raises(DataError, match=r"hold \(39, 32, 32\)"):
        load(root)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(labelled, "MNIST", offline)
    with pytest.raises(DataError, match=r"the download failed .* or run on the embedded stand-in: source='stand-in'"):
        load_digits("mnist", tmp_path)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def picture(label, number):
    """Uint8 (32, 32, 3), one colour that tells label and number."""
    return np.full((32, 32, 3), [25 * label, 10 * number, 100], np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A miniature CIFAR-10 as an image folder: 4 and 2 pictures a class, losslessly stored."""
    for split, count in {"train": 4, "test": 2}.items():
        for label, name in enumerate(CIFAR10_CLASSES):
            (tmp_path / "cifar10" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(label, number)).save(tmp_path / "cifar10" / split / name / f"{number:04}.png")
    return tmp_path / "cifar10"


def test_an_image_folder_becomes_tensors_with_the_labels_of_its_folders(folder):
    pictures = load_pictures("cifar10", folder.parent)
    assert pictures.names[3] == "cat"
    for split, count in zip(pictures[2:], (36, 4, 20)):
        assert split.images.shape == (count, 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert torch.equal(split.images[:, 0, 0, 0], (25 * split.labels).to(torch.uint8))
    seen = [tuple(image[:, 0, 0].tolist()) for split in pictures[2:4] for image in split.images]
    assert len(set(seen)) == 40


def test_the_second_load_decodes_nothing_and_a_changed_file_is_decoded_again(folder, monkeypatch):
    first = load_pictures("cifar10", folder.parent)
    with monkeypatch.context() as patch:
        patch.setattr(labelled, "open_image", None)
        assert torch.equal(load_pictures("cifar10", folder.parent).test.images, first.test.images)
    Image.effect_noise((32, 32), 50).convert("RGB").save(folder / "test" / "cat" / "0000.png")
    assert not torch.equal(load_pictures("cifar10", folder.parent).test.images, first.test.images)


def remove_a_class(folder):
    shutil.rmtree(folder / "test" / "dog")
    return r"test holds 2 airplane, .* 0 dog, .*; each class must have as many: .* incomplete; delete"


def remove_a_picture(folder):
    (folder / "train" / "ship" / "0001.png").unlink()
    return r"train holds 4 airplane, .* 3 ship, 4 truck; each class must have as many: .* incomplete; delete"


def remove_all(folder):
    shutil.rmtree(folder / "train")
    return "train holds 0 airplane, .* incomplete; delete"


def truncate(folder):
    path = folder / "test" / "frog" / "0001.png"
    path.write_bytes(path.read_bytes()[:60])
    return "frog/0001.png does not decode"


def empty(folder):
    (folder / "test" / "frog" / "0001.png").write_bytes(b"")
    return "frog/0001.png is empty"


def write_text(folder):
    (folder / "test" / "frog" / "0001.png").write_text("404 Not Found")
    return "frog/0001.png does not decode"


def enlarge(folder):
    Image.new("RGB", (64, 32)).save(folder / "train" / "bird" / "0002.png")
    return "bird/0002.png is 64 x 32 pixels, not 32 x 32"


DAMAGES = [remove_a_class, remove_a_picture, remove_all, truncate, empty, write_text, enlarge]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_image_folder_is_told_by_name(folder, damage):
    with pytest.raises(DataError, match=damage(folder)):
        load_pictures("cifar10", folder.parent)


def test_without_an_image_folder_torchvision_is_asked(tmp_path, monkeypatch):
    def official(root, train, download):
        count = 20 if train else 10
        images = np.stack([picture(i % 10, i // 10) for i in range(count)])
        return SimpleNamespace(data=images, targets=[i % 10 for i in range(count)])

    monkeypatch.setattr(labelled, "CIFAR10", official)
    pictures = load_pictures("cifar10", tmp_path)
    assert [len(split.labels) for split in pictures[2:]] == [18, 2, 10]
    assert torch.equal(pictures.test.images[:, 0, 5, 7], (25 * pictures.test.labels).to(torch.uint8))


def test_a_failed_download_of_pictures_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise RuntimeError("Error downloading cifar-10-python.tar.gz")

    monkeypatch.setattr(labelled, "CIFAR10", offline)
    with pytest.raises(DataError, match=r"cifar10/\{train,test\}/<class>/, .* stand-in: source='stand-in'"):
        load_pictures("cifar10", tmp_path)


def test_shapes_have_the_real_ones_form(tmp_path):
    pictures = load_pictures("stand-in", tmp_path)
    assert pictures.names == standins.SHAPES
    assert [len(split.labels) for split in pictures[2:]] == list(labelled.STANDIN_SIZES.values())
    assert pictures.train.images.shape[1:] == (3, 32, 32)
    assert pictures.train.images.is_contiguous()
    assert not list(tmp_path.iterdir())
    everything = torch.cat([split.images for split in pictures[2:]]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)


def test_a_picture_depends_on_seed_and_number_alone():
    many, few = standins.shapes(20, seed=3)[0], standins.shapes(10, seed=3)[0]
    assert np.array_equal(many[:10], few)
    assert not np.array_equal(few, standins.shapes(10, seed=4)[0])
    with pytest.raises(ValueError, match="count=0: must be an integer of 1 or more"):
        standins.shapes(0, seed=0)


def test_unknown_sources_of_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="source='cifar': choose from"):
        load_pictures("cifar", tmp_path)


# --- Batches ----------------------------------------------------------------------------------------------------------


def numbered(count=10):
    """Image i is filled with the value i, and has the label i."""
    values = torch.arange(count)
    return LabelledSplit(values.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4), values)


def test_an_epoch_shows_each_image_once_with_its_label_and_drops_the_rest():
    batches = LabelledBatches(numbered(), 3, seed=0)
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches) == 3
    seen = torch.cat([labels for _, labels in epoch])
    assert len(seen.unique()) == 9
    for images, labels in epoch:
        assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_epochs_repeat_by_number_and_differ_from_each_other():
    split = load_digits("stand-in", None).validation
    augmenting = [LabelledBatches(split, 32, 7, digit_augmentation()) for _ in range(2)]
    list(augmenting[0].epoch(0))  # what was drawn before must not matter
    one, same, other = (next(batches.epoch(e)) for batches, e in zip((*augmenting, augmenting[0]), (3, 3, 4)))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


def test_augmentation_moves_digits_and_keeps_their_form():
    split = load_digits("stand-in", None).validation
    plain, moved = (LabelledBatches(split, 32, 7, augment) for augment in (None, digit_augmentation()))
    (before, labels), (after, same) = next(plain.epoch(0)), next(moved.epoch(0))
    assert torch.equal(labels, same)
    assert after.shape == before.shape
    assert after.dtype == torch.uint8
    assert not torch.equal(before, after)
    ink = after.flatten(1).sum(1) / before.flatten(1).sum(1)
    assert ink.min() > 0.5
    assert ink.max() < 1.6


def test_pictures_are_mirrored_and_shifted_by_whole_pixels():
    split = load_pictures("stand-in", None).validation
    before, _ = next(LabelledBatches(split, 32, 7).epoch(0))
    after, _ = next(LabelledBatches(split, 32, 7, picture_augmentation()).epoch(0))
    assert not torch.equal(before, after)
    for source, moved in zip(before[:8], after[:8]):
        core = moved[:, 8:24, 8:24]
        places = [(down, right) for down in range(5, 12) for right in range(5, 12)]
        views = [view[:, y : y + 16, x : x + 16] for view in (source, source.flip(2)) for y, x in places]
        assert any(torch.equal(core, view) for view in views)


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(ValueError, match="batch_size=11: must be from 1 to 10"):
        LabelledBatches(numbered(), 11, seed=0)


def test_the_models_input_is_in_0_to_1():
    assert to_unit(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx([0, 0.2, 1])
