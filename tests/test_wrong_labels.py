"""The measures, on models whose right answer is known: one that copies, one that forgets, one that obeys."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from utils.cvae import ConditionalVAE
from utils.losses import bernoulli_loss, kl_loss
from utils.wrong_labels import (
    bits_per_dimension,
    colour,
    decode,
    draw_wrong,
    encode,
    evidence,
    found_again,
    leakage,
    obedience,
    peak_signal_to_noise,
    rank_correlation,
    slant,
    telling_plane,
    thickness,
)

COUNT = 200


class Fake(nn.Module):
    """Images whose first row holds the label, one-hot, and whose other rows are the style: codes are read off them."""

    def __init__(self, keeps_style, obeys):
        super().__init__()
        self.keeps_style, self.obeys = keeps_style, obeys

    def encode(self, images, labels):
        code = images.clone()
        if self.obeys:
            code[:, :, 0] = 0
        if not self.keeps_style:
            code[:, :, 1:] = 0
        return code.flatten(1), None

    def decode(self, codes, labels):
        images = codes.view(-1, 1, 10, 10).clone()
        if self.obeys:
            images[:, 0, 0] = F.one_hot(labels, 10).float()
        return torch.logit(images, eps=1e-6)


class FirstRow(nn.Module):
    """A judge that reads the first row."""

    def forward(self, images):
        return images[:, 0, 0]


def images_and_labels():
    torch.manual_seed(0)
    images, labels = torch.rand(COUNT, 1, 10, 10), torch.arange(COUNT) % 10
    images[:, 0, 0] = F.one_hot(labels, 10).float()
    return images, labels


def brightness(images):
    return images[:, :, 1:].sum((1, 2, 3))


@pytest.mark.parametrize(
    ("keeps_style", "obeys", "expected"),
    [
        (True, False, {"wrong_label_agreement": 0, "swap_agreement": 0, "true_class_kept": 1, "style_retention": 1}),
        (False, True, {"wrong_label_agreement": 1, "swap_agreement": 1, "true_class_kept": 0, "style_retention": 0.01}),
        (True, True, {"wrong_label_agreement": 1, "swap_agreement": 1, "true_class_kept": 0, "style_retention": 1}),
    ],
)
def test_models_whose_measures_are_known(keeps_style, obeys, expected):
    images, labels = images_and_labels()
    measured = obedience(Fake(keeps_style, obeys), FirstRow(), images, labels, {"brightness": brightness})
    kept = measured.pop("brightness_kept")
    assert measured == pytest.approx({"own_label_agreement": 1} | expected)
    if keeps_style:
        assert kept == pytest.approx(1, abs=1e-3)


def test_the_protocols_differ_in_what_the_encoder_is_told():
    class Astray(Fake):
        """Obeys the decoder's label, unless the encoder was told a wrong one."""

        def encode(self, images, labels):
            code, _ = super().encode(images, labels)
            misled = labels != images[:, 0, 0].argmax(1)
            return torch.where(misled[:, None], torch.ones_like(code), code), None

        def decode(self, codes, labels):
            images = super().decode(codes, labels)
            return torch.where((codes == 1).all(1)[:, None, None, None], torch.zeros_like(images), images)

    images, labels = images_and_labels()
    measured = obedience(Astray(True, True), FirstRow(), images, labels, {})
    assert measured["swap_agreement"] == 1
    assert measured["wrong_label_agreement"] == pytest.approx(0.1 * 10 / 9, abs=0.02), "an all-grey image reads as 0"


def test_evidence_is_the_mean_of_the_losses_of_one_draw():
    torch.manual_seed(0)
    model = ConditionalVAE((1, 12, 12), 10, 3, base_channels=4, depth=1, label_to="both")
    images, labels = torch.rand(7, 1, 12, 12), torch.arange(7)
    torch.manual_seed(1)
    measured = evidence(model, images, labels)
    torch.manual_seed(1)
    logits, mean, log_variance = model(images, labels)
    reconstruction, kl = bernoulli_loss(logits, images).mean().item(), kl_loss(mean, log_variance).mean().item()
    expected = {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
    assert measured == pytest.approx(expected, rel=1e-5)


def test_encode_and_decode_do_not_depend_on_the_batch():
    model = ConditionalVAE((1, 12, 12), 10, 3, base_channels=4, depth=1, label_to="both")
    images, labels = torch.rand(1100, 1, 12, 12), torch.arange(1100) % 10
    codes = encode(model, images, labels)
    with torch.no_grad():
        torch.testing.assert_close(codes[700:703], model.encode(images[700:703], labels[700:703])[0])
        whole = decode(model, codes, labels)
        torch.testing.assert_close(whole[700:703], model.decode(codes[700:703], labels[700:703]).sigmoid())


def test_found_again_by_hand():
    sources = torch.arange(200.0)[:, None] % 100
    assert found_again(sources + 0.4, sources).all()
    assert found_again(sources + 0.6, sources).sum() == 2, "only the last of each hundred has no other above it"
    assert found_again(torch.rand(10_000, 8), torch.rand(10_000, 8)).float().mean().item() == pytest.approx(
        0.01, abs=4e-3
    )
    with pytest.raises(ValueError, match="150 images: style retention needs a multiple of 100"):
        found_again(torch.zeros(150, 2), torch.zeros(150, 2))


def test_leakage_is_chance_for_noise_and_certain_for_the_label():
    torch.manual_seed(0)
    labels = torch.randint(10, (4000,))
    noise, telling = torch.randn(4000, 4), F.one_hot(labels, 10).float()
    assert leakage(noise[:2000], labels[:2000], noise[2000:], labels[2000:]) == pytest.approx(0.1, abs=0.04)
    assert leakage(telling[:2000], labels[:2000], telling[2000:], labels[2000:]) == 1


def test_the_telling_plane_shows_what_the_other_directions_hide():
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    codes = 0.1 * torch.randn(600, 5)
    codes[:, 1:3] += torch.tensor([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]])[labels]  # corners of a triangle
    codes[:, 0] *= 100  # large, and says nothing
    plane = telling_plane(codes, labels)
    assert plane.shape == (600, 2)
    centres = torch.stack([plane[labels == label].mean(0) for label in range(3)])
    assert (torch.cdist(plane, centres).argmin(1) == labels).all()


def test_wrong_labels_are_wrong_and_spread_over_the_other_nine():
    labels = torch.arange(10).repeat(900)
    sent = draw_wrong(labels, torch.Generator().manual_seed(0))
    assert not (sent == labels).any()
    counts = torch.bincount(10 * labels + sent, minlength=100).view(10, 10)
    assert counts.fill_diagonal_(100).min() > 60
    assert set(sent.unique().tolist()) == set(range(10))


def bar(width, length, shear=0.0):
    """A stroke drawn with OpenCV: float (1, 1, 64, 64)."""
    canvas = np.zeros((64, 64), np.uint8)
    canvas[32 - length // 2 : 32 + length // 2, 32 - width // 2 : 32 - width // 2 + width] = 255
    sheared = cv2.warpAffine(canvas, np.float32([[1, -shear, 32 * shear], [0, 1, 0]]), (64, 64))
    return torch.from_numpy(sheared)[None, None] / 255


@pytest.mark.parametrize(("width", "length"), [(4, 40), (8, 40), (6, 20)])
def test_thickness_of_a_bar_by_hand(width, length):
    assert thickness(bar(width, length)).item() == pytest.approx(width * length / (width + length), rel=0.02)


@pytest.mark.parametrize("shear", [-0.4, 0.0, 0.3])
def test_slant_of_a_sheared_bar(shear):
    assert slant(bar(6, 40, shear)).item() == pytest.approx(shear, abs=0.02)


def test_blank_images_have_no_thickness_and_no_slant():
    blank = torch.zeros(2, 1, 28, 28)
    assert thickness(blank).tolist() == slant(blank).tolist() == [0, 0]


def test_rank_correlation_against_scipy():
    one = torch.randn(500)
    other = one + torch.randn(500)
    assert rank_correlation(one, other).item() == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(one, -(one**3)).item() == pytest.approx(-1)


# --- Qualities of a picture -------------------------------------------------------------------------------------------


def test_colour_by_hand_and_kept_by_each_channel():
    image = torch.stack([torch.full((2, 2), 0.1), torch.eye(2), torch.ones(2, 2)])[None]
    assert colour(image).tolist() == [pytest.approx([0.1, 0.5, 1])]


def test_a_quality_of_several_numbers_is_the_mean_of_their_correlations():
    def two(images):
        return torch.stack([brightness(images), -brightness(images)], dim=1)

    images, labels = images_and_labels()
    one = obedience(Fake(True, True), FirstRow(), images, labels, {"brightness": brightness})["brightness_kept"]
    both = obedience(Fake(True, True), FirstRow(), images, labels, {"brightness": two})["brightness_kept"]
    assert both == pytest.approx(one, abs=1e-3)


def test_the_guides_reading_is_told_apart():
    class Contrary(FirstRow):
        """Reads the next class."""

        def forward(self, images):
            return super().forward(images).roll(1, dims=1)

    images, labels = images_and_labels()
    measured = obedience(Fake(True, True), FirstRow(), images, labels, {}, guide=Contrary())
    assert measured["wrong_label_agreement"] == 1
    assert measured["guide_agreement"] == 0


def test_psnr_by_hand_and_in_the_mean_of_each_image():
    sources = torch.zeros(2, 3, 4, 4)
    outputs = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert peak_signal_to_noise(sources, outputs).tolist() == pytest.approx([20, 40], rel=1e-4)


def test_bits_per_dimension_against_a_gaussian_cut_into_256_levels():
    levels = torch.arange(256, dtype=torch.float64) / 255
    gaussian = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.07)
    share = gaussian.cdf(levels + 1 / 512) - gaussian.cdf(levels - 1 / 512)
    entropy = -torch.special.xlogy(share, share).sum() / share.sum() / math.log(2)
    nats = 0.5 * math.log(2 * math.pi * math.e * 0.07**2)  # minus the expected log-density of one number
    assert bits_per_dimension(3 * nats, (3, 1, 1)) == pytest.approx(entropy.item(), abs=0.01)
