"""Training throughput of the conditional VAE, measured side by side in one run: `python tests/benchmark_cvae.py`.

Three rows: a plain loop (float32, NCHW, torchvision's MNIST with ToTensor in a DataLoader, an optimiser as it comes,
the loss read at each step), this project, and the bound that the same model reaches on resident random tensors. They
take turns, so that a slow minute of the machine hits all three. The digits are the stand-in's, in MNIST's own files.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.benchmark_unet import report, take_turns
from utils import standins
from utils.cvae import ConditionalVAE, elbo_terms
from utils.labelled import LabelledBatches, LabelledSplit, to_unit
from utils.training import best_device, best_precision

BATCH, CHANNELS, COUNT, ROUNDS = 256, 8, 12_800, 11


def main() -> None:
    """Print the table."""
    device = best_device()
    images, labels = standins.digits(COUNT, seed=0)
    split = LabelledSplit(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder) / "MNIST" / "raw", images, labels)
        files = MNIST(folder, transform=ToTensor())
        feeds = {
            "plain loop": lambda: DataLoader(files, BATCH, shuffle=True),
            "this project": lambda: LabelledBatches(split, BATCH, seed=0).epoch(0),
            "bound: random tensors": lambda: random_batches(device),
        }
        models = {name: ConditionalVAE((1, 28, 28), 10, 16, CHANNELS, 2, "both").to(device) for name in feeds}
        seconds = take_turns(models, feeds, one_epoch, ROUNDS, device)
    report(seconds, COUNT, f"{device.type}, {best_precision(device)}, batch {BATCH}")


def write_files(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """IDX files of training and test set, as torchvision expects them."""
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


def random_batches(device: torch.device) -> Iterator[tuple]:
    """One batch, over and over, ready to be eaten."""
    images = torch.rand(BATCH, 1, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,), device=device)
    return ((images, labels) for _ in range(COUNT // BATCH))


def one_epoch(model: ConditionalVAE, feed: Callable, plain: bool, device: torch.device) -> float:
    """Seconds for COUNT images, forward, backward and step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=None if plain else True)
    low = not plain and best_precision(device) == torch.bfloat16
    logged, start = 0.0, time.perf_counter()
    for images, labels in feed():
        images, labels = images.to(device), labels.to(device)
        inputs = to_unit(images) if images.dtype == torch.uint8 else images
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            loss = elbo_terms(model, inputs, labels)["negative_elbo"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        logged += loss.item() if plain else loss.detach()
    float(logged)  # waits for a GPU
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
