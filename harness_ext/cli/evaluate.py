"""`harness-ext eval`: evaluate a base and its adapters, with all flags of `lm_eval run`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness_ext.cli import until_decided
from harness_ext.cli.parser import CHECK_FAILED, USAGE_ERROR, Parser, add_no_code
from harness_ext.cli.trust import task_code
from harness_ext.errors import HarnessExtError, first_line

if TYPE_CHECKING:
    from harness_ext.engine.array_shard import Shard
    from harness_ext.engine.session import Store, VariantResults
    from harness_ext.protocol.lm_eval_api import EvaluatorConfig

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext eval`."""
    from harness_ext.protocol.lm_eval_api import Run

    lm_eval_run = Run(argparse.ArgumentParser().add_subparsers())
    parser = Parser(
        prog="harness-ext eval",
        usage="harness-ext eval --model_args pretrained=MODEL --tasks TASK ... [--adapters ADAPTER ...] [options]",
        description="Evaluate a base, then each adapter, in one process. Takes all flags of `lm_eval run`.",
        epilog="examples:\n"
        "  harness-ext eval --model_args pretrained=smollm2-135m-instruct --adapters adapters/sst2 \\\n"
        "      --tasks sst2_choice sst2_generate --output_path results/sst2 --log_samples\n"
        "  harness-ext eval --model_args peft=adapters/sst2 --tasks sst2_choice   # the base is read from the adapter\n"
        "  harness-ext eval --adapters 'adapters/*' me/my-adapter@v1 --tasks sst2_choice --output_path results/all\n"
        "  harness-ext eval --adapters 'adapters/*' --tasks sst2_choice --store answers --shard 2/8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[lm_eval_run._parser],
        add_help=False,
        conflict_handler="resolve",
    )
    parser.add_argument(
        "--adapters", nargs="+", default=[], metavar="ADAPTER", help="adapters to evaluate after the base: folders, "
        "patterns of folders ('adapters/*'), or Hub ids (org/name, org/name@revision); for --model llama-cpp GGUF "
        "files, for a server the names of its models (see docs/engines.md)",
    )  # fmt: skip
    add_no_code(parser)
    store = parser.add_mutually_exclusive_group()
    store.add_argument(
        "--store", nargs="+", metavar="DIR", help="folder of the response store, which runs may share: what it has is "
        "not computed again (default: that of --output_path); of several, the first takes new answers",
    )  # fmt: skip
    store.add_argument("--no-store", action="store_true", help="keep no answers, and compute all of them")
    parser.add_argument(
        "--from-store", action="store_true", help="score the answers in the store again, for example with a changed "
        "metric, without loading weights",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="I/N", help="ask shard I of N of the requests, for array jobs: the store takes the answers, "
        "and nothing is scored; when all N are done, the same command with --from-store writes the results",
    )  # fmt: skip
    until_decided.add_flags(parser)
    parser.set_defaults(run=run, model=None)  # None: as in --config, else DEFAULT_MODEL
    return parser


def run(options: argparse.Namespace) -> int:
    """Evaluate; print lm-eval's tables after each variant, and all failures at the end."""
    shard = _shard(options)
    config = _config(options)
    with task_code(_listed(config.tasks), _listed(config.include_path), no_code=options.no_code):
        return _evaluate(config, options, shard)


def _shard(options: argparse.Namespace) -> Shard | None:
    """The shard that is asked for.

    Raises:
        HarnessExtError: it is none, or another flag contradicts it.
    """
    from harness_ext.engine.array_shard import Shard

    if options.shard is None:
        return None
    for flag in ("from_store", "until_decided"):
        if getattr(options, flag):
            raise HarnessExtError(
                f"--shard asks a part of the requests, and --{flag.replace('_', '-')} needs all answers; leave out one"
            )
    return Shard.parse(options.shard)


def _listed(value: Any) -> list[str]:
    """Names of tasks or folders, as lm-eval takes them: a list, or a text with commas."""
    items = value.split(",") if isinstance(value, str) else value or []
    return [item for item in items if isinstance(item, str)]


def _evaluate(config: EvaluatorConfig, options: argparse.Namespace, shard: Shard | None) -> int:
    from harness_ext.engine.evaluate import report_to_trackers
    from harness_ext.engine.isolation import Failures

    failures: dict[str, list[str]] = {}  # message -> names of the variants that failed with it
    errors: dict[str, str] = {}  # adapter -> why it could not be evaluated
    written: list[str] = []  # names of the variants whose results are on the disk
    try:
        for evaluated in _evaluations(config, options, shard):
            if evaluated.error is not None and not evaluated.error.is_said:
                errors[evaluated.variant.name] = str(evaluated.error)
            failed = Failures(evaluated.failures)
            if (tally := evaluated.tally) is not None:
                print(f"shard {shard}, {evaluated.variant.name}: {tally.asked:,} of {tally.every:,} requests")
            if evaluated.results:
                if evaluated.folder is not None:
                    written.append(evaluated.variant.name)
                _print_tables(config, evaluated)
                with failed.catching("tracking"):
                    report_to_trackers(config, evaluated)
            for name, reason in failed.items():
                failures.setdefault(f"{name}: {reason}", []).append(evaluated.variant.name)
    finally:
        for line, variants in failures.items():
            print(f"harness-ext: failed for {', '.join(variants)}: {line}", file=sys.stderr)
        for name, line in errors.items():
            print(f"harness-ext: {name} was not evaluated: {line}", file=sys.stderr)
    if written and config.log_samples:
        _print_errors(str(config.output_path), written)
        if len(written) > 1:
            print(f"next: harness-ext compare {config.output_path}")
    if shard is not None and not failures and not errors and not int(os.environ.get("RANK", "0")):
        print(f"shard {shard} is done; when all {shard.count} are: the same command, with --from-store for --shard")
    if failures:
        return USAGE_ERROR
    return CHECK_FAILED if errors else 0


def _evaluations(config: EvaluatorConfig, options: argparse.Namespace, shard: Shard | None) -> Iterator[VariantResults]:
    """Results of base and adapters, as soon as they are there."""
    from harness_ext.engine.evaluate import run, run_shard

    store: Store = False if options.no_store else options.store
    if shard is not None:
        yield from run_shard(config, shard=shard, adapters=options.adapters, store=store)
        return
    if (rule := until_decided.rule_of(options)) is None:
        yield from run(config, adapters=options.adapters, store=store, from_store=options.from_store)
        return
    from harness_ext.engine.sequential import run_until_decided

    with until_decided.screen() as on_look:
        yield from run_until_decided(config, adapters=options.adapters, rule=rule, store=store, on_look=on_look)


def _config(options: argparse.Namespace) -> EvaluatorConfig:
    """The configuration from flags and --config file, checked by lm-eval; flags win."""
    from harness_ext.engine.evaluate import DEFAULT_MODEL
    from harness_ext.models.devices import choose_device
    from harness_ext.protocol.lm_eval_api import EvaluatorConfig, get_model

    ours = ("run", "adapters", "func", "store", "no_store", "from_store", "shard", "no_code", *until_decided.FLAGS)
    flags = {name: value for name, value in vars(options).items() if name not in ours}
    try:
        from_file = EvaluatorConfig.load_yaml_config(options.config) if options.config else {}
        flags["model"] = options.model or from_file.get("model", DEFAULT_MODEL)
        config = EvaluatorConfig.from_cli(argparse.Namespace(**flags))
        for seed in config.seed if isinstance(config.seed, list) else []:
            if seed is not None and not 0 <= seed < 2**32:
                raise ValueError(f"--seed must be between 0 and 2**32 - 1, got {seed}")
        get_model(config.model)
        choose_device(config.device)
    except (ValueError, TypeError, FileNotFoundError, RuntimeError) as error:
        raise HarnessExtError(f"eval: {first_line(error)}") from error
    for flag, package in (("wandb_args", "wandb"), ("trackio_args", "trackio")):
        if getattr(config, flag, None) and importlib.util.find_spec(package) is None:
            raise HarnessExtError(f"--{flag} needs a package that is not installed; run `pip install {package}`")
    return config


def _print_errors(results: str, names: Sequence[str]) -> None:
    """Print what the doctor finds in the outputs that were just written: errors only, without loading a task."""
    from harness_ext.doctor.diagnose import find_errors
    from harness_ext.results.load import load_runs

    try:
        errors = [finding for run in load_runs(results) if run.name in names for finding in find_errors([run])]
    except HarnessExtError as error:  # the evaluation stands without it
        logger.debug("the outputs were not examined: %s", error)
        return
    for finding in errors:
        print(f"error: {finding.id} {finding.text}")
    if errors:
        print(f"next: harness-ext doctor {results}")


def _print_tables(config: EvaluatorConfig, evaluated: VariantResults) -> None:
    from harness_ext.protocol.lm_eval_api import handle_non_serializable, make_table

    if config.show_config:
        results = {name: value for name, value in evaluated.results.items() if name != "samples"}
        print(json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False))
    print(f"\n{evaluated.variant.name}: {config.model} {evaluated.results['config']['model_args']}")
    print(make_table(evaluated.results))
    if found := evaluated.results.get("harness_ext", {}).get("answers_from_store"):
        print(f"{found:,} answers came from the response store")
    if "groups" in evaluated.results:
        print(make_table(evaluated.results, "groups"))
