"""Stand-in data, drawn by the program: no network and no file is needed, and the same seed gives the same arrays.

`pets` stands in for Oxford-IIIT Pet (colour alone does not tell an animal from its ground), `digits` for MNIST and
`shapes` for CIFAR-10. A score on them shows that the code learns, and says nothing about the score on the real data.
Picture i depends on the seed (0 or more) and on i alone, not on `count`. All are drawn finer than asked, and shrunk.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.random import Generator

from utils.checks import check_integers

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap convention of Oxford-IIIT Pet
FUR = np.float32([[205, 125, 60], [45, 40, 42], [235, 228, 216], [135, 133, 136], [115, 78, 50]])
SCENERY = np.float32([[90, 120, 60], [150, 165, 110], [140, 175, 205], [70, 95, 130], [200, 185, 155], [150, 70, 60]])
PALETTE = np.vstack([FUR, SCENERY])  # fur included: otherwise colour would give the animal away


def pets(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Furry animals: RGB uint8 (count, size, size, 3), size >= 16, and trimaps uint8, border about size / 32 wide."""
    check_integers(16, size=size)
    return draw_each(partial(draw_pet, size), count, seed)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits, light on black: images uint8 (count, 28, 28), and labels uint8 (count,); image i shows i % 10."""
    return draw_each(draw_digit, count, seed)


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A shape on textured ground: RGB images uint8 (count, 32, 32, 3), and labels uint8 (count,), i % 10 of SHAPES."""
    return draw_each(draw_shape, count, seed)


def draw_each(draw: Callable, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and targets, both stacked; each pair is drawn from its number and random numbers of its own."""
    check_integers(count=count)
    check_integers(0, seed=seed)
    images, targets = zip(*(draw(i, np.random.default_rng([seed, i])) for i in range(count)))
    return np.stack(images), np.stack(targets)


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (N, 2), turned about the origin by an angle in degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return points @ np.array([[cos, sin], [-sin, cos]])


def arc(radii, centre=(0, 0), start=0.0, end=360.0, points=40) -> np.ndarray:
    """Points (N, 2) on an ellipse, from one angle in degrees to another (right is 0, down 90), both included."""
    at = np.radians(np.linspace(start, end, points))
    return np.stack([np.cos(at), np.sin(at)], axis=1) * radii + centre


def polygon(corners: int, radii, centre=(0, 0), angle=0.0) -> np.ndarray:
    """A regular polygon that stands on a side, stretched, turned by an angle in degrees and moved: (corners, 2)."""
    return turn(arc(radii, (0, 0), 90 + 180 / corners, 450 - 180 / corners, corners), angle) + centre


def texture(colours: np.ndarray, side: int, strength: float, rng: Generator) -> np.ndarray:
    """A smooth blend of a grid of colours under strands in one direction, float32 (side, side, 3)."""
    reach = side // 32
    along = np.int32(np.round(turn(np.array([reach, 0]), rng.uniform(0, 180))))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    cv2.line(kernel, (reach - along).tolist(), (reach + along).tolist(), 1)
    noise = cv2.filter2D(rng.standard_normal((side, side), np.float32), -1, strength * kernel / np.sqrt(kernel.sum()))
    return cv2.resize(colours, (side, side), interpolation=cv2.INTER_LINEAR) + cv2.merge([noise] * 3)


def shrink(canvas: np.ndarray, size: int) -> np.ndarray:
    """The mean over each pixel of a finer canvas, as uint8."""
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).clip(0, 255).astype(np.uint8)


def draw_pet(size: int, _: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) and its trimap (size, size)."""
    side, ears, scale, tilt = 2 * size, rng.uniform(0.45, 0.7), rng.uniform(0.45, 0.62), rng.uniform(-30, 30)
    head = [polygon(3, (0.4, 0.75), (x * ears, -0.9), 28 * x) for x in (-1, 1)] + [arc((1, rng.uniform(0.8, 1)))]
    head += [arc((0.13, 0.17), (x, -0.1)) for x in (-0.4, 0.4)] + [polygon(3, (0.16, 0.16), (0, 0.35), 180)]
    neck, tail = rng.uniform((0.5, -0.8), (1, -0.2)), turn(arc((0.6, 0.14), (-0.5, 0)), rng.uniform(-40, 40)) - (0.8, 0)
    parts = [tail, arc((1, rng.uniform(0.5, 0.9))), *(turn(scale * part, tilt) + neck for part in head)]
    pose, mirror, reach = rng.uniform(-35, 35), rng.choice([-1, 1]), side * rng.uniform(0.23, 0.32)
    centre = side * rng.uniform((0.42, 0.48), (0.58, 0.66))
    parts = [np.int32(reach * turn(part, pose) * (mirror, 1) + centre) for part in parts]
    tone, mask = np.ones((side, side, 3), np.float32), np.zeros((side, side), np.float32)
    for part in parts[:5]:
        cv2.fillPoly(tone, [part], [rng.uniform(0.8, 1.15)] * 3)  # one tone for all would hide the head
        cv2.fillPoly(mask, [part], 1)
    tufts = rng.standard_normal(mask.shape, np.float32)
    soft, tufts = (cv2.GaussianBlur(layer, (0, 0), side / 64) for layer in (mask, tufts))
    mask = np.uint8(soft + 1.5 * soft * (1 - soft) * tufts / tufts.std() > 0.5)  # a ragged outline
    image = texture(rng.choice(PALETTE, (3, 3)), side, rng.uniform(0, 7), rng)
    for _ in range(rng.integers(5, 12)):  # clutter in the colours and forms of an animal
        form = polygon(rng.choice([3, 4, 40]), rng.uniform(0.01, 0.2, 2), rng.random(2), rng.uniform(0, 180))
        cv2.fillPoly(image, [np.int32(side * form)], rng.choice(PALETTE).tolist())
    image = cv2.copyTo(texture(rng.choice(FUR, (2, 2)), side, 28, rng) * tone, mask, image)
    cv2.fillPoly(image, parts[5:], (25, 22, 20))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * max(1, round(size / 32)) + 1] * 2)
    outer, inner = (shrink(255 * bound(mask, kernel), size) > 127 for bound in (cv2.dilate, cv2.erode))
    return shrink(image, size), np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)


def draw_digit(number: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """A digit (28, 28) and its label."""
    width, slant, bend, middle, angle, length, pen, *centre = rng.uniform(LOWEST, HIGHEST)
    strokes = STROKES[number % 10]
    x, y = np.concatenate(strokes).T
    points = turn(np.stack([width * x - slant * y + bend * y**2, y + middle * (1 - y**2)], axis=1), angle)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) * ((length - pen) / (high - low).max()) + centre
    points, canvas = np.int32(64 * points), np.zeros((112, 112), np.uint8)  # sixteenths of pixels four times as fine
    lines = [points[: len(strokes[0])], points[len(strokes[0]) :]][: len(strokes)]
    cv2.polylines(canvas, lines, False, 255, round(4 * pen), shift=4)
    return shrink(canvas, 28), np.uint8(number % 10)


def draw_shape(number: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """A shape (32, 32, 3) in one colour, brighter or darker than its ground, and its label."""
    ground = texture(rng.uniform(40, 215, (2, 2, 3)).astype(np.float32), 128, 12, rng)
    contrast = rng.choice([-1, 1]) * rng.uniform(85, 125) + rng.uniform(-40, 40, 3)
    angle, reach, centre = rng.uniform(-15, 15), rng.uniform(36, 50), rng.uniform(54, 74, 2)
    parts = [np.int32(turn(part, angle) * reach + centre) for part in OUTLINES[SHAPES[number % 10]]]
    cv2.fillPoly(ground, parts, (ground.mean((0, 1)) + contrast).clip(0, 255).tolist())
    return shrink(ground, 32), np.uint8(number % 10)


# A digit's width (a factor), slant, bend, height of its middle, angle in degrees; its length, pen and centre in pixels.
LOWEST = np.array([0.75, -0.45, -0.15, -0.12, -12, 16, 1.4, 12.4, 12.4])
HIGHEST = np.array([1.3, 0.15, 0.15, 0.12, 12, 19, 3.1, 15.4, 15.4])
SIX = np.vstack([arc((0.95, 1.45), (0.45, 0.45), 265, 180), arc((0.5, 0.55), (0, 0.45), 180, 540)])
STROKES = (  # of each digit, 2 high, y down
    [arc((0.6, 1))],
    [np.array([(-0.4, -0.55), (0, -1), (0, 1)])],
    [np.vstack([arc((0.55, 0.5), (0, -0.5), -170, 40), [(-0.55, 1), (0.6, 1)]])],
    [np.vstack([arc((0.5, 0.48), (0, -0.52), -160, 90), arc((0.55, 0.52), (0, 0.48), -90, 160)])],
    [np.array([(0.35, 1), (0.35, -1), (-0.75, 0.45), (0.75, 0.45)])],
    [np.vstack([[(0.5, -1), (-0.4, -1)], arc((0.55, 0.6), (0, 0.4), -135, 150)])],
    [SIX],
    [np.array([(-0.55, -1), (0.55, -1), (-0.1, 1)])],
    [arc((0.45, 0.48), (0, -0.52)), arc((0.55, 0.52), (0, 0.48))],
    [-SIX],
)
DISC, SQUARE, BAR = arc((1, 1)), polygon(4, (1.25, 1.25)), polygon(4, (0.42, 1.4))
STAR = polygon(10, (1.2, 1.2), angle=18) * np.tile([0.4, 1], 5)[:, None]
CROSS = np.vstack([turn([(-0.23, -1.15), (0.23, -1.15), (0.23, -0.23)], angle) for angle in (0, 90, 180, 270)])
MOON = np.vstack([arc((1.2, 1.2), (0.6, 0), 90, 270), arc((0.42, 1.2), (0.6, 0), 270, 90)])
# The outlines of each shape, about 1 from the origin; one within another is a hole.
OUTLINES = {"disc": [DISC], "ring": [DISC, 0.55 * DISC], "frame": [SQUARE, 0.6 * SQUARE], "star": [STAR]}
OUTLINES |= {"triangle": [polygon(3, (1.2, 1.2), (0, 0.2))], "cross": [CROSS], "bar": [BAR], "moon": [MOON]}
OUTLINES |= {"stripes": [turn(BAR * (0.4, 1) + (x, 0), 90) for x in (-0.7, 0, 0.7)]}
OUTLINES |= {"checks": [0.5 * SQUARE - 0.45, 0.5 * SQUARE + 0.45]}
SHAPES = tuple(OUTLINES)
