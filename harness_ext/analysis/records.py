"""A comparison as flat records, for JSON, CSV and pandas. The schema stands in docs/comparison.md."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness_ext.analysis.gain import FORMS, SKILL
from harness_ext.analysis.paired import PairedDifference
from harness_ext.analysis.rows import Row, Score
from harness_ext.analysis.statistics import CONFIDENCE

if TYPE_CHECKING:
    from harness_ext.analysis.comparison import Comparison

SCHEMA = 1  # raised when a key changes its meaning or goes away
_DIGITS = 6  # of the numbers in JSON and CSV: enough for any reader, and the same bytes on any machine
_SMALL = 1e-3


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A dict ready for `json.dumps`: numbers in each row's unit, p-values as fractions."""
    return {
        "schema": SCHEMA,
        "baseline": comparison.baseline,
        "confidence": CONFIDENCE,
        "margin": comparison.margin,
        "rows": [rounded({**asdict(row), "difference": row.difference}) for row in comparison.rows],
        "costs": [rounded(asdict(cost)) for cost in comparison.costs],
        "warnings": list(comparison.warnings),
        "notes": list(comparison.notes),
    }


def to_csv(comparison: Comparison) -> str:
    """One line for each row, the columns of `flat`; empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rounded(flat(row)) for row in comparison.rows)
    return text.getvalue()


def columns() -> list[str]:
    """Names of the flat columns, in order."""
    return list(flat(Row("", "", "", "", 0, Score(0.0), Score(0.0))))


def flat(row: Row) -> dict[str, Any]:
    """One level of columns: baseline_low, difference, p_value …; None where not tested."""
    paired, seeds = row.paired, row.seeds
    numbers: dict[str, Callable[[PairedDifference], Any]] = {
        "difference_low": lambda found: found.interval.low,
        "difference_high": lambda found: found.interval.high,
        "p_value": lambda found: found.p_value,
        "units": lambda found: found.units,
        "gained": lambda found: found.gained,
        "lost": lambda found: found.lost,
        "mcnemar_p": lambda found: found.mcnemar_p,
        "method": lambda found: found.method,
    }
    return {
        **{name: getattr(row, name) for name in ("task", "run", "metric", "filter", "unit", "n")},
        **_flat_score("baseline", row.baseline),
        **_flat_score("score", row.score),
        "difference": row.difference,
        **{name: read(paired) if paired else None for name, read in numbers.items()},
        **{
            name: getattr(row, name)
            for name in ("p_holm", "verdict", "needed_n", "detectable", "rank", "baseline_rank", "is_sample", "note")
        },
        "floor": row.floor.value if row.floor else None,
        "floor_kind": row.floor.kind if row.floor else None,
        "seeds": " ".join(seeds.values) if seeds else None,
        "seeds_sd": seeds.sd if seeds else None,
        **{f"gain_{form}": _part(row, form) for form in (*FORMS, SKILL)},
        "retention": row.retention,
        "allowed": " ".join(row.allowed) or None,
    }


def _part(row: Row, form: str) -> float | None:
    return row.gain.parts[form].difference if row.gain and form in row.gain.parts else None


def _flat_score(name: str, score: Score) -> dict[str, Any]:
    low, high = (score.interval.low, score.interval.high) if score.interval else (None, None)
    return {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_parsed": score.parsed}


def rounded(value: Any) -> Any:
    """Every number of a nested value to six decimals, small ones (p-values) to three digits; JSON knows no NaN."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return round(value, _DIGITS) if abs(value) >= _SMALL else float(f"{value:.3g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return value
