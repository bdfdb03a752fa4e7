"""The files of a new task: its YAML, its README and its test."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from harness_ext.protocol.columns import Kind

MOST_LISTED = 20  # labels in the instruction; more would be longer than the text
TOP = """\
# Made by `harness-ext new-task` from {file}. Every line may be changed; `harness-ext check` tells what breaks.
task: {name}
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: {name}
  data_dir: data # beside this file
"""
SPLITS = """\
training_split: train
validation_split: validation
{test}fewshot_split: train
"""
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
doc_to_target: answers
target_delimiter: " "
fewshot_delimiter: "\\n\\n"
generation_kwargs:
  until: [{stop}]
  max_gen_toks: {max_gen_toks} # the longest answer has room
  do_sample: false
process_results: !function harness_ext.hooks.score_answer
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
TEST = '''\
"""`pytest {folder}`: the task is sound, and gold answers score what they should."""

from pathlib import Path

from harness_ext.protocol.check import check_tasks

TASK = Path(__file__).with_name("{name}.yaml")


def test_check_finds_no_error():
    (report,) = check_tasks([str(TASK)])
    assert not [str(finding) for finding in report.findings if finding.level == "error"]
    assert report.verified
'''
README = """\
# {name}

{kind}, made from `{file}` (columns: {columns}).

| split | documents |
|---|---:|
{counts}

Equal texts lie in the same split, classes keep their shares; the draw has seed {seed}.
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
    file: str
    folder: str  # as commands name it
    choices: tuple[str, ...]
    counts: Mapping[str, int]
    roles: Mapping[str, str]  # role -> column, under the name that templates use
    strips: tuple[str, ...]  # columns that are texts
    said: tuple[str, ...]
    seed: int
    max_gen_toks: int
    stop: str


def files(facts: Facts) -> dict[str, str]:
    """File name to content."""
    return {
        f"{facts.name}.yaml": _yaml(facts),
        "README.md": _readme(facts),
        f"test_{facts.name.replace('-', '_')}.py": TEST.format(name=facts.name, folder=facts.folder),
    }


def _yaml(facts: Facts) -> str:
    listed = f"  choices: {_quoted_list(facts.choices)}\n" if facts.kind == "choice" else ""
    splits = SPLITS.format(test="test_split: test\n" if "test" in facts.counts else "")
    middle = (CHOICE if facts.kind == "choice" else GENERATE).format(
        description=_quoted(_description(facts)), text=_quoted(_prompt(facts)), stop=_quoted(facts.stop),
        max_gen_toks=facts.max_gen_toks,
    )  # fmt: skip
    metrics = CHOICE_METRICS if facts.kind == "choice" else GENERATE_METRICS
    named = "".join(
        f"  - metric: {name}\n    aggregation: {aggregation}\n    higher_is_better: {str(better).lower()}\n"
        for name, (aggregation, better) in metrics.items()
        if name != "auroc" or len(facts.choices) == 2
    )
    end = METADATA.format(primary=next(iter(metrics)), scale=1 if facts.kind == "choice" else 100)
    return TOP.format(name=facts.name, file=facts.file) + listed + splits + middle + named + end


def _description(facts: Facts) -> str:
    if facts.kind == "generate":
        where = " with words from the passage" if "context" in facts.roles else ""
        return f"Answer the question{where}.\n\n"
    if len(facts.choices) > MOST_LISTED:
        return f"Give the {_noun(facts, 'label')} of the {_noun(facts, 'text')}.\n\n"
    named = f"{', '.join(facts.choices[:-1])} or {facts.choices[-1]}"
    return f"Decide which {_noun(facts, 'label')} fits the {_noun(facts, 'text')}: {named}.\n\n"


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


def _quoted_list(texts: tuple[str, ...]) -> str:
    return f"[{', '.join(_quoted(text) for text in texts)}]"


def _readme(facts: Facts) -> str:
    said = "".join(f"- {line}\n" for line in facts.said)
    return README.format(
        name=facts.name, kind=KINDS[facts.kind], file=facts.file, folder=facts.folder, seed=facts.seed,
        columns=", ".join(f"{role} `{column}`" for role, column in facts.roles.items()),
        counts="\n".join(f"| {split} | {count:,} |" for split, count in facts.counts.items()),
        choices=f"Choices: {', '.join(facts.choices)}.\n" if facts.choices else "",
        said=f"\nOf the file:\n\n{said}" if said else "",
    )  # fmt: skip
