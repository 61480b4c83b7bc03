"""The conditional VAE: shapes, gradients, where the label enters, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from utils.cvae import LABEL_TO, ConditionalVAE
from utils.losses import bernoulli_loss, elbo_terms, guide_loss, kl_loss

CLASSES, LATENT = 10, 6


def build(label_to="both", shape=(1, 28, 28), depth=2):
    torch.manual_seed(0)
    return ConditionalVAE(shape, CLASSES, LATENT, base_channels=4, depth=depth, label_to=label_to)


def sample(count=5, shape=(1, 28, 28)):
    return torch.rand(count, *shape), torch.arange(count) % CLASSES


@pytest.mark.parametrize("label_to", LABEL_TO)
@pytest.mark.parametrize(("shape", "depth"), [((1, 28, 28), 2), ((3, 32, 32), 3), ((3, 16, 24), 1)])
def test_shapes_of_images_and_codes(label_to, shape, depth):
    logits, mean, log_variance = build(label_to, shape, depth)(*sample(5, shape))
    assert logits.shape == (5, *shape)
    assert mean.shape == log_variance.shape == (5, LATENT)


@pytest.mark.parametrize("label_to", LABEL_TO)
def test_every_parameter_gets_a_gradient(label_to):
    model, (images, labels) = build(label_to), sample(20)
    logits, mean, log_variance = model(images, labels)
    (bernoulli_loss(logits, images) + kl_loss(mean, log_variance)).mean().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("label_to", LABEL_TO)
def test_the_label_reaches_what_it_should_and_nothing_else(label_to):
    model, (images, labels) = build(label_to), sample()
    codes = torch.randn(5, LATENT)
    other = (labels + 1) % CLASSES
    encoder_moves = not torch.equal(model.encode(images, labels)[0], model.encode(images, other)[0])
    decoder_moves = not torch.equal(model.decode(codes, labels), model.decode(codes, other))
    assert encoder_moves == (label_to != "decoder")
    assert decoder_moves == (label_to != "encoder")


def test_the_label_is_a_one_hot_vector_through_a_linear_layer_without_bias():
    model = build()
    assert isinstance(model.embedding, nn.Linear)
    assert model.embedding.bias is None
    assert not any(isinstance(module, nn.Embedding) for module in model.modules())
    entered = []
    model.embedding.register_forward_hook(lambda _, inputs, __: entered.append(inputs[0]))
    model(*sample(3))
    for one_hot in entered:
        assert torch.equal(one_hot, torch.eye(CLASSES)[:3])
    assert len(entered) == 2


def test_codes_are_drawn_with_the_mean_and_deviation_asked_for():
    mean, log_variance = torch.full((20_000, 2), 3.0), torch.full((20_000, 2), 4.0).log()
    codes = build().reparameterise(mean, log_variance)
    assert codes.mean(0).tolist() == pytest.approx([3, 3], abs=0.1)
    assert codes.std(0).tolist() == pytest.approx([2, 2], rel=0.05)


def test_gradients_flow_through_the_draw():
    mean, log_variance = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    torch.manual_seed(0)
    codes = build().reparameterise(mean, log_variance)
    codes.sum().backward()
    assert mean.grad.tolist() == [[1, 1]]
    torch.testing.assert_close(log_variance.grad, codes.detach() / 2)  # d(exp(l / 2) noise) = noise / 2, at l = 0


def test_without_a_hidden_layer_the_code_is_linear_in_the_features():
    model = ConditionalVAE((3, 8, 8), CLASSES, LATENT, 4, 2, "both", "gaussian", hidden=0)
    assert isinstance(model.to_code, nn.Linear)
    assert isinstance(model.from_code, nn.Linear)
    logits, mean, _ = model(*sample(5, (3, 8, 8)))
    assert logits.shape == (5, 3, 8, 8)
    assert mean.shape == (5, LATENT)


def test_a_handful_of_images_is_learnt_by_heart():
    model, (images, labels) = build(), sample(4)  # in this order: `build` sets the seed
    images = images.round()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(200):
        logits, mean, log_variance = model(images, labels)
        losses.append((bernoulli_loss(logits, images) + kl_loss(mean, log_variance)).mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0] > 500
    assert losses[-1] < 100


def test_the_terms_are_the_losses_averaged_over_images():
    model, (images, labels) = build(), sample(6)
    torch.manual_seed(1)
    terms = elbo_terms(model, images, labels)
    torch.manual_seed(1)
    logits, mean, log_variance = model(images, labels)
    each = nn.BCEWithLogitsLoss(reduction="sum")(logits, images) / 6
    assert terms["reconstruction"].item() == pytest.approx(each.item(), rel=1e-5)
    assert terms["kl"].item() == pytest.approx(kl_loss(mean, log_variance).sum().item() / 6, rel=1e-5)
    assert terms["negative_elbo"] == terms["reconstruction"] + terms["kl"]


def test_a_gaussian_model_learns_colours_and_how_far_off_it_is():
    torch.manual_seed(0)
    colours, labels = torch.rand(8, 3, 1, 1) * 0.6 + 0.2, torch.arange(8)
    model = ConditionalVAE((3, 8, 8), CLASSES, LATENT, 4, 1, "both", "gaussian")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(300):
        images = (colours + 0.05 * torch.randn(8, 3, 8, 8)).clamp(0, 1)  # noise that no code can tell
        terms = elbo_terms(model, images, labels)
        optimiser.zero_grad()
        terms["negative_elbo"].backward()
        optimiser.step()
    assert model.log_deviation.exp().item() == pytest.approx(0.05, rel=0.2)
    with torch.inference_mode():
        logits, _, _ = model(images, labels)
    assert (logits.sigmoid() - colours).abs().mean() < 0.03
    expected = -Normal(logits.sigmoid(), model.log_deviation.exp()).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(model.reconstruction_loss(logits, images), expected)


def test_the_guide_moves_the_model_and_not_itself():
    model, (images, labels) = build(), sample()
    guide = nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES)).requires_grad_(False)
    torch.manual_seed(1)
    loss = guide_loss(model, guide, images, labels)
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    assert guide[1].weight.grad is None
    torch.manual_seed(1)
    made = model(images, labels)[0].sigmoid()
    by_hand = -guide(made).softmax(1)[range(5), labels].log().mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 10]), "labels reach from 0 to 10, expected 0 to 9"),
        (torch.tensor([-1, 3]), "labels reach from -1 to 3, expected 0 to 9"),
        (torch.tensor([1.0, 2.0]), r"labels are torch.float32 \(2,\), expected torch.int64 \(2,\)"),
        (torch.tensor([[1], [2]]), r"labels are torch.int64 \(2, 1\), expected torch.int64 \(2,\)"),
        (torch.tensor([1]), r"labels are torch.int64 \(1,\), expected torch.int64 \(2,\)"),
    ],
)
def test_labels_that_are_refused(labels, message):
    for ask in (lambda: build()(sample(2)[0], labels), lambda: build().decode(torch.zeros(2, LATENT), labels)):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 1, 32, 32), r"images are torch.float32 \(2, 1, 32, 32\), expected floats \(N, 1, 28, 28\)"),
        (torch.rand(1, 28, 28), r"images are torch.float32 \(1, 28, 28\), expected"),
        (torch.ones(2, 1, 28, 28, dtype=torch.uint8), "images are torch.uint8"),
        (255 * torch.ones(2, 1, 28, 28), "images reach from 255 to 255, expected 0 to 1"),
        (torch.ones(2, 1, 28, 28) - 2, "images reach from -1 to -1, expected 0 to 1"),
        (torch.full((2, 1, 28, 28), torch.nan), "images reach from nan to nan, expected 0 to 1"),
    ],
)
def test_images_that_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        build()(images, torch.tensor([1, 2]))


def test_codes_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"codes have shape \(2, 5\), expected \(N, 6\)"):
        build().decode(torch.zeros(2, 5), torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label_to": "nobody"}, "label_to='nobody', likelihood='bernoulli': choose from"),
        ({"likelihood": "poisson"}, "likelihood='poisson': choose from"),
        ({"depth": 3}, "images of 28 x 28 cannot be halved 3 times"),
        ({"latent_size": 0}, "latent_size=0: must be an integer of 1 or more"),
        ({"image_shape": (28, 28)}, "must be channels, height, width"),
        ({"hidden": -1}, "hidden=-1: must be an integer"),
    ],
)
def test_models_that_are_refused(changed, message):
    sizes = {"image_shape": (1, 28, 28), "classes": 10, "latent_size": 4, "base_channels": 4, "depth": 2}
    with pytest.raises(ValueError, match=message):
        ConditionalVAE(**(sizes | {"label_to": "both"} | changed))
