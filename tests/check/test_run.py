"""`harness-ext check` on planted defects: each is reported at its line, under its id, with a remedy."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer
from versions import LM_EVAL_05

from harness_ext.catalogue import CATALOGUE
from harness_ext.check.report import Report
from harness_ext.check.run import check_tasks
from harness_ext.check.tokens import encoder
from harness_ext.errors import TaskError
from harness_ext.findings import Finding
from harness_ext.new_task.make import new_task
from harness_ext.protocol.documents import DATA_VARIABLE
from harness_ext.protocol.task_folders import tasks_path

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS = ("apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "harbor", "island", "jungle")

CHOICE = """\
task: made
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: made
  data_dir: data
  choices: [good, bad]
training_split: train
validation_split: validation
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Text: {{text}}\\nLabel:"
doc_to_choice: choices
doc_to_target: label
process_results: !function harness_ext.hooks.score_choice
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: brier
    aggregation: mean
    higher_is_better: false
  - metric: log_loss
    aggregation: mean
    higher_is_better: false
  - metric: macro_f1
    aggregation: !function harness_ext.hooks.macro_f1
    higher_is_better: true
  - metric: mcc
    aggregation: !function harness_ext.hooks.mcc
    higher_is_better: true
  - metric: ece
    aggregation: !function harness_ext.hooks.ece
    higher_is_better: false
  - metric: auroc
    aggregation: !function harness_ext.hooks.auroc
    higher_is_better: true
  - metric: majority_baseline
    aggregation: !function harness_ext.hooks.majority_baseline
    higher_is_better: true
  - metric: top_class_share
    aggregation: !function harness_ext.hooks.top_class_share
    higher_is_better: false
metadata:
  version: 1.0
  primary_metric: acc
  metric_scale: 1
"""
GENERATE = """\
task: made
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: made
  data_dir: data
training_split: train
validation_split: validation
fewshot_split: train
output_type: generate_until
doc_to_text: "Question: which word is in {{text}}?\\nAnswer:"
doc_to_target: answer
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 16
process_results: !function scoring.exact
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
SCORING = """\
def exact(doc, results):
    return {"exact": float(results[0].strip() == doc["answer"])}

def unstripped(doc, results):
    return {"exact": float(results[0] == doc["answer"])}

def always(doc, results):
    return {"exact": 1.0}

def known_word(doc, results):
    return {"exact": float(results[0].strip() != "zebra crossing")}

def half(doc, results):
    return {"exact": 0.5 * exact(doc, results)["exact"]}

def percent(doc, results):
    return {"exact": 100 * exact(doc, results)["exact"]}

def failing(doc, results):
    return {"exact": doc["answr"]}

def failing_on_nothing(doc, results):
    return {"exact": float(results[0].split()[0] == doc["answer"])}

def misnamed(doc, results):
    return {"exakt": exact(doc, results)["exact"]}

def wrong_abstention(doc, results):
    return {"exact": exact(doc, results)["exact"], "abstain_baseline": 1.0}

def none(docs):
    raise RuntimeError("no documents today")
"""


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"the {word} number {n}", "label": n % 2, "answer": word}
        for n in range(start, start + count)
        for word in (WORDS[n % len(WORDS)],)
    ]


def write(folder: Path, yaml: str, **splits: Sequence[dict[str, Any]]) -> Path:
    """A task folder: task.yaml, scoring.py and the splits of data/."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, documents in {"train": rows(0, 30), "validation": rows(100, 20), **splits}.items():
        lines = "".join(json.dumps(row) + "\n" for row in documents)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
    (folder / "scoring.py").write_text(SCORING)
    (folder / "task.yaml").write_text(yaml)
    return folder


def findings_in(reports: Sequence[Report], *, id: str | None = None) -> list[Finding]:
    return [finding for report in reports for finding in report.findings if id in (None, finding.id)]


# -- clean -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("yaml", [CHOICE, GENERATE], ids=["choice", "generate"])
def test_a_sound_task_is_clean(yaml: str, tmp_path: Path) -> None:
    (report,) = check_tasks([str(write(tmp_path, yaml))])
    assert report.findings == ()
    assert report.verified is not None
    assert "20 documents of validation, 30 to train on" in report.verified
    assert "gold answers 1, of wrong ones 0, on 20" in report.verified


def test_our_tasks_are_clean() -> None:
    reports = check_tasks([str(tasks_path())])
    assert [finding for finding in findings_in(reports) if finding.level == "error"] == []
    checked = {report.name for report in reports if report.verified}
    assert {"sst2_choice", "sst2_generate", "squad_v2_generate"} <= checked


# -- the matrix --------------------------------------------------------------------------------------------------


class Defect(NamedTuple):
    """A change that breaks a sound task, and what its finding must contain."""

    yaml: str
    change: tuple[str, str]
    id: str
    expected_parts: tuple[str, ...]
    line: str | None = None  # text of the line it is found at; None for the file's first
    level: str = "error"
    splits: dict[str, Sequence[dict[str, Any]]] = {}  # noqa: RUF012  never changed


def with_rows(split: str, *more: dict[str, Any]) -> dict[str, Sequence[dict[str, Any]]]:
    sound = {"train": rows(0, 30), "validation": rows(100, 20)}[split]
    return {split: [*sound, *more]}


SAME = "task: made\n"
HOOK = "process_results: !function scoring.exact\n"
METRIC = "  - metric: exact\n    aggregation: mean\n    higher_is_better: true\n"
TEXT = 'doc_to_text: "Text: {{text}}\\nLabel:"\n'
QUESTION = 'doc_to_text: "Question: which word is in {{text}}?\\nAnswer:"\n'

DEFECTS: dict[str, Defect] = {
    # the text of the YAML
    "tab": Defect(CHOICE, ("  data_dir: data", "\tdata_dir: data"), "C01", ("tab",), "\tdata_dir"),
    "unclosed quote": Defect(CHOICE, (TEXT, 'doc_to_text: "Text\n'), "C01", ("cannot be read",), "..."),
    "colon in a text": Defect(CHOICE, (TEXT, "doc_to_text: Text: {{text}}\n"), "C01", ("quotes",), "doc_to_text"),
    "unknown tag": Defect(
        CHOICE, ("!function harness_ext.hooks.load_documents", "!func x.y"), "C01", ("!func",), "custom"
    ),
    "not a mapping": Defect(CHOICE, (CHOICE, "- task: made\n"), "C02", ("a list", "key: value")),
    "empty": Defect(CHOICE, (CHOICE, "# nothing yet\n"), "C02", ("empty",)),
    "key twice": Defect(CHOICE, (SAME, SAME + TEXT), "C03", ("'doc_to_text'", "line 2"), 'doc_to_text: "Text'),
    "include missing": Defect(CHOICE, (SAME, SAME + "include: _base.yaml\n"), "C05", ("'_base.yaml'",), "include"),
    "include of itself": Defect(CHOICE, (SAME, SAME + "include: task.yaml\n"), "C05", ("'task.yaml'",), "include"),
    # keys, functions, values
    "mistyped key": Defect(
        CHOICE, ("doc_to_target", "doc_to_taget"), "C04", ("did you mean 'doc_to_target'",), "doc_to_taget"
    ),
    "unknown key": Defect(CHOICE, (SAME, SAME + "zebra: 1\n"), "C04", ("'zebra'",), "zebra"),
    "mistyped dataset_kwargs": Defect(CHOICE, ("data_dir", "datadir"), "C04", ("did you mean 'data_dir'",), "datadir"),
    "mistyped generation_kwargs": Defect(
        GENERATE, ("max_gen_toks", "max_gen_tokens"), "C04", ("did you mean 'max_gen_toks'",), "max_gen_tokens"
    ),
    "no name": Defect(CHOICE, (SAME, ""), "C06", ("`task: NAME`",)),
    "no such module": Defect(
        CHOICE,
        ("harness_ext.hooks.score_choice", "scores.choice"),
        "C07",
        ("no module 'scores'", "scores.py"),
        "process_results",
    ),
    "no such function": Defect(
        CHOICE, ("score_choice", "score_chioce"), "C07", ("did you mean 'score_choice'",), "process_results"
    ),
    "no such function beside": Defect(
        GENERATE, ("scoring.exact", "scoring.exactly"), "C07", ("'exactly'", "did you mean 'exact'"), "process_results"
    ),
    "no module named": Defect(GENERATE, ("scoring.exact", "exact"), "C07", ("names no module",), "process_results"),
    "output type": Defect(
        CHOICE, ("multiple_choice", "multiple_choices"), "C08", ("did you mean 'multiple_choice'",), "output_type"
    ),
    "metric_list a mapping": Defect(GENERATE, (METRIC, "  metric: exact\n"), "C08", ("not a list",), "metric_list"),
    "no choices": Defect(CHOICE, ("doc_to_choice: choices\n", ""), "C08", ("without doc_to_choice",), "output_type"),
    "unknown sampler": Defect(
        CHOICE,
        (SAME, SAME + "fewshot_config: {sampler: frist_n}\n"),
        "C08",
        ("did you mean 'first_n'",),
        "fewshot_config",
    ),
    "no documents named": Defect(
        GENERATE,
        ("custom_dataset: !function harness_ext.hooks.load_documents\n", ""),
        "C08",
        ("custom_dataset", "dataset_path"),
        "task: made",
    ),
    # metrics and filters
    "unknown metric": Defect(
        GENERATE,
        (HOOK + "metric_list:\n" + METRIC, "metric_list:\n" + METRIC.replace("exact", "exact_mach")),
        "C09",
        ("did you mean 'exact_match'",),
        "  - metric",
    ),
    "no aggregation": Defect(
        GENERATE, ("    aggregation: mean\n", ""), "C10", ("'exact' has no aggregation",), "  - metric"
    ),
    "no metric_list": Defect(
        GENERATE, ("metric_list:\n" + METRIC, ""), "C10", ("without metric_list",), "process_results"
    ),
    "unknown aggregation": Defect(
        GENERATE, ("aggregation: mean", "aggregation: maen"), "C11", ("did you mean 'mean'",), "    aggregation"
    ),
    "unknown filter": Defect(
        GENERATE,
        (HOOK, HOOK + "filter_list:\n  - name: f\n    filter:\n      - function: take_frist\n"),
        "C12",
        ("did you mean 'take_first'",),
        "      - function",
    ),
    "filter without name": Defect(
        GENERATE,
        (HOOK, HOOK + "filter_list:\n  - filter: [{function: take_first}]\n"),
        "C12",
        ("needs `name:`",),
        "  - filter",
    ),
    "primary metric": Defect(
        CHOICE, ("primary_metric: acc", "primary_metric: accc"), "C33", ("'accc'", "did you mean 'acc'"), "  primary"
    ),
    # documents
    "no such folder": Defect(
        CHOICE, ("data_dir: data", "data_dir: dta"), "C14", ("dta", "check the path"), "dataset_kwargs"
    ),
    "no such file": Defect(
        GENERATE, ("data_dir: data", "data_files: {train: data/t.csv}"), "C14", ("t.csv",), "dataset_kwargs"
    ),
    "empty file": Defect(
        GENERATE, (SAME, SAME), "C15", ("train.jsonl is empty",), "dataset_kwargs", splits={"train": []}
    ),
    "label outside the choices": Defect(
        CHOICE, ("[good, bad]", "[good]"), "C15", ("outside the 1 choices",), "dataset_kwargs"
    ),
    "not in the catalogue": Defect(GENERATE, ("  data_dir: data\n", ""), "C15", ("'made'",), "dataset_kwargs"),
    "no such split": Defect(
        CHOICE,
        ("validation_split: validation", "validation_split: valid"),
        "C16",
        ("'valid'", "did you mean 'validation'"),
        "validation_split",
    ),
    "no such training split": Defect(
        CHOICE,
        ("training_split: train", "training_split: training"),
        "C16",
        ("'training'",),
        "training_split",
        "warning",
    ),
    "nothing to evaluate": Defect(CHOICE, ("validation_split: validation\n", ""), "C16", ("nothing to evaluate",)),
    "process_docs fails": Defect(
        GENERATE,
        (SAME, SAME + "process_docs: !function scoring.none\n"),
        "C18",
        ("no documents today",),
        "process_docs",
    ),
    # templates
    "no such column": Defect(CHOICE, ("{{text}}", "{{txt}}"), "C17", ("'txt'", "did you mean 'text'"), "doc_to_text"),
    "silently empty": Defect(CHOICE, ("{{text}}", "{{body | default('')}}"), "C17", ("'body'",), "doc_to_text"),
    "template syntax": Defect(CHOICE, ("{{text}}", "{{text}"), "C18", ("unexpected '}'",), "doc_to_text"),
    "template fails": Defect(CHOICE, ("{{text}}", "{{text.words[0]}}"), "C18", ("document 0",), "doc_to_text"),
    "constant prompt": Defect(CHOICE, (TEXT, "doc_to_text: txt\n"), "C19", ("did you mean 'text'"), "doc_to_text"),
    "constant target": Defect(
        GENERATE,
        ("doc_to_target: answer", "doc_to_target: answers"),
        "C19",
        ("did you mean 'answer'",),
        "doc_to_target",
    ),
    "single braces": Defect(CHOICE, ("{{text}}", "{text}"), "C19", ("single braces",), "doc_to_text"),
    "missing value": Defect(
        CHOICE,
        (SAME, SAME),
        "C19",
        ("'text'", "None", "first 20"),
        "doc_to_text",
        splits=with_rows("validation", {"text": None, "label": 0, "answer": "a"}),
    ),
    "empty answer": Defect(
        GENERATE,
        (SAME, SAME),
        "C19",
        ("renders to nothing", "1 of 21"),
        "doc_to_target",
        splits=with_rows("validation", {"text": "x", "label": 0, "answer": ""}),
    ),
    "doubled blank": Defect(CHOICE, ("Label:", "Label: "), "C20", ("doubled",), "doc_to_text", "warning"),
    "choice with a blank": Defect(
        CHOICE, ("[good, bad]", '[" good", " bad"]'), "C20", ("begin with white space",), None, "warning"
    ),
    "glued": Defect(
        CHOICE, (SAME, SAME + 'target_delimiter: ""\n'), "C20", ("target_delimiter",), "target_delimiter", "warning"
    ),
    "glued description": Defect(
        CHOICE, (SAME, SAME + 'description: "Judge."\n'), "C20", ("description",), "description", "warning"
    ),
    # choices
    "target outside": Defect(
        CHOICE,
        ("doc_to_target: label", 'doc_to_target: "{{label + 1}}"'),
        "C21",
        ("2, outside the 2",),
        "doc_to_target",
    ),
    "target no choice": Defect(
        CHOICE, ("doc_to_target: label", "doc_to_target: answer"), "C21", ("the 2 choices",), "doc_to_target"
    ),
    "same choice twice": Defect(CHOICE, ("[good, bad]", "[good, good]"), "C22", ("'good' twice",), "doc_to_choice"),
    "choices no list": Defect(
        CHOICE, ("doc_to_choice: choices", 'doc_to_choice: "{{label}}"'), "C22", ("not a list",), "doc_to_choice"
    ),
    # generation
    "stop in the delimiter": Defect(
        GENERATE, (SAME, SAME + 'target_delimiter: "\\n"\n'), "C23", ("target_delimiter",), "target_delimiter"
    ),
    "stop in answers": Defect(GENERATE, ('until: ["\\n"]', 'until: ["e"]'), "C23", ("'e'", "gold answers"), "  until"),
    "too few tokens": Defect(
        GENERATE, ("max_gen_toks: 16", "max_gen_toks: 1"), "C24", ("too small", "raise it"), "  max_gen_toks"
    ),
    "same first token": Defect(
        CHOICE, ("[good, bad]", "[very good, very bad]"), "C25", ("same token",), "doc_to_choice", "warning"
    ),
    # leaks
    "few-shot leak": Defect(
        CHOICE,
        ("fewshot_split: train\n", "fewshot_split: validation\nnum_fewshot: 5\n"),
        "C26",
        ("of 20 documents", "another fewshot_split"),
        "fewshot_split",
    ),
    "few-shot leak to come": Defect(
        CHOICE,
        ("fewshot_split: train\n", "fewshot_split: validation\n"),
        "C26",
        ("--num_fewshot",),
        "fewshot_split",
        "warning",
    ),
    "overlap": Defect(
        CHOICE,
        (SAME, SAME),
        "C27",
        ("20 of 20", "text"),
        "training_split",
        "warning",
        splits={"train": rows(90, 40)},
    ),
    "trains on its test": Defect(
        CHOICE, ("training_split: train", "training_split: validation"), "C27", ("tested on",), "training_split"
    ),
    "cannot be trained on": Defect(
        CHOICE, ("training_split: train\n", ""), "C36", ("no training_split",), "task", "note"
    ),
    # the dry score
    "answer not stripped": Defect(
        GENERATE, ("scoring.exact", "scoring.unstripped"), "C28", ("score 0 exact", "document 0"), "process_results"
    ),
    "exact_match not stripped": Defect(
        GENERATE,
        (
            HOOK + "metric_list:\n" + METRIC,
            "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n",
        ),
        "C28",
        ("score 0 exact_match",),
        "metric_list",
    ),
    "half marks": Defect(GENERATE, ("scoring.exact", "scoring.half"), "C28", ("0.5 exact, not 1",), "process_results"),
    "always right": Defect(
        GENERATE, ("scoring.exact", "scoring.always"), "C29", ("wrong answer", "1 exact of 1"), "process_results"
    ),
    "any word is right": Defect(
        GENERATE, ("scoring.exact", "scoring.known_word"), "C29", ("another document's answer",), "process_results"
    ),
    "wrong abstain baseline": Defect(
        GENERATE, ("scoring.exact", "scoring.wrong_abstention"), "C30", ("abstain_baseline",), "process_results"
    ),
    "hook fails": Defect(
        GENERATE, ("scoring.exact", "scoring.failing"), "C31", ("KeyError", "'answr'", "document 0"), "process_results"
    ),
    "hook fails on nothing": Defect(
        GENERATE, ("scoring.exact", "scoring.failing_on_nothing"), "C31", ("empty answer",), "process_results"
    ),
    "misnamed metric": Defect(
        GENERATE, ("scoring.exact", "scoring.misnamed"), "C32", ("did you mean 'exakt'",), "metric_list"
    ),
    "scale": Defect(GENERATE, ("scoring.exact\n", "scoring.percent\n"), "C34", ("set it to 100",), "  metric_scale"),
    "one answer": Defect(
        GENERATE,
        (SAME, SAME),
        "C35",
        ("'apple'",),
        "doc_to_target",
        "warning",
        splits={"validation": [{"text": f"x{n}", "label": 0, "answer": "apple"} for n in range(9)]},
    ),
    "wrong way": Defect(
        GENERATE, ("higher_is_better: true", "higher_is_better: false"), "C28", ("lower is better",), "metric_list"
    ),
}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_is_found(defect: Defect, tmp_path: Path, tiny_model_folder: Path) -> None:
    old, new = defect.change
    assert old in defect.yaml
    yaml = defect.yaml.replace(old, new)
    if defect.id == "C34":
        yaml = yaml.replace("  version: 1.0\n", "  version: 1.0\n  metric_scale: 1\n")
    folder = write(tmp_path, yaml, **defect.splits)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    reports = check_tasks([str(folder)], encode=lambda text: tokenizer.encode(text, add_special_tokens=False))
    matching = [finding for finding in findings_in(reports, id=defect.id) if finding.level == defect.level]
    listing = "\n".join(map(str, findings_in(reports)))
    assert matching, listing
    finding = next(
        (each for each in matching if not [part for part in defect.expected_parts if part not in str(each)]), None
    )
    assert finding is not None, listing
    assert finding.numbers["file"] == str(folder / "task.yaml")
    if defect.line not in (None, "..."):
        line = yaml.splitlines()[finding.numbers["line"] - 1]
        assert line.lstrip(" \t-").startswith(defect.line.lstrip(" \t-")), listing
    assert "\n" not in str(finding)
    assert any(report.broken for report in reports) == any(each.level == "error" for each in findings_in(reports))
    others = {each.id for each in findings_in(reports) if each.level == "error"} - {defect.id}
    assert not others - {"C32", "C28", "C29"} or defect.level != "error", listing


def test_every_id_is_explained_and_used() -> None:
    tested = {defect.id for defect in DEFECTS.values()}
    elsewhere = {"C41", "C13", "C37", "C38", "C39", "C40"}
    assert tested | elsewhere == {id for id in CATALOGUE if id.startswith("C")}
    assert len(DEFECTS) >= 30


# -- folders, groups, names --------------------------------------------------------------------------------------


def test_two_files_of_one_name_and_a_yml(tmp_path: Path) -> None:
    folder = write(tmp_path, CHOICE)
    (folder / "zweite.yaml").write_text(CHOICE)
    (folder / "third.yml").write_text(CHOICE.replace("task: made", "task: third"))
    (folder / "_shared.yaml").write_text("zebra: 1\n")
    reports = check_tasks([str(folder)])
    assert [report.name for report in reports] == ["made", "third", "made"]
    assert [finding.id for finding in findings_in(reports)] == ["C40", "C06"]


def test_includes_keep_their_lines(tmp_path: Path) -> None:
    folder = write(tmp_path, "include: _base.yaml\ntask: made\n")
    (folder / "_base.yaml").write_text(CHOICE.replace("task: made\n", "").replace("{{text}}", "{{txt}}"))
    (finding,) = findings_in(check_tasks([str(folder)]))
    assert (finding.id, Path(finding.numbers["file"]).name) == ("C17", "_base.yaml")
    lines = CHOICE.splitlines()
    assert finding.numbers["line"] == lines.index(next(line for line in lines if "doc_to_text" in line))


def test_a_group_with_settings_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path, CHOICE)
    (folder / "pair.yaml").write_text("group: pair\ntask:\n  - made\n  - task: made\n    doc_to_text: '{{txt}}'\n")
    assert any("txt" in str(finding) for finding in findings_in(check_tasks([str(folder)])))
    (folder / "pair.yaml").write_text("group: pair\ntask: [made, nobody]\n")
    (finding,) = findings_in(check_tasks([str(folder)]))
    assert finding.id == "C13"


@pytest.mark.skipif(LM_EVAL_05, reason="lm-eval 0.5 takes a list that a template writes for a text")
def test_several_answers_and_a_metric_that_becomes_binary(tmp_path: Path) -> None:
    yaml = GENERATE.replace(HOOK, "").replace("doc_to_target: answer", "doc_to_target: \"{{[answer, 'x']}}\"")
    yaml = yaml.replace(METRIC, "  - metric: chrf\n    aggregation: mean\n    higher_is_better: true\n")
    assert findings_in(check_tasks([str(write(tmp_path, yaml))]), id="C37")


ROLLING = """\
task: made
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: made
  data_dir: data
training_split: train
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
metadata:
  version: 1.0
"""


@pytest.mark.parametrize("prompt", ['doc_to_text: ""\n', 'doc_to_text: "{{text}}"\n', "doc_to_text: page\n"], ids=repr)
def test_a_rolling_task_has_no_prompt(prompt: str, tmp_path: Path, tiny_model_folder: Path) -> None:
    """Like wikitext's YAML, on local text: lm-eval scores doc_to_target and uses no prompt."""
    folder = write(tmp_path, ROLLING.replace('doc_to_text: ""\n', prompt))
    (report,) = check_tasks([str(folder)], encode=encoder(str(tiny_model_folder)))
    assert [finding for finding in report.findings if finding.level != "note"] == []
    assert [finding.id for finding in report.findings] == ["C36"]  # no answer to train on
    assert report.verified is not None
    assert "20 documents of validation" in report.verified
    assert "nothing to train on" in report.verified


def test_the_text_of_a_rolling_task_is_checked(tmp_path: Path) -> None:
    documents = [*rows(100, 20), {"text": "", "label": 0, "answer": "x"}]
    (finding,) = findings_in(check_tasks([str(write(tmp_path, ROLLING, validation=documents))]), id="C19")
    assert "doc_to_target renders to nothing" in str(finding)
    (finding,) = findings_in(check_tasks([str(write(tmp_path, ROLLING.replace("{{text}}", "{{page}}")))]), id="C17")
    assert finding.level == "error"
    (finding,) = findings_in(check_tasks([str(write(tmp_path, ROLLING.replace('doc_to_text: ""\n', "")))]), id="C18")
    assert "add an empty one" in str(finding)  # lm-eval fails without


SENTENCES = """\
task: made
custom_dataset: !function harness_ext.hooks.load_documents
dataset_kwargs:
  dataset: made
  data_dir: data
validation_split: validation
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[text, answer]}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def test_choices_may_be_scored_without_a_prompt(tmp_path: Path) -> None:
    """Like BLiMP: which of two sentences is more likely."""
    (report,) = check_tasks([str(write(tmp_path, SENTENCES))])
    assert not report.broken
    generating = GENERATE.replace(QUESTION, 'doc_to_text: ""\n')
    (finding,) = findings_in(check_tasks([str(write(tmp_path, generating))]), id="C19")
    assert "doc_to_text" in str(finding)  # generation needs a prompt


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    """datasets raises a bare StopIteration."""
    (tmp_path / "empty.jsonl").write_text("")
    own = SENTENCES.partition("dataset_kwargs")[2].partition("validation_split")[2]
    (tmp_path / "made.yaml").write_text(
        "task: made\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    validation: {tmp_path / 'empty.jsonl'}\nvalidation_split{own}"
    )
    (finding,) = findings_in(check_tasks([str(tmp_path / "made.yaml")]), id="C15")
    assert "its files are empty" in str(finding)
    assert "StopIteration" not in str(finding)


def test_a_task_just_made_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": f"the {WORDS[n % 10]} no {n}", "label": n % 2}) + "\n" for n in range(60))
    (tmp_path / "rows.jsonl").write_text(lines)
    new_task("my_words", "choice", "rows.jsonl", labels={"0": "bad", "1": "good"})
    (report,) = check_tasks(["my_words"])
    assert (report.name, report.broken) == ("my_words", False)
    assert check_tasks(["tasks/my_words"]) == [report]


@pytest.mark.parametrize("name", ["no/such/folder", "sst2_choise", "nowhere.yaml"])
@pytest.mark.slow
def test_unknown_names(name: str) -> None:
    with pytest.raises(TaskError):
        check_tasks([name])


def test_a_folder_without_tasks(tmp_path: Path) -> None:
    (tmp_path / "_base.yaml").write_text("a: 1\n")
    with pytest.raises(TaskError, match="contains no task"):
        check_tasks([str(tmp_path)])


def test_documents_out_of_reach_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    yaml = CHOICE.replace("dataset: made", "dataset: sst2").replace("  data_dir: data\n", "")
    (report,) = check_tasks([str(write(tmp_path / "task", yaml))])
    assert [(finding.id, finding.level) for finding in report.findings] == [("C38", "note")]
    assert (report.broken, report.verified) == (False, None)


# -- lm-eval's own tasks -----------------------------------------------------------------------------------------

SQUAD_METRIC = """
import collections
import re
import string
import datasets
import evaluate

def normalize(text):
    text = re.sub(r"\\b(a|an|the)\\b", " ", "".join(c for c in text.lower() if c not in string.punctuation))
    return " ".join(text.split())

def f1(gold, said):
    gold, said = normalize(gold).split(), normalize(said).split()
    if not gold or not said:
        return float(gold == said)
    same = sum((collections.Counter(gold) & collections.Counter(said)).values())
    return 2 * same / (len(gold) + len(said))

class SquadV2(evaluate.Metric):
    def _info(self):
        features = datasets.Features({
            "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string"),
                            "no_answer_probability": datasets.Value("float32")},
            "references": {"id": datasets.Value("string"), "answers": datasets.features.Sequence(
                {"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})},
        })
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, no_answer_threshold=1.0):
        scores = {"HasAns": [], "NoAns": []}
        for said, gold in zip(predictions, references):
            golds = [t for t in gold["answers"]["text"] if normalize(t)] or [""]
            text = said["prediction_text"]
            if said["no_answer_probability"] > no_answer_threshold:
                pair = (float(golds == [""]), float(golds == [""]))
            else:
                pair = (max(float(normalize(g) == normalize(text)) for g in golds), max(f1(g, text) for g in golds))
            scores["NoAns" if golds == [""] else "HasAns"].append(pair)
        everything = scores["HasAns"] + scores["NoAns"]
        result = {}
        for name, pairs in {"": everything, "HasAns_": scores["HasAns"], "NoAns_": scores["NoAns"]}.items():
            if not pairs:  # the official script omits such a class
                continue
            for number, metric in enumerate(("exact", "f1")):
                result[name + metric] = 100 * sum(pair[number] for pair in pairs) / len(pairs)
        result["best_exact"], result["best_f1"] = result["exact"], result["f1"]
        return result
"""


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real SQuAD v2 at hand")
def test_squadv2_cannot_reach_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own YAML and task.py, untouched, over real documents.

    Neither the data set nor the metric of `evaluate` comes with a package, and both are looked for in the working
    folder before the Hub: so they stand there. The metric follows the official evaluate-v2.0 logic.
    """
    import lm_eval.tasks
    import pyarrow.parquet

    for split in ("train", "validation"):
        table = pyarrow.parquet.read_table(SHARED_DATA / "squad_v2" / f"{split}.parquet").slice(0, 300)
        (tmp_path / "lighteval" / "squad_v2").mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "lighteval" / "squad_v2" / f"{split}.parquet")
    (tmp_path / "squad_v2").mkdir()
    (tmp_path / "squad_v2" / "squad_v2.py").write_text(SQUAD_METRIC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (report,) = check_tasks([str(Path(lm_eval.tasks.__file__).parent / "squadv2" / "squadv2.yaml")])
    (finding,) = findings_in([report], id="C28")
    assert "NoAns_exact 0" in finding.text
    assert "HasAns_exact 100" in finding.text
    assert "'unanswerable'" in finding.text
    assert report.broken


def test_yaml_text_is_checked_as_written(tmp_path: Path) -> None:
    """A byte order mark and Windows line endings are accepted; another encoding is not."""
    folder = write(tmp_path, CHOICE)
    (folder / "task.yaml").write_bytes(b"\xef\xbb\xbf" + CHOICE.replace("\n", "\r\n").encode())
    assert not findings_in(check_tasks([str(folder)]))
    (folder / "task.yaml").write_bytes(textwrap.dedent(CHOICE).replace("Text:", "Tëxt:").encode("latin-1"))
    (finding,) = findings_in(check_tasks([str(folder)]))
    assert (finding.id, "UTF-8" in finding.text) == ("C01", True)
