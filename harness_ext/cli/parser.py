"""What all commands share: a parser whose errors teach, and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from harness_ext.errors import first_line, suggest

USAGE_ERROR = 2
CHECK_FAILED = 1  # the command itself went well; what it looked at did not pass


class Parser(argparse.ArgumentParser):
    """Errors of use in one line, with the closest flag for an unknown one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Take what lm-eval's own flags raise for a value they cannot read as an error of use."""
        try:
            return super().parse_known_args(args, namespace)
        except ValueError as error:
            self.error(first_line(error))

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what next, and exit with 2."""
        hint = ""
        if message.startswith("unrecognized arguments: "):
            unknown = message.split()[2].partition("=")[0]
            hint = suggest(unknown, self._option_string_actions)
        self.exit(USAGE_ERROR, f"{self.prog}: {message}{hint}; see {self.prog} --help\n")


def command_parser(
    name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    """The parser of one command, with an example at the end of its help."""
    parser = Parser(
        prog=f"harness-ext {name}",
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_explain(parser: argparse.ArgumentParser) -> None:
    """What a finding means, instead of running the command."""
    parser.add_argument("--explain", metavar="ID", help="say what a finding (C20, R07, ...) means, and stop")


def add_include_path(parser: argparse.ArgumentParser) -> None:
    """Folders of further tasks, under both spellings."""
    parser.add_argument(
        "--include_path", "--include-path", action="append", default=[], metavar="DIR", help="more tasks"
    )
