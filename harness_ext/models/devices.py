"""Device and dtype: what a machine does well."""

from __future__ import annotations

import torch

from harness_ext.cpu.capabilities import cpu_has_bfloat16
from harness_ext.errors import ModelError, first_line

DEFAULT_DEVICE = "cuda:0"  # of lm-eval's EvaluatorConfig


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
    return device.type == "cpu" and cpu_has_bfloat16()
