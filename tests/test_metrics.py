"""Scores against values counted by hand and against torchvision's or a plain loop's."""

import pytest
import torch

from utils.data import BACKGROUND, BORDER, PET, to_input
from utils.metrics import baselines, confusion, dice, iou, iou_difference, pixel_accuracy, predict, segmentation_scores


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
    rows = baselines(train, test)
    assert rows["all_foreground"]["iou"] == pytest.approx(1 / 4)
    assert rows["mean_mask"]["iou"] == pytest.approx(1 / 2)


def test_counts_do_not_depend_on_how_many_images_are_counted_at_a_time(monkeypatch):
    predicted, target, counted = torch.rand(3, 7, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.4
    monkeypatch.setattr("utils.metrics.PART", 3)
    one_by_one = [confusion(*(tensor[i : i + 1] for tensor in (predicted, target, counted))) for i in range(7)]
    assert torch.equal(confusion(predicted, target, counted), torch.cat(one_by_one))
    assert confusion(predicted, target).sum() == predicted.numel()


def test_confusion_refuses_what_is_not_bool_or_not_of_one_shape():
    with pytest.raises(ValueError, match=r"predicted is torch.float32 \(1, 4\), expected bool"):
        confusion(torch.zeros(1, 4), torch.zeros(1, 4).bool())
    with pytest.raises(ValueError, match=r"predicted is torch.bool \(1, 3\), expected bool \(1, 4\)"):
        confusion(torch.zeros(1, 3).bool(), torch.zeros(1, 4).bool())


def test_predictions_are_the_models_sigmoid_in_eval_mode_whatever_the_batch_size():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.BatchNorm2d(1))
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    answer = predict(model, images, batch_size=2)
    assert not model.training
    torch.testing.assert_close(answer, model(to_input(images)).sigmoid())
    assert answer.shape == (5, 1, 8, 8)


def test_difference_of_iou_by_hand():
    before = torch.tensor([[1, 1, 0, 0]]).repeat(50, 1)  # IoU 1/2 on each image
    after = torch.tensor([[3, 0, 1, 0]]).repeat(50, 1)  # IoU 3/4 on each image
    assert iou_difference(before, after) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_of_a_difference_covers_what_theory_says():
    # One pixel an image, right with probability q: IoU = q, so the difference of two models has a known deviation.
    generator = torch.Generator().manual_seed(1)
    right = (torch.rand(2, 2000, generator=generator) < torch.tensor([[0.6], [0.7]])).long()
    before, after = (torch.stack([r, torch.zeros_like(r), 1 - r, torch.zeros_like(r)], dim=1) for r in right)
    difference, low, high = iou_difference(before, after)
    deviation = ((0.6 * 0.4 + 0.7 * 0.3) / 2000) ** 0.5
    assert difference == pytest.approx((right[1] - right[0]).float().mean().item())
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
