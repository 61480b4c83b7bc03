"""Scores against values counted by hand and against torchvision's or a plain loop's."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from utils.cvae import ConditionalVAE
from utils.data import BACKGROUND, BORDER, PET, normalise
from utils.losses import bernoulli_loss, kl_loss
from utils.metrics import (
    attribute_correlation,
    baseline_scores,
    baselines,
    bits_per_dimension,
    bootstrap_iou_difference,
    confusion,
    decode,
    dice,
    encode,
    evaluate_elbo,
    generate,
    iou,
    label_following,
    linear_discriminant_projection,
    linear_probe,
    mean_colour,
    peak_signal_to_noise,
    pixel_accuracy,
    predict,
    retrieved,
    segmentation_scores,
    slant,
    thickness,
)


def test_by_hand():
    # predicted 1 1 0 0, true 1 0 1 0: one pixel of each kind
    counts = confusion(torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]]))
    assert counts.tolist() == [[1, 1, 1, 1]]
    assert iou(counts).item() == pytest.approx(1 / 3)
    assert dice(counts).item() == pytest.approx(1 / 2)
    assert pixel_accuracy(counts).item() == pytest.approx(1 / 2)


def test_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    trimaps = torch.randint(1, 4, (5, 1, 7, 9), dtype=torch.uint8, generator=generator)
    predicted = torch.rand(5, 1, 7, 9, generator=generator) > 0.4
    both = either = right = inner_both = inner_either = inner_right = inner = 0
    each = []
    for image, trimap in zip(predicted, trimaps):
        i = u = 0
        for p, t in zip(image.flatten().tolist(), trimap.flatten().tolist()):
            true = t in (PET, BORDER)
            i, u, right = i + (p and true), u + (p or true), right + (p == true)
            if t != BORDER:
                inner_both, inner_either = inner_both + (p and true), inner_either + (p or true)
                inner_right, inner = inner_right + (p == true), inner + 1
        both, either = both + i, either + u
        each.append(i / u)
    scores = segmentation_scores(predicted, trimaps)
    assert scores["iou"] == pytest.approx(both / either)
    assert scores["dice"] == pytest.approx(2 * both / (both + either))
    assert scores["pixel_accuracy"] == pytest.approx(right / predicted.numel())
    assert scores["iou_per_image"] == pytest.approx(sum(each) / 5)
    assert scores["iou_border_ignored"] == pytest.approx(inner_both / inner_either)
    assert scores["dice_border_ignored"] == pytest.approx(2 * inner_both / (inner_both + inner_either))
    assert scores["pixel_accuracy_border_ignored"] == pytest.approx(inner_right / inner)


def test_dice_and_iou_agree():
    counts = torch.randint(0, 50, (100, 4))
    torch.testing.assert_close(dice(counts), 2 * iou(counts) / (1 + iou(counts)))


def test_empty_against_empty_is_perfect():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    counts = confusion(nothing, nothing)
    assert (iou(counts).item(), dice(counts).item(), pixel_accuracy(counts).item()) == (1, 1, 1)


def test_whole_set_differs_from_mean_of_images():
    trimaps = torch.full((2, 1, 4, 4), BACKGROUND, dtype=torch.uint8)
    trimaps[0] = PET  # 16 pixels, all found
    trimaps[1, 0, 0, 0] = PET  # 1 pixel, missed
    predicted = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    predicted[0] = True
    scores = segmentation_scores(predicted, trimaps)
    assert scores["iou"] == pytest.approx(16 / 17)
    assert scores["iou_per_image"] == pytest.approx(1 / 2)


def test_baselines_by_hand():
    train = torch.full((2, 1, 2, 2), BACKGROUND, dtype=torch.uint8)
    train[:, :, 0] = PET  # the upper half, always
    test = train[:1].clone()
    test[0, 0, 0, 1] = BACKGROUND  # one pixel of four is pet
    rows = baseline_scores(train, test)
    assert rows["all_foreground"]["iou"] == pytest.approx(1 / 4)
    assert rows["mean_mask"]["iou"] == pytest.approx(1 / 2)


def test_counts_do_not_depend_on_how_many_images_are_counted_at_a_time():
    predicted, target, counted = torch.rand(3, 300, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.4
    one_by_one = [confusion(*(tensor[i : i + 1] for tensor in (predicted, target, counted))) for i in range(300)]
    assert torch.equal(confusion(predicted, target, counted), torch.cat(one_by_one))
    assert confusion(predicted, target).sum() == predicted.numel()


def test_confusion_refuses_what_is_not_bool_or_not_of_one_shape():
    with pytest.raises(ValueError, match=r"predicted is torch.float32 \(1, 4\), expected bool"):
        confusion(torch.zeros(1, 4), torch.zeros(1, 4).bool())
    with pytest.raises(ValueError, match=r"predicted is torch.bool \(1, 3\), expected bool \(1, 4\)"):
        confusion(torch.zeros(1, 3).bool(), torch.zeros(1, 4).bool())


def test_predictions_are_the_models_sigmoid_in_eval_mode_also_of_more_than_one_batch():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.BatchNorm2d(1))
    images = torch.randint(256, (37, 3, 8, 8), dtype=torch.uint8)
    answer = predict(model, images)
    assert not model.training
    torch.testing.assert_close(answer, model(normalise(images)).sigmoid())
    assert answer.shape == (37, 1, 8, 8)


def test_difference_of_iou_by_hand():
    before = torch.tensor([[1, 1, 0, 0]]).repeat(50, 1)  # IoU 1/2 on each image
    after = torch.tensor([[3, 0, 1, 0]]).repeat(50, 1)  # IoU 3/4 on each image
    assert bootstrap_iou_difference(before, after) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_of_a_difference_covers_what_theory_says():
    # One pixel an image, right with probability q: IoU = q, so the difference of two models has a known deviation.
    generator = torch.Generator().manual_seed(1)
    right = (torch.rand(2, 2000, generator=generator) < torch.tensor([[0.6], [0.7]])).long()
    before, after = (torch.stack([r, torch.zeros_like(r), 1 - r, torch.zeros_like(r)], dim=1) for r in right)
    difference, low, high = bootstrap_iou_difference(before, after)
    deviation = ((0.6 * 0.4 + 0.7 * 0.3) / 2000) ** 0.5
    assert difference == pytest.approx((right[1] - right[0]).float().mean().item())
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


# --- Label following, on models whose right answer is known: one copies, one forgets, one follows ---------------------


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
        (
            True,
            False,
            {"wrong_label_agreement": 0, "swap_agreement": 0, "true_class_agreement": 1, "source_retrieval": 1},
        ),
        (
            False,
            True,
            {"wrong_label_agreement": 1, "swap_agreement": 1, "true_class_agreement": 0, "source_retrieval": 0.01},
        ),
        (
            True,
            True,
            {"wrong_label_agreement": 1, "swap_agreement": 1, "true_class_agreement": 0, "source_retrieval": 1},
        ),
    ],
)
def test_models_whose_measures_are_known(keeps_style, obeys, expected):
    images, labels = images_and_labels()
    measured = label_following(Fake(keeps_style, obeys), FirstRow(), images, labels, {"brightness": brightness})
    kept = measured.pop("brightness_correlation")
    assert measured == pytest.approx({"right_label_agreement": 1} | expected)
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
    measured = label_following(Astray(True, True), FirstRow(), images, labels, {})
    assert measured["swap_agreement"] == 1
    assert measured["wrong_label_agreement"] == pytest.approx(0.1 * 10 / 9, abs=0.02), "an all-grey image reads as 0"


def test_evidence_is_the_mean_of_the_losses_of_one_draw():
    torch.manual_seed(0)
    model = ConditionalVAE((1, 12, 12), 10, 3, base_channels=4, depth=1, label_to="both")
    images, labels = torch.rand(7, 1, 12, 12), torch.arange(7)
    torch.manual_seed(1)
    measured = evaluate_elbo(model, images, labels)
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
    assert retrieved(sources + 0.4, sources).all()
    assert retrieved(sources + 0.6, sources).sum() == 2, "only the last of each hundred has no other above it"
    assert retrieved(torch.rand(10_000, 8), torch.rand(10_000, 8)).float().mean().item() == pytest.approx(
        0.01, abs=4e-3
    )
    with pytest.raises(ValueError, match="150 images: source retrieval needs a multiple of 100"):
        retrieved(torch.zeros(150, 2), torch.zeros(150, 2))


def test_leakage_is_chance_for_noise_and_certain_for_the_label():
    torch.manual_seed(0)
    labels = torch.randint(10, (4000,))
    noise, telling = torch.randn(4000, 4), F.one_hot(labels, 10).float()
    assert linear_probe(noise[:2000], labels[:2000], noise[2000:], labels[2000:]) == pytest.approx(0.1, abs=0.04)
    assert linear_probe(telling[:2000], labels[:2000], telling[2000:], labels[2000:]) == 1


def test_the_linear_discriminant_projection_shows_what_the_other_directions_hide():
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    codes = 0.1 * torch.randn(600, 5)
    codes[:, 1:3] += torch.tensor([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]])[labels]  # corners of a triangle
    codes[:, 0] *= 100  # large, and says nothing
    plane = linear_discriminant_projection(codes, labels)
    assert plane.shape == (600, 2)
    centres = torch.stack([plane[labels == label].mean(0) for label in range(3)])
    assert (torch.cdist(plane, centres).argmin(1) == labels).all()


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
    both = torch.stack([other, -(one**3)], dim=1)  # an attribute of two numbers

    def attribute(images):
        return both if images is other else one[:, None].expand(-1, 2)

    correlations = attribute_correlation(attribute, one, other)
    assert correlations.tolist() == [pytest.approx(spearmanr(one, other).statistic), pytest.approx(-1)]


def test_the_baselines_do_what_their_names_say():
    model = ConditionalVAE((1, 12, 12), 10, 3, base_channels=4, depth=1, label_to="both")
    images, labels = torch.rand(5, 1, 12, 12), torch.arange(5)
    copy, random = baselines(model).values()
    torch.testing.assert_close(generate(copy, images, labels), images, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    codes = torch.randn(5, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(generate(random, images, labels), decode(model, codes, labels))


def test_two_protocols_send_labels_to_other_halves():
    model = ConditionalVAE((1, 12, 12), 10, 3, base_channels=4, depth=1, label_to="both")
    images, true, sent = torch.rand(5, 1, 12, 12), torch.arange(5), torch.arange(5) + 1
    torch.testing.assert_close(generate(model, images, sent), decode(model, encode(model, images, sent), sent))
    swapped = decode(model, encode(model, images, true), sent)
    torch.testing.assert_close(generate(model, images, sent, encoder_labels=true), swapped)


# --- Attributes of a picture ------------------------------------------------------------------------------------------


def test_colour_by_hand_and_kept_by_each_channel():
    image = torch.stack([torch.full((2, 2), 0.1), torch.eye(2), torch.ones(2, 2)])[None]
    assert mean_colour(image).tolist() == [pytest.approx([0.1, 0.5, 1])]


def test_a_quality_of_several_numbers_is_the_mean_of_their_correlations():
    def two(images):
        return torch.stack([brightness(images), -brightness(images)], dim=1)

    images, labels = images_and_labels()
    one = label_following(Fake(True, True), FirstRow(), images, labels, {"brightness": brightness})[
        "brightness_correlation"
    ]
    both = label_following(Fake(True, True), FirstRow(), images, labels, {"brightness": two})["brightness_correlation"]
    assert both == pytest.approx(one, abs=1e-3)


def test_the_guides_reading_is_told_apart():
    class Contrary(FirstRow):
        """Reads the next class."""

        def forward(self, images):
            return super().forward(images).roll(1, dims=1)

    images, labels = images_and_labels()
    measured = label_following(Fake(True, True), FirstRow(), images, labels, {}, guide=Contrary())
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
