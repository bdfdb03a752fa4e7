"""`harness-ext eval`: a base and its adapters, with every flag of `lm_eval run`."""

from __future__ import annotations

import argparse
import json

from harness_ext.cli.parser import Parser
from harness_ext.errors import HarnessExtError


def parser() -> argparse.ArgumentParser:
    """What `harness-ext eval` takes."""
    from lm_eval._cli.run import Run

    lm_eval_run = Run(argparse.ArgumentParser().add_subparsers())
    made = Parser(
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
    made.add_argument(
        "--adapters", nargs="+", default=[], metavar="DIR", help="adapter folders, evaluated after the base"
    )
    made.set_defaults(run=run, model=None)  # DEFAULT_MODEL, unless a --config names one
    return made


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print lm-eval's tables as each variant is done."""
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
