"""What always holds of losses, scores and networks, and what becomes of input that makes no sense: drawn examples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from tests.files import definitions
from utils import classifiers, losses, metrics
from utils.checks import check_integers, check_labels
from utils.cvae import LABEL_TO, LIKELIHOODS, ConditionalVAE
from utils.data import BACKGROUND, PET, draw_wrong_labels
from utils.results import NOTEBOOKS
from utils.unet import UNet

_, PART2A, PART2B = map(definitions, NOTEBOOKS.values())


sizes = st.integers(1, 6)
nonsense = st.sampled_from([0, -1, 2.5, True, None, "8", math.nan])  # in the place of a positive integer


def floats(shape, low, high):
    return arrays(np.float32, shape, elements=st.floats(low, high, width=32)).map(torch.from_numpy)


def pairs(dimensions, bound, low, high):
    """Two tensors of one shape, of values in -bound..bound and in low..high."""
    shapes = st.tuples(*[sizes] * dimensions)
    return shapes.flatmap(lambda shape: st.tuples(floats(shape, -bound, bound), floats(shape, low, high)))


def small_vae(label_to="both", likelihood="bernoulli"):
    torch.manual_seed(0)
    return ConditionalVAE((1, 8, 8), 10, 3, 2, 2, label_to, likelihood)


# --- What always holds ------------------------------------------------------------------------------------------------

each_pixel_loss = pytest.mark.parametrize("loss", [losses.bce_loss, losses.dice_loss, losses.bernoulli_loss])


@each_pixel_loss
@given(pairs(3, 100, 0, 1))
def test_losses_are_finite_not_negative_and_agree_with_numpy(loss, pair):
    logits, targets = pair
    value = loss(logits.requires_grad_(), targets)
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()
    z, t = (part.detach().double().numpy() for part in pair)
    p, nats = 1 / (1 + np.exp(-z)), np.logaddexp(0, z) - t * z
    dice = 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
    expected = {losses.bce_loss: nats.mean(), losses.dice_loss: dice, losses.bernoulli_loss: nats.sum((1, 2))}[loss]
    rounding = 1e-3 if loss is losses.bernoulli_loss else 1e-5  # the first is a sum of logits of up to 100
    assert value.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=rounding)
    assert value.max() <= 1 or loss is not losses.dice_loss


@each_pixel_loss
@given(pairs(3, 100, 0, 1))
def test_losses_refuse_targets_of_another_shape_and_pass_nan_on(loss, pair):
    logits, targets = pair
    bad_logits = logits.clone()
    bad_logits[0, 0, 0] = math.nan
    assert loss(bad_logits, targets).isnan().any()
    with pytest.raises(ValueError, match=r"logits have shape \(.*\), (targets|images) \(1, .*\): they must be equal"):
        loss(logits, targets[None])


@given(pairs(2, 50, -50, 50))
def test_the_kl_divergence_is_not_negative(pair):
    value = losses.kl_loss(*pair)
    assert value.shape == pair[0].shape[:1]
    assert (value >= 0).all()


@given(pairs(2, 1, -1, 1))
def test_scores_lie_in_their_range_and_order(pair):
    predicted, target = (part[:, None] > 0 for part in pair)
    counts = metrics.confusion(predicted, target)
    assert (counts.sum(1) == predicted[0].numel()).all()
    iou, dice, accuracy = metrics.iou(counts), metrics.dice(counts), metrics.pixel_accuracy(counts)
    assert ((iou >= 0) & (iou <= dice) & (dice <= 1) & (accuracy >= 0) & (accuracy <= 1)).all()
    assert torch.allclose(dice, 2 * iou / (1 + iou))
    scores = metrics.segmentation_scores(predicted, torch.where(target, PET, BACKGROUND).byte())
    assert all(0 <= value <= 1 for value in scores.values())


@given(pairs(3, 1, 0, 1).map(lambda pair: pair[1][:, None]))
def test_attributes_are_finite_on_any_image(images):
    for attribute in (PART2A.thickness, PART2A.slant, PART2B.mean_colour):
        assert attribute(images).isfinite().all()
        assert len(attribute(images)) == len(images)
    assert (PART2B.peak_signal_to_noise(images, images) == math.inf).all()
    assert (PART2B.peak_signal_to_noise(images, 1 - images) >= 0).all()


@given(st.integers(0, 5), st.sampled_from(LABEL_TO), st.sampled_from(LIKELIHOODS))
def test_a_conditional_vae_takes_any_number_of_images(count, label_to, likelihood):
    model, images, labels = small_vae(label_to, likelihood), torch.rand(count, 1, 8, 8), torch.arange(count)
    logits, mean, log_variance = model(images, labels)
    assert logits.shape == metrics.decode(model, mean, labels).shape == (count, 1, 8, 8)
    assert mean.shape == log_variance.shape == metrics.encode(model, images, labels).shape == (count, 3)
    if count:
        assert all(math.isfinite(term) for term in metrics.evaluate_elbo(model, images, labels).values())


@given(st.lists(st.integers(0, 9), max_size=50).map(lambda labels: torch.tensor(labels, dtype=torch.int64)))
def test_wrong_labels_are_never_right(labels):
    wrong = draw_wrong_labels(labels)
    assert ((wrong != labels) & (wrong >= 0) & (wrong <= 9)).all()


def test_wrong_labels_spread_over_the_other_nine():
    every = torch.arange(10).repeat(900)
    drawn = draw_wrong_labels(every, torch.Generator().manual_seed(0))
    counts = torch.bincount(10 * every + drawn, minlength=100).view(10, 10)
    assert counts.diagonal().sum() == 0
    assert counts.fill_diagonal_(100).min() > 60


# --- What is refused, and how -----------------------------------------------------------------------------------------

BYTES, FLOATS, LABELS = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.rand(4, 1, 8, 8), torch.arange(4)
TRIMAPS, TRUE = BYTES + PET, BYTES == 0
CODES = torch.rand(100, 3)
CLASSIFIER = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
REFUSED = [
    ("must be equal", losses.gaussian_loss, FLOATS, FLOATS[..., None], torch.tensor(0.0)),
    ("must be equal", metrics.confusion, TRUE[1:], TRUE),
    ("must be equal", metrics.confusion, TRUE, TRUE, TRUE[..., :1]),
    ("masks are torch.uint8 and torch.bool, expected torch.bool", metrics.confusion, TRIMAPS, TRUE),
    ("masks are torch.uint8 and torch.uint8, expected torch.bool", metrics.confusion, TRIMAPS, TRIMAPS),
    (r"arguments have \[3, 4\] rows", metrics.encode, small_vae("decoder"), FLOATS, LABELS[1:]),
    ("0 images: source retrieval needs 100, 200", metrics.retrieved, CODES[:0], CODES[:0]),
    ("99 images: source retrieval needs 100, 200", metrics.retrieved, CODES[1:], CODES[1:]),
    ("must be equal", metrics.retrieved, CODES[:, 1:], CODES),
    (r"codes have shape \(4, 2\), expected \(N, 3\)", small_vae().decode, CODES[:4, 1:], LABELS),
    (r"images have shape \(4, 1, 8, 4\), expected \(N, \*\(1, 8, 8\)\)", small_vae(), FLOATS[..., :4], LABELS),
    (r"images have shape \(1, 8, 8\), expected", small_vae(), FLOATS[0], LABELS),
    ("images are torch.uint8, expected numbers from 0 to 1: see to_unit", small_vae(), BYTES, LABELS),
    *(("images reach from .*, expected 0 to 1", small_vae(), FLOATS + x, LABELS) for x in (-1, 1, math.inf)),
    ("images reach from nan to nan.* its training has diverged", small_vae(), FLOATS + math.nan, LABELS),
    (r"labels are torch.int64 \(1,\), expected torch.int64 \(4,\)", small_vae(), FLOATS, LABELS[:1]),
    ("label_to='nobody'.*: choose from", ConditionalVAE, (1, 8, 8), 10, 3, 2, 2, "nobody"),
    ("likelihood='poisson': choose from", ConditionalVAE, (1, 8, 8), 10, 3, 2, 2, "both", "poisson"),
    ("channels=0: must be an integer of 1 or more", ConditionalVAE, (0, 8, 8), 10, 3, 2, 2, "both"),
    (r"height=8\.0: must be an integer of 1 or more", ConditionalVAE, (1, 8.0, 8), 10, 3, 2, 2, "both"),
    (r"shape \(1, 28, 28\) cannot be halved 3 times", ConditionalVAE, (1, 28, 28), 10, 3, 2, 3, "both"),
    ("hidden=-1: must be an integer of 0 or more", ConditionalVAE, (1, 8, 8), 10, 3, 2, 2, "both", "bernoulli", -1),
    ("down='average'.*: choose from", UNet, 3, 1, 4, 3, "average", "upsample"),
    ("up='nearest': choose from", UNet, 3, 1, 4, 3, "maxpool", "nearest"),
]


@pytest.mark.parametrize(("message", "call", "arguments"), [(message, call, rest) for message, call, *rest in REFUSED])
def test_input_that_makes_no_sense_is_refused_in_words(message, call, arguments):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


@given(st.integers(0, 3), nonsense)
def test_networks_refuse_sizes_that_are_none(place, wrong):
    for_unet, for_vae = [3, 1, 4, 2], [10, 3, 2, 2]
    for_unet[place] = for_vae[place] = wrong
    for build in (
        lambda: UNet(*for_unet, "maxpool", "transposed"),
        lambda: ConditionalVAE((1, 8, 8), *for_vae, "both"),
        lambda: classifiers.build_picture_judge(wrong),
        lambda: classifiers.build_picture_guide(wrong),
        lambda: check_integers(size=wrong),
    ):
        with pytest.raises(ValueError, match="must be an integer of 1 or more"):
            build()


@pytest.mark.parametrize(
    "wrong", [*([0, 1, x, 3] for x in (-1, 10, 2**40)), [0.0, 1.0, 2.0, 3.0], [[0], [1], [2], [3]]]
)
def test_wrong_labels_are_refused_everywhere(wrong):
    model, wrong, codes = small_vae(), torch.tensor(wrong), CODES[:4]
    for call, *arguments in (
        (model, FLOATS, wrong),
        (model.decode, codes, wrong),
        (losses.elbo_terms, model, FLOATS, wrong),
        (metrics.encode, model, FLOATS, wrong),
        (metrics.decode, model, codes, wrong),
        (metrics.evaluate_elbo, model, FLOATS, wrong),
        (metrics.label_following, model, CLASSIFIER, FLOATS, wrong, {}),
        (check_labels, wrong, 4, 10),
    ):
        with pytest.raises(
            ValueError, match=r"labels (reach from .*, expected 0 to 9|are .*, expected torch.int64 \(4,\))"
        ):
            call(*arguments)
