"""The functions for task authors: a task YAML names them with `!function harness_ext.hooks.NAME`.

A scoring hook is an lm-eval `process_results`: it gets one document and the model's results for it, and returns one
value per metric. If a metric is not a plain mean, the YAML names a second function as its aggregation. A hook must
return only metrics in the task's `metric_list`, since lm-eval reports the plain mean of any other.

There are also `load_documents` (for `custom_dataset`), `answerable` and `shuffled` (for `process_docs`), few-shot
samplers (for `fewshot_config: sampler`), and task classes with more requests per document (for `class`).
"""

from __future__ import annotations

from harness_ext.hooks.answers import (
    abstain_f1,
    abstain_precision,
    abstain_recall,
    answerable,
    best_threshold,
    bleu,
    bleu_1,
    corpus_bits_per_byte,
    exact_tuned,
    references,
    score_answer,
    score_gold_bits,
    score_squad_v1,
    score_squad_v2,
    score_squad_v2_threshold,
    score_threshold_tuning,
    shuffled,
)
from harness_ext.hooks.choices import (
    auroc,
    ece,
    macro_f1,
    majority_baseline,
    maximum,
    mcc,
    median,
    minimum,
    score_choice,
    score_choice_calibrated,
    score_label,
    score_prompts,
    top_class_share,
)
from harness_ext.protocol.documents import load_documents
from harness_ext.protocol.fewshot import BalancedSampler, FixedBalancedSampler
from harness_ext.protocol.lm_eval_api import allow_hooked_metrics
from harness_ext.protocol.requests import AbstainByProbability, CalibratedChoice, PromptSpread

allow_hooked_metrics()

__all__ = [
    "AbstainByProbability",
    "BalancedSampler",
    "CalibratedChoice",
    "FixedBalancedSampler",
    "PromptSpread",
    "abstain_f1",
    "abstain_precision",
    "abstain_recall",
    "answerable",
    "auroc",
    "best_threshold",
    "bleu",
    "bleu_1",
    "corpus_bits_per_byte",
    "ece",
    "exact_tuned",
    "load_documents",
    "macro_f1",
    "majority_baseline",
    "maximum",
    "mcc",
    "median",
    "minimum",
    "references",
    "score_answer",
    "score_choice",
    "score_choice_calibrated",
    "score_gold_bits",
    "score_label",
    "score_prompts",
    "score_squad_v1",
    "score_squad_v2",
    "score_squad_v2_threshold",
    "score_threshold_tuning",
    "shuffled",
    "top_class_share",
]
