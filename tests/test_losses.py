"""Losses against values computed by hand, against independent implementations, and where they are easily wrong."""

from copy import deepcopy
from math import log, pi

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from tests.files import definitions
from utils import losses
from utils.classifiers import add_noise
from utils.cvae import ConditionalVAE, build_digit_vae
from utils.data import Split, to_unit
from utils.results import NOTEBOOKS

_, MNIST, CIFAR10 = map(definitions, NOTEBOOKS.values())


def test_losses_of_pixels_and_codes_by_hand():
    logits, targets = torch.tensor([[0.9, 0.2, 0.6]]).logit(), torch.tensor([[1.0, 0.0, 1.0]])
    nats = -(log(0.9) + log(0.8) + log(0.6))
    assert losses.bce_loss(logits, targets).item() == pytest.approx(nats / 3)
    assert losses.bernoulli_loss(logits, targets).tolist() == pytest.approx([nats])
    dice = 1 - (2 * (0.9 + 0.6) + 1e-5) / ((0.9 + 0.2 + 0.6) + 2 + 1e-5)
    assert losses.dice_loss(logits, targets).item() == pytest.approx(dice, rel=1e-6)
    density = (0.1**2 + 0.2**2 + 0.4**2) / (2 * 0.1**2) + 3 * log(0.1) + 1.5 * log(2 * pi)
    assert losses.gaussian_loss(logits, targets, torch.tensor(0.1).log()).tolist() == pytest.approx([density], rel=1e-5)
    mean, variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [1.0, 1.0]])
    assert losses.kl_loss(mean, variance.log()).tolist() == pytest.approx([(1 + 4 - 1 - log(4)) / 2, 0])


@pytest.mark.parametrize("scale", [0.1, 1, 3])
def test_values_and_gradients_against_torch_in_float64(scale):
    logits, targets = (scale * torch.randn(4, 64)).requires_grad_(), torch.rand(4, 64).round()
    wide, t = logits.detach().double().requires_grad_(), targets.double()
    p, deviation = wide.sigmoid(), torch.tensor(0.2)
    dice = 1 - (2 * (p * t).sum() + losses.EPSILON) / (p.sum() + t.sum() + losses.EPSILON)
    for value, expected in (
        (losses.bce_loss(logits, targets), nn.BCELoss()(p, t)),
        (losses.dice_loss(logits, targets), dice),
        (losses.bernoulli_loss(logits, targets), -Bernoulli(logits=wide).log_prob(t).sum(1)),
        (losses.gaussian_loss(logits, targets, deviation.log()), -Normal(p, deviation).log_prob(t).sum(1)),
        (losses.kl_loss(logits, targets), kl_divergence(Normal(wide, (t / 2).exp()), Normal(0, 1)).sum(1)),
        (losses.kl_loss(targets, logits), kl_divergence(Normal(t, (wide / 2).exp()), Normal(0, 1)).sum(1)),
    ):
        both = (value, logits), (expected, wide)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        (ours,), (theirs,) = (torch.autograd.grad(part.sum(), leaf, retain_graph=True) for part, leaf in both)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [-100.0, -20.0, 0.0, 20.0, 100.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_dice_of_uniform_images_is_finite_and_in_range(value, target):
    logits = torch.full((2, 1, 64, 64), value, requires_grad=True)
    loss = losses.dice_loss(logits, torch.full((2, 1, 64, 64), target))
    loss.backward()
    assert 0 <= loss <= (1e-6 if value == 200 * target - 100 else 1), "a perfect prediction costs nothing"
    assert logits.grad.isfinite().all()


def test_dice_of_saturated_wrong_logits_and_of_empty_masks_still_teaches():
    targets = torch.zeros(2, 1, 8, 8)
    targets[1] = 1  # the first image's mask is empty
    for logits, least in ((20 - 40 * targets, 0), (torch.zeros_like(targets), 1e-4)):
        losses.dice_loss(logits.requires_grad_(), targets).backward()
        assert (logits.grad[0] > least).all(), "lowering these logits must lower the loss"
        assert (logits.grad[1] < -least).all(), "raising these logits must lower the loss"
    empty, logits = torch.zeros_like(targets), torch.zeros_like(targets, requires_grad=True)
    loss = losses.dice_loss(logits, empty)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert (logits.grad > 0).all()


@pytest.mark.parametrize(
    "loss",
    [
        losses.bce_loss,
        losses.dice_loss,
        losses.bernoulli_loss,
        lambda logits, images: losses.gaussian_loss(logits, images, torch.tensor(-1.5)),
        lambda mean, log_variance: losses.kl_loss(mean.flatten(1), log_variance.flatten(1)),
    ],
)
def test_losses_are_float32_under_autocast(loss):
    logits, targets = torch.randn(2, 1, 64, 64).bfloat16(), torch.rand(2, 1, 64, 64).round()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(logits, targets.bfloat16())
    assert low.dtype == torch.float32
    assert torch.equal(low, loss(logits.float(), targets)), "computed in float32, not rounded to it"


def test_a_grey_image_costs_what_its_random_black_and_white_draws_cost_on_average():
    logits, image = torch.randn(1, 1, 4, 4), torch.rand(1, 1, 4, 4)
    draws = torch.bernoulli(image.expand(20_000, -1, -1, -1))
    average = losses.bernoulli_loss(logits.expand_as(draws), draws).mean().item()
    assert losses.bernoulli_loss(logits, image).item() == pytest.approx(average, rel=0.01)


def test_the_best_deviation_of_a_gaussian_is_the_root_mean_square_error():
    logits, images = torch.randn(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    log_deviation = (logits.sigmoid() - images).square().mean().sqrt().log().requires_grad_()
    losses.gaussian_loss(logits, images, log_deviation).sum().backward()
    assert log_deviation.grad.item() == pytest.approx(0, abs=1e-2)


def test_kl_is_smallest_at_mean_0_and_deviation_1_and_never_negative():
    code = torch.zeros(1, 4, requires_grad=True)
    losses.kl_loss(code, code).sum().backward()
    assert not code.grad.any()
    assert (losses.kl_loss(1e-4 * torch.randn(1000, 4), 1e-4 * torch.randn(1000, 4)) >= 0).all()


def test_the_terms_of_the_elbo_are_the_losses_averaged_over_images():
    model, images, labels = build_digit_vae(6, 4, "both"), torch.rand(6, 1, 28, 28), torch.arange(6)
    torch.manual_seed(1)
    terms = losses.elbo_terms(model, images, labels)
    torch.manual_seed(1)
    logits, mean, log_variance = model(images, labels)
    pixels = nn.BCEWithLogitsLoss(reduction="sum")(logits, images)
    assert terms["reconstruction"].item() == pytest.approx(pixels.item() / 6, rel=1e-5)
    assert terms["kl"].item() == pytest.approx(losses.kl_loss(mean, log_variance).sum().item() / 6, rel=1e-5)
    assert terms["negative_elbo"] == terms["reconstruction"] + terms["kl"]


# --- Classifiers, and what they teach ---------------------------------------------------------------------------------


def test_classifier_loss_with_smoothing_and_noise():
    classifier, labels = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)), torch.tensor([1, 5, 9])
    batch = torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8), labels
    log_shares = classifier(batch[0] / 255).log_softmax(1)
    right, all_classes = log_shares[range(3), labels].mean(), log_shares.mean()
    for smoothing in (0.0, 0.1):
        loss = losses.classifier_loss(classifier, batch, smoothing=smoothing)["loss"]
        torch.testing.assert_close(loss, -(1 - smoothing) * right - smoothing * all_classes)
    assert losses.classifier_loss(classifier, batch, noise=0.5)["loss"] != -right
    nn.init.zeros_(classifier[1].weight)
    nn.init.zeros_(classifier[1].bias)
    assert losses.classifier_loss(classifier, batch)["loss"].item() == pytest.approx(log(10)), "by hand"


def test_the_label_following_digit_loss_by_its_weights_on_a_quarter_of_the_batch(monkeypatch):
    model, guide = build_digit_vae(6, 4, "both"), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    images, labels, shown = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8), torch.arange(8), []
    terms_of = MNIST.wrong_label_terms
    names = {"beta": 2.0, "warmup_epochs": 2.0, "batches": range(10)}  # warm after 20 steps
    names["wrong_label_terms"] = lambda *arguments: shown.append(arguments) or terms_of(*arguments)
    for name, value in names.items():
        monkeypatch.setitem(MNIST.wrong_label_loss.__globals__, name, value)
    for step, warmth in ((0, 0.0), (5, 0.25), (20, 1.0), (99, 1.0)):
        terms = MNIST.wrong_label_loss(model, (images, labels), step, (3.0, 0.5), guide)
        added = 3.0 * terms["guide"] + 0.5 * terms["consistency"]
        expected = terms["reconstruction"] + 2.0 * warmth * terms["kl"] + warmth * added
        torch.testing.assert_close(terms["loss"], expected)
    _, _, some, true, sent = shown[0]
    assert torch.equal(some, to_unit(images[:2]))
    assert torch.equal(true, labels[:2])
    assert not (sent == true).any()


def test_wrong_labels_move_the_model_and_not_the_target():
    model, images, labels = build_digit_vae(6, 4, "both"), torch.rand(5, 1, 28, 28), torch.arange(5)
    guide, sent = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False), torch.arange(5) + 1
    torch.manual_seed(1)
    terms = MNIST.wrong_label_terms(model, guide, images, labels, sent)
    terms["guide"].backward(retain_graph=True)
    assert all(parameter.grad.any() for parameter in model.parameters())
    torch.manual_seed(1)
    by_hand = -guide(model(images, sent)[0].sigmoid()).softmax(1)[range(5), sent].log().mean()
    assert terms["guide"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    model.zero_grad()
    terms["consistency"].backward()
    assert model.embedding.weight.grad[:, 0].eq(0).all(), "0 was sent to none: the code of the right label is a target"
    assert model.embedding.weight.grad[:, 5].any(), "5 was sent"
    assert all(weights.grad is None for weights in model.decoder.parameters()), "nothing to hide the code in"
    torch.manual_seed(1)
    made = model(images, sent)[0].sigmoid()
    right, *others = (model.encode(*pair) for pair in ((images, labels), (images, sent), (made, sent)))
    right, *others = (Normal(mean, (log_variance / 2).exp()) for mean, log_variance in (right, *others))
    independent = sum(kl_divergence(other, right).sum(1).mean() for other in others)
    assert terms["consistency"].item() == pytest.approx(independent.item(), rel=1e-4)


class Scorer(nn.Module):
    """Scores an image by a weighted sum, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(1, 4, 4))

    def forward(self, images, labels):
        self.shown = images.detach()
        return (self.weights * images).sum((1, 2, 3)) + 0 * labels


def test_one_backward_pass_gives_the_gradients_of_both_losses_on_shifted_noisy_images():
    made, real, labels = torch.rand(4, 1, 4, 4, requires_grad=True), torch.rand(5, 1, 4, 4), torch.arange(5)
    scorer, copy = Scorer(), made.detach().requires_grad_()
    twin = deepcopy(scorer)
    torch.manual_seed(1)
    loss = CIFAR10.adversarial_loss(scorer, (made, labels[:4]), (real, labels), its_noise=0.5, weight=7.0)
    (loss + made.sum()).backward()  # the other loss's gradient must come through as it is

    torch.manual_seed(1)
    scores = twin(add_noise(CIFAR10.random_shift(torch.cat([copy, real])), 0.5), labels[[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    assert torch.equal(scorer.shown, twin.shown)
    expected = F.softplus(scores[:4]).mean() + F.softplus(-scores[4:]).mean()
    torch.testing.assert_close(loss, expected)
    (of_weights,) = torch.autograd.grad(expected, [twin.weights], retain_graph=True)
    (of_made,) = torch.autograd.grad(7.0 * F.softplus(-scores[:4]).mean() + copy.sum(), [copy])
    torch.testing.assert_close(scorer.weights.grad, of_weights)
    torch.testing.assert_close(made.grad, of_made)
    nn.init.zeros_(scorer.weights)
    undecided = CIFAR10.adversarial_loss(scorer, (made, labels[:4]), (real, labels), its_noise=0.0, weight=1.0)
    assert undecided.item() == pytest.approx(2 * log(2)), "by hand"


def exemplars_of(split, guide, count, near=1):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CIFAR10.Exemplars.__init__.__globals__, "device", torch.device("cpu"))
        return CIFAR10.Exemplars(split, guide, count, near)


def test_exemplars_are_those_that_the_guide_is_surest_of():
    images, labels = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8), torch.arange(60) % 10
    torch.manual_seed(0)
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    exemplars = exemplars_of(Split(images, labels), guide, 2)
    sure = guide(to_unit(images)).softmax(1)
    for label in range(10):
        best = sorted(range(label, 60, 10), key=lambda index: -sure[index, label].item())[:2]
        assert torch.equal(exemplars.images[label], to_unit(images[best]))
    few = exemplars_of(Split(images[:25], labels[:25]), guide, 8, near=4)  # two or three of each class
    assert (few.images.shape[:2], few.near) == ((10, 2), 2)


def test_the_target_is_the_nearest_to_the_output_of_the_exemplars_nearest_in_layout():
    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8), torch.arange(160) % 10)
    exemplars = exemplars_of(split, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 8, near=2)
    sources, outputs, labels = torch.rand(6, 3, 32, 32) / 2, torch.rand(6, 3, 32, 32), torch.tensor([3, 7, 3, 0, 9, 1])

    def layout(image):
        blocks = image.double().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))  # (3, 4, 4)
        return blocks - image.double().mean((1, 2))[:, None, None]

    for found, source, output, label in zip(exemplars.find(outputs, sources, labels), sources, outputs, labels):
        own = exemplars.images[label]
        alike = sorted(own, key=lambda image: (layout(image) - layout(source)).square().sum())[:2]
        painted = [CIFAR10.repaint(image[None], source[None], 8)[0] for image in alike]
        torch.testing.assert_close(found, min(painted, key=lambda image: (image - output).square().sum()))


def test_the_nearest_validation_picture_is_of_the_class_asked_for_and_nearest_in_its_means(monkeypatch):
    images, labels = torch.rand(60, 3, 32, 32), torch.arange(60) % 10
    nearest_picture = CIFAR10.nearest_validation_picture
    monkeypatch.setitem(nearest_picture.__globals__, "held_out", (images, labels))
    assert torch.equal(nearest_picture(images, labels), images), "nobody is nearer than oneself"
    blocks = images.double().unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(1)
    for one, mine in zip(nearest_picture(images[:7], torch.full((7,), 4)), blocks):
        nearest = min(range(4, 60, 10), key=lambda index: (blocks[index] - mine).square().sum().item())
        assert torch.equal(one, images[nearest])


def test_layout_by_hand():
    image = torch.zeros(1, 1, 16, 16)
    image[..., :8, 8:], image[..., 8:, :4] = 1.0, 0.4  # squares of mean 0, 1, 0.2 and 0; of all, 0.3
    assert CIFAR10.layout(image).tolist() == [pytest.approx([-0.3, 0.7, -0.1, -0.3])]


def setting(count=16):
    """Two small networks, what teaches them, and pictures of which some are exemplars."""
    torch.manual_seed(0)
    vae = ConditionalVAE((3, 32, 32), 10, 4, 4, 3, "decoder", "gaussian")
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).requires_grad_(False)
    split = Split(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10)
    models = nn.ModuleDict({"vae": vae, "discriminator": CIFAR10.Discriminator(4)})
    return (
        models,
        (split.images[:count], split.targets[:count]),
        CIFAR10.Teachers(guide, 0.1, exemplars_of(split, guide, 1)),
    )


def loss_of(warmup=1.0, count=16, **weights):
    models, batch, teachers = setting(count)
    torch.manual_seed(1)
    weights = {"guide": 0.0, "discriminator": 0.0, "exemplar": 0.0} | weights
    return models, CIFAR10.label_following_loss(models, batch, teachers, weights, warmup)


def test_the_label_following_loss_without_further_terms_is_the_elbo():
    models, (images, labels), _ = setting()
    torch.manual_seed(1)
    expected = losses.elbo_terms(models["vae"], to_unit(images), labels)
    _, terms = loss_of()
    assert terms == {"loss": expected["negative_elbo"], **expected}
    _, terms = loss_of(warmup=0.25)
    assert terms["loss"].item() == pytest.approx((expected["reconstruction"] + 0.25 * expected["kl"]).item())


@pytest.mark.parametrize("name", ["guide", "exemplar"])
def test_a_term_counts_by_its_weight(name):
    _, terms = loss_of(warmup=0.5, **{name: 3.0})
    expected = terms["reconstruction"] + 0.5 * terms["kl"] + 1.5 * terms[name]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_its_discriminator_is_trained_and_moves_the_decoder_by_its_weight():
    decoders = []
    for weight, warmup in ((1.0, 1.0), (6.0, 0.5)):
        models, terms = loss_of(warmup, discriminator=weight)
        terms["discriminator"].backward()
        assert all(parameter.grad.any() for parameter in models["discriminator"].parameters())
        decoders.append(models["vae"].from_code[0].weight.grad)
    torch.testing.assert_close(3 * decoders[0], decoders[1], rtol=1e-4, atol=1e-9)
    assert terms["loss"] == terms["reconstruction"] + 0.5 * terms["kl"] + terms["discriminator"]


def test_only_wrong_labels_have_exemplars_and_the_guide_reads_right_ones_too_in_noise():
    models, (images, labels), teachers = setting()
    asked, read, told, judged = [], [], [], []
    models["discriminator"].register_forward_pre_hook(lambda _, inputs: judged.append(inputs[1]))
    models["vae"].register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
    teachers.exemplars.find = lambda *arguments: asked.append(arguments) or arguments[1]
    teachers = teachers._replace(noise=5.0, guide=lambda shown: read.append(shown) or torch.zeros(len(shown), 10))
    weights = {"guide": 1.0, "discriminator": 1.0, "exemplar": 1.0}
    terms = CIFAR10.label_following_loss(models, (images, labels), teachers, weights, 1.0)
    [(outputs, sources, sent)] = asked
    assert outputs.shape == sources.shape
    assert not outputs.requires_grad
    assert torch.equal(sources, to_unit(images[:4]))
    assert not (sent == labels[:4]).any()
    [shown] = read
    assert shown.shape == (6, 3, 32, 32)
    assert (shown < 0).any()
    assert torch.equal(told[1], torch.cat([sent, labels[4:6]])), "a quarter wrong, an eighth right"
    assert torch.equal(judged[0], torch.cat([told[1], labels[6:]])), "what is not sent again is real"
    density = Normal(outputs, models["vae"].log_deviation.exp()).log_prob(sources).flatten(1).sum(1)
    assert terms["exemplar"].item() == pytest.approx(-density.mean().item(), rel=1e-5)


def test_the_loss_of_the_plain_picture_vae_warms_up(monkeypatch):
    monkeypatch.setitem(CIFAR10.plain_loss.__globals__, "warmup_batches", 20)
    models, batch, _ = setting()
    terms = CIFAR10.plain_loss(models["vae"], batch, 5)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 0.25 * terms["kl"])


def test_the_guide_of_pictures_reads_shifted_noisy_outputs_by_hand():
    guide, sent = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), torch.tensor([1, 0, 9, 4])
    outputs = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    loss = CIFAR10.guide_loss(guide, outputs, sent, 0.5)
    torch.manual_seed(1)
    shown = add_noise(CIFAR10.random_shift(outputs), 0.5)
    torch.testing.assert_close(loss, -guide(shown).softmax(1)[range(4), sent].log().mean())


def test_it_takes_four_images_or_more():
    for count in range(4, 10):
        _, terms = loss_of(count=count, guide=1.0, discriminator=1.0, exemplar=1.0)
        assert all(term.isfinite() for term in terms.values())
