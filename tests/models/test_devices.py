from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch
from lm_eval.config.evaluate_config import EvaluatorConfig

from harness_ext.cpu import memory
from harness_ext.errors import ModelError
from harness_ext.models import devices

FAULTS = """
import resource, sys, torch
from harness_ext.cpu.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():  # blocks of 48 MiB, more than glibc ever keeps by itself
    torch.full((48 * 2**18,), 1.0)
for _ in range(20):
    use()
before = faults()
for _ in range(10):
    use()
print(faults() - before)
"""


def page_faults(way: str) -> int:
    environment = {k: v for k, v in os.environ.items() if k not in memory.ALLOCATOR_SETTINGS}
    done = subprocess.run([sys.executable, "-c", FAULTS, way], env=environment, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "mps:99"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    """lm-eval would quietly take another one."""
    with pytest.raises(ModelError, match=name):
        devices.choose_device(name)


def test_the_device_that_lm_eval_asks_for_by_default_may_be_missing() -> None:
    assert EvaluatorConfig(tasks=["sst2"]).device == devices.DEFAULT_DEVICE
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert devices.choose_device(devices.DEFAULT_DEVICE).type == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, given_back = page_faults("keep"), page_faults("stock")
    assert given_back > 1000
    assert kept < given_back / 10


@pytest.mark.parametrize("name", memory.ALLOCATOR_SETTINGS)
def test_the_users_own_allocator_settings_win(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("glibc was told"))
    assert not memory.keep_freed_memory()


def test_nothing_happens_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not memory.keep_freed_memory()
