"""Every test draws the same random numbers, whichever ran before it."""

import subprocess
import sys

import pytest
import torch
from hypothesis import settings

from tests.files import ROOT

settings.register_profile("same", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def other_run(tmp_path):
    """Another process that holds a folder."""
    program = (
        "import sys, time; from pathlib import Path; from utils.files import lock_run_dir\n"
        "lock_run_dir(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, tmp_path]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()
