"""Stand-in data, drawn by the program: it needs no network and no data file; the same seed gives the same arrays.

What it is: something to run every notebook and test on where the real data cannot be fetched. `pets` stands in for
Oxford-IIIT Pet; colour alone does not solve it, a network has to use shape and texture. `digits` stands in for MNIST;
slant, thickness, proportions and typeface vary. What it is not: photographs and handwriting. A score on it shows that
the code learns, and says nothing about the score on the real data.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from numpy.random import Generator

from utils.checks import check_integers

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap convention of Oxford-IIIT Pet
FUR = np.float32([[205, 125, 60], [45, 40, 42], [235, 228, 216], [135, 133, 136], [115, 78, 50]])
SCENERY = np.float32([[90, 120, 60], [150, 165, 110], [140, 175, 205], [70, 95, 130], [200, 185, 155], [150, 70, 60]])
PALETTE = np.vstack([FUR, SCENERY])  # fur included: otherwise colour would give the animal away
FACE = (25, 22, 20)

# By file: a font looked up by name could be another one on another machine. Left out: bold ones, in which a thick pen
# would close the holes; DejaVu Sans Mono, whose zero has a dot; Computer Modern Roman, whose 2 and 3 curl into loops.
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmss10", "cmtt10")
# What varies from digit to digit, (lowest, highest): the font by its number; the width as a factor; slant and bend, to
# the side, where the digit is 2 high; the angle in radians; the longer side and the shift in pixels; the pen, which
# goes along the outline, in pixels of the finer canvas.
STYLE = {
    "font": (0, len(FONTS)),
    "width": (0.85, 1.4),
    "slant": (-0.5, 0.2),
    "bend": (-0.15, 0.15),
    "angle": (-0.2, 0.2),
    "length": (16, 19),
    "pen": (1, 7),
    "right": (-1.5, 1.5),
    "down": (-1.5, 1.5),
}
DIGIT_SIZE, FINER, SUBPIXEL_BITS = 28, 4, 4
SHAPES = ("disc", "ring", "square", "frame", "triangle", "star", "cross", "bar", "arrow", "moon")
SHAPE_SIZE = 32


def pets(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw furry animals on cluttered ground, with exact masks; picture i depends on size, seed and i, not on count.

    Args:
        count: how many pictures, at least 1.
        size: side of each picture in pixels, at least 16.
        seed: 0 or more.

    Returns:
        Images, uint8 (count, size, size, 3), RGB in 0..255, and trimaps, uint8 (count, size, size): 1 = pet,
        2 = background, 3 = border, a band about size / 32 pixels wide, centred on the outline. Pet and border together
        are the foreground, about 15 to 50 % of a picture.

    Raises:
        ValueError: if an argument is no integer, or below its minimum.
    """
    check_integers(count=count)
    check_integers(16, size=size)
    check_integers(0, seed=seed)
    pairs = [draw_pet(size, np.random.default_rng([seed, index])) for index in range(count)]
    images, trimaps = zip(*pairs, strict=True)
    return np.stack(images), np.stack(trimaps)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw single digits in many styles, as in MNIST; picture i depends on seed and i, not on count.

    Args:
        count: how many pictures, at least 1.
        seed: 0 or more.

    Returns:
        Images, uint8 (count, 28, 28), 0 = background to 255 = ink, each digit 16 to 21 pixels long and near the
        centre, and labels, uint8 (count,): picture i shows the digit i % 10.

    Raises:
        ValueError: if an argument is no integer, or below its minimum.
    """
    check_integers(count=count)
    check_integers(0, seed=seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    # One generator, as seeding one for each would take a fifth of the time; it fills row after row, whatever the count.
    styles = np.random.default_rng(seed).uniform(*zip(*STYLE.values()), (count, len(STYLE)))
    images = [draw_digit(digit, style) for digit, style in zip(labels.tolist(), styles)]
    return np.stack(images), labels


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a coloured shape on textured ground; picture i depends on seed and i, not on count.

    Args:
        count: how many pictures, at least 1.
        seed: 0 or more.

    Returns:
        Images, uint8 (count, 32, 32, 3), RGB in 0..255, each with one shape, and labels, uint8 (count,): picture i
        shows SHAPES[i % 10].

    Raises:
        ValueError: if an argument is no integer, or below its minimum.
    """
    check_integers(count=count)
    check_integers(0, seed=seed)
    labels = (np.arange(count) % len(SHAPES)).astype(np.uint8)
    images = [draw_shape(SHAPES[label], np.random.default_rng([seed, i])) for i, label in enumerate(labels)]
    return np.stack(images), labels


def draw_pet(size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image and its trimap, drawn at twice the size and shrunk, which smooths the edges."""
    side = 2 * size
    silhouette, face = pet_parts(rng)
    shapes = place([ragged(part, rng) for part in silhouette] + face, side, rng)
    tone, mask = np.ones((side, side, 3), np.float32), np.zeros((side, side), np.uint8)
    for part in shapes[: len(silhouette)]:
        cv2.fillPoly(tone, [part], [rng.uniform(0.8, 1.15)] * 3)  # one tone for all would hide the head
        cv2.fillPoly(mask, [part], 255)
    image = cv2.copyTo(pet_coat(side, rng) * tone, mask, clutter(side, rng))
    cv2.fillPoly(image, shapes[len(silhouette) :], FACE)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return image.clip(0, 255).astype(np.uint8), trimap(mask, size)


def trimap(mask: np.ndarray, size: int) -> np.ndarray:
    """Shrink a mask (0 or 255, twice the size) to a trimap; its border reaches equally far to both sides of an edge."""
    reach = max(1, round(size / 32))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    bounds = cv2.dilate(mask, kernel), cv2.erode(mask, kernel)
    outer, inner = (cv2.resize(bound, (size, size), interpolation=cv2.INTER_AREA) > 127 for bound in bounds)
    return np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)


def pet_parts(rng: Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The silhouette from back to front (tail, body, ears, skull) and the face; half the length of the body is 1."""
    x, bend, thickness = np.linspace(0.8, rng.uniform(1.5, 2), 12), rng.uniform(-1.5, 1.5), rng.uniform(0.1, 0.18)
    spine = np.stack([-x, bend * (x - 0.8) ** 2], axis=1)
    tail = np.vstack([spine - [0, thickness], spine[::-1] + [0, thickness]])
    body = polygon(60, (1, rng.uniform(0.5, 0.9)))
    skull, spread = polygon(40, (1, rng.uniform(0.8, 1))), rng.uniform(0.45, 0.7)
    ears = [polygon(3, (0.75, 0.4), np.pi / 2 + lean) + (2 * lean * spread, -0.9) for lean in (-0.5, 0.5)]
    eyes = [polygon(12, (0.13, 0.17)) + (x, -0.1) for x in (-0.4, 0.4)]
    nose = polygon(3, (0.16, 0.16), -np.pi / 2) + (0, 0.35)
    scale, tilt, neck = rng.uniform(0.45, 0.62), rng.uniform(-0.5, 0.5), rng.uniform((0.5, -0.8), (1.05, -0.2))
    head = [turn(part * scale, tilt) + neck for part in (*ears, skull, *eyes, nose)]
    return [tail, body, *head[:3]], head[3:]


def polygon(corners: int, radii: tuple[float, float], angle: float = 0) -> np.ndarray:
    """Corners on an ellipse about the origin, (corners, 2): a triangle, a rectangle or, with many, the ellipse."""
    at = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    return turn(np.stack([np.cos(at), np.sin(at)], axis=1) * radii, angle)


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Rotate points, (..., 2), about the origin by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def ragged(points: np.ndarray, rng: Generator) -> np.ndarray:
    """Cut the outline into short pieces and move each joint a little, as tufts of fur do."""
    closed = np.vstack([points, points[:1]])
    walked = np.append(0, np.hypot(*np.diff(closed, axis=0).T).cumsum())
    joints = np.arange(0, walked[-1], 0.05)
    dense = np.stack([np.interp(joints, walked, along) for along in closed.T], axis=1)
    return dense + rng.normal(0, 0.025, dense.shape)


def place(shapes: list[np.ndarray], side: int, rng: Generator) -> list[np.ndarray]:
    """Turn, mirror, scale and move the shapes together, to lie inside the canvas; in whole pixels, as OpenCV asks."""
    mirror, angle = rng.choice([-1, 1]), rng.uniform(-0.6, 0.6)
    shapes = [turn(shape, angle) * (mirror, 1) for shape in shapes]
    low, extent = np.min(np.vstack(shapes), axis=0), np.ptp(np.vstack(shapes), axis=0)
    # By area, so that the share of foreground does not hang on the tail; but no longer than the canvas.
    scale = min(rng.uniform(0.57, 0.85) * side / np.sqrt(extent.prod()), (side - 1) / extent.max())
    corner = (side - 1 - scale * extent) * rng.random(2)
    return [np.int32(np.round((shape - low) * scale + corner)) for shape in shapes]


def pet_coat(side: int, rng: Generator) -> np.ndarray:
    """Fur, float32 (side, side, 3): patches of one colour or two, strands along one direction."""
    patches = cv2.resize(rng.random((5, 5), np.float32), (side, side), interpolation=cv2.INTER_CUBIC) > 0.6
    return rng.choice(FUR, 2)[patches.astype(int)] + 28 * strands(side, rng)


def clutter(side: int, rng: Generator) -> np.ndarray:
    """Ground that imitates the animal, float32 (side, side, 3): shares its colours, the triangles, fainter strands."""
    ground = cv2.resize(rng.choice(PALETTE, (3, 3)), (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(5, 12)):
        corners, radii = rng.choice([3, 4, 40]), side * rng.uniform(0.01, 0.2, 2)
        shape = polygon(corners, radii, rng.uniform(0, np.pi)) + rng.uniform(0, side, 2)
        cv2.fillPoly(ground, [np.int32(shape)], rng.choice(PALETTE).tolist())
    return ground + rng.uniform(0, 7) * strands(side, rng)


def strands(side: int, rng: Generator) -> np.ndarray:
    """Noise drawn out along one random direction, mean 0 and deviation 1, float32 (side, side, 3)."""
    reach = side // 32
    along = np.int32(np.round(turn(np.array([reach, 0]), rng.uniform(0, np.pi))))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    cv2.line(kernel, (reach - along).tolist(), (reach + along).tolist(), 1)
    noise = cv2.filter2D(rng.standard_normal((side, side), np.float32), -1, kernel / np.sqrt(kernel.sum()))
    return cv2.merge([noise] * 3)  # grey, and much faster to add than one channel broadcast over three


def draw_digit(digit: int, style: np.ndarray) -> np.ndarray:
    """One digit, uint8 (28, 28), styled by a value for each entry of STYLE; drawn finer and shrunk, as the pets are."""
    font, width, slant, bend, angle, length, pen, *shift = style
    points, contours = outline(FONTS[int(font)], digit)
    x, y = points.T
    points = turn(np.stack([width * x + slant * y + bend * y**2, y], axis=1), angle)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) * length / (high - low).max() + shift + (DIGIT_SIZE - 1 / FINER) / 2
    points = (points * (FINER << SUBPIXEL_BITS)).astype(np.int32)
    parts = [points[contour] for contour in contours]
    canvas = np.zeros((FINER * DIGIT_SIZE, FINER * DIGIT_SIZE), np.uint8)
    cv2.fillPoly(canvas, parts, 255, shift=SUBPIXEL_BITS)  # all at once: a contour within another is a hole
    cv2.polylines(canvas, parts, True, 255, int(pen), shift=SUBPIXEL_BITS)
    return cv2.resize(canvas, (DIGIT_SIZE, DIGIT_SIZE), interpolation=cv2.INTER_AREA)


def draw_shape(name: str, rng: Generator) -> np.ndarray:
    """One shape in one colour on ground of another, uint8 (32, 32, 3); drawn finer and shrunk, as the pets are."""
    side = FINER * SHAPE_SIZE
    corners = rng.uniform(40, 215, (2, 2, 3)).astype(np.float32)
    ground = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR) + 12 * strands(side, rng)
    # Brighter or darker than the ground's mean by a third of the range: a shape that does not stand out has no class.
    contrast = rng.choice([-1, 1]) * rng.uniform(85, 125)
    colour = (ground.mean((0, 1)) + contrast + rng.uniform(-40, 40, 3)).clip(0, 255).tolist()
    reach, centre = rng.uniform(0.26, 0.4) * side, side * rng.uniform(0.42, 0.58, 2)
    angle = rng.uniform(-0.25, 0.25)
    parts = [turn(part, angle) * reach + centre for part in shape_parts(name)]
    cv2.fillPoly(ground, [np.int32(np.round(part)) for part in parts], colour)
    return cv2.resize(ground, (SHAPE_SIZE, SHAPE_SIZE), interpolation=cv2.INTER_AREA).clip(0, 255).astype(np.uint8)


def shape_parts(name: str) -> list[np.ndarray]:
    """The outline of a shape and of its hole, if it has one; about 1 from the origin, y down."""
    disc, square = polygon(40, (1, 1)), polygon(4, (1.25, 1.25))
    spikes = polygon(10, (1, 1), np.pi / 10 - np.pi / 2) * np.tile([1.15, 0.45], 5)[:, None]
    cross = [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3)]
    cross += [(-1, 0.3), (-1, -0.3), (-0.3, -0.3)]
    arrow = [(-1.1, -0.25), (0.1, -0.25), (0.1, -0.8), (1.1, 0), (0.1, 0.8), (0.1, 0.25), (-1.1, 0.25)]
    bow = polygon(40, (1.2, 1.2))[9:31]  # the left half of a circle
    moon = np.vstack([bow, bow[::-1] * (0.35, 1)]) + (0.6, 0)
    shapes = {"disc": [disc], "ring": [disc, 0.55 * disc], "square": [square], "frame": [square, 0.6 * square]}
    shapes |= {"triangle": [polygon(3, (1.2, 1.2), np.pi / 2)], "star": [spikes], "cross": [np.array(cross)]}
    shapes |= {"bar": [polygon(4, (1.5, 0.4))], "arrow": [np.array(arrow)], "moon": [moon]}
    return shapes[name]


@cache
def outline(font: str, digit: int) -> tuple[np.ndarray, list[slice]]:
    """The points around a digit, (points, 2), y from -1 at the top to 1, and the slice of them that each contour is."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    contours = TextPath((0, 0), str(digit), size=40, prop=FontProperties(fname=file)).to_polygons()
    points, ends = np.vstack(contours), np.cumsum([0] + [len(contour) for contour in contours])
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) * (2, -2) / (high - low)[1], [slice(*pair) for pair in pairwise(ends)]
