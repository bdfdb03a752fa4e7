"""D1, D5: the answer is in the output, but in a form that the metric does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from harness_ext.doctor.alternatives import OTHER_FORM, TEXT_AFTER_ANSWER
from harness_ext.doctor.case import Case
from harness_ext.doctor.decomposition import decompose, parsed_flags
from harness_ext.doctor.evidence import Gain
from harness_ext.doctor.logged.readings import best, numbers_of
from harness_ext.findings import Finding, Level

LEAST_PARSED = 0.95
CONTAINED = 2  # times as many outputs contain the reference answer as match it
LONG = 2  # times as long as the reference answer
SHORTEST = 2  # characters of a reference answer that is looked for
LEAST_MATCHES = 5  # documents

_REMEDIES = {
    "D1": "accept this form in the task's scoring (a filter or `process_results`), or ask for the bare answer",
    "D5": "add the string that follows the answer to `generation_kwargs: until`, or train with an end token",
}


def find_form(case: Case, proved: Mapping[str, Gain]) -> list[Finding]:
    """Outputs that do not parse, and answers with text behind them.

    Args:
        case: of generated outputs; others have no findings.
        proved: other readings of the outputs that score more, as `rescored` returns.
    """
    if not case.is_generated:
        return []
    findings = [*_unparsed(case, proved), *_text_after_answer(case, proved)]
    reported = {finding.id for finding in findings}
    findings += [
        _proof(case, id, gain)
        for id, readings in (("D1", OTHER_FORM), ("D5", TEXT_AFTER_ANSWER))
        if id not in reported and (gain := best(proved, readings)) is not None
    ]
    return findings


def _proof(case: Case, id: str, gain: Gain) -> Finding:
    what = "text follows the answer" if id == "D5" else "the answer is there, in a form that is not read"
    text = f"{case.where}: {what}: {case.metric.metric} rises from {gain} {gain.change}"
    return Finding(id, "error", case.where, text, numbers_of(gain), _REMEDIES[id])


def _unparsed(case: Case, proved: Mapping[str, Gain]) -> list[Finding]:
    parsed, parts = parsed_flags(case), decompose(case)
    if parsed is None or parts.parsed_rate is None or parts.parsed_rate >= LEAST_PARSED:
        return []
    silent = np.array([not (output.text or "").strip() for output in case.outputs]) & ~parsed
    if silent.mean() > 1 - parts.parsed_rate - (1 - LEAST_PARSED):
        return []  # nothing was written that could parse (D13)
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
    gain = best(proved, OTHER_FORM)
    if gain is not None:
        text += f"; it rises from {gain} {gain.change}"
        numbers |= numbers_of(gain)
    chance = _chance(case)
    below_chance = chance is not None and parts.score < chance <= (parts.score_parsed or 0.0)
    if below_chance:
        text += f"; below chance ({100 * (chance or 0):.1f}) only because of the format"
    level: Level = "error" if below_chance or gain is not None else "warning"
    return [Finding("D1", level, case.where, text, numbers, _REMEDIES["D1"])]


def _text_after_answer(case: Case, proved: Mapping[str, Gain]) -> list[Finding]:
    longer = [
        index
        for index, output in enumerate(case.outputs)
        if output.text is not None and _contains(output.text, output.references) and case.values[index] < 1
    ]
    matches = int(np.nansum(case.values >= 1))
    suspicious = len(longer) >= LEAST_MATCHES and len(longer) + matches >= CONTAINED * max(matches, 1)
    gain = best(proved, TEXT_AFTER_ANSWER)
    if gain is None and not suspicious:
        return []
    text = f"{case.where}: {len(longer):,} outputs contain the reference answer without matching it ({matches:,} match)"
    numbers: dict[str, object] = {"contained": len(longer), "matching": matches, "examples": case.examples(longer)}
    if gain is not None:
        text += f"; {case.metric.metric} rises from {gain} {gain.change}"
        numbers |= numbers_of(gain)
    return [Finding("D5", "warning" if gain is None else "error", case.where, text, numbers, _REMEDIES["D5"])]


def _contains(text: str, references: Sequence[str]) -> bool:
    """Whether a text contains a reference answer as words, and is much longer."""
    return any(
        len(answer) >= SHORTEST
        and len(text.strip()) > LONG * len(answer)
        and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None
        for answer in map(str.strip, references)
    )


def _chance(case: Case) -> float | None:
    choices = [output.doc.get("choices") for output in case.outputs[:1]]
    if choices and isinstance(choices[0], (list, tuple)) and choices[0]:
        return 1 / len(choices[0])
    return None
