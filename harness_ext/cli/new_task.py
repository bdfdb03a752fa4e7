"""`harness-ext new-task`: rows of files, or of a Hub data set, become a task."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from harness_ext.cli.parser import command_parser
from harness_ext.errors import HarnessExtError

ROLES = ("text", "label", "question", "answer", "context")


def parser() -> argparse.ArgumentParser:
    """What `harness-ext new-task` takes."""
    made = command_parser(
        "new-task", run, "Make a task from CSV, JSON lines or parquet files, or from a data set on the Hub: a folder "
        "with its YAML, documents in splits, a README and a test. Asks nothing.",
        "  harness-ext new-task news --kind choice --data news.csv\n"
        "  harness-ext new-task news --kind choice --data news.csv --labels 0=World 1=Sports 2=Business 3=Science\n"
        "  harness-ext new-task faq --kind generate --data faq.jsonl --question-column ask --answer-column reply\n"
        "  harness-ext new-task news --kind choice --train train.csv --validation dev.csv --test test.csv\n"
        "  harness-ext new-task news --kind choice --data fancyzhx/ag_news@main\n"
        "  harness-ext new-task reading --kind generate --data squad.jsonl --unanswerable",
    )  # fmt: skip
    made.add_argument("name", metavar="NAME", help="of the task")
    made.add_argument(
        "--kind", required=True, choices=("choice", "generate"), help="one of several labels, or an answer in words"
    )
    made.add_argument("--data", metavar="FILE|HUB_ID", help="CSV, JSON lines or parquet with column names, whose "
                      "splits are drawn; or a data set on the Hub: org/name[:config][@revision]")  # fmt: skip
    made.add_argument("--train", metavar="FILE", help="of data that are in splits already, instead of --data")
    made.add_argument("--validation", metavar="FILE|SHARE", help="with --train: a file; else the share of the rows to "
                      "evaluate on, at most 2,000 of them (default: 0.2)")  # fmt: skip
    made.add_argument("--test", metavar="FILE|SHARE", help="a test split, evaluated instead: a file, or a share")
    made.add_argument("--output", metavar="DIR", help="the folder to make (default: tasks/NAME)")
    for role in ROLES:
        made.add_argument(f"--{role}-column", metavar="COLUMN", help="which it is (default: told by name and content)")
    made.add_argument("--labels", nargs="+", default=[], metavar="LABEL=WORD", help="words for labels that are numbers")
    made.add_argument("--unanswerable", action="store_true", default=None, help="a question may have no answer, and "
                      "the right reply is then 'unanswerable' (default: told by the columns of SQuAD)")  # fmt: skip
    made.add_argument("--seed", type=int, default=0, help="of the draw of splits (default: 0)")
    made.add_argument("--overwrite", action="store_true", help="replace the task's folder")
    return made


def run(options: argparse.Namespace) -> int:
    """Make the task, and print what to do with it."""
    from harness_ext.new_task.make import new_task

    if wrong := [pair for pair in options.labels if not all(pair.partition("="))]:
        raise HarnessExtError(f"--labels {wrong[0]!r} is no LABEL=WORD; write it like 0=World")
    data = _data(options)
    drawn = isinstance(data, str)
    made = new_task(
        options.name,
        options.kind,
        data,
        output=options.output,
        columns={role: getattr(options, f"{role}_column") for role in ROLES},
        labels=dict(pair.split("=", 1) for pair in options.labels),
        validation=_share("--validation", options.validation) if drawn else None,
        test=_share("--test", options.test) if drawn else None,
        seed=options.seed,
        unanswerable=options.unanswerable,
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
    if "train" in made.counts:
        print(f"      harness-ext train {made.name} --include_path {made.folder} --model smollm2-135m-instruct "
              f"--output adapters/{made.name}")  # fmt: skip
    return 0


def _data(options: argparse.Namespace) -> str | Mapping[str, str]:
    """One file or Hub id, or a file for each split."""
    if options.data and options.train:
        raise HarnessExtError("--data is one file whose splits are drawn, --train a split; give one of the two")
    if options.data:
        return str(options.data)
    if not options.train:
        raise HarnessExtError("no data are named; add --data FILE, or --train FILE --validation FILE")
    files = {"train": options.train, "validation": options.validation, "test": options.test}
    return {split: file for split, file in files.items() if file is not None}


def _share(flag: str, value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        raise HarnessExtError(
            f"{flag} {value!r} is no share of the rows, such as 0.2; a file for each split goes with --train FILE"
        ) from None
