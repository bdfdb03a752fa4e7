"""Metrics that are not means over documents, from logged values, against scikit-learn and sacrebleu."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
from sklearn import metrics

from harness_ext.errors import MetricError
from harness_ext.metrics.declarations import declared
from harness_ext.metrics.statistic import Statistic


def computed(metric: str) -> Statistic:
    """The last declaration of a metric, which is the one for pairs if it may also be logged as a number."""
    return declared(metric)[-1]


def label_pairs(seed: int, classes: int, n: int = 60) -> list[tuple[int, int | None]]:
    """Gold and predicted labels; None for an output that did not parse."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < 0.6, gold, rng.integers(-1, classes, n))
    return [(g, None if p < 0 else p) for g, p in zip(gold.tolist(), predicted.tolist(), strict=True)]


# Oracle: scikit-learn, with unparsed outputs as an extra class without gold labels.
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_label_metrics(seed, classes):
    pairs = label_pairs(seed, classes)
    gold, predicted = zip(*((g, -1 if p is None else p) for g, p in pairs), strict=True)
    expected = metrics.f1_score(gold, predicted, average="macro", labels=sorted(set(gold)))
    assert computed("macro_f1")(pairs) == pytest.approx(expected)
    assert computed("mcc")(pairs) == pytest.approx(metrics.matthews_corrcoef(gold, predicted))
    expected = metrics.f1_score(gold, predicted, labels=[1], average="macro")
    assert computed("f1")(pairs) == pytest.approx(expected)


def test_abstention():
    logged = [(True, False), (True, True), (False, False), (False, True), (True, False)]  # (abstained, has an answer)
    for name, expected in (("abstain_precision", 2 / 3), ("abstain_recall", 2 / 3), ("abstain_f1", 2 / 3)):
        assert computed(name)(logged) == pytest.approx(100 * expected)


def test_auroc():
    rng = np.random.default_rng(7)
    gold, scores = rng.integers(0, 2, 70), rng.integers(0, 12, 70) / 3.0  # with ties
    pairs = list(zip(gold.tolist(), (scores + gold).tolist(), strict=True))
    assert computed("auroc")(pairs) == pytest.approx(metrics.roc_auc_score(gold, scores + gold))
    for other in ((2, 0.5), (1, math.nan)):
        with pytest.raises(MetricError, match="not a binary class"):
            computed("auroc")([other])


# Without blocks, the table of a thousand labels and 9,000 documents would take 216 MB.
def test_documents_are_summed_in_blocks():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 1000, 9000), rng.integers(0, 1000, 9000)
    predicted = np.where(rng.random(9000) < 0.5, gold, predicted)
    pairs = list(zip(gold.tolist(), predicted.tolist(), strict=True))
    assert computed("mcc")(pairs) == pytest.approx(metrics.matthews_corrcoef(gold, predicted))


@pytest.mark.parametrize(
    ("logged", "message"),
    [([], "no documents"), ([(0, 1), (-1, 0)], "pair of labels"), ([(0, -1)], "pair of labels"), ([3], "mcc")],
)
def test_what_no_document_logs(logged, message):
    with pytest.raises(MetricError, match=message):
        computed("mcc")(logged)


def test_sums_of_loglikelihoods():
    logged = [(-10.0, 20), (-30.0, 40)]  # nats, bytes or words
    assert computed("bits_per_byte")(logged) == pytest.approx(40 / 60 / math.log(2))
    for name in ("word_perplexity", "byte_perplexity", "perplexity"):
        assert computed(name)(logged) == pytest.approx(math.exp(40 / 60))
    (first, _) = declared("perplexity")
    assert first([-2.0, -3.0]) == pytest.approx(math.exp(2.5))  # lambada logs numbers


SENTENCES = ("the cat sat on the mat", "a dog ran over the hill", "it rained all day in the town")


# Oracle: sacrebleu's corpus score.
def test_bleu():
    texts = ["the cat sat on a mat", "a dog ran over the hill", "it rained all night in the town"]
    _, stock, ours = declared("bleu")  # a number; (references, prediction); (prediction, references)
    expected = sacrebleu.corpus_bleu(texts, [SENTENCES]).score
    assert ours([(text, [gold]) for text, gold in zip(texts, SENTENCES, strict=True)]) == pytest.approx(expected)
    assert stock(list(zip(SENTENCES, texts, strict=True))) == pytest.approx(expected)
    assert ours.in_shares()([(text, [gold]) for text, gold in zip(texts, SENTENCES, strict=True)]) == pytest.approx(
        expected / 100
    )


def test_bleu_with_several_references_and_another_form():
    *_, ours = declared("bleu")
    expected = sacrebleu.corpus_bleu(["the cat sat"], [["a cat sat"], ["the cat slept here"]]).score
    assert ours([("the cat sat", ["a cat sat", "the cat slept here"])]) == pytest.approx(expected)
    with pytest.raises(TypeError):
        ours.numbers((["references"], "prediction"))
