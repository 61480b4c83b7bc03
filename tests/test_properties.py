"""For every public function: what always holds, and what becomes of input that makes no sense, from drawn examples."""

# ruff: noqa: PT017 - where input may be good or bad, an error need not come, and must say what it should if it does

import io
import json
import math
import random
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn

from tests.files import idx
from utils import (
    cvae,
    data,
    diagrams,
    faithful,
    judge,
    labelled,
    losses,
    metrics,
    muon,
    own,
    parameters,
    plots,
    report,
    run,
    standins,
    storage,
    wrong_labels,
)
from utils.checks import check_integers, check_labels, check_not_negative
from utils.cvae import ConditionalVAE
from utils.data import DataError, PetBatches, Split
from utils.labelled import LabelledBatches, LabelledSplit
from utils.normalisation import BatchNorm2d
from utils.parameters import ParameterError
from utils.published import Published, PublishedError, round_weights
from utils.unet import DOWN, UP, UNet

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
    difference, low, high = metrics.iou_difference(counts, counts.flip(0), resamples=20)
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
        lambda: metrics.baselines(bad, good),
        lambda: metrics.baselines(good, bad),
        lambda: metrics.segmentation_scores(everything[:0], good[:0]),
        lambda: metrics.baselines(good[:0], good),
        lambda: metrics.baselines(good, good[..., :2]),
        lambda: metrics.segmentation_scores(everything.float(), good),
        lambda: metrics.iou_difference(torch.zeros(0, 4), torch.zeros(0, 4)),
        lambda: metrics.iou_difference(torch.ones(2, 4), torch.ones(3, 4)),
    ):
        with pytest.raises(ValueError, match=r"expected|must be"):
            call()


def test_predict_refuses_images_that_are_not_bytes():
    model = UNet(3, 1, 2, 1, "maxpool", "transposed")
    assert metrics.predict(model, byte_images(3, 3, 4), batch_size=2).shape == (3, 1, 4, 4)
    assert metrics.predict(model, byte_images(1, 3, 4)[:0]).shape == (0, 1, 4, 4)
    for images in (torch.rand(2, 3, 4, 4), byte_images(2, 3, 4)[0], byte_images(2, 1, 4), byte_images(2, 3, 3)):
        with pytest.raises(ValueError, match=r"expected|multiples"):
            metrics.predict(model, images)
    with pytest.raises(ValueError, match="batch_size=0"):
        metrics.predict(model, byte_images(2, 3, 4), batch_size=0)


# --- Networks ---------------------------------------------------------------------------------------------------------


@given(sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([*DOWN]), st.sampled_from([*UP]))
def test_a_unet_gives_a_logit_for_each_pixel_or_refuses(count, depth, height, width, down, up):
    model = UNet(3, 2, 2, depth, down, up).eval()
    step = 2**depth
    assert model(torch.zeros(count, 3, height * step, width * step)).shape == (count, 2, height * step, width * step)
    with pytest.raises(ValueError, match=f"needs multiples of {step}"):
        model(torch.zeros(count, 3, height * step + 1, width * step))
    with pytest.raises(ValueError, match="expected"):
        model(torch.zeros(count, 4, step, step))
    assert isinstance(diagrams.draw_unet(model, 4 * step), plt.Figure)
    assert isinstance(diagrams.draw_encoder_decoder(model, 4 * step), plt.Figure)
    plt.close("all")


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
        lambda: judge.build_judge((1, 28, 28), wrong),
        lambda: judge.build_guide((1, wrong, 28), 10),
        lambda: judge.build_picture_judge(10, wrong),
        lambda: judge.build_picture_guide(10, wrong),
        lambda: faithful.Discriminator(3, wrong),
        lambda: standins.digits(wrong, 0),
        lambda: standins.shapes(wrong, 0),
        lambda: standins.pets(2, wrong, 0),
        lambda: own.photographs(Path(), wrong),
        lambda: PetBatches(pets(4), 2, [16, wrong], seed=0),
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
        terms = cvae.elbo_terms(model, images, labels)
        assert all(term.isfinite() for term in terms.values())
        assert cvae.guide_loss(model, small_classifier(), images, labels) >= 0
        assert wrong_labels.evidence(model, images, labels)["kl"] >= 0
    assert wrong_labels.encode(model, images, labels).shape == (count, 3)
    assert wrong_labels.decode(model, mean, labels).shape == (count, 1, 8, 8)


@given(st.sampled_from([-1, 10, 2**40]), st.sampled_from([-0.01, 1.01, math.nan, math.inf]))
def test_wrong_labels_and_pixels_are_refused_everywhere(label, pixel):
    model, images, labels = small_vae(), torch.rand(4, 1, 8, 8), classes(4)
    bad_labels, bad_images = labels.clone(), images.clone()
    bad_labels[2], bad_images[2] = label, pixel
    discriminator, split = faithful.Discriminator(1, 2), LabelledSplit(byte_images(20, 1, 8), classes(20))
    calls = [
        lambda labels: model(images, labels),
        lambda labels: model.decode(torch.zeros(4, 3), labels),
        lambda labels: cvae.elbo_terms(model, images, labels),
        lambda labels: cvae.guide_loss(model, small_classifier(), images, labels),
        lambda labels: wrong_labels.encode(model, images, labels),
        lambda labels: wrong_labels.decode(model, torch.zeros(4, 3), labels),
        lambda labels: wrong_labels.evidence(model, images, labels),
        lambda labels: wrong_labels.draw_wrong(labels),
        lambda labels: wrong_labels.leakage(torch.rand(4, 3), labels, torch.rand(4, 3), classes(4)),
        lambda labels: wrong_labels.leakage(torch.rand(4, 3), classes(4), torch.rand(4, 3), labels),
        lambda labels: wrong_labels.telling_plane(torch.rand(4, 3), labels),
        lambda labels: discriminator(images, labels),
        lambda labels: faithful.Lookalikes(split).find(split.images[:4], labels),
        lambda labels: judge.classifier_loss(small_classifier(), (split.images[:4], labels), 0),
        lambda labels: LabelledBatches(LabelledSplit(split.images[:4], labels), 2, seed=0),
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
    matrix = muon.orthogonalised(torch.randn(rows, columns, generator=seeded()))
    assert matrix.shape == (rows, columns)
    assert torch.linalg.svdvals(matrix).max() < 1.3


@given(not_rates)
def test_an_optimiser_refuses_rates_that_are_none(wrong):
    for name in ("lr", "momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name}=.*: must be a number of 0 or more"):
            muon.Muon(
                [nn.Parameter(torch.ones(2))], **({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | {name: wrong})
            )
    with pytest.raises(ValueError, match="most="):
        judge.with_noise(torch.zeros(1, 1, 2, 2), wrong)
    with pytest.raises(ValueError, match="number="):
        check_not_negative(number=wrong)


# --- Batches ----------------------------------------------------------------------------------------------------------


def pets(count, side=16):
    images, trimaps = standins.pets(count, side, 0)
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(trimaps)[:, None], [""] * count)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([8, 12, 16]))
def test_batches_hold_each_image_at_most_once_and_repeat(count, batch_size, seed, size):
    assume(batch_size <= count)
    batches = PetBatches(pets(count), batch_size, [size], seed)
    once, again = list(batches.epoch(0)), list(batches.epoch(0))
    assert len(once) == len(batches) == count // batch_size
    for (images, targets), (same, _) in zip(once, again):
        assert torch.equal(images, same)
        assert images.shape == (batch_size, 3, size, size)
        assert targets.dtype == torch.bool
    digits = LabelledSplit(torch.arange(count).byte().view(-1, 1, 1, 1), classes(count))
    seen = torch.cat([batch.images for batch in LabelledBatches(digits, batch_size, seed % 1000).epoch(0)])
    assert len(seen.unique()) == len(seen) == count // batch_size * batch_size


@given(st.integers(1, 64), st.integers(1, 64))
def test_augmentation_keeps_shapes_and_the_values_of_a_trimap(height, width):
    rng = np.random.default_rng(0)
    image, trimap = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(1, 4, (height, width), np.uint8)
    pair = data.augmentation()(image=image, mask=trimap)
    assert pair["image"].shape == image.shape
    assert set(np.unique(pair["mask"])) <= set(np.unique(trimap))
    for augment in (labelled.digit_augmentation(), labelled.picture_augmentation()):
        assert augment(image=image)["image"].shape == image.shape
    assert labelled.augmented(labelled.picture_augmentation(), byte_images(2, 3, 8)).shape == (2, 3, 8, 8)


@given(st.sampled_from([torch.float32, torch.int64, torch.bool]))
def test_only_bytes_are_scaled(kind):
    for scale, low, high in ((data.to_input, -2, 2), (labelled.to_unit, 0, 1)):
        scaled = scale(byte_images(2, 3, 4))
        assert low <= scaled.min() <= scaled.max() <= high
        for wrong in (byte_images(2, 3, 4).to(kind), byte_images(2, 3, 4)[0]):
            with pytest.raises(ValueError, match=r"expected torch.uint8 \(N, C, H, W\)"):
                scale(wrong)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_standins_depend_on_seed_and_place_alone(count, seed):
    for draw in (standins.digits, standins.shapes):
        images, labels = draw(count, seed)
        more, _ = draw(count + 1, seed)
        assert np.array_equal(images, more[:count])
        assert labels.tolist() == [i % 10 for i in range(count)]


# --- What a wrong label does ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=0, max_size=50))
def test_a_wrong_label_is_never_the_right_one(labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    wrong = wrong_labels.draw_wrong(labels)
    assert (wrong != labels).all()
    assert ((wrong >= 0) & (wrong <= 9)).all()


@given(st.integers(1, 3))
def test_obedience_is_a_share(hundreds):
    images, labels = torch.rand(100 * hundreds, 1, 8, 8, generator=seeded()), classes(100 * hundreds)
    qualities = {"thickness": wrong_labels.thickness, "slant": wrong_labels.slant, "colour": wrong_labels.colour}
    shares = wrong_labels.obedience(small_vae(), small_classifier(), images, labels, qualities, small_classifier())
    assert all(-1 <= share <= 1 for share in shares.values())
    assert shares["guide_agreement"] == shares["wrong_label_agreement"]
    for bad in (labels.new_zeros(len(labels)), labels + 1):
        with pytest.raises(ValueError, match=r"different_labels=1|expected"):
            wrong_labels.obedience(small_vae(), small_classifier(), images, bad, {})


@given(st.integers(2, 20).flatmap(lambda n: st.tuples(floats((n,), -10, 10), floats((n,), -10, 10))))
def test_a_rank_correlation_is_symmetric_and_within_one(rows):
    value = wrong_labels.rank_correlation(*rows)
    assert -1.001 <= value <= 1.001
    assert torch.isclose(value, wrong_labels.rank_correlation(*rows[::-1]))
    for bad in ((rows[0][:1], rows[1][:1]), (rows[0], rows[1][1:])):
        with pytest.raises(ValueError, match="must be"):
            wrong_labels.rank_correlation(*bad)


@given(st.tuples(sizes, st.just(1), sizes, sizes).flatmap(lambda shape: floats(shape, 0, 1)))
def test_qualities_are_finite_on_any_image(images):
    for quality in (wrong_labels.thickness, wrong_labels.slant, wrong_labels.colour):
        assert quality(images).isfinite().all()
        assert len(quality(images)) == len(images)
    assert (wrong_labels.peak_signal_to_noise(images, images) == math.inf).all()
    assert (wrong_labels.peak_signal_to_noise(images, 1 - images) >= 0).all()
    with pytest.raises(ValueError, match="must be equal"):
        wrong_labels.peak_signal_to_noise(images, images[:, :0])


@given(st.integers(1, 3).map(lambda n: 100 * n), st.integers(2, 5))
def test_codes_are_found_again_among_themselves(count, size):
    codes = torch.randn(count, size, generator=seeded())
    assert wrong_labels.found_again(codes, codes).all()
    assert 0 <= wrong_labels.leakage(codes, classes(count), codes, classes(count)) <= 1
    assert wrong_labels.telling_plane(codes, classes(count)).shape == (count, 2)
    for bad in (codes[:99], codes[:, :1]):
        with pytest.raises(ValueError, match=r"must be|multiple of 100"):
            wrong_labels.found_again(bad, codes)
    with pytest.raises(ValueError, match="latent_size=1"):
        wrong_labels.telling_plane(codes[:, :1], classes(count))
    assert wrong_labels.bits_per_dimension(0.0, (1, 8, 8)) == 8


@given(st.integers(4, 9))
def test_the_faithful_loss_is_finite_from_four_images_on(count):
    split = LabelledSplit(byte_images(20, 1, 8), classes(20))
    models = nn.ModuleDict({"vae": small_vae(), "discriminator": faithful.Discriminator(1, 2)})
    weights = {"guide": 1.0, "adversary": 1.0, "lookalike": 1.0}
    arguments = {"guide": small_classifier(), "lookalikes": faithful.Lookalikes(split), "weights": weights}
    batch = LabelledSplit(*(part[:count] for part in split))
    terms = faithful.faithful_loss(models, batch=batch, rise=1.0, noise=0.1, **arguments)
    assert all(term.isfinite() for term in terms.values())
    assert judge.moved(torch.rand(count, 1, 8, 8), 3).shape == (count, 1, 8, 8)
    three = LabelledSplit(*(part[:3] for part in split))
    with pytest.raises(ValueError, match="images=3: must be an integer of 4 or more"):
        faithful.faithful_loss(models, batch=three, rise=1.0, noise=0.1, **arguments)
    with pytest.raises(ValueError, match="images of class 9=0"):
        faithful.Lookalikes(LabelledSplit(split.images[:9], split.labels[:9]))
    with pytest.raises(ValueError, match="reach=-1"):
        judge.moved(torch.rand(1, 1, 8, 8), -1)


def test_classifiers_read_any_number_of_images_and_count_none_of_none():
    classifier = small_classifier()
    for count in (0, 1, 101):
        assert judge.read(classifier, torch.rand(count, 1, 8, 8)).shape == (count,)
    assert 0 <= judge.accuracy(classifier, byte_images(3, 1, 8), classes(3)) <= 1
    for images, labels in ((byte_images(3, 1, 8)[:0], classes(0)), (byte_images(3, 1, 8), classes(2))):
        with pytest.raises(ValueError, match="must be"):
            judge.accuracy(classifier, images, labels)
    with pytest.raises(ValueError, match="images=0"):
        judge.classifier_loss(classifier, (byte_images(1, 1, 8)[:0], classes(0)), 0)


# --- Files and parameters ---------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
)


@pytest.mark.parametrize("notebook", run.QUICK)
@given(st.data())
def test_any_value_of_a_parameter_is_taken_or_refused_in_words(notebook, data):
    default = parameters.defaults(notebook)
    name, value = data.draw(st.sampled_from([*default])), data.draw(values)
    try:
        parameters.check_parameters(notebook, {name: value})
    except ParameterError as error:
        assert str(error).startswith(f"{name} = ")
        assert str(error).endswith(f"such as {default[name]!r}")
    else:
        assert type(value) is type(default[name]) or (type(value), type(default[name])) == (int, float)


@pytest.mark.parametrize("notebook", run.QUICK)
def test_the_defaults_and_the_quick_values_are_taken(notebook):
    for given_values in (parameters.defaults(notebook), run.QUICK[notebook]):
        parameters.check_parameters(notebook, given_values)


@given(st.text(max_size=12))
@example("NaN")
@example("[[1,")
def test_what_is_typed_is_json_or_text(text):
    value = run.value_of(text)
    assert value == text or value != value or json.loads(text) == value


TYPED = {
    "batch_size": ["abc", "0.5", "-1", "true", "[16]", "NaN", ""],
    "learning_rate": ["fast", "NaN", "-0.1", "Infinity", "1e999", "true"],
    "size_schedule": ["64", "[64, 3]", "[[64]]", '[["64", 3]]', "[[64, -3]]"],
    "variants": ["MP+Tr+BCE", "[1]", "{}", "[]"],
    "pretrained": ["1", "yes", "True"],
    "source": ["1", "[]", "null"],
    "learning_rat": ["0.1"],
}


@pytest.mark.parametrize(("name", "typed"), [(name, text) for name, texts in TYPED.items() for text in texts])
def test_a_mistyped_parameter_stops_the_run_before_it_starts(name, typed, capsys, monkeypatch):
    monkeypatch.setattr(run, "execute", lambda *arguments: pytest.fail("it was run"))
    assert run.main(["01_unet_segmentation.ipynb", "-p", name, typed]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert name in message
    assert "Traceback" not in message


contents = st.dictionaries(st.text(max_size=5), st.integers(-(2**40), 2**40) | st.text(max_size=5) | st.booleans())


@given(contents)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("saved")
    storage.save_json(folder / "a.json", content)
    assert json.loads((folder / "a.json").read_text(encoding="utf-8")) == content
    storage.save_tensors(folder / "a.pt", content)
    assert storage.load_tensors(folder / "a.pt") == content


def mutated(content, seed):
    """A file of which some bytes are other ones, or the end is missing."""
    chance = random.Random(seed)
    content = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content[: chance.choice([len(content), chance.randrange(1, len(content))])])


def encoded(array, form):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form)
    return stream.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
TRIMAP = np.random.default_rng(0).integers(1, 4, (24, 20), np.uint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@given(st.integers(0, 10**6))
@settings(max_examples=150)
def test_a_mutated_picture_is_read_or_named(tmp_path_factory, form, seed):
    folder = tmp_path_factory.getbasetemp() / "oxford-iiit-pet"
    folder.mkdir(exist_ok=True)
    picture, trimap = folder / "picture", folder / "trimap.png"
    picture.write_bytes(mutated(encoded(PICTURE, form), seed))
    trimap.write_bytes(mutated(encoded(TRIMAP, "PNG"), seed + 1) if seed % 2 else encoded(TRIMAP, "PNG"))
    for read in (
        lambda: own.opened(picture),
        lambda: own.digit(picture),
        lambda: data.decode_pair(picture, trimap, 16),
    ):
        try:
            read()
        except DataError as error:
            assert str(folder) in str(error)


@given(st.integers(0, 10**6))
@settings(max_examples=150)
def test_a_mutated_idx_file_is_read_or_named(tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp() / "raw"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for kind, array in (("images-idx3", rng.integers(0, 256, (5, 28, 28))), ("labels-idx1", np.arange(5))):
        content = idx(array)
        (folder / f"t10k-{kind}-ubyte").write_bytes(mutated(content, seed) if seed % 3 else mutated(content[:40], seed))
    try:
        split = labelled.read_idx(folder, "t10k")
    except DataError as error:
        assert str(folder) in str(error)
    else:
        assert split.images.shape == (len(split.labels), 1, 28, 28)
        assert split.labels.max() <= 9


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_grey_picture_is_a_digit_or_told(tmp_path_factory, grey):
    path = tmp_path_factory.getbasetemp() / "digit.png"
    path.write_bytes(encoded(grey, "PNG"))
    try:
        digit = own.digit(path)
    except DataError as error:
        assert "all of one brightness" in str(error)
    else:
        assert digit.shape == (1, 28, 28)
        assert digit.dtype == torch.uint8


@pytest.mark.parametrize("text", ["", "{", '{"data": '])
def test_published_numbers_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "unet.json").write_text(text)
    with pytest.raises(PublishedError, match=r"unet\.json is damaged: clone the course anew"):
        Published("unet", "oxford-iiit-pet", tmp_path)


def test_rounded_weights_stay_rounded():
    model = small_vae()
    round_weights(model)
    before = [weights.clone() for weights in model.parameters()]
    round_weights(model)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters()))


# --- Tables and figures -----------------------------------------------------------------------------------------------

cells = st.text(st.characters(whitelist_categories=["L", "N"]), max_size=5)


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1)))
def test_a_table_has_a_line_for_each_row(rows):
    lines = report.markdown_table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert {line.count("|") for line in lines} == {len(rows[0]) + 1}
    assert report.with_tables("<!-- a -->\n<!-- /a -->", {"a": "x"}) == "<!-- a -->\nx\n<!-- /a -->"


@settings(max_examples=3)
@given(st.integers(1, 3))
def test_figures_take_any_number_of_pictures(count):
    split, masks = pets(count), {"one": torch.ones(count, 1, 16, 16, dtype=torch.bool)}
    unit, labels, names = torch.rand(count, 1, 8, 8), classes(count), list("0123456789")
    row = {f"{kind}{key}": 1.0 for kind in ("", "validation_") for key in ("reconstruction", "kl", "negative_elbo")}
    pair = (split.images[0], split.trimaps[0])
    for figure in (
        plots.plot_samples(split.images, split.trimaps, "stand-in"),
        plots.plot_augmentations([pair] * count, [[pair]] * count, "stand-in"),
        plots.plot_loss_against_size([1] * count, {"BCE": [0.5] * count}),
        plots.plot_learning_curves({"MP+Tr+BCE": [{"loss": 1.0, "score": 0.5}] * count}, [16] * count, "stand-in"),
        plots.plot_predictions(split.images, split.trimaps, masks, {"one": torch.ones(count)}, "title", "stand-in"),
        plots.plot_masks(split.images, [""] * count, masks, "stand-in"),
        plots.plot_image_table(unit[None], ["row"], [""] * count, "title", "stand-in"),
        plots.plot_wrong_labels(unit, unit, labels, labels, labels, names, "title", "stand-in"),
        plots.plot_elbo_curves({"plain": [row] * count}, "stand-in"),
        plots.plot_trade_off({"plain": (20.0, 0.1)}, ["plain"] * count, "stand-in"),
        plots.plot_codes({"plain": torch.rand(count, 2)}, labels, "stand-in"),
        plots.plot_kl([0.0] * count, [1.0], [[0.0] * count]),
        diagrams.draw_autoencoder(small_vae()),
        diagrams.draw_conditional_vae(small_vae()),
    ):
        assert isinstance(figure, plt.Figure)
    plt.close("all")
