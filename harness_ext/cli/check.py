"""`harness-ext check`: check tasks before any model is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness_ext.cli.parser import CHECK_FAILED, add_explain, add_include_path, add_no_code, command_parser
from harness_ext.cli.trust import task_code
from harness_ext.errors import HarnessExtError


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext check`."""
    parser = command_parser(
        "check", run, "Check tasks before any model is loaded; exit code 1 if one is broken.",
        "  harness-ext check sst2_choice\n  harness-ext check tasks/ --model smollm2-135m-instruct\n"
        "  harness-ext check --explain C20",
    )  # fmt: skip
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="task names, YAML files, or folders of YAML files")
    parser.add_argument(
        "--model", metavar="MODEL", help="check answers and labels with the tokenizer of this model, too"
    )
    add_include_path(parser)
    add_no_code(parser)
    add_explain(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the findings about the tasks."""
    if not options.tasks:
        raise HarnessExtError("check needs a TASK: a name, a YAML file or a folder; see harness-ext check --help")
    return _check(options)


def _check(options: argparse.Namespace) -> int:
    from harness_ext.check.child import check_in_child
    from harness_ext.check.report import count

    place = _tokenizer_place(options.model) if options.model else None
    with task_code(options.tasks, options.include_path, no_code=options.no_code):
        reports = check_in_child(options.tasks, include_path=options.include_path, model=place)
    for report in reports:
        for finding in report.findings:
            print(finding)
        if report.verified:
            print(f"{report.name}: ok, {report.verified}")
    print(count(reports))
    return CHECK_FAILED if any(report.broken for report in reports) else 0


def _tokenizer_place(model: str) -> str:
    """A model that can be loaded here, or a folder that holds a tokenizer alone."""
    from harness_ext.models.sources import resolve_model

    folder = Path(model)
    is_tokenizer = (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists()
    return model if is_tokenizer else resolve_model(model)
