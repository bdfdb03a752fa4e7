"""D6, D11: outputs that do not stop, and prompts that were cut."""

from __future__ import annotations

from collections import Counter

import numpy as np

from harness_ext.doctor.case import Case
from harness_ext.doctor.decomposition import decompose
from harness_ext.findings import Finding, Level

MOST_AT_LIMIT = 0.05
MANY_AT_LIMIT = 0.5
MANY_CUT = 0.5  # share of the prompts
NGRAM, REPEATS = 4, 3  # words; times one n-gram stands in an output that repeats itself


def find_stopping(case: Case) -> list[Finding]:
    """Outputs at the token limit, and prompts that left no room for the answer."""
    return [*_run_on(case), *_cut_prompts(case)]


def _run_on(case: Case) -> list[Finding]:
    share = decompose(case).at_token_limit
    if share is None or share <= MOST_AT_LIMIT:
        return []
    at_limit = [i for i, output in enumerate(case.outputs) if output.logged.get("finish_reason") == "length"]
    repeating = sum(_repeats(case.outputs[index].text or "") for index in at_limit)
    cut_score = float(np.nanmean(case.values[at_limit])) if not np.isnan(case.values[at_limit]).all() else None
    text = f"{case.where}: {100 * share:.1f} % of the outputs end at the token limit instead of stopping"
    if repeating:
        text += f", {repeating:,} of them in repetitions"
    if cut_score is not None:
        text += f"; they score {100 * cut_score:.1f}, all outputs {100 * decompose(case).score:.1f}"
    numbers = {"share": share, "repeating": repeating, "score": cut_score, "examples": case.examples(at_limit)}
    remedy = "train with an end token behind each answer, add a stop string to `until`, or raise `max_gen_toks`"
    return [Finding("D6", "error" if share > MANY_AT_LIMIT else "warning", case.where, text, numbers, remedy)]


def _repeats(text: str) -> bool:
    words = text.split()
    counts = Counter(tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))
    return max(counts.values(), default=0) >= REPEATS


def _cut_prompts(case: Case) -> list[Finding]:
    limit = case.run.model_args.get("max_length")
    if limit is None:
        return []
    room = int(limit) - _max_gen_toks(case)
    tokens = case.column("input_tokens")
    cut = np.flatnonzero(tokens >= room)
    if room <= 0 or not len(cut):
        return []
    text = (
        f"{case.where}: {len(cut):,} prompts leave less than the {_max_gen_toks(case)} tokens of the answer in "
        f"max_length={limit}, so their beginning was probably cut off"
    )
    remedy = "raise max_length, lower max_gen_toks, or leave out max_length"
    numbers = {"prompts": len(cut), "max_length": int(limit)}
    level: Level = "error" if len(cut) > MANY_CUT * len(case.outputs) else "warning"
    return [Finding("D11", level, case.where, text, numbers, remedy)]


def _max_gen_toks(case: Case) -> int:
    kwargs = case.result.config.get("generation_kwargs")
    return int(kwargs.get("max_gen_toks", 256)) if isinstance(kwargs, dict) else 256
