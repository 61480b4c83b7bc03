"""Running the notebooks: what each one starts with (`start`), and all of them in batch (`python -m utils.run --help`).

Executed notebooks, checkpoints and results go to runs/. Only `--publish` writes the committed notebooks and Results/.
"""

import argparse
import ast
import json
import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import clear_output
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn

from utils import figures, results
from utils.files import UNFINISHED, lock_run_dir, write_atomically
from utils.results import NOTEBOOKS, ROOT, PublishedError
from utils.training import Training, best_device, best_precision, fit

UNET, MNIST, CIFAR10 = NOTEBOOKS.values()
STAND_IN = {"dataset": "stand-in", "pretrained": False}  # drawn data, and minutes instead of hours
QUICK = {
    UNET: STAND_IN
    | {"image_size": 64, "size_schedule": [[64, 7]], "run_dir": "runs/quick/unet"}
    | {"learning_rate": 0.08},  # seven short epochs need longer steps
    MNIST: STAND_IN
    | {"base_channels": 8, "epochs": 8, "trial_epochs": 1, "judge_epochs": 4, "batch_size": 64}
    | {"learning_rate": 5e-3, "run_dir": "runs/quick/cvae_mnist"},
    CIFAR10: STAND_IN
    | {"latent_size": 16, "hidden": 0, "base_channels": 8, "plain_epochs": 4, "epochs": 5, "trial_images": 640}
    | {"judge_channels": 8, "judge_epochs": 3, "guide_channels": 8, "guide_epochs": 3, "batch_size": 32}
    | {"learning_rate": 2e-3, "noise": 0.6, "run_dir": "runs/quick/cvae_cifar10"},
}
# What is run, not how it is trained.
NOT_RECIPE = {*"dataset pretrained image_size variants seed image_folder digit_image run_dir repo_url".split()}


class ParameterError(ValueError):
    """A parameter that no notebook has, or a value that it cannot take; the message says what it could be."""


# --- Parameters -------------------------------------------------------------------------------------------------------


def defaults(notebook: str) -> dict[str, Any]:
    """Names and default values, as they stand in the cell tagged 'parameters' of a notebook of the course."""
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    [source] = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}


def check_parameters(notebook: str, values: dict[str, Any]) -> None:
    """Refuse values of another kind than the default, numbers below 0, NaN and infinity; ignore other names."""
    kinds = {bool: "true or false", int: "a whole number of 0 or more", float: "a number of 0 or more", str: "text"}
    for name, default in defaults(notebook).items():
        if name in values and not same_kind(values[name], default):
            kind = kinds.get(type(default), "a list of the same form")
            raise ParameterError(f"{name} = {values[name]!r}: {kind} is needed, such as {default!r}")


def same_kind(value: Any, default: Any) -> bool:
    """Whether a value can stand in the place of the default; a list within a list has its length, too."""
    if isinstance(default, list):
        filled = isinstance(value, list) and len(value) > 0
        alike = filled and all(same_kind(part, default[0]) for part in value)
        return alike and all(len(part) == len(default[0]) for part in value if isinstance(part, list))
    if isinstance(default, str):
        return isinstance(value, str)
    return type(value) in (type(default), int if type(default) is float else None) and isfinite(value) and value >= 0


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
        """A trained network and how its training went: `fit` with its checkpoint in run_dir or, pretrained, published.

        `network` is the part of the model that is kept, by default all of it. The other arguments are those of `fit`;
        data set and seed are added to its `settings`.
        """
        network = model if network is None else network
        if self.published:
            return results.load_weights(self.part, name, network), results.load_trainings(self.part)[name]
        settings = {"dataset": self.dataset, "seed": self.seed} | settings
        checkpoint = self.run_dir / f"{name}.pt"
        training = fit(model, *arguments, checkpoint=checkpoint, settings=settings, label=name, **recipe)
        clear_output()  # the progress bar has done its work
        return network.eval(), training

    def show(self, figure: Figure, name: str = "") -> None:
        """Show a figure; one with a name is saved, too."""
        if name:
            figures.save(figure, self.results_dir / name)
        plt.show()

    def save_results(self, numbers: dict, trainings: dict[str, Training], networks: dict[str, nn.Module]) -> dict:
        """Write numbers, trainings and weights to results_dir; the numbers, with seed, recipe and versions added."""
        versions = {"python": platform.python_version(), "torch": torch.__version__, "device": self.device.type}
        seconds = {name: sum(training.seconds) for name, training in trainings.items()}
        about = {"seed": self.seed, "recipe": self.recipe, "seconds": seconds, "versions": versions}
        numbers = {"dataset": self.dataset} | numbers | about
        kept = {name: trainings[name] for name in networks}
        results.save_results(self.results_dir, self.part, numbers, kept, networks)
        return numbers


def start(notebook: str, names: dict[str, Any]) -> Run:
    """Check a notebook's parameters (found among its names), lock its run_dir, and say what it runs on.

    Raises ParameterError, StorageError if the run_dir is in use, or PublishedError if a pretrained run is to have
    other data than that of the published networks. Data lies in data/, or where the variable DATA_DIR says.
    """
    check_parameters(notebook, names)
    part = next(part for part, its_notebook in NOTEBOOKS.items() if its_notebook == notebook)
    recipe = {name: names[name] for name in defaults(notebook) if name not in NOT_RECIPE}
    dataset, published = names["dataset"], results.load_numbers(part) if names["pretrained"] else {}
    if published and dataset != published["dataset"]:
        theirs = f"the published networks were trained on {published['dataset']!r}, not on {dataset!r}"
        raise PublishedError(f"{theirs}: set dataset to that, or pretrained to False")
    run_dir, data_dir = lock_run_dir(Path(names["run_dir"])), Path(os.environ.get("DATA_DIR", "data"))
    folders = run_dir, run_dir / ("pretrained" if published else "results"), data_dir
    run = Run(part, dataset, names["seed"], recipe, published, best_device(), *folders)
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 65})  # PNG would outgrow GitHub's limit
    plt.rcParams["figure.dpi"] = 72
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {run.device.type}, ", end="")
    print(f"{best_precision(run.device)}\ndata set: {dataset}")
    if published:
        print(f"networks: published, trained on {dataset} by this notebook with pretrained = False")
    if dataset == "stand-in":
        print("\n*** STAND-IN DATA: DRAWN BY THE PROGRAM. NOTHING BELOW IS A RESULT. ***")
    return run


# --- In batch ---------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 0 if every notebook ran to its end."""
    import papermill  # here, since `start` has to work where it is not installed, as on Colab

    options = parse(arguments)
    try:
        plan = {name: parameters_for(name, options) for name in options.notebooks}  # all checked before the first runs
        for name, parameters in plan.items():
            execute(name, parameters, ROOT / ("runs/quick" if options.quick else "runs"))
            if options.publish:
                publish(name, trained=parameters.get("pretrained") is False)
    except (ValueError, OSError, papermill.PapermillExecutionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.run", description="Run the notebooks, in batch.")
    parser.add_argument("notebooks", nargs="*", default=list(QUICK), help=f"by default all: {list(QUICK)}")
    parser.add_argument("--quick", action="store_true", help="drawn stand-in data and small models: a few minutes")
    publish = "then write the executed notebooks to the top level; with -p pretrained false, Results/ before"
    parser.add_argument("--publish", action="store_true", help=publish)
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameter", **pair, help="a notebook's parameter; VALUE is JSON or plain text")
    options = parser.parse_args(arguments)
    if options.publish and (options.quick or dict(options.parameter).keys() - {"pretrained"}):
        parser.error("--publish takes the notebooks' own parameters: leave out --quick and -p, but for pretrained")
    if unknown := [name for name in options.notebooks if name not in QUICK]:
        parser.error(f"no such notebook: {unknown}; choose from {list(QUICK)}")
    return options


def parameters_for(name: str, options: argparse.Namespace) -> dict:
    """Quick values first, the command line's over them, as far as this notebook knows them.

    ParameterError for one that no notebook knows (a misspelt one would be ignored), or a value that makes no sense.
    """
    known = set().union(*map(defaults, options.notebooks))
    if unknown := sorted(dict(options.parameter).keys() - known):
        raise ParameterError(
            f"no notebook has the parameter {', '.join(unknown)}; there are: {', '.join(sorted(known))}"
        )
    given = {key: value_of(text) for key, text in options.parameter if key in defaults(name)}
    check_parameters(name, given)
    return (QUICK[name] if options.quick else {}) | given


def value_of(text: str) -> object:
    """What was typed, as JSON (2e-3, [[64, 3]], true, "text") where it is, else as it stands."""
    with suppress(json.JSONDecodeError):
        return json.loads(text)
    return text


def execute(name: str, parameters: dict, folder: Path) -> Path:
    """Run one notebook from the root of the repository; the executed copy's path.

    papermill writes the copy again and again while it runs; it gets its name once it is whole, or has met an error.
    """
    import papermill

    output, growing = folder / name, folder / f"{UNFINISHED}{name}"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name} -> {output.relative_to(ROOT)}", flush=True)
    try:
        papermill.execute_notebook(ROOT / name, growing, parameters, kernel_name="python3", cwd=ROOT, log_output=False)
    finally:
        if growing.exists():
            os.replace(growing, output)
    return output


def publish(name: str, trained: bool) -> None:
    """Put what a run of the default recipe has left in the place of what is published, by an executed notebook.

    After a training, its weights, numbers and figures go to Results/ first. The notebook is then always one that was
    run from the published weights, so that it shows what anybody gets who runs it. ValueError for stand-in data.
    """
    import nbformat

    run_dir = ROOT / defaults(name)["run_dir"]
    if trained:
        copy_results(run_dir / "results")
        execute(name, {}, ROOT / "runs")
    copy_results(run_dir / "pretrained", "*.png")
    content = nbformat.read(ROOT / "runs" / name, as_version=4)
    for part in [content, *content.cells]:  # without paths and times of this machine
        part.metadata = {key: value for key, value in part.metadata.items() if key not in ("papermill", "execution")}
    write_atomically(ROOT / name, lambda temporary: nbformat.write(content, temporary))
    results.update_pages()


def copy_results(folder: Path, pattern: str = "*") -> None:
    """Copy a run's files to Results/; ValueError if they are of stand-in data."""
    for summary in folder.glob("*.json"):
        if json.loads(summary.read_text(encoding="utf-8"))["dataset"] == "stand-in":
            raise ValueError(f"{summary} is of stand-in data, which is never published")
    for file in sorted(folder.glob(pattern)):
        write_atomically(results.RESULTS / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))


if __name__ == "__main__":
    sys.exit(main())
