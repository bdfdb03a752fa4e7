"""Write a case to disk: model, adapters and tasks in one folder."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
import yaml

from differential.adapter_kinds import for_stock, save_adapter
from differential.cases import Case, TaskCase
from differential.models import ENCODER_DECODERS, make_model, save_model
from differential.tokenizer_kinds import WORDS, make_tokenizer

# Beside each task's YAML: its documents and, for half of the tasks, its own metrics.
HOOKS = """
import json
from pathlib import Path

import datasets


def load(**_):
    splits = json.loads((Path(__file__).parent / "FILE").read_text())
    return {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}


def fails(doc):
    last = json.loads((Path(__file__).parent / "FILE").read_text())["test"][-1]
    if doc["question"] == last["question"]:
        raise RuntimeError("planted")
    return doc["question"]


def score(doc, results):
    first = results[0]
    if isinstance(first, list):
        first = first[0]
    if isinstance(first, str):
        return {"length": len(first), "letters": sum(map(first.count, "aeiou")), "hit": float("e" in first)}
    values = [result[0] for result in results]
    return {"length": values[0], "letters": sum(values), "hit": float(values.index(max(values)))}
"""
HOOK_METRICS = [
    {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("length", "letters", "hit")
]
LISTED_METRICS = {
    "multiple_choice": ("acc", "acc_norm", "acc_mutual_info", "brier_score"),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match",),
}


@dataclass(frozen=True)
class Built:
    """Where a case lies."""

    model: Path
    adapters: tuple[Path, ...]
    adapter_kinds: tuple[str, ...]  # as made: plain LoRA where peft has no such kind for the model
    tasks: tuple[Path, ...]

    def tokenizer_of(self, adapter: Path) -> Path | None:
        """The tokenizer that `hf` is given with an adapter: the one saved beside it, unless it is the base's."""
        if for_stock(adapter).exists():
            return for_stock(adapter)
        is_own = (adapter / "tokenizer_config.json").exists() and not adapter.name.endswith("-no-template")
        return adapter if is_own else None


def build(case: Case, folder: Path) -> Built:
    """Write all that a case needs."""
    tokenizer = make_tokenizer(case.tokenizer, case.chat_template)
    model = make_model(case, tokenizer)
    save_model(model, tokenizer, folder / "model", case.generation_config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")  # some architectures have their own class
    task_type = "SEQ_2_SEQ_LM" if case.architecture in ENCODER_DECODERS else "CAUSAL_LM"
    adapters = tuple(folder / f"{number}-{adapter.kind}" for number, adapter in enumerate(case.adapters))
    kinds = tuple(
        save_adapter(adapter, model, tokenizer, path, task_type=task_type)
        for adapter, path in zip(case.adapters, adapters, strict=True)
    )
    tasks = tuple(_write_task(task, f"task_{number}", folder / "tasks") for number, task in enumerate(case.tasks))
    return Built(folder / "model", adapters, kinds, tasks)


def _write_task(task: TaskCase, name: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    splits = {split: _documents(task, split) for split in ("train", "test")}
    (folder / f"{name}.json").write_text(json.dumps(splits), encoding="utf-8")
    (folder / f"{name}_hooks.py").write_text(HOOKS.replace("FILE", f"{name}.json"), encoding="utf-8")
    text = yaml.safe_dump(_config(task, name), allow_unicode=True)
    if task.fails == "split":
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in splits["train"]), encoding="utf-8"
        )
        text += "custom_dataset: !function harness_ext.hooks.load_documents\n"
        text += f"dataset_kwargs: {{dataset: {name}, data_files: {{train: {name}.jsonl}}}}\n"
    else:
        text += f"custom_dataset: !function {name}_hooks.load\n"
    if task.fails == "hook":
        text += f"doc_to_text: !function {name}_hooks.fails\n"
    if task.metrics == "hook":
        text += f"process_results: !function {name}_hooks.score\n"
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{name}.yaml"


def _config(task: TaskCase, name: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "task": name,
        "output_type": task.kind,
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        "doc_to_text": task.doc_to_text,
        "doc_to_target": _target(task),
        "target_delimiter": task.delimiter,
        "metadata": {"version": 1},
        "metric_list": HOOK_METRICS if task.metrics == "hook" else [{"metric": m} for m in LISTED_METRICS[task.kind]],
    }
    if task.kind == "multiple_choice":
        config["doc_to_choice"] = _choices(task)
    if task.kind == "generate_until":
        config["generation_kwargs"] = dict(task.generation)
        if task.until is not None:
            config["generation_kwargs"]["until"] = task.until
        if task.repeats > 1:
            config["repeats"] = task.repeats
    if task.filters:
        regex = {"function": "regex", "regex_pattern": r"(\w+)"}
        config["filter_list"] = [
            {"name": "first-word", "filter": [regex, {"function": "take_first"}]},
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
        ]
    if task.fails == "hook":
        del config["doc_to_text"]
    if task.num_fewshot is not None:
        config["num_fewshot"] = task.num_fewshot
    return config


def _target(task: TaskCase) -> str:
    if task.kind == "multiple_choice":
        return "label"
    return "{{passage}}\n{{question}}" if task.kind == "loglikelihood_rolling" else "{{answer}}"


def _choices(task: TaskCase) -> Any:
    return {
        "words": ["negative", "positive"],
        "phrases": ["the old mill", "Paris , London and Berlin", "one"],
        "nested": ["one", "one two", "one two three"],
        "own": "{{choices}}",
    }[task.choices]


def _documents(task: TaskCase, split: str) -> list[dict[str, Any]]:
    """A few documents of varied length, some of which share their passage."""
    rng = random.Random(f"{task.seed} {split}")
    passages = [_words(rng, rng.choice((3, 12, 30))) for _ in range(2)]
    return [
        {
            "passage": rng.choice(passages),
            "question": f"{_words(rng, rng.randint(1, 8))} ?",
            "answer": _words(rng, rng.randint(1, 3)),
            "choices": [_words(rng, rng.randint(1, 4)) for _ in range(3)],
            "label": rng.randint(0, 1),
        }
        for _ in range(task.documents if split == "test" else 5)
    ]


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))
