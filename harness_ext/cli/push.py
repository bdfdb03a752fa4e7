"""`harness-ext push`: publish an adapter on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from harness_ext.cli.parser import command_parser
from harness_ext.errors import HarnessExtError, HubError, suggest

logger = logging.getLogger(__name__)

PARTS = ("results", "report")


def parser() -> argparse.ArgumentParser:
    """The parser of `harness-ext push`."""
    parser = command_parser(
        "push", run, "Publish an adapter on the Hugging Face Hub: weights, configuration and card, in one commit; no "
        "checkpoints, and no path of this machine. The token is that of `hf auth login`, or HF_TOKEN.",
        "  harness-ext push adapters/sst2 hub:me/sst2-lora --dry-run\n"
        "  harness-ext push adapters/sst2 hub:me/sst2-lora --with results=results/sst2",
    )  # fmt: skip
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter")
    parser.add_argument("repository", metavar="hub:USER/NAME", help="where to publish it")
    parser.add_argument(
        "--with", dest="parts", default="", metavar="PART[=PATH],...", help="send along: results (default: the folder "
        "results/ADAPTER), report (default: report.html)",
    )  # fmt: skip
    parser.add_argument("--pr", action="store_true", help="open a pull request to an existing repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    return parser


def run(options: argparse.Namespace) -> int:
    """Send the files, or list them."""
    from harness_ext.publish.hub import hub_id
    from harness_ext.publish.push import benchmark_uploads, push, uploads_of

    repository = hub_id(options.repository)
    parts = _parts(options.parts, Path(options.adapter))
    uploads = uploads_of(options.adapter, repository, results=parts.get("results"), report=parts.get("report"))
    try:
        uploads += benchmark_uploads(options.adapter)
    except HubError as error:
        if not options.dry_run:
            raise
        logger.warning("not known whether the card's data sets are registered benchmarks: %s", error)
    for upload in uploads if options.dry_run else ():
        print(f"{upload.size:>14,}  {upload.path}")
    if options.dry_run:
        total = sum(upload.size for upload in uploads)
        print(f"{total:>14,}  bytes in {len(uploads)} files would go to {repository}; nothing was sent")
        return 0
    published = push(uploads, repository, pull_request=options.pr, private=options.private)
    print(f"{len(published.files)} files: {published.url}")
    return 0


def _parts(given: str, adapter: Path) -> dict[str, str]:
    """What to send along, with its path."""
    defaults = {"results": f"results/{adapter.resolve().name}", "report": "report.html"}
    parts = {}
    for word in filter(None, (part.strip() for part in given.split(","))):
        name, _, path = word.partition("=")
        if name not in PARTS:
            raise HarnessExtError(f"--with knows no {name!r}{suggest(name, PARTS)}; choose from {', '.join(PARTS)}")
        parts[name] = path or defaults[name]
    return parts
