"""Published networks: what is refused without any data; with the real data, published scores come out again."""

import json
import os
import subprocess
import sys
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


# --- A notebook with pretrained = True --------------------------------------------------------------------------------


def test_the_published_scores_of_a_unet_come_out_again(tmp_path):
    """The whole of part 1 with one variant; the others would take minutes (test_published.py has their weights)."""
    if not (DATA / "oxford-iiit-pet").exists():
        pytest.skip("needs Oxford-IIIT Pet")
    notebook = "01_unet_segmentation.ipynb"
    given = {"run_dir": tmp_path, "pretrained": "true", "variants": '["StrConv+Ups+Dice"]'}
    words = [str(word) for name, value in given.items() for word in ("-y", f"{name}: {value}")]
    command = [sys.executable, "-m", "papermill", notebook, str(tmp_path / notebook), "--cwd", str(ROOT), *words]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    ours, theirs = (
        json.loads((folder / "unet.json").read_text(encoding="utf-8")) for folder in (tmp_path / "pretrained", RESULTS)
    )
    [(variant, row)] = ours["variants"].items()
    assert row == pytest.approx(theirs["variants"][variant], abs=2e-5)  # another number of threads
