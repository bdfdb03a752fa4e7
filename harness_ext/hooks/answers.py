"""Scores of answers to questions: SQuAD v1 and v2, abstention by probability, bits per byte of the gold answer.

Documents have `answers` or `answer`: a list of texts, or a mapping with such a list under `text` (SQuAD), or with
`value` and `aliases` (TriviaQA). A question with an empty list is unanswerable.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness_ext.metrics import calibration, overlap, squad
from harness_ext.metrics.known import ABSTAIN_F1, ABSTAIN_PRECISION, ABSTAIN_RECALL

logger = logging.getLogger(__name__)

Doc = Mapping[str, Any]
ABSTENTION = squad.DEFAULT_ABSTENTIONS[0]  # the word that prompts ask for


def score_answer(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Score one answer by the rules of SQuAD v1, 0-100: `exact` and `f1`, best over references, and `empty_rate`."""
    text, references = results[0], _references(doc)
    name = str(doc.get("id", doc.get("question", "")))[:80] or None
    return {
        "exact": 100.0 * squad.squad_v1_exact_match(text, references, doc_id=name),
        "f1": 100.0 * squad.squad_v1_f1(text, references, doc_id=name),
        "empty_rate": 100.0 * (not text.strip()),
    }


def score_squad_v1(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score one SQuAD v1 answer: what `score_answer` returns, and BLEU, ROUGE and METEOR."""
    return {**score_answer(doc, results), **_overlaps(results[0], _references(doc))}


def score_squad_v2(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score one SQuAD v2 answer, 0-100, abstention words mapped to the empty answer.

    Returns:
        `exact`, `f1`, the same under `HasAns_` or `NoAns_` for the class of the document only, `abstain_baseline`
        (what always abstaining would score), `empty_rate`, `mapped_rate`, and for `abstain_precision`, `abstain_recall`
        and `abstain_f1` the pair (abstained, has an answer). For a document with an answer also BLEU, ROUGE, METEOR.
    """
    text, references = results[0], _references(doc)
    scores = _squad_v2(text, references)
    if "HasAns_exact" in scores:
        scores |= _overlaps("" if squad.is_abstention(text) else text, references)
    return scores


def score_squad_v2_threshold(doc: Doc, results: Sequence[Any], *, threshold: float) -> dict[str, Any]:
    """Score one SQuAD v2 answer of `AbstainByProbability`, an abstention where the word's probability says so.

    A generated abstention stays one. BLEU, ROUGE and METEOR are left to `squad_v2_generate`.

    Args:
        doc: as for `score_squad_v2`.
        results: the generated text, and (log-probability, is greedy) of the abstention word.
        threshold: natural log; above it the model is taken to abstain.

    Returns:
        What `score_squad_v2` returns but overlaps, `threshold_rate` (abstained by the threshold) and for
        `abstain_auroc` (is unanswerable, log-probability).
    """
    text, (logprob, _) = results
    references = _references(doc)
    generated = _squad_v2(text, references)
    kept = {name: generated[name] for name in ("empty_rate", "mapped_rate")}
    return {
        **(_squad_v2("", references) if logprob > threshold else generated),
        **kept,
        "threshold_rate": 100.0 * (logprob > threshold),
        "abstain_auroc": (int(not any(map(squad.normalize_answer, references))), logprob),
    }


def score_threshold_tuning(doc: Doc, results: Sequence[Any], *, threshold: float) -> dict[str, Any]:
    """For one training document: `exact` under the threshold in force, and what `best_threshold` chooses from."""
    text, (logprob, _) = results
    references = _references(doc)
    answered, abstained = (_squad_v2(each, references)["exact"] for each in (text, ""))
    row = calibration.Abstention(logprob, answered, abstained)
    return {"exact": abstained if logprob > threshold else answered, "best_threshold": row, "exact_tuned": row}


def score_gold_bits(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """How surprised a model is by the first gold answer, or by the word "unanswerable": bits per byte, lower is better.

    Returns:
        `bits_per_byte` of the document, the same under `HasAns_` or `NoAns_`, for `corpus_bits_per_byte` (bits, bytes),
        and `greedy_rate`: 100 where greedy decoding would write the answer.
    """
    [(logprob, greedy)] = results
    references = _references(doc)
    bits = -logprob / math.log(2)
    size = len((references[0] if references else ABSTENTION).encode())
    return {
        "bits_per_byte": bits / size,
        f"{'HasAns' if references else 'NoAns'}_bits_per_byte": bits / size,
        "corpus_bits_per_byte": (bits, size),
        "greedy_rate": 100.0 * greedy,
    }


def _squad_v2(text: str, references: Sequence[str]) -> dict[str, Any]:
    score = squad.score_squad_v2(text, references)
    exact, f1 = 100.0 * score.exact, 100.0 * score.f1
    group = "HasAns" if score.has_answer else "NoAns"
    decision = (score.abstained, score.has_answer)
    return {
        "exact": exact,
        "f1": f1,
        f"{group}_exact": exact,
        f"{group}_f1": f1,
        "abstain_baseline": 0.0 if score.has_answer else 100.0,
        "abstain_precision": decision,
        "abstain_recall": decision,
        "abstain_f1": decision,
        "empty_rate": 100.0 * score.empty,
        "mapped_rate": 100.0 * score.mapped,
    }


def _overlaps(text: str, references: Sequence[str]) -> dict[str, Any]:
    """BLEU, ROUGE and METEOR of a document with an answer, 0-100; METEOR is missing if WordNet is not installed.

    Empty if all references normalise to "", so that there is nothing to overlap with.
    """
    if not any(map(squad.normalize_answer, references)):
        return {}
    row = overlap.bleu_row(text, references)
    scores: dict[str, Any] = {"bleu": row, "bleu_1": row}
    scores |= {name: 100.0 * value for name, value in overlap.rouge(text, references)._asdict().items()}
    _say_once(logging.INFO, f"ROUGE: {overlap.rouge_signature()}")
    if (reason := overlap.why_no_meteor()) is None:
        scores["meteor"] = 100.0 * overlap.meteor(text, references)
        _say_once(logging.INFO, f"METEOR: {overlap.meteor_signature()}")
    else:
        _say_once(logging.WARNING, f"METEOR is missing from these results: {reason}")
    return scores


@functools.cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)


def references(doc: Doc) -> list[str]:
    """All gold answers, or the word "unanswerable": a `doc_to_target`.

    A function, since lm-eval 0.5 takes the list that a template writes for a text.
    """
    return _references(doc) or [ABSTENTION]


def _references(doc: Doc) -> list[str]:
    """Gold answers of a document, from any of the usual formats."""
    answers = doc["answers"] if "answers" in doc else doc["answer"]
    if isinstance(answers, Mapping):
        answers = answers["text"] if "text" in answers else [answers["value"], *answers["aliases"]]
    return [answers] if isinstance(answers, str) else list(answers)


def abstain_precision(decisions: Sequence[tuple[bool, bool]]) -> float:
    """Share of abstentions that are on unanswerable questions, 0-100; NaN without abstentions."""
    return ABSTAIN_PRECISION(decisions)


def abstain_recall(decisions: Sequence[tuple[bool, bool]]) -> float:
    """Share of unanswerable questions with an abstention, 0-100; NaN without unanswerable questions."""
    return ABSTAIN_RECALL(decisions)


def abstain_f1(decisions: Sequence[tuple[bool, bool]]) -> float:
    """Harmonic mean of abstention precision and recall, 0-100; NaN when neither has documents."""
    return ABSTAIN_F1(decisions)


def bleu(rows: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Corpus BLEU-4 of (prediction, references), 0-100."""
    score = overlap.corpus_bleu(rows)
    _say_once(logging.INFO, f"BLEU: {overlap.bleu_signature()}")
    return score


def bleu_1(rows: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Corpus BLEU-1 of (prediction, references), 0-100; more meaningful than BLEU-4 for very short answers."""
    return overlap.corpus_bleu(rows, order=1)


def best_threshold(rows: Sequence[tuple[float, float, float]]) -> float:
    """The log-probability of the abstention word above which abstaining gives the best score on these documents."""
    return calibration.best_threshold(rows).logprob


def exact_tuned(rows: Sequence[tuple[float, float, float]]) -> float:
    """Exact match, 0-100, with `best_threshold`, on the documents that it was tuned on; not a result to report."""
    return calibration.best_threshold(rows).score


def corpus_bits_per_byte(rows: Sequence[tuple[float, int]]) -> float:
    """Bits of all answers divided by bytes of all answers; long answers have more weight."""
    bits, sizes = zip(*rows, strict=True)
    return math.fsum(bits) / sum(sizes)


def answerable(docs: Any) -> Any:
    """Only the questions that have an answer (a `process_docs`)."""
    return docs.filter(lambda doc: bool(_references(doc)))


def shuffled(docs: Any) -> Any:
    """The same documents in a drawn order, always the same, so that a limit takes a fair part (a `process_docs`)."""
    return docs.shuffle(seed=0)
