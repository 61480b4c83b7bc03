"""Published networks: what is refused without any data; with the real data, the published numbers come out again."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.published import RESULTS, Published, PublishedError, round_weights, save_network, save_trainings
from utils.storage import DamagedFileError, save_json
from utils.training import Training

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA_DIR", ROOT / "data"))
COURSE = Training([{"loss": 0.5, "score": 0.75}, {"loss": 0.25, "score": 0.5}], [1.5, 2.5], best_epoch=0)


def build(features=3):
    return nn.Sequential(nn.Linear(2, features), nn.BatchNorm1d(features))


@pytest.fixture
def folder(tmp_path):
    """A published part with one network, "judge"."""
    torch.manual_seed(0)
    model = build()
    model(torch.randn(8, 2))  # statistics of its own
    save_network(tmp_path / "digits_judge.pt", model)
    save_trainings(tmp_path / "digits_trainings.json", "mnist", {"judge": COURSE})
    save_json(tmp_path / "digits.json", {"data": "mnist", "answer": 42})
    return tmp_path


def test_a_network_comes_back_with_its_training(folder):
    torch.manual_seed(0)
    original = build()
    original(torch.randn(8, 2))
    round_weights(original)
    published = Published("digits", "mnist", folder)
    model, training = published.network("judge", build())
    assert training == COURSE
    assert published.summary["answer"] == 42
    assert not model.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


def test_rounding_is_to_half_precision_and_spares_counters():
    model = build()
    with torch.no_grad():
        model[0].weight.fill_(1 + 2**-12)  # halfway between nothing and nothing: half precision has ten bits
        model[1].num_batches_tracked.fill_(100_001)
    round_weights(model)
    assert model[0].weight.eq(1).all()
    assert model[1].num_batches_tracked == 100_001


@pytest.mark.parametrize("name", ["digits.json", "digits_trainings.json", "digits_judge.pt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(PublishedError, match=f"{name} is missing: .* or set pretrained to False"):
        Published("digits", "mnist", folder).network("judge", build())


def test_other_data_and_other_sizes_are_refused(folder):
    with pytest.raises(PublishedError, match="learnt from 'mnist', not from 'stand-in'"):
        Published("digits", "stand-in", folder)
    with pytest.raises(PublishedError, match=r"digits_judge\.pt is of a network of another size"):
        Published("digits", "mnist", folder).network("judge", build(features=4))


def test_damaged_weights_are_named(folder):
    path = folder / "digits_judge.pt"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DamagedFileError, match=r"digits_judge\.pt is damaged"):
        Published("digits", "mnist", folder).network("judge", build())


# --- The notebooks with pretrained = True -----------------------------------------------------------------------------

PARTS = {  # part: (its notebook, its data, parameters that spare time)
    "unet": ("01_unet_segmentation.ipynb", "oxford-iiit-pet", {"variants": '["StrConv+Ups+Dice"]'}),
    "cvae_mnist": ("02_conditional_vae_mnist.ipynb", "MNIST", {}),
    "cvae_cifar10": ("03_conditional_vae_cifar10.ipynb", "cifar10", {}),
}


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    """What each notebook writes when it starts from the published weights."""
    if missing := [folder for _, folder, _ in PARTS.values() if not (DATA / folder).exists()]:
        pytest.skip(f"needs the real data: {', '.join(missing)}")

    def run(part):
        notebook, _, parameters = PARTS[part]
        folder = tmp_path_factory.mktemp(part)
        given = {"run_dir": folder, "pretrained": "true"} | parameters
        words = [str(word) for name, value in given.items() for word in ("-y", f"{name}: {value}")]
        command = [sys.executable, "-m", "papermill", notebook, folder / notebook, "--cwd", ROOT, *words]
        where = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, **where)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads((folder / "pretrained" / f"{part}.json").read_text(encoding="utf-8"))

    with ThreadPoolExecutor(max_workers=2) as pool:  # on two cores, two at a time
        return dict(zip(PARTS, pool.map(run, PARTS)))


def published(part):
    """The published numbers of a part."""
    return json.loads((RESULTS / f"{part}.json").read_text(encoding="utf-8"))


def test_the_published_scores_of_a_unet_come_out_again(summaries):
    [(variant, row)] = summaries["unet"]["variants"].items()
    assert row == pytest.approx(published("unet")["variants"][variant], abs=2e-5)  # another number of threads


def test_the_published_numbers_of_digits_come_out_again(summaries):
    theirs = published("cvae_mnist")
    for part in ("models", "baselines"):
        for name, row in summaries["cvae_mnist"][part].items():
            assert row == pytest.approx(theirs[part][name], rel=1e-5, abs=1e-4), name
    for name in ("judge_accuracy", "guide_accuracy"):
        assert summaries["cvae_mnist"][name] == pytest.approx(theirs[name], abs=1e-4)


def test_the_published_numbers_of_pictures_come_out_again(summaries):
    """Those of wrong labels on the first 500 test pictures, all others on all."""
    ours, theirs = summaries["cvae_cifar10"], published("cvae_cifar10")
    for name, row in ours["models"].items():
        expected = theirs["models"][name] | theirs["first_500"][name]
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-3), name
    for name, row in ours["baselines"].items():
        assert row == pytest.approx(theirs["baselines"][name], abs=1e-3), name
    for name in ("judge_accuracy", "guide_accuracy"):
        assert ours[name] == pytest.approx(theirs[name], abs=3e-4)
