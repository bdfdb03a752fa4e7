"""D12, D13, D14: abstentions that earn nothing, scores that come from them alone, and metrics on different scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness_ext.doctor.alternatives import AS_ABSTENTION, abstains
from harness_ext.doctor.case import Case
from harness_ext.doctor.decomposition import decompose
from harness_ext.doctor.evidence import Gain
from harness_ext.doctor.logged.readings import best, clusters_of, numbers_of
from harness_ext.findings import Finding, Level
from harness_ext.stats.paired import paired_difference

MOST_EMPTY = 0.3
MOSTLY = 0.9  # of the credit
LEAST_ABSTENTIONS, MANY_ABSTENTIONS = 0.05, 0.5  # share of the unanswerable documents


def find_abstaining(case: Case, proved: Mapping[str, Gain]) -> list[Finding]:
    """What abstaining contributes to a SQuAD v2 score, and metrics that are on other scales than their neighbours.

    Args:
        case: any task.
        proved: other readings of the outputs that score more, as `rescored` returns.
    """
    return [*_scored_wrong(case, best(proved, AS_ABSTENTION)), *_only_empties(case), *_mixed_scales(case)]


def _scored_wrong(case: Case, gain: Gain | None) -> list[Finding]:
    unanswerable = [index for index, output in enumerate(case.outputs) if output.is_unanswerable]
    abstained = [index for index in unanswerable if abstains(case.outputs[index].text or "")]
    earned = np.nansum(case.values[abstained]) > 0
    if gain is None and (earned or not abstained or len(abstained) < LEAST_ABSTENTIONS * len(unanswerable)):
        return []
    text = (
        f"{case.where}: {len(abstained):,} of {len(unanswerable):,} unanswerable questions are answered with an "
        f"abstention such as {(case.outputs[abstained[0]].text or '').strip()[:40]!r}, and "
        f"{np.nansum(case.values[abstained]):,.0f} of them count as right"
    )
    numbers: dict[str, object] = {
        "abstained": len(abstained), "unanswerable": len(unanswerable), "examples": case.examples(abstained),
    }  # fmt: skip
    if gain is not None:
        text += f"; {case.metric.metric} rises from {gain} {gain.change}"
        numbers |= numbers_of(gain)
    remedy = "map abstention words to the empty answer before scoring, as `harness_ext.hooks.score_squad_v2` does"
    many = len(abstained) >= MANY_ABSTENTIONS * len(unanswerable)
    return [Finding("D12", "error" if gain is not None or many else "warning", case.where, text, numbers, remedy)]


def _only_empties(case: Case) -> list[Finding]:
    parts, baseline = decompose(case), case.value("abstain_baseline")
    if parts.has_answer is None or parts.no_answer is None:
        if parts.empty is not None and parts.empty > MOST_EMPTY:
            empty = [index for index, output in enumerate(case.outputs) if not (output.text or "").strip()]
            text = f"{case.where}: {100 * parts.empty:.1f} % of the outputs are empty"
            remedy = "check stop strings: the model may write one of them first"
            return [
                Finding(
                    "D13", "warning", case.where, text, {"empty": parts.empty, "examples": case.examples(empty)}, remedy
                )
            ]
        return []
    share_no = parts.share_no_answer or 0.0
    from_abstaining = parts.no_answer * share_no
    floor = share_no if baseline is None else baseline * case.factor
    f1, exact = case.value("f1"), case.value("exact")
    equal = f1 is not None and exact is not None and exact > 1 and f1 - exact < 1
    mostly_empty = parts.score > 0 and from_abstaining / parts.score > MOSTLY
    if parts.score > floor and not (equal and mostly_empty):
        return []
    text = (
        f"{case.where}: {case.metric.metric} {100 * parts.score:.1f} is {100 * from_abstaining:.1f} from questions "
        f"without an answer and {100 * (parts.score - from_abstaining):.1f} from questions with one; always abstaining "
        f"scores {100 * floor:.1f}"
    )
    if equal:
        text += f". F1 ({f1:.1f}) equals exact match ({exact:.1f}): nearly all credit comes from empty answers"
    numbers = {"has_answer": parts.has_answer, "no_answer": parts.no_answer, "floor": floor}
    remedy = "read HasAns_exact and NoAns_exact separately; train on more questions that have an answer"
    is_error = (mostly_empty and parts.score <= floor) or _is_below_abstaining(case)
    level: Level = "error" if is_error else "warning"
    return [Finding("D13", level, case.where, text, numbers, remedy)]


def _is_below_abstaining(case: Case) -> bool:
    """Whether always abstaining would score significantly more on the same documents."""
    scored = ~np.isnan(case.values)
    if scored.sum() < 2:
        return False
    abstaining = np.array([float(output.is_unanswerable) for output in case.outputs])
    clusters = clusters_of(case, scored)
    try:
        return paired_difference(abstaining[scored], case.values[scored], clusters).interval.high < 0
    except ValueError:  # all documents share one passage
        return False


def _mixed_scales(case: Case) -> list[Finding]:
    bleu = case.value("bleu")
    exact = next((value for name in ("exact", "exact_match", "em") if (value := case.value(name)) is not None), None)
    if bleu is None or exact is None or not (0 < bleu <= 1 < exact):
        return []
    text = f"{case.where}: bleu {bleu:.3f} stands beside exact {exact:.1f}: one is probably on 0-1, the other on 0-100"
    remedy = "declare the unit of each metric (metadata: metrics: {bleu: {unit: share}}), or scale the metric"
    return [Finding("D14", "warning", case.where, text, {"bleu": bleu, "exact": exact}, remedy)]
