"""The discriminator, its two-faced loss, and lookalikes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from utils.faithful import Discriminator, Lookalikes, adversarial_loss, layout
from utils.labelled import LabelledSplit


def same(images):
    return images


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


class Mean(nn.Module):
    """Scores an image by a multiple of its mean."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, images, labels):
        return self.slope * images.mean((1, 2, 3)) + 0 * labels


def test_one_backward_pass_gives_the_gradients_of_two_losses():
    torch.manual_seed(0)
    made, real, labels = torch.rand(4, 1, 2, 2, requires_grad=True), torch.rand(5, 1, 2, 2), torch.arange(5)
    judge = Mean()
    loss = adversarial_loss(judge, (made, labels[:4]), (real, labels), same, weight=7.0)
    (loss + made.sum()).backward()  # the other loss's gradient must come through as it is

    twin, copy = Mean(), made.detach().requires_grad_()
    its_loss = F.softplus(twin(copy, labels[:4])).mean() + F.softplus(-twin(real, labels)).mean()
    assert loss.item() == pytest.approx(its_loss.item())
    (slope,) = torch.autograd.grad(its_loss, [twin.slope], retain_graph=True)
    makers = 7.0 * F.softplus(-twin(copy, labels[:4])).mean() + copy.sum()
    (expected,) = torch.autograd.grad(makers, [copy])
    torch.testing.assert_close(judge.slope.grad, slope)
    torch.testing.assert_close(made.grad, expected)


def test_images_are_disturbed_on_their_way_in_and_made_and_real_alike():
    seen = []

    def disturb(images):
        seen.append(images.detach())
        return 0 * images

    made, real, labels = torch.rand(2, 1, 2, 2), torch.rand(3, 1, 2, 2), torch.arange(3)
    made.requires_grad_()
    loss = adversarial_loss(Mean(), (made, labels[:2]), (real, labels), disturb, weight=1.0)
    assert torch.equal(seen[0], torch.cat([made.detach(), real]))
    assert loss.item() == pytest.approx(2 * torch.tensor(2.0).log().item())


def test_lookalikes_are_of_the_class_asked_for_and_nearest_in_layout():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = LabelledSplit(images, torch.arange(60) % 10)
    lookalikes = Lookalikes(split)
    assert torch.equal(lookalikes.find(images, split.labels), images)  # nobody is more alike than oneself
    found = lookalikes.find(images[:7], torch.full((7,), 4))
    blocks = images.double().unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(1)
    for one, mine in zip(found, blocks):
        of_class = [index for index in range(60) if index % 10 == 4]
        nearest = min(of_class, key=lambda index: (blocks[index] - mine).square().sum().item())
        assert torch.equal(one, images[nearest])


def test_layout_by_hand():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., :8, 8:] = 255
    image[..., 8:, :4] = 51
    assert layout(image).tolist() == [pytest.approx([0, 1, 0.1, 0])]
