"""The files of a new task: its YAML, its README and its test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from harness_ext.new_task.columns import Kind

MOST_LISTED = 20  # labels in the instruction; more would be longer than the text
TOP = """\
# Made by `harness-ext new-task` from {origin}. Every line may be changed; `harness-ext check` tells what breaks.
task: {name}
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
"""
SPLIT_KEYS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
CHOICE = """\
output_type: multiple_choice
description: {description}
doc_to_text: {text}
doc_to_choice: choices
doc_to_target: label
target_delimiter: " "
fewshot_delimiter: "\\n\\n"
process_results: !function harness_ext.hooks.score_choice
metric_list:
"""
GENERATE = """\
output_type: generate_until
description: {description}
doc_to_text: {text}
doc_to_target: {target}
target_delimiter: " "
fewshot_delimiter: "\\n\\n"
generation_kwargs:
  until: [{stop}]
  max_gen_toks: {max_gen_toks} # the longest answer has room
  do_sample: false
process_results: !function harness_ext.hooks.{hook}
metric_list:
"""
METADATA = """\
metadata:
  version: 1.0
  primary_metric: {primary}
  metric_scale: {scale}
"""
HOOKED = "!function harness_ext.hooks."
CHOICE_METRICS = {
    "acc": ("mean", True),
    "macro_f1": (f"{HOOKED}macro_f1", True),
    "mcc": (f"{HOOKED}mcc", True),
    "auroc": (f"{HOOKED}auroc", True),  # of two classes only
    "brier": ("mean", False),
    "log_loss": ("mean", False),
    "ece": (f"{HOOKED}ece", False),
    "top_class_share": (f"{HOOKED}top_class_share", False),
    "majority_baseline": (f"{HOOKED}majority_baseline", True),
}
GENERATE_METRICS = {"exact": ("mean", True), "f1": ("mean", True), "empty_rate": ("mean", False)}
UNANSWERABLE = "unanswerable"  # the word that the hook takes for an abstention
UNANSWERABLE_METRICS = {
    **dict.fromkeys(("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"), ("mean", True)),
    **{name: (f"{HOOKED}{name}", True) for name in ("abstain_precision", "abstain_recall", "abstain_f1")},
    "abstain_baseline": ("mean", True),  # what always abstaining would score
    "empty_rate": ("mean", False),
    "mapped_rate": ("mean", False),
    # of questions with an answer only
    **dict.fromkeys(("rouge1", "rouge2", "rougeL"), ("mean", True)),
    "bleu": (f"{HOOKED}bleu", True),
    "bleu_1": (f"{HOOKED}bleu_1", True),
    "meteor": ("mean", True),  # missing without WordNet
}
TEST = '''\
"""`pytest {folder}`: the task is sound, and gold answers score what they should."""

from pathlib import Path

from harness_ext.check.run import check_tasks

TASK = Path(__file__).with_name("{name}.yaml")


def test_check_finds_no_error():
    (report,) = check_tasks([str(TASK)])
    assert not [str(finding) for finding in report.findings if finding.level == "error"]
    assert report.verified
'''
README = """\
# {name}

{kind}, made from `{origin}` (columns: {columns}).

| split | documents |
|---|---:|
{counts}

{splits}
{choices}{said}
```
harness-ext check {folder}
harness-ext eval --model_args pretrained=smollm2-135m-instruct --tasks {name} --include_path {folder} --output_path results/{name} --log_samples
harness-ext train {name} --include_path {folder} --model smollm2-135m-instruct --output adapters/{name}
```

Stock lm-eval takes the same folder (`lm_eval --include_path {folder} --tasks {name} …`) where `harness_ext` is installed.
"""  # noqa: E501
KINDS: Mapping[Kind, str] = {
    "choice": "A forced choice: the label with the highest log-probability",
    "generate": "The answer is generated, scored by exact match and F1",
}


@dataclass(frozen=True)
class Facts:
    """All that the files of a task say."""

    name: str
    kind: Kind
    origin: str  # files, or a Hub data set
    folder: str  # as commands name it
    choices: tuple[str, ...]
    counts: Mapping[str, int]
    roles: Mapping[str, str]  # role -> column, under the name that templates use
    strips: tuple[str, ...]  # columns that are texts
    said: tuple[str, ...]
    seed: int | None  # of the draw of splits; None when they were given
    max_gen_toks: int
    stop: str
    unanswerable: bool  # some questions have no answer
    split_names: Mapping[str, str]  # train, validation, test -> name in the data
    dataset_kwargs: Mapping[str, Any]


def files(facts: Facts) -> dict[str, str]:
    """File name to content."""
    return {
        f"{facts.name}.yaml": _yaml(facts),
        "README.md": _readme(facts),
        f"test_{facts.name.replace('-', '_')}.py": TEST.format(name=facts.name, folder=facts.folder),
    }


def _yaml(facts: Facts) -> str:
    metrics = _metrics(facts)
    named = "".join(
        f"  - metric: {name}\n    aggregation: {aggregation}\n    higher_is_better: {str(better).lower()}\n"
        for name, (aggregation, better) in metrics.items()
    )
    end = METADATA.format(primary=next(iter(metrics)), scale=1 if facts.kind == "choice" else 100)
    top = TOP.format(name=facts.name, origin=facts.origin)
    return top + _documents(facts) + _splits(facts) + _middle(facts) + named + end


def _metrics(facts: Facts) -> Mapping[str, tuple[str, bool]]:
    if facts.kind == "generate":
        return UNANSWERABLE_METRICS if facts.unanswerable else GENERATE_METRICS
    return {name: how for name, how in CHOICE_METRICS.items() if name != "auroc" or len(facts.choices) == 2}


def _documents(facts: Facts) -> str:
    choices = {"choices": facts.choices} if facts.kind == "choice" else {}
    beside = {"data_dir": " # beside this file"}
    return "".join(
        f"  {key}: {_flow(value)}{beside.get(key, '')}\n" for key, value in {**facts.dataset_kwargs, **choices}.items()
    )


def _splits(facts: Facts) -> str:
    keys = {SPLIT_KEYS[split]: name for split, name in facts.split_names.items()}
    if "train" in facts.split_names:
        keys["fewshot_split"] = facts.split_names["train"]
    return "".join(f"{key}: {_flow(name)}\n" for key, name in keys.items())


def _middle(facts: Facts) -> str:
    texts = {"description": _quoted(_description(facts)), "text": _quoted(_prompt(facts))}
    if facts.kind == "choice":
        return CHOICE.format(**texts)
    target, hook = "answers", "score_answer"
    if facts.unanswerable:
        target, hook = f"{HOOKED}references", "score_squad_v2"
    return GENERATE.format(**texts, target=target, hook=hook, stop=_quoted(facts.stop), max_gen_toks=facts.max_gen_toks)


def _description(facts: Facts) -> str:
    if facts.kind == "generate":
        return f"{_instruction(facts)}\n\n"
    if len(facts.choices) > MOST_LISTED:
        return f"Give the {_noun(facts, 'label')} of the {_noun(facts, 'text')}.\n\n"
    named = f"{', '.join(facts.choices[:-1])} or {facts.choices[-1]}"
    return f"Decide which {_noun(facts, 'label')} fits the {_noun(facts, 'text')}: {named}.\n\n"


def _instruction(facts: Facts) -> str:
    passage = "context" in facts.roles
    if not facts.unanswerable:
        return f"Answer the question{' with words from the passage' if passage else ''}."
    if not passage:
        return f"Answer the question with a short phrase. If the question has no answer, reply {UNANSWERABLE}."
    return (
        "Answer the question with a short phrase from the passage. If the passage does not contain the answer, "
        f"reply {UNANSWERABLE}."
    )


def _prompt(facts: Facts) -> str:
    """What is shared by many documents stands first: the passage, then the question."""
    if facts.kind == "choice":
        text, label = _noun(facts, "text"), _noun(facts, "label")
        return f"{text.capitalize()}: {_value(facts, 'text')}\n{label.capitalize()}:"
    passage = f"Passage: {_value(facts, 'context')}\n" if "context" in facts.roles else ""
    return f"{passage}Question: {_value(facts, 'question')}\nAnswer:"


def _noun(facts: Facts, role: str) -> str:
    """A column's name where it is a word (headline, topic), else that of its role."""
    name = facts.roles[role].replace("_", " ").strip().lower()
    return name if re.fullmatch(r"[a-z]{3,}( [a-z]{2,})*", name) and name not in ("labels", "target", "class") else role


def _value(facts: Facts, role: str) -> str:
    column = facts.roles[role]
    return f"{{{{{column}.strip()}}}}" if column in facts.strips else f"{{{{{column}}}}}"


def _quoted(text: str) -> str:
    """A text as YAML writes it between double quotes, in one line."""
    dumped = yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True)
    return str(dumped).rstrip("\n")


def _flow(value: str | Sequence[str] | Mapping[str, str]) -> str:
    """A value as YAML writes it in one line; a name stands without quotes where it may."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and not _is_word(value) else _quoted(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_quoted(key)}: {_quoted(text)}' for key, text in value.items())}}}"
    return f"[{', '.join(_quoted(text) for text in value)}]"


def _is_word(text: str) -> bool:
    """Whether YAML reads a plain text as something else: yes, null."""
    return not isinstance(yaml.safe_load(text), str)


def _readme(facts: Facts) -> str:
    said = "".join(f"- {line}\n" for line in facts.said)
    return README.format(
        name=facts.name, kind=_kind(facts), origin=facts.origin, folder=facts.folder, splits=_about_splits(facts),
        columns=", ".join(f"{role} `{column}`" for role, column in facts.roles.items()),
        counts="\n".join(f"| {split} | {count:,} |" for split, count in facts.counts.items()),
        choices=f"Choices: {', '.join(facts.choices)}.\n" if facts.choices else "",
        said=f"\nOf the file:\n\n{said}" if said else "",
    )  # fmt: skip


def _kind(facts: Facts) -> str:
    if facts.unanswerable:
        return f"{KINDS[facts.kind]}; where there is no answer, the right reply is {UNANSWERABLE!r}"
    return KINDS[facts.kind]


def _about_splits(facts: Facts) -> str:
    if facts.seed is not None:
        return f"Equal texts lie in the same split, classes keep their shares; the draw has seed {facts.seed}."
    return "The splits are those of the data."
