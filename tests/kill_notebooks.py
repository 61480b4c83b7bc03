"""Kill -9 at random moments of a notebook's whole life: `python tests/kill_notebooks.py [--kills 20] [NOTEBOOK ...]`.

Each notebook runs on a miniature of its real data set (files to decode, a cache to write), once unbroken. Then, again
from nothing, it is killed with everything it has started, run again, killed again ..., and at last left to its end:
after each kill every file must be whole, and at the end weights and numbers must be those of the unbroken run.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.files import ONE_THREAD, idx, write_image
from utils import standins
from utils.data import CIFAR10_CLASSES
from utils.files import LOCK, UNFINISHED, load_tensors
from utils.run import CIFAR10, MNIST, ROOT, UNET

FOLDER = ROOT / "runs" / "kills"
KILLS_IN_A_ROW = 3  # of one run, before it may end
SMALL = {
    UNET: {"image_size": 32, "size_schedule": [[16, 1], [32, 1]], "batch_size": 8, "base_channels": 4, "depth": 3},
    MNIST: {"epochs": 1, "trial_epochs": 1, "judge_epochs": 3, "batch_size": 20},
    CIFAR10: {"latent_size": 8, "hidden": 0, "base_channels": 4, "plain_epochs": 1, "epochs": 1, "trial_images": 160}
    | {"judge_channels": 8, "judge_epochs": 2, "guide_channels": 8, "guide_epochs": 2}
    | {"batch_size": 8, "warmup_batches": 5},
}
RUN = """
import sys, json
from pathlib import Path
from utils import run
run.execute(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
"""


def main() -> int:
    """Print a row for each notebook; 0 if everything was right."""
    parser = argparse.ArgumentParser(description="Kill the notebooks at random moments.")
    parser.add_argument("notebooks", nargs="*", default=list(SMALL))
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    for notebook in options.notebooks:
        print(torment(notebook, options.kills, FOLDER), flush=True)
    return 0


def torment(notebook: str, kills: int, folder: Path, seed: int = 0) -> str:
    """What happened, in a line; AssertionError if a file was damaged or a number differs."""
    moments = random.Random(seed)
    folder = folder / Path(notebook).stem
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    finish(notebook, folder / "unbroken")
    length = time.monotonic() - start
    expected, hit, runs = written(folder / "unbroken" / "run" / "results"), [], 0
    while len(hit) < kills or (set(hit) <= {"the start", "the data"} and runs < 10):  # a busy machine needs more
        runs += 1
        broken = folder / f"broken {runs}"
        for _ in range(max(1, min(KILLS_IN_A_ROW, kills - len(hit)))):
            if not kill(begin(notebook, broken), after=moments.uniform(0, length)):
                break  # it was through before
            hit.append(state(broken))
        finish(notebook, broken)
        assert written(broken / "run" / "results") == expected, f"{broken}: other numbers than {folder / 'unbroken'}"
        assert not list(broken.glob(f"**/{UNFINISHED}*")), f"{broken} holds unfinished files"
    met = ", ".join(f"{what} {hit.count(what)}" for what in sorted(set(hit)))
    killed = f"{runs} runs killed {len(hit)} times (had come to: {met})"
    return f"{notebook}: unbroken in {length:.0f} s; {killed}; same numbers, no damaged file"


def begin(notebook: str, folder: Path) -> subprocess.Popen:
    """A run in a process of its own, with data and results of its own."""
    if not (folder / "data").exists():
        write_data(folder / "data")
    parameters = SMALL[notebook] | {"pretrained": False, "run_dir": str(folder / "run")}
    program = [sys.executable, "-c", RUN, notebook, json.dumps(parameters), folder / "notebooks"]
    environment = os.environ | ONE_THREAD | {"DATA_DIR": str(folder / "data")}
    return subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(notebook: str, folder: Path) -> None:
    """A run to its end."""
    process = begin(notebook, folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output.decode()[-3000:]


def kill(process: subprocess.Popen, after: float) -> bool:
    """SIGKILL for the run and its kernel, some seconds after its start; False if it had ended before."""
    try:
        process.communicate(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            member.kill()
        psutil.wait_procs(family)
        process.communicate()
        return True


def state(folder: Path) -> str:
    """How far a killed run had come; every file that it left under its own name must be whole."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    whole = [path for path in files if not path.name.startswith(UNFINISHED) and path.name != LOCK]
    for path in whole:
        if path.suffix == ".pt":
            load_tensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".ipynb":
            nbformat.read(path, as_version=4)
        elif path.suffix == ".png":
            Image.open(path).load()
    stages = {
        "the end": "notebooks/*",
        "results": "run/results/*.json",
        "training": "run/*.pt",
        "the data": "data/cache/*",
    }
    come = (stage for stage, names in stages.items() if any(path.match(f"{folder}/{names}") for path in whole))
    return next(come, "the start")


def written(results: Path) -> dict[str, object]:
    """What a run has left: weights as bytes, and numbers but for times, by the names of their files."""
    weights = {path.name: path.read_bytes() for path in sorted(results.glob("*.pt"))}
    return weights | {path.name: timeless(json.loads(path.read_bytes())) for path in sorted(results.glob("*.json"))}


def timeless(content: object) -> object:
    """The same without what a clock has measured."""
    if isinstance(content, dict):
        return {name: timeless(value) for name, value in content.items() if "seconds" not in name}
    return content


def write_data(folder: Path) -> None:
    """Miniatures of the three data sets, in the real ones' layouts."""
    pets = folder / "oxford-iiit-pet"
    for split, count, seed in [("trainval", 80, 0), ("test", 24, 1)]:
        images, trimaps = standins.pets(count, 48, seed)
        for i, (image, trimap) in enumerate(zip(images, trimaps)):
            write_image(pets / "images" / f"{split}_{i}.jpg", image)
            write_image(pets / "annotations" / "trimaps" / f"{split}_{i}.png", trimap)
        (pets / "annotations" / f"{split}.txt").write_text("".join(f"{split}_{i} 1 1 1\n" for i in range(count)))
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count, seed in [("train", 1500, 0), ("t10k", 100, 1)]:
        for array, kind in zip(standins.digits(count, seed), ("images-idx3", "labels-idx1")):
            (raw / f"{split}-{kind}-ubyte").write_bytes(idx(array))
    for split, count, seed in [("train", 1500, 0), ("test", 100, 1)]:
        for i, (image, label) in enumerate(zip(*standins.letters(count, seed))):
            write_image(folder / "cifar10" / split / CIFAR10_CLASSES[label] / f"{i}.png", image)


if __name__ == "__main__":
    sys.exit(main())
