"""A sweep on a real Dask scheduler with two workers, of which one is killed: the same numbers as unbroken runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.kill_notebooks import written
from tests.test_results import ROOT
from utils.results import load_numbers

UNET = "01_unet_segmentation.ipynb"
SMALL = {"image_size": 32, "size_schedule": [[32, 8]], "batch_size": 8, "base_channels": 4, "depth": 2}
VARIANTS = ("MP+Tr+BCE", "StrConv+Ups+Dice")
FOLDER = ROOT / "runs" / "quick" / "sweep"


def start(*words):
    """A part of Dask, or of the course, as a process of its own, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment)


@pytest.fixture
def cluster(tmp_path):
    """The address of a scheduler started as the README does, and its two workers, which nobody restarts."""
    readme, file = (ROOT / "README.md").read_text(encoding="utf-8"), tmp_path / "scheduler.json"
    dask_scheduler, dask_worker = re.findall(r"python -m (distributed\.\S+)", readme)
    common = ["--no-dashboard", "--scheduler-file", file]
    scheduler = start(dask_scheduler, "--port", 0, *common)
    worker = [dask_worker, *common, "--nthreads", 1, "--no-nanny", "--local-directory", tmp_path]
    workers = [start(*worker) for _ in range(2)]
    while not file.exists():
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"], workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


def typed(values):
    """The words of a command line that give these parameters."""
    return [word for name, value in values.items() for word in ("-p", name, json.dumps(value))]


def test_a_killed_worker_costs_nothing(cluster, tmp_path):
    address, workers = cluster
    shutil.rmtree(FOLDER, ignore_errors=True)
    grid = {name: [value] for name, value in SMALL.items()} | {"variants": [[variant] for variant in VARIANTS]}
    sweep = start("utils.run", UNET, "--quick", "--sweep", "--scheduler", address, *typed(grid))
    while len(list(FOLDER.glob("*/run/*.pt"))) < 2:  # both are in the middle of a training
        assert sweep.poll() is None
        time.sleep(0.05)
    assert not list(FOLDER.glob("*/run/results/*.json")), "too late"
    workers[0].kill()
    assert sweep.wait() == 0
    runs = json.loads((FOLDER / "sweep.json").read_text())["runs"]
    assert [row["parameters"]["variants"] for row in runs] == [[variant] for variant in VARIANTS]
    alone = [SMALL | {"variants": [variant], "run_dir": str(tmp_path / variant)} for variant in VARIANTS]
    assert not any(start("utils.run", UNET, "--quick", *typed(given)).wait() for given in alone)
    for variant, row in zip(VARIANTS, runs):
        [place] = FOLDER.glob(f"*{variant}*")
        assert row["variants"] == load_numbers("unet", place / "run" / "results")["variants"]
        ours, theirs = written(place / "run" / "results"), written(tmp_path / variant / "results")
        assert ours.keys() == theirs.keys()
        assert all(ours[name] == theirs[name] for name in ours)
