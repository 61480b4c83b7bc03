"""How fast the course is, and how near to what the machine can do: `python tests/benchmark.py [--publish]`, on Linux.

Four workers, each a process of its own, take turns, so that a slow minute of the machine hits all four. `COMPARED`,
which also heads the page of results, says what they are. Nothing else should run on the machine meanwhile.
`--publish` writes Results/benchmark.md. `--against CHECKOUT` adds a fifth worker, *other*: the course as it is in
another checkout (of an older commit, say), by that one's own tests/benchmark.py.
"""

# ruff: noqa: E402 - what becomes of freed memory has to be settled before utils is loaded

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from math import inf
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("naive", "freeing", "course", "ceiling")
sys.path.insert(0, str(ROOT))
if sys.argv[1:2] in (["naive"], ["freeing"]):
    with mock.patch("ctypes.CDLL", side_effect=OSError):  # as where the C library has no mallopt
        import utils  # noqa: F401

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST, ImageFolder
from torchvision.transforms import ToTensor
from tqdm import tqdm

from tests.files import DATA, definitions, idx, write_image
from utils import metrics, run, standins
from utils.data import Batches, Split, channels_first, foreground, load_pets, normalise, to_unit
from utils.files import write_atomically
from utils.losses import bce_loss, elbo_terms
from utils.results import NOTEBOOKS, RESULTS, build_network, load_numbers, markdown_table
from utils.training import Muon, best_device, best_precision, mixed_precision, processor, train_epoch

COMPARED = """
Four processes take turns. *Naive* is a loop as one writes it first: float32, NCHW, AdamW as it comes, the loss read at
each step, files decoded by a DataLoader in each epoch, and freed memory goes back to the system, as is Linux's way.
*Course* is the course's own loop with its own batches. *Freeing* is the same, but freed memory goes back to the system.
*Ceiling* is the course's loop on one resident batch of random numbers: nothing to decode, shuffle or augment. All
images are drawn.
"""
ROUNDS = 3  # and one to warm up
SIZE = 128
BATCHES = {"unet": (16, 16), "mnist": (256, 40), "cifar10": (64, 16)}  # images in a batch, batches in a round
TITLES = {
    "unet": "U-Net, training, 128 px",
    "mnist": "conditional VAE, training, MNIST",
    "cifar10": "conditional VAE, training, CIFAR-10",
    "128": "U-Net, inference, 128 px",
    "256": "U-Net, inference, 256 px",
}
ONE_EPOCH = {  # of everything that is trained, at published sizes: epochs do not change the peak of memory
    run.UNET: {"size_schedule": [[128, 1]]},
    run.MNIST: {"epochs": 1, "trial_epochs": 1, "judge_epochs": 3},
    run.CIFAR10: {"plain_epochs": 1, "epochs": 1, "trial_images": 640, "judge_epochs": 1, "guide_epochs": 1},
}
KINDS = {  # of operations, by their names in torch
    "convolutions, forward": "aten::.*convolution",
    "convolutions, backward": "aten::convolution_backward",
    "batch normalisation": "aten::(native_)?batch_norm.*",
}


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description="Speed and memory of the course.")
    parser.add_argument("--publish", action="store_true", help="write Results/benchmark.md")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another state of the course, to compare with")
    options = parser.parse_args()
    device = best_device()
    machine = f"{device.type}, {processor()}, {best_precision(device)}, {torch.get_num_threads()} threads"
    machine += f", torch {torch.__version__}"
    parts = ["# How fast the course trains", " ".join(COMPARED.split()), f"Measured on: {machine}."]
    of_steps = (partial(arithmetic, device), partial(shares, device))
    for measure in (partial(throughput, options.against), *of_steps, start_up, peak_memory):
        parts.append(measure())
        print(parts[-1], "\n", flush=True)
    if options.publish:
        text = "\n\n".join(parts) + "\n"
        write_atomically(RESULTS / "benchmark.md", lambda temporary: temporary.write_text(text, "utf-8"))


# --- Throughput -------------------------------------------------------------------------------------------------------


def throughput(against: Path | None) -> str:
    """Images a second of all workers in each task, by the median round, and the ratios of the course to the others."""
    places = {name: (ROOT, name) for name in WORKERS} | ({"other": (against.resolve(), "course")} if against else {})
    rates = {task: {name: [] for name in places} for task in TITLES}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = {}
        for name, (root, kind) in places.items():
            command = [sys.executable, root / "tests" / "benchmark.py", kind, folder]
            workers[name] = subprocess.Popen(command, cwd=root, **pipes)
        for task in [task for task in TITLES for _ in range(ROUNDS + 1)]:
            for name, worker in workers.items():
                print(task, file=worker.stdin, flush=True)
                rates[task][name].append(float(worker.stdout.readline()))
        for worker in workers.values():
            worker.communicate()
    others = [name for name in places if name != "course"]
    speeds, ratios = [["images/s", *places]], [["", *(f"course / {name}" for name in others)]]
    for task, title in TITLES.items():
        rate = {name: np.median(rates[task][name][1:]) for name in places}
        speeds.append([title, *(f"{rate[name]:,.0f}" for name in places)])
        ratios.append([title, *(f"{rate['course'] / rate[name]:.2f}" for name in others)])
    return f"{markdown_table(speeds)}\n\n{markdown_table(ratios)}"


def work(name: str, folder: Path) -> None:
    """A worker: for each line that it reads, one round of that task; it writes the images per second."""
    device, tasks = best_device(), {}
    for line in sys.stdin:
        task = line.strip()
        if task not in tasks:
            tasks[task] = prepared(task, name, folder, device)
        count, one_round = tasks[task]
        start = time.perf_counter()
        one_round()
        print(count / (time.perf_counter() - start), flush=True)


def prepared(task: str, name: str, folder: Path, device: torch.device) -> tuple:
    """How many images a round has, and the round."""
    model = model_of(task).to(device, memory_format=torch.contiguous_format if name == "naive" else torch.channels_last)
    if task.isdigit():
        images = torch.randint(256, (32 * 8 * SIZE // int(task), 3, int(task), int(task)), dtype=torch.uint8)
        return len(images), lambda: infer(model, images, name)
    size, count = BATCHES[task]
    if name == "naive":
        files = {"unet": PetFiles, "mnist": partial(MNIST, transform=ToTensor())}
        files["cifar10"] = lambda folder: ImageFolder(folder / "pictures", ToTensor())
        loader = DataLoader(files[task](folder), size, shuffle=True, drop_last=True)
        return size * count, lambda: naive_epoch(model, loader, task)
    batches, optimiser = batches_of(task, size, count), optimiser_of(model, task)
    if name == "ceiling":
        images, targets = (part.to(device) for part in next(batches.epoch(0)))
        batches = Resident([torch.randint_like(images, 256), targets], count)
    return size * count, lambda: epoch(model, batches, task, optimiser)


class Resident:
    """The same batch, as often as is asked for."""

    def __init__(self, batch: list[torch.Tensor], count: int):
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int) -> Iterator[list[torch.Tensor]]:
        """Every epoch is like every other."""
        return repeat(self.batch, self.count)


def model_of(task: str) -> nn.Module:
    """A network of the published size."""
    torch.manual_seed(0)
    part, name = (f"cvae_{task}", "plain") if task in ("mnist", "cifar10") else ("unet", "MP+Tr+BCE")
    return build_network(part, name, load_numbers(part)["recipe"])


def optimiser_of(model: nn.Module, task: str) -> torch.optim.Optimizer:
    """The course's own for this network, at a rate that changes nothing much."""
    if task == "unet":
        return Muon(model.parameters(), 0.01, 0.9, 1e-3)
    return torch.optim.AdamW(model.parameters(), 1e-4, fused=True)


def loss_of(task: str):
    """The loss that the notebook gives to `fit`."""
    if task == "unet":
        return lambda model, batch, step: {"loss": bce_loss(model(normalise(batch[0])), batch[1])}

    def loss(model, batch, step):
        terms = elbo_terms(model, to_unit(batch[0]), batch[1])
        return {"loss": terms["negative_elbo"], **terms}

    return loss


def epoch(model: nn.Module, batches: Batches | Resident, task: str, optimiser: torch.optim.Optimizer) -> None:
    """One epoch in the course's loop."""
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    max_grad_norm = load_numbers("cvae_cifar10")["recipe"]["max_grad_norm"] if task == "cifar10" else inf
    with tqdm(disable=True) as bar:
        train_epoch(model, batches, 0, loss_of(task), optimiser, schedule, max_grad_norm, bar)


def naive_epoch(model: nn.Module, loader: DataLoader, task: str) -> None:
    """One epoch in a loop as one writes it first."""
    device, optimiser = next(model.parameters()).device, torch.optim.AdamW(model.parameters(), 1e-4)
    model.train()
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        if task == "unet":
            loss = nn.functional.binary_cross_entropy_with_logits(model(images), targets)
        else:
            loss = elbo_terms(model, images, targets)["negative_elbo"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()


def infer(model: nn.Module, images: torch.Tensor, name: str) -> None:
    """Foreground probabilities of all images; the ceiling has one batch ready, as floats."""
    if name in ("course", "freeing"):
        metrics.predict(model, images)
        return
    device = next(model.parameters()).device
    model.eval()
    precision = mixed_precision(device) if name == "ceiling" else nullcontext()  # as the course predicts
    with torch.no_grad(), precision:
        ready = normalise(images[:32].to(device))
        for batch in images.split(32):
            inputs = ready if name == "ceiling" else (batch.to(device).float() - 127.5) / 63.75
            model(inputs).float().sigmoid().cpu()


def batches_of(task: str, size: int, count: int) -> Batches:
    """The course's batches, of drawn images."""
    if task == "unet":
        arrays = standins.pets(size * count, SIZE, 0)
        augment = definitions(NOTEBOOKS["unet"]).pet_augmentation()
        return Batches(Split(*map(channels_first, arrays)), size, 0, augment, [SIZE])
    images, labels = (standins.digits if task == "mnist" else standins.letters)(size * count, 0)
    return Batches(Split(channels_first(images), torch.from_numpy(labels).long()), size, 0)


# --- What the naive loop reads ----------------------------------------------------------------------------------------


def write_files(folder: Path) -> None:
    """The drawn images as files: pets of the real ones' 500 x 375 pixels, digits as IDX, pictures as PNG by class."""
    size, count = BATCHES["unet"]
    for i, (image, trimap) in enumerate(zip(*standins.pets(size * count, 500, 0))):
        write_image(folder / "pets" / f"{i:04}.jpg", image[:375])
        write_image(folder / "pets" / f"{i:04}.png", trimap[:375])
    size, count = BATCHES["mnist"]
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for kind, array in zip(("images-idx3", "labels-idx1"), standins.digits(size * count, 0)):
        for split in ("train", "t10k"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(idx(array))
    size, count = BATCHES["cifar10"]
    for i, (image, label) in enumerate(zip(*standins.letters(size * count, 0))):
        write_image(folder / "pictures" / str(label) / f"{i:04}.png", image)


class PetFiles(Dataset):
    """Photographs and masks, decoded, scaled and augmented each time they are asked for."""

    def __init__(self, folder: Path):
        self.paths = sorted((folder / "pets").glob("*.jpg"))
        self.augment = definitions(NOTEBOOKS["unet"]).pet_augmentation()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = np.array(Image.open(self.paths[index]).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR))
        trimap = np.array(Image.open(self.paths[index].with_suffix(".png")).resize((SIZE, SIZE), Image.NEAREST))
        pair = self.augment(image=image, mask=trimap)
        pixels = (torch.from_numpy(pair["image"]).permute(2, 0, 1).float() - 127.5) / 63.75
        return pixels, foreground(torch.from_numpy(pair["mask"])[None]).float()


# --- Arithmetic, start-up, memory -------------------------------------------------------------------------------------


def arithmetic(device: torch.device) -> str:
    """Counted floating-point operations of a training step over its time, against the best matrix product."""
    best = max(matrix_product(device, side) for side in (512, 1024, 2048, 4096))
    rows = [
        ["arithmetic rate", "GFLOP for an image", "GFLOP/s", f"share of the best matrix product, {best:,.0f} GFLOP/s"]
    ]
    for task, (size, _) in BATCHES.items():
        steps, times = training(task, device), []
        with FlopCounterMode(display=False) as counter:
            steps(1)
        operations = counter.get_total_flops()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            steps(10)
            times.append((time.perf_counter() - start) / 10)
        rate = operations / np.median(times) / 1e9
        rows.append([TITLES[task], f"{operations / size / 1e9:.3f}", f"{rate:,.0f}", f"{rate / best:.0%}"])
    return markdown_table(rows)


def shares(device: torch.device) -> str:
    """Where the time of a training step goes, by torch's profiler, on the processor."""
    columns = [["share of a training step", *KINDS, "optimiser", "the rest"]]
    for task in BATCHES:
        steps = training(task, device)
        steps(3)  # to warm up
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            steps(10)
        events = profiler.key_averages()
        spent = [sum(e.self_cpu_time_total for e in events if re.fullmatch(kind, e.key)) for kind in KINDS.values()]
        spent.append(sum(e.cpu_time_total for e in events if e.key.startswith("Optimizer.step")))
        total = sum(e.self_cpu_time_total for e in events)
        columns.append([TITLES[task], *(f"{part / total:.0%}" for part in [*spent, total - sum(spent)])])
    return markdown_table(list(map(list, zip(*columns))))


def training(task: str, device: torch.device) -> Callable[[int], None]:
    """Steps of training on one batch, as many as are asked for."""
    model = model_of(task).to(device, memory_format=torch.channels_last)
    batch = [part.to(device) for part in next(batches_of(task, BATCHES[task][0], 1).epoch(0))]
    optimiser = optimiser_of(model, task)
    return lambda count: epoch(model, Resident(batch, count), task, optimiser)


def matrix_product(device: torch.device, side: int) -> float:
    """GFLOP/s of a square matrix product in the precision of training: the fastest of several."""
    one, other = (torch.randn(side, side, device=device, dtype=best_precision(device)) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        (one @ other)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e9


def start_up() -> str:
    """Seconds until the modules are there, and until the data of part 1 is, if that has been decoded before."""
    program = "import time, torch; start = time.time(); import utils.run; print(time.time() - start)"
    times = [float(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT)) for _ in range(ROUNDS)]
    rows = [["start-up", "seconds"], ["import of utils, beyond torch's own", f"{np.median(times):.2f}"]]
    if (DATA / "oxford-iiit-pet").exists():
        load_pets("oxford-iiit-pet", DATA, SIZE)
        start = time.perf_counter()
        load_pets("oxford-iiit-pet", DATA, SIZE)
        rows.append(["Oxford-IIIT Pet, 7,349 images of 128 px, from the cache", f"{time.perf_counter() - start:.2f}"])
    return markdown_table(rows)


def peak_memory() -> str:
    """Peak memory of each notebook's kernel on the real data, at published sizes but for the epochs."""
    rows = [["real data, one epoch of each training", "peak memory, GiB"]]
    for notebook, values in ONE_EPOCH.items():
        with tempfile.TemporaryDirectory() as folder:
            given = json.dumps(values | {"pretrained": False, "run_dir": folder})
            program = [sys.executable, __file__, "notebook", notebook, given]
            printed = subprocess.check_output(program, cwd=ROOT, stderr=subprocess.DEVNULL, text=True)
            rows.append([notebook, f"{float(printed.splitlines()[-1]):.2f}"])
    return markdown_table(rows)


def run_notebook(notebook: str, values: str) -> None:
    """Run it, and print the peak memory of its kernel."""
    run.execute(notebook, json.loads(values), ROOT / "runs" / "benchmark")
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)


if __name__ == "__main__":
    if sys.argv[1:2] == ["notebook"]:
        run_notebook(*sys.argv[2:])
    elif sys.argv[1:2] and sys.argv[1] in WORKERS:
        work(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
