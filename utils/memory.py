"""What the C library does with freed memory: on Linux its default slows networks down; tests/benchmark.py."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LIMIT = 2**30  # bytes


def keep_freed_memory() -> bool:
    """Let glibc keep blocks of up to 1 GiB for the next tensor, instead of giving each back to the system at once.

    Else every tensor's pages are mapped, filled with zeros and unmapped again (see mallopt(3), M_TRIM_THRESHOLD and
    M_MMAP_THRESHOLD). On other systems nothing is done.

    Returns:
        Whether it was done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    return all([mallopt(M_MMAP_THRESHOLD, LIMIT), mallopt(M_TRIM_THRESHOLD, LIMIT)])
