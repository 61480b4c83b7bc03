"""Judges, guides and the discriminator: shapes, traits, that a judge learns to read, and what they are shown."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.files import definitions
from utils import classifiers
from utils.data import Batches, Split, load_digits, to_unit
from utils.losses import classifier_loss
from utils.results import NOTEBOOKS

_, MNIST, CIFAR10 = map(definitions, NOTEBOOKS.values())


def test_judge_and_guide_give_a_logit_for_each_class_and_differ():
    for judge, guide, shape in (
        (classifiers.build_digit_judge(), classifiers.build_digit_guide(), (1, 28, 28)),
        (classifiers.build_picture_judge(8), classifiers.build_picture_guide(4), (3, 32, 32)),
    ):
        for classifier in (judge, guide):
            logits = classifier(torch.rand(8, *shape))
            assert logits.shape == (8, 11 if shape[0] == 1 and classifier is guide else 10)
            logits.square().mean().backward()
            assert all(parameter.grad.any() for parameter in classifier.parameters())
        assert any(isinstance(layer, nn.MaxPool2d) for layer in judge)
        assert not any(isinstance(layer, nn.MaxPool2d) for layer in guide)
    assert all(layer.stride == (1, 1) for layer in guide if isinstance(layer, nn.Conv2d)), "a grid"


def test_spoilt_digits_are_labelled_and_brighter_and_the_rest_is_as_before():
    digits = load_digits("stand-in", None).train
    torch.manual_seed(0)
    spoilt, labels = MNIST.spoil(digits.images, digits.targets)
    chosen = labels == 10
    assert 0.1 < chosen.double().mean() < 1 / 3
    assert torch.equal(spoilt[~chosen], digits.images[~chosen])
    assert torch.equal(labels[~chosen], digits.targets[~chosen])
    added = spoilt[chosen].int() - digits.images[chosen].int()
    assert added.min() == 0
    assert added.max() <= 0.6 * 255, "faint"
    assert (added.flatten(1).sum(1) > 2 * 255).all()


def test_a_judge_learns_to_read_and_is_measured_right():
    digits = load_digits("stand-in", None).validation
    judge, batches = classifiers.build_digit_judge(), Batches(digits, 20, seed=0, augment=MNIST.digit_augmentation())
    assert classifiers.accuracy(judge, digits) < 0.3
    optimiser = torch.optim.AdamW(judge.train().parameters(), 3e-3)
    for batch in (batch for epoch in range(12) for batch in batches.epoch(epoch)):
        optimiser.zero_grad()
        classifier_loss(judge, batch)["loss"].backward()
        optimiser.step()
    measured = classifiers.accuracy(judge, digits)
    assert not judge.training
    right = [judge(to_unit(image[None])).argmax() == label for image, label in zip(digits.images, digits.targets)]
    assert measured == pytest.approx(sum(right).item() / len(right))
    assert measured > 0.9


def test_labels_are_predicted_for_any_number_of_images():
    classifier, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)), torch.rand(201, 1, 2, 2)
    for count in (0, 1, 201):
        assert torch.equal(classifiers.predict_labels(classifier, images[:count]), classifier(images[:count]).argmax(1))


def test_the_picture_judges_convolutions_start_as_the_identity_and_its_logits_are_a_ninth():
    _, *later = (layer for layer in classifiers.build_picture_judge(32) if isinstance(layer, nn.Conv2d))
    assert [layer.out_channels for layer in later] == [32, 32, 128, 128, 128, 128]
    for layer in later:
        images = torch.rand(2, layer.in_channels, 5, 5)
        torch.testing.assert_close(layer(images)[:, : layer.in_channels], images)
    head, features = classifiers.ScaledLinear(6, 10, bias=False), torch.randn(3, 6)
    torch.testing.assert_close(9 * head(features), features @ head.weight.T)


def test_a_shift_norm_is_batch_normalisation_whose_shift_learns_64_times_as_fast():
    shift, usual, images, before = classifiers.ShiftNorm(5), nn.BatchNorm2d(5), torch.randn(4, 5, 6, 7), torch.randn(5)
    assert [name for name, _ in shift.named_parameters()] == ["shift"]
    shift.shift.data, usual.bias.data = before / 8, before.clone()
    for layer in (shift, usual):
        (layer(images) ** 3).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=1e-4).step()
    torch.testing.assert_close(8 * shift.shift - before, 64 * (usual.bias - before), atol=1e-4, rtol=1e-3)
    usual.weight.data, usual.bias.data = torch.ones(5), 8 * shift.shift.data
    torch.testing.assert_close(shift.eval()(images), usual.eval()(images))


def test_whitened_patches_are_uncorrelated_and_the_filters_stay():
    """The outputs' covariance, from the definition: 1 on the diagonal, 0 beside it, for each sign of the filters."""
    smooth = F.avg_pool2d(torch.rand(200, 3, 18, 18), 3, stride=1)  # neighbours are alike
    images, convolution = smooth / smooth.max(), nn.Conv2d(3, 24, 2)
    CIFAR10.whiten(convolution, images)
    rows = convolution(images).detach().transpose(0, 1).flatten(1).double()  # (24, patches)
    torch.testing.assert_close(rows[12:], -rows[:12])
    assert rows.mean(1).abs().max() < 1e-3
    covariance = torch.cov(rows[:12], correction=0)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    assert covariance.diagonal().max() < 1.001, "dampened, never amplified"
    assert covariance.diagonal()[-1] > 0.9
    assert not any(parameter.requires_grad for parameter in convolution.parameters())


def test_the_mirror_image_counts_once_training_is_over():
    classifier, images = classifiers.MirrorSum(nn.Flatten(), nn.Linear(12, 2)), torch.rand(4, 3, 2, 2)
    plain = nn.Sequential(*classifier)
    assert torch.equal(classifier.train()(images), plain(images))
    torch.testing.assert_close(classifier.eval()(images), plain(images) + plain(images.flip(3)))


def test_noise_has_the_strength_asked_for_and_differs_from_image_to_image():
    added = classifiers.add_noise(torch.zeros(2_000, 3, 8, 8), 0.2).flatten(1).std(1)
    assert added.max() < 0.25
    assert added.min() < 0.01
    assert added.mean().item() == pytest.approx(0.1, rel=0.05)


def test_images_are_shifted_and_mirrored_together():
    image, reach = torch.arange(192.0).view(1, 3, 8, 8), range(-3, 4)
    views = [image.roll((down, right), (2, 3)) for down in reach for right in reach]
    views, seen = views + [view.flip(3) for view in views], set()
    for _ in range(60):
        one, other = CIFAR10.random_shift(image.expand(2, -1, -1, -1))
        assert torch.equal(one, other)
        seen.add(next(i for i, view in enumerate(views) if torch.equal(one[None], view)))
    assert len(seen) > 30


def test_the_discriminators_scores_depend_on_image_and_label_and_their_slope_is_bounded():
    """Spectral normalisation: each layer's largest singular value is about 1."""
    discriminator, images, labels = CIFAR10.Discriminator(8), torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    scores = discriminator(images, labels)
    assert scores.shape == (20,)
    assert not torch.equal(scores, discriminator(images, (labels + 1) % 10))
    assert not torch.equal(scores, discriminator(images.flip(0), labels))
    scores.square().mean().backward()
    assert all(parameter.grad.any() for parameter in discriminator.parameters())
    for _ in range(50):  # of the power iteration, a step each
        discriminator(images[:2], labels[:2])
    for layer in discriminator.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_a_classifier_of_another_batch_size_is_another_training(monkeypatch):
    given, split = [], Split(torch.zeros(80, 3, 32, 32, dtype=torch.uint8), torch.zeros(80, dtype=torch.int64))

    def train(name, classifier, *_, settings, **__):
        given.append(settings)
        return classifier, None

    names = {"run": SimpleNamespace(train=train), "pictures": SimpleNamespace(train=split), "device": "cpu"}
    names |= {"judge_channels": 8, "guide_channels": 8, "MUON": {}}
    for batch_size in (8, 16):
        for name, value in (names | {"batch_size": batch_size}).items():
            monkeypatch.setitem(CIFAR10.train_classifier.__globals__, name, value)
        CIFAR10.train_classifier("judge", nn.Conv2d(3, 3, 1), 1, 0)
    assert given[0] != given[1]
