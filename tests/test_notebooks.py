"""The notebooks: run with the quick values, judged by what they wrote, run again, and the same numbers come out."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from tests.kill_notebooks import written
from utils import report, run
from utils.judge import build_judge, read
from utils.parameters import check_parameters
from utils.storage import load_tensors

ROOT = Path(__file__).parent.parent
UNET, MNIST, CIFAR10 = run.QUICK  # in their order
RUN_DIRS = {UNET: "unet", MNIST: "cvae_mnist", CIFAR10: "cvae_cifar10"}  # of the quick runs
RESULTS = {part: json.loads((ROOT / "Results" / f"{part}.json").read_text(encoding="utf-8")) for part in report.PARTS}


def outputs(notebook):
    """All text that a notebook's cells have put out, and how many pictures."""
    parts, pictures = [], 0
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            pictures += any(kind.startswith("image/") for kind in data)
            parts += [output.get("text", ""), data.get("text/markdown", "")]
    return "\n".join(parts), pictures


def side_by_side(commands):
    """Run programs, each on one thread: on two cores, two at a time are faster than one after the other on two."""

    def one(command):
        where = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
        return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, **where)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(one, commands))


@pytest.fixture(scope="module")
def quick():
    """The notebooks as `python -m utils.run --quick` leaves them, from nothing."""
    shutil.rmtree(ROOT / "runs" / "quick", ignore_errors=True)
    for ran in side_by_side([["utils.run", "--quick", notebook] for notebook in RUN_DIRS]):
        assert ran.returncode == 0, ran.stderr
    return ROOT / "runs" / "quick"


@pytest.fixture(scope="module")
def repeated(quick):
    """For each notebook, what it left at first, and nbval's verdict on running again, from nothing."""
    first = [written(quick / folder / "results") for folder in RUN_DIRS.values()]
    for folder in RUN_DIRS.values():
        shutil.rmtree(quick / folder)  # or it would only load the first run's checkpoints
    options = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "--rootdir", quick]
    verdicts = side_by_side([["pytest", *options, quick / notebook] for notebook in RUN_DIRS])
    return dict(zip(RUN_DIRS, zip(first, verdicts)))


def test_all_four_variants_learn(quick):
    results = json.loads((quick / "unet" / "results" / "unet.json").read_text())
    assert list(results["variants"]) == ["MP+Tr+BCE", "MP+Tr+Dice", "StrConv+Tr+BCE", "StrConv+Ups+Dice"]
    for row in results["variants"].values():
        assert row["iou"] > 0.8 > results["baselines"]["mean_mask"]["iou"]


def test_the_table_and_all_figures_are_there_and_say_stand_in(quick):
    text, pictures = outputs(quick / UNET)
    results = json.loads((quick / "unet" / "results" / "unet.json").read_text())
    assert report.two_by_two(results) in text
    assert report.long_table(results) in text
    assert "*** STAND-IN DATA" in text
    assert pictures == 9


def test_the_conditional_vaes_learn(quick):
    results = json.loads((quick / "cvae_mnist" / "results" / "cvae_mnist.json").read_text())
    plain, faithful = results["models"]["plain"], results["models"]["faithful"]
    assert plain["swap_agreement"] > 0.8
    assert faithful["wrong_label_agreement"] > 0.9
    assert min(plain["style_retention"], faithful["style_retention"]) > 0.5
    assert min(plain["negative_elbo"], faithful["negative_elbo"]) < 150, "an empty code costs over 200 nats"
    assert results["baselines"]["copy the source"]["wrong_label_agreement"] < 0.05
    assert results["baselines"]["forget the source"]["style_retention"] < 0.05


def test_the_conditional_vaes_tables_and_figures_are_there_and_say_stand_in(quick):
    text, pictures = outputs(quick / MNIST)
    results = json.loads((quick / "cvae_mnist" / "results" / "cvae_mnist.json").read_text())
    assert next(iter(report.cvae_tables(results).values())) in text
    assert "*** STAND-IN DATA" in text
    assert pictures == 15
    folder = quick / "cvae_mnist" / "results"
    for name in ("cvae_mnist_wrong_labels.png", "cvae_mnist_wrong_labels_faithful.png"):
        assert (folder / name).stat().st_size > 10_000


def test_the_label_becomes_visible_on_pictures(quick):
    results = json.loads((quick / "cvae_cifar10" / "results" / "cvae_cifar10.json").read_text())
    plain, faithful = results["models"]["plain"], results["models"]["faithful"]
    assert faithful["guide_agreement"] > plain["guide_agreement"] + 0.4
    assert faithful["wrong_label_agreement"] > plain["wrong_label_agreement"] + 0.1
    assert plain["psnr"] > 12
    assert min(plain["style_retention"], faithful["style_retention"]) > 0.3
    for model in (plain, faithful):
        assert model["bits_per_dim"] == pytest.approx(model["negative_elbo"] / (3072 * math.log(2)) + 8)
    text, pictures = outputs(quick / CIFAR10)
    assert next(iter(report.cvae_tables(results).values())) in text
    assert "*** STAND-IN DATA" in text
    assert pictures == 9


@pytest.mark.parametrize(("notebook", "count"), [(UNET, 3), (MNIST, 6), (CIFAR10, 5)])
def test_a_second_run_gives_the_same_numbers(quick, repeated, notebook, count):
    first, verdict = repeated[notebook]
    assert verdict.returncode == 0, verdict.stdout
    assert len(first) > 3
    assert written(quick / RUN_DIRS[notebook] / "results") == first, "weights or numbers differ in a bit"
    checked = [
        c for c in nbformat.read(quick / notebook, as_version=4).cells if "nbval-check-output" in str(c.metadata)
    ]
    assert len(checked) == count


@pytest.mark.parametrize("notebook", RUN_DIRS)
def test_a_notebook_opened_alone_clones_the_course(tmp_path, notebook):
    """As on Colab, with a file:// address in the place of a web address."""
    clone = tmp_path / "origin"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    setup = next(cell.source for cell in cells if '"git", "clone"' in cell.source)
    alone = tmp_path / "alone"
    alone.mkdir()
    program = f"repo_url = {clone.as_uri()!r}\n{setup}\nimport utils.unet; print(utils.unet.__file__)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=alone, capture_output=True, text=True)
    assert ran.stdout.strip() == str(alone / "course" / "utils" / "unet.py"), ran.stderr
    without = subprocess.run(
        [sys.executable, "-c", f"repo_url = ''\n{setup}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "set repo_url above to the address of this repository" in without.stderr


def test_a_misspelt_parameter_is_refused(capsys):
    assert run.main([UNET, "-p", "learning_rat", "0.1"]) == 1
    message = capsys.readouterr().err
    assert "no notebook has the parameter learning_rat" in message
    assert "learning_rate" in message


def test_publishing_takes_no_other_values(capsys):
    for arguments in (["--publish", "--quick"], ["--publish", "-p", "seed", "1"]):
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert "leave out --quick and -p" in capsys.readouterr().err


def test_parameters_override_the_quick_values():
    given = {"size_schedule": "[[64, 3]]", "learning_rate": "2e-3", "run_dir": "runs/other"}
    typed = [word for pair in given.items() for word in ("-p", *pair)]
    values = run.parameters_for(UNET, run.parse([UNET, "--quick", *typed]))
    expected = {"size_schedule": [[64, 3]], "learning_rate": 0.002, "run_dir": "runs/other"}
    assert values == run.QUICK[UNET] | expected


# --- What is published ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", report.PARTS)
def test_readme_shows_the_tables_of_results(part):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = report.PARTS[part](RESULTS[part])
    assert report.with_tables(text, tables) == text, "run: python -m utils.report"
    assert (ROOT / "Results" / f"{part}.md").read_text(encoding="utf-8") == report.as_page(tables)


def test_the_list_of_weights_is_that_of_results():
    listed = (ROOT / "Results" / "weights.md").read_text(encoding="utf-8")
    assert listed == report.weights_table(RESULTS, ROOT / "Results") + "\n", "run: python -m utils.report"


def test_what_is_published_is_small():
    """Weights of 25 MB in all at the most, pictures of 500 kB, notebooks of 1.5 MB."""
    sizes = {path: path.stat().st_size for path in [*(ROOT / "Results").iterdir(), *ROOT.glob("*.ipynb")]}
    assert sum(size for path, size in sizes.items() if path.suffix == ".pt") <= 25e6
    assert not [path.name for path, size in sizes.items() if path.suffix == ".png" and size >= 500e3]
    assert not [path.name for path, size in sizes.items() if path.suffix == ".ipynb" and size >= 1.5e6]


def test_the_readmes_python_runs_as_pasted(monkeypatch):
    """With the published weights, on a drawn digit: the judge reads the label that was sent."""
    monkeypatch.chdir(ROOT)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    judge = build_judge((1, 28, 28), 10)
    judge.load_state_dict(load_tensors(ROOT / "Results" / "cvae_mnist_judge.pt"))
    assert names["picture"].shape == (1, 1, 28, 28)
    assert read(judge, names["picture"]).tolist() == names["lie"].tolist()


@pytest.mark.parametrize(("notebook", "part"), list(zip(run.QUICK, report.PARTS)))
def test_the_published_notebook_shows_the_published_numbers(notebook, part):
    text, _ = outputs(ROOT / notebook)
    assert next(iter(report.PARTS[part](RESULTS[part]).values())) in text
    assert RESULTS[part]["data"] in ("oxford-iiit-pet", "mnist", "cifar10")


@pytest.mark.parametrize(("notebook", "part"), list(zip(run.QUICK, report.PARTS)))
def test_the_published_parameters_are_the_notebooks(notebook, part):
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in RESULTS[part]["recipe"].items():
        written = re.search(rf"^{name} = (.*?)  #", source, re.MULTILINE)[1]
        assert run.value_of(written) == value


def test_the_readmes_commands_are_understood():
    """Every `python -m utils.run` of the README: its notebooks and parameters are there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:.*&& )?python -m utils\.run ?(.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        options = run.parse(shlex.split(command))
        run.refuse_unknown(options)
        for name in options.notebooks:
            check_parameters(name, run.parameters_for(name, options))


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if not t.startswith(("http", "../../actions"))]
    assert targets
    assert not [t for t in targets if not (ROOT / t).exists()]


@pytest.mark.parametrize("notebook", run.QUICK)
def test_the_code_that_a_published_notebook_shows_is_the_code_that_there_is(notebook):
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "utils").glob("*.py")))
    text, _ = outputs(ROOT / notebook)
    shown = [
        part for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) for part in re.split(r"\n{3,}", block)
    ]
    assert len(shown) > 2
    assert not [part[:80] for part in shown if part.strip() not in code]
