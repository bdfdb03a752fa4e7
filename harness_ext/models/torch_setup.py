"""Device, dtype and memory: what a machine does well."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

from harness_ext.errors import ModelError, first_line

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1  # bytes: what mallopt can be told at most
DEFAULT_DEVICE = "cuda:0"  # of lm-eval's EvaluatorConfig
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


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the best one here: CUDA, then MPS, then the CPU.

    `cuda:0` is what lm-eval asks for unless told otherwise: without CUDA it stands for the CPU, as there.

    Raises:
        ModelError: torch knows no such device, or this machine has none. lm-eval would quietly take another one.
    """
    if name == DEFAULT_DEVICE and not torch.cuda.is_available():
        return torch.device("cpu")
    if name:
        return _named_device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"--device {name}: {first_line(error):.120}; use cpu, cuda, cuda:0 or mps") from error
    count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type in ("cuda", "mps") and (device.index or 0) >= count:
        raise ModelError(f"--device {name}: this machine has {count or 'no'} such device; use another, or leave it out")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype; for `auto` bfloat16 where the device has units for it, else float32.

    A CPU without such units emulates bfloat16, several times slower than float32.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"unknown dtype {name!r}; use auto, float32, bfloat16 or float16")
    return dtype


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = _cpu_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


@functools.cache
def _cpu_capabilities() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch do not tell
