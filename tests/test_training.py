"""Training: it learns, it resumes exactly (killed for real: test_kills.py), it refuses what it must not; Muon."""

import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from utils import losses, training
from utils.data import Batches, Split, load_pets, normalise
from utils.files import DamagedFileError, StorageError, load_tensors, save_tensors
from utils.metrics import predict, segmentation_scores
from utils.training import CheckpointError, DivergedError, Muon, best_precision, fit, orthogonalise
from utils.unet import build_unet

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


def train(checkpoint, epochs=6, loss=squared_error, score=closeness, seed=0, **changes):
    torch.manual_seed(seed)
    model = nn.Linear(1, 1)
    return model, fit(model, Lines(), loss, score, epochs=epochs, checkpoint=checkpoint, **(RECIPE | changes))


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "line.pt"


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


# --- Learning ---------------------------------------------------------------------------------------------------------


def test_history_has_a_row_for_each_epoch(checkpoint):
    _, result = train(checkpoint)
    assert len(result.history) == len(result.seconds) == 6
    assert result.history[0].keys() == {"loss", "twice", "score", "learning_rate"}
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[0]["twice"] == pytest.approx(2 * result.history[0]["loss"])


def test_an_epoch_trains_in_training_mode_and_scores_in_evaluation_mode(checkpoint):
    modes = []

    def loss(model, *rest):
        modes.append(model.training)
        return squared_error(model, *rest)

    def score(model):
        modes.append(model.training)
        return closeness(model)

    train(checkpoint, epochs=2, loss=loss, score=score)
    assert modes == ([True] * 5 + [False]) * 2


def test_the_best_weights_are_kept(checkpoint):
    scores, weights = iter([0.1, 0.9, 0.9, 0.2]), []

    def score(model):
        weights.append(model.weight.item())
        return {"score": next(scores)}

    model, result = train(checkpoint, epochs=4, score=score)
    assert result.best_epoch == 2, "the latest of equals"
    assert model.weight.item() == weights[2]
    assert len({*weights}) == 4


@pytest.mark.parametrize(("scores", "best"), [((math.nan, 0.5, 0.9), 2), ((0.5, math.nan, 0.4), 0)])
def test_a_score_that_is_no_number_is_never_the_best(checkpoint, scores, best):
    each = iter(scores)
    _, result = train(checkpoint, epochs=3, score=lambda model: {"score": next(each)})
    assert result.best_epoch == best


def test_long_gradients_are_scaled_down(tmp_path):
    for longest in (1e-3, math.inf):
        model, _ = train(tmp_path / f"{longest}.pt", max_grad_norm=longest)
        length = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
        assert (length <= 1.001e-3) == (longest == 1e-3)


@pytest.mark.parametrize("momentum", [0.8, None])
def test_the_optimiser_is_muon_at_a_falling_rate_or_without_a_momentum_adamw_on_one_cycle(
    checkpoint, monkeypatch, momentum
):
    monkeypatch.setattr(training, "best_precision", lambda device: torch.float32)
    recipe = {"momentum": momentum, "weight_decay": 0.1, "epochs": 3}
    _, result = train(checkpoint, score=lambda model: {"score": -model.bias.item()}, **recipe)
    torch.manual_seed(0)
    by_hand, scores = nn.Linear(1, 1), []
    if momentum:
        optimiser = Muon(by_hand.parameters(), lr=1e-2, momentum=0.8, weight_decay=0.1)
        schedule = LambdaLR(optimiser, lambda step: 1 - step / 15)
    else:
        optimiser = torch.optim.AdamW(by_hand.parameters(), 1e-2, weight_decay=0.1)
        schedule = OneCycleLR(optimiser, 1e-2, 15, pct_start=0.2)
    for epoch in range(3):
        for step, batch in enumerate(Lines().epoch(epoch), start=5 * epoch):
            optimiser.zero_grad()
            squared_error(by_hand, batch, step)["loss"].backward()
            optimiser.step()
            schedule.step()
        scores.append(-by_hand.bias.item())
    assert [row["score"] for row in result.history] == pytest.approx(scores, rel=1e-5)
    assert result.history[-1]["learning_rate"] == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)


def test_a_clock_set_back_changes_nothing(tmp_path, monkeypatch):
    model, _ = train(tmp_path / "ahead.pt")
    now, backwards = time.time(), iter(range(10**6))
    for clock in ("time.time", "tqdm.std.time"):  # the second is what the progress bar looks at
        monkeypatch.setattr(clock, lambda: now - 1000 * next(backwards))
    again, result = train(tmp_path / "back.pt")
    assert torch.equal(model.weight, again.weight)
    assert min(result.seconds) >= 0


def test_training_in_bfloat16_keeps_float32_weights(checkpoint, monkeypatch):
    monkeypatch.setattr(training, "best_precision", lambda device: torch.bfloat16)
    seen = set()

    def loss(model, batch, step):
        seen.add(model(batch[0]).dtype)
        return squared_error(model, batch, step)

    model, _ = train(checkpoint, epochs=2, loss=loss)
    assert seen == {torch.bfloat16}
    assert model.weight.dtype == torch.float32


def test_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for answer, precision in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=answer: answer, raising=False)
        assert best_precision(cpu) == precision
    for capability, precision in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert best_precision(torch.device("cuda")) == precision
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert best_precision(cpu) == torch.float32


def test_the_processor_is_named_with_its_matrix_instructions(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for answer, name in ((True, "AVX512 with AMX"), (False, "AVX512")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=answer: answer, raising=False)
        assert training.processor() == name
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert training.processor() == "AVX512"


# --- Going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_an_interrupted_training_goes_on_to_the_same_numbers(tmp_path, checkpoint, momentum):
    train(tmp_path / "unbroken.pt", momentum=momentum)

    def stop_in_the_fourth_epoch(model):
        if checkpoint.exists() and len(load_tensors(checkpoint)["history"]) == 3:
            raise KeyboardInterrupt
        return closeness(model)

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, momentum=momentum, score=stop_in_the_fourth_epoch)
    assert len(load_tensors(checkpoint)["history"]) == 3
    train(checkpoint, momentum=momentum, seed=999)  # other initial weights and draws: all comes from the checkpoint
    assert equal(without_times(checkpoint), without_times(tmp_path / "unbroken.pt"))


def test_the_loss_is_told_the_step_also_when_a_training_goes_on(checkpoint):
    seen = []

    def loss(model, batch, step):
        if step == 17 and len(seen) == 17:
            raise KeyboardInterrupt
        seen.append(step)
        return squared_error(model, batch, step)

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, loss=loss)
    train(checkpoint, loss=loss)
    assert seen == [*range(17), *range(15, 30)], "the epoch starts again"


def test_a_finished_training_is_only_loaded(checkpoint):
    model, first = train(checkpoint)

    def never(*_):
        pytest.fail("trained again")

    loaded, second = train(checkpoint, loss=never, score=never)
    assert torch.equal(model.weight, loaded.weight)
    assert first == second


def test_another_trainings_checkpoint_is_refused_and_kept(checkpoint):
    train(checkpoint)
    before = checkpoint.read_bytes()
    for change, message in (
        ({"settings": {"seed": 1}}, r"seed: 0 there, 1 now.*delete it or choose another run_dir"),
        ({"epochs": 7}, "epochs: 6 there, 7 now"),
        ({"max_grad_norm": 2.0}, "max_grad_norm: inf there, 2.0 now"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(checkpoint, **change)
    assert checkpoint.read_bytes() == before


def test_an_unfinished_training_of_another_torch_is_refused_and_kept(checkpoint):
    train(checkpoint)
    finished = load_tensors(checkpoint) | {"torch": "2.3.1"}
    save_tensors(checkpoint, finished)
    train(checkpoint)  # finished: it is only loaded
    save_tensors(checkpoint, finished | {name: finished[name][:-1] for name in ("history", "seconds")})
    content = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=r"line\.pt was left unfinished by torch 2\.3\.1, .* delete it"):
        train(checkpoint)
    assert checkpoint.read_bytes() == content


def test_a_file_that_is_no_checkpoint_or_damaged_is_refused_by_name(checkpoint):
    save_tensors(checkpoint, {"weights": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"line\.pt is no checkpoint of a training: delete it"):
        train(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:700])
    with pytest.raises(DamagedFileError, match=r"line.pt is damaged.*delete it and run again"):
        train(checkpoint)


def test_divergence_names_step_and_epoch_and_keeps_the_last_good_checkpoint(checkpoint):
    def loss(model, batch, step):
        factor = 1 if step < diverges else value
        return {"loss": squared_error(model, batch, step)["loss"] * factor}

    for diverges, value, place in (
        (3, math.nan, "step 4 of epoch 1; there is no checkpoint yet"),
        (12, math.inf, "step 3 of epoch 3; the last good checkpoint is .*line.pt"),
    ):
        with pytest.raises(DivergedError, match=f"became {value} in {place}"):
            train(checkpoint, loss=loss)
        assert checkpoint.exists() == (diverges == 12)
    assert len(load_tensors(checkpoint)["history"]) == 2


def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_kept(checkpoint):
    def loss(model, batch, step):
        if step == 14:  # the last of the third epoch
            model.weight.register_hook(lambda gradient: gradient * math.nan)
        return squared_error(model, batch, step)

    with pytest.raises(DivergedError, match=r"weights became NaN or infinite in epoch 3; .*checkpoint is .*line\.pt"):
        train(checkpoint, loss=loss)
    state = load_tensors(checkpoint)
    assert len(state["history"]) == 2
    assert all(weights.isfinite().all() for weights in state["model"].values())


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_full_disk_leaves_the_last_checkpoint(checkpoint):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def score(model):
        if checkpoint.exists() and len(load_tensors(checkpoint)["history"]) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        return closeness(model)

    try:
        with pytest.raises(
            StorageError, match=r"line\.pt cannot be written \((File too large|no space left, or: .*)\)"
        ):
            train(checkpoint, score=score)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(load_tensors(checkpoint)["history"]) == 2
    assert [path.name for path in checkpoint.parent.iterdir()] == ["line.pt"]


@pytest.mark.parametrize("epochs", [0, 1])
def test_too_short_a_training_is_refused(checkpoint, epochs):
    with pytest.raises(ValueError, match=f"{epochs} epochs of 5 batches: at least 10 steps are needed"):
        train(checkpoint, epochs=epochs)
    assert not list(checkpoint.parent.iterdir())


# --- The real thing: a U-Net ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["MP+Tr+BCE", "StrConv+Ups+Dice"])  # each layer and loss once
def test_a_handful_of_images_is_learnt_by_heart(checkpoint, variant):
    """A small U-Net on eight drawn pets, as the notebook trains it."""
    few = Split(*(part[:8] for part in load_pets("stand-in", Path(), 32).train))
    torch.manual_seed(0)
    model = build_unet(variant, 8, 3).to(memory_format=torch.channels_last)
    loss_function = losses.dice_loss if variant.endswith("Dice") else losses.bce_loss

    def loss(model, batch, step):
        images, targets = batch
        return {"loss": loss_function(model(normalise(images)), targets.float())}

    def score(model):
        return {"score": segmentation_scores(predict(model, few.images) >= 0.5, few.targets)["iou"]}

    batches = Batches(few, 8, 0, None, [32] * 100)
    recipe = RECIPE | {"learning_rate": 0.08, "momentum": 0.9, "weight_decay": 1e-3}
    training = fit(model, batches, loss, score, epochs=100, checkpoint=checkpoint, **recipe)
    assert training.history[-1]["score"] > 0.9


# --- Muon: against singular values, by hand, and against torch's own implementation where it has one ------------------


def test_singular_values_become_nearly_one_and_the_vectors_stay():
    torch.manual_seed(0)
    for shape in ((6, 40), (40, 6), (8, 8)):
        u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
        values = torch.linspace(1, 4, min(shape), dtype=torch.float64)
        result = u.T @ orthogonalise(u * values @ v) @ v.T  # diagonal if the vectors are the same
        assert 0.68 < result.diagonal().min() < result.diagonal().max() < 1.21
        torch.testing.assert_close(result, result.diagonal().diag(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(rows, columns) for rows in (2, 3, 9) for columns in (1, 2, 12)])
def test_singular_values_of_any_matrix_are_at_most_about_one(shape):
    matrix = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert matrix.shape == shape
    assert torch.linalg.svdvals(matrix).max() < 1.3


def test_one_iteration_after_the_other_by_hand():
    """Of a single singular value only the sum of the coefficients counts: x -> a x + b x^3 + c x^5 from x = 1."""
    x = 1.0
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(orthogonalise(torch.tensor([[0.0, 5.0], [0.0, 0.0]])), torch.tensor([[0.0, x], [0, 0]]))
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5)), "no gradient moves nothing"


def test_filters_keep_an_orthogonal_matrix_length_and_turn_by_the_rate():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, bias=False)
    optimiser = Muon(layer.parameters(), lr=1e-3, momentum=0.6, weight_decay=0.0)
    layer(torch.randn(2, 3, 6, 6)).square().sum().backward()
    before = layer.weight.detach() * 8**0.5 / layer.weight.detach().norm()
    optimiser.step()
    step = (before - layer.weight.detach()).flatten(1) / 1e-3
    gradient = layer.weight.grad.flatten(1)
    torch.testing.assert_close(step, orthogonalise(1.6 * gradient), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close((step * gradient).sum(), gradient.norm(p="nuc"), atol=0, rtol=0.35)  # steepest descent


def test_other_parameters_descend_as_torchs_sgd_does():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    pairs = [
        (ours, Muon(ours.parameters(), lr=0.1, momentum=0.8, weight_decay=0.0)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8, nesterov=True)),
    ]
    for _ in range(5):
        inputs = torch.randn(6, 4)
        for layer, optimiser in pairs:
            optimiser.zero_grad()
            layer(inputs).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_decay_by_hand_and_what_has_no_gradient_stays():
    weight, still = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([5.0]))
    optimiser = Muon([weight, still], lr=0.5, momentum=0.0, weight_decay=0.2)
    weight.grad = torch.tensor([1.0])
    optimiser.step()
    assert weight.item() == pytest.approx(2 * (1 - 0.5 * 0.2) - 0.5)
    assert still.item() == 5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_filters_descend_as_torchs_muon_does():
    """Torch's is for matrices, in bfloat16, and does not fix the length: one step, compared with that tolerance."""
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 20), torch.randn(6, 20)
    start *= 6**0.5 / start.norm()
    ours, theirs = nn.Parameter(start.view(6, 5, 2, 2).clone()), nn.Parameter(start.clone())
    ours.grad, theirs.grad = gradient.view(6, 5, 2, 2).clone(), gradient.clone()
    Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.0, ns_steps=3).step()
    torch.testing.assert_close(ours.detach().flatten(1), theirs.detach(), atol=5e-3, rtol=0)
