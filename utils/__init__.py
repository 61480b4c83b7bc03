"""The small module behind the three notebooks: data, models, losses, metrics, training, results and figures."""

import ctypes
import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for its newest version otherwise
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let glibc keep freed blocks of up to `limit` bytes for the next tensor; whether it could be done.

    By default each tensor's pages are mapped, filled with zeros and unmapped again (mallopt(3)); training on a CPU is
    slower for it (Results/benchmark.md). Other C libraries have no such switch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    return all([mallopt(M_MMAP_THRESHOLD, limit), mallopt(M_TRIM_THRESHOLD, limit)])


keep_freed_memory()
