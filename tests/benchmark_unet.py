"""Training throughput of the U-Net, measured side by side in one run: `python tests/benchmark_unet.py`.

Three rows: a plain loop (float32, NCHW, AdamW, files decoded by a DataLoader in each epoch), this project, and the
bound that the same model reaches on resident random tensors. They take turns, so that a slow minute of the machine hits
all three.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils import standins
from utils.data import PetBatches, Split, augmentation, foreground, to_input
from utils.losses import bce_loss
from utils.muon import Muon
from utils.report import markdown_table
from utils.training import best_device, best_precision
from utils.unet import UNet

SIZE, BATCH, COUNT, ROUNDS = 128, 16, 320, 3
STORED = 256  # side of the files that the plain loop decodes


class Files(Dataset):
    """Image files, decoded and augmented each time they are asked for."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.jpg"))
        self.augment = augmentation()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = np.array(Image.open(self.paths[index]).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR))
        trimap = np.array(Image.open(self.paths[index].with_suffix(".png")).resize((SIZE, SIZE), Image.NEAREST))
        pair = self.augment(image=image, mask=trimap)
        return torch.from_numpy(pair["image"]).permute(2, 0, 1), foreground(torch.from_numpy(pair["mask"])[None])


def main() -> None:
    """Print the table."""
    device = best_device()
    images, trimaps = standins.pets(COUNT, SIZE, seed=0)
    split = Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(trimaps)[:, None], [""] * COUNT)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        feeds = {
            "plain loop": lambda: DataLoader(Files(Path(folder)), BATCH, shuffle=True, drop_last=True),
            "this project": lambda: PetBatches(split, BATCH, [SIZE], seed=0).epoch(0),
            "bound: random tensors": lambda: random_batches(device),
        }
        models = {name: UNet(3, 1, 8, 4, "maxpool", "transposed").to(device) for name in feeds}
        seconds = take_turns(models, feeds, one_epoch, ROUNDS, device)
    report(seconds, COUNT, f"{device.type}, {best_precision(device)}, {SIZE} px, batch {BATCH}")


def take_turns(models: dict, feeds: dict, one_epoch: Callable, rounds: int, device: torch.device) -> dict:
    """Seconds of each round of each feed, after one to warm up; all models but the plain one are channels-last."""
    seconds = {name: [] for name in feeds}
    for name in list(feeds)[1:]:
        models[name].to(memory_format=torch.channels_last)
    for _ in range(rounds + 1):
        for name, feed in feeds.items():
            seconds[name].append(one_epoch(models[name], feed, plain=name == "plain loop", device=device))
    return seconds


def write_files(folder: Path) -> None:
    """The stand-in as files of the size that the real data set has."""
    for i, (image, trimap) in enumerate(zip(*standins.pets(COUNT, STORED, seed=0))):
        Image.fromarray(image).save(folder / f"{i:04}.jpg", quality=86)
        Image.fromarray(trimap).save(folder / f"{i:04}.png")


def random_batches(device: torch.device) -> Iterator[tuple]:
    """One batch, over and over: nothing to decode, to augment or to copy."""
    batch = torch.randint(256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    targets = torch.rand(BATCH, 1, SIZE, SIZE, device=device) > 0.5
    return ((batch, targets) for _ in range(COUNT // BATCH))


def one_epoch(model: UNet, feed: Callable, plain: bool, device: torch.device) -> float:
    """Seconds for COUNT images, forward, backward and step."""
    parameters = model.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=1e-4) if plain else Muon(parameters, 0.08, 0.9, 1e-3)
    low = not plain and best_precision(device) == torch.bfloat16
    start = time.perf_counter()
    for images, targets in feed():
        images, targets = images.to(device), targets.to(device)
        inputs = to_input(images).contiguous() if plain else to_input(images)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            loss = bce_loss(model(inputs), targets.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(seconds: dict[str, list[float]], count: int, title: str) -> None:
    """Images a second by the median round, the first one left out, and ratios."""
    rate = {name: count / float(np.median(times[1:])) for name, times in seconds.items()}
    project = rate["this project"]
    rows = [["", "images/s", "this project / this row"]]
    rows += [[name, f"{value:.1f}", f"{project / value:.2f}"] for name, value in rate.items()]
    print(f"{title}, {torch.get_num_threads()} threads")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
