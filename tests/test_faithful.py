"""The discriminator, its two-faced loss, and lookalikes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from utils.cvae import ConditionalVAE, elbo_terms
from utils.faithful import Discriminator, Lookalikes, adversarial_loss, faithful_loss, layout
from utils.labelled import LabelledSplit, to_unit


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


NONE = {"guide": 0.0, "adversary": 0.0, "lookalike": 0.0}


def setting():
    """Two small networks, a guide, and a batch of 16 pictures among which lookalikes are found."""
    torch.manual_seed(0)
    vae = ConditionalVAE((3, 32, 32), 10, 4, 4, 3, "decoder", "gaussian")
    models = nn.ModuleDict({"vae": vae, "discriminator": Discriminator(3, 4)})
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).requires_grad_(False)
    batch = LabelledSplit(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10)
    return models, guide, Lookalikes(batch), batch


def loss_of(weights, rise=1.0):
    models, guide, lookalikes, batch = setting()
    torch.manual_seed(1)
    return models, faithful_loss(models, guide, lookalikes, batch, weights, rise, noise=0.1)


def test_without_further_terms_it_is_the_evidence_lower_bound():
    models, _, _, batch = setting()
    torch.manual_seed(1)
    expected = elbo_terms(models["vae"], to_unit(batch.images), batch.labels)
    _, terms = loss_of(NONE)
    assert terms["loss"] == expected["negative_elbo"]
    assert set(terms) == {"loss", *expected}
    _, terms = loss_of(NONE, rise=0.25)
    assert terms["loss"].item() == pytest.approx((expected["reconstruction"] + 0.25 * expected["kl"]).item())


@pytest.mark.parametrize(("name", "term"), [("guide", "guide"), ("lookalike", "lookalike")])
def test_a_term_counts_by_its_weight(name, term):
    _, terms = loss_of(NONE | {name: 3.0}, rise=0.5)
    expected = terms["reconstruction"] + 0.5 * terms["kl"] + 1.5 * terms[term]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_adversary_trains_the_discriminator_and_moves_the_decoder():
    decoders = []
    for weight in (1e-6, 1e6):
        models, terms = loss_of(NONE | {"adversary": weight})
        terms["loss"].backward()
        assert all(parameter.grad.any() for parameter in models["discriminator"].parameters())
        decoders.append(models["vae"].from_code[0].weight.grad)
    assert not torch.allclose(*decoders, rtol=0.01)


def test_only_wrong_labels_have_lookalikes_and_the_guide_reads_right_ones_too():
    models, guide, lookalikes, batch = setting()
    asked, read = [], []
    lookalikes.find = lambda images, labels: asked.append((images, labels)) or images

    def guided(images):
        read.append(len(images))
        return guide(images)

    faithful_loss(models, guided, lookalikes, batch, NONE | {"guide": 1.0, "lookalike": 1.0}, 1.0, 0.0)
    images, labels = asked[0]
    assert torch.equal(images, batch.images[:4])
    assert not (labels == batch.labels[:4]).any()
    assert read == [8]
