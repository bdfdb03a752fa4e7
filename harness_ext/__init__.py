"""Does this adapter really beat its base, under the same protocol?

The public API, for notebooks and scripts; each name is imported on first use:

- `Recipe`, `train_adapter`: train a LoRA adapter on any lm-eval task with a training split
- `make_entries`, `tune`: train several recipes in a tournament, and keep the best
- `evaluate`: evaluate a base and its adapters on the same tasks, in one process
- `load_runs`, `compare_runs`: load results, and compare them document by document, with tests and a verdict
- `write_report`: comparison, figures, findings, samples and provenance in one HTML file
- `diagnose`: why a score is what it is, from logged outputs
- `examine_batches`: what is wrong with the batches that any trainer trains on
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness_ext.version import __version__ as __version__

if TYPE_CHECKING:
    from harness_ext.doctor.diagnose import diagnose
    from harness_ext.doctor.preflight.batches import examine_batches
    from harness_ext.engine.evaluate import evaluate
    from harness_ext.leaderboard import compare_runs
    from harness_ext.report import write_report
    from harness_ext.results.load import load_runs
    from harness_ext.selection.train import train_adapter
    from harness_ext.training.recipe import Recipe
    from harness_ext.tuning.entries import make_entries
    from harness_ext.tuning.tournament import tune

__all__ = [
    "Recipe",
    "compare_runs",
    "diagnose",
    "evaluate",
    "examine_batches",
    "load_runs",
    "make_entries",
    "train_adapter",
    "tune",
    "write_report",
]

_MODULES = {
    "Recipe": "harness_ext.training.recipe",
    "compare_runs": "harness_ext.leaderboard",
    "diagnose": "harness_ext.doctor.diagnose",
    "evaluate": "harness_ext.engine.evaluate",
    "examine_batches": "harness_ext.doctor.preflight.batches",
    "load_runs": "harness_ext.results.load",
    "make_entries": "harness_ext.tuning.entries",
    "train_adapter": "harness_ext.selection.train",
    "tune": "harness_ext.tuning.tournament",
    "write_report": "harness_ext.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use, since torch and lm-eval take seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
