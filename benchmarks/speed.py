"""What trees save: `hf` against `hf-tree`, TRL against our training, side by side, each with its equality check.

    HARNESS_EXT_DATA=DIR python benchmarks/speed.py --output docs/benchmarks.md

Machines are noisy: read the ratios, not the seconds. Both sides of a line run one after the other, each in a
process of its own; the document is written anew after each line. About an hour on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import curves
import decided
import engines
import evaluation
import memory
import training
from lines import Line, document, read_lines, write_lines

from harness_ext.models.fetch import fetch_model

EVALUATED = 10  # times as many steps where evaluations are among them
MODEL = "smollm2-135m-instruct"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--limit", type=int, help="documents of each evaluation, for trying this script out")
    parser.add_argument(
        "--steps", type=int, default=8, help="training steps on SST-2, four times those on SQuAD (default: 8)"
    )
    parser.add_argument("--only", nargs="+", metavar="LETTER", help="lines to measure anew: a b c ...; others are kept")
    parser.add_argument("--results", type=Path, default=Path("results/speed.jsonl"), help="what was measured so far")
    options = parser.parse_args()
    base = str(fetch_model(MODEL))
    lines = read_lines(options.results) if options.only else {}
    for letter in options.only or ():
        lines.pop(letter, None)
    for letter, measure in measurements(base, options.limit, options.steps):
        if options.only and letter not in options.only:
            continue
        for line in measure():
            print(f"({letter}) {line.what}: {line.shown_ratio} [{line.same}]", flush=True)
            lines.setdefault(letter, []).append(line)
        write_lines(options.results, lines)
        options.output.write_text(
            document(MODEL, [line for _, some in sorted(lines.items()) for line in some]), "utf-8"
        )


def measurements(base: str, limit: int | None, steps: int) -> Iterator[tuple[str, Callable[[], list[Line]]]]:
    """Every line of the table under its letter, in order; a measurement may give several."""
    yield "a", lambda: evaluation.of_task(base, "sst2_choice", limit, batch_sizes=(8, 16, 32), minimum=2, aim=2.5)
    yield (
        "b",
        lambda: evaluation.of_task(base, "sst2_choice_5shot", limit or 200, batch_sizes=(16,), minimum=5, aim=8),
    )
    yield "c", lambda: evaluation.of_task(base, "squad_v2_generate", limit or 400, batch_sizes=(16,), minimum=4, aim=7)
    yield "d", lambda: memory.of_a_large_vocabulary(base, limit or 400)
    yield "e", lambda: evaluation.of_adapters(base, limit or 100)
    yield "f", lambda: training.against_trl(base, "sst2_choice", steps, minimum=4, aim=5)
    yield "f", lambda: training.against_trl(base, "squad_v2_generate", max(1, steps // 4), minimum=5, aim=6)
    yield "g", lambda: curves.of_prefix_length(base, limit or 30)
    yield "g", lambda: curves.of_documents(base, limit or 80)
    yield "h", lambda: evaluation.of_matrix_products(base, limit)
    yield "i", lambda: decided.of_one_adapter(base, limit)
    yield "i", lambda: decided.of_two_adapters(base, limit)
    yield "j", lambda: decided.of_training(base, EVALUATED * steps)
    yield "k", lambda: engines.of_vllm(base, limit or 30)


if __name__ == "__main__":
    main()
