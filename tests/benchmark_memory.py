"""What keeping freed memory is worth, side by side in one run: `python tests/benchmark_memory.py`.

Two processes take turns, one as Linux comes, one with `keep_freed_memory`; each trains and runs the published U-Net.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ROUNDS, BATCH, BATCHES, SIZE = 3, 16, 12, 128
TASKS = ("training", "inference")


def measure(kept: bool) -> None:
    """Print images per second of both tasks."""
    import torch

    if kept:
        import utils  # noqa: F401
    else:
        sys.modules["utils.memory"] = type(sys)("utils.memory")
        sys.modules["utils.memory"].keep_freed_memory = lambda: None
    from utils.losses import bce_loss
    from utils.unet import UNet

    model = UNet(3, 1, 8, 4, "maxpool", "transposed").to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    targets = torch.rand(BATCH, 1, SIZE, SIZE).round()
    for task in TASKS:
        for batch in range(BATCHES + 2):
            if batch == 2:  # two to warm up
                start = time.perf_counter()
            with torch.inference_mode(task == "inference"):
                loss = bce_loss(model.train(task == "training")(images), targets)
            if task == "training":
                loss.backward()
        print(BATCH * BATCHES / (time.perf_counter() - start))


def main() -> None:
    """Print the table."""
    from utils.report import markdown_table

    rates = {"as Linux comes": [], "freed memory kept": []}
    for _ in range(ROUNDS):
        for name in rates:
            command = [sys.executable, __file__, name]
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            rates[name].append([float(line) for line in ran.stdout.split()])
    medians = {name: np.median(rows, axis=0) for name, rows in rates.items()}
    table = [["images/s", *TASKS], *([name, *(f"{rate:.1f}" for rate in row)] for name, row in medians.items())]
    before, after = medians.values()
    print(markdown_table([*table, ["ratio", *(f"{ratio:.2f}" for ratio in after / before)]]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(kept=sys.argv[1] == "freed memory kept")
    else:
        main()
