"""One training loop for every model of the course: precision, progress, history, checkpoints and exact resume."""

import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.checks import check_integers, check_not_negative
from utils.muon import Muon
from utils.storage import load_tensors, save_tensors

SHORTEST_CYCLE = 10  # optimiser steps: with fewer, the schedule's rise has none


class CheckpointError(RuntimeError):
    """A checkpoint that belongs to another training; the message says what differs and what to do."""


class DivergedError(RuntimeError):
    """The loss stopped being a number; the message says when, and where the last good checkpoint lies."""


class Batches(Protocol):
    """What `fit` trains on. Epoch k must be the same each time it is asked for: exact resume rests on that."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of one epoch, counted from 0."""


class Training(NamedTuple):
    """What `fit` leaves behind: a row of numbers and a duration in seconds for each epoch, and which one was best."""

    history: list[dict[str, float]]
    seconds: list[float]
    best_epoch: int


def best_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it, else float32. Elsewhere bfloat16 is emulated, and slower."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    else:
        # Underscored, but the only place where torch tells; None on a torch or processor that has no such question.
        ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        native = device.type == "cpu" and ask is not None and ask()
    return torch.bfloat16 if native else torch.float32


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[nn.Module, Any, int], dict[str, Tensor]],
    score: Callable[[nn.Module], dict[str, float]],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    checkpoint: Path,
    settings: dict[str, Any],
    label: str = "",
    steepest: float = inf,
    momentum: float | None = None,
) -> Training:
    """Train with AdamW (Loshchilov and Hutter 2019) on a one-cycle schedule (Smith 2018); keep the best weights.

    With a momentum given, by Muon, at a rate that falls in a line to zero: what it orthogonalises moves as far in the
    first step as the rate says, so that there is nothing to warm up.

    A checkpoint is written after each epoch. Where one exists already, training goes on from it, to exactly the numbers
    of an unbroken run; a finished one is only loaded.

    Args:
        model: trained in place, on the device that it is on.
        batches: the training data.
        loss: of (model, batch, step), steps counted from 0 over all epochs, for weights that warm up; a dict of scalar
            tensors, of which 'loss' is minimised and all are logged.
        score: of (model), on validation data; a dict of numbers, of which 'score' picks the best epoch, the highest.
        epochs: passes over the training data.
        learning_rate: peak of the schedule, AdamW's or Muon's.
        weight_decay: of AdamW, or of Muon.
        checkpoint: file to write and to resume from.
        settings: what defines this training (variant, seed, sizes, ...): numbers, strings or lists. A checkpoint with
            others is refused.
        label: name on the progress bar.
        steepest: longest gradient, all parameters together; a longer one is scaled down to it (Pascanu et al. 2013,
            arXiv:1211.5063, algorithm 1).
        momentum: of Muon, the same throughout; None for AdamW.

    Raises:
        ValueError: if there are too few steps for a cycle, or a rate, decay or momentum is out of range.
        CheckpointError: if `checkpoint` belongs to another training, or was left by another version of torch.
        DamagedFileError: if `checkpoint` cannot be read.
        StorageError: if `checkpoint` cannot be written.
        DivergedError: if the loss becomes NaN or infinite.
    """
    check_integers(epochs=epochs)
    check_not_negative(learning_rate=learning_rate, weight_decay=weight_decay, momentum=momentum or 0)
    if epochs * len(batches) < SHORTEST_CYCLE:
        needed = f"a one-cycle schedule needs {SHORTEST_CYCLE} steps or more"
        raise ValueError(f"{epochs} epochs of {len(batches)} batches: {needed}")
    device = next(model.parameters()).device
    steps = epochs * len(batches)
    if momentum is None:
        fused = device.type in ("cpu", "cuda")  # where the lowest torch admitted has it
        optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, steps, pct_start=0.2)
    else:
        optimiser = Muon(model.parameters(), learning_rate, momentum, weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    recipe = {"epochs": epochs, "learning_rate": learning_rate, "weight_decay": weight_decay, "steepest": steepest}
    settings = {**settings, **recipe, "momentum": momentum}
    state = {"settings": settings, "torch": str(torch.__version__)}  # its own type is none that a file may hold
    state |= {"history": [], "seconds": [], "best_epoch": -1, "best_model": {}}
    if checkpoint.exists():
        state = matching(load_tensors(checkpoint), settings, checkpoint)
        if len(state["history"]) < epochs and state["torch"] != str(torch.__version__):
            theirs = f"{checkpoint} was left unfinished by torch {state['torch']}, and this is {torch.__version__}"
            raise CheckpointError(f"{theirs}: numbers would be of neither; delete it or install that version")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        set_random_states(state["random_states"], device)
    done = len(state["history"])
    with tqdm(total=steps, initial=done * len(batches), desc=label, leave=False, mininterval=1) as bar:
        for epoch in range(done, epochs):
            start = time.perf_counter()
            numbered = enumerate(batches.epoch(epoch), start=epoch * len(batches))
            row = train_epoch(model, numbered, loss, optimiser, schedule, steepest, bar, where(epoch, checkpoint))
            model.eval()
            row.update(score(model))
            record(state, row, time.perf_counter() - start, model)
            state.update(
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                schedule=schedule.state_dict(),
                random_states=random_states(device),
            )
            save_tensors(checkpoint, state)
            bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['score']:.3f}")
    model.load_state_dict(state["best_model"])
    return Training(state["history"], state["seconds"], state["best_epoch"])


def train_epoch(model, steps, loss, optimiser, schedule, steepest: float, bar, place: str) -> dict[str, float]:
    """One pass; the mean of every logged number, and the learning rate at the end."""
    device = next(model.parameters()).device
    precision = best_precision(device)
    model.train()
    totals, losses = {}, []
    for step, batch in steps:
        batch = [tensor.to(device, non_blocking=True) for tensor in batch]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            parts = loss(model, batch, step)
        optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        if steepest < inf:
            nn.utils.clip_grad_norm_(model.parameters(), steepest)
        optimiser.step()
        schedule.step()
        totals = {name: totals.get(name, 0) + value.detach() for name, value in parts.items()}  # no wait for the GPU
        losses.append(parts["loss"].detach())
        bar.update()
    finite = torch.stack(losses).isfinite().tolist()
    if not all(finite):
        first = finite.index(False)
        raise DivergedError(f"the loss became {losses[first].item()} in step {first + 1} of {place}")
    means = {name: (total / len(losses)).item() for name, total in totals.items()}
    return means | {"learning_rate": schedule.get_last_lr()[0]}


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, on the CPU and on the device."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else states | {device.type: getattr(torch, device.type).get_rng_state()}


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo what has been drawn since `random_states`.

    Where the training has moved to another device, the new one's generator stays as it is: the numbers differ anyway.
    """
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])


def where(epoch: int, checkpoint: Path) -> str:
    """Time and place of a divergence, for its message."""
    last = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    return f"epoch {epoch + 1}; {last}; lower the learning rate"


def record(state: dict, row: dict[str, float], seconds: float, model: nn.Module) -> None:
    """Add an epoch to the state; copy the weights if it is the best so far (the latest of equals)."""
    state["history"].append(row)
    state["seconds"].append(seconds)
    best = state["best_epoch"]
    if best < 0 or row["score"] >= state["history"][best]["score"]:
        state["best_epoch"] = len(state["history"]) - 1
        state["best_model"] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def matching(state: dict, settings: dict, checkpoint: Path) -> dict:
    """The state, if it was written by a training with these settings."""
    if missing := sorted({"settings", "torch", "history", "model"} - state.keys()):
        raise CheckpointError(
            f"{checkpoint} is no checkpoint of a training (no {missing[0]}): delete it or move it away"
        )
    theirs = state["settings"]
    differing = [name for name in sorted(theirs.keys() | settings.keys()) if theirs.get(name) != settings.get(name)]
    if differing:
        changes = ", ".join(f"{name}: {theirs.get(name)!r} there, {settings.get(name)!r} now" for name in differing)
        raise CheckpointError(f"{checkpoint} is of another training ({changes}): delete it or choose another run_dir")
    return state
