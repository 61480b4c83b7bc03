"""Freed memory is kept for the next tensor: counted by the system itself, in two processes."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys, torch
if sys.argv[1] == "kept":
    import utils
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
torch.ones(8)
before = resident()
torch.ones(2**25)  # 128 MiB, freed at once
print(resident() - before)
"""


def still_resident(mode):
    """Bytes that a process holds on to of 128 MiB that it has freed."""
    command = [sys.executable, "-c", PROGRAM, mode]
    ran = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_importing_the_course_keeps_freed_memory():
    assert still_resident("as it comes") < 2**24 < 2**26 < still_resident("kept")
