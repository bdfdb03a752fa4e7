"""Memory that a process has freed and will need again."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1  # bytes: what mallopt can be told at most
ALLOCATOR_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process keep up to 2 GiB that tensors have freed, for the next ones.

    glibc gives large freed blocks back to the kernel, and every new activation then begins with thousands of page
    faults: on a CPU about a tenth of a forward pass. PyTorch's tuning guide advises tcmalloc for this; here glibc is
    told to do the same. Nothing happens without glibc, or where the user has set its allocator.

    Returns:
        Whether glibc was told.
    """
    if any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # Windows, macOS, musl
        return False
    return all(mallopt(setting, LARGEST_INT) == 1 for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
