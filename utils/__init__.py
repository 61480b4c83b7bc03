"""The small module behind the three notebooks: data, models, losses, metrics, training, results and figures."""

import ctypes
import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for its newest version otherwise
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GiB, or 32 MiB where it allows no more, for the next tensor.

    By default the pages of large tensors are mapped, filled with zeros and unmapped again (mallopt(3)); training on a
    CPU is slower for it (Results/benchmark.md). Other C libraries have no such switch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return
    # The second call alone would be worse than none: it ends glibc's own adjustment of the first threshold.
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
        mallopt(M_TRIM_THRESHOLD, 2**30)


keep_freed_memory()
