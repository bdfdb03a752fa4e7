"""D19, D23, D27: runs that are not comparable, an adapter without effect, and a gain that is form only."""

from __future__ import annotations

import numpy as np

from harness_ext.comparison.rows import Gain
from harness_ext.doctor.case import Case
from harness_ext.findings import Finding
from harness_ext.results.comparability import differences
from harness_ext.results.outputs import Output

LEAST_DOCUMENTS = 20


def find_against_base(case: Case, gain: Gain | None) -> list[Finding]:
    """What only shows beside the baseline.

    Args:
        case: with its `base`.
        gain: the difference taken apart, as `compare` does; None if it could not be.
    """
    if case.base is None:
        return []
    return [*_not_comparable(case, case.base), *_same_answers(case, case.base), *_form_only(case, gain)]


def _pairs(case: Case, base: Case) -> list[tuple[Output, Output]]:
    by_hash = {output.doc_hash: output for output in base.outputs}
    return [(output, by_hash[output.doc_hash]) for output in case.outputs if output.doc_hash in by_hash]


def _not_comparable(case: Case, base: Case) -> list[Finding]:
    differing = differences(base.result, case.result)
    if not differing:
        return []
    listed = "; ".join(f"{field}: {before} and {after}" for field, (before, after) in sorted(differing.items()))
    text = f"{case.where}: was not evaluated like {base.run.name}: {listed:.300}"
    numbers = {"fields": sorted(differing)}
    return [Finding("D19", "error", case.where, text, numbers, "evaluate both with the same settings")]


def _same_answers(case: Case, base: Case) -> list[Finding]:
    pairs = _pairs(case, base)
    same = sum((after.text, after.choices) == (before.text, before.choices) for after, before in pairs)
    if case.run.adapter is None or len(pairs) < LEAST_DOCUMENTS or same < len(pairs):
        return []
    text = (
        f"{case.where}: all {len(pairs):,} outputs equal those of {base.run.name}: the adapter was not applied, or it "
        "changes nothing"
    )
    remedy = f"harness-ext doctor --adapter {case.run.adapter}"
    return [Finding("D23", "error", case.where, text, {"same": same, "n": len(pairs)}, remedy)]


def _form_only(case: Case, gain: Gain | None) -> list[Finding]:
    if gain is None or case.base is None:
        return []
    skill = gain.parts.get("skill")
    total = sum(part.difference for part in gain.parts.values())
    forms = {name: part.difference for name, part in gain.parts.items() if name != "skill"}
    if total <= 0.01 or (skill is not None and skill.interval.low > 0) or not forms:
        return []
    proved = any(gain.parts[name].interval.low > 0 for name in forms)
    if not proved:
        return []
    skilled = 0.0 if skill is None else skill.difference
    listed = ", ".join(f"{name} {100 * value:+.1f}" for name, value in forms.items() if value)
    text = (
        f"{case.where}: the gain of {100 * total:+.1f} is form ({listed}); documents that both runs answer in the same "
        f"form contribute {100 * skilled:+.1f}"
    )
    numbers = {"total": total, "skill": skilled, **{name: float(np.round(value, 6)) for name, value in forms.items()}}
    remedy = "compare with a base that is asked in its own form (few-shot, chat template) before calling this a skill"
    return [Finding("D27", "warning", case.where, text, numbers, remedy)]
