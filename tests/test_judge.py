"""The classifiers: shapes, that they learn to read, and that the two differ."""

import pytest
import torch

from utils.judge import accuracy, build_guide, build_judge, classifier_loss, read
from utils.labelled import LabelledBatches, digit_augmentation, load_digits, to_unit
from utils.training import fit


def test_shapes_for_both_sizes_of_image():
    for build in (build_judge, build_guide):
        assert build((1, 28, 28), 10)(torch.rand(3, 1, 28, 28)).shape == (3, 10)
        assert build((3, 32, 32), 7)(torch.rand(3, 3, 32, 32)).shape == (3, 7)


def test_judge_and_guide_are_different_networks():
    kinds = [[type(layer).__name__ for layer in build((1, 28, 28), 10)] for build in (build_judge, build_guide)]
    assert "MaxPool2d" in kinds[0]
    assert "MaxPool2d" not in kinds[1]


def test_a_judge_learns_to_read_and_is_measured_right(tmp_path):
    torch.manual_seed(0)
    digits = load_digits("stand-in", None).validation
    judge = build_judge((1, 28, 28), 10)
    untrained = accuracy(judge, *digits)
    fit(
        judge,
        LabelledBatches(digits, 20, seed=0, augment=digit_augmentation()),
        classifier_loss,
        lambda model: {"score": accuracy(model, *digits)},
        epochs=8,
        learning_rate=1e-2,
        weight_decay=0.0,
        checkpoint=tmp_path / "judge.pt",
        settings={},
    )
    right = sum(int(read(judge, to_unit(image[None])) == label) for image, label in zip(*digits))
    assert accuracy(judge, *digits) == pytest.approx(right / len(digits.labels))
    assert right > 0.9 * len(digits.labels)
    assert untrained < 0.3


def test_loss_by_hand():
    judge = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    torch.nn.init.zeros_(judge[1].weight)
    torch.nn.init.zeros_(judge[1].bias)
    loss = classifier_loss(judge, (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([3, 4])), step=0)["loss"]
    torch.testing.assert_close(loss, torch.tensor(10.0).log())
