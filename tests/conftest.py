"""A tiny model and tokenizer made on the spot, and the documents that tests use: no network, nothing downloaded."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything reads it: nothing asks the Hub, and nothing waits for it

import datasets
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from results_writer import write_pair, write_run  # noqa: F401  fixtures
from stopped_results import evaluation  # noqa: F401  a fixture
from tiny_model import save_tiny_model

from harness_ext.cpu import capabilities, onednn
from harness_ext.models.sources import HOME_VARIABLE
from harness_ext.protocol.documents import DATA_VARIABLE, SAMPLE

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(autouse=True)
def _bundled_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents come from the bundled sample unless a test says otherwise; nothing asks the Hub."""
    monkeypatch.setenv(DATA_VARIABLE, SAMPLE)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` caches what it reads, and we the models that are fetched; not beside the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _tiny_layers_multiply_as_large_ones_do() -> Iterator[None]:
    """The tiny model's layers are too small for oneDNN to pay; tests are to go the way of real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "SMALLEST_SIDE", 16)
        yield


@pytest.fixture(autouse=True, scope="session")
def _computes_in_float32() -> Iterator[None]:
    """`dtype=auto` is float32, also on a CPU that multiplies bfloat16: numbers are compared with stock runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capabilities, "_cpu_capabilities", dict)
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell lets its background jobs ignore Ctrl-C; tests that send it want Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (2 layers, width 32) and a byte-level BPE tokenizer that adds a begin token."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_model_folder: Path) -> HFLM:
    """lm-eval's own model class over the tiny model, float32 on the CPU."""
    return HFLM(pretrained=str(tiny_model_folder), device="cpu", dtype="float32", batch_size=8)


collect_ignore = ["support"]  # modules that tests import; to import them a second time would register models twice

_MODEL_FIXTURES = {"tiny_model_folder", "tiny_lm"}  # of which all other models are made
_MODEL_TESTS = {"cpu", "differential", "doctor", "engine", "models", "training", "trees", "tuning"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs a model, so that `make test-fast` can leave it out."""
    for item in items:
        if _MODEL_FIXTURES & set(getattr(item, "fixturenames", ())) or item.path.parent.name in _MODEL_TESTS:
            item.add_marker("model")
