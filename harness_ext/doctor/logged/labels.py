"""D2, D3: labels that are swapped, and a model that always gives the same one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy.stats import binomtest

from harness_ext.doctor.case import Case
from harness_ext.doctor.decomposition import decompose
from harness_ext.findings import Finding
from harness_ext.stats.roc import auroc

LEAST_PARSED = 0.95
ONE_CLASS = 0.9
LEAST_DOCUMENTS = 20
SEPARATES = 0.6  # AUROC from which a model that always gives one label still tells the classes apart


def find_labels(case: Case) -> list[Finding]:
    """Swapped labels, or one label for nearly everything."""
    pairs = [(gold, predicted) for gold, predicted in case.labels() if predicted is not None]
    classes = {gold for gold, _ in pairs}
    if len(pairs) < LEAST_DOCUMENTS or len(classes) < 2:
        return []
    return [*_swapped(case, pairs, classes), *_one_class(case, pairs)]


def _swapped(case: Case, pairs: list[tuple[int, int]], classes: set[int]) -> list[Finding]:
    rate = decompose(case).parsed_rate
    if len(classes) != 2 or (rate is not None and rate < LEAST_PARSED):
        return []
    right = sum(gold == predicted for gold, predicted in pairs)
    upper = binomtest(right, len(pairs)).proportion_ci(0.95).high
    one_label = max(Counter(predicted for _, predicted in pairs).values()) / len(pairs)
    if upper >= 0.5 or one_label > ONE_CLASS:
        return []
    share = right / len(pairs)
    text = (
        f"{case.where}: only {100 * share:.1f} % right, significantly below guessing; with the two labels swapped it "
        f"would be {100 * (1 - share):.1f} %"
    )
    remedy = "check the order of `doc_to_choice` against the label column"
    numbers = {"right": share, "swapped": 1 - share, "upper": float(upper), "n": len(pairs)}
    return [Finding("D2", "error", case.where, text, numbers, remedy)]


def _one_class(case: Case, pairs: list[tuple[int, int]]) -> list[Finding]:
    (label, count), *_ = Counter(predicted for _, predicted in pairs).most_common(1)
    share = count / len(pairs)
    most_gold = max(Counter(gold for gold, _ in pairs).values()) / len(pairs)
    if share <= ONE_CLASS or most_gold > ONE_CLASS - 0.1:
        return []
    text = (
        f"{case.where}: {100 * share:.1f} % of the outputs are label {label}, which has at most {100 * most_gold:.1f} %"
    )
    separation = _separation(case)
    remedy = "look at the prompt's label words, and evaluate with examples (--num_fewshot)"
    if separation is not None and separation > SEPARATES:
        text += f"; the scores still tell the classes apart (AUROC {100 * separation:.1f})"
        remedy = "calibrate the choice, as sst2_choice_calibrated does"
    numbers = {"label": label, "share": share, "auroc": separation}
    return [Finding("D3", "warning", case.where, text, numbers, remedy)]


def _separation(case: Case) -> float | None:
    rows = [output.logged.get("auroc") for output in case.outputs]
    ranked = [(float(row[0]), float(row[1])) for row in rows if isinstance(row, (list, tuple)) and len(row) == 2]
    if len({gold for gold, _ in ranked}) < 2:
        return None
    labels, scores = np.array(ranked).T
    return float(auroc(labels, scores))
