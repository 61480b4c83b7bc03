"""The notebooks in batch, through papermill: `python -m utils.run --help`.

Executed notebooks, checkpoints and results go to runs/. Only `--publish` writes the committed notebooks and Results/,
and only from a complete run of the default parameters.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
import papermill

from utils.parameters import ROOT, ParameterError, check_parameters, defaults
from utils.storage import UNFINISHED, write_atomically

QUICK = {  # embedded stand-in data, minutes instead of hours
    "01_unet_segmentation.ipynb": {
        "source": "stand-in",
        "image_size": 64,
        "size_schedule": [[64, 7]],
        "learning_rate": 0.08,  # seven short epochs need longer steps
        "run_dir": "runs/quick/unet",
    },
    "02_conditional_vae_mnist.ipynb": {
        "source": "stand-in",
        "base_channels": 8,
        "epochs": 8,
        "trial_epochs": 1,
        "judge_epochs": 4,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "run_dir": "runs/quick/cvae_mnist",
    },
    "03_conditional_vae_cifar10.ipynb": {
        "source": "stand-in",
        "latent_size": 16,
        "hidden": 0,
        "base_channels": 8,
        "plain_epochs": 4,
        "epochs": 5,
        "trial_images": 640,
        "judge_channels": 8,
        "judge_epochs": 3,
        "guide_channels": 8,
        "guide_epochs": 3,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "noise": 0.6,
        "run_dir": "runs/quick/cvae_cifar10",
    },
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 0 if every notebook ran to its end."""
    options = parse(arguments)
    try:
        plan = [(name, parameters_for(name, options)) for name in options.notebooks]
        refuse_unknown(options)
        for name, parameters in plan:
            check_parameters(name, parameters)
        for name, parameters in plan:
            output = execute(name, parameters, ROOT / ("runs/quick" if options.quick else "runs"))
            if options.publish:
                publish(output, ROOT / name)
    except (ValueError, OSError, papermill.PapermillExecutionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.run", description="Run the notebooks, in batch.")
    parser.add_argument("notebooks", nargs="*", default=list(QUICK), help=f"by default all: {list(QUICK)}")
    parser.add_argument("--quick", action="store_true", help="embedded stand-in data and small models: a few minutes")
    parser.add_argument("--publish", action="store_true", help="then write the executed notebooks and Results/")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameter", **pair, help="a notebook's parameter; VALUE is JSON or plain text")
    options = parser.parse_args(arguments)
    if options.publish and (options.quick or options.parameter):
        parser.error("--publish takes the notebooks' own parameters: leave out --quick and -p")
    if unknown := [name for name in options.notebooks if name not in QUICK]:
        parser.error(f"no such notebook: {unknown}; choose from {list(QUICK)}")
    return options


def parameters_for(name: str, options: argparse.Namespace) -> dict:
    """Quick values first, the command line's over them, as far as this notebook knows them."""
    known = defaults(name)
    given = {key: value_of(text) for key, text in options.parameter if key in known}
    return (QUICK[name] if options.quick else {}) | given


def value_of(text: str) -> object:
    """What was typed, as JSON (2e-3, [[64, 3]], true, "text") where it is, else as it stands."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def refuse_unknown(options: argparse.Namespace) -> None:
    """A misspelt parameter would otherwise be ignored."""
    known = set().union(*(defaults(name) for name in options.notebooks))
    if unknown := sorted(dict(options.parameter).keys() - known):
        there = f"there are: {', '.join(sorted(known))}"
        raise ParameterError(f"no notebook has the parameter {', '.join(unknown)}; {there}")


def execute(name: str, parameters: dict, folder: Path) -> Path:
    """Run one notebook from the root of the repository; the executed copy's path.

    papermill writes the copy again and again while it runs; it gets its name once it is whole, or has met an error.
    """
    output, growing = folder / name, folder / f"{UNFINISHED}{name}"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name} -> {output.relative_to(ROOT)}", flush=True)
    try:
        papermill.execute_notebook(ROOT / name, growing, parameters, kernel_name="python3", cwd=ROOT, log_output=False)
    except papermill.PapermillExecutionError:
        os.replace(growing, output)
        raise
    os.replace(growing, output)
    return output


def publish(executed: Path, notebook: Path) -> None:
    """Replace the committed notebook by its executed copy, and its files in Results/ by those of the run."""
    results = ROOT / defaults(notebook.name)["run_dir"] / "results"
    for summary in results.glob("*.json"):
        if json.loads(summary.read_text(encoding="utf-8"))["data"] == "stand-in":
            raise ValueError(f"{summary} is of stand-in data, which is never published")
    content = nbformat.read(executed, as_version=4)
    for part in [content, *content.cells]:
        part.metadata.pop("papermill", None)  # paths and times of this machine
        part.metadata.pop("execution", None)
    write_atomically(notebook, lambda temporary: nbformat.write(content, temporary))
    for file in sorted(results.iterdir()):
        write_atomically(ROOT / "Results" / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))


if __name__ == "__main__":
    sys.exit(main())
