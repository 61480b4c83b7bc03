"""Stand-in data, drawn by the program: no network and no file is needed, and the same seed gives the same arrays.

`pets` stands in for Oxford-IIIT Pet (colour alone does not tell an animal from its ground), `digits` for MNIST and
`letters` for CIFAR-10. A score on them shows that the code learns, and says nothing about the score on the real data.
Picture i depends on the seed (0 or more) and on i alone, not on `count`. All are drawn finer than asked, and shrunk.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.random import Generator

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap convention of Oxford-IIIT Pet
FUR = np.float32([[205, 125, 60], [45, 40, 42], [235, 228, 216], [135, 133, 136], [115, 78, 50]])
SCENERY = np.float32([[90, 120, 60], [150, 165, 110], [140, 175, 205], [70, 95, 130], [200, 185, 155], [150, 70, 60]])
PALETTE = np.vstack([FUR, SCENERY])  # fur included: otherwise colour would give the animal away
LETTERS = tuple("AEFHLOPTXZ")
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)


def pets(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Furry animals: RGB uint8 (count, size, size, 3), size >= 16, and trimaps uint8, border about size / 32 wide."""
    return draw_each(partial(draw_pet, size), count, seed)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits, light on black: images uint8 (count, 28, 28), and labels uint8 (count,); image i shows i % 10."""
    return draw_each(draw_digit, count, seed)


def letters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A letter on textured ground: images uint8 (count, 32, 32, 3), and labels uint8 (count,), i % 10 of LETTERS."""
    return draw_each(draw_letter, count, seed)


def draw_each(draw: Callable, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and targets, both stacked; each pair is drawn from its number and random numbers of its own."""
    images, targets = zip(*(draw(i, np.random.default_rng([seed, i])) for i in range(count)))
    return np.stack(images), np.uint8(targets)


def texture(colours: np.ndarray, side: int, strength: float, rng: Generator) -> np.ndarray:
    """A smooth blend of a grid of colours under upright strands, float32 (side, side, 3)."""
    strands = cv2.blur(rng.standard_normal((side, side), np.float32), (1, side // 16))
    return cv2.resize(colours, (side, side)) + (strength * strands / strands.std())[..., None]


def shrink(canvas: np.ndarray, size: int) -> np.ndarray:
    """The mean over each pixel of a finer canvas, as uint8."""
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).clip(0, 255).astype(np.uint8)


def draw_pet(size: int, _: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) and its trimap (size, size): a body, and a head with two ears."""
    side = 2 * size
    reach, turn = side * rng.uniform(0.24, 0.32), rng.uniform(-0.6, 0.6)
    body = side * rng.uniform((0.4, 0.58), (0.6, 0.68))
    head = body + reach * np.array([rng.choice([-1, 1]) * rng.uniform(0.2, 0.8), rng.uniform(-1.1, -0.8)])
    mask, spin = np.zeros((side, side), np.float32), [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    cv2.ellipse(mask, (body, reach * rng.uniform((1.4, 1.2), (2, 1.6)), 60 * turn), 1, -1)
    cv2.ellipse(mask, (head, reach * rng.uniform((1.0, 0.9), (1.2, 1.1)), 60 * turn), 1, -1)
    for x in (-1, 1):
        ear = np.array([(0.1 * x, -0.3), (0.55 * x, -0.1), (0.5 * x, -rng.uniform(0.75, 1))]) @ spin
        cv2.fillPoly(mask, [np.int32(head + reach * ear)], 1)
    tufts = rng.standard_normal(mask.shape, np.float32)
    soft, tufts = (cv2.GaussianBlur(layer, (0, 0), side / 64) for layer in (mask, tufts))
    mask = np.uint8(soft + 1.5 * soft * (1 - soft) * tufts / tufts.std() > 0.5)  # a ragged outline
    image = texture(rng.choice(PALETTE, (3, 3)), side, rng.uniform(0, 25), rng)
    for _ in range(rng.integers(5, 12)):  # clutter in the colours and forms of an animal
        shape = side * rng.random(2), side * rng.uniform(0.02, 0.4, 2), rng.uniform(0, 180)
        cv2.ellipse(image, shape, rng.choice(PALETTE).tolist(), -1)
    image = cv2.copyTo(texture(rng.choice(FUR, (2, 2)), side, 28, rng), mask, image)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * max(1, round(size / 32)) + 1] * 2)
    outer, inner = (shrink(255 * bound(mask, kernel), size) > 127 for bound in (cv2.dilate, cv2.erode))
    return shrink(image, size), np.where(inner, PET, np.where(outer, BORDER, BACKGROUND))


def draw_character(character: str, rng: Generator, height: float, pen: int) -> np.ndarray:
    """A character in one of three typefaces, stretched, slanted and moved at random: uint8 (128, 128), 255 is ink."""
    font, canvas = int(rng.choice(FONTS)), np.zeros((128, 128), np.uint8)
    scale = cv2.getFontScaleFromHeight(font, round(height), pen)
    (width, height), _ = cv2.getTextSize(character, font, scale, pen)
    cv2.putText(canvas, character, ((128 - width) // 2, (128 + height) // 2), font, scale, 255, pen, cv2.LINE_AA)
    linear = rng.uniform([[0.8, -0.35], [-0.12, 0.85]], [[1.1, 0.1], [0.12, 1.05]])  # stretch, slant, turn
    shift = 64 - linear @ (64, 64) + rng.uniform(-6, 6, 2)
    return cv2.warpAffine(canvas, np.column_stack([linear, shift]), (128, 128))


def draw_digit(number: int, rng: Generator) -> tuple[np.ndarray, int]:
    """A digit (28, 28) and its label."""
    return shrink(draw_character(str(number % 10), rng, 82, int(rng.integers(6, 15))), 28), number % 10


def draw_letter(number: int, rng: Generator) -> tuple[np.ndarray, int]:
    """A letter (32, 32, 3) in one colour, brighter or darker than its ground, and its label."""
    ground = texture(rng.uniform(40, 215, (2, 2, 3)).astype(np.float32), 128, 25, rng)
    contrast = rng.choice([-1, 1]) * rng.uniform(85, 125) + rng.uniform(-40, 40, 3)
    letter = draw_character(LETTERS[number % 10], rng, 84, 22)
    colour = np.full_like(ground, (np.array(cv2.mean(ground)[:3]) + contrast).clip(0, 255))
    return shrink(cv2.copyTo(colour, letter, ground), 32), number % 10
