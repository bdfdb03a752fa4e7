"""`harness-ext verify`: does what the card of a published adapter claims hold?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness_ext.cli.parser import CHECK_FAILED, add_include_path, command_parser
from harness_ext.names import visible

if TYPE_CHECKING:
    from harness_ext.publish.verify import Checked


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext verify`."""
    parser = command_parser(
        "verify", run, "Evaluate an adapter and its base under the protocol that its card states, and say of each "
        "claim whether the score is equivalent to it, better, worse, or cannot be told. Exit code 1 if a claim does "
        "not hold.",
        "  harness-ext verify hub:me/sst2-lora\n  harness-ext verify adapters/sst2 --tasks sst2_choice --limit 200",
    )  # fmt: skip
    parser.add_argument("adapter", metavar="ADAPTER", help="hub:USER/NAME, hub:USER/NAME@REVISION, or a folder")
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME", help="check only the claims on these tasks (default: all)"
    )
    parser.add_argument("--model", metavar="MODEL", help="base to use (default: the one that the adapter declares)")
    parser.add_argument(
        "--margin", type=float, default=1.0, metavar="POINTS", help="differences of up to this many points are "
        "equivalent (default: 1)",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, metavar="N", help="evaluate N documents of each task, or this share")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--batch_size", "--batch-size", metavar="N", help="as for `harness-ext eval`")
    parser.add_argument("--output", metavar="DIR", help="keep the results in this folder")
    parser.add_argument(
        "--fail-on", choices=("worse", "undecided"), default="worse", help="exit with code 1 if something is worse "
        "than claimed (default), or also if it cannot be told",
    )  # fmt: skip
    parser.add_argument("--format", choices=("text", "json"), default="text", help="output format (default: text)")
    add_include_path(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print what was found of each claim; 1 if one does not hold."""
    from harness_ext.cli.trust import task_code
    from harness_ext.publish.hub import PREFIX, hub_id
    from harness_ext.publish.verify import description, verify

    adapter = options.adapter
    if adapter.startswith(PREFIX):
        adapter = hub_id(adapter, with_revision=True)
    given = {"limit": options.limit, "device": options.device, "batch_size": options.batch_size}
    with task_code([], options.include_path, no_code=False):
        checked = verify(
            adapter,
            tasks=options.tasks,
            base=options.model,
            margin=options.margin,
            include_path=options.include_path,
            output=options.output,
            **{name: value for name, value in given.items() if value is not None},
        )
    if options.format == "json":
        print(json.dumps([_record(each) for each in checked], indent=2, ensure_ascii=False))
    else:
        for each in checked:
            print("\n".join(map(visible, description(each))))
    failed = [each for each in checked if not each.holds]
    undecided = [each for each in checked if not each.is_decided]
    print(_summary(checked, failed, undecided), file=sys.stderr if options.format == "json" else sys.stdout)
    return CHECK_FAILED if failed or (undecided and options.fail_on == "undecided") else 0


def _summary(checked: Sequence[Checked], failed: Sequence[Checked], undecided: Sequence[Checked]) -> str:
    held = sum(each.holds and each.is_decided for each in checked)
    text = f"{held} of {len(checked)} claims hold" if len(checked) != 1 else f"{held} of 1 claim holds"
    if failed:
        text += f"; worse than claimed: {', '.join(visible(each.claim.task) for each in failed)}"
    if undecided:
        text += f"; cannot be told: {', '.join(visible(each.claim.task) for each in undecided)}"
    return text


def _record(checked: Checked) -> dict[str, Any]:
    """One claim for programs."""
    row, claim = checked.row, checked.claim
    interval = row.score.interval if row else None
    return {
        "task": claim.task,
        "metric": claim.metric,
        "filter": claim.filter,
        "outcome": checked.outcome,
        "gain_outcome": checked.gain,
        "holds": checked.holds,
        "claimed": claim.value,
        "claimed_difference": claim.difference,
        "measured": row.score.value if row else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "difference": row.difference if row else None,
        "n": row.n if row else None,
        "verdict": row.verdict if row else None,
        "reason": checked.reason or None,
    }
