"""A score taken apart into its factors: how often the output parsed, how good it was then, and by kind of document."""

from __future__ import annotations

import numpy as np

from harness_ext.doctor.case import Case
from harness_ext.doctor.diagnosis import Decomposition


def decompose(case: Case) -> Decomposition:
    """Take the primary metric of a case apart."""
    values = case.values
    scored = values[~np.isnan(values)]
    parsed = parsed_flags(case)
    has, no = case.column("HasAns_exact"), case.column("NoAns_exact")
    answerable = ~np.isnan(has)
    finish = [output.logged.get("finish_reason") for output in case.outputs]
    known_finish = [reason for reason in finish if reason is not None]
    texts = [output.text for output in case.outputs if output.text is not None]
    is_squad_v2 = bool(answerable.any() and (~np.isnan(no)).any())
    return Decomposition(
        score=float(scored.mean()) if len(scored) else case.metric.value * case.factor,
        parsed_rate=None if parsed is None else float(parsed.mean()),
        score_parsed=None if parsed is None or not parsed.any() else float(np.nanmean(values[parsed])),
        has_answer=float(values[answerable].mean()) if is_squad_v2 else None,
        no_answer=float(values[~answerable].mean()) if is_squad_v2 else None,
        share_no_answer=float((~answerable).mean()) if is_squad_v2 else None,
        at_token_limit=known_finish.count("length") / len(known_finish) if known_finish else None,
        empty=sum(not text.strip() for text in texts) / len(texts) if texts else None,
    )


def parsed_flags(case: Case) -> np.ndarray | None:
    """Which outputs parsed, (n,) bool; None if that was not logged for every document."""
    for name in ("parsed", "parsed_rate"):
        flags = case.column(name)
        if len(flags) and not np.isnan(flags).any():
            return flags > 0
    return None
