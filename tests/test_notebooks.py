"""The notebooks: form, parameters, publishing; quick runs, and second ones to the same numbers."""

# ruff: noqa: PT017 - a drawn value may be good, and an error must say what it should if it comes

import inspect
import json
import math
import os
import pkgutil
import re
import runpy
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import product
from types import SimpleNamespace
from unittest.mock import MagicMock
from urllib.parse import urlsplit

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
import torch
from dask import distributed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import utils
from tests.files import DATA, ROOT, definitions
from tests.kill_notebooks import SMALL, written
from tests.test_results import NUMBERS, PAGES, widths
from tests.test_training import Lines, closeness, squared_error
from utils import figures, results, run
from utils.classifiers import build_digit_judge
from utils.data import Split, load_digits, to_unit
from utils.files import StorageError, folder_lock, save_json
from utils.losses import bernoulli_loss
from utils.results import RESULTS, TABLES, PublishedError
from utils.run import CIFAR10, MNIST, PARTS, UNET, ParameterError
from utils.training import CheckpointError, best_device, best_precision


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path):
    return [output for cell in cells(path) for output in cell.outputs]


def text_of(path):
    """All text that a notebook's cells have put out."""
    markdown = [output.get("data", {}).get("text/markdown", "") for output in outputs(path)]
    return "\n".join([*markdown, *(output.get("text", "") for output in outputs(path))])


# --- Form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", PARTS)
def test_code_cells_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in cells(ROOT / notebook)]
    assert max(lengths) <= 25
    assert statistics.median(lengths) <= 10


@pytest.mark.parametrize("notebook", PARTS)
def test_a_notebook_starts_and_saves_as_all_do(notebook):
    sources = [cell.source for cell in cells(ROOT / notebook)]
    [setup] = [cell for cell in cells(ROOT / notebook) if '"git", "clone"' in cell.source]
    assert setup.source in [cell.source for cell in cells(ROOT / UNET)], "another set-up cell"
    assert setup.metadata["jupyter"]["source_hidden"]
    assert sources[sources.index(setup.source) + 1].endswith(f'\nrun = start("{notebook}", globals())')
    assert "\n".join(sources).count("run.save_results(") == 1


@pytest.mark.parametrize("notebook", PARTS)
def test_each_parameter_has_a_comment_and_its_published_value(notebook):
    [source] = [cell.source for cell in cells(ROOT / notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert not [line for line in source.splitlines() if not re.fullmatch(r"\w+ = \S.*  # .+", line)]
    defaults = run.defaults(notebook)
    assert defaults["pretrained"] is True
    assert {name: defaults[name] for name in NUMBERS[PARTS[notebook]]["recipe"]} == NUMBERS[PARTS[notebook]]["recipe"]


@pytest.mark.parametrize("notebook", PARTS)
def test_markdown_is_such_as_github_renders(notebook):
    text = "\n\n".join(cell.source for cell in cells(ROOT / notebook, "markdown"))
    assert {line.strip() for line in text.splitlines() if "$$" in line} <= {"$$"}
    assert (
        text.count("<details>") == len(re.findall(r"</summary>\n\n", text)) == len(re.findall(r"\n\n</details>", text))
    )
    assert max([0, *widths(text)]) <= 5


# --- What is published ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("notebook", "part"), PARTS.items())
def test_a_published_notebook_shows_the_published_numbers_and_nothing_of_a_machine(notebook, part):
    text = text_of(ROOT / notebook)
    for name in [name for name in PAGES if name.startswith(part)]:  # Part 1 has several
        assert all(table in text for table in TABLES[name](PAGES[name]).values())
    assert "STAND-IN" not in text
    assert max(widths(text)) <= 5
    assert not [o for o in outputs(ROOT / notebook) if o.output_type == "error" or o.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\|\d(it|s)/(s|it)\b", text)
    shown = json.dumps(outputs(ROOT / notebook))
    assert not re.findall(r"""(?<=[ '"(])/(?:work|root|home|tmp|opt|Users)/[^ '"]+""", shown)
    content = nbformat.read(ROOT / notebook, as_version=4)
    assert all(cell.execution_count for cell in cells(ROOT / notebook, "code"))
    assert not [part for part in [content, *content.cells] if {"papermill", "execution"} & part.metadata.keys()]


def displayed(module):
    """The displayed form of all functions, classes and methods of a module."""
    parts = [part for part in vars(module).values() if getattr(part, "__module__", "") == module.__name__]
    methods = [method for part in parts if inspect.isclass(part) for method in vars(part).values()]
    for part in [*parts, *(getattr(method, "__func__", method) for method in methods)]:
        try:
            yield figures.source_of(part)
        except (OSError, TypeError):  # no code of its own
            continue


@pytest.mark.parametrize("notebook", PARTS)
def test_the_code_that_a_published_notebook_shows_is_the_code_that_there_is(notebook):
    modules = [import_module(f"utils.{module.name}") for module in pkgutil.iter_modules(utils.__path__)]
    code = {source for module in modules for source in displayed(module)}
    blocks = re.findall(r"```python\n(.*?)\n```", text_of(ROOT / notebook), re.DOTALL)
    shown = [part for block in blocks for part in re.split(r"\n{3,}", block)]
    assert len(shown) > 2
    assert not [part[:80] for part in shown if part not in code]
    assert max(block.count("\n") for block in blocks) < 25, "nobody reads a wall of code"


def test_the_published_scores_of_a_unet_come_out_again(tmp_path):
    """The whole of part 1 with one variant; the others would take minutes (test_results.py has their weights)."""
    if not (DATA / "oxford-iiit-pet").exists():
        pytest.skip("needs Oxford-IIIT Pet")
    if best_precision(best_device()) == torch.float32:
        pytest.skip("takes minutes in float32")
    for name, sides in (("wide", (90, 30)), ("high", (50, 300))):
        (tmp_path / "photographs").mkdir(exist_ok=True)
        Image.new("RGB", sides, "green").save(tmp_path / "photographs" / f"{name}.png")
    given = {"run_dir": tmp_path, "variants": '["StrConv+Ups+Dice"]', "image_folder": tmp_path / "photographs"}
    words = [str(word) for name, value in given.items() for word in ("-y", f"{name}: {value}")]
    [ran] = side_by_side([["papermill", UNET, tmp_path / UNET, "-k", "python3", "--cwd", ROOT, *words]])
    assert ran.returncode == 0, ran.stderr[-3000:]
    [(variant, row)] = results.load_numbers("unet", tmp_path / "pretrained")["variants"].items()
    published = dict(NUMBERS["unet"]["variants"][variant])
    assert row.pop("seeds") == published.pop("seeds")
    assert row == pytest.approx(published, abs=1e-3)  # another number of threads
    masks = {path.name.split(".")[0]: Image.open(path).size for path in (tmp_path / "pretrained" / "masks").iterdir()}
    assert masks == {"wide": (90, 30), "high": (50, 300)}


# --- Quick runs -------------------------------------------------------------------------------------------------------


def side_by_side(commands):
    """Run programs at the same time; several on one thread each, which is faster than one after the other on all cores.

    On the CPU, also where there is a GPU: there, the same seed need not give the same numbers.
    """
    threads = {"OMP_NUM_THREADS": "1"} if len(commands) > 1 else {}

    def one(command):
        where = {"cwd": ROOT, "env": os.environ | threads | {"CUDA_VISIBLE_DEVICES": ""}}
        return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, **where)

    with ThreadPoolExecutor(max_workers=len(commands)) as pool:
        return list(pool.map(one, commands))


@pytest.fixture(scope="module")
def quick():
    """The notebooks as `python -m utils.run --quick` leaves them, from nothing."""
    shutil.rmtree(ROOT / "runs" / "quick", ignore_errors=True)
    before = [(ROOT / notebook).read_bytes() for notebook in PARTS]
    for ran in side_by_side([["utils.run", "--quick", notebook] for notebook in PARTS]):
        assert ran.returncode == 0, ran.stderr
    assert [(ROOT / notebook).read_bytes() for notebook in PARTS] == before
    return ROOT / "runs" / "quick"


@pytest.fixture(scope="module")
def repeated(quick):
    """For each notebook, what it left at first, and nbval's verdict on running again, from nothing."""
    first = [written(quick / part / "results") for part in PARTS.values()]
    for part in PARTS.values():
        shutil.rmtree(quick / part)  # or it would only load the first run's checkpoints
    options = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "--rootdir", quick]
    verdicts = side_by_side([["pytest", *options, quick / notebook] for notebook in PARTS])
    return dict(zip(PARTS, zip(first, verdicts)))


@pytest.mark.parametrize(("notebook", "part"), PARTS.items())
def test_a_quick_run_shows_its_table_and_all_figures_and_says_stand_in(quick, notebook, part):
    text = text_of(quick / notebook)
    assert all(table in text for table in TABLES[part](results.load_numbers(part, quick / part / "results")).values())
    assert "*** STAND-IN DATA" in text
    assert max(widths(text)) <= 5
    shown = [cell for cell in cells(quick / notebook) if re.search(r"^run\.show\(", cell.source, re.MULTILINE)]
    assert len(shown) > 4
    kinds = [[kind for output in cell.outputs for kind in output.get("data", {})] for cell in shown]
    assert all("image/jpeg" in kind for kind in kinds)


def test_quick_runs_save_the_figures_that_are_published(quick):
    saved = {path.name: path for part in PARTS.values() for path in (quick / part / "results").glob("*.png")}
    assert saved.keys() == {path.name for path in RESULTS.glob("*.png")}
    assert all(path.stat().st_size > 10_000 for path in saved.values())


def test_all_four_variants_learn(quick):
    numbers = results.load_numbers("unet", quick / "unet" / "results")
    assert list(numbers["variants"]) == ["MP+Tr+BCE", "MP+Tr+Dice", "StrConv+Tr+BCE", "StrConv+Ups+Dice"]
    for row in numbers["variants"].values():
        assert row["iou"] > 0.75 > numbers["baselines"]["mean_mask"]["iou"]


def test_the_conditional_vaes_learn(quick):
    numbers = results.load_numbers("cvae_mnist", quick / "cvae_mnist" / "results")
    plain, following = numbers["models"]["plain"], numbers["models"]["label_following"]
    assert plain["swap_agreement"] > 0.8
    assert following["wrong_label_agreement"] > 0.8
    assert min(plain["source_retrieval"], following["source_retrieval"]) > 0.5
    digits = load_digits("stand-in", None)  # OpenCV draws them bolder or lighter from version to version
    known, images = (to_unit(split.images) for split in (digits.train, digits.test))
    means = torch.stack([known[digits.train.targets == label].mean(0) for label in range(10)])
    cost = bernoulli_loss(means[digits.test.targets].logit(eps=1e-6), images).mean()
    assert max(plain["negative_elbo"], following["negative_elbo"]) < 0.9 * cost, "the mean digit of a class"
    assert numbers["baselines"]["copy the source"]["wrong_label_agreement"] < 0.05
    assert numbers["baselines"]["random code"]["source_retrieval"] < 0.05


def test_the_label_becomes_visible_on_pictures(quick):
    models = results.load_numbers("cvae_cifar10", quick / "cvae_cifar10" / "results")["models"]
    plain, following = models["plain"], models["label_following"]
    assert following["guide_agreement"] > plain["guide_agreement"] + 0.4
    assert following["wrong_label_agreement"] > plain["wrong_label_agreement"] + 0.05
    assert plain["psnr"] > 14, "a mean training picture has 13.3 dB"
    assert min(plain["source_retrieval"], following["source_retrieval"]) > 0.3
    for model in (plain, following):
        assert model["bits_per_dim"] == pytest.approx(model["negative_elbo"] / (3072 * math.log(2)) + 8)


@pytest.mark.parametrize(("notebook", "count"), [(UNET, 3), (MNIST, 6), (CIFAR10, 5)])
def test_a_second_run_gives_the_same_numbers(quick, repeated, notebook, count):
    first, verdict = repeated[notebook]
    assert verdict.returncode == 0, verdict.stdout
    assert len(first) > 3
    assert written(quick / PARTS[notebook] / "results") == first, "weights or numbers differ in a bit"
    checked = [cell for cell in cells(quick / notebook) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert len(checked) >= count


def test_a_notebook_opened_alone_clones_the_course(tmp_path):
    """As on Colab, with a file:// address in the place of a web address."""
    [setup] = [cell.source for cell in cells(ROOT / UNET) if '"git", "clone"' in cell.source]
    clone, alone, empty = (tmp_path / name for name in ("origin", "alone", "empty"))
    shutil.copytree(ROOT / "utils", clone / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "course"]
    for words in (["init", "--quiet"], ["add", "."], commit):
        subprocess.run(["git", *words], cwd=clone, check=True)

    def opened(folder, repo_url):
        folder.mkdir(exist_ok=True)
        program = f"repo_url = {repo_url!r}\n{setup}\nimport utils.unet; print(utils.unet.__file__)"
        return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)

    for _ in range(2):  # and again, after a restart of the kernel
        ran = opened(alone, clone.as_uri())
        assert ran.stdout.strip() == str(alone / "course" / "utils" / "unet.py"), ran.stderr
    assert "set repo_url above to the address of this repository" in opened(empty, "").stderr


def test_the_network_is_not_asked_for_another_albumentations():
    """In a kernel that JupyterLab started, where no variable of ours is set; the set-up cells are all the same."""
    setup, imports = [cell.source for cell in cells(ROOT / UNET)][1:3]
    program = "import sys, urllib.request\nurllib.request.build_opener = lambda *handlers: sys.exit('asked')\n"
    program += f"repo_url = ''\n{setup}\n{imports.split('run = start')[0]}"
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# --- Parameters -------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
)


@pytest.mark.parametrize("notebook", PARTS)
@given(st.data())
def test_any_value_of_a_parameter_is_taken_or_refused_in_words(notebook, data):
    default = run.defaults(notebook)
    name, value = data.draw(st.sampled_from([*default])), data.draw(values)
    try:
        run.check_parameters(notebook, {name: value})
    except ParameterError as error:
        assert re.fullmatch(rf"{name} = .* is needed, such as {re.escape(repr(default[name]))}", str(error), re.DOTALL)
    else:
        assert type(value) is type(default[name]) or (type(value), type(default[name])) == (int, float)
        assert value != []
        assert not isinstance(value, int | float) or 0 <= value < math.inf


@pytest.mark.parametrize("notebook", PARTS)
def test_the_defaults_and_the_values_of_quick_runs_are_taken(notebook):
    default = run.defaults(notebook)
    for given_values in (default, run.QUICK[notebook], SMALL[notebook]):
        assert given_values.keys() <= default.keys()
        run.check_parameters(notebook, given_values)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("2e-3", 0.002), ("[[64, 3]]", [[64, 3]]), ("true", True), ('"7"', "7"), ("True", "True"), ("[[1,", "[[1,")],
)
def test_what_is_typed_is_json_or_text(typed, value):
    assert run.value_of(typed) == value


TYPED = {
    "batch_size": ["abc", "0.5", "-1", "true", "[16]", "NaN", ""],
    "learning_rate": ["fast", "NaN", "-0.1", "Infinity", "1e999", "true"],
    "size_schedule": ["64", "[64, 3]", "[[64]]", '[["64", 3]]', "[[64, -3]]"],
    "variants": ["MP+Tr+BCE", "[1]", "{}", "[]"],
    "pretrained": ["1", "yes", "True"],
    "dataset": ["1", "[]", "null"],
    "learning_rat": ["0.1"],
}


@pytest.mark.parametrize(("name", "typed"), [(name, text) for name, texts in TYPED.items() for text in texts])
def test_a_mistyped_parameter_stops_the_run_before_it_starts(name, typed, capsys, monkeypatch):
    monkeypatch.setattr(run, "execute", lambda *arguments: pytest.fail("it was run"))
    assert run.main([UNET, "-p", name, typed]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert name in message
    assert "learning_rate" in message or name != "learning_rat"


def test_a_notebook_that_fails_is_told_and_its_copy_kept(tmp_path, monkeypatch, capsys):
    first = nbformat.v4.new_code_cell("pretrained = True", metadata={"tags": ["parameters"]})
    second = nbformat.v4.new_code_cell('raise ValueError("nothing works")')
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[first, second], metadata=kernel), tmp_path / UNET)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.main([UNET]) == 1
    assert "nothing works" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [UNET]
    assert "nothing works" in (tmp_path / "runs" / UNET).read_text(encoding="utf-8")


def test_a_kernel_that_dies_is_told(monkeypatch, capsys):
    def execute(*_):
        raise RuntimeError("Kernel died")  # nbclient's DeadKernelError is one

    monkeypatch.setattr(run, "execute", execute)
    assert run.main([UNET, "--quick"]) == 1
    assert capsys.readouterr().err == "error: Kernel died\n"


def test_an_executed_notebook_grows_elsewhere_and_comes_once_it_has_run_or_failed(tmp_path, monkeypatch):
    def grow(source, growing, *_, **__):
        assert tmp_path not in growing.parents  # killed, it would stay there
        growing.write_text("half")
        raise RuntimeError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", grow)
    with pytest.raises(RuntimeError, match="Kernel died"):
        run.execute(UNET, {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [UNET]
    assert (tmp_path / UNET).read_text() == "half"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run a sweep over seeds on a worker in this process, which does what a function does in place of a notebook."""

    def with_seeds(execute, *seeds):
        monkeypatch.setattr(run, "execute", execute)
        with distributed.Client(processes=False, dashboard_address=None) as client:
            options = run.parse([UNET, "--sweep", "--scheduler", client.scheduler.address])
            run.sweep([(UNET, {"seed": seed}) for seed in seeds], tmp_path, options)

    return with_seeds


def test_workers_that_write_elsewhere_are_told(sweep):
    with pytest.raises(FileNotFoundError, match="seed-3 holds no results: every worker has to share this folder"):
        sweep(lambda *_: None, 3)


def test_a_run_that_fails_is_not_repeated_and_the_others_of_its_sweep_are_kept(sweep, tmp_path):
    def execute(name, parameters, place):
        with (tmp_path / "log").open("a") as log:
            log.write(f"{parameters['seed']}\n")
        if parameters["seed"] == 1:
            raise RuntimeError("the loss became nan")
        save_json(place / "run" / "results" / "unet.json", {"iou": 0.5})

    with pytest.raises(
        RuntimeError, match=r"1 of 3 runs failed; sweep\.json has the others.\n.*seed-1: the loss became"
    ):
        sweep(execute, 0, 1, 2)
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2"]
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert runs == [{"parameters": {"seed": seed}, "iou": 0.5} for seed in (0, 2)]


def test_a_run_whose_scheduler_is_gone_has_failed_whatever_an_earlier_sweep_left(tmp_path, monkeypatch):
    class Task:
        status = "cancelled"

    place = tmp_path / "unet-seed-0"
    save_json(place / "run" / "results" / "unet.json", {"iou": 0.5})
    monkeypatch.setattr(distributed, "Client", MagicMock())
    monkeypatch.setattr(distributed.Client().__enter__(), "submit", lambda *_, **__: Task())
    monkeypatch.setattr(distributed, "as_completed", list)
    with pytest.raises(RuntimeError, match=r"1 of 1 runs failed.*\n.*seed-0: the connection to the scheduler was lost"):
        run.sweep([(UNET, {"seed": 0})], tmp_path, run.parse([UNET, "--sweep"]))
    assert json.loads((tmp_path / "sweep.json").read_text()) == {"runs": []}


def test_each_run_of_a_sweep_has_a_folder_of_its_own(tmp_path):
    plan = [(UNET, {"image_folder": name}) for name in ("my/pets", "my-pets", "my pets", "x" * 300, "写真", "犬" * 200)]
    runs = run.places(plan, tmp_path, quick=False)
    assert [*runs.values()] == plan
    assert max(len(place.name.encode()) for place in runs) < 120
    with pytest.raises(ParameterError, match=r"each combination once, and .*'my pets'.* is there twice"):
        run.places(plan + plan[2:3], tmp_path, quick=False)


def test_a_notebook_needs_no_more_than_its_setup_cell_installs():
    absent = ["papermill", "dask", "distributed", "nbformat", "nbval", "hypothesis", "pytest", "psutil", "jupyterlab"]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); from utils.run import start"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_scheduler_is_for_a_sweep(capsys):
    with pytest.raises(SystemExit):
        run.main([UNET, "--scheduler", "tcp://localhost:8786"])
    assert "--scheduler is for a --sweep" in capsys.readouterr().err


def test_parameters_override_the_quick_values():
    given = {"size_schedule": "[[64, 3]]", "learning_rate": "2e-3", "run_dir": "runs/other"}
    typed = [word for pair in given.items() for word in ("-p", *pair)]
    expected = {"size_schedule": [[64, 3]], "learning_rate": 0.002, "run_dir": "runs/other"}
    assert run.parameters_for(UNET, run.parse([UNET, "--quick", *typed])) == [run.QUICK[UNET] | expected]


def test_a_sweep_runs_all_combinations_of_the_listed_values(capsys, tmp_path):
    typed = ["-p", "variants", '[["MP+Tr+BCE"], ["MP+Tr+Dice"]]', "-p", "seed", "[0, 1, 2]", "-p", "batch_size", "[8]"]
    plan = run.parameters_for(UNET, run.parse([UNET, "--sweep", *typed, "-p", "pretrained", "[false]"]))
    pairs = [([variant], seed) for variant in ("MP+Tr+BCE", "MP+Tr+Dice") for seed in range(3)]
    assert plan == [
        {"variants": variants, "seed": seed, "batch_size": 8, "pretrained": False} for variants, seed in pairs
    ]
    both = ([(UNET, parameters | {"batch_size": size}) for parameters in plan] for size in (8, 32))
    one, other = (run.places(runs, tmp_path, quick=False).keys() for runs in both)
    assert len(one) == 6
    assert not one & other, "two sweeps in the same folders"
    for wrong, message in (
        ("0", r"seed: in a sweep a list of values is needed, such as \[0\]"),
        ("[]", "seed: in a sweep a list of at least one value is needed"),
        ("[-1]", "seed = -1: "),
        (f"[1{400 * '0'}]", "seed = 10{400}: a whole number from 0 to 4,294,967,295 is needed"),
        ("[1]", r"pretrained: a sweep trains networks, add -p pretrained '\[false\]'"),
    ):
        assert run.main([UNET, "--sweep", "-p", "seed", wrong]) == 1
        assert re.search(message, capsys.readouterr().err)
    assert run.main([UNET, "--sweep", "-p", "pretrained", "false"]) == 1
    assert "a list of values is needed, such as [false]" in capsys.readouterr().err  # as JSON, to be typed
    assert run.main([UNET, "--sweep", "-p", "run_dir", '["mine"]']) == 1
    assert "run_dir: in a sweep each run has a folder of its own" in capsys.readouterr().err


# --- run.start, and what it gives -------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start part 2a with other values than the defaults."""
    monkeypatch.setitem(plt.rcParams, "figure.dpi", 72)
    return lambda **given: run.start(MNIST, run.defaults(MNIST) | {"run_dir": str(tmp_path)} | given)


def test_a_notebook_refuses_values_that_make_no_sense_and_data_that_is_not_the_published(start):
    with pytest.raises(ParameterError, match=r"batch_size = -1: a whole number from 0 to .* is needed, such as 256"):
        start(batch_size=-1)
    with pytest.raises(ParameterError, match="batch_size = 3: 4 or more is needed, such as 256"):
        start(batch_size=3)  # a quarter of it gets wrong labels
    with pytest.raises(ParameterError, match="latent_size = 1: 2 or more is needed, such as 16"):
        start(latent_size=1)  # section 9 draws codes on a plane
    for notebook, smallest in {UNET: 1, MNIST: 4, CIFAR10: 4}.items():
        run.check_parameters(notebook, {"batch_size": smallest})
    with pytest.raises(ParameterError, match=r"seed = 1000000000000000: a whole number from 0 to 4,294,967,295 is"):
        start(seed=10**15)
    with pytest.raises(PublishedError, match=r"on 'mnist', not on 'stand-in': set dataset .* or set pretrained to"):
        start(dataset="stand-in")
    with pytest.raises(PublishedError, match=r"with epochs = 50, batch_size = 256: leave it so, or set pretrained to"):
        start(batch_size=8, epochs=2)
    with pytest.raises(ParameterError, match=r"digit_image = 'absent\.png': there is no such file"):
        start(digit_image="absent.png")
    with pytest.raises(ParameterError, match="there is no such file"):
        start(digit_image=str(ROOT))  # a folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('pretrained = "False"', "pretrained = 'False': True or False is needed"),
        ("pretrained = 1 < 2", "first code cell of 02.*: write plain values, .*line 1"),
        ("pretrained: bool = True", "first code cell of 02.*: write plain values, "),
        ("%env DATA_DIR=/data", "first code cell of 02.*: write plain values, .*line 1"),
    ],
)
def test_a_parameter_cell_that_was_saved_with_other_values_is_no_excuse(start, tmp_path, monkeypatch, line, message):
    content = nbformat.read(ROOT / MNIST, as_version=4)
    [cell] = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = f"{line}\n" + cell.source.replace("\npretrained = True", "\n#")
    nbformat.write(content, tmp_path / MNIST)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    with pytest.raises(ParameterError, match=message):
        start()


def test_a_tilde_is_the_home_folder(start, tmp_path, monkeypatch):
    for name, value in {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "DATA_DIR": "~/data"}.items():
        monkeypatch.setenv(name, value)
    begun = start(run_dir="~/mine")
    assert (begun.run_dir, begun.data_dir) == (tmp_path / "mine", tmp_path / "data")


def test_a_notebook_refuses_a_run_dir_in_use(start, other_run):
    with pytest.raises(StorageError, match="is in use by another run"):
        start()


def test_a_training_run_trains_once_and_saves_what_it_made(start, tmp_path, capsys):
    begun = start(dataset="stand-in", pretrained=False)
    assert "*** STAND-IN DATA" in capsys.readouterr().out
    torch.manual_seed(0)
    pair = nn.ModuleDict({"kept": nn.Linear(1, 1), "other": nn.Linear(1, 1)})
    arguments = (Lines(), lambda pair, *rest: squared_error(pair["kept"], *rest), lambda pair: closeness(pair["kept"]))
    recipe = {"settings": {"slope": 2}, "epochs": 3, "learning_rate": 0.1, "weight_decay": 0.0}
    kept, training = begun.train("line", pair, *arguments, network=pair["kept"], **recipe)
    assert kept is pair["kept"]
    assert not kept.training
    assert begun.train("line", pair, *arguments, network=pair["kept"], **recipe)[1] == training
    assert list(tmp_path.glob("*.pt")) == [tmp_path / "line.pt"]
    begun.save_results({"answer": 42}, {"line": training, "trial": training}, {"line": kept})
    numbers = results.load_numbers("cvae_mnist", tmp_path / "results")
    assert (numbers["dataset"], numbers["answer"], numbers["seed"]) == ("stand-in", 42, 0)
    assert numbers["recipe"].keys() == NUMBERS["cvae_mnist"]["recipe"].keys()
    assert numbers["seconds"].keys() == {"line", "trial"}
    trainings = results.load_numbers("cvae_mnist_trainings", tmp_path / "results")["trainings"]
    assert trainings == {"line": training._asdict()}
    assert (tmp_path / "results" / "cvae_mnist_line.pt").exists()
    with pytest.raises(CheckpointError, match="seed: 0 there, 1 now"):
        start(dataset="stand-in", pretrained=False, seed=1).train("line", pair, *arguments, **recipe)


def test_a_checkpoint_of_the_label_following_model_knows_its_guide_and_its_exemplars():
    digits, pictures = (vars(definitions(notebook)) for notebook in (MNIST, CIFAR10))
    sizes = ["guide_channels", "guide_epochs", "classifier_learning_rate"]
    common = {"run": SimpleNamespace(train=lambda *_, settings, **__: settings), "build": lambda *_: nn.Identity()}
    unused = ["guide", "elbo_loss", "learning_rate", "weight_decay", "batches", "score", "seed", "batch_size", "hidden"]
    common |= dict.fromkeys(unused, 1) | {"common": {}, "SIZES": {}, "RECIPE": {}, "device": "cpu", "base_channels": 8}
    split, teachers = Split(torch.zeros(8, 3, 32, 32), torch.zeros(8)), SimpleNamespace(noise=0.4)
    teachers.exemplars = SimpleNamespace(near=3, images=torch.zeros(10, 64, 3, 32, 32))
    calls = [
        (digits["train"], ("name", "both", 1, (2.0, 1.0)), ["judge_epochs"]),
        (pictures["train_following"], ("name", teachers, {}, split, 1), sizes),
    ]
    for train, arguments, names in calls:
        train.__globals__.update(common | dict.fromkeys(names, 3))
        before = train(*arguments)
        for name in names:
            train.__globals__[name] = 4
            assert train(*arguments) != before, name
            train.__globals__[name] = 3
    teachers.exemplars.near = 4
    assert train(*arguments) != before, "other exemplars"
    before, teachers.exemplars.images = train(*arguments), torch.zeros(10, 16, 3, 32, 32)
    assert train(*arguments) != before, "other exemplars"


def test_a_pretrained_run_trains_nothing(start, tmp_path):
    begun = start()
    judge, training = begun.train("judge", build_digit_judge(), None, None, None, settings={}, epochs=1)
    weights = results.load_network("cvae_mnist", "judge").state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in judge.state_dict().items())
    assert training == results.load_trainings("cvae_mnist")["judge"]
    with pytest.raises(
        PublishedError, match=r"no published network 'other': choose from .*, or set pretrained to False"
    ):
        begun.train("other", build_digit_judge(), settings={})
    assert begun.results_dir == tmp_path / "pretrained"
    assert begun.published == NUMBERS["cvae_mnist"]


# --- Publishing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """`.ci/publish`, in a course where a run of part 1 writes down when it came, and counts runs as its mean IoU."""
    runs, kept, count = tmp_path / "runs" / "unet", tmp_path / "Results", iter(range(1, 9))
    shutil.copy(ROOT / UNET, tmp_path / UNET)
    kept.mkdir()
    for part in PAGES:
        shutil.copy(RESULTS / f"{part}.json", kept)
    (tmp_path / "README.md").write_text("<!-- unet-2x2 -->\n<!-- /unet-2x2 -->\n", encoding="utf-8")
    for module, name, value in ((run, "ROOT", tmp_path), (results, "ROOT", tmp_path), (results, "RESULTS", kept)):
        monkeypatch.setattr(module, name, value)

    def execute(name, parameters, folder):
        come = "trained" if parameters.get("pretrained") is False else "pretrained"
        come += " from " + (kept / "unet_a.pt").read_text() if (kept / "unet_a.pt").exists() else ""
        cell = nbformat.v4.new_markdown_cell(come, metadata={"papermill": {"duration": 1}, "tags": ["kept"]})
        metadata = {"papermill": {"input_path": "/home/me"}, "kernelspec": {"name": "python3", "display_name": "P"}}
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), folder / name)
        files = runs / ("results" if come == "trained" else "pretrained")
        (files / "masks").mkdir(parents=True, exist_ok=True)  # of own photographs, which are not published
        row = NUMBERS["unet"]["variants"]["MP+Tr+BCE"] | {"iou_mean": next(count) / 8}
        numbers = json.dumps(NUMBERS["unet"] | {"dataset": dataset, "variants": {"MP+Tr+BCE": row}})
        for file, content in {"unet.json": numbers, "unet_a.pt": come, "a.png": come}.items():
            (files / file).write_text(content)
        return folder / name

    def call(*words, of="oxford-iiit-pet", program="publish"):
        nonlocal dataset
        dataset = of
        monkeypatch.setattr(sys, "argv", [program, *words])
        runpy.run_path(str(ROOT / ".ci" / program), run_name="__main__")
        return tmp_path

    dataset = ""
    monkeypatch.setattr(run, "execute", execute)
    return call


def test_publishing_writes_notebook_figures_and_numbers_of_a_pretrained_run(publish):
    folder = publish(UNET)
    content = nbformat.read(folder / UNET, as_version=4)
    assert [cell.source for cell in content.cells] == ["pretrained"]
    assert "papermill" not in str(content)
    assert content.cells[0].metadata == {"tags": ["kept"]}
    kept = {path.name for path in (folder / "Results").iterdir()}
    assert kept == {"a.png", "published.json", *(f"{part}.{end}" for part in PAGES for end in ("md", "json"))}
    record = json.loads((folder / "Results" / "published.json").read_text(encoding="utf-8"))[UNET]
    assert record["commit"] == ""  # it is no repository
    assert record["torch"] == torch.__version__
    assert "**IoU 0.1250 ± " in (folder / "README.md").read_text(encoding="utf-8")


def test_publishing_a_training_copies_its_results_and_then_runs_from_them(publish, tmp_path):
    for left in ("results", "pretrained"):
        (tmp_path / "runs" / "unet" / left).mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "unet" / left / "of another run.png").touch()
    folder = publish(UNET, "--train")
    assert [cell.source for cell in nbformat.read(folder / UNET, as_version=4).cells] == ["pretrained from trained"]
    kept = {path.name for path in (folder / "Results").iterdir()}
    parts = {f"{part}.{end}" for part in PAGES for end in ("md", "json")}
    assert kept == {"a.png", "unet_a.pt", "published.json", *parts}
    assert (folder / "Results" / "a.png").read_text() == "pretrained from trained"
    assert (folder / "Results" / "unet_a.pt").read_text() == "trained"
    assert "**IoU 0.2500 ± " in (folder / "README.md").read_text(encoding="utf-8")


def test_publishing_leaves_alone_what_an_open_run_has_written(publish, tmp_path):
    file = tmp_path / "runs" / "unet" / "pretrained" / "a.png"
    file.parent.mkdir(parents=True)
    file.touch()
    with folder_lock(file.parent.parent), pytest.raises(StorageError, match="is in use by another run"):
        publish(UNET)
    assert file.exists()


@pytest.mark.parametrize("options", [[], ["--train"]])
def test_stand_in_data_is_never_published(publish, tmp_path, options):
    def contents():
        files = [path for path in tmp_path.glob("**/*") if path.is_file() and "runs" not in path.parts]
        return {path: path.read_bytes() for path in files}

    before = contents()
    with pytest.raises(ValueError, match=r"unet\.json is of stand-in data, which is never published"):
        publish(UNET, *options, of="stand-in")
    assert contents() == before


def wider(**changes):
    """What a run of one wider U-Net leaves; `changes` are against the published recipe."""
    published = NUMBERS["unet"]
    row = published["variants"]["MP+Tr+BCE"] | {"iou": 0.99951, "parameters": 7_770_000}
    wide = {"variants": {"MP+Tr+BCE": row}, "recipe": published["recipe"] | {"base_channels": 32}}
    return published | wide | changes


def test_a_wider_networks_scores_are_published_beside_those_of_the_same_recipe(publish, tmp_path):
    file, kept = tmp_path / "unet.json", tmp_path / "Results"
    file.write_text(json.dumps(wider()))
    publish("--wide", str(file))
    assert results.load_numbers("unet_wide", kept) == wider()
    _, _, narrow, wide = results.width_tables(wider())["unet-wide"].splitlines()
    assert narrow.startswith(f"| MP+Tr+BCE, 16 channels | {NUMBERS['unet']['variants']['MP+Tr+BCE']['iou']:.3f} |")
    assert wide.startswith("| MP+Tr+BCE, 32 channels | 1.000 |")
    assert wide.endswith("| 7.77 M |")


@pytest.mark.parametrize(("changes", "message"), [
    ({"recipe": {"base_channels": 32}}, "differs from the published networks in more than base_channels"),
    ({"seed": 1}, "differs from the published networks in more than base_channels"),
    ({"image_size": 64}, "differs from the published networks in more than base_channels"),
    ({"variants": {"MP+Ups+BCE": {}}}, "differs from the published networks in more than base_channels"),
    ({"dataset": "stand-in"}, "is of stand-in data, which is never published"),
])  # fmt: skip
def test_wider_networks_that_cannot_be_published(publish, tmp_path, changes, message):
    file, target = tmp_path / "unet.json", tmp_path / "Results" / "unet_wide.json"
    target.write_text("as before")
    file.write_text(json.dumps(wider(**changes)))
    with pytest.raises(ValueError, match=message):
        publish("--wide", str(file))
    assert target.read_text() == "as before"


def sweep_of(scores, **changes):
    """What a sweep over variants and seeds leaves: {(variant, seed): IoU}; `changes` are those of its last run."""
    runs = []
    for (variant, seed), iou in scores.items():
        row = {"iou": iou, "iou_one_view": iou - 0.125}
        about = {"dataset": "oxford-iiit-pet", "image_size": 128, "recipe": "short", "versions": {}, "seed": seed}
        runs.append(about | {"variants": {variant: row}, "seconds": {variant: 9.5}})
    for last in runs[-1:]:
        last |= changes
    return json.dumps({"runs": runs})


EIGHT = [f"{down}+{up}+{loss}" for down in ("MP", "StrConv") for up in ("Tr", "Ups") for loss in ("BCE", "Dice")]
GRID = {(variant, seed): 0.5 for variant in EIGHT for seed in (1, 0)}  # in any order


def test_a_sweeps_scores_are_published(publish, tmp_path):
    file, kept = tmp_path / "sweep.json", tmp_path / "Results"
    scores = GRID | {("MP+Tr+BCE", 0): 0.75, ("MP+Tr+BCE", 1): 0.25}
    file.write_text(sweep_of(scores))
    publish("--sweep", str(file))
    published = results.load_numbers("unet_sweep", kept)
    assert {(row["variant"], row["seed"]): row["iou"] for row in published["rows"]} == scores
    assert (published["recipe"], published["seeds"]) == ("short", [0, 1])
    tables = results.sweep_tables(published)
    assert "| MP+Tr | 0.5000 ± 0.3536 | 0.5000 ± 0.0000 |" in tables["unet-seeds"]  # half a unit apart: root of 1/8
    # With seed 0 one of four pairs falls by 0.25, with seed 1 one rises by that: the mean is 0.
    assert tables["unet-effects"].endswith("| BCE to Dice loss | −0.0625 | +0.0625 | +0.0000 ± 0.0625 |")


@pytest.mark.parametrize("more", [["--train"], [UNET]])
def test_scores_alone_are_published_without_a_training_and_without_notebooks(publish, tmp_path, capsys, more):
    with pytest.raises(SystemExit):
        publish("--sweep", str(tmp_path / "absent.json"), *more)
    assert "--sweep and --wide take scores alone" in capsys.readouterr().err


@pytest.mark.parametrize(("scores", "changes", "message"), [
    (GRID, {"recipe": "one epoch"}, r"sweep\.json is of several recipes or another image size"),
    (GRID, {"image_size": 64}, r"sweep\.json is of several recipes or another image size"),
    (GRID, {"dataset": "stand-in"}, "is of stand-in data, which is never published"),
    ({}, {}, "holds no runs"),
    (dict([*GRID.items()][:-1]), {}, "has 15 trainings: all eight variants with the same two or more seeds"),
    (dict([*GRID.items()][::2]), {}, "has 8 trainings: all eight variants with the same two or more seeds"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_published(publish, tmp_path, scores, changes, message):
    file, target = tmp_path / "sweep.json", tmp_path / "Results" / "unet_sweep.json"
    target.write_text("as before")
    file.write_text(sweep_of(scores, **changes))
    with pytest.raises(ValueError, match=message):
        publish("--sweep", str(file))
    assert target.read_text() == "as before"


FOUR = list(NUMBERS["unet"]["variants"])
AGAIN = {"recipe": NUMBERS["unet"]["recipe"]}


def repeats_of(iou, *seeds):
    """What a sweep with the published recipe leaves, all of this IoU."""
    runs = json.loads(sweep_of(dict.fromkeys(product(FOUR, seeds), iou)))["runs"]
    return json.dumps({"runs": [one | AGAIN for one in runs]})


def test_repeats_of_the_published_networks_join_those_that_are_there(publish, tmp_path):
    file, kept = tmp_path / "sweep.json", tmp_path / "Results"
    published, first = NUMBERS["unet"]["variants"]["MP+Tr+BCE"]["iou"], PAGES["unet_repeats"]["rows"][0]
    file.write_text(repeats_of(0.5, 7, 8))
    publish("--sweep", str(file))
    file.write_text(repeats_of(0.25, 8))
    publish("--sweep", str(file))
    repeats = results.load_numbers("unet_repeats", kept)
    assert repeats["seeds"] == [*PAGES["unet_repeats"]["seeds"], 7, 8]
    assert repeats["rows"][0] == first
    assert [row["iou"] for row in repeats["rows"][-8:]] == [0.5] * 4 + [0.25] * 4
    row = results.load_numbers("unet", kept)["variants"]["MP+Tr+BCE"]
    assert row["iou"] == published
    assert row["seeds"] == [0, *repeats["seeds"]]
    ious = [published, *(row["iou"] for row in repeats["rows"] if row["variant"] == "MP+Tr+BCE")]
    each = torch.tensor(ious, dtype=torch.float64)
    assert (row["iou_mean"], row["iou_sd"]) == pytest.approx((each.mean().item(), each.std().item()))


def test_repeats_of_another_recipe_than_the_published_one_go(publish, tmp_path):
    file, kept = tmp_path / "sweep.json", tmp_path / "Results"
    (kept / "unet_repeats.json").write_text(json.dumps(PAGES["unet_repeats"] | {"recipe": "of yesterday"}))
    file.write_text(repeats_of(0.5, 7))
    publish("--sweep", str(file))
    assert results.load_numbers("unet_repeats", kept)["seeds"] == [7]


def vaes(part, *seeds, **changes):
    """A sweep of Part 2 over seeds, all as published but for the agreement; `changes` are those of its last run."""
    published, runs = NUMBERS[part], []
    for seed, agreement in zip(seeds, (0.5, 0.75)):
        models = {name: row | {"wrong_label_agreement": agreement} for name, row in published["models"].items()}
        runs.append(published | {"seed": seed, "models": models})
    runs[-1] |= changes
    return json.dumps({"runs": runs})


# 99.8, 75 and 50 %: the mean is 74.9, the deviations are 24.9, 0.1 and 24.9 points. 91.8, 75 and 50 %: the mean is
# 72.3, the deviations are 19.5, 2.7 and 22.3 points.
SHOWN = {"cvae_mnist": "99.8% | 75.0% | 50.0% | 74.9% ± 24.9%", "cvae_cifar10": "91.8% | 75.0% | 50.0% | 72.3% ± 21.0%"}


@pytest.mark.parametrize(("part", "agreement"), SHOWN.items())
def test_vaes_of_other_seeds_are_published_beside_the_published_one(publish, tmp_path, part, agreement):
    file, kept = tmp_path / "sweep.json", tmp_path / "Results"
    file.write_text(vaes(part, 2, 1))
    publish("--sweep", str(file))
    repeats = results.load_numbers(f"{part}_repeats", kept)
    assert [row["seed"] for row in repeats["rows"]] == [1, 2]
    assert repeats["recipe"] == NUMBERS[part]["recipe"]
    table = results.cvae_repeat_tables(repeats)[f"{part.replace('_', '-')}-label_following-repeats"]
    assert table.startswith("|  | seed 0 | seed 1 | seed 2 | mean ± standard deviation |")
    assert f"| judge reads the label sent | {agreement} |" in table
    file.write_text(vaes(part, 3))
    publish("--sweep", str(file))
    assert [row["seed"] for row in results.load_numbers(f"{part}_repeats", kept)["rows"]] == [1, 2, 3]
    assert f"| diversity | {' | '.join(['0.87'] * 3)} | 0.87 ± 0.00 |" in table


def together(*sweeps):
    """What one sweep over several notebooks leaves."""
    return json.dumps({"runs": [one for sweep in sweeps for one in json.loads(sweep)["runs"]]})


FOUR_NEEDED = "the published variants are needed, with the same seeds, and not with seed 0"
SEEDS_NEEDED = "one run for each seed but 0 is needed, by the published recipe"


@pytest.mark.parametrize(("part", "runs", "message"), [
    ("unet", repeats_of(0.5, 0), FOUR_NEEDED),
    ("unet", sweep_of({(FOUR[0], 1): 0.5}, **AGAIN), FOUR_NEEDED),
    ("cvae_mnist", vaes("cvae_mnist", 1, 0), SEEDS_NEEDED),
    ("cvae_mnist", vaes("cvae_mnist", 1, 1), SEEDS_NEEDED),
    ("cvae_mnist", vaes("cvae_mnist", 1, 2, recipe=NUMBERS["cvae_cifar10"]["recipe"]), SEEDS_NEEDED),
    ("cvae_mnist", vaes("cvae_mnist", 1, 2, dataset="stand-in"), "is of stand-in data, which is never published"),
    ("cvae_cifar10", vaes("cvae_cifar10", 1, 0), SEEDS_NEEDED),
    ("unet", together(repeats_of(0.5, 1), vaes("cvae_mnist", 1)), r"sweep\.json is of several recipes"),
    ("cvae_mnist", together(vaes("cvae_mnist", 1), repeats_of(0.5, 1)), SEEDS_NEEDED),
])  # fmt: skip
def test_repeats_that_cannot_be_published(publish, tmp_path, part, runs, message):
    file, target = tmp_path / "sweep.json", tmp_path / "Results" / f"{part}_repeats.json"
    before = target.read_text()
    file.write_text(runs)
    with pytest.raises(ValueError, match=message):
        publish("--sweep", str(file))
    assert target.read_text() == before


ADDRESSES = {
    "https://github.com/me/course": "https://github.com/me/course",
    "https://me:secret@github.com/me/course.git": "https://github.com/me/course",
    "http://github.com/me/course": "http://github.com/me/course",
    "git@github.com:me/my.course.git": "https://github.com/me/my.course",
    "ssh://git@github.com:22/me/course/": "https://github.com/me/course",
    "https://gitlab.com/group/me/course.git": "https://gitlab.com/group/me/course",
    "https://git.example.com:8443/me/course.git": "https://git.example.com:8443/me/course",
    "http://localhost:3000/me/course": "http://localhost:3000/me/course",
    "gitea@git.example.com:me/course.git": "https://git.example.com/me/course",
    "git@github.com:123/course.git": "https://github.com/123/course",
    "": "",
}


@pytest.mark.parametrize(("remote", "address"), ADDRESSES.items())
def test_a_stamp_writes_the_address_and_links_to_colab_and_can_be_taken_out(publish, monkeypatch, remote, address):
    monkeypatch.setattr(run, "PARTS", {UNET: "unet"})
    folder = publish("https://github.com/somebody/else", program="stamp")
    (folder / "README.md").write_text("Start\n<!-- colab -->\n<!-- /colab -->\n", encoding="utf-8")
    publish(remote, program="stamp")
    assert run.defaults(UNET)["repo_url"] == address
    texts = [cells(folder / UNET, "markdown")[0].source, (folder / "README.md").read_text(encoding="utf-8")]
    for text in texts:
        links = re.findall(r"\]\((https://colab[^)]*)\)", text)
        host, path = urlsplit(address).hostname, urlsplit(address).path
        expected = f"https://colab.research.google.com/github{path}/blob/main/{UNET}"
        assert links == [expected] * (host == "github.com")
        assert not re.search("somebody|secret", text)


def test_by_default_the_stamp_is_the_address_that_git_knows(publish, monkeypatch):
    monkeypatch.setattr(run, "PARTS", {UNET: "unet"})
    folder = publish(program="stamp")  # no repository: there is no address
    assert run.defaults(UNET)["repo_url"] == ""
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "remote", "add", "origin", "git@github.com:me/course.git"], cwd=folder, check=True)
    publish(program="stamp")
    assert run.defaults(UNET)["repo_url"] == "https://github.com/me/course"
    subprocess.run(["git", "remote", "set-url", "origin", "/home/me/course"], cwd=folder, check=True)
    publish(program="stamp")  # a folder is no address
    assert run.defaults(UNET)["repo_url"] == ""


@pytest.mark.parametrize("word", ["me@home/course", "/home/me/course", "github.com/me/course", "--help"])
def test_a_stamp_of_something_else_than_an_address_changes_nothing(publish, monkeypatch, word):
    monkeypatch.setattr(run, "PARTS", {UNET: "unet"})
    folder = publish("https://github.com/me/course", program="stamp")
    before = (folder / UNET).read_bytes()
    with pytest.raises(SystemExit):
        publish(word, program="stamp")
    assert (folder / UNET).read_bytes() == before
