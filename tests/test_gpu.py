"""Training steps on a simulated GPU, for machines without one: torch's fake tensors have shapes and devices, no values.

They refuse what a GPU would refuse, tensors on two devices, and what it would have to be waited for, a value.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.files import definitions
from utils import losses, metrics, training
from utils.classifiers import build_digit_guide, build_picture_guide
from utils.cvae import build_digit_vae, build_picture_vae
from utils.data import normalise, to_unit
from utils.results import NOTEBOOKS
from utils.unet import build_unet

_, MNIST, CIFAR10 = map(definitions, NOTEBOOKS.values())
UINT8, LABELS = torch.uint8, ((8,), torch.int64)
PETS, DIGITS, PICTURES = (((8, *shape), UINT8) for shape in ((3, 32, 32), (1, 28, 28), (3, 32, 32)))


@pytest.fixture
def gpu(monkeypatch):
    """What a GPU has, without one. A backward pass needs a real one: each gradient is 0."""
    monkeypatch.setattr(training, "best_precision", lambda device: torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.empty(2, device="cuda").uniform_()
        except RuntimeError as error:
            pytest.skip(f"this torch cannot simulate a GPU: {error}")
        yield torch.device("cuda")


def step(monkeypatch, model, loss, batch, momentum=None):
    """One training step of a model on the GPU, with a batch that comes from the CPU."""

    def backward(total):
        assert total.device.type == "cuda"
        for weights in model.parameters():
            weights.grad = torch.zeros_like(weights)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    optimiser, _ = training.build_optimiser(model, 20, 0.01, 0.01, momentum)
    batch = [torch.zeros(shape, dtype=kind) for shape, kind in batch]
    terms = training.train_step(model, batch, 0, loss, optimiser, max_grad_norm=3.0)
    assert {value.device.type for value in terms.values()} == {"cuda"}


@pytest.mark.parametrize("variant", ["MP+Tr+BCE", "StrConv+Ups+Dice"])
def test_a_step_of_a_unet(gpu, monkeypatch, variant):
    with gpu:
        model = build_unet(variant, 8, 4)

    def loss(model, batch, number):
        pixel_loss = losses.bce_loss if variant.endswith("BCE") else losses.dice_loss
        return {"loss": pixel_loss(model(normalise(batch[0])), batch[1])}

    step(monkeypatch, model, loss, [PETS, ((8, 1, 32, 32), torch.bool)], momentum=0.9)
    one_view, two_views = metrics.predict_two_views(model, torch.zeros(PETS[0], dtype=UINT8))
    assert one_view.device.type == two_views.device.type == "cpu"


@pytest.mark.parametrize("picture", [False, True])
def test_a_step_of_a_plain_vae(gpu, monkeypatch, picture):
    with gpu:
        model = build_picture_vae(8, 8, "decoder", 16) if picture else build_digit_vae(8, 8, "both")

    def loss(model, batch, number):
        terms = losses.elbo_terms(model, to_unit(batch[0]), batch[1])
        return {"loss": terms["reconstruction"] + terms["kl"]} | terms

    step(monkeypatch, model, loss, [PICTURES if picture else DIGITS, LABELS])


def test_a_step_of_the_guide_of_digits(gpu, monkeypatch):
    with gpu:
        guide = build_digit_guide()
    step(monkeypatch, guide, MNIST.guide_loss, [DIGITS, LABELS])


def test_a_step_of_the_label_following_digit_vae(gpu, monkeypatch):
    with gpu:
        model, guide = build_digit_vae(8, 8, "both"), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for name, value in {"warmup": lambda number: 1.0, "beta": 1.0}.items():
        monkeypatch.setitem(MNIST.wrong_label_loss.__globals__, name, value)

    def loss(model, batch, number):
        return MNIST.wrong_label_loss(model, batch, number, (5.0, 0.05), guide)

    step(monkeypatch, model, loss, [DIGITS, LABELS])


def test_a_step_of_the_label_following_picture_vae(gpu, monkeypatch):
    with gpu:
        vae, guide = build_picture_vae(8, 8, "decoder", 16), build_picture_guide(8)
        models = nn.ModuleDict({"vae": vae, "discriminator": CIFAR10.Discriminator(8)})
    monkeypatch.setitem(CIFAR10.guide_loss.__globals__, "random_shift", lambda images: images)  # draws on the CPU
    exemplars = object.__new__(CIFAR10.Exemplars)  # they were chosen before the step
    exemplars.images, exemplars.layouts = torch.zeros(10, 8, 3, 32, 32, device=gpu), torch.zeros(10, 8, 48, device=gpu)
    exemplars.near = 2
    teachers = CIFAR10.Teachers(guide, 0.4, exemplars)
    weights = {"guide": 100.0, "discriminator": 300.0, "exemplar": 1.0}

    def loss(models, batch, number):
        return CIFAR10.label_following_loss(models, batch, teachers, weights, 1.0)

    step(monkeypatch, models, loss, [PICTURES, LABELS])


def test_the_simulated_gpu_refuses_two_devices_and_to_be_waited_for(gpu):
    there = torch.zeros(2, device=gpu)
    with pytest.raises(RuntimeError, match="device"):
        there + torch.zeros(2)
    with pytest.raises(DataDependentOutputException):
        there.max().item()
