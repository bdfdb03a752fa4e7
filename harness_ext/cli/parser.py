"""Shared by all commands: the parser, common flags and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from harness_ext.errors import HarnessExtError, first_line, suggest

USAGE_ERROR = 2
LEVELS = ("debug", "info", "warning", "error")
CHECK_FAILED = 1  # the command succeeded, but what it checked did not pass


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors that suggest the closest flag for an unknown one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; a ValueError, which lm-eval's flags raise for values they cannot read, becomes a usage error."""
        try:
            return super().parse_known_args(args, namespace)
        except ValueError as error:
            self.error(first_line(error))

    def error(self, message: str) -> NoReturn:
        """Print the error and where to find help, and exit with 2."""
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
    parser.add_argument(
        "--verbosity", choices=LEVELS, metavar="LEVEL", type=str.lower,
        help=f"{', '.join(LEVELS)}: also show the messages and progress bars of the libraries",
    )  # fmt: skip
    return parser


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add --explain, which explains a finding instead of running the command (see `cli._explain`)."""
    parser.add_argument("--explain", metavar="ID", help="explain a finding (C20, R07, ...) and exit")


def seed(text: str) -> int:
    """A seed from the command line: a whole number that numpy and torch take."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise ValueError(text)
    return number


def add_no_code(parser: argparse.ArgumentParser) -> None:
    """Add --no-code, in both spellings."""
    parser.add_argument(
        "--no-code",
        "--no_code",
        action="store_true",
        help="refuse tasks that bring code of their own (!function, class), and render templates in a sandbox",
    )


def add_include_path(parser: argparse.ArgumentParser) -> None:
    """Add --include_path, in both spellings."""
    parser.add_argument(
        "--include_path",
        "--include-path",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of further tasks; repeatable",
    )


def margins_of(given: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The margin in points, and the margins of single metrics, from --margin.

    Raises:
        HarnessExtError: one is no number.
    """
    margin, margins = 1.0, {}
    for argument in given:
        metric, _, value = argument.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise HarnessExtError(f"--margin {argument!r} must have the form VALUE or METRIC=VALUE") from None
        if metric:
            margins[metric] = number
        else:
            margin = number
    return margin, margins


def given_flags(
    parser: argparse.ArgumentParser, options: argparse.Namespace, *, without: Sequence[str] = ()
) -> list[str]:
    """The flags that options were given with, as words of a command line; those with their default are left out.

    Args:
        parser: that parsed them.
        options: as parsed.
        without: names of options that are left out, too.
    """
    words: list[str] = []
    for action in parser._actions:
        value = getattr(options, action.dest, action.default)
        if not action.option_strings or action.dest in without or value == action.default:
            continue
        flag = action.option_strings[0]
        if isinstance(action, argparse._AppendAction):
            words += [word for each in value for word in (flag, str(each))]
        else:
            words += [flag, *([] if action.nargs == 0 else map(str, value if isinstance(value, list) else [value]))]
    return words
