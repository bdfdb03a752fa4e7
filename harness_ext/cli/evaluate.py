"""`harness-ext eval`: a base and its adapters, with every flag of `lm_eval run`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from typing import TYPE_CHECKING

from harness_ext.cli.parser import USAGE_ERROR, Parser
from harness_ext.errors import HarnessExtError, first_line

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from harness_ext.engine.evaluate import VariantResults


def parser() -> argparse.ArgumentParser:
    """What `harness-ext eval` takes."""
    from lm_eval._cli.run import Run

    lm_eval_run = Run(argparse.ArgumentParser().add_subparsers())
    made = Parser(
        prog="harness-ext eval",
        usage="harness-ext eval --model_args pretrained=MODEL --tasks TASK ... [--adapters ADAPTER ...] [options]",
        description="Evaluate a base, then each adapter, in one process. Takes every flag of `lm_eval run`.",
        epilog="examples:\n"
        "  harness-ext eval --model_args pretrained=smollm2-135m-instruct --adapters adapters/sst2 \\\n"
        "      --tasks sst2_choice sst2_generate --output_path results/sst2 --log_samples\n"
        "  harness-ext eval --model_args peft=adapters/sst2 --tasks sst2_choice   # its base is read from the adapter\n"
        "  harness-ext eval --adapters 'adapters/*' me/my-adapter@v1 --tasks sst2_choice --output_path results/all",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[lm_eval_run._parser],
        add_help=False,
        conflict_handler="resolve",
    )
    made.add_argument(
        "--adapters", nargs="+", default=[], metavar="ADAPTER", help="evaluated after the base: folders, patterns of "
        "folders ('adapters/*'), or Hub ids (org/name, org/name@revision)",
    )  # fmt: skip
    made.set_defaults(run=run, model=None)  # DEFAULT_MODEL, unless a --config names one
    return made


def run(options: argparse.Namespace) -> int:
    """Evaluate, print lm-eval's tables as each variant is done, and what failed at the end."""
    from harness_ext.engine.evaluate import report_to_trackers, run
    from harness_ext.engine.isolation import Failures

    config = _config(options)
    failures: dict[str, list[str]] = {}  # one line -> the variants it is about
    with_results = 0
    try:
        for done in run(config, adapters=options.adapters):
            failed = Failures(done.failures)
            if done.results:
                with_results += 1
                _print_tables(config, done)
                with failed.catching("tracking"):
                    report_to_trackers(config, done)
            for name, reason in failed.items():
                failures.setdefault(f"{name}: {reason}", []).append(done.variant.name)
    finally:
        for line, variants in failures.items():
            print(f"harness-ext: failed for {', '.join(variants)}: {line}", file=sys.stderr)
    if with_results > 1 and config.output_path and config.log_samples:
        print(f"next: harness-ext compare {config.output_path}")
    return USAGE_ERROR if failures else 0


def _config(options: argparse.Namespace) -> EvaluatorConfig:
    """The flags, over those of a --config file, checked by lm-eval."""
    from lm_eval.api.registry import get_model
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from harness_ext.engine.evaluate import DEFAULT_MODEL
    from harness_ext.models.devices import choose_device

    flags = {name: value for name, value in vars(options).items() if name not in ("run", "adapters", "func")}
    try:
        written = EvaluatorConfig.load_yaml_config(options.config) if options.config else {}
        flags["model"] = options.model or written.get("model", DEFAULT_MODEL)
        config = EvaluatorConfig.from_cli(argparse.Namespace(**flags))
        get_model(config.model)
        choose_device(config.device)
    except (ValueError, TypeError, FileNotFoundError, RuntimeError) as error:
        raise HarnessExtError(f"eval: {first_line(error)}") from error
    for flag, package in (("wandb_args", "wandb"), ("trackio_args", "trackio")):
        if getattr(config, flag) and importlib.util.find_spec(package) is None:
            raise HarnessExtError(f"--{flag} needs a package that is not installed; run `pip install {package}`")
    return config


def _print_tables(config: EvaluatorConfig, done: VariantResults) -> None:
    from lm_eval.utils import handle_non_serializable, make_table

    if config.show_config:
        shown = {name: value for name, value in done.results.items() if name != "samples"}
        print(json.dumps(shown, indent=2, default=handle_non_serializable, ensure_ascii=False))
    print(f"\n{done.variant.name}: {config.model} {done.results['config']['model_args']}")
    print(make_table(done.results))
    if "groups" in done.results:
        print(make_table(done.results, "groups"))
