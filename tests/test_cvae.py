"""The conditional VAE: shapes, gradients, where the label enters, that it learns, and what it refuses."""

from math import exp

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from utils.cvae import LABEL_TO, LIKELIHOODS, ConditionalVAE, build_digit_vae
from utils.losses import elbo_terms

LATENT = 6
each_label_to = pytest.mark.parametrize("label_to", LABEL_TO)


def sample(count, shape=(1, 28, 28)):
    return torch.rand(count, *shape), torch.arange(count) % 10


@each_label_to
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("shape", "depth", "hidden"), [((1, 28, 28), 2, 9), ((3, 32, 32), 3, 8), ((3, 16, 24), 1, 0)])
def test_shapes_and_every_parameter_gets_a_gradient(label_to, likelihood, shape, depth, hidden):
    model = ConditionalVAE(shape, 10, LATENT, 4, depth, label_to, likelihood, hidden)
    images, labels = sample(20, shape)
    assert isinstance(model.to_code, nn.Linear) == isinstance(model.from_code, nn.Linear) == (not hidden)
    logits, mean, log_variance = model(images, labels)
    assert logits.shape == (20, *shape)
    assert mean.shape == log_variance.shape == (20, LATENT)
    elbo_terms(model, images, labels)["negative_elbo"].backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@each_label_to
def test_the_label_reaches_what_it_should_and_nothing_else(label_to):
    model, (images, labels), codes = build_digit_vae(LATENT, 4, label_to), sample(5), torch.randn(5, LATENT)
    other = (labels + 1) % 10
    encoder_moves = not torch.equal(model.encode(images, labels)[0], model.encode(images, other)[0])
    decoder_moves = not torch.equal(model.decode(codes, labels), model.decode(codes, other))
    assert encoder_moves == (label_to != "decoder")
    assert decoder_moves == (label_to != "encoder")


def test_the_label_is_a_one_hot_vector_through_a_linear_layer_without_bias():
    model, entered = build_digit_vae(LATENT, 4, "both"), []
    assert isinstance(model.embedding, nn.Linear)
    assert model.embedding.bias is None
    assert not any(isinstance(module, nn.Embedding) for module in model.modules())
    model.embedding.register_forward_hook(lambda _, inputs, __: entered.append(inputs[0]))
    model(*sample(3))
    assert torch.equal(torch.stack(entered), torch.eye(10)[:3].expand(2, -1, -1))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_odd_image_cannot_make_the_loss_infinite(likelihood):
    model = ConditionalVAE((3, 16, 24), 10, LATENT, 4, 1, "both", likelihood, hidden=0)
    model.to_code.bias.data[LATENT:] = 1000
    terms = elbo_terms(model, *sample(5, (3, 16, 24)))
    assert terms["kl"].item() == pytest.approx(LATENT * (exp(10) - 10 - 1) / 2, rel=0.01), "by hand, of means near 0"
    assert terms["negative_elbo"].isfinite()


def test_codes_are_drawn_with_the_mean_and_deviation_asked_for_and_let_gradients_through():
    mean = torch.full((20_000, 2), 3.0, requires_grad=True)
    log_variance = torch.full((20_000, 2), 4.0).log().requires_grad_()
    codes = build_digit_vae(2, 4, "both").reparameterise(mean, log_variance)
    assert codes.mean(0).tolist() == pytest.approx([3, 3], abs=0.1)
    assert codes.std(0).tolist() == pytest.approx([2, 2], rel=0.05)
    codes.sum().backward()
    assert (mean.grad == 1).all()
    torch.testing.assert_close(log_variance.grad, (codes.detach() - 3) / 2)  # the derivative of exp(l / 2) * noise


def train(model, draw, labels, steps, learning_rate):
    """Minus the ELBO before each step."""
    optimiser, history = torch.optim.AdamW(model.parameters(), learning_rate), []
    for _ in range(steps):
        loss = elbo_terms(model, draw(), labels)["negative_elbo"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    return history


def test_a_handful_of_images_is_learnt_by_heart():
    model, (images, labels) = build_digit_vae(LATENT, 8, "both"), sample(4)
    history = train(model, images.round, labels, 300, 3e-3)
    assert history[0] > 500
    assert history[-1] < 100


def test_a_gaussian_model_learns_colours_and_how_far_off_it_is():
    model, colours = ConditionalVAE((3, 8, 8), 10, LATENT, 4, 1, "both", "gaussian"), torch.rand(8, 3, 1, 1) * 0.6 + 0.2

    def noisy():
        return (colours + 0.05 * torch.randn(8, 3, 8, 8)).clamp(0, 1)  # noise that no code can tell

    train(model, noisy, torch.arange(8), 300, 1e-2)
    assert model.log_deviation.exp().item() == pytest.approx(0.05, rel=0.2)
    images = noisy()
    logits = model(images, torch.arange(8))[0].detach()
    assert (logits.sigmoid() - colours).abs().mean() < 0.03
    expected = -Normal(logits.sigmoid(), model.log_deviation.exp()).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(model.reconstruction_loss(logits, images), expected)
