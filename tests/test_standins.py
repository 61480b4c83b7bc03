"""Stand-ins: they repeat, each picture stands for itself, and what is to be learnt is there."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import standins


def draw_pets(count, seed):
    return standins.pets(count, 32, seed)


@pytest.mark.parametrize("draw", [draw_pets, standins.digits, standins.letters])
@given(st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=10)
def test_a_picture_depends_on_seed_and_place_alone(draw, count, seed):
    images, targets = draw(count, seed)
    more, _ = draw(count + 1, seed)
    assert np.array_equal(images, more[:count])
    assert images.dtype == targets.dtype == np.uint8
    different = {image.tobytes() for its_seed in (seed, seed + 1) for image in draw(count, its_seed)[0]}
    assert len(different) == 2 * count
    if draw is not draw_pets:
        assert targets.tolist() == [i % 10 for i in range(count)]


@pytest.mark.parametrize("size", [16, 64])
def test_pets_fill_a_part_of_the_picture_and_colour_does_not_tell_them(size):
    images, trimaps = standins.pets(100, size, 0)
    assert images.shape == (100, size, size, 3)
    assert set(np.unique(trimaps)) == {1, 2, 3}
    share = (trimaps != standins.BACKGROUND).mean(axis=(1, 2))
    assert 0.12 < share.min() < share.max() < 0.55
    assert 0.03 < (trimaps == standins.BORDER).mean() < 0.35
    places = 16**3 * (trimaps != 2) + images // 16 @ [256, 16, 1]
    counts = np.bincount(places.ravel(), minlength=2 * 16**3).reshape(2, -1)  # of each colour, in backgrounds, in pets
    assert counts.max(axis=0).sum() / counts.sum() < 0.87, "the best guess by colour alone"


def test_digits_have_mnists_form():
    images, labels = standins.digits(200, seed=0)
    assert images.shape == (200, 28, 28)
    assert np.bincount(labels).tolist() == [20] * 10
    assert (images.min(axis=(1, 2)) == 0).all()
    assert (images.max(axis=(1, 2)) > 200).all()
    assert not images[:, [0, -1]].any(), "ink on the edge: cut off?"
    assert not images[:, :, [0, -1]].any(), "ink on the edge: cut off?"


def test_the_holes_of_digits_are_open():
    images, labels = standins.digits(1000, seed=0)
    for digit, holes in {0: 1, 4: 1, 6: 1, 8: 2, 9: 1}.items():
        paper = [np.uint8(image < 128) for image in images[labels == digit]]
        found = [cv2.connectedComponents(part, connectivity=4)[0] - 2 for part in paper]  # -2: ink and surroundings
        assert np.mean(np.array(found) >= holes) > 0.97, digit


@pytest.mark.parametrize(("draw", "least"), [(standins.digits, 0.9), (standins.letters, 0.8)])
def test_digits_and_letters_can_be_read(draw, least):
    (known, labels), (asked, answers) = (draw(count, seed) for count, seed in ((2000, 0), (300, 1)))
    if draw is standins.letters:  # what differs from the ground, which is the median of the edge
        known, asked = (ink(images) for images in (known, asked))
    known, asked = (np.float32(images).reshape(len(images), -1) / 255 for images in (known, asked))
    nearest = np.argmin((known**2).sum(axis=1) - 2 * asked @ known.T, axis=1)
    assert np.mean(labels[nearest] == answers) > least


def ink(images):
    edges = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return np.abs(images.astype(float) - np.median(edges, axis=1)[:, None, None]).max(axis=3).clip(0, 120)


def test_digits_vary_in_slant_and_thickness():
    images = standins.digits(1000, seed=0)[0][::10]  # zeros only, so that the shape of the digit plays no part
    moments = [cv2.moments(image) for image in images]
    assert np.std([m["mu11"] / m["mu02"] for m in moments]) > 0.1
    assert np.ptp([m["m00"] for m in moments]) > 0.5 * np.mean([m["m00"] for m in moments])
