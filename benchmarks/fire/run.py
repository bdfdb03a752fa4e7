"""Kill, fill, deny and wear out: what is lost then? -> docs/reliability.md

```
python benchmarks/fire/run.py                        # all parts, then the page: about four hours on two cores
python benchmarks/fire/run.py eval train             # some of them
python benchmarks/fire/run.py endurance --minutes 60
python benchmarks/fire/run.py page                   # the page alone, from what was measured before
```

What was measured is kept in `--results`, case by case; a run that was stopped goes on. `endurance` alone begins again:
it is about one process. `real` needs the fetched model, and the documents that HARNESS_EXT_DATA names.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("eval", "train", "cases", "real", "fuzz", "endurance", "page")


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "fire", help="what was measured so far")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "reliability.md")
    parser.add_argument("--eval-kills", type=int, default=250)
    parser.add_argument("--train-kills", type=int, default=120)
    parser.add_argument("--minutes", type=float, default=60.0, help="of endurance, and of fuzz")
    parser.add_argument("--fuzz-log", type=Path, help="what tests/hostile/run.py printed: take its counts")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)}; choose from {', '.join(PARTS)}")
    parts = options.parts or PARTS
    work = options.results.absolute() / "work"
    if {"eval", "train", "endurance"} & set(parts):
        _prepare(work)
    from records import Records

    warnings.filterwarnings("ignore")
    records = {part: Records(options.results, part) for part in PARTS}
    for part in parts:
        if part == "eval":
            import eval_kills

            eval_kills.run(work / "eval", records[part], options.eval_kills)
        elif part == "train":
            import train_kills

            train_kills.run(work / "train", records[part], options.train_kills)
        elif part == "cases":
            import cases

            cases.run(options.results, records[part])
        elif part == "real":
            import real_model

            real_model.run(options.results / "real", records[part])
        elif part == "fuzz":
            import fuzz

            fuzz.run(records[part], options.minutes, options.fuzz_log)
        elif part == "endurance":
            import endurance

            endurance.run(work / "endurance", records[part], options.minutes)
        else:
            import page

            options.output.write_text(page.page(records), encoding="utf-8")
            print(f"wrote {options.output}")


def _prepare(work: Path) -> None:
    """Set what libraries read when they are imported."""
    from victims import environment

    os.environ.update(environment(work))
    import torch

    torch.set_num_threads(1)  # tiny matrices: a second thread only waits


if __name__ == "__main__":
    sys.exit(main())
