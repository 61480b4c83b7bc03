"""Losses against values computed by hand, against independent implementations, and where they are easily wrong."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from utils.classifiers import Discriminator, add_noise, random_shift
from utils.cvae import ConditionalVAE
from utils.data import Split, to_unit
from utils.losses import (
    EPSILON,
    Lookalikes,
    Teachers,
    adversarial_loss,
    bce_loss,
    bernoulli_loss,
    dice_loss,
    elbo_terms,
    gaussian_loss,
    kl_loss,
    label_following_loss,
)


def logit(p):
    return math.log(p / (1 - p))


def test_bce_by_hand():
    logits = torch.tensor([logit(0.9), logit(0.2)])
    by_hand = -(math.log(0.9) + math.log(1 - 0.2)) / 2
    assert bce_loss(logits, torch.tensor([1.0, 0.0])).item() == pytest.approx(by_hand, rel=1e-6)


def test_bce_against_torchs_loss_on_probabilities():
    logits, targets = torch.randn(3, 1, 8, 8), torch.rand(3, 1, 8, 8).round()
    torch.testing.assert_close(bce_loss(logits, targets), nn.BCELoss()(logits.sigmoid(), targets))


def test_dice_by_hand():
    logits = torch.tensor([logit(0.9), logit(0.2), logit(0.6)])
    targets = torch.tensor([1.0, 0.0, 1.0])
    by_hand = 1 - (2 * (0.9 + 0.6) + 1e-5) / ((0.9 + 0.2 + 0.6) + 2 + 1e-5)
    assert dice_loss(logits, targets).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_dice_against_the_assignments_formula_in_float64(scale):
    logits, targets = scale * torch.randn(4, 1, 16, 16), torch.rand(4, 1, 16, 16).round()
    p, t = logits.double().sigmoid().flatten(), targets.double().flatten()
    formula = 1 - (2 * (p * t).sum() + EPSILON) / (p.sum() + t.sum() + EPSILON)
    assert dice_loss(logits, targets).item() == pytest.approx(formula.item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("value", [-100.0, -20.0, 0.0, 20.0, 100.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_dice_is_finite_and_never_negative(value, target):
    logits = torch.full((2, 1, 64, 64), value, requires_grad=True)
    loss = dice_loss(logits, torch.full((2, 1, 64, 64), target))
    loss.backward()
    assert 0 <= loss.item() <= 1
    assert torch.isfinite(logits.grad).all()


def test_a_perfect_prediction_costs_nothing():
    targets = torch.rand(2, 1, 64, 64).round()
    assert dice_loss(200 * targets - 100, targets).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [20.0, -20.0])
def test_saturated_and_wrong_still_has_a_gradient_towards_the_truth(value):
    logits = torch.full((1, 1, 8, 8), value)
    targets = torch.zeros_like(logits)
    targets[..., :4] = 1
    logits[..., :4] = -value
    wrong = logits.clone().requires_grad_() if value > 0 else (-logits).clone().requires_grad_()
    dice_loss(wrong, targets).backward()
    assert (wrong.grad[targets == 1] < 0).all(), "raising these logits must lower the loss"
    assert (wrong.grad[targets == 0] > 0).all(), "lowering these logits must lower the loss"


def test_an_empty_mask_among_others_still_teaches():
    logits = torch.zeros(2, 1, 8, 8, requires_grad=True)
    targets = torch.zeros(2, 1, 8, 8)
    targets[1] = 1
    dice_loss(logits, targets).backward()
    empty, full = logits.grad
    assert (empty > 1e-4).all()
    assert (full < -1e-4).all()


def test_only_empty_masks_are_finite_and_push_down():
    logits = torch.zeros(2, 1, 8, 8, requires_grad=True)
    loss = dice_loss(logits, torch.zeros_like(logits))
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("loss", [bce_loss, dice_loss])
def test_gradients_against_finite_differences(loss):
    logits = torch.randn(2, 1, 3, 3, dtype=torch.float32, requires_grad=True)
    targets = torch.rand(2, 1, 3, 3).round()
    loss(logits, targets).backward()
    step = torch.zeros_like(logits)
    step[0, 0, 1, 1] = 1e-2
    slope = (loss(logits + step, targets) - loss(logits - step, targets)) / 2e-2
    assert logits.grad[0, 0, 1, 1].item() == pytest.approx(slope.item(), rel=2e-2)


@pytest.mark.parametrize("loss", [bce_loss, dice_loss])
def test_float32_under_autocast(loss):
    logits, targets = torch.randn(2, 1, 64, 64), torch.rand(2, 1, 64, 64).round()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(logits.bfloat16(), targets.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == loss(logits.bfloat16().float(), targets).item(), "computed in float32, not rounded to it"


@pytest.mark.parametrize("loss", [bce_loss, dice_loss])
def test_shapes_are_not_broadcast(loss):
    with pytest.raises(ValueError, match=r"logits have shape \(2, 1, 4, 4\), targets \(2, 4, 4\)"):
        loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


# --- The two parts of the ELBO ----------------------------------------------------------------------------------------


def test_gaussian_by_hand():
    logits, images = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.7, 0.4]]]])  # means 0.5: errors 0.2 and 0.1
    by_hand = (0.2**2 + 0.1**2) / (2 * 0.1**2) + 2 * math.log(0.1) + math.log(2 * math.pi)
    assert gaussian_loss(logits, images, torch.tensor(0.1).log()).item() == pytest.approx(by_hand, rel=1e-5)


def test_gaussian_against_torchs_distribution():
    logits, images = torch.randn(5, 3, 8, 8), torch.rand(5, 3, 8, 8)
    log_deviation = torch.tensor(-1.7)
    expected = -Normal(logits.sigmoid(), log_deviation.exp()).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_loss(logits, images, log_deviation), expected)


def test_the_best_deviation_of_a_gaussian_is_the_root_mean_square_error():
    logits, images = torch.randn(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    log_deviation = (logits.sigmoid() - images).square().mean().sqrt().log().requires_grad_()
    gaussian_loss(logits, images, log_deviation).sum().backward()
    assert log_deviation.grad.item() == pytest.approx(0, abs=1e-2)


def test_bernoulli_by_hand():
    logits = torch.tensor([[logit(0.9), logit(0.2)], [logit(0.5), logit(0.5)]])
    images = torch.tensor([[1.0, 0.0], [0.25, 1.0]])
    by_hand = [-math.log(0.9) - math.log(0.8), 2 * math.log(2)]
    assert bernoulli_loss(logits, images).tolist() == pytest.approx(by_hand, rel=1e-6)


def test_bernoulli_against_torchs_distribution():
    logits, images = torch.randn(3, 1, 8, 8), torch.rand(3, 1, 8, 8).round()
    expected = -Bernoulli(logits=logits).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_loss(logits, images), expected)


def test_a_grey_image_costs_what_its_random_black_and_white_draws_cost_on_average():
    logits, image = torch.randn(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
    draws = torch.bernoulli(image.expand(20_000, -1, -1, -1))
    average = bernoulli_loss(logits.expand_as(draws), draws).mean().item()
    assert bernoulli_loss(logits, image).item() == pytest.approx(average, rel=0.01)


def test_kl_by_hand():
    mean, variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [1.0, 1.0]])
    by_hand = [(1 + 4 - 1 - math.log(4)) / 2, 0]
    assert kl_loss(mean, variance.log()).tolist() == pytest.approx(by_hand)


def test_kl_against_torchs_distributions():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).sum(1)
    torch.testing.assert_close(kl_loss(mean, log_variance), expected)


def test_kl_by_monte_carlo():
    mean, log_variance = torch.tensor([[0.5, -1.0]]), torch.tensor([[-1.0, 0.3]])
    q, p = Normal(mean, (log_variance / 2).exp()), Normal(0, 1)
    z = q.sample((200_000,))
    estimate = (q.log_prob(z) - p.log_prob(z)).sum(-1).mean().item()
    assert kl_loss(mean, log_variance).item() == pytest.approx(estimate, rel=0.02)


def test_kl_is_smallest_at_mean_0_and_deviation_1_and_never_negative():
    mean, log_variance = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4, requires_grad=True)
    kl_loss(mean, log_variance).sum().backward()
    assert not mean.grad.any()
    assert not log_variance.grad.any()
    assert (kl_loss(1e-4 * torch.randn(1000, 4), 1e-4 * torch.randn(1000, 4)) >= 0).all()


def test_the_parts_of_the_elbo_refuse_broadcasting():
    with pytest.raises(ValueError, match=r"logits have shape \(2, 1, 4, 4\), images \(2, 4, 4\)"):
        bernoulli_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"means have shape \(2, 4\), log_variances \(1, 4\)"):
        kl_loss(torch.zeros(2, 4), torch.zeros(1, 4))


# --- The discriminator's loss, lookalikes, and the loss of the label-following model of photographs -------------------


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
    loss = adversarial_loss(judge, (made, labels[:4]), (real, labels), noise=0.0, weight=7.0)
    (loss + made.sum()).backward()  # the other loss's gradient must come through as it is

    twin, copy = Mean(), made.detach().requires_grad_()
    its_loss = F.softplus(twin(copy, labels[:4])).mean() + F.softplus(-twin(real, labels)).mean()
    assert loss.item() == pytest.approx(its_loss.item())
    (slope,) = torch.autograd.grad(its_loss, [twin.slope], retain_graph=True)
    makers = 7.0 * F.softplus(-twin(copy, labels[:4])).mean() + copy.sum()
    (expected,) = torch.autograd.grad(makers, [copy])
    torch.testing.assert_close(judge.slope.grad, slope)
    torch.testing.assert_close(made.grad, expected)


def test_images_are_shifted_and_noisy_on_their_way_in_made_and_real_alike(monkeypatch):
    seen = []

    class Blind(Mean):
        def forward(self, images, labels):
            seen.append(images.detach())
            return super().forward(0 * images, labels)

    made, real, labels = torch.rand(2, 1, 2, 2), torch.rand(3, 1, 2, 2), torch.arange(3)
    made.requires_grad_()
    torch.manual_seed(0)
    loss = adversarial_loss(Blind(), (made, labels[:2]), (real, labels), noise=0.5, weight=1.0)
    torch.manual_seed(0)
    assert torch.equal(seen[0], add_noise(random_shift(torch.cat([made.detach(), real]), 3), 0.5))
    assert loss.item() == pytest.approx(2 * torch.tensor(2.0).log().item())


def test_lookalikes_are_of_the_class_asked_for_and_nearest_in_layout():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(60) % 10)
    lookalikes = Lookalikes(split)
    assert torch.equal(lookalikes.find(images, split.targets), images)  # nobody is more alike than oneself
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
    assert Lookalikes.layout(image).tolist() == [pytest.approx([0, 1, 0.1, 0])]


NONE = {"guide": 0.0, "discriminator": 0.0, "lookalike": 0.0}


def setting():
    """Two small networks, a guide, and a batch of 16 pictures among which lookalikes are found."""
    torch.manual_seed(0)
    vae = ConditionalVAE((3, 32, 32), 10, 4, 4, 3, "decoder", "gaussian")
    models = nn.ModuleDict({"vae": vae, "discriminator": Discriminator(3, 4)})
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).requires_grad_(False)
    batch = Split(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10)
    return models, guide, Lookalikes(batch), batch


def loss_of(weights, warmup=1.0):
    models, guide, lookalikes, batch = setting()
    torch.manual_seed(1)
    return models, label_following_loss(models, batch[:2], Teachers(guide, 0.1, lookalikes), weights, warmup)


def test_without_further_terms_it_is_the_evidence_lower_bound():
    models, _, _, batch = setting()
    torch.manual_seed(1)
    expected = elbo_terms(models["vae"], to_unit(batch.images), batch.targets)
    _, terms = loss_of(NONE)
    assert terms["loss"] == expected["negative_elbo"]
    assert set(terms) == {"loss", *expected}
    _, terms = loss_of(NONE, warmup=0.25)
    assert terms["loss"].item() == pytest.approx((expected["reconstruction"] + 0.25 * expected["kl"]).item())


@pytest.mark.parametrize(("name", "term"), [("guide", "guide"), ("lookalike", "lookalike")])
def test_a_term_counts_by_its_weight(name, term):
    _, terms = loss_of(NONE | {name: 3.0}, warmup=0.5)
    expected = terms["reconstruction"] + 0.5 * terms["kl"] + 1.5 * terms[term]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_discriminators_loss_trains_it_the_discriminator_and_moves_the_decoder():
    decoders = []
    for weight in (1e-6, 1e6):
        models, terms = loss_of(NONE | {"discriminator": weight})
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

    weights = NONE | {"guide": 1.0, "lookalike": 1.0}
    label_following_loss(models, batch[:2], Teachers(guided, 0.0, lookalikes), weights, 1.0)
    images, labels = asked[0]
    assert torch.equal(images, batch.images[:4])
    assert not (labels == batch.targets[:4]).any()
    assert read == [8]
