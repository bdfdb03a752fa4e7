"""`harness-ext tasks-path`: print the folder of the bundled tasks, for stock lm-eval."""

from __future__ import annotations

import argparse

from harness_ext.cli.parser import command_parser


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext tasks-path`."""
    return command_parser(
        "tasks-path", run, "Print the folder of the tasks that come with harness-ext.",
        "  lm_eval --model hf --model_args pretrained=gpt2 --include_path $(harness-ext tasks-path) -t sst2_choice",
    )  # fmt: skip


def run(_: argparse.Namespace) -> int:
    """Print the folder."""
    from harness_ext.protocol.task_folders import tasks_path

    print(tasks_path())
    return 0
