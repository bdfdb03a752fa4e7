"""`harness-ext new-task`: make a task from files or from a Hub data set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from harness_ext.cli.parser import command_parser, seed
from harness_ext.errors import HarnessExtError

ROLES = ("text", "label", "question", "answer", "context")


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext new-task`."""
    parser = command_parser(
        "new-task", run, "Make a task from CSV, JSON lines or parquet files, or from a data set on the Hub: a folder "
        "with its YAML, its documents in splits, a README and a test. Non-interactive.",
        "  harness-ext new-task news --kind choice --data news.csv\n"
        "  harness-ext new-task news --kind choice --data news.csv --labels 0=World 1=Sports 2=Business 3=Science\n"
        "  harness-ext new-task faq --kind generate --data faq.jsonl --question-column ask --answer-column reply\n"
        "  harness-ext new-task news --kind choice --train train.csv --validation dev.csv --test test.csv\n"
        "  harness-ext new-task news --kind choice --data fancyzhx/ag_news@main\n"
        "  harness-ext new-task reading --kind generate --data squad.jsonl --unanswerable",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="name of the task")
    parser.add_argument(
        "--kind",
        required=True,
        choices=("choice", "generate"),
        help="choice: one of several labels; generate: an answer in words",
    )
    parser.add_argument("--data", metavar="FILE|HUB_ID", help="CSV, JSON lines or parquet file with column names, "
                        "to be split at random; or a data set on the Hub: org/name[:config][@revision]")  # fmt: skip
    parser.add_argument(
        "--train", metavar="FILE", help="training split, for data that are already split (instead of --data)"
    )
    parser.add_argument("--validation", metavar="FILE|SHARE", help="with --train, the validation file; with --data, "
                        "the share of the rows to evaluate on, at most 2,000 rows (default: 0.2)")  # fmt: skip
    parser.add_argument(
        "--test", metavar="FILE|SHARE", help="a test split to evaluate on instead: a file, or a share of the rows"
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the new task (default: tasks/NAME)")
    for role in ROLES:
        parser.add_argument(
            f"--{role}-column", metavar="COLUMN", help=f"column of the {role} (default: by name and content)"
        )
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="LABEL=WORD", help="words for labels that are numbers"
    )
    parser.add_argument("--unanswerable", action="store_true", default=None, help="questions may have no answer; the "
                        "right reply is then 'unanswerable' (default: as the columns of SQuAD suggest)")  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="seed for the random splits (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    return parser


def run(options: argparse.Namespace) -> int:
    """Make the task, and print the commands to continue with."""
    from harness_ext.new_task.make import new_task

    if malformed := [pair for pair in options.labels if not all(pair.partition("="))]:
        raise HarnessExtError(f"--labels {malformed[0]!r} must have the form LABEL=WORD, such as 0=World")
    data = _data(options)
    splits_at_random = isinstance(data, str)
    task = new_task(
        options.name,
        options.kind,
        data,
        output=options.output,
        columns={role: getattr(options, f"{role}_column") for role in ROLES},
        labels=dict(pair.split("=", 1) for pair in options.labels),
        validation=_share("--validation", options.validation) if splits_at_random else None,
        test=_share("--test", options.test) if splits_at_random else None,
        seed=options.seed,
        unanswerable=options.unanswerable,
        overwrite=options.overwrite,
    )
    documents = ", ".join(f"{count:,} for {split}" for split, count in task.counts.items())
    columns = ", ".join(f"{role} {column!r}" for role, column in task.columns.roles.items())
    print(f"{task.folder}: {documents}; {columns}" + (f"; choices {', '.join(task.choices)}" if task.choices else ""))
    for line in task.notes:
        print(f"note: {line}")
    print(f"next: harness-ext check {task.folder}")
    print(f"      harness-ext eval --model_args pretrained=smollm2-135m-instruct --tasks {task.name} "
          f"--include_path {task.folder} --output_path results/{task.name} --log_samples")  # fmt: skip
    if "train" in task.counts:
        print(f"      harness-ext train {task.name} --include_path {task.folder} --model smollm2-135m-instruct "
              f"--output adapters/{task.name}")  # fmt: skip
    return 0


def _data(options: argparse.Namespace) -> str | Mapping[str, str]:
    """One file or Hub id, or one file per split."""
    if options.data and options.train:
        raise HarnessExtError(
            "--data is one file to be split at random, --train one of several splits; give one of the two"
        )
    if options.data:
        return str(options.data)
    if not options.train:
        raise HarnessExtError("no data given; add --data FILE, or --train FILE --validation FILE")
    files = {"train": options.train, "validation": options.validation, "test": options.test}
    return {split: file for split, file in files.items() if file is not None}


def _share(flag: str, value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        raise HarnessExtError(
            f"{flag} {value!r} is not a share of the rows, such as 0.2; with one file per split, use --train FILE"
        ) from None
