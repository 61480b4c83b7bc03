"""Scores of masks and of label following, against values by hand, independent implementations, and known models."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.nn import functional as F

from tests.files import definitions
from utils import metrics, training
from utils.cvae import ConditionalVAE
from utils.data import BACKGROUND, BORDER, PET, normalise
from utils.losses import bce_loss, bernoulli_loss, dice_loss, kl_loss
from utils.results import NOTEBOOKS

UNET, MNIST, CIFAR10 = map(definitions, NOTEBOOKS.values())

# --- Segmentation -----------------------------------------------------------------------------------------------------


def test_scores_of_counts_by_hand():
    # predicted 1 1 0 0, true 1 0 1 0: one pixel of each kind; then nothing predicted, and nothing there
    masks = torch.tensor([[[True, True, False, False], [False] * 4], [[True, False, True, False], [False] * 4]])
    counts = metrics.confusion(*masks)
    assert counts.tolist() == [[1, 1, 1, 1], [0, 0, 0, 4]]
    assert metrics.iou(counts).tolist() == pytest.approx([1 / 3, 1])
    assert metrics.dice(counts).tolist() == pytest.approx([1 / 2, 1])
    assert metrics.pixel_accuracy(counts).tolist() == pytest.approx([1 / 2, 1])


def test_scores_of_masks_against_numpy():
    trimaps, predicted = torch.randint(1, 4, (5, 1, 7, 9), dtype=torch.uint8), torch.rand(5, 1, 7, 9) > 0.4
    scores, (p, t) = metrics.segmentation_scores(predicted, trimaps), (predicted.numpy(), trimaps.numpy())
    expected = {"iou_per_image": np.mean([(a & (b != 2)).sum() / (a | (b != 2)).sum() for a, b in zip(p, t)])}
    truth, inside = t != BACKGROUND, t != BORDER
    for name, counted in (("iou", t > 0), ("iou_border_ignored", inside)):
        expected[name] = (p & truth & counted).sum() / ((p | truth) & counted).sum()
    expected["dice"] = 2 * (p & truth).sum() / (p.sum() + truth.sum())
    expected["pixel_accuracy"] = (p == truth).mean()
    assert scores == pytest.approx(expected)


def test_the_whole_set_differs_from_the_mean_of_images():
    trimaps, predicted = torch.full((2, 1, 4, 4), BACKGROUND), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    trimaps[0], predicted[0] = PET, True  # 16 pixels, all found
    trimaps[1, 0, 0, 0] = PET  # 1 pixel, missed
    scores = metrics.segmentation_scores(predicted, trimaps.byte())
    assert scores["iou"] == pytest.approx(16 / 17)
    assert scores["iou_per_image"] == pytest.approx(1 / 2)


def test_baselines_by_hand():
    train = torch.tensor([PET, PET, BACKGROUND, BACKGROUND], dtype=torch.uint8).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    test = torch.tensor([PET, BACKGROUND, BACKGROUND, BACKGROUND], dtype=torch.uint8).view(1, 1, 2, 2)
    rows = UNET.baseline_scores(train, test)
    assert rows["all_foreground"]["iou"] == pytest.approx(1 / 4)
    assert rows["mean_mask"]["iou"] == pytest.approx(1 / 2)


def test_shares_of_the_pixels_of_which_a_network_is_sure_and_wrong():
    """Five of eight pixels are wrong, three of them with p beyond 0.1 or 0.9."""
    p = torch.tensor([0.95, 0.95, 0.05, 0.6, 0.5, 0.02, 0.98, 0.3]).view(2, 1, 2, 2)
    truth = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1]).view(2, 1, 2, 2).bool()
    # The gradient of BCE is |p - t| / N: 0.95 + 0.95 + 0.98 of 0.05 + 0.95 + 0.95 + 0.6 + 0.5 + 0.02 + 0.98 + 0.7.
    expected = pytest.approx((3 / 8, 3 / 5, 2.88 / 4.75))
    for size in (1, 2):  # images in a batch
        assert UNET.sure_and_wrong(p, truth, bce_loss, size) == expected
    p, truth = p[:1], truth[:1]
    # That of Dice is p (1 - p) |2 t S - 2 I| / S^2, with I = 0.95 + 0.05 = 1 and S = 2.55 + 2 = 4.55.
    slopes = [q * (1 - q) * abs(2 * t * 4.55 - 2) for q, t in zip(p.flatten().tolist(), truth.flatten().tolist())]
    expected = pytest.approx((2 / 4, 2 / 3, (slopes[1] + slopes[2]) / sum(slopes)), rel=1e-4)
    assert UNET.sure_and_wrong(p, truth, dice_loss, 1) == expected


def test_counts_do_not_depend_on_how_many_images_are_counted_at_a_time():
    predicted, target, counted = torch.rand(3, 300, 1, 4, 4) > 0.4
    one_by_one = [metrics.confusion(*each) for each in zip(*(masks.split(1) for masks in (predicted, target, counted)))]
    assert torch.equal(metrics.confusion(predicted, target, counted), torch.cat(one_by_one))


def test_predictions_are_the_models_sigmoid_in_evaluation_mode_and_of_two_views_the_mean(monkeypatch):
    monkeypatch.setattr(training, "best_precision", lambda device: torch.float32)
    model = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1))
    images = torch.randint(256, (37, 3, 8, 8), dtype=torch.uint8)  # more than a batch
    plain, mean = metrics.predict_two_views(model, images)
    assert not model.training
    torch.testing.assert_close(plain, model(normalise(images)).sigmoid())
    assert torch.equal(plain, metrics.predict(model, images))
    mirrored = model(normalise(images.flip(3))).sigmoid().flip(3)
    torch.testing.assert_close(mean, (plain + mirrored) / 2)
    monkeypatch.setattr(training, "best_precision", lambda device: torch.bfloat16)
    rounded = metrics.predict(model, images)
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, plain, atol=0.01, rtol=0)


def test_the_main_effect_of_a_factor_by_hand_and_by_least_squares():
    scores = {("A+X", 0): 1.0, ("A+Y", 0): 2.0, ("B+X", 0): 4.0, ("B+Y", 0): 7.0}  # B - A: 3 with X, 5 with Y
    scores |= {(variant, 1): 10 - score for (variant, _), score in scores.items()}
    assert metrics.effect_by_seed(scores, "A", "B") == {0: 4.0, 1: -4.0}
    assert metrics.effect_by_seed(scores, "X", "Y") == {0: 2.0, 1: -2.0}
    variants, drawn = [f"{a}+{b}+{c}" for a in "AB" for b in "XY" for c in "PQ"], torch.rand(8).double()
    coded = torch.tensor([[1, "B" in name, "Y" in name, "Q" in name] for name in variants]).double()
    fitted = torch.linalg.lstsq(coded, drawn[:, None]).solution[1:, 0]
    rows = {(name, 7): score.item() for name, score in zip(variants, drawn)}
    effects = [metrics.effect_by_seed(rows, *pair)[7] for pair in ("AB", "XY", "PQ")]
    assert effects == pytest.approx(fitted.tolist())


# --- Label following, on models whose right answer is known -----------------------------------------------------------


class Known(nn.Module):
    """Images whose first row holds the label, one-hot, and whose other rows are the style: codes are read off them."""

    def __init__(self, keeps_style, follows, label_in_code=0):
        super().__init__()
        self.keeps_style, self.follows, self.label_in_code = keeps_style, follows, label_in_code

    def encode(self, images, labels):
        code = images.clone()
        code[:, :, 0] *= 1 - self.follows
        code[:, :, 1:] *= self.keeps_style
        return code.flatten(1) + self.label_in_code * labels[:, None], None

    def decode(self, codes, labels):
        images = (codes - self.label_in_code * labels[:, None]).view(-1, 1, 10, 10)
        if self.follows:
            images[:, 0, 0] = F.one_hot(labels, 10).float()
        return torch.logit(images, eps=1e-6)


class Misled(Known):
    """Follows the decoder's label, unless the encoder was given a wrong one: then its output is all grey."""

    def encode(self, images, labels):
        wrong = labels != images[:, 0, 0].argmax(1)
        return torch.where(wrong[:, None], 1.0, super().encode(images, labels)[0]), None

    def decode(self, codes, labels):
        return super().decode(codes, labels) * (codes != 1).any(1)[:, None, None, None]


class FirstRow(nn.Module):
    """A classifier that reads the first row, and answers with the class that many further."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, images):
        return images[:, 0, 0].roll(self.shift, dims=1)


def brightness(images):
    return images[:, :, 1:].sum((1, 2, 3))


def both_ways(images):
    return torch.stack([brightness(images), -brightness(images)], dim=1)


def measure(model, **protocol):
    images, labels = torch.rand(200, 1, 10, 10), torch.arange(200) % 10
    images[:, 0, 0] = F.one_hot(labels, 10).float()
    attributes = {"brightness": brightness, "both": both_ways}
    return metrics.label_following(model, FirstRow(0), images, labels, attributes, guide=FirstRow(1), **protocol)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize(
    ("keeps_style", "follows", "label_in_code", "retrieval"),
    [(1, 0, 0, 1), (0, 1, 0, 0.01), (1, 1, 0, 1), (1, 1, 5, 1)],
)
def test_models_whose_measures_are_known(keeps_style, follows, label_in_code, retrieval):
    measured = measure(Known(keeps_style, follows, label_in_code))
    correlations = [measured.pop(f"{name}_correlation") for name in ("brightness", "both")]
    if keeps_style:
        assert correlations == pytest.approx([1, 1], abs=1e-3)
    assert measured == pytest.approx({
        "wrong_label_agreement": follows,
        "swap_agreement": follows,
        "true_class_agreement": 1 - follows,
        "right_label_agreement": 1,
        "source_retrieval": retrieval,
        "guide_agreement": 0 if follows else 1 / 9,  # it answers with the next class
    })  # fmt: skip


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_the_protocols_differ_in_the_label_that_the_encoder_sees():
    measured = measure(Misled(1, 1))
    assert measured["swap_agreement"] == 1
    assert measured["wrong_label_agreement"] == pytest.approx(1 / 9, abs=0.02), "an all-grey image reads as 0"
    measured = measure(Misled(1, 1), swap=True)
    assert measured["wrong_label_agreement"] == measured["swap_agreement"] == 1
    assert measured["source_retrieval"] == pytest.approx(1, abs=0.02)


def build():
    return ConditionalVAE((1, 12, 12), 10, 3, base_channels=4, depth=1, label_to="both")


def test_the_elbo_is_the_mean_of_the_losses_of_one_draw():
    model, images, labels = build(), torch.rand(7, 1, 12, 12), torch.arange(7)
    torch.manual_seed(1)
    measured = metrics.evaluate_elbo(model, images, labels)
    torch.manual_seed(1)
    logits, mean, log_variance = model(images, labels)
    reconstruction, kl = bernoulli_loss(logits, images).mean().item(), kl_loss(mean, log_variance).mean().item()
    expected = {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
    assert measured == pytest.approx(expected, rel=1e-5)


def test_encoding_and_decoding_do_not_depend_on_the_batch_and_each_protocol_sends_its_labels():
    model, images, true = build(), torch.rand(1100, 1, 12, 12), torch.arange(1100) % 10
    sent = (true + 1) % 10
    for encoder_labels in (sent, true):
        codes = metrics.encode(model, images, encoder_labels)
        outputs = metrics.generate(model, images, sent, encoder_labels)
        with torch.no_grad():
            torch.testing.assert_close(codes, model.encode(images, encoder_labels)[0])
            torch.testing.assert_close(outputs, model.decode(codes, sent).sigmoid())
    torch.testing.assert_close(metrics.generate(model, images, sent), metrics.generate(model, images, sent, sent))


def test_one_baseline_copies_the_source_and_the_other_decodes_a_random_code():
    model, images, labels = build(), torch.rand(5, 1, 12, 12), torch.arange(5)
    baselines = metrics.baselines(model)
    torch.testing.assert_close(
        metrics.generate(baselines["copy the source"], images, labels), images, atol=1e-5, rtol=0
    )
    torch.manual_seed(1)
    made = metrics.generate(baselines["random code"], images, labels)
    torch.manual_seed(1)
    torch.testing.assert_close(made, metrics.decode(model, torch.randn(5, 3), labels))


def test_retrieval_by_hand():
    sources = torch.arange(200.0)[:, None] % 100
    assert metrics.retrieved(sources + 0.4, sources).all()
    assert metrics.retrieved(sources + 0.6, sources).sum() == 2, "only the last of each hundred has no other above it"
    by_chance = metrics.retrieved(torch.rand(10_000, 8), torch.rand(10_000, 8))
    assert by_chance.float().mean().item() == pytest.approx(0.01, abs=4e-3)


def test_the_frechet_distance_by_hand_and_against_scipy():
    one, other = torch.tensor([[-1.0, 0], [1, 0]]).double(), torch.tensor([[1.0, 2], [5, 2]]).double()
    assert metrics.frechet_distance(one, other) == pytest.approx(3**2 + 2**2 + (math.sqrt(8) - math.sqrt(2)) ** 2)
    a, b = torch.randn(50, 6).double(), torch.randn(70, 6).double() @ torch.randn(6, 6).double() + 1
    covariances = [np.cov(each.numpy().T) for each in (a, b)]
    trace = np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + trace
    assert metrics.frechet_distance(a, b) == pytest.approx(expected)
    assert metrics.frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)


def test_realism_of_real_images_of_a_template_and_of_images_half_as_varied():
    images, labels = torch.rand(40, 1, 4, 4), torch.arange(40) % 10
    judge = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 10))
    real = metrics.judge_features(judge, images)
    torch.testing.assert_close(real, images.flatten(1).double())
    same = metrics.realism(real, labels, real, labels)
    assert same == pytest.approx({"frechet": 0, "diversity": 1}, abs=1e-6)
    templates = torch.stack([real[labels == label].mean(0) for label in range(10)])[labels]
    halfway, template = (metrics.realism(made, labels, real, labels) for made in ((real + templates) / 2, templates))
    assert (halfway["diversity"], template["diversity"]) == pytest.approx((0.5, 0))
    assert 0 < halfway["frechet"] < template["frechet"]


def test_the_spread_within_a_class_by_hand():
    features = torch.tensor([[0.0, 0], [3, 4], [0, 0], [9, 9], [9, 10]])
    distance = metrics.mean_pairwise_distance(features, torch.tensor([0, 0, 0, 1, 1]))
    assert distance == pytest.approx(((5 + 0 + 5) / 3 + 1) / 2)


def test_a_linear_probe_reads_noise_by_chance_and_the_label_for_certain():
    labels = torch.randint(10, (4000,))
    for codes, expected in ((torch.randn(4000, 4), 0.1), (F.one_hot(labels, 10)[:, :9].float(), 1)):
        share = MNIST.linear_probe(codes[:2000], labels[:2000], codes[2000:], labels[2000:])
        assert share == pytest.approx(expected, abs=0.04 if expected < 1 else 0)


def test_the_plane_of_the_discriminants_shows_what_the_other_directions_hide():
    labels, codes = torch.arange(600) % 3, 0.1 * torch.randn(600, 5)
    codes[:, 1:3] += torch.tensor([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]])[labels]  # corners of a triangle
    codes[:, 0] *= 100  # large, and says nothing
    plane = metrics.project_on_discriminants(codes, labels)
    assert plane.shape == (600, 2)
    centres = torch.stack([plane[labels == label].mean(0) for label in range(3)])
    assert (torch.cdist(plane, centres).argmin(1) == labels).all()


def test_the_rank_correlation_of_an_attribute_against_numpy_and_with_ties_by_hand():
    sources = torch.randn(500, 2)
    outputs = torch.stack([sources[:, 0] + torch.randn(500), -(sources[:, 1] ** 3)], dim=1)
    ranks = [column[:, 0].numpy().argsort().argsort() for column in (sources, outputs)]
    expected = [np.corrcoef(ranks)[0, 1], -1]
    assert metrics.attribute_correlation(lambda numbers: numbers, sources, outputs).tolist() == pytest.approx(expected)
    tied, other = torch.tensor([10.0, 20, 20, 40]), torch.tensor([1.0, 3, 2, 4])  # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert metrics.attribute_correlation(lambda numbers: numbers, tied, other).item() == pytest.approx(0.9**0.5)


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_outputs_that_are_all_alike_have_no_rank_correlation():
    same = metrics.attribute_correlation(lambda numbers: numbers, torch.arange(9.0), torch.ones(9))
    assert same.isnan().tolist() == [True]


# --- Attributes of images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "length", "shear"), [(4, 40, 0), (8, 40, 0), (6, 20, 0), (6, 40, -0.4), (6, 40, 0.3)]
)
def test_thickness_and_slant_of_a_bar_drawn_with_opencv(width, length, shear):
    canvas = np.zeros((64, 64), np.uint8)
    canvas[32 - length // 2 : 32 + length // 2, 32 - width // 2 : 32 - width // 2 + width] = 255
    canvas = cv2.warpAffine(canvas, np.float32([[1, -shear, 32 * shear], [0, 1, 0]]), (64, 64))
    bar = torch.from_numpy(canvas)[None, None] / 255
    assert MNIST.slant(bar).item() == pytest.approx(shear, abs=0.02)
    if not shear:
        assert MNIST.thickness(bar).item() == pytest.approx(width * length / (width + length), rel=0.02)


def test_thickness_and_slant_of_nothing_colour_and_psnr_by_hand():
    blank = torch.zeros(2, 1, 28, 28)
    assert MNIST.thickness(blank).tolist() == MNIST.slant(blank).tolist() == [0, 0]
    image = torch.stack([torch.full((2, 2), 0.1), torch.eye(2), torch.ones(2, 2)])[None]
    assert CIFAR10.mean_colour(image).tolist() == [pytest.approx([0.1, 0.5, 1])]
    outputs = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    noise = CIFAR10.peak_signal_to_noise(torch.zeros(2, 3, 4, 4), outputs)
    assert noise.tolist() == pytest.approx([20, 40], rel=1e-4)


def test_bits_per_dimension_against_a_gaussian_cut_into_256_levels():
    levels = torch.arange(256, dtype=torch.float64) / 255
    gaussian = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.07)
    share = gaussian.cdf(levels + 1 / 512) - gaussian.cdf(levels - 1 / 512)
    entropy = -torch.special.xlogy(share, share).sum() / share.sum() / math.log(2)
    nats = 0.5 * math.log(2 * math.pi * math.e * 0.07**2)  # minus the expected log-density of one number
    assert CIFAR10.bits_per_dimension(3072 * nats) == pytest.approx(entropy.item(), abs=0.01)


def test_specks_are_ink_apart_from_the_largest_piece_by_hand():
    clean = torch.zeros(1, 6, 6)
    clean[0, 0, 0] = clean[0, 1, 1] = 1.0  # joined by a corner
    faint, speck, blank = clean.clone(), clean.clone(), torch.zeros(1, 6, 6)
    faint[0, 4:, 4] = 0.2  # 0.4 of a pixel in all
    speck[0, 3:, 4] = 0.2
    for images, expected in (
        ([clean], 0),
        ([faint], 0),
        ([speck], 1),
        ([blank], 0),
        ([speck, clean, blank, speck], 0.5),
    ):
        assert MNIST.specks(torch.stack(images)) == expected


def test_a_picture_is_repainted_in_the_means_of_its_source_by_hand():
    pictures, sources = (torch.rand(4, 3, 32, 32) / 5 + 0.4 for _ in range(2))
    tint = sources.mean((2, 3), keepdim=True) - pictures.mean((2, 3), keepdim=True)
    torch.testing.assert_close(CIFAR10.repaint(pictures, sources, 32), pictures + tint)
    even = torch.tensor([[0.2, 0.6], [0.2, 0.6]]).repeat_interleave(16, 0).repeat_interleave(16, 1).expand(1, 3, 32, 32)
    row = CIFAR10.repaint(torch.full((1, 3, 32, 32), 0.9), even, 16)[0, 0, 0]
    by_hand = (0.2 + 0.4 * (torch.arange(32) - 7.5) / 16).clamp(0.2, 0.6)  # the centres lie at 7.5 and 23.5
    torch.testing.assert_close(row, by_hand)
    assert CIFAR10.repaint(pictures, torch.ones(4, 3, 32, 32), 8).max() <= 1
