"""A gain is decomposed: the parts add up, and each document counts for one reason."""

from __future__ import annotations

import numpy as np
import pytest
from lm_eval_files import sample

from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs

GENERATED = {"configs": {"demo": {"output_type": "generate_until"}}}


def outputs(rows: list[tuple[float, float, str, bool]]) -> list[dict]:
    """(score, parsed, finish_reason, abstained) for each document."""
    return [
        sample(i, {"idx": i}, {"acc": score, "parsed_rate": parsed})
        | {"finish_reason": finish, "abstain_f1": [away, True]}
        for i, (score, parsed, finish, away) in enumerate(rows)
    ]


def test_every_document_counts_for_one_reason(write_pair):
    before = outputs(
        [(0, 0, "length", False)] * 10 + [(0, 1, "length", False)] * 10 + [(0, 1, "stop", True)] * 10
        + [(0, 1, "stop", False)] * 10 + [(1, 1, "stop", False)] * 10
    )  # fmt: skip
    after = outputs([(1, 1, "stop", False)] * 35 + [(0, 1, "stop", False)] * 5 + [(1, 1, "stop", False)] * 10)
    comparison = compare_runs(load_runs(write_pair("demo", before, after, both=GENERATED)))
    (row,) = comparison.rows
    parts = row.gain.parts
    assert {name: part.n for name, part in parts.items()} == {
        "parsing": 10, "stopping": 10, "abstaining": 10, "skill": 20,
    }  # fmt: skip
    assert [part.difference for part in parts.values()] == pytest.approx([0.2, 0.2, 0.2, 0.1])
    assert sum(part.difference for part in parts.values()) == pytest.approx(row.paired.difference)
    assert (row.gain.skill_before, row.gain.skill_after) == (0.5, 0.75)
    assert all(part.interval.low <= part.difference <= part.interval.high for part in parts.values())
    text = comparison.to_markdown()
    assert "Where the gain comes from" in text
    assert "50.0 → 75.0" in text
    assert comparison.to_pandas().loc[0, "gain_parsing"] == pytest.approx(20)  # in points


def test_forced_choice_has_no_form(write_pair):
    rows = [(float(i % 2), 1, "stop", False) for i in range(40)]
    (row,) = compare_runs(load_runs(write_pair("demo", outputs(rows), outputs(rows)))).rows
    assert row.gain is None


def test_parts_are_clustered_and_form_alone_is_no_skill(write_pair):
    rng = np.random.default_rng(0)
    docs = [{"id": str(i), "context": f"passage {i // 4}"} for i in range(80)]

    def side(parsed: np.ndarray) -> list[dict]:
        scores = [{"acc": float(readable), "parsed_rate": float(readable)} for readable in parsed]
        return [sample(i, doc, score) for i, (doc, score) in enumerate(zip(docs, scores, strict=True))]

    path = write_pair("demo", side(rng.random(80) < 0.5), side(np.ones(80, bool)), both=GENERATED)
    comparison = compare_runs(load_runs(path))
    (row,) = comparison.rows
    assert row.paired.units == 20
    assert row.gain.parts["skill"].difference == 0
    assert row.gain.parts["parsing"].difference == pytest.approx(row.paired.difference)
