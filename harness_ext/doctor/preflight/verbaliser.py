"""D18: label words of several tokens, and labels that share their first token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from harness_ext.doctor.preflight.examples import TrainingCase
from harness_ext.findings import Finding

MOST_LABELS = 50  # more are answers, not labels


def labels_of(case: TrainingCase) -> list[tuple[int, ...]]:
    """Token ids of the labels of a forced choice; empty if documents have answers of their own."""
    if case.task.OUTPUT_TYPE != "multiple_choice":
        return []
    of_each = [{tuple(request.continuation) for request in example.requests} for example in case.examples]
    if not all(labels == of_each[0] for labels in of_each) or not 2 <= len(of_each[0]) <= MOST_LABELS:
        return []
    return list(dict.fromkeys(tuple(request.continuation) for request in case.examples[0].requests))


def find_verbaliser(case: TrainingCase) -> list[Finding]:
    """Labels that the scores cannot tell apart by their first token, or that differ in length."""
    labels = labels_of(case)
    by_first: dict[int, list[Sequence[int]]] = defaultdict(list)
    for label in labels:
        by_first[label[0]].append(label)
    findings = []
    if shared := next((group for group in by_first.values() if len(group) > 1), None):
        words = ", ".join(repr(case.decode(label)) for label in shared)
        text = f"{case.where}: labels {words} begin with the same token, {case.decode(shared[0][:1])!r}"
        remedy = "choose label words with different first tokens"
        findings.append(Finding("D18", "warning", case.where, text, {"labels": len(shared)}, remedy))
    several = [label for label in labels if len(label) > 1]
    if several and len({len(label) for label in labels}) > 1:
        words = ", ".join(f"{case.decode(label)!r} ({len(label)})" for label in labels)
        text = f"{case.where}: labels have different numbers of tokens: {words}; longer ones tend to score lower"
        remedy = "choose label words of one token, or report acc_norm"
        findings.append(Finding("D18", "note", case.where, text, {"labels": len(several)}, remedy))
    return findings
