"""Scores against values counted by hand and against torchvision's or a plain loop's."""

import pytest
import torch

from utils.data import BACKGROUND, BORDER, PET
from utils.metrics import ONE_VIEW, baselines, confusion, dice, iou, pixel_accuracy, predict, segmentation_scores


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
    both = either = right = inner_both = inner_either = 0
    each = []
    for image, trimap in zip(predicted, trimaps):
        i = u = 0
        for p, t in zip(image.flatten().tolist(), trimap.flatten().tolist()):
            true = t in (PET, BORDER)
            i, u, right = i + (p and true), u + (p or true), right + (p == true)
            if t != BORDER:
                inner_both, inner_either = inner_both + (p and true), inner_either + (p or true)
        both, either = both + i, either + u
        each.append(i / u)
    scores = segmentation_scores(predicted, trimaps)
    assert scores["iou"] == pytest.approx(both / either)
    assert scores["dice"] == pytest.approx(2 * both / (both + either))
    assert scores["pixel_accuracy"] == pytest.approx(right / predicted.numel())
    assert scores["iou_per_image"] == pytest.approx(sum(each) / 5)
    assert scores["iou_border_ignored"] == pytest.approx(inner_both / inner_either)


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
    rows = baselines(train, test)
    assert rows["all_foreground"]["iou"] == pytest.approx(1 / 4)
    assert rows["mean_mask"]["iou"] == pytest.approx(1 / 2)


def test_confusion_refuses_what_is_not_bool_or_not_of_one_shape():
    with pytest.raises(ValueError, match=r"predicted is torch.float32 \(1, 4\), expected bool"):
        confusion(torch.zeros(1, 4), torch.zeros(1, 4).bool())
    with pytest.raises(ValueError, match=r"predicted is torch.bool \(1, 3\), expected bool \(1, 4\)"):
        confusion(torch.zeros(1, 3).bool(), torch.zeros(1, 4).bool())


class LeftHalf(torch.nn.Module):
    """Answers +4 left of the middle and -4 right of it, whatever it is shown, and notes the sizes it saw."""

    depth = 2

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.saw = []

    def forward(self, images):
        self.saw.append(tuple(images.shape[-2:]))
        logits = torch.full_like(images[:, :1], -4.0)
        logits[..., : images.shape[-1] // 2] = 4.0
        return logits


def test_one_view_is_the_models_own_answer():
    answer = predict(LeftHalf(), torch.zeros(3, 3, 8, 8, dtype=torch.uint8), views=ONE_VIEW, batch_size=2)
    torch.testing.assert_close(answer[..., :4], torch.full((3, 1, 8, 4), 4.0).sigmoid())
    torch.testing.assert_close(answer[..., 4:], torch.full((3, 1, 8, 4), -4.0).sigmoid())


def test_a_mirrored_view_is_mirrored_back():
    answer = predict(LeftHalf(), torch.zeros(3, 3, 8, 8, dtype=torch.uint8), views=[(1, False), (1, True)])
    torch.testing.assert_close(answer, torch.full((3, 1, 8, 8), 0.5))


def test_a_scaled_view_has_sides_that_the_model_accepts():
    model = LeftHalf()
    answer = predict(model, torch.zeros(1, 3, 8, 16, dtype=torch.uint8), views=[(0.6, False), (0.1, False)])
    assert model.saw == [(4, 8), (4, 4)]
    assert answer.shape == (1, 1, 8, 16)
    assert answer[0, 0, 4, 0] > 0.9 > 0.1 > answer[0, 0, 4, 15]
