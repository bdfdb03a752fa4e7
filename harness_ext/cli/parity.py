"""`harness-ext parity`: is what is served what was evaluated?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness_ext.cli.parser import CHECK_FAILED, add_explain, add_include_path, command_parser, seed
from harness_ext.errors import HarnessExtError

if TYPE_CHECKING:
    from harness_ext.parity.outcome import Parity

PRECISIONS = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext parity`."""
    parser = command_parser(
        "parity", run, "Say whether what is served answers as the adapter that was evaluated: as the base, as the "
        "adapter, or otherwise, and why. It asks block after block of documents and stops when it is sure. Exit code 1 "
        "if it does not answer as the adapter.",
        "  harness-ext parity adapters/sst2 --against merged --dtype bfloat16\n"
        "  harness-ext parity adapters/sst2 --against exports/sst2-merged\n"
        "  harness-ext parity adapters/sst2 --against http://localhost:8000/v1/completions --served-name sst2",
    )  # fmt: skip
    parser.add_argument("adapter", nargs="?", metavar="ADAPTER", help="what was evaluated: a folder or a Hub id")
    parser.add_argument(
        "--against", metavar="WHAT", help="what is served: merged (peft's merge_and_unload, made here), 4bit (the base "
        "in 4 bits by bitsandbytes), vllm, a folder of merged weights, FILE.gguf, or the URL of an OpenAI-compatible "
        "server, such as http://localhost:8000/v1/completions",
    )  # fmt: skip
    parser.add_argument(
        "--task", nargs="+", default=[], metavar="TASK", help="tasks to ask (default: that of the adapter's card)"
    )
    parser.add_argument("--model", metavar="MODEL", help="base of the adapter (default: the one that it declares)")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, help="in which it is served (default: as evaluated; bfloat16 for other engines)"
    )
    parser.add_argument(
        "--served-name", metavar="NAME", help="name of the model on the server (default: that of the adapter's folder)"
    )
    parser.add_argument(
        "--model_args", "--model-args", metavar="ARGS", default="", help="further arguments of the served engine, as "
        "for `harness-ext eval`: name=value,name=value",
    )  # fmt: skip
    parser.add_argument(
        "--documents", type=int, default=50, metavar="N", help="ask at most N documents of each task (default: 50)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="draws the documents (default: 0)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--num_fewshot", "--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: as in the card)"
    )
    parser.add_argument(
        "--apply_chat_template", "--apply-chat-template", action=argparse.BooleanOptionalAction, default=None,
        help="prompts go through the chat template (default: as in the card)",
    )  # fmt: skip
    parser.add_argument(
        "--system_instruction", "--system-instruction", metavar="TEXT", help="system prompt (default: as in the card)"
    )
    parser.add_argument("--write-card", action="store_true", help="keep the result in the adapter's card.json")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="output format (default: text)")
    add_include_path(parser)
    add_explain(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print what was found; 1 if a finding is an error."""
    if not options.adapter or not options.against:
        raise HarnessExtError("parity needs ADAPTER and --against WHAT; see harness-ext parity --help")
    from harness_ext.cli.trust import task_code
    from harness_ext.parity.card import check_card, write_card
    from harness_ext.parity.check import check_parity
    from harness_ext.parity.served import Target

    target = Target.of(
        options.against, dtype=options.dtype, name=options.served_name, arguments=_arguments(options.model_args)
    )
    if options.write_card:
        check_card(options.adapter)  # before anything is asked
    names = ("num_fewshot", "apply_chat_template", "system_instruction")
    prompts = {name: value for name in names if (value := getattr(options, name)) is not None}
    with task_code(options.task, options.include_path, no_code=False):
        parity = check_parity(
            options.adapter, target, tasks=options.task, base=options.model, documents=options.documents,
            seed=options.seed, device=options.device, include_path=options.include_path, **prompts,
        )  # fmt: skip
    if options.format == "json":
        print(json.dumps({**asdict(parity), "holds": parity.holds}, indent=2, ensure_ascii=False))
    else:
        _print(parity)
    if options.write_card:
        write_card(options.adapter, target, parity)
    return 0 if parity.holds else CHECK_FAILED


def _arguments(given: str) -> dict[str, Any]:
    """Model arguments as lm-eval reads them."""
    if not given:
        return {}
    from harness_ext.protocol.lm_eval_api import simple_parse_args_string

    if not all("=" in part for part in given.split(",") if part):
        raise HarnessExtError(f"--model_args {given!r:.80} must have the form name=value,name=value")
    return dict(simple_parse_args_string(given))


def _print(parity: Parity) -> None:
    from rich.console import Console
    from rich.padding import Padding

    from harness_ext.render.diagnosis import finding_text
    from harness_ext.render.parity import document_lines, legend, parity_grid
    from harness_ext.render.terminal import render_grid

    console = Console(highlight=False)
    console.print(render_grid(parity_grid(parity), console.width))
    console.print(legend(parity), style="dim", markup=False)
    for each in parity.tasks:
        for finding in each.findings:
            console.print(finding_text(finding))
        if not all(finding.id == "P09" for finding in each.findings):
            for line in document_lines(each):
                console.print(Padding(line, (0, 0, 0, 2)), style="dim", markup=False)
    for note in parity.notes:
        console.print(f"note: {note}", style="dim", markup=False)
