"""D1, D5: the answer is in the output, but in a form that the metric does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from harness_ext.comparison.units import cluster_column
from harness_ext.doctor.alternatives import OTHER_FORM, READINGS, TEXT_AFTER_ANSWER
from harness_ext.doctor.case import Case
from harness_ext.doctor.decomposition import decompose, parsed_flags
from harness_ext.doctor.evidence import Gain, gains
from harness_ext.findings import Finding, Level
from harness_ext.stats.units import Clusters

LEAST_PARSED = 0.95
CONTAINED = 2  # times as many outputs contain the reference answer as match it
LONG = 2  # times as long as the reference answer
LEAST_MATCHES = 5  # documents

_REMEDIES = {
    "D1": "accept this form in the task's scoring (a filter or `process_results`), or ask for the bare answer",
    "D5": "add the string that follows the answer to `generation_kwargs: until`, or train with an end token",
}


def find_form(case: Case) -> list[Finding]:
    """Outputs that do not parse, and answers with text behind them; proved by scoring other readings of the outputs."""
    if not case.is_generated:
        return []
    proved = rescored(case)
    findings = [*_unparsed(case, proved), *_text_after_answer(case, proved)]
    reported = {finding.id for finding in findings}
    findings += [
        _proof(case, id, gain)
        for id, readings in (("D1", OTHER_FORM), ("D5", TEXT_AFTER_ANSWER))
        if id not in reported
        for gain in [gain for name, gain in proved.items() if name in readings][:1]
    ]
    return findings


def rescored(case: Case) -> Mapping[str, Gain]:
    """Readings of the outputs that score significantly more than the outputs as they are, the best first."""
    if case.rescorer is None or not case.is_generated:
        return {}
    docs = [output.doc for output in case.outputs]
    as_logged = case.rescorer.scores(docs, [output.text or "" for output in case.outputs]) * case.factor
    scored = ~np.isnan(as_logged) & ~np.isnan(case.values)
    if not scored.any() or not np.allclose(as_logged[scored], case.values[scored], atol=1e-4):
        return {}  # the installed task scores differently from the one that was evaluated
    changes = {}
    for name, reading in READINGS.items():
        texts = [reading(output) for output in case.outputs]
        if texts != [output.text for output in case.outputs]:
            changes[name] = (case.rescorer.scores(docs, texts) * case.factor)[scored]
    gained = gains(as_logged[scored], changes, _clusters(case, scored))
    return {gain.change: gain for gain in gained if gain.is_proved}


def _clusters(case: Case, scored: NDArray[np.bool_]) -> Clusters | None:
    """The units of the scored documents; None if any document lacks the column."""
    column = cluster_column(case.result, {})
    labels = [output.doc.get(column) for output in case.outputs]
    return None if None in labels else Clusters([str(label) for label in labels]).take(scored)


def _proof(case: Case, id: str, gain: Gain) -> Finding:
    what = "text follows the answer" if id == "D5" else "the answer is there, in a form that is not read"
    text = f"{case.where}: {what}: {case.metric.metric} rises from {gain} {gain.change}"
    return Finding(id, "error", case.where, text, _numbers(gain), _REMEDIES[id])


def _numbers(gain: Gain) -> dict[str, object]:
    return {
        "change": gain.change, "before": gain.before, "after": gain.after, "low": gain.interval.low,
        "high": gain.interval.high, "p": gain.p_value, "n": gain.n, "proved": True,
    }  # fmt: skip


def _unparsed(case: Case, proved: Mapping[str, Gain]) -> list[Finding]:
    parsed, parts = parsed_flags(case), decompose(case)
    if parsed is None or parts.parsed_rate is None or parts.parsed_rate >= LEAST_PARSED:
        return []
    text = (
        f"{case.where}: {100 * (1 - parts.parsed_rate):.1f} % of the outputs do not parse: {case.metric.metric} "
        f"{100 * parts.score:.1f} = {100 * parts.parsed_rate:.1f} % parsed"
    )
    if parts.score_parsed is not None:
        text += f" x {100 * parts.score_parsed:.1f} of those right"
    numbers: dict[str, object] = {
        "parsed_rate": parts.parsed_rate,
        "score_parsed": parts.score_parsed,
        "examples": case.examples(np.flatnonzero(~parsed).tolist()),
    }
    best = next((gain for name, gain in proved.items() if name in OTHER_FORM), None)
    if best is not None:
        text += f"; it rises from {best} {best.change}"
        numbers |= _numbers(best)
    chance = _chance(case)
    below_chance = chance is not None and parts.score < chance <= (parts.score_parsed or 0.0)
    if below_chance:
        text += f"; below chance ({100 * (chance or 0):.1f}) only because of the format"
    level: Level = "error" if below_chance or best is not None else "warning"
    return [Finding("D1", level, case.where, text, numbers, _REMEDIES["D1"])]


def _text_after_answer(case: Case, proved: Mapping[str, Gain]) -> list[Finding]:
    longer = [
        index
        for index, output in enumerate(case.outputs)
        if output.text is not None and _contains(output.text, output.target) and case.values[index] < 1
    ]
    matches = int(np.nansum(case.values >= 1))
    suspicious = len(longer) >= LEAST_MATCHES and len(longer) + matches >= CONTAINED * max(matches, 1)
    best = next((gain for name, gain in proved.items() if name in TEXT_AFTER_ANSWER), None)
    if best is None and not suspicious:
        return []
    text = f"{case.where}: {len(longer):,} outputs contain the reference answer without matching it ({matches:,} match)"
    numbers: dict[str, object] = {"contained": len(longer), "matching": matches, "examples": case.examples(longer)}
    if best is not None:
        text += f"; {case.metric.metric} rises from {best} {best.change}"
        numbers |= _numbers(best)
    return [Finding("D5", "warning" if best is None else "error", case.where, text, numbers, _REMEDIES["D5"])]


def _contains(text: str, target: str) -> bool:
    """Whether a text contains a reference answer as words, and is much longer."""
    answer = target.strip().strip("[]'\"")
    if len(answer) < 2 or len(text.strip()) <= LONG * len(answer):
        return False
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def _chance(case: Case) -> float | None:
    choices = [output.doc.get("choices") for output in case.outputs[:1]]
    if choices and isinstance(choices[0], (list, tuple)) and choices[0]:
        return 1 / len(choices[0])
    return None
