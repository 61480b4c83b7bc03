"""The classifiers: shapes, that they learn to read, and that they differ; the discriminator; what they are shown."""

import pytest
import torch
from torch import nn

from utils.classifiers import (
    Discriminator,
    MirrorSum,
    ScaledLinear,
    ShiftNorm,
    accuracy,
    add_noise,
    build_digit_guide,
    build_digit_judge,
    build_picture_guide,
    build_picture_judge,
    predict_labels,
    random_shift,
    whiten,
)
from utils.data import Batches, digit_augmentation, load_digits, to_unit
from utils.losses import classifier_loss
from utils.training import fit


def test_judge_and_guide_of_digits_give_ten_logits_and_differ():
    kinds = []
    for build in (build_digit_judge, build_digit_guide):
        assert build()(torch.rand(3, 1, 28, 28)).shape == (3, 10)
        kinds.append([type(layer).__name__ for layer in build()])
    assert "MaxPool2d" in kinds[0]
    assert "MaxPool2d" not in kinds[1]


def test_a_judge_learns_to_read_and_is_measured_right(tmp_path):
    torch.manual_seed(0)
    digits = load_digits("stand-in", None).validation
    judge = build_digit_judge()
    untrained = accuracy(judge, digits)
    fit(
        judge,
        Batches(digits, 20, seed=0, augment=digit_augmentation()),
        lambda model, batch, step: classifier_loss(model, batch),
        lambda model: {"score": accuracy(model, digits)},
        epochs=8,
        learning_rate=1e-2,
        weight_decay=0.0,
        checkpoint=tmp_path / "judge.pt",
        settings={},
    )
    right = sum(
        int(predict_labels(judge, to_unit(image[None])) == label) for image, label in zip(digits.images, digits.targets)
    )
    assert accuracy(judge, digits) == pytest.approx(right / len(digits.targets))
    assert right > 0.9 * len(digits.targets)
    assert untrained < 0.3


def test_loss_by_hand():
    judge = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    torch.nn.init.zeros_(judge[1].weight)
    torch.nn.init.zeros_(judge[1].bias)
    loss = classifier_loss(judge, (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([3, 4])))["loss"]
    torch.testing.assert_close(loss, torch.tensor(10.0).log())


def test_classifiers_of_pictures_have_the_right_shapes_and_differ():
    judge, guide = build_picture_judge(8), build_picture_guide(4)
    for classifier in (judge, guide):
        assert classifier(torch.rand(3, 3, 32, 32)).shape == (3, 10)
    assert any(isinstance(layer, torch.nn.MaxPool2d) for layer in judge)
    assert not any(isinstance(layer, torch.nn.MaxPool2d) for layer in guide)
    assert all(layer.stride == (1, 1) for layer in guide if isinstance(layer, torch.nn.Conv2d)), "a grid"


def test_the_judges_convolutions_start_as_the_identity():
    _, *later = (layer for layer in build_picture_judge(32) if isinstance(layer, torch.nn.Conv2d))
    assert [layer.out_channels for layer in later] == [32, 32, 128, 128, 128, 128]
    for layer in later:
        images = torch.rand(2, layer.in_channels, 5, 5)
        torch.testing.assert_close(layer(images)[:, : layer.in_channels], images)


def test_a_shift_is_batch_normalisation_whose_shift_learns_64_times_as_fast():
    torch.manual_seed(0)
    shift, usual, images = ShiftNorm(5), torch.nn.BatchNorm2d(5), torch.randn(4, 5, 6, 7)
    before = torch.randn(5)
    shift.shift.data, usual.bias.data = before / 8, before.clone()
    for layer in (shift, usual):
        (layer(images) ** 3).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=1e-4).step()
    torch.testing.assert_close(8 * shift.shift - before, 64 * (usual.bias - before), atol=1e-4, rtol=1e-3)
    usual.weight.data, usual.bias.data = torch.ones(5), 8 * shift.shift.data
    torch.testing.assert_close(shift.eval()(images), usual.eval()(images))
    assert [name for name, _ in shift.named_parameters()] == ["shift"]


def test_the_heads_logits_are_a_ninth():
    head, features = ScaledLinear(6, 10, bias=False), torch.randn(3, 6)
    torch.testing.assert_close(9 * head(features), features @ head.weight.T)


def test_whitened_patches_are_uncorrelated_and_the_filters_stay():
    """The outputs' covariance, from the definition: 1 on the diagonal, 0 beside it, for each sign of the filters."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(200, 3, 18, 18), 3, stride=1)  # neighbours are alike
    images, convolution = smooth / smooth.max(), torch.nn.Conv2d(3, 24, 2)
    whiten(convolution, images)
    rows = convolution(images).detach().transpose(0, 1).flatten(1).double()  # (24, patches)
    torch.testing.assert_close(rows[12:], -rows[:12])
    covariance = (rows[:12] - rows[:12].mean(1, keepdim=True)) @ rows[:12].T / rows.shape[1]
    beside = covariance - covariance.diagonal().diag()
    assert beside.abs().max() < 1e-3
    assert rows.mean(1).abs().max() < 1e-3
    assert covariance.diagonal().max() < 1.001, "dampened, never amplified"
    assert covariance.diagonal()[-1] > 0.9
    assert not any(parameter.requires_grad for parameter in convolution.parameters())


def test_the_mirror_image_counts_once_training_is_over():
    torch.manual_seed(0)
    classifier = MirrorSum(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    images = torch.rand(4, 3, 2, 2)
    plain = torch.nn.Sequential(*classifier)
    assert torch.equal(classifier.train()(images), plain(images))
    torch.testing.assert_close(classifier.eval()(images), plain(images) + plain(images.flip(3)))


def test_noise_has_the_strength_asked_for_and_differs_from_image_to_image():
    torch.manual_seed(0)
    added = add_noise(torch.zeros(2_000, 3, 8, 8), 0.2).flatten(1).std(1)
    assert added.max() < 0.25
    assert added.min() < 0.01
    assert added.mean().item() == pytest.approx(0.1, rel=0.05)


def test_moved_images_are_shifted_and_mirrored_together():
    image = torch.arange(48.0).view(1, 3, 4, 4)
    views = [view.roll((down, right), (2, 3)) for down in (-1, 0, 1) for right in (-1, 0, 1) for view in [image]]
    views += [view.flip(3) for view in views]
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        pair = random_shift(image.expand(2, -1, -1, -1), 1)
        assert torch.equal(pair[0], pair[1])
        seen.add(next(i for i, view in enumerate(views) if torch.equal(pair[:1], view)))
    assert len(seen) > 12


def test_smoothing_and_noise_by_hand():
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    batch = torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8), torch.tensor([1, 5, 9])
    log_shares = classifier(batch[0] / 255).log_softmax(1)
    by_hand = -(0.9 * log_shares[range(3), batch[1]] + 0.1 * log_shares.mean(1)).mean()
    torch.testing.assert_close(classifier_loss(classifier, batch, smoothing=0.1)["loss"], by_hand)
    assert classifier_loss(classifier, batch, noise=0.5)["loss"] != classifier_loss(classifier, batch)["loss"]


def test_scores_depend_on_image_and_label_and_every_parameter_learns():
    torch.manual_seed(0)
    discriminator, images, labels = Discriminator(3, 8), torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    scores = discriminator(images, labels)
    assert scores.shape == (20,)
    assert not torch.equal(scores, discriminator(images, (labels + 1) % 10))
    assert not torch.equal(scores, discriminator(images.flip(0), labels))
    scores.square().mean().backward()
    assert all(parameter.grad.any() for parameter in discriminator.parameters())


def test_the_scores_slope_is_bounded():
    """Spectral normalisation: each layer's largest singular value is about 1."""
    torch.manual_seed(0)
    discriminator = Discriminator(3, 8)
    for _ in range(50):  # of the power iteration, a step each
        discriminator(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    for layer in discriminator.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
