"""MNIST and its stand-in: right tensors, splits that do not touch, and each way to be broken told by name."""

import numpy as np
import pytest
import torch

from utils import labelled
from utils.data import DataError
from utils.labelled import LabelledBatches, LabelledSplit, digit_augmentation, load_digits, to_unit

COUNTS = {"train": 40, "t10k": 10}


def idx(array):
    """Bytes of an IDX file (LeCun): magic number, sizes, values."""
    sizes = [0x0800 + array.ndim, *array.shape]
    return np.array(sizes, ">i4").tobytes() + array.astype(np.uint8).tobytes()


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
    for split, count in zip(digits[1:], (36, 4, 10)):
        assert split.images.shape == (count, 1, 28, 28)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (count,)
    train, validation, test = ({image.numpy().tobytes() for image in split.images} for split in digits[1:])
    assert len(train | validation | test) == 50
    again = load(root)
    assert torch.equal(digits.validation.images, again.validation.images)


def test_images_keep_their_labels(root):
    everything = (root / "train-images-idx3-ubyte").read_bytes()[16:]
    for split in load(root)[1:3]:
        for image, label in zip(*split):
            assert everything.index(image.numpy().tobytes()) // 784 % 10 == label


def test_standins_have_the_real_ones_form(tmp_path):
    digits = load_digits("stand-in", tmp_path)
    assert [len(split.labels) for split in digits[1:]] == list(labelled.STANDIN_SIZES.values())
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
    augmenting = [LabelledBatches(labelled.draw_digits("validation"), 32, 7, digit_augmentation()) for _ in range(2)]
    list(augmenting[0].epoch(0))  # what was drawn before must not matter
    one, same, other = (next(batches.epoch(e)) for batches, e in zip((*augmenting, augmenting[0]), (3, 3, 4)))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


def test_augmentation_moves_digits_and_keeps_their_form():
    plain, moved = (LabelledBatches(labelled.draw_digits("validation"), 32, 7, a) for a in (None, digit_augmentation()))
    (before, labels), (after, same) = next(plain.epoch(0)), next(moved.epoch(0))
    assert torch.equal(labels, same)
    assert after.shape == before.shape
    assert after.dtype == torch.uint8
    assert not torch.equal(before, after)
    ink = after.flatten(1).sum(1) / before.flatten(1).sum(1)
    assert ink.min() > 0.5
    assert ink.max() < 1.6


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(ValueError, match="batch_size=11: must be from 1 to 10"):
        LabelledBatches(numbered(), 11, seed=0)


def test_the_models_input_is_in_0_to_1():
    assert to_unit(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx([0, 0.2, 1])
