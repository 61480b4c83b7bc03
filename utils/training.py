"""One training loop for every model of the course: precision, progress, history, checkpoints and exact resume."""

import time
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, OneCycleLR
from tqdm import tqdm

from utils.files import load_tensors, save_tensors


class CheckpointError(RuntimeError):
    """A checkpoint that belongs to another training; the message says what differs and what to do."""


class DivergedError(RuntimeError):
    """The loss stopped being a number; the message says when, and where the last good checkpoint lies."""


class Training(NamedTuple):
    """What `fit` leaves behind: a row of numbers and a duration in seconds for each epoch, and which one was best."""

    history: list[dict[str, float]]
    seconds: list[float]
    best_epoch: int


def best_device() -> torch.device:
    """CUDA, else the CPU: Apple's MPS has no float64, in which scores are added up."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it, else float32. Elsewhere bfloat16 is emulated, and slower."""
    # Underscored, but the only place where torch tells; absent from a torch or processor that has no such question.
    native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native or ampere else torch.float32


def processor() -> str:
    """The widest instructions that torch uses on this CPU, such as "AVX512", and whether it has those for matrices."""
    matrices = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()  # underscored, as above
    return torch.backends.cpu.get_cpu_capability() + (" with AMX" if matrices else "")


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which networks compute in `best_precision`; weights stay float32 (Micikevicius et al. 2018)."""
    half = best_precision(device) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def fit(
    model: nn.Module,
    batches: Any,
    loss: Callable[[nn.Module, Any, int], dict[str, Tensor]],
    score: Callable[[nn.Module], dict[str, float]],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    checkpoint: Path,
    settings: dict[str, Any],
    max_grad_norm: float = inf,
    momentum: float | None = None,
) -> Training:
    """Train, keep the weights of the best epoch, and write a checkpoint after each.

    Where a checkpoint exists already, training goes on from it, on the same CPU to exactly the numbers of an unbroken
    run (a GPU's own sums vary from run to run); a finished one is only loaded. The optimiser is AdamW (Loshchilov and
    Hutter 2019) on a one-cycle schedule (Smith 2018) or, with a momentum given, Muon at a rate that falls linearly to
    zero: its first step is as long as the rate says, so that there is nothing to warm up.

    Args:
        model: trained in place, on the device that it is on.
        batches: has a length, and `epoch(number)`, the batches of an epoch, counted from 0. They must be the same each
            time: exact resume rests on that.
        loss: of (model, batch, step), steps counted from 0 over all epochs, for weights that warm up; a dict of scalar
            tensors, of which 'loss' is minimised and all are logged.
        score: of (model), on validation data; a dict of numbers, of which 'score' picks the best epoch, the highest.
        epochs: passes over the data.
        learning_rate: peak of the schedule.
        weight_decay: of AdamW; of Muon for all but the weights of convolutions.
        checkpoint: the file, written after each epoch.
        settings: what defines this training (variant, seed, sizes, ...): numbers, strings or lists. A checkpoint with
            others is refused.
        max_grad_norm: longest gradient, all parameters together; a longer one is scaled down to it (Pascanu et al.
            2013, arXiv:1211.5063, algorithm 1).

    Raises:
        ValueError: if there are fewer than 10 steps.
        CheckpointError: if `checkpoint` belongs to another training, or was left by another version of torch.
        DamagedFileError, StorageError: if `checkpoint` cannot be read or written.
        DivergedError: if the loss or a weight becomes NaN or infinite.
    """
    steps, device = epochs * len(batches), next(model.parameters()).device
    if steps < 10:  # with fewer, the warm-up of the one-cycle schedule has none
        raise ValueError(f"{epochs} epochs of {len(batches)} batches: at least 10 steps are needed")
    optimiser, schedule = build_optimiser(model, steps, learning_rate, weight_decay, momentum)
    recipe = {"epochs": epochs, "learning_rate": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
    settings = {**settings, **recipe, "max_grad_norm": max_grad_norm}
    state = {"settings": settings, "torch": str(torch.__version__)}  # its own type is none that a file may hold
    state |= {"history": [], "seconds": [], "best_epoch": -1, "best_model": {}}
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, settings)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        set_random_states(state["random_states"], device)
    done = len(state["history"])
    with tqdm(total=steps, initial=done * len(batches), desc=checkpoint.stem, leave=False, mininterval=1) as bar:
        for epoch in range(done, epochs):
            start = time.perf_counter()
            row, losses = train_epoch(model, batches, epoch, loss, optimiser, schedule, max_grad_norm, bar)
            refuse_divergence(model, losses, epoch, checkpoint)
            model.eval()
            row |= score(model)
            record(state, row, time.perf_counter() - start, model)
            state |= {name: part.state_dict() for name, part in parts.items()}
            save_tensors(checkpoint, state | {"random_states": random_states(device)})
            bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['score']:.3f}")
    model.load_state_dict(state["best_model"])
    return Training(state["history"], state["seconds"], state["best_epoch"])


def train_epoch(model, batches, epoch: int, loss, optimiser, schedule, max_grad_norm: float, bar):
    """One pass over the data: a row with the mean of every logged number, and the loss of each step, (steps,)."""
    model.train()
    rows = []
    for step, batch in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
        terms = train_step(model, batch, step, loss, optimiser, max_grad_norm)
        schedule.step()
        rows.append({name: value.detach() for name, value in terms.items()})  # on the device: a GPU need not wait
        bar.update()
    logged = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    means = {name: values.mean().item() for name, values in logged.items()}
    return means | {"learning_rate": schedule.get_last_lr()[0]}, logged["loss"]


def train_step(model, batch, step: int, loss, optimiser, max_grad_norm: float) -> dict[str, Tensor]:
    """One step down the gradient of the loss on a batch; all terms of the loss."""
    device = next(model.parameters()).device
    batch = [tensor.to(device) for tensor in batch]
    with mixed_precision(device):
        terms = loss(model, batch, step)
    optimiser.zero_grad()
    terms["loss"].backward()
    if max_grad_norm < inf:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimiser.step()
    return terms


def build_optimiser(model: nn.Module, steps: int, learning_rate: float, weight_decay: float, momentum: float | None):
    """AdamW on a one-cycle schedule or, with a momentum, Muon at a falling rate."""
    if momentum is not None:
        optimiser = Muon(model.parameters(), learning_rate, momentum, weight_decay)
        return optimiser, LinearLR(optimiser, 1.0, 0.0, steps)
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
    return optimiser, OneCycleLR(optimiser, learning_rate, steps, pct_start=0.2)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, on the CPU and on the device."""
    own = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state()} | own


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo what has been drawn since; a device that training has moved to keeps its state: numbers differ anyway."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def refuse_divergence(model: nn.Module, losses: Tensor, epoch: int, checkpoint: Path) -> None:
    """Raise DivergedError if one of an epoch's losses, (steps,), or of the model's weights is NaN or infinite."""
    if not (finite := losses.isfinite()).all():
        first = finite.int().argmin().item()
        found = f"the loss became {losses[first].item()} in step {first + 1} of epoch {epoch + 1}"
    elif not all(weights.isfinite().all() for weights in model.parameters()):  # the last step has no loss after it
        found = f"weights became NaN or infinite in epoch {epoch + 1}"
    else:
        return
    last = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    remedy = "lower the learning rate, and delete the checkpoint, if there is one, or choose another run_dir"
    raise DivergedError(f"{found}; {last}; {remedy}")


def record(state: dict, row: dict[str, float], seconds: float, model: nn.Module) -> None:
    """Add an epoch to the state; copy the weights if it is the best so far (the latest of equals)."""
    best = state["history"][state["best_epoch"]]["score"] if state["history"] else nan
    if isnan(best) or row["score"] >= best:
        state["best_epoch"] = len(state["history"])
        state["best_model"] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state["history"].append(row)
    state["seconds"].append(seconds)


def load_checkpoint(checkpoint: Path, settings: dict) -> dict:
    """The state of a training with these settings, for this version of torch to continue, or a CheckpointError."""
    state = load_tensors(checkpoint)
    if not {"settings", "torch", "history", "model"} <= state.keys():
        raise CheckpointError(f"{checkpoint} is no checkpoint of a training: delete it or move it away")
    theirs = state["settings"]
    differing = [name for name in sorted(theirs.keys() | settings.keys()) if theirs.get(name) != settings.get(name)]
    if differing:
        changes = ", ".join(f"{name}: {theirs.get(name)!r} there, {settings.get(name)!r} now" for name in differing)
        raise CheckpointError(f"{checkpoint} is of another training ({changes}): delete it or choose another run_dir")
    if len(state["history"]) < settings["epochs"] and state["torch"] != str(torch.__version__):
        unfinished = f"{checkpoint} was left unfinished by torch {state['torch']}, and this is {torch.__version__}"
        raise CheckpointError(f"{unfinished}: numbers would be of neither; delete it or install that version")
    return state


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum (Sutskever et al. 2013, equations 3 and 4), orthogonalised for the weights of convolutions.

    Such a weight is a matrix with a row for each output channel (of a transposed convolution, for each input channel).
    Its gradient is mostly made of a few directions; when all singular values are one, the rare ones are learnt as fast.
    Each such weight is also kept at the length of an orthogonal matrix, so that a rate means the same turn throughout:
    for networks with normalisation, whose learnt scales make up for it. (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon, whose airbench does so.) Other parameters lose `weight_decay` times `lr`
    of their length in each step.
    """

    def __init__(self, parameters, lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"]
                velocity.mul_(group["momentum"]).add_(parameter.grad)
                direction = parameter.grad + group["momentum"] * velocity
                if parameter.ndim == 4:
                    direction = orthogonalise(direction.flatten(1)).view_as(parameter)
                    parameter.mul_(min(len(parameter), parameter[0].numel()) ** 0.5 / parameter.norm())
                else:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction, alpha=group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors, (M, N), and singular values from 0.68 to 1.21, except for small ones.

    Those below a fiftieth of the Frobenius norm stay smaller. Three Newton-Schulz iterations of
    X <- a X + b (X X^T) X + c (X X^T)^2 X, with the coefficients of Jordan et al. 2024
    (https://kellerjordan.github.io/posts/muon, "Newton-Schulz iteration"), which rise fastest from zero. Each
    multiplies X by a polynomial P of G = X X^T, whereby G becomes P G P: only the small G is iterated, and X is
    multiplied by all three P at the end.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram, polynomials = wide @ wide.T, []
    for _ in range(3):
        if polynomials:
            gram = polynomials[-1] @ gram @ polynomials[-1]
        polynomials.append(torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315))
        polynomials[-1].diagonal().add_(3.4445)
    wide = torch.linalg.multi_dot([*polynomials, wide])  # of one matrix, they commute
    return wide if len(matrix) <= matrix.shape[1] else wide.T
