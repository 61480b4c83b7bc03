"""A sweep on a real Dask scheduler with two workers, of which one is killed: the same numbers as unbroken runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from distributed import Client

from tests.files import ONE_THREAD, ROOT
from tests.kill_notebooks import written
from utils.files import load_tensors
from utils.results import load_numbers

UNET = "01_unet_segmentation.ipynb"
SMALL = {"image_size": 32, "size_schedule": [[32, 8]], "batch_size": 8, "base_channels": 4, "depth": 2}
VARIANTS = ("MP+Tr+BCE", "StrConv+Ups+Dice")
FOLDER = ROOT / "runs" / "quick" / "sweep"


@pytest.fixture
def start():
    """Start a part of Dask, or of the course, as a process of its own, on one thread of the CPU."""
    environment, processes = os.environ | ONE_THREAD, []

    def begin(*words):
        processes.append(subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def cluster(tmp_path, start):
    """The address of a scheduler started as the README does, and its two workers, which nobody restarts."""
    readme, file = (ROOT / "README.md").read_text(encoding="utf-8"), tmp_path / "scheduler.json"
    dask_scheduler, dask_worker = re.findall(r"python -m (distributed\.\S+)", readme)
    common = ["--no-dashboard", "--scheduler-file", file]
    scheduler = start(dask_scheduler, "--port", 0, *common)
    worker = [dask_worker, *common, "--nthreads", 1, "--no-nanny", "--local-directory", tmp_path]
    workers = [start(*worker) for _ in range(2)]
    while not file.exists() or not file.read_text().endswith("}"):  # written in place
        assert scheduler.poll() is None
        time.sleep(0.1)
    with Client(scheduler_file=str(file), timeout=120) as client:
        client.wait_for_workers(2, timeout=120)
        return client.scheduler.address, workers


def typed(values):
    """The words of a command line that give these parameters."""
    return [word for name, value in values.items() for word in ("-p", name, json.dumps(value))]


def test_a_killed_worker_costs_nothing(cluster, start):
    address, workers = cluster
    shutil.rmtree(FOLDER, ignore_errors=True)
    grid = {name: [value] for name, value in SMALL.items()} | {"variants": [[variant] for variant in VARIANTS]}
    sweep = start("utils.run", UNET, "--quick", "--sweep", "--scheduler", address, *typed(grid))
    while len(list(FOLDER.glob("*/run/[!.]*.pt"))) < 2:  # both are in the middle of a training
        assert all(process.poll() is None for process in (sweep, *workers))
        time.sleep(0.05)
    done = {path.stem: load_tensors(path)["seconds"] for path in FOLDER.glob("*/run/[!.]*.pt")}
    assert not list(FOLDER.glob("*/run/results/*.json")), "too late"
    workers[0].kill()
    assert sweep.wait() == 0
    runs = json.loads((FOLDER / "sweep.json").read_bytes())["runs"]
    assert [row["parameters"]["variants"] for row in runs] == [[variant] for variant in VARIANTS]
    killed = {}
    for variant, row in zip(VARIANTS, runs):
        [place] = FOLDER.glob(f"*{variant}*")
        folder = place / "run" / "results"
        assert row["variants"] == load_numbers("unet", folder)["variants"]
        seconds = load_numbers("unet_trainings", folder)["trainings"][variant]["seconds"]
        assert seconds[: len(done[variant])] == done[variant], "begun anew"
        killed[folder] = written(folder)
    shutil.rmtree(FOLDER)
    unbroken = start("utils.run", UNET, "--quick", "--sweep", *typed(grid))  # on workers of its own
    assert unbroken.wait() == 0
    assert {folder: written(folder) for folder in killed} == killed
