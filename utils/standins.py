"""Stand-in data, drawn by the program: no network and no file is needed, and the same seed gives the same arrays.

`pets` stands in for Oxford-IIIT Pet (colour alone does not tell an animal from its ground), `digits` for MNIST and
`shapes` for CIFAR-10. A score on them shows that the code learns, and says nothing about the score on the real data.
Picture i depends on the seed (0 or more) and on i alone, not on `count`. All are drawn finer than asked, and shrunk.
"""

import cv2
import numpy as np
from numpy.random import Generator

from utils.checks import check_integers

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap convention of Oxford-IIIT Pet
FUR = np.float32([[205, 125, 60], [45, 40, 42], [235, 228, 216], [135, 133, 136], [115, 78, 50]])
SCENERY = np.float32([[90, 120, 60], [150, 165, 110], [140, 175, 205], [70, 95, 130], [200, 185, 155], [150, 70, 60]])
PALETTE = np.vstack([FUR, SCENERY])  # fur included: otherwise colour would give the animal away
# What varies from digit to digit, lowest and highest: width as a factor; slant, bend and height of the middle, where a
# digit is 2 high; angle in degrees; length, pen and shifts in pixels.
STYLE = np.transpose(
    [
        (0.75, 1.3),
        (-0.45, 0.15),
        (-0.15, 0.15),
        (-0.12, 0.12),
        (-12, 12),
        (16, 19),
        (1.4, 3.4),
        (-1.5, 1.5),
        (-1.5, 1.5),
    ]
)


def pets(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Furry animals on clutter: RGB images uint8 (count, size, size, 3) and exact trimaps uint8 (count, size, size).

    The size is 16 or more. The border is a band about size / 32 pixels wide, centred on the outline; with it, a pet fills 15 to 50 %.
    """
    check_integers(16, size=size)
    pairs = [draw_pet(size, rng) for rng in generators(count, seed)]
    images, trimaps = zip(*pairs, strict=True)
    return np.stack(images), np.stack(trimaps)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits, light on black: images uint8 (count, 28, 28), and labels uint8 (count,); image i shows i % 10."""
    check_integers(count=count)
    check_integers(0, seed=seed)
    styles = np.random.default_rng(seed).uniform(*STYLE, (count, 9))  # one generator: seeding many takes a third longer
    images = [draw_digit(i % 10, *style) for i, style in enumerate(styles)]
    return np.stack(images), np.uint8(np.arange(count) % 10)


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A shape on textured ground: RGB images uint8 (count, 32, 32, 3), and labels uint8 (count,), i % 10 of SHAPES."""
    images = [draw_shape(SHAPES[i % 10], rng) for i, rng in enumerate(generators(count, seed))]
    return np.stack(images), np.uint8(np.arange(count) % 10)


def generators(count: int, seed: int) -> list[Generator]:
    """A source of random numbers for each picture."""
    check_integers(count=count)
    check_integers(0, seed=seed)
    return [np.random.default_rng([seed, i]) for i in range(count)]


def arc(radii, centre=(0, 0), start=0.0, end=360.0, points=40) -> np.ndarray:
    """Points on an ellipse from one angle in degrees (right is 0, down 90) to another, both ends included: (points, 2)."""
    at = np.radians(np.linspace(start, end, points))
    return np.stack([np.cos(at), np.sin(at)], axis=1) * radii + centre


def polygon(corners: int, radii, centre=(0, 0), angle=0.0) -> np.ndarray:
    """A regular polygon, one side of it below, stretched, then turned by an angle in degrees: (corners, 2)."""
    half = 180 / corners
    return turn(arc(radii, (0, 0), 90 + half, 450 - half, corners), angle) + centre


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (..., 2), turned about the origin by an angle in degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return points @ np.array([[cos, sin], [-sin, cos]])


def texture(colours: np.ndarray, side: int, strength: float, rng: Generator) -> np.ndarray:
    """A smooth blend of a grid of colours under strands in one direction, float32 (side, side, 3)."""
    reach = max(1, side // 32)
    along = np.int32(np.round(turn(np.array([reach, 0]), rng.uniform(0, 180))))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    cv2.line(kernel, (reach - along).tolist(), (reach + along).tolist(), 1)
    noise = cv2.filter2D(rng.standard_normal((side, side), np.float32), -1, strength * kernel / np.sqrt(kernel.sum()))
    return cv2.resize(colours, (side, side), interpolation=cv2.INTER_LINEAR) + cv2.merge([noise] * 3)


def shrink(canvas: np.ndarray, size: int) -> np.ndarray:
    """The mean over each pixel of a finer canvas, as uint8."""
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).clip(0, 255).astype(np.uint8)


def draw_pet(size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image (size, size, 3) and its trimap (size, size)."""
    side, lean, spread = 2 * size, rng.uniform(-40, 40), rng.uniform(0.45, 0.7)
    head = [polygon(3, (0.4, 0.75), (x * spread, -0.9), 28 * x) for x in (-1, 1)]  # ears
    head += [arc((1, rng.uniform(0.8, 1))), arc((0.13, 0.17), (-0.4, -0.1)), arc((0.13, 0.17), (0.4, -0.1))]
    head += [polygon(3, (0.16, 0.16), (0, 0.35), 180)]  # the nose, after skull and eyes
    scale, tilt, neck = rng.uniform(0.45, 0.62), rng.uniform(-30, 30), rng.uniform((0.5, -0.8), (1.05, -0.2))
    parts = [turn(arc((0.6, rng.uniform(0.1, 0.18)), (-0.5, 0)), lean) - (0.8, 0), arc((1, rng.uniform(0.5, 0.9)))]
    parts = place(parts + [turn(scale * part, tilt) + neck for part in head], side, rng)
    tone, mask = np.ones((side, side, 3), np.float32), np.zeros((side, side), np.float32)
    for part in parts[:5]:
        cv2.fillPoly(tone, [part], [rng.uniform(0.8, 1.15)] * 3)  # one tone for all would hide the head
        cv2.fillPoly(mask, [part], 1)
    noise = rng.standard_normal(mask.shape, np.float32)
    soft, tufts = (cv2.GaussianBlur(layer, (0, 0), side / 64) for layer in (mask, noise))
    mask = np.uint8(soft + 1.5 * soft * (1 - soft) * tufts / tufts.std() > 0.5)  # a ragged outline
    ground = texture(rng.choice(PALETTE, (3, 3)), side, rng.uniform(0, 7), rng)
    for _ in range(rng.integers(5, 12)):  # clutter in the colours and forms of an animal
        radii, centre = side * rng.uniform(0.01, 0.2, 2), side * rng.random(2)
        form = polygon(rng.choice([3, 4, 40]), radii, centre, rng.uniform(0, 180))
        cv2.fillPoly(ground, [np.int32(form)], rng.choice(PALETTE).tolist())
    patches = cv2.resize(rng.random((5, 5), np.float32), (side, side), interpolation=cv2.INTER_CUBIC) > 0.6
    coat = rng.choice(FUR, 2)[patches.astype(int)] + texture(np.zeros((1, 1, 3), np.float32), side, 28, rng)
    image = cv2.copyTo(coat * tone, mask, ground)
    cv2.fillPoly(image, parts[5:], (25, 22, 20))
    reach = max(1, round(size / 32))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    outer, inner = (shrink(255 * bound(mask, kernel), size) > 127 for bound in (cv2.dilate, cv2.erode))
    return shrink(image, size), np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)


def place(parts: list[np.ndarray], side: int, rng: Generator) -> list[np.ndarray]:
    """Turn, mirror, scale and move the parts together, to lie inside the canvas; in whole pixels, as OpenCV asks."""
    mirror, angle = (rng.choice([-1, 1]), 1), rng.uniform(-35, 35)
    parts = [turn(part, angle) * mirror for part in parts]
    low, extent = np.vstack(parts).min(axis=0), np.ptp(np.vstack(parts), axis=0)
    # By area, so that the share of foreground does not hang on the tail; but no longer than the canvas.
    scale = min(rng.uniform(0.57, 0.85) * side / np.sqrt(extent.prod()), (side - 1) / extent.max())
    corner = (side - 1 - scale * extent) * rng.random(2) - scale * low
    return [np.int32(np.round(scale * part + corner)) for part in parts]


def draw_digit(digit: int, width, slant, bend, middle, angle, length, pen, right, down) -> np.ndarray:
    """One digit (28, 28) in the style of one row of numbers, see STYLE."""
    x, y = np.concatenate(STROKES[digit]).T
    points = turn(np.stack([width * x - slant * y + bend * y**2, y + middle * (1 - y**2)], axis=1), angle)
    low, high = points.min(axis=0), points.max(axis=0)
    scale, centre = (
        (length - pen) / (high - low).max(),
        (right + 13.875, down + 13.875),
    )  # the middle of the finer canvas
    points = np.int32(64 * (scale * (points - (low + high) / 2) + centre))  # sixteenths of the finer pixels
    canvas, end = np.zeros((112, 112), np.uint8), len(STROKES[digit][0])
    cv2.polylines(canvas, [points[:end], points[end:]][: len(STROKES[digit])], False, 255, round(4 * pen), shift=4)
    return shrink(canvas, 28)


def draw_shape(name: str, rng: Generator) -> np.ndarray:
    """One shape (32, 32, 3) in one colour."""
    ground = texture(rng.uniform(40, 215, (2, 2, 3)).astype(np.float32), 128, 12, rng)
    # Brighter or darker than the ground's mean by a third of the range: a shape that does not stand out has no class.
    contrast = rng.choice([-1, 1]) * rng.uniform(85, 125) + rng.uniform(-40, 40, 3)
    angle, reach, centre = rng.uniform(-15, 15), rng.uniform(36, 50), rng.uniform(54, 74, 2)
    parts = [np.int32(np.round(turn(part, angle) * reach + centre)) for part in OUTLINES[name]]
    cv2.fillPoly(ground, parts, (ground.mean((0, 1)) + contrast).clip(0, 255).tolist())
    return shrink(ground, 32)


SIX = np.concatenate([arc((0.95, 1.45), (0.45, 0.45), 265, 180), arc((0.5, 0.55), (0, 0.45), 180, 540)])
STROKES = (  # of each digit, 2 high, y down
    [arc((0.6, 1))],
    [np.array([(-0.4, -0.55), (0.05, -1), (0.05, 1)])],
    [np.concatenate([arc((0.55, 0.5), (0, -0.5), -170, 40), [(-0.55, 1), (0.6, 1)]])],
    [np.concatenate([arc((0.5, 0.48), (0, -0.52), -160, 90), arc((0.55, 0.52), (0, 0.48), -90, 160)])],
    [np.array([(0.25, 1), (0.25, -1), (-0.6, 0.4), (0.6, 0.4)])],
    [np.concatenate([[(0.5, -1), (-0.4, -1)], arc((0.55, 0.6), (0, 0.4), -135, 150)])],
    [SIX],
    [np.array([(-0.55, -1), (0.55, -1), (-0.1, 1)])],
    [arc((0.45, 0.48), (0, -0.52)), arc((0.55, 0.52), (0, 0.48))],
    [-SIX],
)
DISC, SQUARE, BAR = arc((1, 1)), polygon(4, (1.25, 1.25)), polygon(4, (0.42, 1.4))
MOON = np.concatenate([arc((1.2, 1.2), (0.6, 0), 90, 270), arc((0.42, 1.2), (0.6, 0), 270, 90)])
ARM = np.array([(-0.3, -1), (0.3, -1), (0.3, -0.3)])
OUTLINES = {  # about 1 from the origin; one outline within another is a hole
    "disc": [DISC],
    "ring": [DISC, 0.55 * DISC],
    "square": [SQUARE],
    "frame": [SQUARE, 0.6 * SQUARE],
    "triangle": [polygon(3, (1.2, 1.2), (0, 0.2))],
    "star": [polygon(10, (1.2, 1.2), angle=18) * np.tile([0.4, 1], 5)[:, None]],
    "cross": [np.concatenate([turn(ARM, angle) for angle in (0, 90, 180, 270)])],
    "bar": [BAR],
    "stripes": [turn(BAR * (0.4, 1) + (x, 0), 90) for x in (-0.7, 0, 0.7)],
    "moon": [MOON],
}
SHAPES = tuple(OUTLINES)
