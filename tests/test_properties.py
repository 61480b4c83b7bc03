"""For every public function: what always holds, and what becomes of input that makes no sense, from drawn examples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from utils import classifiers, cvae, data, losses, metrics, training
from utils.checks import check_integers, check_labels, check_not_negative
from utils.cvae import ConditionalVAE
from utils.data import Batches, Split
from utils.unet import DOWN, UP, BatchNorm2d, UNet

settings.register_profile("course", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("course")

sizes = st.integers(1, 6)
shapes = st.tuples(sizes, sizes, sizes)
nonsense = st.sampled_from([0, -1, 2.5, True, None, "8", math.nan])  # in the place of a positive integer
not_rates = st.sampled_from([-1e-9, math.nan, math.inf, "1", None])


def floats(shape, low, high):
    return arrays(np.float32, shape, elements=st.floats(low, high, width=32)).map(torch.from_numpy)


def pairs(low, high):
    """Two tensors of one shape: anything from -100 to 100, and values in low..high."""
    return shapes.flatmap(lambda shape: st.tuples(floats(shape, -100, 100), floats(shape, low, high)))


def byte_images(count, channels, side):
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=seeded())


def seeded():
    return torch.Generator().manual_seed(0)


def classes(count):
    return torch.arange(count) % 10


def small_vae(label_to="both", likelihood="bernoulli"):
    torch.manual_seed(0)
    return ConditionalVAE((1, 8, 8), 10, 3, 2, 2, label_to, likelihood)


def small_classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


# --- Losses -----------------------------------------------------------------------------------------------------------

LOSSES = [losses.bce_loss, losses.dice_loss, losses.bernoulli_loss]


@given(pairs(0, 1))
def test_losses_are_finite_and_not_negative(pair):
    logits, targets = pair
    logits.requires_grad_()
    for loss in LOSSES:
        value = loss(logits, targets)
        assert value.isfinite().all()
        assert (value >= 0).all()
        [gradient] = torch.autograd.grad(value.sum(), logits)
        assert gradient.isfinite().all()
    assert losses.dice_loss(logits, targets) <= 1


@given(pairs(0, 1))
def test_losses_agree_with_numpy(pair):
    z, t = (part.double().numpy() for part in pair)
    p = 1 / (1 + np.exp(-z))
    dice = 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
    assert losses.dice_loss(*pair).item() == pytest.approx(dice, abs=1e-5)
    bce = (np.logaddexp(0, z) - t * z).mean()
    assert losses.bce_loss(*pair).item() == pytest.approx(bce, rel=1e-4, abs=1e-5)


@given(pairs(0, 1), st.sampled_from([-0.01, 1.01, math.nan, math.inf]))
def test_losses_refuse_targets_out_of_range_and_pass_nan_on(pair, wrong):
    logits, targets = pair
    for loss in LOSSES:
        bad = logits.clone()
        bad[0, 0, 0] = math.nan
        assert loss(bad, targets).isnan().any()
        bad = targets.clone()
        bad[0, 0, 0] = wrong
        with pytest.raises(ValueError, match="expected 0 to 1"):
            loss(logits, bad)
        with pytest.raises(ValueError, match="must be equal"):
            loss(logits, targets[None])
        with pytest.raises(ValueError, match="pixels=0"):
            loss(logits[:0], targets[:0])


@given(pairs(0, 1), st.floats(-3, 3))
def test_the_gaussian_loss_has_its_minimum_at_the_image(pair, log_deviation):
    logits, images = pair
    s = torch.tensor(log_deviation)
    best = images.clamp(1e-6, 1 - 1e-6).logit()
    assert (losses.gaussian_loss(logits, images, s) >= losses.gaussian_loss(best, images, s) - 1e-2).all()
    with pytest.raises(ValueError, match="must be equal"):
        losses.gaussian_loss(logits, images[..., None], s)


@given(st.tuples(sizes, sizes).flatmap(lambda s: st.tuples(floats(s, -50, 50), floats(s, -50, 50))))
def test_the_kl_divergence_is_not_negative(pair):
    value = losses.kl_loss(*pair)
    assert value.shape == pair[0].shape[:1]
    assert (value >= 0).all()
    with pytest.raises(ValueError, match="must be equal"):
        losses.kl_loss(pair[0], pair[1][:, :0])


# --- Metrics ----------------------------------------------------------------------------------------------------------

masks = st.tuples(sizes, sizes).flatmap(lambda s: st.tuples(*[arrays(np.bool_, (s[0], 1, s[1], 4))] * 2))


@given(masks)
def test_scores_lie_in_their_range_and_order(pair):
    predicted, target = map(torch.from_numpy, pair)
    counts = metrics.confusion(predicted, target)
    assert (counts.sum(1) == predicted[0].numel()).all()
    iou, dice, accuracy = metrics.iou(counts), metrics.dice(counts), metrics.pixel_accuracy(counts)
    assert ((iou >= 0) & (iou <= dice) & (dice <= 1) & (accuracy >= 0) & (accuracy <= 1)).all()
    assert torch.allclose(dice, 2 * iou / (1 + iou))
    scores = metrics.segmentation_scores(predicted, torch.where(target, data.PET, data.BACKGROUND).byte())
    assert all(0 <= value <= 1 for value in scores.values())
    difference, low, high = metrics.bootstrap_iou_difference(counts, counts.flip(0), resamples=20)
    assert -1 <= low <= high <= 1
    assert difference == 0


@given(st.sampled_from([0, 4, 255]))
def test_scores_refuse_trimaps_that_are_none(wrong):
    good = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    bad = good.clone()
    bad[1, 0, 0, 0] = wrong
    everything = torch.ones_like(good, dtype=torch.bool)
    for call in (
        lambda: metrics.segmentation_scores(everything, bad),
        lambda: metrics.baseline_scores(bad, good),
        lambda: metrics.baseline_scores(good, bad),
        lambda: metrics.segmentation_scores(everything[:0], good[:0]),
        lambda: metrics.baseline_scores(good[:0], good),
        lambda: metrics.baseline_scores(good, good[..., :2]),
        lambda: metrics.segmentation_scores(everything.float(), good),
        lambda: metrics.bootstrap_iou_difference(torch.zeros(0, 4), torch.zeros(0, 4)),
        lambda: metrics.bootstrap_iou_difference(torch.ones(2, 4), torch.ones(3, 4)),
    ):
        with pytest.raises(ValueError, match=r"expected|must be"):
            call()


def test_predict_refuses_images_that_are_not_bytes():
    model = UNet(3, 1, 2, 1, "maxpool", "transposed")
    assert metrics.predict(model, byte_images(3, 3, 4)).shape == (3, 1, 4, 4)
    assert metrics.predict(model, byte_images(1, 3, 4)[:0]).shape == (0, 1, 4, 4)
    for images in (torch.rand(2, 3, 4, 4), byte_images(2, 3, 4)[0], byte_images(2, 1, 4), byte_images(2, 3, 3)):
        with pytest.raises(ValueError, match=r"expected|multiples"):
            metrics.predict(model, images)


# --- Networks ---------------------------------------------------------------------------------------------------------


@given(
    sizes,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([*DOWN.values()]),
    st.sampled_from([*UP.values()]),
)
def test_a_unet_gives_a_logit_for_each_pixel_or_refuses(count, depth, height, width, down, up):
    model = UNet(3, 2, 2, depth, down, up).eval()
    step = 2**depth
    assert model(torch.zeros(count, 3, height * step, width * step)).shape == (count, 2, height * step, width * step)
    with pytest.raises(ValueError, match=f"needs multiples of {step}"):
        model(torch.zeros(count, 3, height * step + 1, width * step))
    with pytest.raises(ValueError, match="expected"):
        model(torch.zeros(count, 4, step, step))


@given(st.tuples(sizes, st.sampled_from([1, 2, 3, 8, 32, 64]), sizes, sizes))
def test_normalised_maps_have_mean_0_and_variance_1_folded_or_not(shape):
    maps = torch.rand(shape).contiguous(memory_format=torch.channels_last)
    layer = BatchNorm2d(shape[1])
    if maps[:, 0].numel() == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(maps)
        return
    values = layer(maps).detach().transpose(0, 1).flatten(1)  # (C, N * H * W)
    variance = maps.transpose(0, 1).flatten(1).var(1, correction=0)
    torch.testing.assert_close(values.mean(1), torch.zeros(shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.var(1, correction=0), variance / (variance + layer.eps), atol=1e-4, rtol=0)


@given(st.integers(0, 3), nonsense)
def test_networks_refuse_sizes_that_are_none(place, wrong):
    arguments = [3, 1, 4, 2]
    arguments[place] = wrong
    with pytest.raises(ValueError, match="must be an integer of 1 or more"):
        UNet(*arguments, "maxpool", "transposed")
    arguments = [10, 3, 2, 2]
    arguments[place] = wrong
    with pytest.raises(ValueError, match="must be an integer of 1 or more"):
        ConditionalVAE((1, 8, 8), *arguments, "both")
    for build in (
        lambda: classifiers.build_picture_judge(wrong),
        lambda: classifiers.build_picture_guide(wrong),
        lambda: classifiers.Discriminator(3, wrong),
        lambda: check_integers(size=wrong),
    ):
        with pytest.raises(ValueError, match=r"must be an integer of \d+ or more"):
            build()


@given(st.integers(0, 5), st.sampled_from(cvae.LABEL_TO), st.sampled_from(cvae.LIKELIHOODS))
def test_a_conditional_vae_takes_any_number_of_images(count, label_to, likelihood):
    model, images, labels = small_vae(label_to, likelihood), torch.rand(count, 1, 8, 8), classes(count)
    logits, mean, log_variance = model(images, labels)
    assert logits.shape == (count, 1, 8, 8)
    assert mean.shape == log_variance.shape == (count, 3)
    if count:
        terms = losses.elbo_terms(model, images, labels)
        assert all(term.isfinite() for term in terms.values())
        assert losses.guide_loss(model, small_classifier(), images, labels) >= 0
        assert metrics.evaluate_elbo(model, images, labels)["kl"] >= 0
    assert metrics.encode(model, images, labels).shape == (count, 3)
    assert metrics.decode(model, mean, labels).shape == (count, 1, 8, 8)


@given(st.sampled_from([-1, 10, 2**40]), st.sampled_from([-0.01, 1.01, math.nan, math.inf]))
def test_wrong_labels_and_pixels_are_refused_everywhere(label, pixel):
    model, images, labels = small_vae(), torch.rand(4, 1, 8, 8), classes(4)
    bad_labels, bad_images = labels.clone(), images.clone()
    bad_labels[2], bad_images[2] = label, pixel
    discriminator, split = classifiers.Discriminator(1, 2), Split(byte_images(20, 1, 8), classes(20))
    calls = [
        lambda labels: model(images, labels),
        lambda labels: model.decode(torch.zeros(4, 3), labels),
        lambda labels: losses.elbo_terms(model, images, labels),
        lambda labels: losses.guide_loss(model, small_classifier(), images, labels),
        lambda labels: metrics.encode(model, images, labels),
        lambda labels: metrics.decode(model, torch.zeros(4, 3), labels),
        lambda labels: metrics.evaluate_elbo(model, images, labels),
        lambda labels: data.draw_wrong_labels(labels),
        lambda labels: metrics.linear_probe(torch.rand(4, 3), labels, torch.rand(4, 3), classes(4)),
        lambda labels: metrics.linear_probe(torch.rand(4, 3), classes(4), torch.rand(4, 3), labels),
        lambda labels: metrics.linear_discriminant_projection(torch.rand(4, 3), labels),
        lambda labels: discriminator(images, labels),
        lambda labels: losses.Lookalikes(split).find(split.images[:4], labels),
        lambda labels: losses.classifier_loss(small_classifier(), (split.images[:4], labels), 0),
        lambda labels: Batches(Split(split.images[:4], labels), 2, seed=0),
        lambda labels: check_labels(labels, 4, 10),
    ]
    for call in calls:
        for wrong in (bad_labels, labels.float(), labels[:, None]):
            with pytest.raises(ValueError, match="expected"):
                call(wrong)
    for call in (model.encode, lambda images, labels: model(images, labels)):
        for wrong in (bad_images, images[0], split.images[:4], images[..., :4]):
            with pytest.raises(ValueError, match="expected"):
                call(wrong, labels)


@given(st.integers(2, 9), st.integers(1, 12))
def test_the_singular_values_of_an_orthogonalised_matrix_are_about_one(rows, columns):
    matrix = training.orthogonalise(torch.randn(rows, columns, generator=seeded()))
    assert matrix.shape == (rows, columns)
    assert torch.linalg.svdvals(matrix).max() < 1.3


@given(not_rates)
def test_an_optimiser_refuses_rates_that_are_none(wrong):
    for name in ("lr", "momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name}=.*: must be a number of 0 or more"):
            training.Muon(
                [nn.Parameter(torch.ones(2))], **({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | {name: wrong})
            )
    with pytest.raises(ValueError, match="most="):
        classifiers.add_noise(torch.zeros(1, 1, 2, 2), wrong)
    with pytest.raises(ValueError, match="number="):
        check_not_negative(number=wrong)


# --- What a wrong label does ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=0, max_size=50))
def test_a_wrong_label_is_never_the_right_one(labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    wrong = data.draw_wrong_labels(labels)
    assert (wrong != labels).all()
    assert ((wrong >= 0) & (wrong <= 9)).all()


@given(st.integers(1, 3))
def test_label_following_is_a_share(hundreds):
    images, labels = torch.rand(100 * hundreds, 1, 8, 8, generator=seeded()), classes(100 * hundreds)
    qualities = {"thickness": metrics.thickness, "slant": metrics.slant, "colour": metrics.mean_colour}
    shares = metrics.label_following(small_vae(), small_classifier(), images, labels, qualities, small_classifier())
    assert all(-1 <= share <= 1 for share in shares.values())
    assert shares["guide_agreement"] == shares["wrong_label_agreement"]
    for bad in (labels.new_zeros(len(labels)), labels + 1):
        with pytest.raises(ValueError, match=r"different_labels=1|expected"):
            metrics.label_following(small_vae(), small_classifier(), images, bad, {})


@given(st.integers(2, 20).flatmap(lambda n: st.tuples(floats((n,), -10, 10), floats((n,), -10, 10))))
def test_a_rank_correlation_is_symmetric_and_within_one(rows):
    value = metrics.attribute_correlation(lambda row: row, *rows)
    assert -1.001 <= value <= 1.001
    assert torch.isclose(value, metrics.attribute_correlation(lambda row: row, *rows[::-1]))


@given(st.tuples(sizes, st.just(1), sizes, sizes).flatmap(lambda shape: floats(shape, 0, 1)))
def test_qualities_are_finite_on_any_image(images):
    for quality in (metrics.thickness, metrics.slant, metrics.mean_colour):
        assert quality(images).isfinite().all()
        assert len(quality(images)) == len(images)
    assert (metrics.peak_signal_to_noise(images, images) == math.inf).all()
    assert (metrics.peak_signal_to_noise(images, 1 - images) >= 0).all()
    with pytest.raises(ValueError, match="must be equal"):
        metrics.peak_signal_to_noise(images, images[:, :0])


@given(st.integers(1, 3).map(lambda n: 100 * n), st.integers(2, 5))
def test_codes_are_found_again_among_themselves(count, size):
    codes = torch.randn(count, size, generator=seeded())
    assert metrics.retrieved(codes, codes).all()
    assert 0 <= metrics.linear_probe(codes, classes(count), codes, classes(count)) <= 1
    assert metrics.linear_discriminant_projection(codes, classes(count)).shape == (count, 2)
    for bad in (codes[:99], codes[:, :1]):
        with pytest.raises(ValueError, match=r"must be|multiple of 100"):
            metrics.retrieved(bad, codes)
    with pytest.raises(ValueError, match="latent_size=1"):
        metrics.linear_discriminant_projection(codes[:, :1], classes(count))
    assert metrics.bits_per_dimension(0.0, (1, 8, 8)) == 8


@given(st.integers(4, 9))
def test_the_label_following_loss_is_finite_from_four_images_on(count):
    split = Split(byte_images(20, 1, 8), classes(20))
    models = nn.ModuleDict({"vae": small_vae(), "discriminator": classifiers.Discriminator(1, 2)})
    weights = {"guide": 1.0, "discriminator": 1.0, "lookalike": 1.0}
    teachers = losses.Teachers(small_classifier(), 0.1, losses.Lookalikes(split))
    batch = split.images[:count], split.targets[:count]
    terms = losses.label_following_loss(models, batch, teachers, weights, warmup=1.0)
    assert all(term.isfinite() for term in terms.values())
    assert classifiers.random_shift(torch.rand(count, 1, 8, 8), 3).shape == (count, 1, 8, 8)
    three = split.images[:3], split.targets[:3]
    with pytest.raises(ValueError, match="images=3: must be an integer of 4 or more"):
        losses.label_following_loss(models, three, teachers, weights, warmup=1.0)
    with pytest.raises(ValueError, match="images of class 9=0"):
        losses.Lookalikes(Split(split.images[:9], split.targets[:9]))
    with pytest.raises(ValueError, match="reach=-1"):
        classifiers.random_shift(torch.rand(1, 1, 8, 8), -1)


def test_classifiers_read_any_number_of_images_and_count_none_of_none():
    classifier = small_classifier()
    for count in (1, 101):
        assert classifiers.predict_labels(classifier, torch.rand(count, 1, 8, 8)).shape == (count,)
    assert 0 <= classifiers.accuracy(classifier, Split(byte_images(3, 1, 8), classes(3))) <= 1
    with pytest.raises(ValueError, match="images=0"):
        classifiers.accuracy(classifier, Split(byte_images(3, 1, 8)[:0], classes(0)))
    with pytest.raises(ValueError, match="images=0"):
        losses.classifier_loss(classifier, (byte_images(1, 1, 8)[:0], classes(0)))
