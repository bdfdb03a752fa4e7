# ruff: noqa: E501 (files in the format of other tools)
"""Every reader of input: valid files for it, and how it is used. Only `HarnessExtError` may come out."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from rich.console import Console

from harness_ext.errors import HarnessExtError
from hostile.changes import Change, apply

SECONDS = 60  # for one case; anything slower counts as a hang


class Hang(BaseException):
    """A reader that does not end; no `except Exception` takes it for something else."""


class Reader(NamedTuple):
    """A kind of input."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]


def outcome(name: str, changes: Sequence[Change], folder: Path) -> str:
    """Read changed files: "read", or the message of our own error.

    Raises:
        BaseException: whatever else comes out; `Hang` after `SECONDS`.
    """
    reader = READERS[name]
    reader.write(folder)
    for change in changes:
        apply(folder, change)
    with _time_limit():
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)
        except HarnessExtError as error:
            message = str(error)
            assert message, "an error without a message"
            assert message.isprintable(), f"an error that is not one visible line: {message!r}"
            return message
    return "read"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _compare(folder: Path) -> None:
    """All that `compare` does with results."""
    from harness_ext.leaderboard import compare_runs
    from harness_ext.results.load import load_runs

    runs = load_runs(folder)
    console = Console(file=io.StringIO(), width=100)
    comparison = compare_runs(runs, baseline=runs[0].name)
    for part in comparison.to_terminal(100):
        console.print(part)
    written = [comparison.to_markdown(), comparison.to_latex(), comparison.to_html(), comparison.to_csv()]
    json.dumps(comparison.to_json(), ensure_ascii=False)
    for text in (*written, console.file.getvalue()):  # type: ignore[attr-defined]
        text.encode()
        assert not set("\x00\x07\x08\x1b\x85\u2028\u202e") & set(text.replace("\x1b[", "")), (
            "a control character is written"
        )


def _write_lm_eval(folder: Path) -> None:
    date = "2025-06-01T10-00-00.000000"
    for number, name in enumerate(("base", "sst2")):
        place = folder / name
        place.mkdir()
        samples = [
            {
                "doc_id": n, "doc": {"idx": n, "text": f"text {n}", "passage": f"p{n // 3}"}, "target": "a", "filter": "none",
                "arguments": {"gen_args_0": {"arg_0": f"Q{n}", "arg_1": " a"}, "gen_args_1": {"arg_0": f"Q{n}", "arg_1": " b"}},
                "resps": [[["-0.5", "True"]], [["-1.5", "False"]]], "filtered_resps": [["-0.5", "True"], ["-1.5", "False"]],
                "doc_hash": f"{n:064x}", "prompt_hash": f"{n:064x}", "target_hash": "a" * 64, "metrics": ["acc"],
                "acc": float((n + number) % 3 > 0),
            }
            for n in range(8)
        ]  # fmt: skip
        value = sum(sample["acc"] for sample in samples) / 8
        arguments = {"pretrained": "org/tiny"} | ({"peft": "adapters/sst2"} if number else {})
        payload = {
            "results": {"demo": {"alias": "demo", "sample_len": 8, "acc,none": value, "acc_stderr,none": 0.1}},
            "groups": {}, "group_subtasks": {"demo": []}, "versions": {"demo": 1.0}, "n-shot": {"demo": 0},
            "configs": {"demo": {
                "task": "demo", "output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "doc_to_text": "{{text}}",
                "metadata": {"version": 1.0, "primary_metric": "acc", "cluster": "passage",
                             "metrics": {"acc": {"unit": "share", "range": [0, 1], "margin": 0.01}}}}},
            "higher_is_better": {"demo": {"acc": True}}, "n-samples": {"demo": {"original": 8, "effective": 8}},
            "config": {"model": "hf", "model_args": arguments, "model_dtype": "torch.float32"},
            "harness_ext": {"variant": name, "base": "org/tiny", "adapter": "adapters/sst2" if number else None,
                            "card": CARD if number else {}, "fingerprints": {"demo": "f"}, "sample_data": False,
                            "fingerprint_fields": {"demo": {"prompt": "x"}}, "token_settings": {"add_bos_token": "x"}},
        }  # fmt: skip
        (place / f"results_{date}.json").write_text(json.dumps(payload))
        (place / f"samples_demo_{date}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


CARD: dict[str, Any] = {
    "base": "b", "base_revision": None, "base_sha256": "0" * 64, "task": "demo", "fingerprint": "f",
    "fingerprint_fields": {"x": "y"}, "recipe": {"lora_rank": 4, "lora_alpha": 16.0, "seed": 0}, "data_sha256": "d",
    "sample_data": False, "examples": 100, "tokens": 1000, "trainable_parameters": 5, "seed": 0, "seconds": 60.0,
    "train_loss": 0.5, "validation_loss": None, "versions": {"torch": "2"},
}  # fmt: skip


def _write_inspect(folder: Path) -> None:
    for number, name in enumerate(("one", "two")):
        samples = [
            {
                "id": n, "epoch": 1, "input": f"Q {n}?", "target": "x", "metadata": {"passage": f"p{n // 2}"},
                "messages": [{"role": "user", "content": "Q", "source": "input"}, {"role": "assistant", "content": "x"}],
                "output": {"choices": [{"stop_reason": "stop"}]}, "scores": {"match": {"value": "CI"[(n + number) % 2]}},
            }
            for n in range(4)
        ]  # fmt: skip
        header = {
            "version": 2, "status": "success",
            "eval": {"created": "2026-01-01", "task": "demo", "task_version": 1, "model": name, "model_args": {},
                     "dataset": {"name": "q"}, "config": {"epochs": 1}, "scorers": [{"name": "match", "options": {}}]},
            "plan": {"steps": [{"solver": "generate", "params": {}}], "config": {}},
            "results": {"scores": [{"name": "match", "scorer": "match", "metrics": {"accuracy": {"value": 0.5}}}]},
        }  # fmt: skip
        with zipfile.ZipFile(folder / f"{name}.eval", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(header))
            for sample in samples:
                archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))


def _write_evalscope(folder: Path) -> None:
    for number, model in enumerate(("one", "two")):
        root = folder / model
        for part in ("reports", "reviews"):
            (root / part / model).mkdir(parents=True)
        (root / "configs").mkdir()
        (root / "configs" / "task_config.yaml").write_text(
            "model_args: {precision: x}\nresolved_benchmarks: {demo: {few_shot_num: 0, filters: {}}}\nrepeats: 1\n"
        )
        subsets = [{"name": "main", "score": 0.5, "num": 4}]
        metric = {"name": "mean_acc", "num": 4, "score": 0.5, "categories": [{"name": ["default"], "subsets": subsets}]}
        report = {"name": "r", "dataset_name": "demo", "model_name": model, "score": 0.5, "num": 4, "metrics": [metric]}
        (root / "reports" / model / "demo.json").write_text(json.dumps(report))
        reviews = [
            {"index": n, "target": "x", "messages": [{"role": "user", "content": f"Q{n}"}],
             "sample_score": {"score": {"value": {"acc": float((n + number) % 2)}}, "sample_id": n, "group_id": n,
                              "sample_metadata": {}}}
            for n in range(4)
        ]  # fmt: skip
        (root / "reviews" / model / "demo_main.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reviews))


def _write_table(folder: Path) -> None:
    rows = [
        f"q{n},{run},demo,acc,{(n + shift) % 2},p{n // 2}"
        for shift, run in enumerate(("base", "one"))
        for n in range(4)
    ]
    (folder / "scores.csv").write_text("\n".join(["id,run,task,metric,value,cluster", *rows]) + "\n")


def _read_table(folder: Path) -> None:
    from harness_ext.leaderboard import compare_runs
    from harness_ext.results.load import load_runs

    comparison = compare_runs(load_runs(folder / "scores.csv"), baseline="base")
    for text in (comparison.to_markdown(), comparison.to_latex(), comparison.to_csv()):
        text.encode()


@cache
def _tiny_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def _write_adapter(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "b", "r": 4, "lora_alpha": 16,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj"], "rank_pattern": {}, "alpha_pattern": {},
        "exclude_modules": None, "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
        "layers_to_transform": None, "modules_to_save": None, "trainable_token_indices": None, "use_rslora": False,
        "use_dora": False, "fan_in_fan_out": False, "revision": None, "loftq_config": {}, "auto_mapping": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "card.json").write_text(json.dumps(CARD))
    names = [f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{side}.weight" for n in (0, 1) for side in "AB"]
    save_file({name: torch.ones((4, 32) if "_A" in name else (32, 4)) for name in names},
              folder / "adapter_model.safetensors")  # fmt: skip


def _read_adapter(folder: Path) -> None:
    from harness_ext.doctor.preflight.adapter import examine_adapter
    from harness_ext.models.attach import attach

    with contextlib.suppress(HarnessExtError):
        examine_adapter(folder)
    attach(_tiny_model(), folder, base="b")


def _write_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        "task: sst2_choice\nmodel: b\noutput: o\nlora_rank: 8\nlora_alpha: 16\nlearning_rate: 1e-3\nseed: 1\n"
        "target_modules: [q_proj]\ninclude_path: null\nlimit: 10\nepochs: 1.5\ndtype: auto\nuse_dora: false\n"
    )


def _read_recipe(folder: Path) -> None:
    from harness_ext.training.recipe import read_recipe, recipe_from

    json.dumps(recipe_from(read_recipe(folder / "recipe.yaml")).for_card())


def _tournament(folder: Path) -> tuple[list[Any], dict[str, Any]]:
    """The entries of a space, and the design of their tournament."""
    from harness_ext.tuning.entries import check_entries, make_entries, read_space
    from harness_ext.tuning.record import design_of

    base = {"task": "sst2_choice", "model": "b", "output": "o"}
    entries = make_entries([("train", base)], space=read_space(folder / "space.yaml"))
    check_entries(entries)
    return entries, design_of(entries, 1 / 12)


def _write_tournament(folder: Path) -> None:
    from harness_ext.training.evaluator import EvaluatedMetric
    from harness_ext.tuning.record import Documents, Record, Scored

    (folder / "space.yaml").write_text(
        "learning_rate: [1e-4, 3e-4]\ntarget_modules: [all-linear, [q_proj]]\nseeds: 2\n"
    )
    entries, design = _tournament(folder)
    scored = Scored(2, 24, 64, 100, [1.0, 0.0, 1.0, 1.0], 1.5, 0.5)
    documents = Documents("d", [0, 0, 1, 2], None, EvaluatedMetric("acc", (0, 1), True, True))
    record = Record(folder, design, documents, [dict.fromkeys(range(len(entries)), scored), {0: scored}], scored)
    record.write()


def _read_tournament(folder: Path) -> None:
    from harness_ext.tuning.record import read_record
    from harness_ext.tuning.summary import summary_lines, summary_of

    record = read_record(folder, _tournament(folder)[1], "o")
    if record is not None:
        summary_lines(summary_of(record, 0))


ROWS = [{"text": f"text number {n}", "label": "ab"[n % 2], "more": n} for n in range(12)]


def _write_rows(folder: Path) -> None:
    (folder / "csv").mkdir()
    (folder / "csv" / "rows.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS))
    (folder / "jsonl").mkdir()
    (folder / "jsonl" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "json").mkdir()
    (folder / "json" / "rows.json").write_text(json.dumps(ROWS))
    (folder / "parquet").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "parquet" / "rows.parquet")


def _read_rows(folder: Path) -> None:
    from harness_ext.new_task.make import new_task
    from harness_ext.protocol.local_files import load_files

    errors = []
    for kind in ("csv", "jsonl", "json", "parquet"):
        file = folder / kind / f"rows.{kind}"
        try:
            load_files({"train": file}, label="label")["train"].to_list()
            new_task(f"task_{kind}", "choice", file, output=folder / f"task_{kind}")
        except HarnessExtError as error:
            errors.append(error)
    if errors:
        raise errors[0]


TASK = """\
task: demo
dataset_path: csv
dataset_kwargs:
  data_files: {train: DATA, validation: DATA}
training_split: train
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{ text }} Label:"
doc_to_target: "{{ label }}"
doc_to_choice: ["a", "b"]
target_delimiter: " "
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
generation_kwargs: {until: ["."], max_gen_toks: 5}
filter_list:
  - name: none
    filter:
      - function: take_first
fewshot_config: {sampler: first_n}
metadata:
  version: 1.0
  primary_metric: acc
tag: mine
"""


def _write_task(folder: Path) -> None:
    data = folder / "data" / "rows.txt"
    data.parent.mkdir()
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "demo.yaml").write_text(TASK.replace("DATA", json.dumps(str(data))))


def _read_task(folder: Path) -> None:
    from harness_ext.check.run import check_tasks

    for report in check_tasks([str(folder / "tasks")]):
        for finding in report.findings:
            assert str(finding).isprintable(), f"a finding that is not one visible line: {finding}"


def _write_model(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    (folder / "tokenizer.json").write_text("{}")


def _read_model(folder: Path) -> None:
    from harness_ext.models.sources import check_model_folder, weights_sha256

    check_model_folder(folder)
    weights_sha256(folder)


_README = """---
base_model: org/tiny  # remark
tags: [lora, "mine"]
model-index:
- name: sst2
  results:
  - task: {type: text-generation, name: sst2_choice}
    dataset: {name: stanfordnlp/sst2, type: stanfordnlp/sst2, split: validation}
    metrics:
    - type: accuracy
      value: 0.9
      args:
        {task: sst2_choice, metric: acc, n: 872, low: 0.88, high: 0.92, baseline: 0.5, difference: 0.4, verdict: better,
         settings: {num_fewshot: 2, limit: 100, seed: [1, 2, 3, 4], gen_kwargs: {temperature: 0}, model_args: {dtype: auto}}}
    source: {name: harness-ext, url: "https://x"}
---
# sst2

<!-- harness-ext:about begin 80403386e0b6 -->
An adapter.
<!-- harness-ext:about end -->

Mine.
"""


def _write_readme(folder: Path) -> None:
    (folder / "README.md").write_text(_README, encoding="utf-8")


def _read_readme(folder: Path) -> None:
    """All that `card`, `push` and `verify` do with the card of a stranger."""
    from harness_ext.publish.card import read_readme
    from harness_ext.publish.claims import claims_in
    from harness_ext.publish.front_matter import metadata_of, with_metadata
    from harness_ext.regions import with_regions

    text = read_readme(folder)
    if text is None:
        return
    metadata = metadata_of(text, "README.md")
    claims_in(metadata, "README.md")
    written = with_metadata(text, {"tags": ["new"], "model-index": []}, "README.md")
    again = with_regions(written, {"about": "x", "results": "y"}, "README.md")
    assert metadata_of(again, "README.md")["tags"] == ["new"]


READERS: dict[str, Reader] = {
    "lm-eval": Reader(_write_lm_eval, _compare),
    "inspect": Reader(_write_inspect, _compare),
    "evalscope": Reader(_write_evalscope, _compare),
    "table": Reader(_write_table, _read_table),
    "adapter": Reader(_write_adapter, _read_adapter),
    "recipe": Reader(_write_recipe, _read_recipe),
    "tournament": Reader(_write_tournament, _read_tournament),
    "rows": Reader(_write_rows, _read_rows),
    "task": Reader(_write_task, _read_task),
    "model": Reader(_write_model, _read_model),
    "readme": Reader(_write_readme, _read_readme),
}
