"""A comparison as records for JSON, CSV and pandas; docs/comparison.md documents the schema."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from harness_ext.comparison.gain import FORMS, SKILL
from harness_ext.comparison.rows import Comparison, Cost, Floor, Gain, Row, Score, Seeds, Sequential
from harness_ext.metrics.statistic import SHARE
from harness_ext.names import visible
from harness_ext.stats.intervals import CONFIDENCE, Interval
from harness_ext.stats.paired import PairedDifference

SCHEMA = 2  # increased when a key is removed or changes its meaning
POINTS = "points"  # the unit in which shares are written
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # spreadsheets take cells that begin so for formulas
_DIGITS = 6  # decimals in JSON and CSV; rounding gives the same bytes on every machine
_SMALL = 1e-3  # smaller numbers keep three significant digits instead


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A dict for `json.dumps`: numbers in the unit of their row (shares in points), p-values as fractions."""
    return {
        "schema": SCHEMA,
        "baseline": comparison.baseline,
        "confidence": CONFIDENCE,
        "margin": _rounded(100 * comparison.margin),
        "rows": [_rounded(_nested(row)) for row in comparison.rows],
        "costs": [_rounded(_cost(cost)) for cost in comparison.costs],
        "findings": [_rounded(asdict(finding)) for finding in comparison.findings],
        "warnings": list(comparison.warnings),
        "notes": list(comparison.notes),
    }


def to_csv(comparison: Comparison) -> str:
    """One line per row with the columns of `flat`; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns(), lineterminator="\n")
    writer.writeheader()
    for row in comparison.rows:
        writer.writerow({name: _inert(value) for name, value in _rounded(flat(row)).items()})
    return text.getvalue()


def _inert(value: Any) -> Any:
    """A text as it may stand in a cell: one that a spreadsheet would take for a formula gets an apostrophe.

    >>> _inert("=1+1"), _inert("@x"), _inert("sst2"), _inert(-1.5)
    ("'=1+1", "'@x", 'sst2', -1.5)
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def columns() -> list[str]:
    """Names of the columns of `flat`, in order."""
    return list(flat(Row("", "", "", "", 0, Score(0.0), Score(0.0))))


def flat(row: Row) -> dict[str, Any]:
    """A row as one level of columns (baseline_low, difference, p_value …); None if not tested."""
    nested = _nested(row)
    paired, seeds, gain = nested["paired"] or {}, nested["seeds"], nested["gain"]
    interval, stopped = paired.get("interval") or {}, nested["sequential"] or {}
    return {
        **{name: nested[name] for name in ("task", "run", "metric", "filter", "unit", "n")},
        **_flat_score("baseline", nested["baseline"]),
        **_flat_score("score", nested["score"]),
        "difference": nested["difference"],
        "difference_low": interval.get("low"),
        "difference_high": interval.get("high"),
        **{
            name: paired.get(name)
            for name in ("p_value", "units", "effective_units", "gained", "lost", "mcnemar_p", "method")
        },
        **{
            name: nested[name]
            for name in (
                "p_holm", "p_equivalent", "verdict", "needed_n", "needed_low", "needed_high", "needed_of", "detectable",
                "rank", "baseline_rank", "is_sample", "note",
            )
        },
        "floor": (nested["floor"] or {}).get("value"),
        "floor_kind": (nested["floor"] or {}).get("kind"),
        "seeds": " ".join(seeds["values"]) if seeds else None,
        "seeds_sd": seeds["sd"] if seeds else None,
        **{f"gain_{form}": gain["parts"][form]["difference"] if gain and form in gain["parts"] else None
           for form in (*FORMS, SKILL)},
        "retention": nested["retention"],
        "allowed": " ".join(nested["allowed"]) or None,
        **{f"sequential_{name}": stopped.get(name) for name in ("documents", "planned", "outcome")},
    }  # fmt: skip


def _flat_score(name: str, score: dict[str, Any]) -> dict[str, Any]:
    interval = score["interval"] or {}
    return {
        name: score["value"],
        f"{name}_low": interval.get("low"),
        f"{name}_high": interval.get("high"),
        f"{name}_parsed": score["parsed"],
    }


# -- nested records, in the unit in which they are written ---------------------------------------------------------


def _nested(row: Row) -> dict[str, Any]:
    """A row as it is written: shares times 100, all other units unchanged."""
    factor = 100.0 if row.unit == SHARE else 1.0
    difference_factor = 1.0 if row.scale == "log" else factor
    needed = row.decision.needed if row.decision else None
    return {
        **{name: getattr(row, name) for name in ("task", "run", "metric", "filter", "n")},
        "unit": POINTS if row.unit == SHARE else row.unit,
        "scale": row.scale,
        "baseline": _score(row.baseline, factor),
        "score": _score(row.score, factor),
        "higher_is_better": row.higher_is_better,
        "margin": None if row.margin is None else row.margin * difference_factor,
        "difference": row.difference * difference_factor,
        "paired": _optional(row.paired, lambda paired: _paired(paired, difference_factor)),
        "p_holm": row.decision.p_holm if row.decision else None,
        "p_equivalent": row.decision.p_equivalent if row.decision else None,
        "verdict": row.verdict,
        "direction": row.decision.direction if row.decision else None,
        "lacking": row.decision.lacking if row.decision else None,
        "needed_n": needed.number if needed else None,
        "needed_low": needed.low if needed else None,
        "needed_high": needed.high if needed else None,
        "needed_of": needed.of if needed else None,
        "detectable": _optional(row.decision.detectable if row.decision else None, lambda d: d * difference_factor),
        "rank": row.rank,
        "baseline_rank": row.baseline_rank,
        "floor": _optional(row.floor, lambda floor: _floor(floor, factor)),
        "gain": _optional(row.gain, lambda gain: _gain(gain, factor)),
        "seeds": _optional(row.seeds, lambda seeds: _seeds(seeds, factor)),
        "retention": row.retention,
        "allowed": list(row.allowed),
        "is_sample": row.is_sample,
        "is_group": row.is_group,
        "note": row.note,
        "sequential": _optional(row.sequential, lambda stopped: _sequential(stopped, difference_factor)),
    }


def _optional(value: Any, write: Callable[[Any], Any]) -> Any:
    return None if value is None else write(value)


def _interval(interval: Interval | None, factor: float) -> dict[str, float] | None:
    return None if interval is None else {"low": interval.low * factor, "high": interval.high * factor}


def _score(score: Score, factor: float) -> dict[str, Any]:
    return {
        "value": score.value * factor,
        "interval": _interval(score.interval, factor),
        "method": score.method,
        "parsed": None if score.parsed is None else 100 * score.parsed,
    }


def _paired(paired: PairedDifference, factor: float) -> dict[str, Any]:
    return {
        "difference": paired.difference * factor,
        "interval": _interval(paired.interval, factor),
        "p_value": paired.p_value,
        "n": paired.n,
        "units": paired.units,
        "effective_units": paired.effective_units,
        "standard_error": paired.estimate.standard_error * factor,
        "method": paired.method,
        "gained": paired.gained,
        "lost": paired.lost,
        "mcnemar_p": paired.mcnemar_p,
    }


def _floor(floor: Floor, factor: float) -> dict[str, Any]:
    return {"value": floor.value * factor, "kind": floor.kind}


def _gain(gain: Gain, factor: float) -> dict[str, Any]:
    return {
        "parts": {
            name: {"difference": part.difference * factor, "interval": _interval(part.interval, factor), "n": part.n}
            for name, part in gain.parts.items()
        },
        "skill_before": None if gain.skill_before is None else gain.skill_before * factor,
        "skill_after": None if gain.skill_after is None else gain.skill_after * factor,
    }


def _seeds(seeds: Seeds, factor: float) -> dict[str, Any]:
    return {
        "values": {seed: value * factor for seed, value in seeds.values.items()},
        "mean": seeds.mean * factor,
        "sd": seeds.sd * factor,
    }


def _sequential(stopped: Sequential, factor: float) -> dict[str, Any]:
    return {**asdict(stopped), "repeated": _interval(stopped.repeated, factor)}


def _cost(cost: Cost) -> dict[str, Any]:
    return {**asdict(cost), "gain": None if cost.gain is None else 100 * cost.gain}


def _rounded(value: Any) -> Any:
    """Round all numbers in a nested value to six decimals, or three significant digits if they are small.

    NaN and infinity, which JSON does not have, become None.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, _DIGITS) if abs(value) >= _SMALL else float(f"{value:.3g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return value
