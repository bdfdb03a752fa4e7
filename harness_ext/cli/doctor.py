"""`harness-ext doctor`: why a score is what it is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness_ext.cli.parser import CHECK_FAILED, add_explain, add_include_path, command_parser, seed
from harness_ext.errors import HarnessExtError

if TYPE_CHECKING:
    from harness_ext.doctor.diagnosis import Diagnosis, Examination


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext doctor`."""
    parser = command_parser(
        "doctor", run, "Say why a score is what it is: from what was logged, from an adapter's weights, or from the "
        "examples that an adapter would be trained on. With --replay, the model is asked again with one thing changed. "
        "Exit code 1 if there is an error.",
        "  harness-ext doctor results/sst2\n  harness-ext doctor results/* --tasks squad_v2_generate --format json\n"
        "  harness-ext doctor results/squad_v2 --replay --documents 128\n  harness-ext doctor --adapter adapters/sst2\n"
        "  harness-ext doctor --task sst2_choice --model smollm2-135m-instruct",
    )  # fmt: skip
    parser.add_argument("results", nargs="*", metavar="RESULTS", help="as for `harness-ext compare`")
    parser.add_argument("--baseline", metavar="NAME", help="run to examine the others beside (default: the base)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="examine only these tasks")
    parser.add_argument("--adapter", metavar="DIR", help="examine an adapter's weights: a folder or a Hub id")
    parser.add_argument(
        "--task", metavar="TASK", help="examine how a task is trained: supervised tokens, prompts, and a few examples "
        "that are learned by heart and scored by the evaluator; needs --model",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="MODEL", help="base of --adapter (default: as the adapter says), or model for --task"
    )
    parser.add_argument(
        "--num_fewshot", "--num-fewshot", type=int, metavar="N", help="with --task: examples in the prompt"
    )
    parser.add_argument(
        "--apply_chat_template", "--apply-chat-template", action="store_true", help="with --task: use the chat template"
    )
    parser.add_argument(
        "--replay", action="store_true", help="ask each adapter again: other templates, stop strings, shots, scale ..."
    )
    parser.add_argument(
        "--documents", type=int, default=200, metavar="N", help="with --replay: ask at most N documents (200)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="with --replay: draws the documents (0)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json has complete examples")
    add_include_path(parser)
    add_explain(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print what was found; 1 if a finding is an error."""
    from rich.console import Console

    from harness_ext.render.diagnosis import render, render_examination

    if not (options.results or options.adapter or options.task):
        raise HarnessExtError(
            "doctor needs RESULTS (folders or results files), --adapter DIR, or --task TASK --model MODEL; see "
            "harness-ext doctor --help"
        )
    examinations, diagnoses = _examinations(options), _diagnoses(options)
    if options.format == "json":
        reports = [*map(asdict, examinations), *map(asdict, diagnoses)]
        print(json.dumps(reports, indent=2, ensure_ascii=False, default=str))
    else:
        console = Console(highlight=False)
        for examination in examinations:
            for part in render_examination(examination, console.width):
                console.print(part)
        for part in render(diagnoses, console.width):
            console.print(part)
    failed = any(diagnosis.has_errors for diagnosis in diagnoses) or any(each.errors for each in examinations)
    return CHECK_FAILED if failed else 0


def _examinations(options: argparse.Namespace) -> list[Examination]:
    """Of --adapter and --task."""
    examinations = []
    if options.adapter:
        from harness_ext.doctor.preflight.adapter import examine_adapter

        examinations.append(examine_adapter(options.adapter, base=options.model))
    if options.task:
        from harness_ext.doctor.preflight.run import examine_task
        from harness_ext.protocol.render import PromptSettings

        if not options.model:
            raise HarnessExtError(f"doctor --task {options.task} needs a model to train; add --model MODEL")
        settings = PromptSettings(options.num_fewshot, options.apply_chat_template)
        examinations.append(
            examine_task(options.task, options.model, include_path=options.include_path, settings=settings)
        )
    return examinations


def _diagnoses(options: argparse.Namespace) -> list[Diagnosis]:
    """Of results."""
    if not options.results:
        return []
    from harness_ext.results.load import load_runs

    runs = load_runs(*options.results)
    how = {"baseline": options.baseline, "tasks": options.tasks, "include_path": options.include_path}
    if options.replay:
        from harness_ext.doctor.replay.replay import diagnose_by_replay

        return diagnose_by_replay(runs, documents=options.documents, seed=options.seed, **how)
    from harness_ext.doctor.diagnose import diagnose

    return diagnose(runs, **how)
