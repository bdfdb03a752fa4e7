"""Our SQuAD and label metrics against implementations that share no code with them.

Oracles: a second SQuAD written here from the published rules, torchmetrics' SQuAD, scikit-learn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import sklearn.metrics
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness_ext.metrics import known, labels, squad

# Pieces for corner cases of the rules: articles inside words, ASCII and other punctuation, accents, full-width letters,
# letters whose lower case is longer, white space other than a space.
# fmt: off
PIECES = st.sampled_from(
    ["the", "The", "a", "an", "theatre", "Ann", "cat", "CAT", "cat.", "c.a.t", "-", "–", "“cat”", "'", "$", "é", "ß",
     "İ", "ｃａｔ", "1,000", "\u00a0", "\t", "\n", "", "a.", "_a_", "the-the", "猫", "नमस्ते"]
)
# fmt: on
TEXTS = st.lists(PIECES, max_size=6).map(" ".join) | st.text(max_size=12)
REFERENCES = st.lists(TEXTS, min_size=1, max_size=4)


# -- SQuAD, written again from its rules ---------------------------------------------------------------------------

ASCII_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def tokens(text: str) -> list[str]:
    """Lower-case, drop ASCII punctuation, replace articles by spaces, split at white space."""
    kept = "".join(character for character in text.lower() if character not in ASCII_PUNCTUATION)
    return re.sub(r"(?<!\w)(?:a|an|the)(?!\w)", " ", kept).split()


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    left, shared = list(reference), 0
    for token in prediction:
        if token in left:
            left.remove(token)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def v1(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    golds = [tokens(reference) for reference in references]
    predicted_text = tokens(prediction)
    return float(any(predicted_text == gold for gold in golds)), max(f1(predicted_text, gold) for gold in golds)


def v2(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    golds = [gold for reference in references if (gold := tokens(reference))] or [[]]
    predicted_text = tokens(prediction)
    each = [
        float(predicted_text == gold) if not predicted_text or not gold else f1(predicted_text, gold) for gold in golds
    ]
    return float(any(predicted_text == gold for gold in golds)), max(each)


@given(TEXTS, REFERENCES)
@example("the", ["an"])
@example("", [""])
def test_squad_v1(prediction: str, references: list[str]) -> None:
    exact, overlap = v1(prediction, references)
    assert squad.squad_v1_exact_match(prediction, references) == exact
    assert squad.squad_v1_f1(prediction, references) == pytest.approx(overlap)


@given(TEXTS, st.lists(TEXTS, max_size=4))
@example("the", [])
@example("cat", ["the", "a cat"])
def test_squad_v2(prediction: str, references: list[str]) -> None:
    exact, overlap = v2(prediction, references)
    assert squad.exact_match(prediction, references) == exact
    assert squad.token_f1(prediction, references) == pytest.approx(overlap)
    scored = squad.score_squad_v2(prediction, references, abstentions=())
    assert (scored.exact, scored.f1) == (exact, pytest.approx(overlap))


@settings(deadline=None)  # the first example imports
@given(st.lists(st.tuples(TEXTS, REFERENCES), min_size=1, max_size=5))
def test_squad_v1_is_torchmetrics(documents: list[tuple[str, list[str]]]) -> None:
    text = pytest.importorskip("torchmetrics.functional.text")
    predictions = [{"prediction_text": predicted_text, "id": str(n)} for n, (predicted_text, _) in enumerate(documents)]
    golds = [
        {"answers": {"text": references, "answer_start": [0] * len(references)}, "id": str(n)}
        for n, (_, references) in enumerate(documents)
    ]
    expected = text.squad(predictions, golds)
    exact = [squad.squad_v1_exact_match(*document) for document in documents]
    assert 100 * sum(exact) / len(exact) == pytest.approx(float(expected["exact_match"]), abs=1e-3)
    # If both texts are empty, torchmetrics follows v2 (F1 is 1); we follow the official v1 script (0).
    if any(not tokens(predicted_text) and [] in map(tokens, references) for predicted_text, references in documents):
        return
    overlap = [squad.squad_v1_f1(*document) for document in documents]
    assert 100 * sum(overlap) / len(overlap) == pytest.approx(float(expected["f1"]), abs=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_abstention_is_scikit_learn(rows: list[tuple[bool, bool]]) -> None:
    golds, predicted_text = [not has_answer for _, has_answer in rows], [abstained for abstained, _ in rows]
    oracle = {"y_true": golds, "y_pred": predicted_text, "zero_division": math.nan}
    for ours, theirs in (
        (known.ABSTAIN_PRECISION, sklearn.metrics.precision_score),
        (known.ABSTAIN_RECALL, sklearn.metrics.recall_score),
        (known.ABSTAIN_F1, sklearn.metrics.f1_score),
    ):
        assert ours(rows) == pytest.approx(100 * theirs(**oracle), nan_ok=True)


# -- labels --------------------------------------------------------------------------------------------------------

CLASSES = st.integers(0, 3)
PAIRS = st.lists(st.tuples(CLASSES, st.none() | CLASSES), min_size=1, max_size=30)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(PAIRS)
def test_labels_are_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    golds, predicted_text = zip(
        *((gold, -1 if predicted is None else predicted) for gold, predicted in pairs), strict=True
    )
    expected = sklearn.metrics.f1_score(
        golds, predicted_text, average="macro", labels=sorted(set(golds)), zero_division=0
    )
    assert known.MACRO_F1(pairs) == pytest.approx(expected)
    assert known.MCC(pairs) == pytest.approx(sklearn.metrics.matthews_corrcoef(golds, predicted_text))


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 1.0])), min_size=2))
@settings(deadline=None)  # the first example imports
def test_auroc_is_scikit_learn_also_with_ties(pairs: list[tuple[int, float]]) -> None:
    golds, scores = zip(*pairs, strict=True)
    if len(set(golds)) < 2:
        assert math.isnan(known.AUROC(pairs))
    else:
        finite = [max(score, -9.0) for score in scores]  # scikit-learn rejects -inf
        assert known.AUROC(pairs) == pytest.approx(sklearn.metrics.roc_auc_score(golds, finite))


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(-8, 0), min_size=3, max_size=3)), min_size=1))
def test_probabilities_are_scikit_learn(documents: list[tuple[int, list[float]]]) -> None:
    golds = [gold for gold, _ in documents]
    probabilities = [labels.softmax(logprobs) for _, logprobs in documents]
    assert labels.log_loss(golds, probabilities) == pytest.approx(
        sklearn.metrics.log_loss(golds, probabilities, labels=[0, 1, 2])
    )
    per_class = sum(
        sklearn.metrics.mean_squared_error([float(gold == k) for gold in golds], [p[k] for p in probabilities])
        for k in range(3)
    )
    assert labels.brier(golds, probabilities) == pytest.approx(per_class / 2)
