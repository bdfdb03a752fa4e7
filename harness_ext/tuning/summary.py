"""How the winner of a tournament was chosen: for its card, and for the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness_ext.models.card import STANDINGS
from harness_ext.stats.halving import EntryComparison, compare_entries
from harness_ext.stats.intervals import Mean
from harness_ext.training.model_card import DIFFERENCE, SCORE, interval_text
from harness_ext.tuning.record import Documents, Record, Scored


def summary_of(record: Record, winner: int) -> dict[str, Any]:
    """The record of a finished tournament, as it stands in the card of the winner.

    Every other entry is compared with the winner at the last rung that it took part in, when both had been trained for
    the same share of their steps; Holm's correction covers all of them.

    Args:
        record: of a tournament whose winner has been scored on other documents.
        winner: its entry.
    """
    documents, rungs, again = record.documents, [rung for rung in record.rungs if rung], record.winner
    assert documents is not None
    assert again is not None
    entries = range(len(record.design["entries"]))
    last = {entry: max(number for number, rung in enumerate(rungs) if entry in rung) for entry in entries}
    others = [entry for entry in entries if entry != winner]
    comparisons = compare_entries(
        [(rungs[last[entry]][winner].scores, rungs[last[entry]][entry].scores) for entry in others],
        documents.clusters, limits=documents.metric.limits, higher_is_better=documents.metric.higher_is_better,
    )  # fmt: skip
    against = dict(zip(others, comparisons, strict=True))
    end = [again if entry == winner else rungs[last[entry]][entry] for entry in entries]  # where each one stopped
    return {
        "design_sha256": record.digest,
        "metric": documents.metric.name,
        "is_share": documents.metric.in_points,
        "higher_is_better": documents.metric.higher_is_better,
        "documents": len(rungs[0][winner].scores),
        "units": _units(documents.units, rungs[0][winner]),
        "data_sha256": documents.data_sha256,
        "rungs": [
            {"share": record.design["first_rung"] * 2**number, "entries": len(rung)}
            for number, rung in enumerate(rungs)
        ],
        "entries": [
            _entry(record, entry, last[entry], rungs[last[entry]][entry], against.get(entry)) for entry in entries
        ],
        "winner": winner + 1,
        "winner_again": {
            "documents": len(again.scores), "units": _units(documents.units_again, again),
            **_numbers(documents.mean(again.scores, documents.clusters_again)),
        },
        "trained_share": sum(each.examples * each.step / each.planned_steps for each in end)
        / sum(each.examples for each in end),
        "training_seconds": round(sum(each.training_seconds for each in end), 1),
        "full_training_seconds": round(sum(each.training_seconds * each.planned_steps / each.step for each in end), 1),
        "scoring_seconds": round(sum(each.scoring_seconds for rung in rungs for each in rung.values())
                                 + again.scoring_seconds, 1),
    }  # fmt: skip


def _entry(record: Record, entry: int, rung: int, scored: Scored, against: EntryComparison | None) -> dict[str, Any]:
    documents: Documents | None = record.documents
    assert documents is not None
    row = {
        "name": record.design["entries"][entry]["name"], "rung": rung + 1, "step": scored.step,
        "planned_steps": scored.planned_steps, "standing": "winner",
        **_numbers(documents.mean(scored.scores, documents.clusters)),
    }  # fmt: skip
    if against is not None:
        row |= {
            "standing": against.standing, "difference": against.difference, "difference_low": against.interval.low,
            "difference_high": against.interval.high, "p_value": against.p_value,
        }  # fmt: skip
    return row


def _units(units: list[int] | None, scored: Scored) -> int:
    return len(scored.scores) if units is None else len(set(units))


def _numbers(mean: Mean) -> dict[str, float]:
    return {"score": mean.value, "low": mean.interval.low, "high": mean.interval.high}


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """A finished tournament in a few lines: the winner, the others, what it cost."""
    entries, again = summary["entries"], summary["winner_again"]
    lines = [
        f"winner {entries[summary['winner'] - 1]['name']}: {summary['metric']} "
        f"{interval_text(summary, again, SCORE)} on {again['documents']:,} other documents"
    ]
    for standing in STANDINGS[1:]:
        names = [
            f"{entry['name']} ({interval_text(summary, entry, DIFFERENCE, sign='+')} at rung {entry['rung']})"
            for entry in entries
            if entry["standing"] == standing
        ]
        if names:
            lines.append(f"{standing}, compared with the winner: {', '.join(names)}")
    lines.append(
        f"{100 * summary['trained_share']:.0f} % of the training of all {len(entries)} entries; "
        f"{summary['training_seconds']:.0f} s of training, {summary['scoring_seconds']:.0f} s of scoring"
    )
    return lines
