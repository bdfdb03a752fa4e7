"""Closed forms against statsmodels, scikit-learn, scipy and sacrebleu."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
import statsmodels.api as sm
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy import stats
from sklearn import metrics
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness_ext.comparison.aggregates import compare_aggregates, describe_aggregate, readings_of
from harness_ext.stats import resampling
from harness_ext.stats.intervals import Clusters, holm, mcnemar_p, mean_standard_error, proportion_interval
from harness_ext.stats.resampling import bootstrap, percentile_interval, sign_flip_p, swap_p


# Oracle: statsmodels multipletests.
@pytest.mark.parametrize("seed", range(4))
def test_holm(seed):
    p = np.random.default_rng(seed).beta(0.5, 3, 12).tolist()
    p[3] = p[7]  # ties
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


# Oracle: an intercept-only regression with cluster-robust errors; it also multiplies by (n - 1) / (n - K).
def test_cluster_standard_error():
    rng = np.random.default_rng(0)
    scores, passages = rng.random(90), rng.integers(0, 14, 90)
    fit = sm.OLS(scores, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": passages})
    assert mean_standard_error(scores, Clusters(passages)) == (pytest.approx(float(fit.bse[0])), 14)


@pytest.mark.parametrize(("k", "n", "method"), [(444, 872, "wilson"), (7, 20, "beta"), (0, 300, "beta")])
def test_proportions(k, n, method):
    found = proportion_interval(k, n)
    assert (found.low, found.high) == pytest.approx(proportion_confint(k, n, method=method), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(12, 3), (40, 41), (0, 9)])
def test_mcnemar(gained, lost):
    assert mcnemar_p(gained, lost) == pytest.approx(their_mcnemar([[50, gained], [lost, 20]], exact=True).pvalue)


# Oracle: scipy.stats.bootstrap of a mean.
def test_bootstrap_of_a_mean():
    values = np.random.default_rng(1).exponential(1, 80)
    found = percentile_interval(bootstrap(80, lambda weights: weights @ values / weights.sum(axis=1), seed=3))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_swapping_a_mean_is_flipping_its_signs():
    rng = np.random.default_rng(4)
    before, after = rng.random((40, 1)), rng.random((40, 1)) + 0.1
    assert swap_p(before, after, lambda sums: sums[:, 0] / 40, seed=5) == sign_flip_p(after - before, seed=5)


def test_pooling_keeps_totals_and_hardly_moves_the_p_value(monkeypatch):
    draws = np.random.default_rng(6).normal(0.02, 1, (6_000, 1))
    pooled = resampling.pooled(draws, seed=0)
    assert len(pooled) == resampling.POOLED_UNITS
    assert pooled.sum() == pytest.approx(draws.sum())
    found = sign_flip_p(draws)
    assert found == pytest.approx(stats.ttest_1samp(draws[:, 0], 0).pvalue, abs=0.02)


def label_pairs(seed: int, classes: int, n: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    return np.stack([gold, np.where(rng.random(n) < 0.6, gold, rng.integers(-1, classes, n))], axis=1).astype(float)


# Oracle: scikit-learn, unparsed outputs a class of their own that no gold label has.
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_label_metrics(seed, classes):
    pairs = label_pairs(seed, classes)
    gold, predicted = pairs.astype(int).T
    (macro,), (mcc,) = readings_of("macro_f1"), readings_of("mcc")
    expected = metrics.f1_score(gold, predicted, average="macro", labels=sorted(set(gold)))
    assert macro.value(pairs) == pytest.approx(expected)
    assert mcc.value(pairs) == pytest.approx(metrics.matthews_corrcoef(gold, predicted))


def test_abstention():
    logged = [(True, False), (True, True), (False, False), (False, True), (True, False)]  # (abstained, has an answer)
    for name, expected in (("abstain_precision", 2 / 3), ("abstain_recall", 2 / 3), ("abstain_f1", 2 / 3)):
        (reading,) = readings_of(name)
        assert reading.value(np.array([reading.numbers(pair) for pair in logged])) == pytest.approx(expected)


def test_auroc_and_its_weights():
    rng = np.random.default_rng(7)
    gold, scores = rng.integers(0, 2, 70), rng.integers(0, 12, 70) / 3.0  # with ties
    (reading,) = readings_of("auroc")
    pairs = np.stack([gold, scores + gold], axis=1).astype(float)
    assert reading.value(pairs) == pytest.approx(metrics.roc_auc_score(gold, scores + gold))
    found = compare_aggregates(reading, pairs, np.stack([gold, scores + 3 * gold], axis=1).astype(float), None)
    expected = metrics.roc_auc_score(gold, scores + 3 * gold) - metrics.roc_auc_score(gold, scores + gold)
    assert found.difference == pytest.approx(expected)
    assert found.interval.low < found.difference < found.interval.high
    clustered = compare_aggregates(reading, pairs, pairs, Clusters(np.arange(70) // 7))
    assert (clustered.difference, clustered.p_value, clustered.units) == (0, 1, 10)


def test_bits_per_byte():
    rows = np.array([[-10.0, 20.0], [-30.0, 40.0]])
    (bits,), (perplexity,) = readings_of("bits_per_byte"), readings_of("word_perplexity")
    assert bits.value(rows) == pytest.approx(40 / 60 / math.log(2))
    assert perplexity.value(rows) == pytest.approx(math.exp(40 / 60))


SENTENCES = (
    "the cat sat on the mat",
    "a dog ran over the hill",
    "it rained all day in the town",
    "we saw a red bird there",
)


def system(seed: int, share: float) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [sentence.split() for sentence in SENTENCES * 12]
    return [" ".join(word if rng.random() < share else "thing" for word in each) for each in words]


# Oracle: sacrebleu's corpus score and its own paired bootstrap.
def test_bleu():
    references, first, second = SENTENCES * 12, system(0, 0.75), system(1, 0.85)
    ours, stock = readings_of("bleu")
    rows = [
        np.array([ours.numbers((text, [gold])) for text, gold in zip(side, references, strict=True)])
        for side in (first, second)
    ]
    swapped = np.array([stock.numbers((gold, text)) for text, gold in zip(first, references, strict=True)])
    assert ours.value(rows[0]) * 100 == pytest.approx(sacrebleu.corpus_bleu(first, [references]).score)
    assert stock.value(swapped) == ours.value(rows[0])
    systems, metric = [("base", first), ("other", second)], {"BLEU": BLEU(references=[references])}
    _, theirs = PairedTest(systems, metric, None, test_type="bs", n_samples=1000)()
    found = describe_aggregate(ours, rows[1], None)
    assert 100 * (found.interval.high - found.interval.low) / 2 == pytest.approx(theirs["BLEU"][1].ci, rel=0.15)
    difference = compare_aggregates(ours, *rows, None)
    assert 100 * difference.difference == pytest.approx(theirs["BLEU"][1].score - theirs["BLEU"][0].score)
    assert (difference.p_value < 0.05) == (theirs["BLEU"][1].p_value < 0.05)


def test_bleu_with_several_references_and_another_form():
    ours, _ = readings_of("bleu")
    row = ours.numbers(("the cat sat", ["a cat sat", "the cat slept here"]))
    expected = sacrebleu.corpus_bleu(["the cat sat"], [["a cat sat"], ["the cat slept here"]]).score
    assert 100 * ours.value(np.array([row])) == pytest.approx(expected)
    with pytest.raises(TypeError):
        ours.numbers((["references"], "prediction"))
