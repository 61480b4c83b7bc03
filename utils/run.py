"""Running the notebooks: what each one starts with (`start`), and all of them in batch (`python -m utils.run --help`).

Executed notebooks, checkpoints and results go to runs/; the committed notebooks and Results/ are only read.
"""

import argparse
import ast
import json
import os
import platform
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import matplotlib.pyplot as plt
import torch
from IPython.display import clear_output
from matplotlib.figure import Figure
from matplotlib_inline.config import InlineBackend
from torch import nn
from tqdm import tqdm

from utils import results
from utils.files import lock_run_dir, save_json, write_atomically
from utils.results import NOTEBOOKS, ROOT, PublishedError
from utils.training import Training, best_device, best_precision, fit

PARTS = {notebook: part for part, notebook in NOTEBOOKS.items()}
UNET, MNIST, CIFAR10 = PARTS
STAND_IN = {"dataset": "stand-in", "pretrained": False}  # drawn data, and minutes instead of hours
QUICK = {
    UNET: STAND_IN
    | {"image_size": 64, "size_schedule": [[64, 4]], "base_channels": 8, "batch_size": 32}
    | {"learning_rate": 0.12, "run_dir": "runs/quick/unet"},  # few and short epochs need longer steps
    MNIST: STAND_IN
    | {"base_channels": 8, "epochs": 8, "trial_epochs": 1, "judge_epochs": 5, "batch_size": 64}
    | {"learning_rate": 8e-3, "run_dir": "runs/quick/cvae_mnist"},
    CIFAR10: STAND_IN
    | {"latent_size": 16, "hidden": 0, "base_channels": 8, "plain_epochs": 3, "epochs": 5, "trial_images": 320}
    | {"judge_channels": 8, "judge_epochs": 3, "guide_channels": 8, "guide_epochs": 3, "batch_size": 32}
    | {"learning_rate": 3e-3, "noise": 0.6, "guide_weight": 300.0, "exemplar_weight": 0.3}
    | {"run_dir": "runs/quick/cvae_cifar10"},
}
NOT_RECIPE = ("dataset", "pretrained", "image_size", "variants", "seed")  # what is run, not how it is trained
NOT_RECIPE += ("image_folder", "digit_image", "run_dir", "repo_url")
LONGEST_NAME = 100  # of a folder, in characters; Windows allows 260 for a whole path
LEAST = {  # a quarter of a batch gets wrong labels; codes are drawn on a plane
    MNIST: {"batch_size": 4, "latent_size": 2},
    CIFAR10: {"batch_size": 4},
}
LARGEST = 2**32 - 1  # of a parameter; seeds of epochs are made of larger multiples, which have to fit in 64 bits


class ParameterError(ValueError):
    """A parameter that none of the notebooks has, or a value that it cannot take; the message says what it could be."""


# --- Parameters -------------------------------------------------------------------------------------------------------


def defaults(notebook: str) -> dict[str, Any]:
    """Names and default values, as they stand in the cell tagged 'parameters' of a notebook of the course.

    ParameterError for anything else in that cell: batch runs read it without running it.
    """
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    [source] = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    try:
        return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}
    except (ValueError, SyntaxError, AttributeError) as error:
        plain = "write plain values, as in `epochs = 5`, and nothing else"
        raise ParameterError(f"first code cell of {notebook}: {plain} ({error})") from None


def check_parameters(notebook: str, values: dict[str, Any]) -> None:
    """Refuse values of another kind than the default, numbers too small or too large, and NaN; ignore other names."""
    numbers = f"from 0 to {LARGEST:,}"
    kinds = {
        bool: "True or False (after -p: true or false)",
        int: f"a whole number {numbers}",
        float: f"a number {numbers}",
        str: "text",
    }
    usual = defaults(notebook)
    for name, default in usual.items():
        if name in values and not same_kind(values[name], default):
            kind = kinds.get(type(default), "a list of the same form")
            raise ParameterError(f"{name} = {values[name]!r}: {kind} is needed, such as {default!r}")
    for name, least in LEAST.get(notebook, {}).items():
        if values.get(name, least) < least:
            raise ParameterError(f"{name} = {values[name]!r}: {least} or more is needed, such as {usual[name]!r}")


def same_kind(value: Any, default: Any) -> bool:
    """Whether a value can stand in the place of the default; a list within a list has its length, too."""
    if isinstance(default, list):
        filled = isinstance(value, list) and len(value) > 0
        alike = filled and all(same_kind(part, default[0]) for part in value)
        return alike and all(len(part) == len(default[0]) for part in value if isinstance(part, list))
    if isinstance(default, str):
        return isinstance(value, str)
    return type(value) in (type(default), int if type(default) is float else None) and 0 <= value <= LARGEST


# --- In a notebook ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of a notebook: its parameters, its folders, and how it trains, shows and saves."""

    part: str
    dataset: str
    seed: int
    recipe: dict[str, Any]  # the parameters that decide what comes out
    published: dict[str, Any]  # the published numbers of a pretrained run, else nothing
    device: torch.device
    run_dir: Path  # of checkpoints
    results_dir: Path  # of figures and numbers
    data_dir: Path

    def train(
        self, name: str, model: nn.Module, *arguments, settings: dict, network: nn.Module | None = None, **recipe
    ):
        """A trained network and how its training went: by `fit`, or the published ones.

        `network` is the part of the model that is kept, by default all of it. The other arguments are those of `fit`;
        data set and seed are added to its `settings`.
        """
        network = model if network is None else network
        if self.published:
            training = results.load_training(self.part, name)
            return results.load_weights(self.part, name, network), training
        settings = {"dataset": self.dataset, "seed": self.seed} | settings
        checkpoint = self.run_dir / f"{name}.pt"
        training = fit(model, *arguments, checkpoint=checkpoint, settings=settings, **recipe)
        clear_output()  # the progress bar has done its work
        return network.eval(), training

    def show(self, figure: Figure, name: str = "") -> None:
        """Show a figure; one with a name is saved, too."""
        if name:
            write_atomically(self.results_dir / name, lambda temporary: figure.savefig(temporary, dpi=70))
        plt.show()

    def save_results(self, numbers: dict, trainings: dict[str, Training], networks: dict[str, nn.Module]) -> dict:
        """Write numbers, trainings and weights to results_dir; the numbers, with seed, recipe and versions added."""
        versions = {"python": platform.python_version(), "torch": torch.__version__, "device": self.device.type}
        seconds = {name: sum(training.seconds) for name, training in trainings.items()}
        seed = self.published.get("seed", self.seed)  # of the networks
        about = {"seed": seed, "recipe": self.recipe, "seconds": seconds, "versions": versions}
        numbers = {"dataset": self.dataset} | numbers | about
        trainings = {name: trainings[name] for name in networks}
        results.save_results(self.results_dir, self.part, numbers, trainings, networks)
        return numbers


def start(notebook: str, names: dict[str, Any]) -> Run:
    """Check a notebook's parameters (found among its names), lock its run_dir, and say what it runs on.

    Raises ParameterError, StorageError if the run_dir is in use, or PublishedError if a pretrained run is to have
    other data or another recipe than the published networks. Data lies in data/, or where the variable DATA_DIR says.
    """
    check_parameters(notebook, names)
    if not isinstance(names["pretrained"], bool):  # a notebook that was saved with "False" has that as its default
        raise ParameterError(f"pretrained = {names['pretrained']!r}: True or False is needed")
    recipe = {name: names[name] for name in defaults(notebook) if name not in NOT_RECIPE}
    dataset = names["dataset"]
    published = results.load_numbers(PARTS[notebook]) if names["pretrained"] else {}
    if published and dataset != published["dataset"]:
        theirs = f"the published networks were trained on {published['dataset']!r}, not on {dataset!r}"
        raise PublishedError(f"{theirs}: set dataset to that, or set pretrained to False")
    trained_with = published.get("recipe", recipe)
    if changed := [f"{name} = {value}" for name, value in trained_with.items() if value != recipe[name]]:
        theirs = f"the published networks were trained with {', '.join(changed)}"
        raise PublishedError(f"{theirs}: leave it so, or set pretrained to False")
    for name, kind in {"image_folder": "folder", "digit_image": "file"}.items():  # used at the end, perhaps hours later
        path = Path(names.get(name, "")).expanduser()
        if names.get(name) and not (path.is_dir() if kind == "folder" else path.is_file()):
            raise ParameterError(f"{name} = {names[name]!r}: there is no such {kind}")
    folder, data_dir = lock_run_dir(Path(names["run_dir"]).expanduser()), Path(os.environ.get("DATA_DIR", "data"))
    about = PARTS[notebook], dataset, names["seed"], recipe, published, best_device()
    run = Run(*about, folder, folder / ("pretrained" if published else "results"), data_dir.expanduser())
    inline = InlineBackend.instance()  # matplotlib 3.8 asks it again at the first figure
    inline.print_figure_kwargs["pil_kwargs"] = {"quality": 65}
    inline.figure_formats = {"jpeg"}  # PNG would outgrow GitHub's limit
    plt.rcParams["figure.dpi"] = 72
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {run.device.type}, ", end="")
    print(f"{best_precision(run.device)}\ndata set: {dataset}")
    if published:
        print(f"networks: published, trained on {dataset} by this notebook with pretrained = False")
    if dataset == "stand-in":
        print("\n*** STAND-IN DATA: DRAWN BY THE PROGRAM. NOTHING BELOW IS A RESULT. ***")
        print("The text below describes the published run, on real data.")
    return run


# --- In batch ---------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 0 if every notebook ran to its end."""
    import papermill  # here, since `start` has to work where it is not installed, as on Colab

    options = parse(arguments)
    folder = ROOT / "runs" / ("quick" if options.quick else "")
    try:
        plan = [(name, parameters) for name in options.notebooks for parameters in parameters_for(name, options)]
        if options.sweep:
            sweep(plan, folder / "sweep", options)
            return 0
        for name, parameters in plan:
            print(f"{name} -> {folder.relative_to(ROOT) / name}", flush=True)
            execute(name, parameters, folder)
    except (ValueError, OSError, RuntimeError, papermill.PapermillExecutionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.run", description="Run the notebooks, in batch.")
    parser.add_argument("notebooks", nargs="*", default=list(PARTS), help=f"by default all: {list(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="drawn stand-in data and small models: a few minutes")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameter", **pair, help="a notebook's parameter; VALUE is JSON or plain text")
    parser.add_argument("--sweep", action="store_true", help="each VALUE is a list: run all combinations, with Dask")
    parser.add_argument("--scheduler", help="address of a Dask scheduler; by default a worker for each core, here")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.notebooks if name not in PARTS]:
        parser.error(f"no such notebook: {unknown}; choose from {list(PARTS)}")
    if options.scheduler and not options.sweep:
        parser.error("--scheduler is for a --sweep")
    return options


def parameters_for(name: str, options: argparse.Namespace) -> list[dict]:
    """The parameters of each run: quick values first, the command line's over them, as far as this notebook knows them.

    ParameterError for one that none of them knows (a misspelt one would be ignored), or a value that makes no sense.
    """
    known = set().union(*map(defaults, options.notebooks))
    if unknown := sorted(dict(options.parameter).keys() - known):
        there = f"there are: {', '.join(sorted(known))}"
        raise ParameterError(f"none of the notebooks to run has the parameter {', '.join(unknown)}; {there}")
    given = {key: value_of(text) for key, text in options.parameter if key in defaults(name)}
    if options.sweep and "run_dir" in given:
        raise ParameterError("run_dir: in a sweep each run has a folder of its own")
    if single := [key for key, values in given.items() if options.sweep and not isinstance(values, list)]:
        example = json.dumps([given[single[0]]])
        raise ParameterError(f"{single[0]}: in a sweep a list of values is needed, such as {example}")
    if empty := [key for key, values in given.items() if options.sweep and not values]:
        raise ParameterError(f"{empty[0]}: in a sweep a list of at least one value is needed")
    grid = product(*given.values()) if options.sweep else [given.values()]
    plan = [(QUICK[name] if options.quick else {}) | dict(zip(given, values)) for values in grid]
    for parameters in plan:
        check_parameters(name, parameters)
    if options.sweep and any(parameters.get("pretrained", True) for parameters in plan):
        raise ParameterError("pretrained: a sweep trains networks, add -p pretrained '[false]'")
    return plan


def value_of(text: str) -> object:
    """What was typed, as JSON (2e-3, [[64, 3]], true, "text") where it is, else as it stands."""
    with suppress(json.JSONDecodeError):
        return json.loads(text)
    return text


def execute(name: str, parameters: dict, folder: Path) -> Path:
    """Run one notebook from the root of the repository; the executed copy's path.

    papermill writes the copy again and again while it runs; it comes to `folder` once it is whole, or has met an error.
    """
    import papermill

    folder.mkdir(parents=True, exist_ok=True)  # where that fails, it does before the run
    with TemporaryDirectory() as elsewhere:
        growing = Path(elsewhere) / name
        try:
            about = {"kernel_name": "python3", "cwd": ROOT, "log_output": False}
            papermill.execute_notebook(ROOT / name, growing, parameters, **about)
        finally:
            if growing.exists():
                write_atomically(folder / name, partial(shutil.copyfile, growing))
    return folder / name


def sweep(plan: list[tuple[str, dict]], folder: Path, options: argparse.Namespace) -> None:
    """Run notebooks with their parameters, as many at a time as there are workers; all numbers go to one json file.

    The workers are those of a Dask scheduler or, without an address, a process on one thread for each core. What one
    of them leaves unfinished when it dies goes to another, and on from its checkpoint: all must share this folder.
    """
    from dask.distributed import Client, as_completed

    from utils.run import execute  # by a name under which a worker finds it: this module may be __main__

    runs = places(plan, folder, options.quick)
    with Client(options.scheduler) if options.scheduler else Client(threads_per_worker=1) as client:
        print(f"{len(runs)} runs; dashboard: {client.dashboard_link}", flush=True)
        jobs = [(name, given | {"run_dir": str(place / "run")}, place) for place, (name, given) in runs.items()]
        tasks = {client.submit(execute, *job, key=str(job[2])): job[2] for job in jobs}
        ended = tqdm(as_completed(tasks), total=len(tasks), desc="sweep")
        unfinished = [task for task in ended if task.status != "finished"]
        lost = "the connection to the scheduler was lost"
        failed = {tasks[task]: task.exception() if task.status == "error" else lost for task in unfinished}
    done = {place: run for place, run in runs.items() if place not in failed}
    folders = {place: place / "run" / "results" for place in done}
    if absent := [place for place, (name, _) in done.items() if not (folders[place] / f"{PARTS[name]}.json").exists()]:
        raise FileNotFoundError(f"{absent[0]} holds no results: every worker has to share this folder")
    rows = [(given, results.load_numbers(PARTS[name], folders[place])) for place, (name, given) in done.items()]
    save_json(folder / "sweep.json", {"runs": [{"parameters": given} | numbers for given, numbers in rows]})
    if failed:
        reasons = "\n".join(f"{place.name}: {error}" for place, error in failed.items())
        remedy = "Run again: finished trainings are only loaded, and the others go on from their checkpoints."
        raise RuntimeError(f"{len(failed)} of {len(runs)} runs failed; sweep.json has the others.\n{reasons}\n{remedy}")


def places(plan: list[tuple[str, dict]], folder: Path, quick: bool) -> dict[Path, tuple[str, dict]]:
    """A folder for each run of a sweep, named after its parameters."""
    runs = {}
    for name, parameters in plan:
        if (name, parameters) in runs.values():
            raise ParameterError(f"a sweep runs each combination once, and {parameters} is there twice")
        usual = QUICK[name] if quick else {}  # what every run has need not stand in each name
        told = " ".join(f"{key} {value}" for key, value in parameters.items() if value != usual.get(key))
        place = folder / re.sub(r"[^\w.+]+", "-", f"{PARTS[name]} {told}", flags=re.ASCII).strip("-")
        if place in runs or len(place.name) > LONGEST_NAME:
            place = folder / f"{place.name[:LONGEST_NAME]}-{crc32(told.encode()):08x}"
        runs[place] = (name, parameters)
    return runs


if __name__ == "__main__":
    sys.exit(main())
