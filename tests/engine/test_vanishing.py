"""Adapter folders that change or vanish while they are evaluated: what is reported is what was attached."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness_ext.engine import adapter_switch
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.session import VariantResults
from harness_ext.errors import AdapterError
from harness_ext.models.card import CARD_FILE, AdapterCard
from harness_ext.models.snapshot import AdapterSnapshot
from harness_ext.models.sources import files_sha256

TASK = "sst2_choice"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = [WEIGHTS, CONFIG, CARD_FILE]


def card(task: str) -> AdapterCard:
    return AdapterCard(
        base="org/tiny", base_revision=None, base_sha256=None, task=task, fingerprint="0" * 64, fingerprint_fields={},
        recipe={}, data_sha256="0" * 64, sample_data=False, examples=1, tokens=1, trainable_parameters=1, seed=0,
        seconds=1.0, train_loss=1.0, validation_loss=None, versions={},
    )  # fmt: skip


@pytest.fixture
def adapters(make_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    """Two trained adapters of different sizes, each with its card."""
    folders = make_adapter("old", seed=1), make_adapter("new", seed=2, r=2)
    for folder in folders:
        (folder / CARD_FILE).write_text(json.dumps(asdict(card(folder.name))))
    return folders


def evaluate_one(base: Path, adapter: Path, output: Path) -> VariantResults:
    return evaluate(
        str(base), tasks=[TASK], adapters=[adapter], limit=4, output_path=str(output), log_samples=True,
    )[1]  # fmt: skip


def while_asked(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Something happens while the adapter answers."""
    original = TreeLM.loglikelihood

    def asked(self: TreeLM, requests: Any, **options: Any) -> Any:
        if self.peft is not None:
            happens()
        return original(self, requests, **options)

    monkeypatch.setattr(TreeLM, "loglikelihood", asked)


@pytest.mark.parametrize("how", ["renamed", "vanished", "emptied", "no card", "written into"])
def test_what_is_reported_was_read_at_attach(
    how: str, adapters: tuple[Path, Path], tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = adapters
    untouched = evaluate_one(tiny_model_folder, old, tmp_path / "before")

    def happens() -> None:
        if how == "renamed":
            old.rename(tmp_path / "away")
            shutil.copytree(new, old)
        elif how == "vanished":
            shutil.rmtree(old)
        elif how == "emptied":
            for file in old.iterdir():
                file.write_bytes(b"")
        elif how == "no card":
            (old / CARD_FILE).unlink()
        else:
            for name in FILES:
                (old / name).write_bytes((new / name).read_bytes())

    while_asked(monkeypatch, happens)
    done = evaluate_one(tiny_model_folder, old, tmp_path / "after")
    assert not done.failures
    assert done.folder is not None
    assert done.results["results"] == untouched.results["results"]
    for name in ("card", "adapter_sha256"):
        assert done.results["harness_ext"][name] == untouched.results["harness_ext"][name]
    assert done.results["harness_ext"]["card"]["task"] == "old"


def test_results_name_the_weights_and_the_configuration(
    adapters: tuple[Path, Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    done = evaluate_one(tiny_model_folder, adapters[0], tmp_path)
    assert done.results["harness_ext"]["adapter_sha256"] == {
        name: files_sha256(adapters[0] / name) for name in (WEIGHTS, CONFIG)
    }
    assert done.results["harness_ext"]["card"]["adapter_bytes"] == (adapters[0] / WEIGHTS).stat().st_size


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_replaced_while_it_is_read(
    name: str, adapters: tuple[Path, Path], tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of one adapter with the card of another must not be reported as anything."""
    attach = adapter_switch.attach

    def attached(*arguments: Any, **options: Any) -> Any:
        shutil.copy2(adapters[1] / name, tmp_path / "copy")
        (tmp_path / "copy").replace(adapters[0] / name)
        return attach(*arguments, **options)

    if name == CARD_FILE:
        monkeypatch.setattr(adapter_switch, "attach", attached)
    else:
        load = adapter_switch.AdapterSwitch._choose_tokenizer

        def chosen(*arguments: Any) -> Any:
            load_file(adapters[0] / WEIGHTS)
            attached_file = adapters[0] / name
            attached_file.write_bytes(attached_file.read_bytes())
            return load(*arguments)

        monkeypatch.setattr(adapter_switch.AdapterSwitch, "_choose_tokenizer", chosen)
    failures = []
    try:
        failures = list(evaluate_one(tiny_model_folder, adapters[0], tmp_path / "out").failures.values())
    except AdapterError as error:
        failures = [str(error)]
    assert any(f"{name} changed while it was read; evaluate this adapter again" in reason for reason in failures)


def test_the_hash_of_a_file_of_the_same_size_and_time(tmp_path: Path) -> None:
    """`cp -p` and `rsync -t` keep times; adapters of one shape have one size."""
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    times, first = file.stat(), files_sha256(file)
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files_sha256(file) != first


def test_a_folder_without_weights_has_no_hash(tmp_path: Path) -> None:
    taken = AdapterSnapshot.of(tmp_path)
    assert (taken.card, taken.weights_bytes, taken.sha256) == (None, 0, {})
    taken.check()
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(AdapterError, match="changed while it was read"):
        taken.check()
