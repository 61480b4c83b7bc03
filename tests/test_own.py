"""The reader's own images: phone photographs, odd files, and digits from paper."""

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import DataError
from utils.own import digit, opened, photographs


@pytest.fixture
def scene():
    """Left half red, right half blue, 4000 x 3000: the size of a phone's photograph."""
    pixels = np.zeros((3000, 4000, 3), dtype=np.uint8)
    pixels[:, :2000, 0] = 250
    pixels[:, 2000:, 2] = 250
    return Image.fromarray(pixels)


def means(image):
    """Red and blue of the upper left and of the lower right quarter of an image uint8 (3, S, S)."""
    half = image.shape[-1] // 2
    corners = image[:, :half, :half], image[:, half:, half:]
    return [(corner[0].float().mean().item(), corner[2].float().mean().item()) for corner in corners]


def test_a_phones_photograph_is_turned_upright(tmp_path, scene):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: to be turned a quarter clockwise
    scene.save(tmp_path / "phone.jpg", exif=exif)
    names, images = photographs(tmp_path, 64)
    assert names == ["phone.jpg"]
    assert images.dtype == torch.uint8
    assert images.shape == (1, 3, 64, 64)
    (red_above, blue_above), (red_below, blue_below) = means(images[0])  # what was left is now above
    assert red_above > 240 > 10 > blue_above
    assert blue_below > 240 > 10 > red_below


def test_grey_palette_and_transparent_images_become_rgb_on_white(tmp_path):
    Image.new("L", (30, 20), 77).save(tmp_path / "a grey.png")
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "b clear.png")
    Image.new("LA", (30, 20), (0, 255)).save(tmp_path / "c solid.png")
    Image.new("RGB", (30, 20), (0, 0, 255)).convert("P").save(tmp_path / "d palette.png")
    Image.new("CMYK", (30, 20), (0, 0, 0, 0)).save(tmp_path / "e print.jpg")
    (tmp_path / ".hidden").write_text("left alone")
    names, images = photographs(tmp_path, 32)
    assert [name[0] for name in names] == list("abcde")
    expected = [[77, 77, 77], [255, 255, 255], [0, 0, 0], [0, 0, 255], [255, 255, 255]]
    assert images[:, :, 16, 16].tolist() == expected


def broken(folder, kind):
    """A file that cannot be used; its path."""
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("no image")
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "deep":
        Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [("text", "cannot be read as an image"), ("truncated", "cannot be read"), ("deep", "8 bits"), ("no", "is missing")],
)
def test_what_is_no_image_is_named(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(DataError, match=message) as error:
        opened(path)
    assert path.name in str(error.value)


def test_an_enormous_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # an error from twice as many
    with pytest.raises(DataError, match=r"large\.png cannot be read"):
        photographs(tmp_path, 32)


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        photographs(tmp_path, 32)
    with pytest.raises(DataError, match="is no folder"):
        photographs(tmp_path / "absent", 32)


@pytest.mark.parametrize(("ground", "ink"), [(0, 255), (230, 20)])
@pytest.mark.parametrize("size", [28, 900])
def test_a_digit_takes_the_form_of_mnist(tmp_path, ground, ink, size):
    """A thick 1 of any size, dark on light or light on dark, away from the middle."""
    pixels = np.full((size, size + size // 3), ground, dtype=np.uint8)
    pixels[size // 10 : size // 2, size // 2 : size // 2 + size // 8] = ink
    Image.fromarray(pixels).save(tmp_path / "one.png")
    image = digit(tmp_path / "one.png")
    assert image.dtype == torch.uint8
    assert image.shape == (1, 28, 28)
    rows, columns = (image[0].amax(axis) > 0 for axis in (1, 0))
    assert rows.nonzero().flatten().tolist() == list(range(4, 24)), "20 rows, in the middle"
    assert 3 <= columns.sum() <= 8
    assert image.max() == 255
    weights = image[0].double() / image.sum()
    assert (weights.sum(1) @ torch.arange(28.0, dtype=torch.float64)).item() == pytest.approx(13.5, abs=0.5)
    assert (weights.sum(0) @ torch.arange(28.0, dtype=torch.float64)).item() == pytest.approx(13.5, abs=0.5)


def test_a_blank_sheet_is_no_digit(tmp_path):
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    with pytest.raises(DataError, match=r"blank\.png is all of one brightness"):
        digit(tmp_path / "blank.png")
