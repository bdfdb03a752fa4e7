"""`harness-ext check`: tasks, before any model is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness_ext.cli.parser import CHECK_FAILED, add_include_path, command_parser


def parser() -> argparse.ArgumentParser:
    """What `harness-ext check` takes."""
    made = command_parser(
        "check", run, "Check tasks before any model is loaded; exit code 1 when one is broken.",
        "  harness-ext check sst2_choice\n  harness-ext check tasks/ --model smollm2-135m-instruct",
    )  # fmt: skip
    made.add_argument("tasks", nargs="+", metavar="TASK", help="names, YAML files, or folders of them")
    made.add_argument("--model", metavar="MODEL", help="whose tokenizer to check answers and labels with")
    add_include_path(made)
    return made


def run(options: argparse.Namespace) -> int:
    """Print every finding."""
    from harness_ext.models.sources import resolve_model
    from harness_ext.protocol.check import check_tasks
    from harness_ext.protocol.checks.answers import encoder
    from harness_ext.protocol.checks.findings import count

    encode = None
    if options.model:
        folder = Path(options.model)
        is_tokenizer = (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists()
        encode = encoder(options.model if is_tokenizer else resolve_model(options.model))
    reports = check_tasks(options.tasks, include_path=options.include_path, encode=encode)
    for report in reports:
        for finding in report.findings:
            print(finding)
        if report.verified:
            print(f"{report.name}: ok, {report.verified}")
    print(count(reports))
    return CHECK_FAILED if any(report.broken for report in reports) else 0
