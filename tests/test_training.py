"""Training: it learns, it resumes exactly after a real SIGKILL, and it refuses what it must not continue."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import albumentations
import pytest
import torch
from torch import nn

from utils import data, losses, training
from utils.data import PetBatches, load_pets, to_input
from utils.metrics import predict, segmentation_scores
from utils.muon import Muon
from utils.storage import DamagedFileError, StorageError, load_tensors, save_tensors
from utils.training import CheckpointError, DivergedError, best_precision, fit
from utils.unet import UNet

RECIPE = {"learning_rate": 1e-2, "weight_decay": 1e-2, "settings": {"seed": 0}}


class Lines:
    """Batches of points on y = 2x + 1, other points in each epoch, always the same for the same epoch."""

    def __len__(self):
        return 5

    def epoch(self, number):
        generator = torch.Generator().manual_seed(number)
        for _ in range(len(self)):
            x = torch.rand(16, 1, generator=generator)
            yield x, 2 * x + 1


def squared_error(model, batch, step):
    x, y = batch
    noise = 1e-3 * torch.randn(len(x), 1)  # makes the result depend on the random state
    error = (model(x) + noise - y).square().mean()
    return {"loss": error, "twice": 2 * error}


def closeness(model):
    return {"score": -(model.weight - 2).abs().item()}


def train(checkpoint, epochs=6, loss=squared_error, score=closeness, **changes):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    return model, fit(model, Lines(), loss, score, epochs=epochs, checkpoint=checkpoint, **(RECIPE | changes))


def equal(a, b):
    """Bit for bit, in nested dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b


def without_times(checkpoint):
    return {key: value for key, value in load_tensors(checkpoint).items() if key != "seconds"}


def test_history_has_a_row_for_each_epoch(tmp_path):
    _, result = train(tmp_path / "line.pt")
    assert len(result.history) == len(result.seconds) == 6
    assert result.history[0].keys() == {"loss", "twice", "score", "learning_rate"}
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[0]["twice"] == pytest.approx(2 * result.history[0]["loss"])


def test_the_best_weights_are_kept(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    weights = []

    def score(model):
        weights.append(model.weight.item())
        return {"score": next(scores)}

    model, result = train(tmp_path / "line.pt", epochs=4, score=score)
    assert result.best_epoch == 1
    assert model.weight.item() == weights[1] != weights[3]


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_an_interrupted_training_goes_on_to_the_same_numbers(tmp_path, momentum):
    train(tmp_path / "unbroken.pt", momentum=momentum)
    interrupted = tmp_path / "interrupted.pt"

    def stop_in_the_fourth_epoch(model):
        if len(load_tensors(interrupted)["history"] if interrupted.exists() else []) == 3:
            raise KeyboardInterrupt
        return closeness(model)

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, momentum=momentum, score=stop_in_the_fourth_epoch)
    assert len(load_tensors(interrupted)["history"]) == 3
    torch.manual_seed(999)  # whatever happened in between
    train(interrupted, momentum=momentum)
    assert equal(without_times(interrupted), without_times(tmp_path / "unbroken.pt"))


def test_a_finished_training_is_only_loaded(tmp_path):
    model, first = train(tmp_path / "line.pt")

    def never(*_):
        pytest.fail("trained again")

    loaded, second = train(tmp_path / "line.pt", loss=never, score=never)
    assert torch.equal(model.weight, loaded.weight)
    assert first == second


def test_another_trainings_checkpoint_is_refused_and_kept(tmp_path):
    checkpoint = tmp_path / "line.pt"
    train(checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=r"seed: 0 there, 1 now.*delete it or choose another run_dir"):
        train(checkpoint, settings={"seed": 1})
    with pytest.raises(CheckpointError, match=r"epochs: 6 there, 7 now"):
        train(checkpoint, epochs=7)
    assert checkpoint.read_bytes() == before


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    checkpoint = tmp_path / "line.pt"
    train(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:700])
    with pytest.raises(DamagedFileError, match=r"line.pt is damaged.*delete it and run again"):
        train(checkpoint)


def test_the_same_content_makes_the_same_file(tmp_path):
    for name in ("one.pt", "another.pt"):
        save_tensors(tmp_path / name, {"weight": torch.arange(5.0)})
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_divergence_names_step_and_epoch_and_keeps_the_last_good_checkpoint(tmp_path):
    factors = iter([1.0] * 12 + [float("nan")] * 3)  # two good epochs of five steps, and one that ends badly

    def loss(model, batch, step):
        return {"loss": squared_error(model, batch, step)["loss"] * next(factors)}

    with pytest.raises(DivergedError, match=r"became nan in step 3 of epoch 3; the last good checkpoint is .*line.pt"):
        train(tmp_path / "line.pt", loss=loss)
    assert len(load_tensors(tmp_path / "line.pt")["history"]) == 2


def test_the_loss_is_told_the_step_also_when_a_training_goes_on(tmp_path):
    seen = []

    def loss(model, batch, step):
        if step == 17 and len(seen) == 17:
            raise KeyboardInterrupt
        seen.append(step)
        return squared_error(model, batch, step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "line.pt", loss=loss)
    seen.append("here the epoch starts again")
    train(tmp_path / "line.pt", loss=loss)
    assert seen == [*range(17), "here the epoch starts again", *range(15, 30)]


def test_long_gradients_are_scaled_down(tmp_path):
    for steepest in (1e-3, torch.inf):
        model, _ = train(tmp_path / f"{steepest}.pt", steepest=steepest)
        length = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
        assert (length <= 1.001e-3) == (steepest == 1e-3)


def test_with_a_momentum_it_is_muon_at_a_falling_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "best_precision", lambda device: torch.float32)
    recipe = {"momentum": 0.8, "weight_decay": 0.1, "epochs": 3, "settings": {}}
    _, result = train(tmp_path / "line.pt", score=lambda model: {"score": -model.bias.item()}, **recipe)
    torch.manual_seed(0)
    by_hand = nn.Linear(1, 1)
    optimiser = Muon(by_hand.parameters(), lr=1e-2, momentum=0.8, weight_decay=0.1)
    scores = []
    for epoch in range(3):
        for step, batch in enumerate(Lines().epoch(epoch), start=5 * epoch):
            optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 15)
            optimiser.zero_grad()
            squared_error(by_hand, batch, step)["loss"].backward()
            optimiser.step()
        scores.append(-by_hand.bias.item())
    assert [row["score"] for row in result.history] == pytest.approx(scores, rel=1e-5)
    assert result.history[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)


def test_an_unfinished_training_of_another_torch_is_refused_and_kept(tmp_path):
    checkpoint = tmp_path / "line.pt"
    train(checkpoint)
    finished = load_tensors(checkpoint)
    save_tensors(checkpoint, finished | {"torch": "2.3.1"})
    train(checkpoint)  # finished: it is only loaded
    for name in ("history", "seconds"):
        finished[name] = finished[name][:-1]
    save_tensors(checkpoint, finished | {"torch": "2.3.1"})
    content = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=r"line\.pt was left unfinished by torch 2\.3\.1, .* delete it"):
        train(checkpoint)
    assert checkpoint.read_bytes() == content


def test_a_file_of_ours_that_is_no_checkpoint_is_refused(tmp_path):
    save_tensors(tmp_path / "line.pt", {"weights": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"line\.pt is no checkpoint of a training \(no history\): delete it"):
        train(tmp_path / "line.pt")


def test_a_clock_set_back_changes_nothing(tmp_path, monkeypatch):
    model, _ = train(tmp_path / "ahead.pt")
    now = time.time()
    backwards = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 1000 * next(backwards))  # what the progress bar looks at
    again, result = train(tmp_path / "back.pt")
    assert torch.equal(model.weight, again.weight)
    assert min(result.seconds) >= 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate=-0.1: must be a number of 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": float("inf")}, "weight_decay=inf"),
        ({"momentum": -1}, "momentum=-1"),
        ({"epochs": 0}, "epochs=0: must be an integer of 1 or more"),
        ({"epochs": 2.5}, "epochs=2.5"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "line.pt", **recipe)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoint = tmp_path / "line.pt"
    saved = []

    def save(path, content):
        if len(saved) == 2:
            raise StorageError(f"{path} cannot be written")
        saved.append(save_tensors(path, content))

    monkeypatch.setattr(training, "save_tensors", save)
    with pytest.raises(StorageError, match=r"line\.pt cannot be written"):
        train(checkpoint)
    assert len(load_tensors(checkpoint)["history"]) == 2


def test_too_short_for_a_cycle(tmp_path):
    with pytest.raises(ValueError, match="1 epochs of 5 batches: a one-cycle schedule needs 10 steps or more"):
        train(tmp_path / "line.pt", epochs=1)


# --- The real thing: a U-Net, a process of its own, SIGKILL -----------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from tests.test_training import train_unet
train_unet(Path({checkpoint!r}), epochs=4)
"""


def train_unet(checkpoint, epochs, down="strided", up="upsample", loss_function=losses.dice_loss, count=96):
    """A small U-Net on the stand-in, as the notebook trains it."""
    pets = load_pets("stand-in", Path(), 32)
    few = type(pets.train)(pets.train.images[:count], pets.train.trimaps[:count], pets.train.names[:count])
    torch.manual_seed(0)
    model = UNet(3, 1, 8, 3, down, up).to(memory_format=torch.channels_last)

    def loss(model, batch, step):
        images, targets = batch
        return {"loss": loss_function(model(to_input(images)), targets.float())}

    def score(model):
        predicted = predict(model, few.images) >= 0.5
        return {"score": segmentation_scores(predicted, few.trimaps)["iou"]}

    batches = PetBatches(few, 8, [32] * epochs, seed=0)
    recipe = RECIPE | {"learning_rate": 0.08, "momentum": 0.9, "weight_decay": 1e-3}
    return fit(model, batches, loss, score, epochs=epochs, checkpoint=checkpoint, **recipe)


def start(checkpoint):
    root = str(Path(__file__).parent.parent)
    code = SCRIPT.format(root=root, checkpoint=str(checkpoint))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def test_killed_in_the_middle_of_an_epoch(tmp_path):
    unbroken, killed = tmp_path / "unbroken.pt", tmp_path / "killed.pt"
    assert start(unbroken).wait() == 0
    length = max(load_tensors(unbroken)["seconds"])
    process = start(killed)
    while not killed.exists():
        time.sleep(0.001)
        assert process.poll() is None
    time.sleep(0.4 * length)  # into the second epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(load_tensors(killed)["history"]) < 4, "killed too late to test anything"
    assert start(killed).wait() == 0
    assert equal(without_times(killed), without_times(unbroken))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["killed.pt", "unbroken.pt"]


@pytest.mark.parametrize(("down", "up", "loss_function"), [
    ("maxpool", "transposed", losses.bce_loss),
    ("maxpool", "transposed", losses.dice_loss),
    ("strided", "transposed", losses.bce_loss),
    ("strided", "upsample", losses.dice_loss),
])  # fmt: skip
def test_a_handful_of_images_is_learnt_by_heart(tmp_path, monkeypatch, down, up, loss_function):
    monkeypatch.setattr(data, "augmentation", lambda: albumentations.Compose([]))
    result = train_unet(tmp_path / "few.pt", 100, down, up, loss_function, count=8)
    assert result.history[-1]["score"] > 0.9


# --- Precision --------------------------------------------------------------------------------------------------------


def test_bfloat16_only_where_the_processor_has_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert best_precision(cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert best_precision(cpu) == torch.float32
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert best_precision(cpu) == torch.float32


def test_training_in_bfloat16_keeps_float32_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "best_precision", lambda device: torch.bfloat16)
    seen = []

    def loss(model, batch, step):
        seen.append(model(batch[0]).dtype)
        return squared_error(model, batch, step)

    model, _ = train(tmp_path / "line.pt", epochs=2, loss=loss)
    assert set(seen) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
