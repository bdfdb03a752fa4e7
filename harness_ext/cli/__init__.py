"""The command line: a thin skin over the library, and the only part that prints. Each command is a module."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import harness_ext
from harness_ext.cli.parser import USAGE_ERROR, Parser
from harness_ext.errors import HarnessExtError

DESCRIPTION = """\
Does this LoRA adapter really beat its base, under the same protocol?

  fetch       a small real model, for machines without the Hugging Face Hub
  train       a LoRA adapter on any lm-eval task with a training split
  eval        a base and its adapters, in one process, by lm-eval
  compare     results, paired by document, with intervals, tests and a verdict
  check       a task, before any model is loaded: exit 1 when it is broken
  new-task    a CSV, JSON lines or parquet file becomes a task
  tasks-path  the folder of our tasks, for stock lm-eval's --include_path
  demo        all of it, in minutes, on a CPU
"""

# Each module has `parser()`, whose options carry the command as `run`; imported when asked for, some take seconds.
COMMANDS = {
    "fetch": "fetch",
    "train": "train",
    "eval": "evaluate",
    "compare": "compare",
    "check": "check",
    "new-task": "new_task",
    "tasks-path": "tasks_path",
    "demo": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 a check failed, 2 error of use)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in COMMANDS:
        _quiet_libraries()  # before the parser: to know a command's flags, libraries are imported
        parser = parser_of(command)
        if command == "train":  # --lora_rank is --lora-rank
            arguments = [dashed(word) for word in arguments]
        options = parser.parse_args(arguments[1:])
    else:
        _parser_of_commands().parse_args(arguments or ["--help"])
        return 0
    try:
        return int(options.run(options))
    except HarnessExtError as error:
        _end_progress_bars()
        print(f"harness-ext: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        _end_progress_bars()
        print("harness-ext: stopped by Ctrl-C", file=sys.stderr)
    return USAGE_ERROR


def _end_progress_bars() -> None:
    """Begin a new line behind the bars that an error has left open."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def dashed(word: str) -> str:
    """`--lora_rank=8` as `--lora-rank=8`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    made: argparse.ArgumentParser = importlib.import_module(f"harness_ext.cli.{COMMANDS[command]}").parser()
    return made


def _parser_of_commands() -> argparse.ArgumentParser:
    parser = Parser(
        prog="harness-ext",
        usage="harness-ext COMMAND [options]        (harness-ext COMMAND --help shows an example)",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"harness-ext {harness_ext.__version__}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    return parser


def _quiet_libraries() -> None:
    """Our own warnings, and of lm-eval errors only; LMEVAL_LOG_LEVEL brings its messages back."""
    logging.basicConfig(level=logging.WARNING, format="harness-ext: %(message)s")
    if "LMEVAL_LOG_LEVEL" not in os.environ:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # peft and transformers name each other's deprecated attributes, which is no concern of the user
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
