"""`harness-ext new-task`: a file of rows becomes a task."""

from __future__ import annotations

import argparse

from harness_ext.cli.parser import command_parser
from harness_ext.errors import HarnessExtError


def parser() -> argparse.ArgumentParser:
    """What `harness-ext new-task` takes."""
    made = command_parser(
        "new-task", run, "Make a task from a CSV, JSON lines or parquet file: a folder with its YAML, documents "
        "in splits, a README and a test. Asks nothing.",
        "  harness-ext new-task news --kind choice --data news.csv\n"
        "  harness-ext new-task news --kind choice --data news.csv --labels 0=World 1=Sports 2=Business 3=Science\n"
        "  harness-ext new-task faq --kind generate --data faq.jsonl --question-column ask --answer-column reply",
    )  # fmt: skip
    made.add_argument("name", metavar="NAME", help="of the task")
    made.add_argument(
        "--kind", required=True, choices=("choice", "generate"), help="one of several labels, or an answer in words"
    )
    made.add_argument("--data", required=True, metavar="FILE", help="CSV, JSON lines or parquet with column names")
    made.add_argument("--output", metavar="DIR", help="the folder to make (default: tasks/NAME)")
    for role in ("text", "label", "question", "answer", "context"):
        made.add_argument(f"--{role}-column", metavar="COLUMN", help="which it is (default: told by name and content)")
    made.add_argument("--labels", nargs="+", default=[], metavar="LABEL=WORD", help="words for labels that are numbers")
    made.add_argument("--validation", type=float, default=0.2, metavar="SHARE", help="to evaluate on, at most 2,000 "
                        "rows (default: 0.2)")  # fmt: skip
    made.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="a test split, evaluated instead")
    made.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    made.add_argument("--overwrite", action="store_true", help="replace the task's folder")
    return made


def run(options: argparse.Namespace) -> int:
    """Make the task, and print what to do with it."""
    from harness_ext.protocol.scaffold import new_task

    if wrong := [pair for pair in options.labels if not all(pair.partition("="))]:
        raise HarnessExtError(f"--labels {wrong[0]!r} is no LABEL=WORD; write it like 0=World")
    made = new_task(
        options.name,
        options.kind,
        options.data,
        output=options.output,
        columns={
            role: getattr(options, f"{role}_column") for role in ("text", "label", "question", "answer", "context")
        },
        labels=dict(pair.split("=", 1) for pair in options.labels),
        validation=options.validation,
        test=options.test,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    documents = ", ".join(f"{count:,} for {split}" for split, count in made.counts.items())
    columns = ", ".join(f"{role} {column!r}" for role, column in made.columns.roles.items())
    print(f"{made.folder}: {documents}; {columns}" + (f"; choices {', '.join(made.choices)}" if made.choices else ""))
    for line in made.said:
        print(f"note: {line}")
    print(f"next: harness-ext check {made.folder}")
    print(f"      harness-ext eval --model_args pretrained=smollm2-135m-instruct --tasks {made.name} "
          f"--include_path {made.folder} --output_path results/{made.name} --log_samples")  # fmt: skip
    print(f"      harness-ext train {made.name} --include_path {made.folder} --model smollm2-135m-instruct "
          f"--output adapters/{made.name}")  # fmt: skip
    return 0
