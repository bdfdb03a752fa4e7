"""BLEU, ROUGE and METEOR of answers, against the libraries used another way, and by hand.

Oracles: sacrebleu's function interface with equal numbers of references, torchmetrics' BLEU, rouge_score one reference
at a time, nltk's `single_meteor_score`. METEOR runs where WordNet is (`make wordnet`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from harness_ext.errors import MetricError
from harness_ext.metrics import overlap
from harness_ext.metrics.overlap import BleuRow, bleu_row, corpus_bleu, meteor, rouge
from harness_ext.metrics.squad import normalize_answer

WORDS = st.sampled_from(["cat", "dog", "black", "running", "ran", "1931", "Köln", "the", "a", "of", "bell-tower"])
TEXTS = st.lists(WORDS, max_size=7).map(" ".join)
GOLDS = TEXTS.filter(lambda text: bool(normalize_answer(text)))
needs_wordnet = pytest.mark.skipif(overlap.why_no_meteor() is not None, reason="METEOR needs WordNet: make wordnet")


# -- BLEU --------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first example imports
@given(st.lists(st.tuples(TEXTS, GOLDS, GOLDS), min_size=1, max_size=6))
def test_bleu_is_sacrebleu(documents: list[tuple[str, str, str]]) -> None:
    rows = [bleu_row(prediction, references) for prediction, *references in documents]
    predictions = [normalize_answer(document[0]) for document in documents]
    references = [[normalize_answer(document[column]) for document in documents] for column in (1, 2)]
    expected = sacrebleu.corpus_bleu(predictions, references, force=True).score
    assert corpus_bleu(rows) == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 4])
def test_bleu_is_torchmetrics(order: int) -> None:
    text = pytest.importorskip("torchmetrics.functional.text")
    predictions = ["the quick brown fox jumps over a lazy dog", "porch of the primary school in town"]
    references = [["a quick brown fox jumped over the lazy dogs"], ["in the porch of the primary school", "school"]]
    rows = [bleu_row(*row) for row in zip(predictions, references, strict=True)]
    expected = text.bleu_score([row.prediction for row in rows], [row.references for row in rows], n_gram=order)
    assert corpus_bleu(rows, order=order) == pytest.approx(100 * float(expected), abs=1e-3)


def test_documents_with_different_numbers_of_references() -> None:
    rows = [BleuRow("a b c d", ["a b c d"]), BleuRow("e f g h", ["x", "e f g h", "y z"])]
    assert corpus_bleu(rows) == pytest.approx(100.0)
    assert overlap.bleu_signature().startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    # Rows read from a samples file are lists.
    assert corpus_bleu([["a b c d", ["a b c d"]], ["e f g h", ["x", "e f g h", "y z"]]]) == pytest.approx(100.0)


def test_perfect_short_answers_have_no_bleu_4() -> None:
    rows = [bleu_row(answer, [answer]) for answer in ("1931", "Osric Pell")]
    assert corpus_bleu(rows) == 0.0
    assert corpus_bleu(rows, order=1) == pytest.approx(100.0)


def test_no_documents() -> None:
    with pytest.raises(MetricError, match="no documents"):
        corpus_bleu([])


# -- ROUGE -------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first example imports
@given(TEXTS, st.lists(GOLDS, min_size=1, max_size=3))
def test_rouge_is_rouge_score(prediction: str, references: list[str]) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [scorer.score(normalize_answer(gold), normalize_answer(prediction)) for gold in references]
    for name, value in rouge(prediction, references)._asdict().items():
        assert value == max(scores[name].fmeasure for scores in each)


# By hand: F of 2 shared of 3 and 2 words.
@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("black cats sleep", ["black cat"], (0.8, 2 / 3, 0.8)),  # stemmed
        ("", ["cat"], (0.0, 0.0, 0.0)),
        ("the", ["cat"], (0.0, 0.0, 0.0)),  # articles only
        ("Cat.", ["dog", "a cat"], (1.0, 0.0, 1.0)),  # one word has no bigram
    ],
)
def test_rouge_by_hand(prediction: str, references: list[str], expected: tuple[float, ...]) -> None:
    assert rouge(prediction, references) == pytest.approx(expected)


# -- METEOR ------------------------------------------------------------------------------------------------------


@needs_wordnet
@settings(deadline=None)  # the first example imports
@given(TEXTS, st.lists(GOLDS, min_size=1, max_size=3))
def test_meteor_is_nltk(prediction: str, references: list[str]) -> None:
    from nltk.translate.meteor_score import single_meteor_score

    tokens = normalize_answer(prediction).split()
    expected = max(
        single_meteor_score(normalize_answer(gold).split(), tokens, alpha=0.9, beta=3.0, gamma=0.5)
        for gold in references
    )
    assert meteor(prediction, references) == expected


@needs_wordnet
@pytest.mark.parametrize("answer", ["cat", "black cat", "porch of primary school"])
def test_a_perfect_answer_of_m_words(answer: str) -> None:
    assert meteor(answer, [answer]) == pytest.approx(1 - 0.5 / len(answer.split()) ** 3)


@needs_wordnet
def test_synonyms_and_stems_match() -> None:
    assert meteor("auto", ["a car"]) == meteor("cars", ["car"]) == 0.5
    # nltk looks up stems in WordNet: "automobil" for "automobile", which is not in it.
    assert meteor("automobile", ["a car"]) == 0.0
    assert meteor("", ["car"]) == meteor("banana", ["car"]) == 0.0


def test_meteor_without_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def synsets(self, word: str) -> list[object]:
            raise LookupError("*" * 70 + "\n  Resource wordnet not found.\n")

    monkeypatch.setattr("nltk.corpus.wordnet", Missing())
    overlap.why_no_meteor.cache_clear()
    try:
        with pytest.raises(MetricError) as caught:
            meteor("cat", ["cat"])
    finally:
        monkeypatch.undo()
        overlap.why_no_meteor.cache_clear()
    assert "WordNet is not installed; run `make wordnet`" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- all ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [bleu_row, rouge])
@pytest.mark.parametrize("references", [[], ["the", "..."], "cat"])
def test_references_that_say_nothing(metric: object, references: Sequence[str]) -> None:
    with pytest.raises(MetricError, match=r"references is the text|need a reference that is not empty"):
        metric("cat", references)  # type: ignore[operator]


@settings(deadline=None)  # the first example imports
@given(TEXTS, GOLDS)
def test_scores_are_in_range(prediction: str, gold: str) -> None:
    for value in rouge(prediction, [gold]):
        assert 0.0 <= value <= 1.0 + 1e-12
    assert 0.0 <= corpus_bleu([bleu_row(prediction, [gold])]) <= 100.0 + 1e-9
    assert not math.isnan(corpus_bleu([bleu_row(prediction, [gold])], order=1))
