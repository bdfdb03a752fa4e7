"""`harness-ext doctor`: why a score is what it is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from harness_ext.cli.parser import CHECK_FAILED, add_explain, add_include_path, command_parser
from harness_ext.errors import HarnessExtError


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext doctor`."""
    parser = command_parser(
        "doctor", run, "Say why a score is what it is, from what was logged: no model is loaded. With --replay, the "
        "model is asked again with one thing changed. Exit code 1 if there is an error.",
        "  harness-ext doctor results/sst2\n  harness-ext doctor results/* --tasks squad_v2_generate --format json\n"
        "  harness-ext doctor results/squad_v2 --replay --documents 128",
    )  # fmt: skip
    parser.add_argument("results", nargs="*", metavar="RESULTS", help="as for `harness-ext compare`")
    parser.add_argument("--baseline", metavar="NAME", help="run to examine the others beside (default: the base)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="examine only these tasks")
    parser.add_argument(
        "--replay", action="store_true", help="ask each adapter again: other templates, stop strings, shots, scale ..."
    )
    parser.add_argument(
        "--documents", type=int, default=200, metavar="N", help="with --replay: ask at most N documents (200)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="with --replay: draws the documents (0)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json has complete examples")
    add_include_path(parser)
    add_explain(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print what was found; 1 if a finding is an error."""
    from rich.console import Console

    from harness_ext.doctor.diagnose import diagnose
    from harness_ext.findings import explain
    from harness_ext.render.diagnosis import render
    from harness_ext.results.load import load_runs

    if options.explain:
        print(explain(options.explain))
        return 0
    if not options.results:
        raise HarnessExtError("doctor needs RESULTS: folders or results files; see harness-ext doctor --help")
    how = {"baseline": options.baseline, "tasks": options.tasks, "include_path": options.include_path}
    runs = load_runs(*options.results)
    if options.replay:
        from harness_ext.doctor.replay.replay import diagnose_by_replay

        diagnoses = diagnose_by_replay(runs, documents=options.documents, seed=options.seed, **how)
    else:
        diagnoses = diagnose(runs, **how)
    if options.format == "json":
        print(json.dumps([asdict(diagnosis) for diagnosis in diagnoses], indent=2, ensure_ascii=False, default=str))
    else:
        console = Console(highlight=False)
        for part in render(diagnoses, console.width):
            console.print(part)
    return CHECK_FAILED if any(diagnosis.has_errors for diagnosis in diagnoses) else 0
