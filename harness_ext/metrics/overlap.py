"""BLEU, ROUGE and METEOR of short answers: secondary to exact match and F1, never the headline metric.

They are misleading for short spans. Most gold answers are shorter than the four words that BLEU-4 counts, so corpus
BLEU of *perfect* one-word answers is 0, and METEOR of a perfect one-word answer is 0.5. They are computed only for
questions with an answer; predictions and references are normalised as for exact match.

The scores come from sacrebleu, rouge_score and nltk, each imported when it is first needed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version
from itertools import zip_longest
from typing import Any, NamedTuple

from harness_ext.errors import MetricError
from harness_ext.metrics.squad import normalize_answer

BLEU_ORDER = 4
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5  # nltk's defaults, fixed because its versions differ
WORDNET_REMEDY = "run `make wordnet` (or `python -m harness_ext.wordnet`)"


class BleuRow(NamedTuple):
    """What a document contributes to corpus BLEU; a plain tuple of JSON values in the logged samples."""

    prediction: str  # normalised
    references: list[str]  # normalised, none of them empty


class RougeScores(NamedTuple):
    """ROUGE F-measures of one document, 0..1."""

    rouge1: float
    rouge2: float
    rougeL: float


def bleu_row(prediction: str, references: Sequence[str]) -> BleuRow:
    """Normalise a prediction and its references for `corpus_bleu`.

    Raises:
        MetricError: no reference is left after normalising, or `references` is one string.

    >>> bleu_row("The cat.", ["a black cat", "cat", "the"])
    BleuRow(prediction='cat', references=['black cat', 'cat'])
    """
    return BleuRow(normalize_answer(prediction), _golds(references))


def corpus_bleu(rows: Sequence[tuple[str, Sequence[str]]], *, order: int = BLEU_ORDER) -> float:
    """Corpus BLEU, 0..100, of rows from `bleu_row`; documents may have different numbers of references.

    Args:
        rows: (prediction, references) of each document.
        order: longest n-gram counted, 4 for BLEU-4.

    Raises:
        MetricError: no documents.

    >>> [round(corpus_bleu([("cat", ["cat"])], order=order), 9) for order in (4, 1)]
    [0.0, 100.0]
    """
    if not rows:
        raise MetricError("corpus_bleu: no documents; pass at least one")
    predictions = [prediction for prediction, _ in rows]
    references = [list(column) for column in zip_longest(*(references for _, references in rows))]
    return float(_bleu(order).corpus_score(predictions, references).score)


def bleu_signature(order: int = BLEU_ORDER) -> str:
    """How sacrebleu computed the last `corpus_bleu` of this order, in its own notation.

    >>> score = corpus_bleu([("cat", ["cat"]), ("dog", ["a dog", "dog"])])
    >>> bleu_signature().split("|version")[0]
    'nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp'
    """
    return str(_bleu(order).get_signature())


@functools.cache
def _bleu(order: int) -> Any:
    import sacrebleu

    # Our texts are short and lower-cased on purpose; force=True turns off sacrebleu's warnings about that.
    return sacrebleu.BLEU(max_ngram_order=order, force=True)


def rouge(prediction: str, references: Sequence[str]) -> RougeScores:
    """ROUGE-1, -2 and -L F-measures, 0..1, with the Porter stemmer; each is the maximum over references.

    Raises:
        MetricError: no reference is left after normalising, or `references` is one string.

    >>> rouge("black cats", ["the black cat", "dog"])
    RougeScores(rouge1=1.0, rouge2=1.0, rougeL=1.0)
    """
    predicted = normalize_answer(prediction)
    scores = [_rouge_scorer().score(gold, predicted) for gold in _golds(references)]
    return RougeScores(*(float(max(score[name].fmeasure for score in scores)) for name in RougeScores._fields))


def rouge_signature() -> str:
    """How ROUGE was computed: library, version and settings."""
    return f"rouge_score {version('rouge-score')}, F-measure, Porter stemmer, maximum over references"


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(RougeScores._fields), use_stemmer=True)


def meteor(prediction: str, references: Sequence[str]) -> float:
    """METEOR by nltk, 0..1: the maximum over references, α = .9, β = 3, γ = .5.

    Matches exact words, Porter stems and WordNet synonyms, in this order. nltk looks up synonyms by the stems of the
    remaining words, and misses some. A perfect answer of m words scores 1 − ½/m³, so one word scores ½.

    Raises:
        MetricError: WordNet is not installed (see `why_no_meteor`), no reference is left after normalising, or
            `references` is one string.
    """
    if (reason := why_no_meteor()) is not None:
        raise MetricError(f"METEOR cannot be computed: {reason}")
    from nltk.translate.meteor_score import meteor_score

    tokens = [gold.split() for gold in _golds(references)]
    predicted = normalize_answer(prediction).split()
    return float(meteor_score(tokens, predicted, alpha=METEOR_ALPHA, beta=METEOR_BETA, gamma=METEOR_GAMMA))


def meteor_signature() -> str:
    """How METEOR was computed: library, version and settings."""
    weights = f"alpha {METEOR_ALPHA:g}, beta {METEOR_BETA:g}, gamma {METEOR_GAMMA:g}"
    return f"nltk {version('nltk')}, {weights}, maximum over references"


@functools.cache
def why_no_meteor() -> str | None:
    """Why METEOR cannot be computed here, and the command that fixes it; None if it can."""
    from nltk.corpus import wordnet

    try:
        wordnet.synsets("word")
    except (LookupError, OSError, ValueError) as error:
        # The text of nltk's LookupError fills a page.
        reason = "WordNet is not installed" if isinstance(error, LookupError) else f"WordNet cannot be read ({error})"
        return f"{reason}; {WORDNET_REMEDY}"
    return None


def _golds(references: Sequence[str]) -> list[str]:
    """Normalised references that are not empty; at least one."""
    if isinstance(references, str):
        raise MetricError(f"references is the text {references!r:.60}; pass a list of texts")
    golds = [gold for reference in references if (gold := normalize_answer(reference))]
    if not golds:
        raise MetricError(
            f"BLEU, ROUGE and METEOR need a reference that is not empty, got {list(references)!r:.60}; "
            "exclude unanswerable documents"
        )
    return golds
