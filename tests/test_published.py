"""What is published, against the real data; skipped where that is absent."""

import json
import os
from pathlib import Path

import pytest
import torch

from utils.cvae import ConditionalVAE
from utils.data import load_pets
from utils.judge import accuracy, build_guide, build_judge, build_picture_guide, build_picture_judge
from utils.labelled import load_digits, load_pictures, to_unit
from utils.metrics import baselines, predict, segmentation_scores
from utils.published import Published
from utils.unet import DOWN, UP, UNet
from utils.wrong_labels import colour, evidence, obedience

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA_DIR", ROOT / "data"))
PARTS = ("unet", "cvae_mnist", "cvae_cifar10")
PUBLISHED = {part: json.loads((ROOT / "Results" / f"{part}.json").read_text("utf-8")) for part in PARTS}
UNETS, CVAES, COLOURED = PUBLISHED.values()
KINDS = {short: kind for kind, short in (DOWN | UP).items()}  # "MP": "maxpool", ...


def load_published(model, part, name):
    """The model with its weights from Results/, in evaluation mode."""
    return Published(part, PUBLISHED[part]["data"]).network(name, model)[0]


# --- Part 1 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets():
    if not (DATA / "oxford-iiit-pet").exists():
        pytest.skip("needs Oxford-IIIT Pet")
    return load_pets("oxford-iiit-pet", DATA, UNETS["image_size"])


def test_the_official_lists_and_the_published_baselines(pets):
    assert [len(split.names) for split in pets[1:]] == [3312, 368, 3669]
    rows = baselines(pets.train.trimaps, pets.test.trimaps)
    for name, row in UNETS["baselines"].items():
        assert rows[name] == pytest.approx(row)


@pytest.mark.parametrize("variant", UNETS["variants"])
def test_published_weights_find_validation_pets(pets, variant):
    """On 64 images of the validation split, the published (half-precision) weights are near their published score."""
    down, up, _ = variant.split("+")
    recipe = UNETS["recipe"]
    model = UNet(3, 1, recipe["base_channels"], recipe["depth"], KINDS[down], KINDS[up])
    load_published(model, "unet", variant)
    few = [part[:64] for part in pets.validation]
    scores = segmentation_scores(predict(model, few[0]) >= 0.5, few[1])
    assert scores["iou"] == pytest.approx(UNETS["variants"][variant]["iou_one_view"], abs=0.06)


# --- Part 2a ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    if not (DATA / "MNIST").exists():
        pytest.skip("needs MNIST")
    return load_digits("mnist", DATA)


def test_the_official_splits_of_mnist(digits):
    assert [len(split.labels) for split in digits[2:]] == [55_000, 5_000, 10_000]


@pytest.mark.parametrize(("name", "build"), [("judge", build_judge), ("guide", build_guide)])
def test_published_classifiers_read_as_published(digits, name, build):
    classifier = load_published(build((1, 28, 28), 10), "cvae_mnist", name)
    assert accuracy(classifier, *digits.test) == pytest.approx(CVAES[f"{name}_accuracy"], abs=3e-4)


@pytest.mark.parametrize("name", CVAES["models"])
def test_published_vaes_answer_a_wrong_label_as_published(digits, name):
    """-ELBO on the whole test set with the notebook's own draw of the codes, the wrong labels on 500 images of it."""
    recipe, published = CVAES["recipe"], CVAES["models"][name]
    model = ConditionalVAE((1, 28, 28), 10, recipe["latent_size"], recipe["base_channels"], 2, "both")
    load_published(model, "cvae_mnist", name)
    judge = load_published(build_judge((1, 28, 28), 10), "cvae_mnist", "judge")
    images, labels = to_unit(digits.test.images), digits.test.labels
    torch.manual_seed(CVAES["seed"])  # another draw differs by 0.06, the half precision of the weights by 0.0004
    assert evidence(model, images, labels)["negative_elbo"] == pytest.approx(published["negative_elbo"], abs=0.01)
    measured = obedience(model, judge, images[:500], labels[:500], {})
    for measure in ("wrong_label_agreement", "swap_agreement", "own_label_agreement"):
        assert measured[measure] == pytest.approx(published[measure], abs=0.06)


# --- Part 2b ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    if not (DATA / "cifar10").exists():
        pytest.skip("needs CIFAR-10")
    return load_pictures("cifar10", DATA)


def test_the_official_splits_of_cifar10(pictures):
    assert [len(split.labels) for split in pictures[2:]] == [45_000, 5_000, 10_000]
    assert pictures.test.labels.bincount().tolist() == [1_000] * 10


@pytest.mark.parametrize(("name", "build"), [("judge", build_picture_judge), ("guide", build_picture_guide)])
def test_published_classifiers_read_pictures_as_published(pictures, name, build):
    classifier = load_published(build(10, COLOURED["recipe"][f"{name}_channels"]), "cvae_cifar10", name)
    some = pictures.test.images[::5], pictures.test.labels[::5]
    assert accuracy(classifier, *some) == pytest.approx(COLOURED[f"{name}_accuracy"], abs=0.03)


@pytest.mark.parametrize(("name", "label_to"), [("plain", "both"), ("faithful", "decoder")])
def test_published_vaes_of_pictures_answer_a_wrong_label_as_published(pictures, name, label_to):
    """On 200 test images."""
    recipe, published = COLOURED["recipe"], COLOURED["models"][name]
    shape, hidden = ((3, 32, 32), 10, recipe["latent_size"], recipe["base_channels"], 3), {"plain": 0}
    model = ConditionalVAE(*shape, label_to, "gaussian", hidden.get(name, recipe["hidden"]))
    load_published(model, "cvae_cifar10", name)
    judge = load_published(build_picture_judge(10, recipe["judge_channels"]), "cvae_cifar10", "judge")
    images, labels = to_unit(pictures.test.images[::50]), pictures.test.labels[::50]
    torch.manual_seed(1)
    assert evidence(model, images, labels)["negative_elbo"] == pytest.approx(published["negative_elbo"], rel=0.05)
    measured = obedience(model, judge, images, labels, {"colour": colour})
    for measure in ("wrong_label_agreement", "own_label_agreement", "style_retention", "colour_kept"):
        assert measured[measure] == pytest.approx(published[measure], abs=0.12)
