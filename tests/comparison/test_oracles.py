"""A metric that is computed from sums, tested as sacrebleu tests it."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from harness_ext.metrics.declarations import declared
from harness_ext.stats.paired import paired_aggregates
from harness_ext.stats.resampling import bootstrap, percentile_interval

SENTENCES = (
    "the cat sat on the mat",
    "a dog ran over the hill",
    "it rained all day in the town",
    "we saw a red bird there",
)


def system(seed: int, share: float) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [sentence.split() for sentence in SENTENCES * 12]
    return [" ".join(word if rng.random() < share else "thing" for word in sentence) for sentence in words]


# Oracle: sacrebleu's own paired bootstrap.
def test_bleu_is_compared_as_by_sacrebleu():
    references, first, second = SENTENCES * 12, system(0, 0.75), system(1, 0.85)
    bleu = declared("bleu")[-1]
    before, after = (
        np.array([bleu.numbers((text, [gold])) for text, gold in zip(side, references, strict=True)])
        for side in (first, second)
    )
    systems, metric = [("base", first), ("other", second)], {"BLEU": BLEU(references=[references])}
    _, theirs = PairedTest(systems, metric, None, test_type="bs", n_samples=1000)()
    assert bleu.value(after) == pytest.approx(theirs["BLEU"][1].score)
    interval = percentile_interval(bootstrap(48, lambda weights: bleu.score(weights @ after)))
    assert (interval.high - interval.low) / 2 == pytest.approx(theirs["BLEU"][1].ci, rel=0.15)
    paired = paired_aggregates(before, after, bleu.score, n=48, span=100.0)
    assert paired.difference == pytest.approx(theirs["BLEU"][1].score - theirs["BLEU"][0].score)
    assert paired.interval.low < paired.difference < paired.interval.high
    assert (paired.p_value < 0.05) == (theirs["BLEU"][1].p_value < 0.05)
